"""Hierarchies of classes: parent links or paths to labels (N, L), one column a level."""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from visreg_core.embeddings._table_index import RowNumbers, leading_index, left_out
from visreg_core.optional import require

# Krizhevsky 2009. CIFAR-100 numbers its superclasses and its classes in alphabetical order.
_CIFAR100 = """
aquatic_mammals: beaver dolphin otter seal whale
fish: aquarium_fish flatfish ray shark trout
flowers: orchid poppy rose sunflower tulip
food_containers: bottle bowl can cup plate
fruit_and_vegetables: apple mushroom orange pear sweet_pepper
household_electrical_devices: clock keyboard lamp telephone television
household_furniture: bed chair couch table wardrobe
insects: bee beetle butterfly caterpillar cockroach
large_carnivores: bear leopard lion tiger wolf
large_man-made_outdoor_things: bridge castle house road skyscraper
large_natural_outdoor_scenes: cloud forest mountain plain sea
large_omnivores_and_herbivores: camel cattle chimpanzee elephant kangaroo
medium_mammals: fox porcupine possum raccoon skunk
non-insect_invertebrates: crab lobster snail spider worm
people: baby boy girl man woman
reptiles: crocodile dinosaur lizard snake turtle
small_mammals: hamster mouse rabbit shrew squirrel
trees: maple_tree oak_tree palm_tree pine_tree willow_tree
vehicles_1: bicycle bus motorcycle pickup_truck train
vehicles_2: lawn_mower rocket streetcar tank tractor
"""

ClassTree = Mapping[Any, Any] | Sequence[Sequence[Any]] | str | Path


def cifar100_parents() -> dict[str, str]:
    """Superclass of each of CIFAR-100's classes, in the order of the class numbers.

    Examples
    --------
    >>> from visreg_core.metrics import cifar100_parents
    >>> parents = cifar100_parents()
    >>> list(parents)[:2], parents["apple"]
    (['apple', 'aquarium_fish'], 'fruit_and_vegetables')
    """
    lines = (line.split(": ") for line in _CIFAR100.strip().splitlines())
    pairs = ((name, superclass) for superclass, names in lines for name in names.split())
    return dict(sorted(pairs))


def wordnet_paths(classes: Sequence[str]) -> list[tuple[str, ...]]:
    """Paths of ImageNet's classes in WordNet, for `hierarchical_labels`.

    Parameters
    ----------
    classes : sequence of str
        WordNet ids, such as "n02084071", the names of ImageNet's directories; repeated ones count
        once.

    Returns
    -------
    list of tuple of str
        For each class names of WordNet's synsets, such as "dog.n.01", from the root down, and last
        the id itself. Of several paths the shortest, then the first by name, so that all are of
        one tree.

    Raises
    ------
    MissingExtraError, LookupError
        NLTK, or its WordNet data, are not installed.
    ValueError
        Ids that are none, or not of WordNet's version 3.0, which ImageNet's are of.

    Notes
    -----
    On the host, from the data that ``python -m nltk.downloader wordnet`` installs.
    """
    wordnet = require("nltk.corpus", extra="wordnet", purpose="wordnet_paths").wordnet
    try:
        version = wordnet.get_version()
    except LookupError:
        raise LookupError(
            "expected NLTK's WordNet data; found none: python -m nltk.downloader wordnet"
        ) from None
    if version != "3.0":
        raise ValueError(f"expected WordNet 3.0, of which ImageNet's ids are; found {version}")
    paths = []
    for name in dict.fromkeys(classes):
        synset = None
        if re.fullmatch(r"n\d{8}", name):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of an unknown id, refused below
                synset = wordnet.synset_from_pos_and_offset("n", int(name[1:]))
        if synset is None:
            raise ValueError(f"expected ids of WordNet's nouns, as 'n02084071'; found {name!r}")
        named = ([node.name() for node in path[:-1]] for path in synset.hypernym_paths())
        paths.append((*min(named, key=lambda path: (len(path), path)), name))
    return paths


def hierarchical_labels(classes: Sequence[Any], tree: ClassTree) -> np.ndarray:
    """Labels of all levels, from the finest class of each item and the tree of classes.

    Parameters
    ----------
    classes : sequence (N,)
        The class of each item, a leaf of the tree.
    tree : mapping, sequence of paths, or file
        Parent links ``{child: parent}`` (a root has no entry, or None); or paths from coarse to
        fine, one for each leaf, whose last element is the leaf; or a CSV file of such paths, one
        a line, without a header (all names are then strings, and so are `classes`). An index that
        pandas has written, with its header, is left out with a warning.

    Returns
    -------
    numpy.ndarray (N, L), int64
        Column 0 the coarsest level, column L − 1 the finest. A level that all leaves share (a
        single root) is left out. A leaf above the deepest level is its own class on the levels
        below. Classes of a level are numbered in the order of their paths; equal names under
        different parents are different classes.

    Raises
    ------
    ValueError
        A cycle, two paths to one leaf, a class that is no leaf of the tree, a file that is not
        UTF-8.

    Examples
    --------
    >>> from visreg_core.metrics import hierarchical_labels
    >>> tree = {"dog": "animal", "cat": "animal", "oak": "plant", "animal": None, "plant": None}
    >>> hierarchical_labels(["oak", "dog", "cat"], tree)
    array([[1, 2],
           [0, 1],
           [0, 0]])
    """
    columns = []
    for level, every in _levels(classes, tree):
        ordered = sorted(every, key=lambda path: tuple(map(_sort_key, path)))
        number = {path: i for i, path in enumerate(ordered)}
        columns.append([number[path] for path in level])
    return np.asarray(columns, dtype=np.int64).T


