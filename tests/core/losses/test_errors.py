"""Wrong input: one line saying what was found and what was expected."""

import array_api_strict
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import visreg_core
from tests.cases import CASES, PRIMARY, Case, each

BAD = (TypeError, ValueError)


def raises(call, *words):
    """``call`` raises one line that names all of ``words`` (a tuple: any of them)."""
    with pytest.raises(BAD) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        options = word if isinstance(word, tuple) else (word,)
        assert any(o.lower() in message.lower() for o in options), f"{word} not in: {message}"


def primary(name):
    return next(c for c in PRIMARY if c.loss.name == name)


@each(PRIMARY)
@pytest.mark.parametrize("kind", [np.ma.MaskedArray, np.matrix])
@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_classes_that_derive_from_numpy_s(case, kind, rng):
    """A masked array's sums skip what its length counts."""
    for name, x in case.draw(rng).items():
        if x.ndim != 2 and kind is np.matrix:
            continue
        arrays = {**case.draw(rng), name: x.view(kind)}
        for function in (case.function, visreg_core.value_and_grad(case.function)):
            raises(lambda f=function, a=arrays: f(**a), name, "plain array", kind.__name__)


def test_walks_take_plain_arrays(rng):
    a, b = rng.normal(size=(2, 8, 3))
    raises(lambda: visreg_core.random_walk_pairs(a, b.view(np.ma.MaskedArray), 2), "b", "plain")
    w = np.ones((3, 3)).view(np.ma.MaskedArray)
    raises(lambda: visreg_core.transition_matrix(w), "affinity", "plain")
    raises(lambda: visreg_core.orthonormalize(a.view(np.ma.MaskedArray)), "y", "plain")


def test_memory_maps_are_plain(tmp_path, rng):
    z = rng.normal(size=(8, 3))
    np.save(tmp_path / "z.npy", z)
    found = visreg_core.variance_loss(np.load(tmp_path / "z.npy", mmap_mode="r"))
    assert found == visreg_core.variance_loss(z)


@each([c for c in PRIMARY if len(c.array_ndims) > 1])
@pytest.mark.parametrize(
    ("other", "names"),
    [
        (torch.from_numpy, ("numpy", "torch")),
        (jnp.asarray, ("numpy", "jax")),
        (array_api_strict.asarray, ("numpy", "array_api_strict")),
    ],
    ids=["torch", "jax", "strict"],
)
def test_mixed_namespaces_are_named(case, other, names, rng):
    arrays = {n: a.astype(np.float32) if a.dtype.kind == "f" else a.astype(np.int32)
              for n, a in case.draw(rng).items()}  # fmt: skip
    second = list(arrays)[1]
    mixed = {**arrays, second: other(arrays[second])}
    raises(lambda: case.call(mixed), *names)
    raises(lambda: case.value_and_grad(mixed), *names)


@each([c for c in PRIMARY if c.loss.row_mask])
def test_mixed_mask_is_named(case, rng):
    arrays = case.draw(rng)
    raises(lambda: case.call(arrays, row_mask=torch.ones(12, dtype=torch.bool)), "numpy", "torch")


@each([c for c in PRIMARY if len(c.array_ndims) > 1])
def test_mixed_devices_are_named(case, rng):
    elsewhere = array_api_strict.Device("device1")
    arrays = {n: array_api_strict.asarray(a) for n, a in case.draw(rng).items()}
    second = list(arrays)[1]
    arrays[second] = arrays[second].to_device(elsewhere)
    raises(lambda: case.call(arrays), "device1", "cpu")


@each(PRIMARY)
def test_lists_and_numbers_are_no_arrays(case, rng):
    arrays = case.draw(rng)
    first = next(iter(arrays))
    raises(lambda: case.call({**arrays, first: arrays[first].tolist()}), "list", "array")
    raises(lambda: case.call({**arrays, first: 1.0}), "float", "array")


@each(PRIMARY)
@pytest.mark.parametrize("dtype", [np.int64, np.complex128, np.bool_])
def test_integer_complex_and_boolean_embeddings(case, dtype, rng):
    arrays = case.draw(rng)
    first = next(iter(arrays))
    bad = {**arrays, first: arrays[first].astype(dtype)}
    raises(lambda: case.call(bad), np.dtype(dtype).name, "float", first)
    raises(lambda: case.value_and_grad(bad), np.dtype(dtype).name, "float")


@each(PRIMARY)
def test_too_few_axes(case, rng):
    arrays = case.draw(rng)
    for name in case.differentiated:
        index = (0,) * (1 if case.array_ndims[name] > 1 else arrays[name].ndim)
        if case.array_ndims[name] == 2:
            bad = {**arrays, name: arrays[name][index]}
            raises(lambda bad=bad: case.call(bad), name, str(bad[name].shape))


