"""Newick strings against a recursive writer, by way of SciPy's tree, and by hand."""

import numpy as np
import pytest
import scipy.cluster.hierarchy as sch
from scipy.spatial.distance import squareform

from visreg_core.metrics import from_newick, linkage, to_newick


def written(node, above, names):
    length = float(above - node.dist)
    if node.is_leaf():
        return f"{names[node.id]}:{length!r}"
    inside = ",".join(written(child, node.dist, names) for child in (node.left, node.right))
    return f"({inside}):{length!r}"


def test_as_a_recursive_writer(rng):
    z = linkage(rng.standard_normal((40, 3)), metric="euclidean")
    names = [f"n{i}" for i in range(40)]
    root = sch.to_tree(z)
    assert to_newick(z, names) == written(root, root.dist, names).rsplit(":", 1)[0] + ";"


@pytest.mark.parametrize("method", ["average", "single"])
def test_there_and_back(rng, method):
    x = rng.standard_normal((200, 3))
    x[:20] = x[0]
    z = linkage(x, method, "euclidean")
    back, names = from_newick(to_newick(z))
    leaf = np.asarray(names, dtype=int)
    assert sch.is_valid_linkage(back, throw=True)
    assert sch.is_monotonic(back)
    np.testing.assert_allclose(back[:, 2], z[:, 2], rtol=1e-9, atol=1e-12)
    there, here = squareform(sch.cophenet(z)), squareform(sch.cophenet(back))
    np.testing.assert_allclose(here, there[np.ix_(leaf, leaf)], rtol=1e-9, atol=1e-12)


def test_deep_trees_do_not_recurse():
    x = 2.0 ** -np.arange(900.0)[:, None]
    z = linkage(np.concatenate([x, -x]), "single", "euclidean")
    back, _ = from_newick(to_newick(z))
    np.testing.assert_allclose(back[:, 2], z[:, 2], rtol=1e-9, atol=1e-12)


def test_names():
    z = linkage(np.asarray([[0.0], [1.0], [5.0]]), metric="euclidean")
    names = ["it's", "a b", "plain-1"]
    text = to_newick(z, names)
    assert text == "(plain-1:4.5,('it''s':1.0,'a b':1.0):3.5);"
    assert from_newick(text)[1] == ["plain-1", "it's", "a b"]
    for name in ["[x]", "a[b]c'd", "a_b", "", " ", "(;):,", "'"]:
        assert from_newick(to_newick(z, [name, "b", "c"]))[1] == ["c", name, "b"]


def test_what_other_programs_write():
    z, names = from_newick(
        "[a (tree)]\n ( A[x]:[y]2[z], (B:1 ,C:1.0e0)inner:1,\n 'D':2 )root:0 ;['] [;]\n"
    )
    assert names == ["A", "B", "C", "D"]
    assert z.tolist() == [[1, 2, 1, 2], [0, 3, 2, 2], [4, 5, 2, 4]]


def test_sums_of_lengths_that_round_apart():
    """0.1 + 0.2 > 0.3: no node is below one of its branches."""
    z, _ = from_newick("(a:0.3,((b:0.1,c:0.1):0.2,d:0.3):0);")
    assert sch.is_valid_linkage(z, throw=True)
    assert z.tolist() == [[1, 2, 0.1, 2], [3, 4, 0.1 + 0.2, 3], [0, 5, 0.1 + 0.2, 4]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(A:1,B:1)", "ends with ';'"),
        ("(A:1,B:2);", "equally far from the root; found a node at 1 and at 2"),
        ("(A,B);", "length of every branch"),
        ("(A:-1,B:-1);", "from 0 on; found -1"),
        ("(A:1,B:x);", "Newick's format; found 'x"),
        ("(A:1_0,B:10);", "Newick's format; found '_0"),
        ("[a](A:1,B:1)) ;", "found '\\) ;' at character 12"),
        ("(A:1,B:1));", "found '\\)"),
        ("(A:1,B:1); C", "found 'C' at character"),
        ("A;", "at least 2 leaves; found 1"),
        ("(A:1 A:1);", "found"),
        ("(,);", "found"),
        ("", "end of the text"),
    ],
)
def test_errors_of_reading(text, message):
    with pytest.raises(ValueError, match=message):
        from_newick(text)


def test_errors_of_writing():
    z = linkage(np.asarray([[0.0], [1.0], [5.0]]), metric="euclidean")
    with pytest.raises(ValueError, match="3 names; found 2"):
        to_newick(z, ["a", "b"])
    z[-1, 2] = np.inf
    with pytest.raises(ValueError, match="finite heights"):
        to_newick(z)
