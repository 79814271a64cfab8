"""Projections and the way back against plain products in float64."""

import pytest
import torch

from tests.torch_adapter.kernels.tensors import DTYPES, relative_error, rounding, strided
from visreg_torch.kernels.projected import carry_back, project, project_in_blocks

pytestmark = pytest.mark.backends("torch", "torch-cuda")
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
functions = pytest.mark.parametrize("function", [project, project_in_blocks])
# (B, N, D, K): odd sizes, and one over several tiles each way
SIZES = [(1, 2, 3, 1), (2, 3, 70, 7), (1, 255, 5, 7), (1, 131, 70, 140)]


def standardisation(draw, batch, d):
    return 5 * draw(batch, d), 1e-3 * draw(batch, d), draw(batch, d).exp()


def naive(z, w, first, rest, scale):
    """z̃ rounded once to the dtype of the product, which is exact but for its float32 sums."""
    centred = z.float() - first[:, None] - rest[:, None]
    rounded = (centred * scale[:, None]).to(w.dtype)
    return (rounded.double() @ w.double()).mT


@functions
@dtypes
@pytest.mark.parametrize(("batch", "n", "d", "k"), SIZES)
def test_projections(draw, function, dtype, batch, n, d, k):
    z = (draw(batch, n, d) + 5 * draw(batch, 1, d)).to(dtype)
    w, standard = draw(1, d, k).to(dtype), standardisation(draw, batch, d)
    found = function(strided(z), strided(w), *standard)
    assert found.dtype == dtype and found.is_contiguous()
    # A unit in the last place of z̃ where a device fuses z̃'s operations, one of the result.
    assert relative_error(found, naive(z, w, *standard)) < 3 * rounding(dtype) + 1e-6


@dtypes
def test_slices_of_each_view_and_a_wider_result(draw, dtype):
    z, w = draw(3, 20, 30).to(dtype), draw(3, 30, 5).to(dtype)
    found = project(z, w, out_dtype=torch.float32)
    assert found.dtype == torch.float32
    assert relative_error(found, (z.double() @ w.double()).mT) < 1e-6
    assert relative_error(project_in_blocks(z, w), found) < 2 * rounding(dtype)


@functions
def test_embeddings_wider_or_narrower_than_the_product(draw, function):
    for of_z, of_w in [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)]:
        z, w = draw(1, 20, 30).to(of_z), draw(1, 30, 5).to(of_w)
        standard = standardisation(draw, 1, 30)
        found = function(z, w, *standard)
        assert found.dtype == of_w
        assert relative_error(found, naive(z, w, *standard)) < 3 * rounding(of_w)


@functions
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_constant_columns_project_to_nothing(draw, function, dtype):
    """Their scale is 1/ε, beside which anything but an exact 0 is everything."""
    z = draw(1, 30, 6).to(dtype)
    z[..., 4] = 123.0
    first, rest = torch.zeros(2, 1, 6, device=z.device)
    scale = torch.ones_like(first)
    first[0, 4], scale[0, 4] = 123.0, 1e6
    w = draw(1, 6, 3).to(dtype)
    without = naive(z[..., [0, 1, 2, 3, 5]], w[:, [0, 1, 2, 3, 5]], *(
        c[:, [0, 1, 2, 3, 5]] for c in (first, rest, scale)
    ))  # fmt: skip
    assert relative_error(function(z, w, first, rest, scale), without) < 3 * rounding(dtype)


@functions
@pytest.mark.parametrize("centred", [False, True])
def test_masked_rows(draw, mask_of, function, centred):
    z, w, keep = draw(2, 70, 9), draw(1, 9, 4), mask_of(70)
    z[:, ~keep] = torch.nan
    standard = standardisation(draw, 2, 9) if centred else ()
    found = function(z, w, *standard, row_mask=keep)
    expected = naive(z[:, keep], w, *standard) if centred else (z[:, keep] @ w).mT
    assert relative_error(found[..., keep], expected) < 1e-6
    if function is project or centred:
        assert torch.all(found[..., ~keep] == 0)


def test_rows_in_blocks(draw, monkeypatch):
    from visreg_torch.kernels import projected

    z, w, standard = draw(3, 20, 8), draw(3, 8, 5), standardisation(draw, 3, 8)
    expected = naive(z, w, *standard)
    for rows in (7, 20, 45):  # a part of a view, one, two of three
        monkeypatch.setattr(projected, "_BLOCK_BYTES", rows * 8 * 4)
        assert relative_error(project_in_blocks(z, w, *standard), expected) < 1e-6


@dtypes
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize(("batch", "n", "d", "k"), SIZES)
def test_way_back(draw, dtype, accumulate, batch, n, d, k):
    g, w, out = draw(batch, k, n).to(dtype), draw(1, d, k).to(dtype), draw(batch, n, d)
    expected = (w.double() @ g.double()).mT + (out.double() if accumulate else 0)
    if not accumulate:
        out[:] = torch.nan  # not read
    out = strided(out)
    assert carry_back(strided(g), strided(w), out, accumulate=accumulate) is out
    assert relative_error(out, expected) < 1e-6


def test_way_back_into_a_narrow_gradient(draw):
    g, w, out = draw(2, 5, 20), draw(2, 30, 5), draw(2, 20, 30).to(torch.bfloat16)
    expected = (w.double() @ g.double()).mT + out.double()
    carry_back(g, w, out, accumulate=True)
    assert relative_error(out, expected) < 2 * rounding(torch.bfloat16)


def test_errors(draw):
    z, w = draw(2, 5, 3), draw(1, 3, 4)
    with pytest.raises(ValueError, match=r"slices of shape \(2 or 1, 3, K\); found \(1, 4, 3\)"):
        project(z, w.mT)
    with pytest.raises(ValueError, match=r"expected first of shape \(2, 3\); found \(1, 3\)"):
        project(z, w, z[:1, 0])
    with pytest.raises(ValueError, match=r"expected precision of ieee, tf32, tf32x3; found 'x'"):
        project(z, w, precision="x")
    with pytest.raises(ValueError, match=r"expected g of shape \(2, 4, 5\); found \(2, 5, 4\)"):
        carry_back(draw(2, 5, 4), w, z, accumulate=False)
    with pytest.raises(TypeError, match=r"expected slices of dtype .* found torch.float64"):
        project(z, w.double())
