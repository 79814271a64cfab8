"""Labels, groups and ids: compared as they are, never rounded, never made strings."""

import numpy as np
import pandas as pd
import pytest

from visreg_core import metrics

BIG = 2**53


def same(a, b):
    """Whether two lists are one partition."""
    return metrics.rand_index(a, b) == 1 and metrics.rand_index(b, a) == 1


TAKEN = {
    "list": list("xxyz"),
    "tuple": tuple("xxyz"),
    "bytes": [b"x", b"x", b"y", b"z"],
    "array of strings": np.array(list("xxyz")),
    "array of bytes": np.array([b"x", b"x", b"y", b"z"]),
    "objects": np.array(list("xxyz"), object),
    "wide strings": np.array(list("xxyz"), np.dtypes.StringDType()),
    "booleans": [True, True, False, 7],
    "fractions": [0.25, 0.25, 0.5, 1.0],
    "range": [0, 0, *range(1, 3)],
    "series": pd.Series(list("xxyz"), index=[3, 1, 2, 0]),
    "series of objects": pd.Series(list("xxyz"), dtype=object),
    "categories": pd.Series(list("xxyz")).astype("category"),
    "nullable integers": pd.Series([1, 1, 2, 3], dtype="Int64"),
    "index": pd.Index([5, 5, 6, 7]),
    "arrow strings": pd.Series(list("xxyz"), dtype="string[pyarrow]"),
    "no masked value": np.ma.masked_array([1, 1, 2, 3]),
    "integers beyond 64 bits": [2**70, 2**70, 2**70 + 1, 0],
    "integers of unlike signs": [2**63, 2**63, 2**63 + 1, -1],
    "integers beside fractions": [BIG, BIG, BIG + 1, 0.5],
    "unsigned beside signed": [np.uint64(2**63 + 2), 2**63 + 2, np.uint64(2**63), np.int8(-1)],
}  # fmt: skip


@pytest.mark.parametrize("kind", TAKEN)
def test_labels_that_are_taken(kind):
    given = TAKEN[kind]
    assert same(given, [0, 0, 1, 2])
    x = np.array([[0.0, 1], [0, 2], [5, 0], [7, 7]])
    expected = metrics.hierarchical_knn_accuracy(x, [0, 0, 1, 2], k=1)
    assert metrics.hierarchical_knn_accuracy(x, given, k=1) == expected
    assert metrics.lidar(x, given) == pytest.approx(metrics.lidar(x, [0, 0, 1, 2]))


