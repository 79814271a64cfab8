"""The smallest products of rows with many columns, by NumPy, in tiles that stay in the cache.

A tile's products are divided into groups. The k-th smallest of the groups' minima so far bounds the
k-th smallest product of all, so that few groups are searched, and fewer with every tile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from visreg_core.metrics.trees._clusters import GROUP

# Elements of a tile.
_TILE = 1 << 20


def nearest_products(
    queries: np.ndarray,
    operand: np.ndarray,
    own: np.ndarray,
    k: int,
    inverse_size: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Columns (B, k) and values of the k smallest of queries @ operandᵀ in each row, ascending.

    Parameters
    ----------
    queries : array (B, D)
    operand : array (M, D)
        M a multiple of `GROUP`.
    own : integer array (B,)
        Columns that count as infinite.
    k : int
        At most M.
    inverse_size : array (M,), optional
        Product (b, m) is divided by the sum of entries own[b] and m.
    """
    b, m = len(queries), len(operand)
    columns = min(max(_TILE // b // GROUP, 1) * GROUP, m)
    buffer = np.empty(b * columns, dtype=queries.dtype)

    def tiles() -> Iterator[np.ndarray]:
        for start in range(0, m, columns):
            stop = min(start + columns, m)
            tile = buffer[: b * (stop - start)].reshape(b, stop - start)
            np.matmul(queries, operand[start:stop].T, out=tile)
            if inverse_size is not None:
                tile /= inverse_size[own, None] + inverse_size[start:stop]
            yield tile

    return smallest_in_tiles(tiles(), m, own, k)


def smallest_in_tiles(
    tiles: Iterable[np.ndarray], m: int, own: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Columns (B, k) and values of the k smallest of each row, ascending, of m columns in tiles.

    A tile (B, multiple of `GROUP`), C-contiguous, is overwritten, and no longer needed when the
    next one is asked for.
    """
    b = own.size
    width = GROUP
    while width > 1 and m < 4 * k * width:
        width //= 2
    found = []
    start = 0
    for tile in tiles:
        stop = start + tile.shape[1]
        if start == 0:
            least = np.full((b, k), np.inf, dtype=tile.dtype)
        mine = np.flatnonzero((own >= start) & (own < stop))
        tile[mine, own[mine] - start] = np.inf
        groups = (stop - start) // width
        grouped = tile.reshape(b, width, groups)
        of_group = np.min(grouped, axis=1)
        least = np.partition(np.concatenate([least, of_group], axis=1), k - 1, axis=1)[:, :k]
        bound = np.max(least, axis=1)
        row, group = np.nonzero(of_group <= bound[:, None])
        values = grouped[row, :, group]
        one, member = np.nonzero(values <= bound[row, None])
        found.append((row[one], start + member * groups + group[one], values[one, member]))
        start = stop
    row, column, value = (np.concatenate(part) for part in zip(*found, strict=True))
    kept = np.flatnonzero(value <= bound[row])
    kept = kept[np.argsort(row[kept].astype(np.uint16), kind="stable")]
    row, column, value = row[kept], column[kept], value[kept]
    count = np.bincount(row, minlength=b)
    place = np.arange(row.size) - (np.cumsum(count) - count)[row]
    shape = b, int(count.max())
    index, values = np.zeros(shape, dtype=np.intp), np.full(shape, np.inf)
    index[row, place], values[row, place] = column, value
    order = np.argsort(values, axis=1)[:, :k]
    return np.take_along_axis(index, order, axis=1), np.take_along_axis(values, order, axis=1)
