"""The losses as a user of torch would write them from the papers, to compare with.

Each is the shortest faithful transcription: autograd differentiates it, nothing is chunked, and
the matrices that the formulas name are built.
"""

import torch


def visreg(z, slices):
    """Algorithm 1 of VISReg; z (N, D), slices (D, K) in place of the ones it draws."""
    n = z.shape[0]
    mu = z.mean(dim=0)
    center = mu.pow(2).mean()
    centred = z - mu
    std = centred.std(dim=0, unbiased=False)
    scale = (1.0 - std).pow(2).mean()

    normalised = centred / std.detach()
    ordered = torch.sort(normalised @ slices, dim=0).values
    u = torch.arange(1, n + 1, device=z.device) / (n + 1)
    target = torch.distributions.Normal(0, 1).icdf(u)
    shape = (ordered - target[:, None]).pow(2).mean()
    return scale + shape + center


def visreg_of_views(z, slices):
    """Mean over the views z (V, N, D) of Algorithm 1."""
    return torch.stack([visreg(view, slices) for view in z]).mean()


def sigreg(z, slices, t_max=3.0, n_knots=17):
    """SIGReg as in LeJEPA, with its tensor of shape (..., N, K, knots)."""
    knots = torch.linspace(0, t_max, n_knots, device=z.device)
    weights = torch.full((n_knots,), 2 * t_max / (n_knots - 1), device=z.device)
    weights[[0, -1]] /= 2
    gaussian = torch.exp(-knots.square() / 2)
    angles = (z @ slices).unsqueeze(-1) * knots
    real = angles.cos().mean(dim=-3) - gaussian
    imaginary = angles.sin().mean(dim=-3)
    distance = (real.square() + imaginary.square()) @ (weights * gaussian)
    return (distance * z.shape[-2]).mean()


def gaussian_sliced_wasserstein(z, slices):
    """The sorted projections' squared distance to the Gaussian's quantiles; z (V, N, D)."""
    n = z.shape[-2]
    ordered = torch.sort(z @ slices, dim=-2).values
    u = torch.arange(1, n + 1, device=z.device) / (n + 1)
    target = torch.distributions.Normal(0, 1).icdf(u)
    return (ordered - target[:, None]).pow(2).mean()


def off_diagonal(matrix):
    """Elements of a square matrix that are not on its diagonal."""
    d = matrix.shape[0]
    return matrix.flatten()[:-1].view(d - 1, d + 1)[:, 1:].flatten()


def vicreg(a, b):
    """VICReg with its published weights and ε; a, b (N, D)."""
    n, d = a.shape
    invariance = torch.nn.functional.mse_loss(a, b)
    variance = covariance = 0.0
    for z in (a, b):
        z = z - z.mean(dim=0)
        std = torch.sqrt(z.var(dim=0) + 1e-4)
        variance = variance + torch.relu(1 - std).mean() / 2
        covariance = covariance + off_diagonal(z.T @ z / (n - 1)).pow(2).sum() / d
    return 25 * invariance + 25 * variance + covariance


def barlow_twins(a, b, weight=0.0051):
    """Barlow Twins with the paper's weight; a, b (N, D)."""
    n = a.shape[0]
    a = (a - a.mean(dim=0)) / a.std(dim=0, unbiased=False)
    b = (b - b.mean(dim=0)) / b.std(dim=0, unbiased=False)
    correlation = a.T @ b / n
    on_diagonal = (correlation.diagonal() - 1).pow(2).sum()
    return on_diagonal + weight * off_diagonal(correlation).pow(2).sum()
