"""Random slices: one stream on every backend, addressable, with known answers."""

import math

import array_api_compat.numpy
import array_api_compat.torch
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from tests.conftest import FLOATS
from tests.core import reference
from visreg_core import (
    gaussian_sliced_wasserstein,
    random_slices,
    slices,
    slices_for,
    value_and_grad,
)
from visreg_core._xp import slices_numpy
from visreg_core._xp.threefry import threefry2x32, threefry2x32_in_place

SAMPLERS = ("gaussian", "orthogonal")
word = st.integers(0, 2**32 - 1)


def signed(words):
    """Two's complement int32 of unsigned words."""
    return np.array(words, dtype=np.uint32).view(np.int32)


def drawn(where_or_backend, *args, dtype="float64", **kwargs):
    xp, to_dtype = where_or_backend.xp, where_or_backend.dtype
    return random_slices(*args, xp=xp, dtype=to_dtype(dtype), **kwargs)


# Threefry ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "answer"), reference.KNOWN_ANSWERS)
def test_reference_known_answers(words, answer):
    assert reference.threefry2x32(*words) == answer


@pytest.mark.parametrize("x64", [True, False], ids=["x64", "x32"])
@pytest.mark.parametrize(("words", "answer"), reference.KNOWN_ANSWERS)
def test_known_answers(backend, words, answer, x64):
    with backend.precision("float64" if x64 else "float32"):
        arrays = [backend.asarray(signed([w])) for w in words]
        got = threefry2x32(*arrays)
        for g, a in zip(got, answer, strict=True):
            assert backend.owns(g)
            assert backend.dtype_name(g) == "int32"
            assert np.array_equal(backend.to_numpy(g), signed([a]))


@pytest.mark.parametrize("x64", [True, False], ids=["x64", "x32"])
def test_words_are_bit_identical(backend, rng, x64):
    columns = rng.integers(0, 2**32, size=(4, 300), dtype=np.uint64)
    expected = [reference.threefry2x32(*(int(c) for c in column)) for column in columns.T]
    with backend.precision("float64" if x64 else "float32"):
        got = threefry2x32(*(backend.asarray(signed(c)) for c in columns))
        got = np.stack([backend.to_numpy(g) for g in got])
    assert np.array_equal(got, signed(expected).T)


@given(words=st.tuples(word, word, word, word))
def test_threefry_is_the_reference(words):
    got = threefry2x32(*(signed([w]) for w in words))
    assert tuple(int(g.view(np.uint32)[0]) for g in got) == reference.threefry2x32(*words)


def test_threefry_in_place_is_the_reference(rng):
    counters = rng.integers(0, 2**32, size=(2, 3, 100), dtype=np.uint32)
    for key in ((0, 0), (2**32 - 1, 2**32 - 1), (0x13198A2E, 0x03707344)):
        x0, x1 = counters.copy()
        threefry2x32_in_place(*key, x0, x1)
        expected = [reference.threefry2x32(*key, *map(int, c)) for c in counters.reshape(2, -1).T]
        assert np.array_equal(np.stack([x0, x1]).reshape(2, -1).T, expected)


def test_threefry_broadcasts(backend):
    """Scalars of a key against an array of counters."""
    key = [backend.asarray(signed(w)) for w in (7, 0)]
    counters = [backend.asarray(signed(np.arange(5))), backend.asarray(signed(3))]
    got = threefry2x32(*key, *counters)
    expected = [reference.threefry2x32(7, 0, i, 3) for i in range(5)]
    for g, e in zip(got, np.array(expected, dtype=np.uint32).T, strict=True):
        assert np.array_equal(backend.to_numpy(g), e.view(np.int32))


# Kind and size -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("dim", "n"), [(5, 7), (1, 4), (3, 40)])
@pytest.mark.lean_on_jax(dim=[5], dtype=["float32"])
def test_unit_columns_of_the_asked_kind(where, sampler, dim, n):
    w = drawn(where.backend, dim, n, dtype=where.dtype, sampler=sampler)
    assert where.backend.owns(w)
    assert w.shape == (dim, n)
    assert where.backend.dtype_name(w) == where.dtype
    eps = np.finfo(where.dtype).eps
    assert_allclose(np.linalg.norm(where.to_numpy(w), axis=0), 1, atol=8 * eps)


