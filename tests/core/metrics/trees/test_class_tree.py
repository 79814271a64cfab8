"""Labels of all levels from parent links, paths and CSV files."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visreg_core.metrics import cifar100_parents, hierarchical_labels

# Superclass numbers of CIFAR-100's classes, as in its own `coarse_labels`.
COARSE = [
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11,
    6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5,
    5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17,
    10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13,
    16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13,
]  # fmt: skip

PATHS = [("animal", "pet", "dog"), ("animal", "pet", "cat"), ("plant", "oak"), ("animal", "eel")]
PARENTS = {
    "dog": "pet", "cat": "pet", "pet": "animal", "eel": "animal", "oak": "plant",
    "animal": "thing", "plant": "thing", "thing": None,
}  # fmt: skip
ITEMS = ["dog", "oak", "cat", "eel", "dog"]
LABELS = [[0, 1, 2], [1, 2, 3], [0, 1, 1], [0, 0, 0], [0, 1, 2]]


def test_cifar100():
    parents = cifar100_parents()
    assert len(parents) == 100
    assert list(parents) == sorted(parents)
    labels = hierarchical_labels(list(parents), parents)
    np.testing.assert_array_equal(labels[:, 0], COARSE)
    by_superclass = sorted(range(100), key=lambda i: (COARSE[i], i))
    np.testing.assert_array_equal(np.argsort(labels[:, 1]), by_superclass)


def test_forms_of_a_tree_agree(tmp_path):
    file = tmp_path / "tree.csv"
    file.write_text("animal,pet,dog\nanimal, pet ,cat\n\nplant,oak,\nanimal,eel\n", "utf-8")
    rooted = [("thing", *path) for path in PATHS]
    for tree in (PATHS, PARENTS, file, str(file), rooted):
        labels = hierarchical_labels(ITEMS, tree)
        assert labels.dtype == np.int64
        np.testing.assert_array_equal(labels, LABELS)


def test_numbers_as_names_and_equal_names_under_two_parents():
    paths = [(0, 10), (0, 2), (1, 3)]
    np.testing.assert_array_equal(hierarchical_labels([2, 10, 3], paths), [[0, 0], [0, 1], [1, 2]])
    paths = [("a", "other", "x"), ("b", "other", "y")]
    np.testing.assert_array_equal(hierarchical_labels(["x", "y"], paths), [[0] * 3, [1] * 3])


def test_a_single_class_keeps_its_finest_level():
    np.testing.assert_array_equal(hierarchical_labels(["a", "a"], [("root", "a")]), [[0], [0]])


@given(st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=30))
@settings(deadline=None)
def test_levels_are_nested_and_say_who_shares_a_path(paths):
    leaves = [(*p[:2], p) for p in dict.fromkeys(paths)]
    items = [p[2] for p in leaves]
    labels = hierarchical_labels(items, leaves)
    for i, a in enumerate(items):
        for j, b in enumerate(items):
            same = labels[i] == labels[j]
            assert list(same) == sorted(same, reverse=True)
            assert same[-1] == (a == b)
            if labels.shape[1] == 3:
                assert list(same) == [a[:1] == b[:1], a[:2] == b[:2], a == b]


def test_bad_trees(tmp_path):
    with pytest.raises(ValueError, match="cycle above 'a'"):
        hierarchical_labels(["a"], {"a": "b", "b": "c", "c": "b"})
    with pytest.raises(ValueError, match="cycle through 'a'"):
        hierarchical_labels(["a"], {"a": "b", "b": "a"})
    with pytest.raises(ValueError, match="cycle through 'a'"):
        hierarchical_labels(["a"], {"a": "a"})
    # A cycle apart from the tree that the items are in.
    with pytest.raises(ValueError, match="cycle through 'ring'"):
        hierarchical_labels(["dog"], {**PARENTS, "ring": "gnir", "gnir": "ring"})
    with pytest.raises(ValueError, match="leaves; found none"):
        hierarchical_labels(["a"], {})
    with pytest.raises(TypeError, match="parent links, paths or a CSV file; found int"):
        hierarchical_labels(["a"], 3)
    with pytest.raises(ValueError, match="two to 'x'"):
        hierarchical_labels(["x"], [("a", "x"), ("b", "x")])
    with pytest.raises(ValueError, match="2 others: animal, worm"):
        hierarchical_labels(["dog", "worm", "animal"], PARENTS)
    with pytest.raises(ValueError, match="sequences of names; found 'dog'"):
        hierarchical_labels(["dog"], ["dog"])
    with pytest.raises(ValueError, match="at least one item"):
        hierarchical_labels([], PATHS)
    empty = tmp_path / "empty.csv"
    empty.write_text("\n", "utf-8")
    with pytest.raises(ValueError, match="at least one path"):
        hierarchical_labels(["a"], empty)
    empty.write_bytes(b"animal,\xff\xfe")
    with pytest.raises(ValueError, match=r"text in UTF-8 in .*empty\.csv"):
        hierarchical_labels(["a"], empty)


def test_a_spreadsheets_byte_order_mark(tmp_path):
    file = tmp_path / "tree.csv"
    file.write_text("animal,dog\nanimal,eel\nplant,oak\n", "utf-8-sig")
    labels = hierarchical_labels(["dog", "eel", "oak"], file)
    np.testing.assert_array_equal(labels, [[0, 0], [0, 1], [1, 2]])
