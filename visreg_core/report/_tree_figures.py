"""Figures of dendrograms: one tree with its labels, and two trees face to face.

Large branches are drawn as brackets, what is left below them as triangles as wide as their leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from visreg_core.embeddings._source import one_line
from visreg_core.metrics import Tanglegram
from visreg_core.metrics import tanglegram as untangled
from visreg_core.metrics.trees._tree import restricted
from visreg_core.metrics.trees.tanglegram import drawn_trees
from visreg_core.optional import require
from visreg_core.report._figures import svg_document
from visreg_core.report._model import Hierarchy, TreePair

_COLORS = (
    "#1f5fa8", "#c8553d", "#3f7d4e", "#8457a6", "#b8862b", "#2a9d9a", "#c2578f", "#6b7f2a",
)  # fmt: skip
_WIDTH = 10.5  # inches, that of a page
_INK = "#5d6775"
_PALE = "#b4bac4"

# Brackets are drawn around this share of the leaves or more, and at most so many of them.
_BRACKET_SHARE = 0.01
_BRACKETS = 150
# A branch has a colour of its own from this share of the leaves on.
_COLOR_SHARE = 0.02
# A branch is of its leaves' colour where so many of them share it.
_MAJORITY = 0.9
# Classes with a colour each.
_TOLD_APART = 40
# Lines between two trees, one for each leaf or for evenly spread ones.
_LINES = 250
# Rows of a branch up to which they are named beside it, by so many characters; and the fewest
# that its height is made for.
_NAMED = 40
_NAME = 16
_FEWEST_LINES = 10


class Layout(NamedTuple):
    """Nodes 0 … 2N − 2 of a dendrogram on a line of leaves: the leaves [start, start + size)."""

    children: np.ndarray  # (N − 1, 2), the first one in front
    start: np.ndarray
    size: np.ndarray
    height: np.ndarray

    @property
    def n(self) -> int:
        """Number of leaves."""
        return len(self.children) + 1


def layout(linkage: np.ndarray, order: np.ndarray) -> Layout:
    """Layout with the leaves in this order, which no branch of `linkage` may interleave."""
    n = len(linkage) + 1
    start = np.empty(n, dtype=np.intp)
    start[order] = np.arange(n)
    starts, sizes = start.tolist(), [1] * n
    children = linkage[:, :2].astype(np.intp)
    for k, (a, b) in enumerate(children.tolist()):
        if starts[a] > starts[b]:
            children[k] = b, a
        starts.append(min(starts[a], starts[b]))
        sizes.append(sizes[a] + sizes[b])
    height = np.concatenate([np.zeros(n), linkage[:, 2]])
    return Layout(children, np.asarray(starts), np.asarray(sizes), height)


def leaf_order(linkage: np.ndarray) -> np.ndarray:
    """Leaves from first to last, the first child of every row in front."""
    n = len(linkage) + 1
    order = []
    stack = [2 * n - 2]
    while stack:
        node = stack.pop()
        if node < n:
            order.append(node)
        else:
            stack += linkage[node - n, 1::-1].astype(int).tolist()
    return np.asarray(order)


def branches(tree: Layout, count: int = len(_COLORS)) -> np.ndarray:
    """Up to `count` large branches: their number, 0, 1, … along the leaves, for each place; or −1.

    The largest branch is split until there are that many. Of what comes about on the way, the
    first state with the most large branches is taken, so that stragglers alone split nothing.
    """
    n = tree.n
    least = max(2.0, _COLOR_SHARE * n)
    large = best = [2 * n - 2]
    while len(best) < count and large:
        widest = max(large, key=lambda node: tree.size[node])
        if tree.size[widest] < 2 * least:
            break
        parts = [c for c in tree.children[widest - n].tolist() if tree.size[c] >= least]
        large = [node for node in large if node != widest] + parts
        best = large if len(large) > len(best) else best
    group = np.full(n, -1)
    for number, node in enumerate(sorted(best, key=lambda node: tree.start[node])):
        group[tree.start[node] : tree.start[node] + tree.size[node]] = number
    return group


class Shapes(NamedTuple):
    """Lines and triangles in (place of the leaf, height), each with the colour of its branch."""

    lines: list[np.ndarray]
    line_colors: list[str]
    triangles: list[np.ndarray]
    triangle_colors: list[str]


def shapes(tree: Layout, group: np.ndarray) -> Shapes:
    """What to draw of a tree whose leaves have these groups, by their places."""
    n = tree.n
    merges = np.flatnonzero(tree.size[n:] >= max(2.0, _BRACKET_SHARE * n))[-_BRACKETS:]
    below = np.concatenate(
        [np.zeros((len(_COLORS), 1)), np.cumsum(group == np.arange(len(_COLORS))[:, None], axis=1)],
        axis=1,
    )

    def color(node: int) -> str:
        first, last = tree.start[node], tree.start[node] + tree.size[node]
        held = below[:, last] - below[:, first]
        most = int(held.argmax())
        if held[most] >= _MAJORITY * tree.size[node]:
            return _COLORS[most]
        return _PALE if node < n else _INK

    out = Shapes([], [], [], [])
    center = tree.start + (tree.size - 1) / 2.0
    brackets = {n + int(k) for k in merges}
    for node in sorted(brackets):  # children come before their parents
        parts = tree.children[node - n].tolist()
        top = tree.height[node]
        for part in parts:
            foot = tree.height[part]
            if part >= n and part not in brackets:
                edges = tree.start[part] - 0.5, tree.start[part] + tree.size[part] - 0.5
                corners = [(edges[0], 0.0), (edges[1], 0.0), (center[part], foot)]
                out.triangles.append(np.array(corners))
                out.triangle_colors.append(color(part))
            out.lines.append(np.array([(center[part], foot), (center[part], top)]))
            out.line_colors.append(color(part))
        ends = center[parts]
        out.lines.append(np.array([(ends[0], top), (ends[1], top)]))
        out.line_colors.append(color(node))
        center[node] = ends.mean()
    return out


def _add(
    ax: Any, pieces: Sequence[Any], colors: Sequence[str], *, filled: bool, **style: Any
) -> None:
    """Draw lines or filled triangles, corners (P, 2) each, as one path of each colour."""
    path = _matplotlib("matplotlib.path").Path
    kinds = list(dict.fromkeys(colors))
    paths = [
        path.make_compound_path(
            *(path(np.asarray(p)) for p, c in zip(pieces, colors, strict=True) if c == kind)
        )
        for kind in kinds
    ]
    faces = kinds if filled else "none"
    ax.add_collection(
        _matplotlib("matplotlib.collections").PathCollection(
            paths, facecolors=faces, edgecolors=kinds, **style
        )
    )


def _draw(ax: Any, tree: Layout, group: np.ndarray, *, upright: bool) -> None:
    drawn = shapes(tree, group)
    turn = slice(None) if upright else slice(None, None, -1)
    triangles = [corners[:, turn] for corners in drawn.triangles]
    _add(ax, triangles, drawn.triangle_colors, filled=True, linewidths=0.4, alpha=0.55)
    lines = [line[:, turn] for line in drawn.lines]
    _add(ax, lines, drawn.line_colors, filled=False, linewidths=1.0, capstyle="projecting")
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    finite = tree.height[np.isfinite(tree.height)].max()
    reach = (0, 1.03 * finite if finite > 0 else 1.0)
    if upright:
        ax.set(xlim=(-0.5, tree.n - 0.5), ylim=reach, xticks=[])
        ax.grid(visible=True, axis="y")
    else:
        ax.set(ylim=(tree.n - 0.5, -0.5), xlim=reach, yticks=[])
        ax.grid(visible=True, axis="x")


def dendrogram(found: Hierarchy) -> str:
    """One dendrogram, coloured by its largest branches, above a strip of each level's classes."""

    def draw(figure: Any) -> None:
        order = leaf_order(found.linkage)
        tree = layout(found.linkage, order)
        levels = len(found.n_classes)
        panels = figure.subplots(1 + levels, 1, squeeze=False, height_ratios=[12] + [1] * levels)
        top = panels[0, 0]
        _draw(top, tree, branches(tree), upright=True)
        top.set_ylabel("height")
        if found.labels is None:
            return
        for level, (ax, count) in enumerate(zip(panels[1:, 0], found.n_classes, strict=True)):
            codes = found.labels[order, level]
            ax.imshow(
                class_colors(count)[codes][None],
                aspect="auto",
                interpolation="nearest",
                extent=(-0.5, tree.n - 0.5, 0, 1),
            )
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            label = f"{count} class{'es' if count > 1 else ''}"
            ax.set_ylabel(label, rotation=0, ha="right", va="center")

    return svg_document(draw, (_WIDTH, 3.6 + 0.35 * len(found.n_classes)))