@each([c for c in PRIMARY if c.loss.name not in ("center_loss", "invariance_loss")])
def test_one_row_is_refused(case, rng):
    """N = 1 has no second sample; two-sample distances and Laplacians of one row are 0."""
    if case.loss.name in ("sliced_wasserstein", "max_sliced_wasserstein", "spectralnet_loss"):
        pytest.skip("defined for one row")
    arrays = {n: a if n == "slices" else np.take(a, [0], axis=case.loss.row_axis(n))
              for n, a in case.draw(rng).items()}  # fmt: skip
    if "pairs" in arrays:
        arrays["pairs"] = np.zeros_like(arrays["pairs"])
    if case.loss.name in ("gaussian_sliced_wasserstein", "epps_pulley", "sigreg_loss"):
        # One projected sample still has an order statistic and a characteristic function.
        try:
            value = case.scalar(case.call(arrays))
        except ValueError as error:
            assert "2" in str(error)
        else:
            term = case.expected(arrays)["value"]
            assert float(value) == pytest.approx(term.value, abs=1e-12)
        return
    with pytest.raises(ValueError, match="1"):
        case.call(arrays)
    raises(lambda: case.value_and_grad(arrays), "1", ("2", "two"))


def test_a_single_view_is_refused(rng):
    z = rng.normal(size=(1, 6, 3))
    raises(lambda: visreg_core.invariance_loss(z), "view", ("2", "two"))
    raises(lambda: visreg_core.value_and_grad(visreg_core.invariance_loss)(z), "view")
    raises(lambda: visreg_core.vicreg_loss(z), "view")
    raises(lambda: visreg_core.barlow_twins_loss(z), "view")


def test_n_global_out_of_range(rng):
    z = rng.normal(size=(3, 6, 2))
    for n_global in (0, 4, -1):
        raises(lambda n=n_global: visreg_core.invariance_loss(z, n), "n_global", str(n_global))


@each([c for c in PRIMARY if c.loss.sliced])
def test_slices_of_another_dimension(case, rng):
    arrays = case.draw(rng)
    transposed = {**arrays, "slices": np.ascontiguousarray(arrays["slices"].T)}
    raises(lambda: case.call(transposed), "slices", "(7, 5)", "5")
    raises(lambda: case.call({**arrays, "slices": arrays["slices"][:, :0]}), "slices")
    raises(lambda: case.call({**arrays, "slices": arrays["slices"][:, 0]}), "slices", "(5,)")


@each([c for c in PRIMARY if c.loss.sliced])
def test_leading_axes_of_slices_that_do_not_broadcast(case, rng):
    arrays = case.draw(rng, leading=(2,))
    arrays["slices"] = np.stack([arrays["slices"]] * 3)
    raises(lambda: case.call(arrays), "slices", "(3,)", "(2,)")


@each([c for c in PRIMARY if c.loss.sliced])
def test_slices_that_require_a_gradient(case, rng):
    arrays = {n: torch.from_numpy(a) for n, a in case.draw(rng).items()}
    arrays["slices"].requires_grad_()
    raises(lambda: case.call(arrays), "slices", "grad")
    raises(lambda: case.value_and_grad(arrays), "slices", "grad")


@each([c for c in PRIMARY if c.loss.chunked])
def test_chunk_size_is_a_positive_integer(case, rng):
    arrays = case.draw(rng)
    for bad in (0, -3, 2.5):
        raises(lambda bad=bad: case.call(arrays, chunk_size=bad), "chunk_size", str(bad))


@each([c for c in PRIMARY if len(c.differentiated) == 2 and "slices" not in c.array_ndims])
def test_two_views_of_different_shape(case, rng):
    arrays = case.draw(rng)
    bad = {**arrays, "b": arrays["b"][:-1]}
    raises(lambda: case.call(bad), "(12, 5)", "(11, 5)")


def test_two_samples_of_different_dimension(rng):
    x, y, w = rng.normal(size=(6, 3)), rng.normal(size=(6, 4)), rng.normal(size=(3, 2))
    for loss in (visreg_core.sliced_wasserstein, visreg_core.max_sliced_wasserstein):
        raises(lambda loss=loss: loss(x, y, w), "3", "4")
        raises(lambda loss=loss: loss(x, x, w, 0.5), "p", "0.5", "1")
        raises(lambda loss=loss: loss(x, x, w, 2, np.ones(5)), "x_weights", "(5,)", "6")


