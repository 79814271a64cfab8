"""Random walks of torch: on the CPU NumPy's, unless code is traced."""

import pytest
import torch

import visreg_core
from visreg_core import threads
from visreg_core._xp import neighbours
from visreg_torch import random_walk_affinity, random_walk_pairs

pytestmark = pytest.mark.backends("torch")
FUNCTIONS = (random_walk_affinity, random_walk_pairs)


def views(n=16, dtype=torch.float32):
    return torch.randn(2, n, 4, generator=torch.Generator().manual_seed(2)).to(dtype)


def assert_same(found, expected):
    for f, e in zip(found, expected, strict=True):
        assert f.dtype == e.dtype
        assert torch.equal(f, e)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_they_are_numpy_s(dtype):
    a, b = views(dtype=dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    found = random_walk_pairs(a.requires_grad_(), b, 3, step=torch.tensor(7))
    expected = visreg_core.random_walk_pairs(
        *(x.detach().to(wide).numpy() for x in (a, b)), 3, step=7
    )
    assert_same(found, map(torch.from_numpy, expected))
    assert not found[1].requires_grad


def test_strides_and_negative_bits():
    a, b = views()
    expected = random_walk_pairs(a, b, 3)
    negative = torch.complex(b, -a).conj().imag
    assert negative.is_neg()
    assert_same(random_walk_pairs(negative, b.T.contiguous().T, 3), expected)


def test_as_many_threads_as_torch(monkeypatch):
    def counted(*args):
        seen.append(threads.available_threads())
        return bound(*args)

    seen, before, bound = [], torch.get_num_threads(), neighbours.bound_of_smallest
    monkeypatch.setattr(neighbours, "bound_of_smallest", counted)
    try:
        torch.set_num_threads(1)
        random_walk_pairs(*views(), 3)
    finally:
        torch.set_num_threads(before)
    assert seen == [1]


@pytest.mark.parametrize("name", ["seed", "step"])
def test_many_words_at_once(name):
    """By vmap over the word alone: the views are not batched."""
    a, b = views()
    found = torch.vmap(lambda word: random_walk_pairs(a, b, 5, **{name: word}))(torch.arange(4))
    for word in range(4):
        expected = random_walk_pairs(a, b, 5, **{name: word})
        assert torch.equal(found[0][word], expected[0])
        torch.testing.assert_close(found[1][word], expected[1], rtol=0, atol=1e-5)


def test_many_views_at_once():
    a, b = views()
    both = torch.stack([a, b])
    found = torch.vmap(lambda a, b: random_walk_pairs(a, b, 5, step=3))(both, both.flip(0))
    for i, pair in enumerate(((a, b), (b, a))):
        assert torch.equal(found[0][i], random_walk_pairs(*pair, 5, step=3)[0])


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.bfloat16(), "expected a and b of one dtype; found bfloat16 and float32"),
        (lambda x: x.half(), "expected a and b of one dtype; found float16 and float32"),
        (lambda x: x.numpy(), "expected a to be a torch.Tensor; found ndarray"),
        (lambda x: x.to_sparse(), "expected a to be a dense torch.Tensor; found torch.sparse_coo"),
        (lambda x: x.to(torch.float8_e4m3fn), "expected a of dtype .*; found float8_e4m3fn"),
        (lambda x: x + 0j, "expected a of dtype .*; found complex64"),
    ],
)
def test_what_is_refused(function, change, message):
    a, b = views()
    with pytest.raises(TypeError, match=message):
        function(change(a), b, 3)
