"""The kernel of random slices against the documented stream, one Python number at a time."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

import visreg_core as vc
import visreg_torch as vt
from tests.core import reference
from tests.torch_adapter.kernels.tensors import DTYPES
from visreg_torch.kernels import dispatch
from visreg_torch.kernels.slices import gaussian_slices, threefry2x32

pytestmark = pytest.mark.backends("torch", "torch-cuda")
LARGEST = 2**32 - 1
EPS = torch.finfo(torch.float32).eps


@triton.jit
def words(ptr, n, BLOCK: tl.constexpr):
    """Overwrite rows of keys and counters (4, n) by the words in the first two."""
    at = ptr + tl.arange(0, BLOCK)
    inside = tl.arange(0, BLOCK) < n
    key0 = tl.load(at, mask=inside).to(tl.uint32)
    key1 = tl.load(at + n, mask=inside).to(tl.uint32)
    counter0 = tl.load(at + 2 * n, mask=inside).to(tl.uint32)
    counter1 = tl.load(at + 3 * n, mask=inside).to(tl.uint32)
    word0, word1 = threefry2x32(key0, key1, counter0, counter1)
    tl.store(at, word0.to(tl.int64), mask=inside)
    tl.store(at + n, word1.to(tl.int64), mask=inside)


def expected(dim, n_slices, seed=0, step=0, start=0):
    columns = [reference.direction(dim, start + k, seed, step) for k in range(n_slices)]
    return torch.tensor(columns, dtype=torch.float64).T


def test_words_are_bit_identical(device):
    rng = np.random.default_rng(20261124)
    given = [w for w, _ in reference.KNOWN_ANSWERS] + rng.integers(0, 2**32, size=(60, 4)).tolist()
    table = torch.tensor(given, dtype=torch.int64, device=device).T.contiguous()
    words[(1,)](table, len(given), BLOCK=64)
    assert table[:2].T[: len(reference.KNOWN_ANSWERS)].tolist() == [
        list(a) for _, a in reference.KNOWN_ANSWERS
    ]
    assert table[:2].T.tolist() == [list(reference.threefry2x32(*w)) for w in given]


@pytest.mark.parametrize(
    ("dim", "n_slices"),
    [(1, 1), (1, 17), (2, 16), (3, 5), (7, 33), (127, 3), (128, 2), (129, 2), (130, 1), (387, 2)],
)
def test_the_documented_stream(device, dim, n_slices):
    """Blocks of 16 slices and of 64 pairs of dimensions: all, part or none of the last one."""
    w = gaussian_slices(dim, n_slices, seed=7, step=5, start=3, device=device)
    assert w.shape == (dim, n_slices) and w.dtype == torch.float32 and w.is_contiguous()
    difference = w.cpu().double() - expected(dim, n_slices, 7, 5, 3)
    assert difference.abs().max() <= 4 * EPS


@pytest.mark.parametrize(
    ("seed", "step", "start"),
    [(0, 0, 0), (LARGEST, 2**31, 2**32 - 20), (2**31 - 1, LARGEST, 2**31 - 7)],
)
def test_the_whole_documented_range(device, seed, step, start):
    w = gaussian_slices(5, 20, seed=seed, step=step, start=start, device=device)
    assert (w.cpu().double() - expected(5, 20, seed, step, start)).abs().max() <= 4 * EPS


def test_columns_have_length_1(device):
    w = gaussian_slices(301, 70, device=device).double()
    torch.testing.assert_close(w.norm(dim=0), torch.ones_like(w[0]), rtol=0, atol=4 * EPS)
    assert torch.all(gaussian_slices(1, 50, device=device).abs() == 1)


@pytest.mark.parametrize("dim", [4, 9, 300])
def test_ranges_are_the_same_bits(device, dim):
    whole = gaussian_slices(dim, 50, seed=1, device=device)
    for start, n_slices in ((0, 1), (7, 13), (16, 34), (49, 1)):
        part = gaussian_slices(dim, n_slices, seed=1, start=start, device=device)
        assert torch.equal(part, whole[:, start : start + n_slices])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sixteen_bits_are_rounded_last(device, dtype):
    w = gaussian_slices(37, 19, step=4, dtype=dtype, device=device)
    assert torch.equal(w, gaussian_slices(37, 19, step=4, device=device).to(dtype))


@pytest.mark.parametrize(
    ("word", "dtype"),
    [(0, torch.int64), (1, torch.int32), (2**31, torch.int64), (LARGEST, torch.int64),
     (LARGEST, torch.uint32), (200, torch.uint8)],
)  # fmt: skip
def test_words_may_be_tensors(device, monkeypatch, word, dtype):
    """Read by the kernel: the host never learns them."""
    tensor = torch.tensor([3, word], dtype=torch.int64).to(dtype).to(device)[1]
    by_integer = [
        gaussian_slices(4, 9, **{name: word}, device=device).cpu() for name in ("seed", "step")
    ]
    for name in ("item", "__int__", "__index__", "tolist", "cpu", "numpy"):
        if device.type == "cuda" or name != "cpu":  # of which the interpreter makes use
            monkeypatch.setattr(
                torch.Tensor, name, lambda *_, **__: pytest.fail("read on the host")
            )
    by_tensor = [
        gaussian_slices(4, 9, **{name: tensor}, device=device) for name in ("seed", "step")
    ]
    monkeypatch.undo()
    for found, wanted in zip(by_tensor, by_integer, strict=True):
        assert torch.equal(found.cpu(), wanted)


def test_a_negative_word_is_its_bits(device):
    minus_one = torch.tensor(-1, device=device)
    w = gaussian_slices(4, 9, step=minus_one, device=device)
    assert torch.equal(w, gaussian_slices(4, 9, step=LARGEST, device=device))


def test_float64_has_no_kernel(device):
    with pytest.raises(TypeError, match=r"expected slices of dtype .* found torch.float64"):
        gaussian_slices(3, 4, dtype=torch.float64, device=device)


# The adapter's function --------------------------------------------------------------------------


def core(*args, device, **options):
    with dispatch.forced("slow"):
        return vc.random_slices(*args, xp=torch, device=device, **options)


def test_the_adapter_draws_by_the_kernel(device):
    dim, n_slices, start = np.array([6, 20, 2])  # integers of NumPy
    for step in (5, torch.tensor(5, device=device), torch.tensor(5), np.int64(5)):
        w = vt.random_slices(dim, n_slices, seed=3, step=step, start=start, device=device)
        assert dispatch.explain("slices") == "slices: gaussian_slices (drawn by one launch)"
        assert torch.equal(w, gaussian_slices(6, 20, seed=3, step=5, start=2, device=device))
        assert w.device.type == device.type and not w.requires_grad
    options = {"seed": 3, "step": 5, "start": 2, "device": device}
    torch.testing.assert_close(w, core(6, 20, **options), rtol=0, atol=4 * EPS)


def test_the_core_draws_what_kernels_do_not(device):
    w = vt.random_slices(6, 20, dtype=torch.float64, device=device)
    assert dispatch.explain("slices").startswith(
        "slices: reference implementation (kernels compute in float32"
    )
    torch.testing.assert_close(w.cpu(), expected(6, 20), rtol=0, atol=1e-14)
    with dispatch.forced("slow"):
        w = vt.random_slices(6, 20, dtype=torch.float32, device=device)
    assert dispatch.explain("slices") == "slices: reference implementation (forced)"
    torch.testing.assert_close(w.cpu().double(), expected(6, 20), rtol=0, atol=4 * EPS)
    w = vt.random_slices(6, 6, sampler="orthogonal", device=device)
    torch.testing.assert_close(w.T @ w, torch.eye(6, device=device), rtol=0, atol=40 * EPS)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtype_and_its_default(device, dtype):
    w = vt.random_slices(6, 20, dtype=dtype, device=device)
    assert w.dtype == dtype
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        with torch.device(device):
            found = vt.random_slices(6, 20)
    finally:
        torch.set_default_dtype(before)
    assert found.dtype == dtype and found.device == w.device
    assert torch.equal(found, w)


def test_traced_code_draws_the_same(device):
    def draw(step):
        return vt.random_slices(5, 7, seed=2, step=step, dtype=torch.float32, device=device)

    torch._dynamo.reset()
    compiled = torch.compile(draw, fullgraph=True, backend="aot_eager")
    steps = torch.tensor([0, 7, 2**31 - 1], device=device)
    eager = torch.stack([draw(step) for step in steps])
    torch.testing.assert_close(
        torch.stack([compiled(s) for s in steps]), eager, rtol=0, atol=4 * EPS
    )
    torch.testing.assert_close(torch.vmap(draw)(steps), eager, rtol=0, atol=4 * EPS)


def test_a_module_s_step_stays_on_the_device(device):
    loss = vt.SIGRegLoss(20, seed=3).to(device)
    z = torch.zeros(4, 6, device=device)
    for step in range(3):
        wanted = gaussian_slices(6, 20, seed=3, step=step, device=device)
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        try:
            found = loss.slices(z)
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
        assert torch.equal(found, wanted)


WRONG = [
    ((0, 4), {}),
    ((3, -1), {}),
    ((3.5, 4), {}),
    ((3, 4), {"start": -1}),
    ((3, 4), {"start": 2**32 - 3}),
    ((3, 4), {"sampler": "sobol"}),
    ((3, 4), {"seed": 1.5}),
    ((3, 4), {"seed": -1}),
    ((3, 4), {"step": 2**32}),
    ((3, 4), {"step": True}),
    ((3, 4), {"step": torch.zeros(2, dtype=torch.int64)}),
    ((3, 4), {"seed": torch.tensor(1.0)}),
    ((3, 4), {"dtype": torch.int32}),
    ((3, 4), {"dtype": np.float32}),
]


@pytest.mark.parametrize(("args", "options"), WRONG)
def test_errors_are_the_core_s(device, args, options):
    with pytest.raises((TypeError, ValueError)) as wanted:
        core(*args, **options, device=device)
    with pytest.raises(wanted.type) as found:
        vt.random_slices(*args, **options, device=device)
    assert str(found.value) == str(wanted.value)
