"""Every metric of embeddings refuses rows with NaN or infinity, in one line that counts them."""

import inspect

import numpy as np
import pandas
import pytest
from scipy import sparse

from visreg_core import metrics, random_slices

LABELS = np.arange(15) % 3
SLICES = random_slices(4, 6)

OF_ONE = {
    "alpha_req": metrics.alpha_req,
    "condition_number": metrics.condition_number,
    "cophenetic_correlation": metrics.cophenetic_correlation,
    "effective_rank": metrics.effective_rank,
    "gaussianity": lambda x: metrics.gaussianity(x, SLICES),
    "hierarchical_knn_accuracy": lambda x: metrics.hierarchical_knn_accuracy(x, LABELS, k=3),
    "hierarchical_linear_accuracy": lambda x: metrics.hierarchical_linear_accuracy(x, LABELS),
    "hierarchical_rand_index": lambda x: metrics.hierarchical_rand_index(x, LABELS),
    "henze_zirkler": metrics.henze_zirkler,
    "lidar": lambda x: metrics.lidar(x, LABELS),
    "linkage": metrics.linkage,
    "participation_ratio": metrics.participation_ratio,
    "rand_index_sweep": lambda x: metrics.rand_index_sweep(x, LABELS, [3]),
    "rankme": metrics.rankme,
    "singular_values": metrics.singular_values,
    "sliced_normality_test": lambda x: metrics.sliced_normality_test(x, SLICES, n_simulations=9),
    "sparsity": metrics.sparsity,
    "stable_rank": metrics.stable_rank,
    "uniformity": metrics.uniformity,
    "worst_direction": lambda x: metrics.worst_direction(x, SLICES),
}
OF_TWO = {
    "alignment": metrics.alignment,
    "cophenetic_similarity": metrics.cophenetic_similarity,
    "lca_similarity": metrics.lca_similarity,
    "linear_cka": metrics.linear_cka,
    "mutual_knn": lambda x, y: metrics.mutual_knn(x, y, 3),
    "two_sample_test": lambda x, y: metrics.two_sample_test(x, y, n_permutations=9),
}


def test_no_metric_is_missing():
    takes_x = {
        name
        for name in metrics.__all__
        if inspect.isfunction(function := getattr(metrics, name))
        and "x" in list(inspect.signature(function).parameters)[:1]
    }
    assert takes_x == {*OF_ONE, *OF_TWO}


@pytest.mark.parametrize("name", OF_ONE)
def test_rows_that_are_not_finite(rng, name):
    x = rng.standard_normal((15, 4))
    OF_ONE[name](x)
    x[3, 1], x[7] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"^expected finite x; .* infinity in 2 rows \(3, 7\)$"):
        OF_ONE[name](x)


@pytest.mark.parametrize("name", OF_TWO)
def test_rows_of_two_sets_that_are_not_finite(rng, name):
    x = rng.standard_normal((15, 4))
    bad = x.copy()
    bad[5] = -np.inf
    with pytest.raises(ValueError, match=r"^expected finite x; .* infinity in 1 row \(5\)$"):
        OF_TWO[name](bad, x)
    with pytest.raises(ValueError, match=r"^expected finite y; .* infinity in 1 row \(5\)$"):
        OF_TWO[name](x, bad)
    with pytest.raises(ValueError, match=r"^expected finite x; "):
        metrics.compare_lca_similarity((bad, x), (x, x))


def test_rows_to_classify_that_are_not_finite(rng):
    x = rng.standard_normal((15, 4))
    bad = x.copy()
    bad[0] = np.nan
    for function in (metrics.hierarchical_knn_accuracy, metrics.hierarchical_linear_accuracy):
        with pytest.raises(ValueError, match=r"^expected finite test; "):
            function(x, LABELS, test=bad, test_labels=LABELS)


def test_on_every_backend(where, rng):
    x = rng.standard_normal((8, 3))
    x[1:] = np.nan
    with pytest.raises(ValueError, match=r"7 rows \(1, 2, 3, 4, 5, \.\.\.\)"):
        metrics.linkage(where.asarray(x))


