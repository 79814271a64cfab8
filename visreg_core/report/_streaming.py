"""The two passes over a file: what each of them is shown, and what is known after it.

The first pass gives everything that needs no other number first, and a sample of the rows; the
second what needs mean and σ, and what asks all rows about the sample. Where the projections of all
rows fit into memory the second pass keeps them, and sliced distances are exact; else it counts them
in histograms, whose error is bounded (`visreg_core.statistics`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from visreg_core import _xp
from visreg_core._xp import tiles
from visreg_core.embeddings import Embeddings, EmbeddingsError
from visreg_core.gaussian import normal_quantiles
from visreg_core.losses.gaussian_sliced_wasserstein import gaussian_term
from visreg_core.losses.quantile_merging import two_sample_term
from visreg_core.losses.visreg import EPS
from visreg_core.report._survey import Survey
from visreg_core.statistics import Bounded, Moments, SliceDistributions, Statistics
from visreg_core.statistics._slices import between_two
from visreg_core.statistics._state import KEPT_BAD, LARGEST, finite
from visreg_core.typing import Array, Device, DType, Namespace

# Shown blocks of rows, with their places.
Visit = Callable[[slice, np.ndarray], None]
# tick(what is being done, rows done, rows in all)
Tick = Callable[[str, int, int], None]

# Projections of all rows are kept up to so many bytes.
PROJECTION_BYTES = 1 << 29
_SHOWN_BAD_ROWS = 5
# Temporary arrays of sorting and subtracting a slice's projections.
_SCRATCH = 3


class Place(NamedTuple):
    """Where sliced terms are computed: a namespace and one of its devices (None: the default)."""

    xp: Namespace
    device: Device = None

    @property
    def is_cpu(self) -> bool:
        """Whether it computes where NumPy does, too."""
        one = _xp.from_numpy(
            self.xp, np.zeros(1, np.float32), device=self.device, dtype=self.xp.float32
        )
        return "cpu" in str(_xp.device(one)).lower()

    def fastest(self) -> Place:
        """NumPy's place instead of another library's on the CPU, whose sorts are slower."""
        return Place(_xp.as_namespace(None)) if self.is_cpu else self

    def dtype(self, *stored: Embeddings) -> DType:
        """float64 where one of the files is float64, else float32."""
        wide = any(e.dtype == np.float64 for e in stored)
        return self.xp.float64 if wide else self.xp.float32

    def put(self, a: np.ndarray, dtype: DType) -> Array:
        """A host array as an array of this place (a copy, except for NumPy)."""
        host = np.float64 if _xp.dtype_name(dtype) == "float64" else np.float32
        a = a.astype(host, copy=not _xp.works_in_tiles(self.xp))
        return _xp.from_numpy(self.xp, a, device=self.device, dtype=dtype)


# --- the first pass -------------------------------------------------------------------------------


class First(Statistics):
    """Statistics of one file, and a survey of its rows, which are numbered as they are read."""

    def __init__(self, dim: int, *, n_slices: int, seed: int, sample: int) -> None:
        super().__init__(dim, n_slices=n_slices, seed=seed, sample=sample)
        self.survey = Survey(dim)

    def _visit(self, z: np.ndarray, numbers: np.ndarray) -> None:
        self.survey.update(z, numbers)

    def merge(self, other: Statistics) -> None:
        """Add the rows of another state."""
        super().merge(other)
        if isinstance(other, First):
            self.survey.merge(other.survey)


def first_pass(stored: Embeddings, first: First, place: Place, tick: Tick) -> None:
    """Show `first` all rows of a file."""
    dtype = place.dtype(stored)
    start = 0
    for block in stored.blocks():
        shown = block if _xp.works_in_tiles(place.xp) else place.put(block, dtype)
        first.update(shown, numbers=start)
        start += len(block)
        tick("moments", start, stored.shape[0])


def first_pass_together(stored: Sequence[Embeddings], firsts: Sequence[First], tick: Tick) -> None:
    """The same of files of the same items; a row that is bad in one is left out of all."""
    start = 0
    for blocks in _in_step(stored):
        wrong = ~np.logical_and.reduce([finite(b.astype(np.float64)) for b in blocks])
        numbers = np.arange(start, start + len(wrong))
        for first, block in zip(firsts, blocks, strict=True):
            first.update(block[~wrong], numbers=numbers[~wrong])
            first.leave_out(numbers[wrong])
        start += len(wrong)
        tick("moments", start, stored[0].shape[0])


def _in_step(stored: Sequence[Embeddings]):  # type: ignore[no-untyped-def]
    """Blocks of the same rows of several files of one length, together of one block's size."""
    rows = max(1, min(s.default_block_rows for s in stored) // len(stored))
    return zip(*(s.blocks(rows) for s in stored), strict=True)


def check_rows(stored: Embeddings, first: First, *, drop: bool) -> None:
    """EmbeddingsError where rows are bad and are not to be left out, or too many are."""
    if first.n_bad and not drop:
        rows = first.bad if stored.selection is None else stored.selection[first.bad]
        shown = ", ".join(map(str, rows[:_SHOWN_BAD_ROWS])) + (
            ", …" if first.n_bad > _SHOWN_BAD_ROWS else ""
        )
        found = f"NaN or Inf in {first.n_bad} of {stored.shape[0]} rows ({shown})"
        expected = f"finite values (in size at most {LARGEST:g}); --drop-bad-rows leaves them out"
        raise EmbeddingsError(stored.name, found, expected)
    if first.n_bad > KEPT_BAD or first.moments.n < 2:
        found = f"NaN or Inf in {first.n_bad} of {stored.shape[0]} rows"
        expected = "two finite rows or more" if first.moments.n < 2 else f"at most {KEPT_BAD:,}"
        raise EmbeddingsError(stored.name, found, expected)


# --- the second pass ------------------------------------------------------------------------------


class Projection(NamedTuple):
    """z ↦ directions · (z − shift) − offset: (B, D) to (K, B) in the place's precision."""

    directions: Array
    shift: Array | None = None
    offset: Array | None = None

    def __call__(self, xp: Namespace, z: Array) -> Array:
        """Projections of one block of rows."""
        if self.shift is None:
            return self.directions @ xp.matrix_transpose(z)
        return self.directions @ xp.matrix_transpose(z - self.shift) - self.offset


def _plain(slices: np.ndarray, place: Place, dtype: DType) -> Projection:
    return Projection(place.put(slices.T, dtype))


def _normalised(slices: np.ndarray, of: Moments, place: Place, dtype: DType) -> Projection:
    """Projections of Algorithm 1's z̃ = (z − μ) / (σ + ε).

    A float32 mean is off by up to 1e-7 of itself, which beside a small σ is much: what rounding
    took from it is taken off the projections.
    """
    directions = slices.T / (of.sigma + EPS)
    shift = place.put(of.mean[None, :], dtype)
    rest = of.mean - _xp.to_numpy(shift)[0].astype(np.float64)
    return Projection(
        place.put(directions, dtype), shift, place.put((directions @ rest)[:, None], dtype)
    )


class SliceValues(NamedTuple):
    """Values whose means over slices are shape_loss and gaussian_sliced_wasserstein, (K,)."""

    shape: Bounded
    gaussian: Bounded


class Exact:
    """Second pass that keeps the projections of all rows."""

    def __init__(self, stored: Embeddings, of: Moments, slices: np.ndarray, place: Place) -> None:
        self._place, self._dtype = place, place.dtype(stored)
        self._projections = (
            _plain(slices, place, self._dtype),
            _normalised(slices, of, place, self._dtype),
        )
        self._parts: tuple[list[Array], list[Array]] = ([], [])
        self.raw: Array = None
        self._unit: Array = None

    def update(self, block: np.ndarray) -> None:
        """Project a block of rows, the next ones of the file."""
        z = self._place.put(block, self._dtype)
        for part, projection in zip(self._parts, self._projections, strict=True):
            part.append(projection(self._place.xp, z))

    def finish(self) -> None:
        """All rows have been shown: (K, N) of both."""
        xp = self._place.xp
        plain, unit = self._parts
        self.raw = xp.concat(plain, axis=1)
        plain.clear()  # freed before the others are joined
        self._unit = xp.concat(unit, axis=1)
        unit.clear()

    def values(self) -> SliceValues:
        """Sliced distances from the Gaussian."""
        xp = self._place.xp
        k, n = self.raw.shape
        quantiles = normal_quantiles(n, xp=xp, dtype=self._dtype, device=self._place.device)

        def to_gaussian(p: Array) -> tuple[Array, ...]:
            return gaussian_term(xp, p, quantiles, None, False)

        found = []
        for p in (self._unit, self.raw):
            (values,) = tiles.map_rows(xp, to_gaussian, p, scratch=_SCRATCH)
            found.append(Bounded(_xp.to_numpy(values).astype(np.float64) / n, np.zeros(k)))
        return SliceValues(*found)

    def ordered(self, k: int, ranks: np.ndarray) -> np.ndarray:
        """Values of these ranks of the normalised rows' projections on slice k."""
        return np.sort(_xp.to_numpy(self._unit[k, :]))[ranks]


class Counted:
    """Second pass that counts projections in histograms."""

    def __init__(self, state: SliceDistributions) -> None:
        self.state = state

    def update(self, block: np.ndarray) -> None:
        """Count a block of rows."""
        self.state.update(block)

    def finish(self) -> None:
        """All rows have been shown."""

    def values(self) -> SliceValues:
        """Sliced distances from the Gaussian, and by how much they may be larger."""
        return SliceValues(*self.state.result())

    def ordered(self, k: int, ranks: np.ndarray) -> np.ndarray:
        """Values of about these ranks of the normalised rows' projections on slice k."""
        scale = float(self.state.scales[0, k]) or 1.0
        return scale * self.state.shape.ordered(k, ranks)


def is_exact(stored: Sequence[Embeddings], n_slices: int, place: Place) -> bool:
    """Whether the projections of all these files fit into the budget, those of each row twice."""
    size = 8 if _xp.dtype_name(place.dtype(*stored)) == "float64" else 4
    return 2 * n_slices * size * sum(s.shape[0] for s in stored) <= PROJECTION_BYTES


def second_pass(
    stored: Embeddings,
    visit: Sequence[Visit],
    doing: str,
    tick: Tick,
) -> None:
    """Show all rows of a file once more, with their places, to each of `visit`."""
    start = 0
    for block in stored.blocks():
        for one in visit:
            one(slice(start, start + len(block)), block)
        start += len(block)
        tick(doing, start, stored.shape[0])


def second_pass_together(
    stored: Sequence[Embeddings],
    visits: Sequence[Sequence[Visit]],
    together: Callable[[Sequence[np.ndarray]], None],
    doing: str,
    tick: Tick,
) -> None:
    """The same of files of the same items, with the rows of all files to `together`."""
    start = 0
    for blocks in _in_step(stored):
        places = slice(start, start + len(blocks[0]))
        for visit, block in zip(visits, blocks, strict=True):
            for one in visit:
                one(places, block)
        together(blocks)
        start = places.stop
        tick(doing, start, stored[0].shape[0])


# --- pairs of files -------------------------------------------------------------------------------


def two_sample_values(first: Exact | Counted, second: Exact | Counted) -> tuple[np.ndarray, float]:
    """W₂² between the projections of two sets, for each slice (K,).

    And by how much the root of their mean may be off.
    """
    if isinstance(first, Counted) and isinstance(second, Counted):
        a, b = first.state, second.state
        return between_two(a.gaussian, a.affine, b.gaussian, b.affine)
    assert isinstance(first, Exact) and isinstance(second, Exact)
    a, b = first.raw, second.raw
    xp = _xp.namespace(a, b)
    wide = xp.float64 if "float64" in {_xp.dtype_name(x.dtype) for x in (a, b)} else a.dtype
    a, b = _xp.cast(xp, a, wide), _xp.cast(xp, b, wide)
    term = two_sample_term(xp, a.shape[1], b.shape[1], 2, xp.zeros_like(a[:1, :1]))
    (powers,) = tiles.map_rows(xp, lambda x, y: term(False, x, y), a, b, scratch=_SCRATCH)
    return _xp.to_numpy(powers).astype(np.float64), 0.0


def shown_ranks(n: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Ranks from 0, evenly spread over a quantile plot's axis, and the Gaussian's quantiles."""
    from scipy.special import ndtr, ndtri

    end = -float(ndtri(1 / (n + 1)))
    spread = np.linspace(-end, end, count)
    ranks = np.unique(np.clip(np.ceil(ndtr(spread) * (n + 1)) - 1, 0, n - 1).astype(np.int64))
    ranks = np.unique(np.concatenate([[0], ranks, [n - 1]]))
    # Φ⁻¹ is accurate where its argument is small.
    tail = np.minimum(ranks + 1, n - ranks) / (n + 1)
    return ranks, np.where(2 * (ranks + 1) > n + 1, -ndtri(tail), ndtri(tail))
