"""Dendrograms as Newick strings, which phylogenetics programs read and draw."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from visreg_core.metrics.trees._tree import checked_linkage
from visreg_core.typing import Array

# A name that needs no quotes.
_BARE = re.compile(r"[^\s()\[\]{}:;,'\"_]+")
_BLANK = r"(?:\s|\[[^\]]*\])*"  # comments are in brackets
_TOKEN = re.compile(
    rf"{_BLANK}(?:([(),;])|'((?:[^']|'')*)'|:{_BLANK}([^\s(),;:'\[\]_]+)|([^\s(),;:'\[\]]+)){_BLANK}"
)

# Leaves whose paths to the root differ by no more than this share of them are equally deep.
_ROUNDING = 1e-9


def to_newick(z: Array, names: Sequence[str] | None = None) -> str:
    """A dendrogram in Newick format; a branch's length is the difference of heights.

    Parameters
    ----------
    z : array (N − 1, 4)
        Linkage matrix, with finite heights.
    names : sequence of str, optional
        Of the leaves; by default "0", "1", ….

    Returns
    -------
    str
        One line, without a line break. Names are quoted where the format needs it.

    Raises
    ------
    ValueError
        An invalid linkage matrix, infinite heights, or a wrong number of names.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import linkage, to_newick
    >>> z = linkage(np.asarray([[0.0], [9.0], [1.0]]), metric="euclidean")
    >>> to_newick(z, ["ape", "fish", "man"])
    '(fish:8.5,(ape:1.0,man:1.0):7.5);'
    """
    matrix = checked_linkage("z", z)
    n = len(matrix) + 1
    if not math.isfinite(matrix[-1, 2]):
        raise ValueError(f"expected finite heights of z; found {matrix[-1, 2]}")
    labels = [str(i) for i in range(n)] if names is None else [_quoted(name) for name in names]
    if len(labels) != n:
        raise ValueError(f"expected {n} names; found {len(labels)}")
    children = matrix[:, :2].astype(np.intp).tolist()
    height = [0.0] * n + matrix[:, 2].tolist()
    out: list[str] = []
    ahead: list[int | str] = [2 * n - 2]  # clusters still to be written, and the text between them
    while ahead:
        part = ahead.pop()
        if isinstance(part, str):
            out.append(part)
        elif part < n:
            out.append(labels[part])
        else:
            left, right = children[part - n]
            of_left, of_right = (f":{height[part] - height[child]!r}" for child in (left, right))
            out.append("(")
            ahead += [")", of_right, right, ",", of_left, left]
    return "".join(out) + ";"


def from_newick(text: str) -> tuple[np.ndarray, list[str]]:
    """A linkage matrix, and its leaves' names, from a tree in Newick format.

    Parameters
    ----------
    text : str
        One rooted tree, all of whose leaves are equally far from the root, as those of a
        dendrogram. A node of more than two branches becomes several merges at one height; names
        of inner nodes are ignored.

    Returns
    -------
    z : numpy.ndarray (N − 1, 4), float64
    names : list of str
        Of the leaves 0 … N − 1, in the order of the text.

    Raises
    ------
    ValueError
        Text that is not such a tree, branches without a length, or leaves that are not equally
        deep: by more than 10⁻⁹ of their depth.

    Examples
    --------
    >>> from visreg_core.metrics import from_newick
    >>> from_newick("(fish:8.5,(ape:1,man:1):7.5);")
    (array([[1. , 2. , 1. , 2. ],
           [0. , 3. , 8.5, 3. ]]), ['fish', 'ape', 'man'])
    """
    names, nodes = _parsed(text)
    n = len(names)
    if n < 2:
        raise ValueError(f"expected a tree of at least 2 leaves; found {n}")
    # Nodes come after their branches: (kind of child, its index, length) each.
    height: list[float] = []
    for branches in nodes:
        ends = [length + (height[i] if inner else 0.0) for inner, i, length in branches]
        if max(ends) - min(ends) > _ROUNDING * max(ends):
            raise ValueError(
                "expected leaves equally far from the root; found a node at "
                f"{min(ends):g} and at {max(ends):g} above its leaves"
            )
        height.append(max(ends))  # no less than any of the branches' own
    cluster = [0] * len(nodes)
    size = [1] * n
    rows: list[tuple[int, int, float, int]] = []
    for k in sorted(range(len(nodes)), key=lambda k: (height[k], k)):
        members = sorted(cluster[i] if inner else i for inner, i, _ in nodes[k])
        joined = members[0]
        for other in members[1:]:
            size.append(size[joined] + size[other])
            rows.append((min(joined, other), max(joined, other), height[k], size[-1]))
            joined = n + len(rows) - 1
        cluster[k] = joined
    return np.asarray(rows, dtype=np.float64), names


_Branches = list[tuple[bool, int, float]]


def _parsed(text: str) -> tuple[list[str], list[_Branches]]:
    """Names of leaves, and the branches of every inner node: (inner?, index, length)."""
    names: list[str] = []
    nodes: list[_Branches] = []
    open_nodes: list[_Branches] = []
    last: tuple[bool, int] | None = None  # what stands before the present place, if anything
    length: float | None = None
    place, done = 0, False
    text = text.rstrip()
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None or done:
            raise _unexpected(text, place)
        mark, quoted, digits, bare = match.groups()
        if mark == "(" and last is None:
            open_nodes.append([])
        elif mark in (",", ")") and last is not None and open_nodes:
            if length is None or not 0 <= length < math.inf:
                found = "none" if length is None else f"{length:g}"
                raise ValueError(
                    f"expected a length of every branch from 0 on; found {found} before "
                    f"character {match.start(1)}"
                )
            open_nodes[-1].append((*last, length))
            last = length = None
            if mark == ")":
                nodes.append(open_nodes.pop())
                last = True, len(nodes) - 1
        elif mark == ";" and last is not None and not open_nodes:
            done = True
        elif digits is not None and last is not None and length is None:
            try:
                length = float(digits)
            except ValueError:
                raise _unexpected(text, match.start(3)) from None
        elif quoted is not None or bare is not None:
            if last is None:
                names.append(quoted.replace("''", "'") if quoted is not None else bare)
                last = False, len(names) - 1
            elif not last[0] or length is not None:
                raise _unexpected(text, place)
        else:
            raise _unexpected(text, place)
        place = match.end()
    if not done:
        raise ValueError("expected a tree that ends with ';'; found the end of the text")
    return names, nodes


def _unexpected(text: str, place: int) -> ValueError:
    return ValueError(
        f"expected a tree in Newick's format; found {text[place : place + 10].strip()!r} at "
        f"character {place}"
    )


def _quoted(name: str) -> str:
    return name if _BARE.fullmatch(name) else "'" + name.replace("'", "''") + "'"