# --- arrays that are not what they seem -----------------------------------------------------------

X = np.random.default_rng(0).standard_normal((15, 4))
ALL = {**OF_ONE, **{name: lambda x, f=f: f(x, x) for name, f in OF_TWO.items()}}
METRICS = sorted(ALL)


class Subclass(np.ndarray):
    """Whose products and sums are not those of arrays."""

    def __mul__(self, other):
        raise AssertionError("not the array's")

    __matmul__ = __sub__ = sum = __mul__


class Quantity(np.ndarray):
    unit = "m"


class OnlyDLPack:
    def __dlpack__(self, **settings):
        return X.__dlpack__(**settings)

    def __dlpack_device__(self):
        return X.__dlpack_device__()


def memory_map(folder):
    np.save(folder / "x.npy", X)
    return np.load(folder / "x.npy", mmap_mode="r")


TAKEN = {
    "np.matrix": lambda folder: np.matrix(X),
    "subclass": lambda folder: X.view(Subclass),
    "mask without masked values": lambda folder: np.ma.masked_array(X, np.zeros(X.shape, bool)),
    "memory map": memory_map,
    "read-only": lambda folder: np.broadcast_to(X, X.shape),
    "swapped bytes": lambda folder: X.astype(">f8"),
}


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("kind", TAKEN)
@pytest.mark.parametrize("name", METRICS)
def test_arrays_in_disguise_are_the_arrays(tmp_path, name, kind):
    given = TAKEN[kind](tmp_path)
    assert repr(ALL[name](given)) == repr(ALL[name](X))


def masked():
    x = np.ma.masked_array(X)
    x[3] = np.ma.masked
    return x