def test_defaults_to_numpy():
    w = random_slices(3, 4)
    assert isinstance(w, np.ndarray)
    assert w.shape == (3, 4)
    assert w.dtype.kind == "f"


@pytest.mark.parametrize("x", [array_api_compat.numpy, array_api_compat.torch])
def test_wrapped_namespaces_are_namespaces(x):
    w = random_slices(3, 4, xp=x, dtype=x.float32)
    assert w.dtype == x.float32
    assert_allclose(np.asarray(w), random_slices(3, 4, dtype=np.float32), rtol=1e-5, atol=1e-6)


def test_device_is_the_asked_one():
    import array_api_strict as strict

    elsewhere = strict.Device("device1")
    for sampler in SAMPLERS:
        w = random_slices(3, 4, xp=strict, device=elsewhere, sampler=sampler)
        assert w.device == elsewhere


@pytest.mark.dtypes("float16", "bfloat16")
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_half_precision_rounds_last(where, sampler):
    w = where.to_numpy(drawn(where.backend, 64, 20, dtype=where.dtype, sampler=sampler))
    wide = random_slices(64, 20, sampler=sampler, dtype=np.float32)
    unit = {"float16": 2.0**-11, "bfloat16": 2.0**-8}[where.dtype]
    assert np.max(np.abs(w - wide)) <= unit * np.max(np.abs(wide)) + 1e-5


# One stream --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("dim", [3, 32])
@pytest.mark.lean_on_jax(dim=[32], dtype=["float32"])
def test_directions_agree_across_backends_and_dtypes(where, sampler, dim):
    expected = random_slices(dim, 40, seed=5, step=9, sampler=sampler, dtype=np.float64)
    got = where.to_numpy(
        drawn(where.backend, dim, 40, seed=5, step=9, sampler=sampler, dtype=where.dtype)
    )
    units = 16 if sampler == "gaussian" else 2000  # QR: times the block's condition
    assert np.max(np.abs(got - expected)) <= units * np.finfo(where.dtype).eps


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("start", [1, 5, 13])
@pytest.mark.lean_on_jax(start=[13], dtype=["float32"])
def test_start_addresses_slices(where, sampler, start):
    everything = where.to_numpy(drawn(where.backend, 5, 20, seed=3, step=2, sampler=sampler,
                                      dtype=where.dtype))  # fmt: skip
    part = drawn(where.backend, 5, 6, seed=3, step=2, start=start, sampler=sampler,
                 dtype=where.dtype)  # fmt: skip
    eps = np.finfo(where.dtype).eps
    assert_allclose(where.to_numpy(part), everything[:, start : start + 6], rtol=0, atol=4 * eps)


@given(
    cuts=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    dim=st.integers(1, 6),
    seed=st.integers(0, 2**31 - 1),
    step=st.integers(0, 2**31 - 1),
    sampler=st.sampled_from(SAMPLERS),
)
@settings(max_examples=60, deadline=None)
def test_union_over_ranks_is_the_single_set(cuts, dim, seed, step, sampler):
    whole = random_slices(dim, sum(cuts), seed=seed, step=step, sampler=sampler)
    starts = np.cumsum([0, *cuts[:-1]])
    parts = [
        random_slices(dim, n, seed=seed, step=step, start=int(s), sampler=sampler)
        for s, n in zip(starts, cuts, strict=True)
    ]
    assert_allclose(np.concatenate(parts, axis=1), whole, rtol=0, atol=1e-14)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("dim", [3, 64, 75])
@pytest.mark.lean_on_jax(dim=[75], dtype=["float32"])
def test_ranges_are_the_same_bits(where, sampler, dim):
    """However wide they are, and wherever they begin and end."""

    def draw(start, count):
        return where.to_numpy(
            drawn(where.backend, dim, count, seed=1, start=start, sampler=sampler,
                  dtype=where.dtype)
        )  # fmt: skip

    whole = draw(0, 139)
    for start, count in ((0, 1), (5, 1), (3, 2), (17, 40), (33, 31), (64, 64), (74, 3), (138, 1)):
        assert np.array_equal(draw(start, count), whole[:, start : start + count])


