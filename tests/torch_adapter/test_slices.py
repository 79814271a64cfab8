"""Random slices of torch: on the CPU NumPy draws them, unless code is traced."""

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode

import visreg_core
from visreg_core import arrays, threads
from visreg_core._xp import slices_numpy
from visreg_core.slices import SAMPLERS, _of_successive_steps
from visreg_torch import random_slices
from visreg_torch.kernels import dispatch

pytestmark = pytest.mark.backends("torch")
LARGEST = 2**32 - 1
FLOATS = {torch.float64: np.float64, torch.float32: np.float32}


def drawn_on_torch(*args, **options):
    return visreg_core.random_slices(*args, xp=torch, **options)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("dim", [1, 6, 301])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_they_are_numpy_s(sampler, dim, dtype):
    options = {"seed": 5, "step": 2**31 + 1, "start": 3, "sampler": sampler}
    w = random_slices(dim, 20, dtype=dtype, **options)
    assert w.dtype == dtype and w.device.type == "cpu" and not w.requires_grad
    by_numpy = torch.from_numpy(visreg_core.random_slices(dim, 20, dtype=FLOATS[dtype], **options))
    if sampler == "gaussian":
        assert torch.equal(w, by_numpy)
    units = 2000 if sampler == "orthogonal" else 8  # QR: times the block's condition
    for other in (by_numpy, drawn_on_torch(dim, 20, dtype=dtype, **options)):
        torch.testing.assert_close(w, other, rtol=0, atol=units * torch.finfo(dtype).eps)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bits_are_rounded_last(sampler, dtype):
    w = random_slices(6, 20, sampler=sampler, dtype=dtype)
    assert torch.equal(w, random_slices(6, 20, sampler=sampler, dtype=torch.float32).to(dtype))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_numpy_draws_their_normals(sampler, monkeypatch):
    def counted(dim, count, **options):
        counts.append(count)
        return normals(dim, count, **options)

    counts, normals = [], slices_numpy.normals
    for module in (slices_numpy, arrays):
        monkeypatch.setattr(module, "normals", counted)
    _of_successive_steps.cache_clear()
    random_slices(6, 20, seed=torch.tensor(3), start=4, sampler=sampler, dtype=torch.bfloat16)
    # By whole groups of 32, of the slices or of each block.
    assert counts == ([32] if sampler == "gaussian" else [32, 32, 32, 32])


def test_what_is_said():
    random_slices(6, 20)
    assert (
        dispatch.explain("slices")
        == "slices: reference implementation (kernels do not run on the CPU)"
    )


@pytest.mark.parametrize("word", [0, 1, 200, 2**31, LARGEST])
def test_words_of_every_kind(word):
    expected = random_slices(4, 9, seed=word, step=word)
    for dtype in (torch.int64, torch.int32, torch.uint32, torch.uint64):
        tensor = torch.tensor(word).to(dtype)  # an int32 has the bits of what is beyond it
        assert torch.equal(random_slices(4, 9, seed=tensor, step=tensor), expected)
    for number in (np.int64(word), np.uint32(word), np.array(word)):
        assert torch.equal(random_slices(4, 9, seed=number, step=number), expected)


def test_counts_of_numpy():
    w = random_slices(np.int64(4), np.int64(9), start=np.int64(2))
    assert torch.equal(w, random_slices(4, 9, start=2))


def test_default_dtype_and_device():
    before = torch.get_default_dtype()
    try:
        for dtype in (torch.float64, torch.bfloat16):
            torch.set_default_dtype(dtype)
            assert random_slices(3, 4).dtype == dtype
    finally:
        torch.set_default_dtype(before)
    with torch.device("meta"):
        assert random_slices(3, 4).device.type == "meta"
        assert random_slices(3, 4, device="cpu").device.type == "cpu"
    assert random_slices(3, 4, device=torch.device("meta")).shape == (3, 4)


def test_inference_mode():
    with torch.inference_mode():
        assert random_slices(3, 4).is_inference()
    assert not random_slices(3, 4).is_inference()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_as_many_threads_as_torch(sampler, monkeypatch):
    def counted(*args, **options):
        seen.append(threads.available_threads())
        return normals(*args, **options)

    seen, before, normals = [], torch.get_num_threads(), slices_numpy.normals
    for module in (slices_numpy, arrays):
        monkeypatch.setattr(module, "normals", counted)
    _of_successive_steps.cache_clear()
    try:
        torch.set_num_threads(1)
        random_slices(3, 3, sampler=sampler)
    finally:
        torch.set_num_threads(before)
    assert seen == [1]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_traced_words_draw_the_same(sampler):
    def draw(step):
        return random_slices(5, 7, seed=2, step=step, sampler=sampler, dtype=torch.float64)

    torch._dynamo.reset()
    compiled = torch.compile(draw, fullgraph=True, backend="aot_eager")
    steps = torch.tensor([0, 7, 2**31 - 1])
    eager = torch.stack([draw(step) for step in steps])
    for found in (torch.stack([compiled(step) for step in steps]), torch.vmap(draw)(steps)):
        torch.testing.assert_close(found, eager, rtol=0, atol=1e-13)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_recorded_draw_follows_its_step():
    def draw(step):
        return random_slices(3, 4, step=step, dtype=torch.float32)

    recorded = torch.jit.trace(draw, (torch.tensor(3),))
    torch.testing.assert_close(recorded(torch.tensor(8)), draw(8), rtol=0, atol=1e-6)


def test_tensors_that_have_no_numbers():
    with FakeTensorMode() as mode:
        w = random_slices(3, 4, step=mode.from_tensor(torch.tensor(3)))
    assert w.shape == (3, 4) and type(w) is not torch.Tensor


@pytest.mark.parametrize(
    ("args", "options"),
    [
        ((0, 4), {}),
        ((3, 4.0), {}),
        ((3, 4), {"start": 2**32 - 3}),
        ((3, 4), {"sampler": "sobol"}),
        ((3, 4), {"seed": -1}),
        ((3, 4), {"step": True}),
        ((3, 4), {"step": 2**32}),
        ((3, 4), {"step": "3"}),
        ((3, 4), {"step": torch.zeros(2, dtype=torch.int64)}),
        ((3, 4), {"seed": torch.tensor(1.0)}),
        ((3, 4), {"dtype": torch.int32}),
        ((3, 4), {"dtype": np.float32}),
        ((3, 4), {"device": "nowhere"}),
    ],
)
def test_errors_are_the_core_s(args, options):
    with pytest.raises((TypeError, ValueError, RuntimeError)) as wanted:
        drawn_on_torch(*args, **options)
    with pytest.raises(wanted.type) as found:
        random_slices(*args, **options)
    assert str(found.value) == str(wanted.value)