REFUSED = {
    "masked": (masked, ValueError, "expected x without a mask; found 4 of 60 values masked"),
    "units": (lambda: X.view(Quantity), TypeError, "expected x of plain numbers; found Quantity"),
    "structured": (lambda: np.zeros(15, [("a", "f4")]), TypeError, "expected x of dtype float16"),
    "objects": (lambda: X.astype(object), TypeError, "expected x of dtype .*; found object"),
    "strings": (lambda: X.astype(str), TypeError, "expected x of dtype .*; found <U32"),
    "dates": (lambda: X.astype("M8[s]"), TypeError, "expected x of dtype .*; found datetime64"),
    "complex": (lambda: X.astype(complex), TypeError, "expected x of dtype .*; found complex128"),
    "integers": (lambda: (10 * X).astype(int), TypeError, "expected x of dtype .*; found int64"),
    "0-d": (lambda: np.array(3.0), ValueError, r"expected x of shape \(N, D\); found shape \(\)"),
    "scalar": (lambda: np.float64(3), ValueError, r"expected x of shape \(N, D\); found shape"),
    "number": (lambda: 3.0, TypeError, "expected an array of numpy, .*; found builtins.float"),
    "list": (X.tolist, TypeError, "expected an array of numpy, .*; found builtins.list"),
    "pandas": (lambda: pandas.DataFrame(X), TypeError, "expected an array .*; found pandas"),
    "sparse": (lambda: sparse.csr_array(X), TypeError, "expected an array .*; found scipy.sparse"),
    "sparse matrix": (lambda: sparse.coo_matrix(X), TypeError, "expected an array .*; found scipy"),
    "DLPack alone": (OnlyDLPack, TypeError, "expected an array of .*; found .*OnlyDLPack"),
    "None": (lambda: None, TypeError, "expected an array; found None"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("name", METRICS)
def test_what_is_no_dense_array_is_refused_in_one_line(name, kind):
    make, error, message = REFUSED[kind]
    with pytest.raises(error, match=f"^{message}") as caught:
        ALL[name](make())
    assert "\n" not in str(caught.value)


# Slices are NumPy's here.
NO_SLICES = sorted(set(METRICS) - {"gaussianity", "sliced_normality_test", "worst_direction"})


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("name", NO_SLICES)
def test_tensors_in_disguise(name):
    import torch

    x = torch.tensor(X)
    expected = ALL[name](x)
    assert repr(ALL[name](torch._neg_view(-x))) == repr(expected)
    assert repr(ALL[name](torch.complex(x, -x).conj().imag)) == repr(expected)
    assert repr(ALL[name](torch.nn.Parameter(x))) == repr(expected)
    for bad, found in (
        (x.to_sparse(), "a dense array; found layout torch.sparse_coo"),
        (x.to_sparse_csr(), "a dense array; found layout torch.sparse_csr"),
        (torch.nested.nested_tensor([x[0], x[1, :2]]), "a dense array; found layout nested"),
        (x.to("meta"), "values; found an array of the meta device"),
    ):
        with pytest.raises(TypeError, match=f"^expected x (as|with) {found}$"):
            ALL[name](bad)


def test_slices_in_disguise():
    for function in (metrics.gaussianity, metrics.worst_direction):
        hidden = np.ma.masked_array(SLICES, SLICES > 0)
        with pytest.raises(ValueError, match="expected slices without a mask"):
            function(X, hidden)
        with pytest.warns(PendingDeprecationWarning):
            given = np.matrix(SLICES)
        assert repr(function(X, given)) == repr(function(X, SLICES))


def test_defaults_fit_few_slices():
    for k in (1, 2, 3, 4):
        found = metrics.gaussianity(X, random_slices(4, k))
        assert found.epps_pulley.worst.shape == (min(3, k),)
    with pytest.raises(ValueError, match="expected n_worst <= K = 2 slices; found 3"):
        metrics.gaussianity(X, random_slices(4, 2), n_worst=3)


# --- numbers that are no embeddings ---------------------------------------------------------------

S, Z, GRAM = np.arange(1, 30.0), metrics.linkage(X), X.T @ X
OF_NUMBERS = {
    **{
        f"{name}_from_singular_values": (getattr(metrics, f"{name}_from_singular_values"), S)
        for name in ("alpha_req", "condition_number", "effective_rank", "participation_ratio",
                     "rankme", "stable_rank")
    },
    "power_law_fit": (metrics.power_law_fit, S),
    "singular_values_from_gram": (lambda g: metrics.singular_values_from_gram(g, 15), GRAM),
    "linear_cka_from_covariances": (lambda c: metrics.linear_cka_from_covariances(c, c, c), GRAM),
    "cophenetic_distances": (metrics.cophenetic_distances, Z),
    "cut_tree": (lambda z: metrics.cut_tree(z, n_clusters=3), Z),
    "to_networkx": (lambda z: sorted(metrics.to_networkx(z).nodes(data="height")), Z),
    "dendrogram_correlations": (lambda z: metrics.dendrogram_correlations(z, z), Z),
    "bakers_gamma": (lambda z: metrics.bakers_gamma(z, z), Z),
    "fowlkes_mallows": (lambda z: metrics.fowlkes_mallows(z, z), Z),
    "tanglegram": (lambda z: metrics.tanglegram(z, z), Z),
}  # fmt: skip


@pytest.mark.parametrize("name", OF_NUMBERS)
def test_numbers_in_disguise(name):
    function, values = OF_NUMBERS[name]
    expected = repr(function(values))
    for given in (values.view(Subclass), np.ma.masked_array(values), values.astype(">f8"),
                  values.tolist(), torch_of(values)):  # fmt: skip
        assert repr(function(given)) == expected
    hidden = np.ma.masked_array(values, np.zeros(values.shape, bool))
    hidden[-1] = np.ma.masked
    with pytest.raises(ValueError, match=r"^expected .* without a mask; found \d of \d+ values"):
        function(hidden)
    for bad in (values.astype(complex), values.astype(object), values.astype(str),
                sparse.csr_array(np.atleast_2d(values)), values.astype("M8[s]")):  # fmt: skip
        with pytest.raises(TypeError, match=r"^expected .* of real numbers; found dtype"):
            function(bad)
    endless = values.copy()
    endless.flat[0] = np.inf
    with pytest.raises(ValueError, match=r"^expected (finite|.* to join clusters)"):
        function(endless)


def torch_of(values):
    import torch

    return torch._neg_view(torch.tensor(-values))