def test_every_column_alone_is_that_of_many():
    whole = random_slices(64, 40)
    for k in range(40):
        assert np.array_equal(random_slices(64, 1, start=k), whole[:, k : k + 1])


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [40, 2003])
def test_ranges_of_the_torch_adapter(sampler, dtype, n):
    import torch

    from visreg_torch.functional import random_slices as drawn_by_torch

    options = {"sampler": sampler, "dtype": getattr(torch, dtype)}
    whole = drawn_by_torch(70, n, **options)
    for start, count in ((0, 1), (n - 1, 1), (9, 20)):
        part = drawn_by_torch(70, count, start=start, **options)
        assert torch.equal(part, whole[:, start : start + count])


@pytest.mark.backends("numpy", "torch")
def test_ranges_of_large_draws(where):
    """Which libraries spread over threads."""
    if where.dtype not in ("float32", "float64"):
        pytest.skip("rounded from float32")
    whole = where.to_numpy(drawn(where.backend, 301, 1003, dtype=where.dtype))
    for start, count in ((500, 1), (700, 303)):
        part = where.to_numpy(drawn(where.backend, 301, count, start=start, dtype=where.dtype))
        assert np.array_equal(part, whole[:, start : start + count])


def test_panels_are_the_qr_factorisation():
    """By LAPACK of the whole block, in float64, for a block of several panels, the last ragged."""
    dim = 75
    normals = random_slices(dim, dim, seed=4)  # of unit columns, which R alone sees
    q, r = np.linalg.qr(normals)
    expected = q * np.sign(np.diagonal(r))
    got = random_slices(dim, dim, seed=4, sampler="orthogonal")
    assert_allclose(got, expected, rtol=0, atol=1e-11)
    for dtype in (np.float32, np.float64):
        w = random_slices(400, 400, sampler="orthogonal", dtype=dtype).astype(np.float64)
        assert_allclose(w.T @ w, np.eye(400), atol=20 * np.finfo(dtype).eps)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_seed_and_step_each_give_other_slices(sampler):
    seen = [
        random_slices(6, 8, seed=seed, step=step, sampler=sampler)
        for seed in (0, 1, 2, 2**31 - 1)
        for step in (0, 1, 2, 10_000, 2**31 - 1)
    ]
    columns = np.concatenate(seen, axis=1)
    overlap = np.abs(columns.T @ columns) - np.eye(columns.shape[1])
    assert np.max(overlap) < 1 - 1e-9
    assert np.array_equal(random_slices(6, 8, seed=2, step=1, sampler=sampler), seen[11])


def test_dimension_does_not_shift_the_stream():
    """Element (d, k) depends on (seed, step, k, d) only: another D is another normalisation."""
    small, large = random_slices(3, 10, seed=4), random_slices(8, 10, seed=4)
    head = large[:3] / np.linalg.norm(large[:3], axis=0)
    assert_allclose(head, small, rtol=0, atol=1e-7)


@pytest.mark.parametrize("dim", [1, 7])
@pytest.mark.lean_on_jax(dim=[7])
@pytest.mark.parametrize(
    ("seed", "step", "start"), [(0, 0, 0), (7, 5, 3), (2**32 - 1, 2**31, 2**32 - 4)]
)
def test_the_documented_stream(where, dim, seed, step, start):
    """Element (d, k) depends on (seed, step, k, d) only, through Box-Muller of 23-bit uniforms,
    over the whole documented range."""
    expected = np.array([reference.direction(dim, start + k, seed, step) for k in range(4)]).T
    got = drawn(where.backend, dim, 4, seed=seed, step=step, start=start, dtype=where.dtype)
    units = 16 * np.finfo(where.dtype).eps
    assert_allclose(where.to_numpy(got), expected, rtol=0, atol=units)


