"""The two states: what one pass over the rows gives, and what needs mean and σ first."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Self

import numpy as np

from visreg_core import _xp, checks, threads
from visreg_core.losses.visreg import EPS
from visreg_core.slices import random_slices
from visreg_core.statistics._moments import Moments, MomentSums
from visreg_core.statistics._sample import RowSample
from visreg_core.statistics._slices import Bounded, CharacteristicSums, Histograms
from visreg_core.typing import Array

# Squares of larger numbers overflow when they are summed; NaN is not smaller, either.
LARGEST = 1e150
# Numbers of bad rows that are kept; all are counted.
KEPT_BAD = 1 << 20
# Numbers that are worked on at once, and how few and how many rows they may be: enough for the
# bins of a slice to be worth it.
_VALUES, _FEWEST, _MOST = 1 << 23, 1 << 10, 1 << 14


class Summary(NamedTuple):
    """What `Statistics` says of the rows it was shown.

    n
        Rows, bad ones not counted.
    moments
        ``mean`` and ``sigma`` (D,), ``scatter()`` (D, D), ``singular_values(center=)``.
    sigreg : numpy.ndarray (K,)
        `epps_pulley` of each slice; their mean is `sigreg_loss`.
    n_bad, bad
        How many rows hold NaN, Inf or numbers beyond 1e150, and the least numbers of them.
    sample : tuple
        Numbers and rows of the sample, in the order of the rows.
    """

    n: int
    moments: Moments
    sigreg: np.ndarray
    n_bad: int
    bad: np.ndarray
    sample: tuple[np.ndarray, np.ndarray]


class Statistics:
    """A mergeable state of embeddings: counts, moments, SIGReg's sums, and a sample of rows.

    The rows may come in any order and be divided in any way over states that are merged: moments
    and SIGReg are the same to rounding, the sample and the numbers of bad rows are the same.

    Parameters
    ----------
    dim : int
        Dimensions D of the rows.
    n_slices : int
        Random directions K, `random_slices` of `seed`.
    seed : int
        Of the directions and of the sample.
    sample : int
        Rows of the sample.

    Notes
    -----
    Bytes of `to_arrays`: 8 (D² + D) of moments, 256 K of characteristic functions, 4 (8 of float64
    rows) times D + 4 for each row of the sample, 8 for each bad row up to 2²⁰. At D = 768, K = 256
    and 2,000 rows of float32 that is 11 MB; `SliceDistributions` has 44 MB, `CrossScatter` 5 MB.
    While a state is used it has besides the rows themselves until it has seen 2²³ numbers (64 MiB),
    a sample of twice the size, and 64 MiB or 1,024 rows in float64.

    States are merged in pairs, by anything that can send arrays:
    ``Statistics.from_arrays(np.load(file))`` reads what ``np.savez(file, **state.to_arrays())``
    wrote. Nothing is pickled.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.statistics import Statistics
    >>> z = np.random.default_rng(0).standard_normal((3000, 8))
    >>> first, second = Statistics(8, n_slices=16), Statistics(8, n_slices=16)
    >>> first.update(z[:1000], numbers=0)
    >>> second.update(z[1000:], numbers=1000)
    >>> first.merge(Statistics.from_arrays(second.to_arrays()))
    >>> found = first.result()
    >>> found.n, bool(np.allclose(found.moments.sigma, z.std(axis=0)))
    (3000, True)
    """

    def __init__(self, dim: int, *, n_slices: int = 256, seed: int = 0, sample: int = 2000) -> None:
        checks.positive_int("sample", sample)
        self.slices = random_slices(dim, n_slices, seed=seed)
        self.seed = seed
        self.shown = 0
        self.n_bad = 0
        self.bad = np.empty(0, np.int64)
        self.moments = MomentSums(dim)
        self.characteristic = CharacteristicSums(n_slices)
        self.sample = RowSample(dim, sample, seed)

    @threads.blas_on_one_thread()
    def update(self, rows: Array, *, numbers: int | np.ndarray | None = None) -> None:
        """Add rows (B, D) of any namespace; thousands at once are added fastest.

        `numbers` are those of the rows, (B,) integers, or that of the first of consecutive ones;
        by default rows are counted on from those that this state was shown. States that will be
        merged need numbers of the whole, by which the sample is drawn. Rows with NaN, Inf or
        numbers beyond 1e150 are counted and left out.

        Raises ValueError where rows or numbers are not of these shapes.
        """
        for part, host, number in _parts(rows, self.slices, numbers, self.shown):
            self.shown += len(host)
            z = host.astype(np.float64)
            good = finite(z)
            if not good.all():
                self.leave_out(number[~good])
                part, host, z, number = part[good], host[good], z[good], number[good]
            if not len(host):
                continue
            self.sample.update(host, number)
            if _xp.works_in_tiles(_xp.namespace(part)):
                self.characteristic.update(z, self.slices)
            else:
                self.characteristic.update_elsewhere(_project(part, self.slices))
            self._visit(z, number)
            self.moments.update(z)

    def leave_out(self, numbers: np.ndarray) -> None:
        """Count rows of these numbers as bad ones."""
        self.n_bad += len(numbers)
        self.bad = np.sort(np.concatenate([self.bad, numbers]))[:KEPT_BAD]

    def _visit(self, z: np.ndarray, numbers: np.ndarray) -> None:
        """For classes that know more of the finite rows: `z` float64, to be left as it is."""

    def merge(self, other: Statistics) -> None:
        """Add the rows of another state of the same arguments, which stays as it is."""
        mine, its = ((s.slices.shape, s.seed, s.sample.count) for s in (self, other))
        if mine != its:
            expected = "a state of the same dim, n_slices, seed and sample"
            raise ValueError(f"expected {expected}, {mine}; found {its}")
        self.shown += other.shown
        self.n_bad += other.n_bad
        self.bad = np.sort(np.concatenate([self.bad, other.bad]))[:KEPT_BAD]
        self.moments.merge(other.moments)
        self.characteristic.merge(other.characteristic)
        self.sample.merge(other.sample)

    def result(self) -> Summary:
        """What there is to say of all rows so far, of which at least two must be good."""
        n = self.moments.n
        if n < 2:
            raise ValueError(f"expected two finite rows or more; found {n}")
        sigreg = self.characteristic.statistics(n)
        return Summary(n, self.moments.result(), sigreg, self.n_bad, self.bad, self.sample.result())

    def distributions(self) -> SliceDistributions:
        """An empty state for a second pass over the same rows."""
        return SliceDistributions(self.moments.result(), self.slices)

    def copy(self) -> Self:
        """A state that can be merged into while this one stays as it is."""
        return copy.deepcopy(self)

    def reduce(self) -> None:
        """Hold no more than `to_arrays` gives: to be called before a state is sent as it is."""
        self.moments = MomentSums.from_arrays(self.moments.to_arrays())
        self.sample = RowSample.from_arrays(self.sample.to_arrays())

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The state as plain arrays."""
        return {
            "shown": np.array([self.shown, self.n_bad]),
            "bad": self.bad,
            "characteristic": self.characteristic.sums,
            **_under("moments", self.moments.to_arrays()),
            **_under("sample", self.sample.to_arrays()),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Statistics:
        """The state that `to_arrays` wrote down."""
        moments = MomentSums.from_arrays(_below(arrays, "moments"))
        sample = RowSample.from_arrays(_below(arrays, "sample"))
        sums = arrays["characteristic"]
        state = cls(len(moments.mean), n_slices=len(sums), seed=sample.seed, sample=sample.count)
        state.shown, state.n_bad = map(int, arrays["shown"])
        state.bad = arrays["bad"]
        state.moments, state.sample = moments, sample
        state.characteristic.sums = sums
        return state


class SliceDistances(NamedTuple):
    """Squared distances of each slice's projections to a standard Gaussian's quantiles.

    shape
        Of standardised rows: the mean of ``shape.value`` is `shape_loss`.
    gaussian
        Of the rows as they are: `gaussian_sliced_wasserstein`.

    Both are ``(value, bound)``, (K,) each: the exact value is between ``value`` and
    ``value + bound``.
    """

    shape: Bounded
    gaussian: Bounded


class SliceDistributions:
    """A mergeable state of a second pass, which knows the moments of all rows from the first.

    For each of the `slices` (D, K) two histograms of 5,120 bins, of the rows' projections and of
    those of Algorithm 1's z̃ = (z − μ)/(σ + ε): 16 bytes a bin, 42 MB at K = 256. Bins are 1/160
    of a standard deviation wide in the middle and widen with the distance from it (asinh); a bin
    keeps the count and the sum of its values. States of one first pass have the same counts however
    the rows are divided, to the last bits of a matrix product.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core import gaussian_sliced_wasserstein
    >>> from visreg_core.statistics import Statistics
    >>> z = np.random.default_rng(0).standard_normal((3000, 8))
    >>> first = Statistics(8, n_slices=16)
    >>> first.update(z)
    >>> second = first.distributions()
    >>> second.update(z)
    >>> value, bound = (float(x.mean()) for x in second.result().gaussian)
    >>> value <= float(gaussian_sliced_wasserstein(z, first.slices)) <= value + bound < value + 1e-4
    True
    """

    def __init__(self, moments: Moments, slices: np.ndarray) -> None:
        self.mean, self.sigma, self.slices = moments.mean, moments.sigma, slices
        whitened = slices / (self.sigma + EPS)[:, None]
        self.scales = np.stack(
            [np.linalg.norm(moments.factor @ w, axis=0) / np.sqrt(moments.n)
             for w in (whitened, slices)]
        )  # fmt: skip
        self._prepare()

    def _prepare(self) -> None:
        k = self.slices.shape[1]
        whitened = self.slices / (self.sigma + EPS)[:, None]
        units = np.where(self.scales > 0, self.scales, 1)
        self._directions = np.concatenate([whitened, self.slices], axis=1) / units.reshape(-1)
        self.shape, self.gaussian = Histograms(k), Histograms(k)

    @threads.blas_on_one_thread()
    def update(self, rows: Array) -> None:
        """Add rows (B, D) of any namespace; bad ones are left out, as in the first pass."""
        k = self.slices.shape[1]
        for _, host, _ in _parts(rows, self.slices, None, 0):
            z = host.astype(np.float64)
            good = finite(z)
            z = z if good.all() else z[good]
            z -= self.mean
            self.shape.update(z, self._directions[:, :k])
            self.gaussian.update(z, self._directions[:, k:])

    def merge(self, other: SliceDistributions) -> None:
        """Add the rows of another state of the same first pass, which stays as it is."""
        same = np.array_equal(self.mean, other.mean) and np.array_equal(self.scales, other.scales)
        if not same:
            raise ValueError("expected a state of the same first pass; found other moments")
        self.shape.merge(other.shape)
        self.gaussian.merge(other.gaussian)

    def result(self) -> SliceDistances:
        """Distances of all rows so far."""
        scales = np.where(self.scales > 0, self.scales, 1)
        shift = self.mean @ self.slices
        return SliceDistances(
            self.shape.to_gaussian(np.zeros_like(shift), scales[0]),
            self.gaussian.to_gaussian(shift, scales[1]),
        )

    def copy(self) -> Self:
        """A state that can be merged into while this one stays as it is."""
        return copy.deepcopy(self)

    @property
    def affine(self) -> tuple[np.ndarray, np.ndarray]:
        """Projections of the rows are shift + scale · u of the values in `gaussian`."""
        return self.mean @ self.slices, np.where(self.scales[1] > 0, self.scales[1], 1)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The state as plain arrays, the slices among them."""
        return {
            "mean": self.mean,
            "sigma": self.sigma,
            "slices": self.slices,
            "scales": self.scales,
            **_under("shape", self.shape.to_arrays()),
            **_under("gaussian", self.gaussian.to_arrays()),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> SliceDistributions:
        """The state that `to_arrays` wrote down."""
        state = cls.__new__(cls)
        state.mean, state.sigma, state.slices, state.scales = (
            arrays[name] for name in ("mean", "sigma", "slices", "scales")
        )
        state._prepare()
        state.shape = Histograms.from_arrays(_below(arrays, "shape"))
        state.gaussian = Histograms.from_arrays(_below(arrays, "gaussian"))
        return state


def finite(z: np.ndarray) -> np.ndarray:
    """Which rows, float64, have finite numbers only, none of them too large to be squared."""
    with np.errstate(over="ignore", invalid="ignore"):
        good = np.asarray(np.einsum("nd,nd->n", z, z) <= LARGEST)
    others = np.flatnonzero(~good)
    good[others] = (np.abs(z[others]) <= LARGEST).all(axis=1)
    return good


def _parts(
    rows: Array, slices: np.ndarray, numbers: int | np.ndarray | None, shown: int
) -> Iterator[tuple[Array, np.ndarray, np.ndarray]]:
    """Rows as they came and on the host, and their numbers, some thousand at once."""
    dim = len(slices)
    if not _xp.is_array(rows) or rows.ndim != 2 or rows.shape[1] != dim:
        found = tuple(rows.shape) if _xp.is_array(rows) else type(rows).__name__
        raise ValueError(f"expected rows (B, {dim}); found {found}")
    checks.floating("rows", rows)
    count = rows.shape[0]
    first = shown if numbers is None else numbers
    number = np.asarray(first)
    if number.ndim == 0:
        number = int(number) + np.arange(count)
    if number.shape != (count,) or number.dtype.kind not in "iu":
        raise ValueError(f"expected {count} integers; found {number.dtype} {number.shape}")
    step = min(max(_VALUES // dim, _FEWEST), _MOST)
    for start in range(0, count, step):
        part = rows[start : start + step]
        host = _xp.to_numpy(_xp.stop_gradient(part))
        yield part, host, number[start : start + step].astype(np.int64, copy=False)


def _project(rows: Array, slices: np.ndarray) -> Array:
    """Projections (K, B), where the rows are and in float32 or their own wider dtype."""
    xp = _xp.namespace(rows)
    wide = _xp.cast(xp, rows, _xp.compute_dtype(xp, rows))
    w = _xp.from_numpy(xp, slices.T.copy(), device=_xp.device(wide), dtype=wide.dtype)
    return w @ xp.matrix_transpose(wide)


def _under(part: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{part}.{name}": array for name, array in arrays.items()}


def _below(arrays: Mapping[str, np.ndarray], part: str) -> dict[str, np.ndarray]:
    return {
        name.removeprefix(f"{part}."): arrays[name]
        for name in arrays
        if name.startswith(f"{part}.")
    }
