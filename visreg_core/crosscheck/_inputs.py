"""Inputs of the checks: arrays made once on the host, rounded to the dtype under test."""

from __future__ import annotations

import itertools

import numpy as np

from visreg_core import _xp
from visreg_core.embeddings import Embeddings
from visreg_core.losses import random_walk_affinity
from visreg_core.slices import random_slices
from visreg_core.typing import Array, Device, Namespace

Arrays = dict[str, Array]

# Rows of a file that are used, evenly spread: some checks make N × N arrays, and they are many.
MAX_ROWS = 256
# Enough for the random walk's ten neighbours.
MIN_ROWS = 16

_ROWS, _DIM, _SLICES = 96, 12, 24


def own_embeddings() -> np.ndarray:
    """Correlated dimensions of uneven scale, off centre: (96, 12), float64.

    The seed is one for which no two projections are so close that float32 could swap them, so that
    gradients of sorting losses meet their tolerance without allowance for swaps (as a test checks).
    """
    rng = np.random.default_rng(2)
    mixing = np.eye(_DIM) + 0.3 * rng.normal(size=(_DIM, _DIM))
    z = rng.normal(size=(_ROWS, _DIM)) @ mixing
    return z * rng.uniform(0.5, 1.5, size=_DIM) + 0.3 * rng.normal(size=_DIM)


def users_embeddings(given: Array | Embeddings) -> np.ndarray:
    """At most `MAX_ROWS` evenly spread, distinct rows of a file or an array, in float64.

    Equal rows are left out because rounding of their projections determines their order in a sort,
    so that no gradient is the right one.
    """
    n = given.shape[0]
    rows = np.unique(np.linspace(0, n - 1, min(n, MAX_ROWS)).astype(np.int64))
    if isinstance(given, Embeddings):
        label, z = given.name, given.select(rows).to_numpy()
    else:
        label, z = "embeddings", _xp.to_numpy(given)
        if z.ndim != 2:
            raise ValueError(f"expected embeddings of shape (N, D); found shape {z.shape}")
        z = z[rows]
    if _xp.dtype_name(z) not in _xp.FLOATING:
        raise ValueError(
            f"{label}: expected dtype {', '.join(_xp.FLOATING)}; found {_xp.dtype_name(z)}"
        )
    z = z.astype(np.float64)
    bad = rows[~np.isfinite(z).all(axis=1)]
    if bad.size:
        some = ", ".join(map(str, bad[:5].tolist())) + (", ..." if bad.size > 5 else "")
        raise ValueError(
            f"{label}: expected finite embeddings; found NaN or infinity in {bad.size} of the "
            f"{rows.size} sampled rows ({some})"
        )
    _, first = np.unique(z, axis=0, return_index=True)
    if first.size < MIN_ROWS:
        raise ValueError(
            f"{label}: expected at least {MIN_ROWS} different rows; found {first.size} "
            f"in the {rows.size} sampled rows"
        )
    return z[np.sort(first)]


def input_sets(z: np.ndarray) -> dict[str, Arrays]:
    """Host arrays by name: of `z` (N, D), of the checks' own embeddings, and three special sets.

    "given" and "own" hold the arguments of every loss and metric, "wide" has fewer rows than
    dimensions (where losses go through Gram matrices), and the projections of "ties" are small
    multiples of 1/2, exact in every dtype, many of them equal. "exact" is for functions that must
    not round at all.
    """
    own = own_embeddings()
    rng = np.random.default_rng(1)
    # No two opposite ones: these could not detect equal keys in reverse order.
    signs = np.array([[0.5, *s] for s in itertools.product((-0.5, 0.5), repeat=3)]).T
    a = rng.normal(size=(10, 32))
    return {
        "given": _arrays(z),
        "own": _arrays(own),
        "wide": {"z": a, "a": a, "b": a + 0.5 * rng.normal(size=a.shape)},
        "ties": {
            "z": rng.integers(-3, 4, size=(_ROWS, 4)).astype(np.float64),
            "y": rng.integers(-2, 5, size=(_ROWS, 4)).astype(np.float64),
            "slices": signs,
        },
        "exact": _exact(),
    }


