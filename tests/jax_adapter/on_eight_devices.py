"""Losses of a batch on eight devices, against the core's on one array (run by test_sharded.py).

Every device has rows of its own, so that a statistic of one device's rows would show.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from scipy.linalg import hadamard

import visreg_core
import visreg_jax
from tests.cases import PRIMARY, named
from visreg_core import value_and_grad, value_and_vjp
from visreg_jax import sharded

COTANGENTS = (0.7, -1.3, 0.4, 2.1)
SORTING = {"shape_loss", "visreg_loss", "gaussian_sliced_wasserstein"}
LOSSES = [c for c in PRIMARY if c.loss.name in sharded.__all__]


@pytest.fixture(autouse=True)
def _wide():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        with jax.numpy_rank_promotion("raise"):
            yield


def mesh(*shape, kind=AxisType.Auto):
    return jax.make_mesh(shape, ("data", "slices")[: len(shape)], axis_types=(kind,) * len(shape))


def options(case):
    """A few knots: compiling each takes long."""
    return {"n_knots": 4} if case.loss.name in ("sigreg_loss", "epps_pulley") else {}


def want(case, arrays, **extra):
    result, vjp = value_and_vjp(case.function)(*arrays.values(), **extra)
    fields = list(result) if isinstance(result, tuple) else [result]
    gradient = vjp(*COTANGENTS[: len(fields)])
    return fields, list(gradient) if isinstance(gradient, tuple) else [gradient]


def found(case, function, arrays):
    """Fields and gradients of a function of whole arrays, for one cotangent a field."""
    rest = {k: jnp.asarray(a) for k, a in arrays.items() if k not in case.differentiated}

    def of_embeddings(*wrt):
        return function(**{**dict(zip(case.differentiated, wrt, strict=True)), **rest})

    def both(*wrt):
        result, vjp = jax.vjp(of_embeddings, *wrt)
        fields = jax.tree.leaves(result)
        weights = [jnp.full_like(f, c) for f, c in zip(fields, COTANGENTS, strict=False)]
        return fields, vjp(jax.tree.unflatten(jax.tree.structure(result), weights))

    return jax.jit(both)(*(jnp.asarray(arrays[k]) for k in case.differentiated))


def assert_close(got, wanted, rtol=1e-10):
    for part, want_part in zip(got, wanted, strict=True):
        for g, w in zip(part, want_part, strict=True):
            assert g.shape == w.shape
            np.testing.assert_allclose(np.asarray(g), w, rtol=rtol, atol=1e-12)


WAYS = [
    pytest.param(case, sorting, id=f"{case}-{sorting}")
    for case in LOSSES
    for sorting in (("gather", "exchange") if case.loss.name in SORTING else ("auto",))
]


def test_there_are_eight_devices_and_every_loss():
    assert jax.device_count() == 8
    assert {c.loss.name for c in LOSSES} == set(sharded.__all__) - {"along_axis", "on_mesh"}


@pytest.mark.parametrize(("case", "sorting"), WAYS)
def test_an_uneven_batch_on_a_mesh(case, sorting, rng):
    """21 rows on 8 devices: rows are filled up and masked; gradients through shard_map."""
    arrays = case.draw(rng, n=21, d=3, k=12)
    function = sharded.on_mesh(
        getattr(visreg_jax, case.loss.name), mesh(8), axis_name="data", sorting=sorting
    )
    got = found(case, lambda **given: function(**given, **options(case)), arrays)
    assert_close(got, want(case, arrays, **options(case)))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("rows", [16, 3])
@pytest.mark.parametrize("case", named("visreg_loss", "sigreg_loss"), ids=str)
def test_data_and_slices_along_two_axes(case, rows, kind, rng):
    """Directions are spread over the second axis; 16 rows divide by the first, 3 do not."""
    arrays = case.draw(rng, n=rows, d=3, k=12)
    function = sharded.on_mesh(
        case.function, mesh(4, 2, kind=kind), axis_name="data", slice_axis="slices"
    )
    got = found(case, lambda **given: function(**given, **options(case)), arrays)
    assert_close(got, want(case, arrays, **options(case)))


@pytest.mark.parametrize("sorting", ["gather", "exchange"])
def test_an_axis_of_one_device(sorting, rng):
    """Nothing is reduced along it, and the result is still the same on all devices."""
    (case,) = named("gaussian_sliced_wasserstein")
    arrays = case.draw(rng, n=6, d=3, k=8)
    function = sharded.on_mesh(
        case.function, mesh(1, 8), axis_name="data", slice_axis="slices", sorting=sorting
    )
    assert_close(found(case, function, arrays), want(case, arrays))


def test_rows_along_two_axes(rng):
    (case,) = named("barlow_twins_loss")
    arrays = case.draw(rng, n=16, d=20)
    function = sharded.on_mesh(case.function, mesh(4, 2), axis_name=("data", "slices"))
    assert_close(found(case, function, arrays), want(case, arrays))


# --- gradients of parameters: the rule of the module's docstring ----------------------------------


def objective(theta, x, slices, *, mean, regularizer):
    """A linear encoder, a regulariser of its outputs, and a term that is a mean over rows."""
    z = jnp.tanh(x @ theta)
    return regularizer(z, slices).total + mean(jnp.mean(z * z))


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("axes", [("data",), ("data", "slices")], ids=len)
def test_averaged_gradients_of_parameters_are_exact(axes, check_vma, rng):
    theta, x = rng.normal(size=(5, 3)), rng.normal(size=(16, 5))
    slices = visreg_core.random_slices(3, 8, dtype=np.float64)
    shape = (8,) if len(axes) == 1 else (4, 2)

    def regularizer(z, slices):
        return sharded.visreg_loss(
            z, slices, axis_name=axes[0], slice_axis=axes[1] if len(axes) > 1 else None
        )

    def step(theta, x, slices):
        mean = (lambda m: lax.pmean(m, axes[0])) if check_vma else (lambda m: m)
        gradient = jax.grad(objective)(theta, x, slices, mean=mean, regularizer=regularizer)
        return lax.pmean(gradient, axes), gradient.reshape(1, *gradient.shape)

    specs = (P(), P("data"), P(None, axes[1] if len(axes) > 1 else None))
    averaged, single = jax.jit(
        jax.shard_map(
            step,
            mesh=mesh(*shape),
            in_specs=specs,
            out_specs=(P(), P() if check_vma else P(axes)),
            check_vma=check_vma,
        )
    )(jnp.asarray(theta), jnp.asarray(x), jnp.asarray(slices))

    z = np.tanh(x @ theta)
    of_z = value_and_grad(visreg_core.visreg_loss)(z, slices)[1] + 2 * z / z.size
    exact = x.T @ (of_z * (1 - z * z))
    np.testing.assert_allclose(averaged, exact, rtol=1e-9, atol=1e-12)
    if check_vma:  # nothing was left to do
        np.testing.assert_allclose(single[0], exact, rtol=1e-9, atol=1e-12)
    else:
        assert np.linalg.norm(single[0] - single[1]) > 0.1 * np.linalg.norm(exact)


@pytest.mark.parametrize("check_vma", [True, False])
def test_gradients_from_outside_are_exact(check_vma, rng):
    (case,) = named("vicreg_loss")
    arrays = case.draw(rng, n=16, d=3)

    def function(a, b):
        return jax.shard_map(
            lambda a, b: sharded.vicreg_loss(a, b, axis_name="data"),
            mesh=mesh(8),
            in_specs=(P("data"), P("data")),
            out_specs=P(),
            check_vma=check_vma,
        )(a, b)

    assert_close(found(case, function, arrays), want(case, arrays))


@pytest.mark.parametrize(
    ("name", "ratio", "check_vma"),
    [
        ("vicreg_loss", 1.0, True),
        ("vicreg_loss", 64.0, True),
        ("vicreg_loss", 64.0, False),
        ("barlow_twins_loss", 64.0, True),
    ],
)
def test_uncorrelated_dimensions_of_a_gram_matrix(name, ratio, check_vma, rng):
    """N < D, with and without columns that hide the others: both ways on all devices."""
    case = next(c for c in PRIMARY if c.loss.name == name)
    arrays = {v: rng.normal(size=(16, 40)) for v in "ab"}
    for z in arrays.values():
        z[:, :12] = ratio * hadamard(16)[:, 1:13] + rng.normal(size=(16, 12)) / ratio
        z[:, 12:] *= ratio == 1 or name == "vicreg_loss"

    def function(a, b):
        return jax.shard_map(
            lambda a, b: getattr(sharded, name)(a, b, axis_name="data"),
            mesh=mesh(8),
            in_specs=(P("data"), P("data")),
            out_specs=P(),
            check_vma=check_vma,
        )(a, b)

    assert_close(found(case, function, arrays), want(case, arrays), rtol=1e-8)


# --- what moves -----------------------------------------------------------------------------------

N, D, K = 512, 32, 24
COLLECTIVE = re.compile(
    r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)


def collectives(function, case):
    """{kind: sizes of its results} in the compiled gradient of a loss whose rows are spread."""
    spread = NamedSharding(mesh(8), P("data"))
    shapes = {"z": (N, D), "x": (N,), "a": (N, D), "b": (N, D), "slices": (D, K)}
    given = [
        jax.ShapeDtypeStruct(
            shapes[k],
            jnp.float32,
            sharding=NamedSharding(mesh(8), P()) if k == "slices" else spread,
        )
        for k in case.loss.arrays
    ]

    def value(*arrays):
        return case.scalar(function(*arrays, **options(case)))

    of_embeddings = tuple(range(len(case.differentiated)))
    compiled = jax.jit(jax.value_and_grad(value, of_embeddings)).lower(*given).compile()
    found = {}
    for shape, kind in COLLECTIVE.findall(compiled.as_text()):
        for sizes in re.findall(r"\[([\d,]*)\]", shape):
            found.setdefault(kind, []).append(np.prod([int(s) for s in sizes.split(",") if s]))
    return found


@pytest.mark.parametrize("way", ["jit", "shard_map"])
@pytest.mark.parametrize(
    "case", named("variance_loss", "covariance_loss", "sigreg_loss", "epps_pulley"), ids=str
)
def test_moments_are_reduced_and_embeddings_not_gathered(case, way):
    """By the compiler, given sharded arrays, and by this package inside of shard_map."""
    function = getattr(visreg_jax, case.loss.name)
    if way == "shard_map":
        function = sharded.on_mesh(function, mesh(8), axis_name="data")
    found = collectives(function, case)
    assert set(found) == {"all-reduce"}
    assert max(found["all-reduce"]) <= max(2 * D, D * D, K * 2 * 3)
    assert sum(found["all-reduce"]) < N * D / 4


def test_a_sorting_loss_moves_what_is_smaller():
    (case,) = named("gaussian_sliced_wasserstein")
    for sorting, gathered in {"exchange": K, "gather": N * D}.items():
        function = sharded.on_mesh(case.function, mesh(8), axis_name="data", sorting=sorting)
        found = collectives(function, case)
        assert ("all-to-all" in found) == (sorting == "exchange")
        assert max(found["all-gather"]) == gathered
        assert ("reduce-scatter" in found) == (sorting == "gather")
    automatic = sharded.on_mesh(case.function, mesh(8), axis_name="data")
    assert "all-to-all" in collectives(automatic, case)  # 24 / 8 slices are fewer than 32 numbers


@pytest.mark.parametrize("case", named("vicreg_loss", "visreg_loss"), ids=str)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_sharded_arrays_without_shard_map(case, kind, rng):
    """The plain functions of arrays that are spread; on explicit axes the gradient is, too."""
    arrays = case.draw(rng, n=16, d=3, k=12)
    on = mesh(8, kind=kind)
    spread = {
        k: jax.device_put(jnp.asarray(a), NamedSharding(on, P() if k == "slices" else P("data")))
        for k, a in arrays.items()
    }
    function = getattr(visreg_jax, case.loss.name)

    @jax.jit
    def both(arrays):
        def value(arrays):
            return case.scalar(function(*(arrays[k] for k in case.loss.arrays)))

        wrt = {k: a for k, a in arrays.items() if k in case.differentiated}
        rest = {k: a for k, a in arrays.items() if k not in wrt}
        return jax.value_and_grad(lambda wrt: value({**wrt, **rest}))(wrt)

    value, gradients = both(spread)
    result, gradient = value_and_grad(case.function)(*arrays.values())
    np.testing.assert_allclose(value, result.total, rtol=1e-11)
    expected = gradient if isinstance(gradient, tuple) else (gradient,)
    for name, e in zip(case.differentiated, expected, strict=True):
        np.testing.assert_allclose(np.asarray(gradients[name]), e, rtol=1e-9, atol=1e-12)
        assert gradients[name].sharding.spec[0] == "data"


# --- errors ---------------------------------------------------------------------------------------


def test_errors_of_a_mesh():
    z, slices = jnp.ones((16, 3)), jnp.ones((3, 5))
    with pytest.raises(ValueError, match=r"expected an axis of the mesh \('data',\); found 'rows'"):
        sharded.on_mesh(visreg_jax.scale_loss, mesh(8), axis_name="rows")
    with pytest.raises(TypeError, match="expected a loss of the rows of a batch; found spectral"):
        sharded.on_mesh(visreg_jax.spectralnet_loss, mesh(8), axis_name="data")
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'slice_axis'"):
        sharded.on_mesh(visreg_jax.scale_loss, mesh(4, 2), axis_name="data", slice_axis="slices")
    loss = sharded.on_mesh(
        visreg_jax.sigreg_loss, mesh(4, 2), axis_name="data", slice_axis="slices"
    )
    with pytest.raises(ValueError, match=r"expected slices whose number divides by 2, .*; found 5"):
        loss(z, slices)
    with pytest.raises(ValueError, match="expected sorting to be one of"):
        sharded.on_mesh(visreg_jax.visreg_loss, mesh(8), axis_name="data", sorting="merge")(
            z, slices
        )


# --- outside of any program, and errors -----------------------------------------------------------


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_arrays_of_another_device_and_no_program(kind, rng):
    (case,) = named("vicreg_loss")
    arrays = case.draw(rng, n=21, d=3)
    there = {k: jax.device_put(jnp.asarray(a), jax.devices()[3]) for k, a in arrays.items()}
    function = sharded.on_mesh(case.function, mesh(8, kind=kind), axis_name="data")
    np.testing.assert_allclose(function(**there), want(case, arrays)[0], rtol=1e-10)


def test_a_shard_map_that_is_not_compiled(rng):
    (case,) = named("gaussian_sliced_wasserstein")
    arrays = case.draw(rng, n=16, d=3, k=8)

    def on_a_device(z, slices):
        return jax.value_and_grad(sharded.gaussian_sliced_wasserstein)(z, slices, axis_name="data")

    value, gradient = jax.shard_map(
        on_a_device, mesh=mesh(8), in_specs=(P("data"), P()), out_specs=(P(), P("data"))
    )(jnp.asarray(arrays["z"]), jnp.asarray(arrays["slices"]))
    exact = value_and_grad(case.function)(**arrays)
    np.testing.assert_allclose(value, exact[0], rtol=1e-10)
    np.testing.assert_allclose(gradient, exact[1], rtol=1e-10, atol=1e-12)


def test_errors_of_whole_arrays():
    """Those of the loss itself, before anything is filled up."""
    z, slices = jnp.ones((9, 3)), jnp.ones((3, 8))
    visreg = sharded.on_mesh(visreg_jax.visreg_loss, mesh(8), axis_name="data")
    vicreg = sharded.on_mesh(visreg_jax.vicreg_loss, mesh(8), axis_name="data")
    for message, call in {
        r"expected z with N >= 2 samples .* found shape \(1, 3\)": lambda: visreg(z[:1], slices),
        r"expected z of shape .* found shape \(9,\)": lambda: visreg(z[:, 0], slices),
        r"expected a and b of one shape; found \(9, 3\) and": lambda: vicreg(z, z[1:]),
        r"expected row_mask .* shape \(8,\)": lambda: visreg(z, slices, row_mask=jnp.ones(8) > 0),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(ValueError, match=r"expected an axis of the mesh .*; found None"):
        sharded.on_mesh(visreg_jax.visreg_loss, mesh(8), axis_name=None)
    with pytest.raises(ValueError, match="along different axes; found axis_name='data' and"):
        sharded.on_mesh(visreg_jax.visreg_loss, mesh(8), axis_name="data", slice_axis="data")