def named_labels(classes: Sequence[Any], tree: ClassTree) -> np.ndarray:
    """As `hierarchical_labels`, as strings: the path to the class on each level."""

    def name(path: tuple[Any, ...]) -> str:
        while len(path) > 1 and path[-1] == path[-2]:  # continued below a leaf
            path = path[:-1]
        return " / ".join(map(str, path))

    return np.asarray([list(map(name, level)) for level, _ in _levels(classes, tree)]).T


def _levels(
    classes: Sequence[Any], tree: ClassTree
) -> Iterator[tuple[list[tuple[Any, ...]], set[tuple[Any, ...]]]]:
    """For each level, coarsest first: each item's path down to it, and the set of all paths."""
    if isinstance(tree, str | Path):
        rows, notes = read_paths(Path(tree))
        for note in notes:
            warnings.warn(f"{tree}: {note}", stacklevel=4)
        paths = _paths_by_leaf(rows)
    elif isinstance(tree, Mapping):
        paths = _paths_from_parents(tree)
    elif isinstance(tree, Iterable):
        paths = _paths_by_leaf(tree)
    else:
        raise TypeError(
            f"expected a tree as parent links, paths or a CSV file; found {type(tree).__name__}"
        )
    missing = sorted({str(c) for c in classes if c not in paths})
    if missing:
        raise ValueError(
            f"expected classes that are leaves of the tree; found {len(missing)} others: "
            f"{', '.join(missing[:5])}"
        )
    if len(classes) == 0:
        raise ValueError("expected at least one item; found none")
    depth = max(map(len, paths.values()))
    padded = {leaf: path + path[-1:] * (depth - len(path)) for leaf, path in paths.items()}
    for level in range(1, depth + 1):
        every = {path[:level] for path in padded.values()}
        if len(every) > 1 or level == depth:
            yield [padded[c][:level] for c in classes], every


def _paths_from_parents(parents: Mapping[Any, Any]) -> dict[Any, tuple[Any, ...]]:
    inner = {p for p in parents.values() if p is not None}
    paths: dict[Any, tuple[Any, ...]] = {}
    reached = set()
    for leaf in parents:
        if leaf in inner:
            continue
        path = [leaf]
        while (parent := parents.get(path[-1])) is not None:
            path.append(parent)
            if len(path) > len(parents) + 1:
                raise ValueError(f"expected a tree; found a cycle above {leaf!r}")
        paths[leaf] = tuple(reversed(path))
        reached.update(path)
    if not parents:
        raise ValueError("expected a tree with leaves; found none")
    lost = [name for name in parents if name not in reached]
    if lost:  # every class has leaves below it, except those in a cycle
        raise ValueError(f"expected a tree; found a cycle through {lost[0]!r}")
    return paths


def _paths_by_leaf(paths: Iterable[Sequence[Any]]) -> dict[Any, tuple[Any, ...]]:
    by_leaf: dict[Any, tuple[Any, ...]] = {}
    for path in paths:
        if isinstance(path, str) or len(path) == 0:
            raise ValueError(f"expected paths as sequences of names; found {path!r}")
        leaf = path[-1]
        if by_leaf.setdefault(leaf, tuple(path)) != tuple(path):
            raise ValueError(f"expected one path to each leaf; found two to {leaf!r}")
    if not by_leaf:
        raise ValueError("expected at least one path; found none")
    return by_leaf


def read_paths(file: Path) -> tuple[list[list[str]], tuple[str, ...]]:
    """Rows of non-empty cells, and what was left out; short rows may end in empty ones."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as handle:
            rows = [[cell.strip() for cell in row] for row in csv.reader(handle)]
    except UnicodeDecodeError:
        raise ValueError(f"expected text in UTF-8 in {file}; found other bytes") from None
    rows = [row for row in rows if any(row)]
    names = rows.pop(0) if rows and leading_index(rows[0]) else []  # a header only if an index's
    index = leading_index(names) if names else 0
    numbers = RowNumbers()
    for row in rows:
        numbers.see(row[index] if index < len(row) else "")
    index += numbers.found and all(len(row) > index + 1 for row in rows)
    paths = [[cell for cell in row[index:] if cell] for row in rows]
    return [path for path in paths if path], left_out((names + [""] * index)[:index])


def _sort_key(name: Any) -> tuple[int, Any]:
    """Numbers by value, everything else as strings, so that mixed names have an order."""
    return (0, name) if isinstance(name, int | float) else (1, str(name))
