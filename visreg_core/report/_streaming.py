"""Statistics of embeddings that need not fit into memory, by blocks of rows.

One pass over the rows gives the mean and a factor of the covariance, in float64 on the host. Sliced
terms take one more pass for each chunk of slices: only its projections are in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from visreg_core import _xp
from visreg_core._xp import tiles
from visreg_core.embeddings import Embeddings, EmbeddingsError
from visreg_core.gaussian import normal_quantiles
from visreg_core.losses import epps_pulley
from visreg_core.losses.gaussian_sliced_wasserstein import gaussian_term
from visreg_core.losses.quantile_merging import two_sample_term
from visreg_core.losses.visreg import EPS
from visreg_core.typing import Array, Device, DType, Namespace

# tick(what is being done, rows done, rows in all)
Tick = Callable[[str, int, int], None]

# Projections of one chunk of slices: a third of the memory that a report may take.
_PROJECTION_BYTES = 1 << 27
# Squares of larger numbers overflow when they are summed; NaN is not smaller, either.
_LARGEST = 1e150
# Centred rows stay in memory, and singular values are exact, up to this many numbers (64 MiB).
_KEPT_VALUES = 1 << 23
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
        a = a.astype(host, copy=self.xp is not _xp.as_namespace(None))
        return _xp.from_numpy(self.xp, a, device=self.device, dtype=dtype)


# --- moments --------------------------------------------------------------------------------------


class Moments(NamedTuple):
    """Mean (D,) of N rows, and a factor R (any number of rows, D) with RᵀR = Σ (z − μ)(z − μ)ᵀ."""

    n: int
    mean: np.ndarray
    factor: np.ndarray

    @property
    def sigma(self) -> np.ndarray:
        """Standard deviations (D,), biased."""
        return np.linalg.norm(self.factor, axis=0) / np.sqrt(self.n)

    def scatter(self) -> np.ndarray:
        """Sum of centred products, (D, D)."""
        return self.factor.T @ self.factor

    def singular_values(self, *, center: bool) -> np.ndarray:
        """Singular values of the (centred) embeddings, rounding set to 0, descending."""
        mean = np.sqrt(self.n) * self.mean[None, :]
        rows = self.factor if center else np.concatenate([self.factor, mean])
        s = np.linalg.svd(rows, compute_uv=False)[: min(self.n - center, len(self.mean))]
        s = np.where(s > len(self.mean) * 2.0**-52 * s[0], s, 0.0)
        return np.pad(s, (0, min(self.n, len(self.mean)) - len(s)))

    def equivalent(self, *, ddof: int) -> np.ndarray:
        """A small sample with these moments: its loss is the loss of all rows.

        The 2r rows ±cR about the mean have c²·2RᵀR as their sum of centred products; c makes the
        covariance with `ddof` degrees of freedom taken off that of all N rows.
        """
        rows = 2 * len(self.factor)
        scaled = np.sqrt((rows - ddof) / (2 * (self.n - ddof))) * self.factor
        return self.mean + np.concatenate([scaled, -scaled])


def moments(
    stored: Embeddings, tick: Tick, visit: Callable[[np.ndarray], None] | None = None
) -> Moments:
    """Moments of all rows; EmbeddingsError where some are not finite.

    `visit` is called with each block (B, D) in float64, which it must not change.

    Blocks are centred by themselves and merged by Chan's update, which adds the row
    √(n m / (n + m)) (μ_b − μ_a), so that nothing cancels. Where all rows are too many to keep they
    are folded into the scatter matrix, whose square root resolves singular values down to 1e-7 of
    the largest. (A QR factorisation of each block would resolve more, at ten times the time.)
    """
    n, d = 0, stored.shape[1]
    mean = np.zeros(d)
    scatter = None
    kept: list[np.ndarray] = []
    bad: list[np.ndarray] = []
    done = 0
    for block in stored.blocks():
        z, wrong = _checked(block)
        if wrong.any():
            bad.append(done + np.flatnonzero(wrong))
        done += len(z)
        tick("moments", done, stored.shape[0])
        if bad:
            continue
        if visit is not None:
            visit(z)
        # The rounded mean of equal numbers may differ from them; a constant column has σ = 0.
        block_mean = np.clip(z.mean(axis=0), z.min(axis=0), z.max(axis=0))
        z -= block_mean
        step = block_mean - mean
        kept += [z, np.sqrt(n * len(z) / (n + len(z))) * step[None, :]]
        n += len(z)
        mean += step * (len(z) / n)
        if scatter is not None or n * d > max(_KEPT_VALUES, d * d):
            scatter = np.zeros((d, d)) if scatter is None else scatter
            for rows in kept:
                scatter += rows.T @ rows
            kept = []
    if bad:
        raise _bad_rows(stored, np.concatenate(bad))
    if scatter is not None:
        return Moments(n, mean, _square_root(scatter))
    factor = np.concatenate(kept)
    return Moments(n, mean, _triangle(factor) if len(factor) > d else factor)


def _checked(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A block in float64, and which of its rows are not finite, or too large to be squared."""
    # Casting a signalling NaN warns; what it warns of is counted here.
    with np.errstate(invalid="ignore"):
        z = block.astype(np.float64)
        return z, np.asarray(~(np.abs(z) <= _LARGEST).all(axis=1))


def bad_rows(stored: Embeddings, tick: Tick) -> np.ndarray:
    """Places of the rows that `moments` refuses."""
    found, done = [], 0
    for block in stored.blocks():
        found.append(done + np.flatnonzero(_checked(block)[1]))
        done += len(block)
        tick("bad rows", done, stored.shape[0])
    return np.concatenate(found)