REFUSED = {
    "numbers and strings": ([1, 1, "1", 2], "of one sort, .*; found number, string"),
    "missing string": (["x", "x", None, "y"], "of one sort, .*; found NoneType, string"),
    "missing wide string": (
        np.array(["x", "x", None, "y"], np.dtypes.StringDType(na_object=None)),
        "found NoneType, string",
    ),
    "NaN among strings": (["x", "x", np.nan, "y"], "found number, string"),
    "NaN": ([1, 1, np.nan, 2], "without NaN; found it in 1 of them"),
    "NaN of an array": (np.array([1, np.nan, np.nan, 2]), "without NaN; found it in 2 of them"),
    "bytes and strings": (["x", "x", b"x", "y"], "found bytes, string"),
    "missing integer": (pd.Series([1, 1, None, 2], dtype="Int64"), "found NAType, number"),
    "missing of a series": (pd.Series([1, 1, None, 2]), "without NaN"),
    "missing category": (pd.Series(["x", None, "y"] * 2).astype("category")[:4], "of one sort"),
    "masked": (np.ma.masked_array([1, 1, 2, 3], [0, 0, 1, 0]), "without a mask; found 1 of 4"),
    "masked strings": (np.ma.masked_array(list("xxyz"), [0, 0, 1, 1]), "found 2 of 4 values"),
    "dates": (np.array(["NaT", "2020", "2021", "2021"], "M8[D]"), "integers or strings"),
    "complex": (np.array([1, 1, 2j, 3]), "integers or strings; found dtype complex128"),
    "structured": (np.zeros(4, [("a", "i4")]), "integers or strings; found dtype"),
    "ragged": ([[1], [1], [1, 2], [3]], "found list"),
    "sets": ([{1}, {1}, {2}, {3}], "found set"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_labels_that_are_refused(kind):
    given, message = REFUSED[kind]
    x = np.array([[0.0, 1], [0, 2], [5, 0], [7, 7]])
    for function in (
        lambda v: metrics.rand_index(v, [0, 0, 1, 2]),
        lambda v: metrics.adjusted_rand_index([0, 0, 1, 2], v),
        lambda v: metrics.hierarchical_knn_accuracy(x, v, k=1),
        lambda v: metrics.hierarchical_linear_accuracy(x, v),
        lambda v: metrics.hierarchical_rand_index(x, v, n_neighbors=3),
        lambda v: metrics.rand_index_sweep(x, v, [2], n_neighbors=3),
        lambda v: metrics.lidar(x, v),
    ):
        with pytest.raises((TypeError, ValueError), match=message) as caught:
            function(given)
        assert "\n" not in str(caught.value)


def test_levels_of_unlike_sorts():
    x = np.array([[0.0, 1], [0, 2], [5, 0], [7, 7]])
    rows = [["a", 1], ["a", 2], ["b", 3], ["b", 3]]
    frame = pd.DataFrame(rows, columns=["coarse", "fine"])
    exact = [["a", BIG], ["a", BIG + 1], ["b", 3.5], ["b", 3.5]]
    codes = np.array([[0, 0], [0, 1], [1, 2], [1, 2]])
    for labels in (rows, frame, exact, np.array(rows, object)):
        found = metrics.hierarchical_rand_index(x, labels, clustering="dendrogram")
        assert found == metrics.hierarchical_rand_index(x, codes, clustering="dendrogram")
        assert found.n_clusters == (2, 3)
    with pytest.raises(TypeError, match=r"labels of one sort, .*; found number, string"):
        metrics.hierarchical_knn_accuracy(x, [["a", 1], ["a", "1"], ["b", 2], ["b", 2]], k=1)


def test_labels_of_training_and_test_are_compared_exactly():
    x = np.array([[1.0, 0], [0, 1]])
    for train, test, expected in (
        ([BIG, BIG + 1], np.array([BIG, BIG + 1], np.uint64), 1.0),
        (np.array([BIG, BIG + 1]), np.array([BIG + 1, BIG], np.uint64), 0.0),
        (np.array([BIG, BIG + 1]), np.array([BIG, BIG], float), 0.5),
        (["a", "b"], np.array(["a", "bbb"]), 0.5),
        ([2**70, 2**70 + 1], [2**70, 2**70 + 1], 1.0),
    ):
        found = metrics.hierarchical_knn_accuracy(x, train, test=x, test_labels=test, k=1)
        assert found == (expected,)


def test_tensors_of_labels_with_signs_to_turn():
    import torch

    labels = torch.tensor([0, 0, 1, 2])
    assert same(torch._neg_view(labels), labels)
    with pytest.raises(TypeError, match="expected a as a dense array"):
        metrics.rand_index(labels.to_sparse(), labels)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([1, "a"], ["1", "a"]),
        ([1, 2], ["1", "2"]),
        (np.array([1, 2]), np.array(["1", "2"])),
        (np.array([BIG, BIG + 1]), np.array([BIG, BIG], float)),
        ([BIG + 1, 0.5], [BIG, 0.5]),
        ([None, "a"], ["None", "a"]),
        (["a", np.nan], ["a", "nan"]),
        ([b"a", b"b"], ["a", "b"]),
    ],
)
def test_ids_are_compared_as_they_are(first, second):
    x = np.array([[1.0, 0], [0, 1]])
    with pytest.raises(ValueError, match="expected the same item in row i of both sets"):
        metrics.alignment(x, x, ids_x=first, ids_y=second)


def test_ids_of_any_kind():
    from pathlib import Path

    x = np.array([[1.0, 0], [0, 1]])
    for ids in ([Path("a"), Path("b")], pd.Series(["a", "b"], index=[7, 9]), np.array([3, 4])):
        metrics.alignment(x, x, ids_x=ids, ids_y=list(ids))
    with pytest.raises(ValueError, match="the first at 1: 'b' and 'c'"):
        metrics.alignment(
            x, x, ids_x=pd.Series(["a", "b"], index=[7, 9]), ids_y=np.array(["a", "c"])
        )
    with pytest.raises(ValueError, match="expected ids without a mask"):
        metrics.alignment(x, x, ids_x=np.ma.masked_array([1, 2], [0, 1]), ids_y=[1, 2])