def _matplotlib(module: str) -> Any:
    return require(module, extra="report", purpose="an HTML report")


def legend(found: Hierarchy) -> list[list[tuple[str, str]]]:
    """Colour and name of each class in the strips of `dendrogram`, level by level.

    Levels of more classes than there are distinct colours have none.
    """
    to_hex = _matplotlib("matplotlib.colors").to_hex
    return [
        list(zip(map(to_hex, class_colors(len(names))), names, strict=True))
        for names in found.classes
        if len(names) <= _TOLD_APART
    ]


def class_colors(count: int) -> np.ndarray:
    """Colours (count, 3), different ones, or a round of hues where there are more classes."""
    colormaps = _matplotlib("matplotlib").colormaps
    if count <= 10:
        return colormaps["tab10"](np.arange(count))[:, :3]
    if count <= _TOLD_APART:
        both = [colormaps[name](np.arange(20)) for name in ("tab20", "tab20b")]
        return np.concatenate(both)[:count, :3]
    return colormaps["hsv"](np.arange(count) / count)[:, :3] * 0.85


def tanglegram(first: np.ndarray, second: np.ndarray, pair: TreePair, heads: Sequence[str]) -> str:
    """Two dendrograms of the same items face to face, a line for each item.

    Branches and lines have the colours of the first tree's largest branches; a branch of the
    second tree has one where nine in ten of its leaves do.
    """

    def draw(figure: Any) -> None:
        axes = figure.subplots(1, 3, width_ratios=[4, 3, 4])
        _face_to_face(axes, *drawn_trees(first, second), pair.layout)
        _head(axes, heads)

    return svg_document(draw, (_WIDTH, 5.8))