@pytest.mark.parametrize("tile", [1, 10, 1000])
@pytest.mark.parametrize("dim", [8, 31])
def test_tiles_of_numpy_s_draw(monkeypatch, tile, dim):
    monkeypatch.setattr(slices_numpy, "_TILE", tile)
    slices._of_successive_steps.cache_clear()
    expected = np.array([reference.direction(dim, 2**32 - 5 + k, 9, 2) for k in range(5)]).T
    got = random_slices(dim, 5, seed=9, step=2, start=2**32 - 5, dtype=np.float64)
    assert_allclose(got, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("dim", [1, 8, 31])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_successive_steps_drawn_at_once_are_those_drawn_alone(monkeypatch, dim, dtype):
    """To the last bit, in any order, and nobody's array is another's."""
    steps, options = [9, 0, 7, 8, 2**32 - 1], {"seed": 5, "start": 40, "dtype": dtype}
    found = [random_slices(dim, 3, step=step, **options) for step in steps]
    for w in found:
        assert not any(np.shares_memory(w, v) for v in found if v is not w)
    again = [random_slices(dim, 3, step=step, **options) for step in steps]
    monkeypatch.setattr(slices, "_FEW", 0)
    for step, w, v in zip(steps, found, again, strict=True):
        alone = random_slices(dim, 3, step=step, **options)
        assert np.array_equal(w, alone)
        assert np.array_equal(v, alone)


@pytest.mark.parametrize(
    "beyond", [{"seed": 2**32}, {"step": 2**32}, {"seed": -1}, {"start": 2**32 - 3}]
)
def test_beyond_the_documented_ranges(beyond):
    with pytest.raises(ValueError, match=r"2\*\*32"):
        random_slices(3, 4, **beyond)


# Distribution ------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_directions_are_uniform_on_the_sphere(sampler):
    """A coordinate t of a uniform direction in D dimensions has t² ~ Beta(1/2, (D-1)/2)."""
    dim = 6
    w = np.concatenate([random_slices(dim, 600, step=s, sampler=sampler) for s in range(5)], axis=1)
    for coordinate in w:
        law = scipy.stats.beta(0.5, (dim - 1) / 2)
        assert scipy.stats.kstest(coordinate**2, law.cdf).pvalue > 1e-3
        assert abs(np.mean(np.sign(coordinate))) < 4 / np.sqrt(w.shape[1])
    assert_allclose(w @ w.T / w.shape[1], np.eye(dim) / dim, atol=0.02)


def test_normals_of_a_long_column_are_normal():
    w = random_slices(200_000, 1, seed=11)[:, 0]
    normals = w * np.sqrt(len(w))
    assert scipy.stats.kstest(normals, "norm").pvalue > 1e-3
    halves = normals.reshape(2, -1), normals.reshape(-1, 2).T
    for pair in halves:  # Box-Muller's two outputs, wherever they are put, are independent
        assert abs(np.corrcoef(*pair)[0, 1]) < 0.015
        assert abs(np.corrcoef(*(pair**2))[0, 1]) < 0.015


def test_slices_are_independent_of_each_other():
    w = random_slices(20_000, 12, seed=3)
    overlap = (w.T @ w)[~np.eye(12, dtype=bool)] * np.sqrt(20_000)
    assert np.max(np.abs(overlap)) < 4.5


# Orthogonal sampler ------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 2, 24])
@pytest.mark.lean_on_jax(dim=[2])
def test_blocks_are_orthonormal(where, dim):
    w = where.to_numpy(
        drawn(where.backend, dim, 3 * dim, seed=8, sampler="orthogonal", dtype=where.dtype)
    )
    for block in np.split(w, 3, axis=1):
        assert_allclose(block.T @ block, np.eye(dim), atol=40 * np.finfo(where.dtype).eps)


def test_blocks_are_haar():
    """Signs fixed so that both determinants occur and no entry has a preferred sign."""
    blocks = np.stack([random_slices(3, 3, step=s, sampler="orthogonal") for s in range(800)])
    assert 0.4 < np.mean(np.linalg.det(blocks) > 0) < 0.6
    assert np.max(np.abs(np.mean(blocks, axis=0))) < 4 * np.sqrt(1 / 3 / 800)
    angle = scipy.stats.kstest(blocks[:, 0, 0], scipy.stats.uniform(-1, 2).cdf)
    assert angle.pvalue > 1e-3  # Archimedes: a coordinate on the 2-sphere is uniform


def test_orthogonal_slices_vary_less():
    """Lower variance at equal K of the loss they estimate, over steps."""
    rng = np.random.default_rng(3)
    z = rng.normal(size=(100, 8)) * np.linspace(0.2, 2.0, 8)
    spread = {
        sampler: np.var(
            [
                float(gaussian_sliced_wasserstein(z, random_slices(8, 8, step=s, sampler=sampler)))
                for s in range(120)
            ]
        )
        for sampler in SAMPLERS
    }
    assert spread["orthogonal"] < 0.5 * spread["gaussian"]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("error", [0.5, 1.0, 2.0])
def test_slices_for_an_error_leave_it(sampler, error):
    """On a cloud that is 1.5 times too large, whose rows are quantiles along each slice."""
    dim = 24
    z = 1.5 * np.random.default_rng(0).standard_normal((4000, dim))
    k = slices_for(dim, error, sampler=sampler)
    draws = [random_slices(dim, k, step=s, sampler=sampler) for s in range(40)]
    found = [value_and_grad(gaussian_sliced_wasserstein)(z, w)[1] for w in draws]
    # Of infinitely many slices the gradient is 2 (z − z/1.5)/(N D), but for what N leaves.
    expected = 2 * (z - z / 1.5) / z.size
    squared = np.mean([np.sum((g - expected) ** 2) for g in found]) / np.sum(expected**2)
    assert math.sqrt(squared) == pytest.approx(error, rel=0.1)
    if k > 1:  # and one slice fewer would leave more
        fewer = (dim - 1) / (k - 1) if sampler == "gaussian" else (dim - k + 1) / (k - 1)
        assert math.sqrt(fewer) > error * (1 - 1e-9)


def test_slices_for_refuses_what_is_no_number():
    for options in ({"dim": 0}, {"error": 0.0}, {"error": math.inf}, {"sampler": "sobol"}):
        with pytest.raises(ValueError, match="expected"):
            slices_for(**{"dim": 8, "error": 0.5, **options})


# Traced steps ------------------------------------------------------------------------------------


@pytest.mark.backends("jax")
@pytest.mark.dtypes(*FLOATS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_traced_step_and_seed_under_jit(where, sampler):
    import jax

    xp, dtype = where.backend.xp, where.backend.dtype(where.dtype)

    @jax.jit
    def draw(seed, step):
        return random_slices(5, 7, seed=seed, step=step, sampler=sampler, xp=xp, dtype=dtype)

    for seed, step in ((0, 0), (3, 1), (2**31 - 1, 2**31 - 1)):
        expected = random_slices(5, 7, seed=seed, step=step, sampler=sampler, xp=xp, dtype=dtype)
        got = draw(xp.asarray(seed, dtype=xp.int32), xp.asarray(step, dtype=xp.int32))
        assert_allclose(got, expected, rtol=0, atol=40 * np.finfo(where.dtype).eps)
    steps = xp.arange(3, dtype=xp.int32)
    many = jax.vmap(lambda s: draw(0, s))(steps)
    for s in range(3):
        assert_allclose(many[s], draw(0, s), rtol=0, atol=40 * np.finfo(where.dtype).eps)


@pytest.mark.backends("torch")
@pytest.mark.dtypes("float32")
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_traced_step_under_compile(where, sampler):
    torch = where.backend.xp

    def draw(step):
        return random_slices(5, 7, seed=2, step=step, sampler=sampler, xp=torch,
                             dtype=torch.float32)  # fmt: skip

    torch._dynamo.reset()
    compiled = torch.compile(draw, fullgraph=True, backend="eager")
    for step in (0, 1, 7, 2**31 - 1):
        expected = draw(step)
        for dtype in (torch.int32, torch.int64):
            got = compiled(torch.tensor(step, dtype=dtype))
            assert_allclose(got, expected, rtol=0, atol=1e-6)


def test_step_may_be_an_array_of_its_namespace(backend):
    step = backend.asarray(np.asarray(12, dtype=np.int32))
    got = drawn(backend, 4, 6, step=step)
    assert_allclose(
        backend.to_numpy(got), backend.to_numpy(drawn(backend, 4, 6, step=12)), rtol=0, atol=1e-15
    )


# Errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        ((0, 4), {}, "dim"),
        ((3, -1), {}, "n_slices"),
        ((3, 4), {"start": -1}, "start"),
        ((3.5, 4), {}, "dim"),
        ((3, 4), {"sampler": "sobol"}, "gaussian.*orthogonal.*sobol"),
        ((3, 4), {"seed": 1.5}, "seed"),
        ((3, 4), {"step": -1}, "step"),
        ((3, 4), {"dtype": np.int32}, "int32"),
    ],
)
def test_bad_arguments(args, kwargs, words):
    with pytest.raises((TypeError, ValueError), match=words):
        random_slices(*args, **kwargs)