UNKNOWN = [
    ("shape_loss", {"reduction": "max"}, ("max", "mean", "sum")),
    ("center_loss", {"reduction": "none"}, ("none", "mean", "sum")),
    ("invariance_loss", {"reduction": "none"}, ("none", "mean", "sum")),
    ("gaussian_sliced_wasserstein", {"reduction": "none"}, ("none", "mean", "sum")),
    ("vicreg_loss", {"convention": "lightly"}, ("lightly", "vicreg", "solo-learn", "paper")),
]


@pytest.mark.parametrize(("name", "options", "words"), UNKNOWN)
def test_unknown_names_list_the_known(name, options, words, rng):
    case = primary(name)
    arrays = case.draw(rng)
    raises(lambda: Case(case.loss, case.reference, options=options).call(arrays), *words)
    raises(lambda: Case(case.loss, case.reference, options=options).value_and_grad(arrays), *words)


OUT_OF_RANGE = [
    ("shape_loss", {"eps": -1e-6}, ("eps",)),
    ("visreg_loss", {"eps": 0}, ("eps to be a finite number > 0; found 0",)),
    ("visreg_loss", {"weights": (1, 1)}, ("weights", "3", "(1, 1)")),
    ("vicreg_loss", {"weights": (1, 1, 1, 1)}, ("weights", "3", "(1, 1, 1, 1)")),
    ("vicreg_loss", {"eps": -1.0}, ("eps",)),
    ("variance_loss", {"eps": -1.0}, ("eps",)),
    ("barlow_twins_loss", {"eps": -1.0}, ("eps",)),
    ("epps_pulley", {"n_knots": 1}, ("n_knots", "1")),
    ("epps_pulley", {"t_max": 0.0}, ("t_max",)),
    ("sigreg_loss", {"n_knots": 1}, ("n_knots", "1")),
    ("sigreg_loss", {"t_max": -3.0}, ("t_max",)),
]


@pytest.mark.parametrize(("name", "options", "words"), OUT_OF_RANGE)
def test_options_out_of_range(name, options, words, rng):
    case = primary(name)
    arrays = case.draw(rng)
    raises(lambda: Case(case.loss, case.reference, options=options).call(arrays), *words)


@pytest.mark.parametrize("name", sorted({c.loss.name for c in CASES}))
def test_unknown_keywords_are_refused(name, rng):
    case = primary(name)
    arrays = case.draw(rng)
    with pytest.raises(TypeError, match="sigma_max"):
        case.call(arrays, sigma_max=1)
    with pytest.raises(TypeError, match="sigma_max"):
        case.value_and_grad(arrays, sigma_max=1)


def test_affinity_of_another_shape(rng):
    y = rng.normal(size=(6, 2))
    raises(lambda: visreg_core.spectralnet_loss(y, np.ones((5, 5))), "(5, 5)", "6")
    raises(lambda: visreg_core.spectralnet_loss(y, np.ones(6)), "(6,)", "6")


@pytest.mark.parametrize("name", ["random_walk_affinity", "random_walk_pairs"])
def test_random_walk_arguments(name, rng):
    a, b = rng.normal(size=(6, 3)), rng.normal(size=(6, 3))
    walk = getattr(visreg_core, name)
    raises(lambda: walk(a, b, 7), "n_neighbors", "7", "6")
    raises(lambda: walk(a, b, 0), "n_neighbors", "0")
    raises(lambda: walk(a, b, 3, 101), "percentile", "101")
    raises(lambda: walk(a, b, 3, scale="row"), "row", "local", "global")
    raises(lambda: walk(a, b[:5], 3), "(6, 3)", "(5, 3)")


def test_walk_arguments(rng):
    raises(lambda: visreg_core.transition_matrix(np.ones((3, 4))), "(3, 4)", "(N, N)")
    p, a = np.full((3, 3), 1 / 3), rng.normal(size=(6, 3))
    raises(lambda: visreg_core.sample_random_walk(p, n_steps=-1), "n_steps", "-1")
    raises(lambda: visreg_core.random_walk_pairs(a, a, 3, n_steps=0), "n_steps", "0")


def test_pairs_must_be_integers(rng):
    case = primary("sag_vicreg_loss")
    arrays = case.draw(rng)
    raises(lambda: case.call({**arrays, "pairs": arrays["pairs"] + 0.0}), "pairs", "float64")
    raises(lambda: case.call({**arrays, "pairs": arrays["pairs"][:-1]}), "pairs", "(11,)", "12")
    bad = {**arrays, "pair_weights": arrays["pair_weights"][:-1]}
    raises(lambda: case.call(bad), "pair_weights", "(11,)", "12")