def _exact() -> Arrays:
    """Arguments of exact functions: keys and counters of words, and a transition matrix."""
    known = [(0, 0, 0, 0), (0xFFFFFFFF,) * 4, (0x13198A2E, 0x03707344, 0x243F6A88, 0x85A308D3)]
    count = np.arange(1 << 12, dtype=np.uint32)
    block = np.broadcast_arrays(0x9E3779B9, 0xDEADBEEF, count * 0x000F1234, count % 61)
    walk = np.zeros((64, 64))
    for i in range(64):
        walk[i, (i + 7 * np.arange(4)) % 64] = np.roll((0.125, 0.25, 0.5, 0.125), i)
    words = {"known": np.transpose(known), "block": block}
    return {
        "walk": walk,
        **{name: np.asarray(w, dtype=np.uint32).view(np.int32) for name, w in words.items()},
    }


def _arrays(z: np.ndarray) -> Arrays:
    rng = np.random.default_rng(3)
    n, d = z.shape
    with np.errstate(over="ignore", invalid="ignore"):
        deviation = z.std(axis=0)
    if not np.all(np.isfinite(deviation)):
        raise ValueError(
            "expected embeddings on which the float64 reference is finite; found values up to "
            f"{np.abs(z).max():.3g}"
        )
    views = z + 0.3 * deviation * np.stack([np.zeros_like(z), *rng.normal(size=(2, n, d))])
    slices = random_slices(d, _SLICES, seed=4)
    # Shifted along the first slice, so that no two slices compete for the largest distance.
    shifted = (views[1] + 2 * deviation * slices[:, 0])[: n - n // 5]
    line, other = (z @ slices[:, :2]).T
    affinity = random_walk_affinity(views[0], views[1], symmetrize=True)
    coarse = (line > np.median(line)).astype(np.int64)
    fine = 2 * coarse + (other > np.median(other))
    return {
        "z": z,
        "views": views,
        "a": views[0],
        "b": views[1],
        "slices": slices,
        "y": shifted,
        "z_weights": rng.uniform(0.1, 1.0, size=n),
        "y_weights": rng.uniform(0.1, 1.0, size=len(shifted)),
        "line": 0.3 + 1.2 * (line - line.mean()) / line.std(),
        "affinity": affinity,
        "pairs": rng.integers(0, n, size=n),
        "pair_weights": rng.uniform(0.1, 1.0, size=n),
        "one": np.asarray([1.7]),
        "other": np.asarray([0.4]),
        "labels": np.stack([coarse, fine], axis=1),
    }


def rounded(sets: dict[str, Arrays], dtype: str) -> dict[str, Arrays]:
    """The same arrays with floating values that `dtype` holds exactly, still in float64."""
    return {
        label: {name: _rounded(label, a, dtype) for name, a in arrays.items()}
        for label, arrays in sets.items()
    }


def _rounded(label: str, a: np.ndarray, dtype: str) -> np.ndarray:
    if a.dtype.kind != "f":
        return a
    if dtype == "bfloat16":
        # The upper half of a float32, to nearest with ties to even: NumPy has no such dtype.
        narrow = np.atleast_1d(a.astype(np.float32)).view(np.uint32)
        narrow = narrow + 0x7FFF + ((narrow >> 16) & 1)
        out = (narrow & 0xFFFF0000).astype(np.uint32).view(np.float32).reshape(a.shape)
    else:
        with np.errstate(over="ignore"):
            out = a.astype(dtype)
    if not np.all(np.isfinite(out)):
        raise ValueError(
            f"expected embeddings within the range of {dtype}; found {np.abs(a).max():.3g} "
            f"({label} inputs): leave {dtype} out"
        )
    return out.astype(np.float64)


def shipped(arrays: Arrays, xp: Namespace, device: Device, dtype: str) -> Arrays:
    """Host arrays as arrays of `xp`, floating ones in `dtype`."""
    return {
        name: _xp.from_numpy(
            xp, a, device=device, dtype=getattr(xp, dtype) if a.dtype.kind == "f" else None
        )
        for name, a in arrays.items()
    }