def differing(first: np.ndarray, second: np.ndarray, pair: TreePair, heads: Sequence[str]) -> str:
    """The branches of the first tree that the second arranges most differently, one below another.

    On the right is what the second tree makes of the branch's rows, without all others.
    """
    sizes = [min(max(b.leaves.size, _FEWEST_LINES), _NAMED) for b in pair.branches]

    def draw(figure: Any) -> None:
        rows = figure.subplots(
            len(sizes), 3, squeeze=False, width_ratios=[4, 3, 4], height_ratios=sizes
        )
        for axes, branch in zip(rows, pair.branches, strict=True):
            one, two = (restricted(z, branch.leaves) for z in (first, second))
            orders = untangled(one, two)
            _face_to_face(axes, *drawn_trees(one, two), orders)
            names = [
                one_line(str(n), _NAME).replace("$", r"\$")
                for n in pair.rows[branch.leaves].tolist()
            ]
            if len(names) <= _NAMED:
                for ax, side, order in (
                    (axes[0], "right", orders.left),
                    (axes[2], "left", orders.right),
                ):
                    ax.yaxis.set_ticks_position(side)
                    ax.set_yticks(range(len(names)), [names[i] for i in order])
                    ax.tick_params(axis="y", labelsize=6)
                    ax.grid(visible=False, axis="y")
            axes[1].set_title(f"correlation {branch.correlation:.2f}", fontsize="medium")
        _head(rows[0], heads)

    return svg_document(draw, (_WIDTH, 1.0 + sum(0.14 * size + 0.7 for size in sizes)))


def _head(axes: Sequence[Any], heads: Sequence[str]) -> None:
    for ax, head, side in zip(axes[::2], heads, ("left", "right"), strict=True):
        ax.set_title(head.replace("$", r"\$"), loc=side)


def _face_to_face(
    axes: Sequence[Any], first: np.ndarray, second: np.ndarray, orders: Tanglegram
) -> None:
    left, middle, right = axes
    a, b = layout(first, orders.left), layout(second, orders.right)
    group = branches(a)
    of_item = np.empty(a.n, dtype=np.intp)
    of_item[orders.left] = group
    _draw(left, a, group, upright=False)
    _draw(right, b, of_item[orders.right], upright=False)
    left.invert_xaxis()
    for ax in (left, right):
        ax.set(xlabel="height")
        ax.locator_params(axis="x", nbins=5)

    places = np.unique(np.linspace(0, a.n - 1, _LINES).round().astype(int))
    other = np.empty(a.n, dtype=np.intp)
    other[orders.right] = np.arange(a.n)
    ends = other[orders.left[places]]
    lines = [[(0, p), (1, q)] for p, q in zip(places, ends, strict=True)]
    colors = [_COLORS[g] if g >= 0 else _PALE for g in group[places]]
    _add(middle, lines, colors, filled=False, linewidths=0.5, alpha=0.6)
    middle.set(xlim=(0, 1), ylim=(a.n - 0.5, -0.5), xticks=[], yticks=[])
    middle.spines[:].set_visible(False)
    some = f"lines of {len(places):,} of {a.n:,} rows" if len(places) < a.n else f"{a.n} rows"
    middle.set_xlabel(some)
