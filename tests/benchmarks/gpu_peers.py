"""What the losses are compared with on a GPU: what a user would really have instead, and the floor.

Peers are the published formulas as published code writes them: all views in one product, autograd,
a fresh draw of slices in every step. The oracle of gradients is the same formulas in float64. The
floor is the products that a loss cannot avoid, on aligned 16-bit operands, and one read of z.
"""

from __future__ import annotations

import torch


def drawn(d: int, k: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Directions (D, K) as published code draws them."""
    w = torch.randn(d, k, device=device, dtype=torch.float32)
    return (w / w.norm(dim=0)).to(dtype)


def quantiles(n: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Φ⁻¹(i / (n + 1)) as a column."""
    u = torch.arange(1, n + 1, device=device, dtype=torch.float64) / (n + 1)
    return torch.special.ndtri(u).to(dtype)[:, None]


# --- formulas: z (V, N, D), slices (D, K) ---------------------------------------------------------


def visreg(z, slices):
    """Algorithm 1 of VISReg of all views at once."""
    mean = z.mean(dim=-2, keepdim=True)
    centred = z - mean
    std = centred.std(dim=-2, unbiased=False, keepdim=True)
    projected = (centred / (std.detach() + 1e-6)) @ slices
    target = quantiles(z.shape[-2], z.device, projected.dtype)
    shape = (projected.sort(dim=-2).values - target).square().mean()
    return (1 - std).square().mean() + shape + mean.square().mean()


def sliced_wasserstein(z, slices):
    """The sorted projections' squared distance to the Gaussian's quantiles."""
    projected = z @ slices
    target = quantiles(z.shape[-2], z.device, projected.dtype)
    return (projected.sort(dim=-2).values - target).square().mean()


def sigreg(z, slices, t_max=3.0, n_knots=17):
    """SIGReg as in LeJEPA, with its tensor of shape (V, N, K, knots)."""
    t = torch.linspace(0, t_max, n_knots, device=z.device, dtype=torch.float32).to(
        torch.promote_types(z.dtype, torch.float32)
    )
    weights = torch.full_like(t, 2 * t_max / (n_knots - 1))
    weights[0] /= 2
    weights[-1] /= 2
    gaussian = torch.exp(-t.square() / 2)
    angles = (z @ slices).unsqueeze(-1) * t
    real = angles.cos().mean(dim=-3) - gaussian
    imaginary = angles.sin().mean(dim=-3)
    distance = (real.square() + imaginary.square()) @ (weights * gaussian)
    return (distance * z.shape[-2]).mean()


def off_diagonal(matrix):
    """Elements of square matrices that are not on their diagonals."""
    d = matrix.shape[-1]
    return matrix.flatten()[:-1].view(d - 1, d + 1)[:, 1:].flatten()


def vicreg(a, b):
    """VICReg as published."""
    n, d = a.shape
    invariance = torch.nn.functional.mse_loss(a, b)
    a, b = a - a.mean(dim=0), b - b.mean(dim=0)
    std_a, std_b = torch.sqrt(a.var(dim=0) + 1e-4), torch.sqrt(b.var(dim=0) + 1e-4)
    variance = torch.relu(1 - std_a).mean() / 2 + torch.relu(1 - std_b).mean() / 2
    of_a, of_b = (a.T @ a) / (n - 1), (b.T @ b) / (n - 1)
    covariance = off_diagonal(of_a).square().sum() / d + off_diagonal(of_b).square().sum() / d
    return 25 * invariance + 25 * variance + covariance


def barlow_twins(a, b, weight=0.0051):
    """Barlow Twins as published, without its BatchNorm's ε."""
    a = (a - a.mean(dim=0)) / a.std(dim=0, unbiased=False)
    b = (b - b.mean(dim=0)) / b.std(dim=0, unbiased=False)
    c = a.T @ b / a.shape[0]
    on = torch.diagonal(c).add(-1).square().sum()
    return on + weight * off_diagonal(c).square().sum()


def sag_vicreg(a, b, pairs, pair_weights):
    """SAG-VICReg of drawn pairs."""
    rest = vicreg(a, b) - 25 * torch.nn.functional.mse_loss(a, b)
    off = (a - b[pairs]).square().sum(dim=1)
    return rest + 25 * (pair_weights * off).sum() / a.numel()


SLICED = {"visreg": visreg, "sigreg": sigreg, "swd": sliced_wasserstein}


# --- the oracle -----------------------------------------------------------------------------------


def oracle(loss: str, z: torch.Tensor, slices: torch.Tensor, at_once: int = 64) -> torch.Tensor:
    """Gradient of a sliced loss in float64, by autograd, some slices at a time."""
    found = torch.zeros(z.shape, dtype=torch.float64, device=z.device)
    k = slices.shape[1]
    for start in range(0, k, at_once):
        part = slices[:, start : start + at_once].double()
        leaf = z.detach().double().requires_grad_()
        value = SLICED[loss](leaf, part)
        found += torch.autograd.grad(value, leaf)[0] * (part.shape[1] / k)
    return found


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """In norm."""
    return float((found.double() - expected).norm() / expected.norm())


# --- floors ---------------------------------------------------------------------------------------


def sliced_floor(v: int, n: int, d: int, k: int, products: int, device: torch.device):
    """A step of `products` products 2 V N D K on aligned bfloat16 operands, and one read of z."""
    up = [-(-x // 64) * 64 for x in (n, d, k)]
    at_once = max(1, min(v, (1 << 28) // (up[0] * up[2])))
    z = torch.randn(at_once, up[0], up[1], device=device).bfloat16()
    w = torch.randn(1, up[1], up[2], device=device).bfloat16().expand(at_once, -1, -1)
    p = torch.empty(at_once, up[0], up[2], dtype=torch.bfloat16, device=device)
    g = torch.empty_like(z)

    def run():
        for _ in range(0, v, at_once):
            z.sum()
            for i in range(products):
                if i % 2 == 0:
                    torch.bmm(z, w, out=p)
                else:
                    torch.bmm(p, w.mT, out=g)

    return run


def pair_floor(n: int, d: int, device: torch.device):
    """Two products of each of two views, in bfloat16 thrice (the split of float32), and a read."""
    small = min(n, d)
    a = torch.randn(6, n, d, device=device).bfloat16()
    c = torch.empty(6, small, small, dtype=torch.bfloat16, device=device)
    g = torch.empty_like(a)

    def run():
        a.sum()
        if n < d:
            torch.bmm(a, a.mT, out=c)
            torch.bmm(c, a, out=g)
        else:
            torch.bmm(a.mT, a, out=c)
            torch.bmm(a, c, out=g)

    return run