def _triangle(rows: np.ndarray) -> np.ndarray:
    """R of a QR factorisation: the same scatter and, to rounding, the same singular values."""
    return np.asarray(np.linalg.qr(rows, mode="r"))


def _square_root(scatter: np.ndarray) -> np.ndarray:
    """R with RᵀR = `scatter`; eigenvalues within rounding of 0 are 0."""
    values, vectors = np.linalg.eigh(scatter)
    values = np.where(values > len(values) * 2.0**-52 * values[-1], values, 0.0)
    return np.sqrt(values)[:, None] * vectors.T


def _bad_rows(stored: Embeddings, rows: np.ndarray) -> EmbeddingsError:
    rows = rows if stored.selection is None else stored.selection[rows]
    shown = ", ".join(map(str, rows[:_SHOWN_BAD_ROWS])) + (
        ", …" if len(rows) > _SHOWN_BAD_ROWS else ""
    )
    found = f"NaN or Inf in {len(rows)} of {stored.shape[0]} rows ({shown})"
    expected = f"finite values (in size at most {_LARGEST:g}); --drop-bad-rows leaves them out"
    return EmbeddingsError(stored.name, found, expected)


def cross_scatter(
    a: Embeddings, b: Embeddings, of_a: Moments, of_b: Moments, tick: Tick
) -> np.ndarray:
    """Sum over rows of centred products of two sets with the same rows, (Da, Db)."""
    total = np.zeros((a.shape[1], b.shape[1]))
    rows = min(a.default_block_rows, b.default_block_rows)
    done = 0
    for x, y in zip(a.blocks(rows), b.blocks(rows), strict=True):
        total += (x - of_a.mean).T @ (y - of_b.mean)
        done += len(x)
        tick("cross-covariance", done, a.shape[0])
    return total


# --- sliced terms ---------------------------------------------------------------------------------


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
    """One value for each slice, (K,) float64."""

    shape: np.ndarray
    gaussian: np.ndarray
    sigreg: np.ndarray


def slice_values(
    stored: Embeddings, of: Moments, slices: np.ndarray, place: Place, tick: Tick
) -> SliceValues:
    """Values whose means over slices are shape_loss, gaussian_sliced_wasserstein, sigreg_loss."""
    xp, dtype = place.xp, place.dtype(stored)
    n, k = stored.shape[0], slices.shape[1]
    quantiles = normal_quantiles(n, xp=xp, dtype=dtype, device=place.device)

    def to_gaussian(p: Array) -> tuple[Array, ...]:
        return gaussian_term(xp, p, quantiles, None, False)

    columns: list[list[np.ndarray]] = [[], [], []]
    for start, stop in _chunks(n, k, dtype):
        tick("slices", n * start, n * k)
        chunk = slices[:, start:stop]
        raw, unit = _project(
            stored,
            place,
            dtype,
            [_plain(chunk, place, dtype), _normalised(chunk, of, place, dtype)],
        )
        (shape,) = tiles.map_rows(xp, to_gaussian, unit, scratch=_SCRATCH)
        (gaussian,) = tiles.map_rows(xp, to_gaussian, raw, scratch=_SCRATCH)
        for column, values in zip(
            columns, (shape / n, gaussian / n, epps_pulley(raw)), strict=True
        ):
            column.append(_xp.to_numpy(values).astype(np.float64))
    tick("slices", n * k, n * k)
    return SliceValues(*(np.concatenate(c) for c in columns))


def ordered_projections(
    stored: Embeddings, of: Moments, slices: np.ndarray, place: Place
) -> np.ndarray:
    """Sorted projections (K, N) of the normalised rows on a few slices."""
    dtype = place.dtype(stored)
    (unit,) = _project(stored, place, dtype, [_normalised(slices, of, place, dtype)])
    return np.sort(_xp.to_numpy(unit), axis=-1)


def two_sample_values(
    a: Embeddings, b: Embeddings, slices: np.ndarray, place: Place, tick: Tick
) -> np.ndarray:
    """W₂² between the projections of two sets, for each slice (K,)."""
    xp, dtype = place.xp, place.dtype(a, b)
    n, m, k = a.shape[0], b.shape[0], slices.shape[1]
    term = two_sample_term(xp, n, m, 2, place.put(np.zeros((1, 1)), dtype))
    values = []
    for start, stop in _chunks(n + m, k, dtype):
        tick("two samples", n * start, n * k)
        onto = [_plain(slices[:, start:stop], place, dtype)]
        (pa,), (pb,) = _project(a, place, dtype, onto), _project(b, place, dtype, onto)
        (powers,) = tiles.map_rows(xp, lambda x, y: term(False, x, y), pa, pb, scratch=_SCRATCH)
        values.append(_xp.to_numpy(powers).astype(np.float64))
    tick("two samples", n * k, n * k)
    return np.concatenate(values)


def _chunks(n: int, k: int, dtype: DType) -> list[tuple[int, int]]:
    """Ranges of slices whose projections of n rows fit into the budget."""
    size = 8 if _xp.dtype_name(dtype) == "float64" else 4
    step = max(1, _PROJECTION_BYTES // (n * size))
    return [(start, min(start + step, k)) for start in range(0, k, step)]


def _project(
    stored: Embeddings, place: Place, dtype: DType, projections: list[Projection]
) -> list[Array]:
    """Each projection (K, N) of all rows."""
    xp = place.xp
    parts: list[list[Array]] = [[] for _ in projections]
    for block in stored.blocks():
        z = place.put(block, dtype)
        for part, projection in zip(parts, projections, strict=True):
            part.append(projection(xp, z))
    joined = []
    while parts:  # the blocks of one are freed before those of the next are joined
        joined.append(xp.concat(parts.pop(0), axis=1))
    return joined
