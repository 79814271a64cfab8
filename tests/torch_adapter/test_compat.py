"""Other packages' names: their signatures, and what they compute, transcribed plainly."""

import inspect
import math

import numpy as np
import pytest
import torch
from scipy.special import ndtri

from tests.torch_adapter.processes import run, successful
from visreg_torch import compat
from visreg_torch.compat import lejepa, lightly, solo_learn, stable_pretraining

ROWS, DIM = 14, 5


def views(v=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(7)
    z = (
        torch.randn(v, ROWS, DIM, generator=generator, dtype=torch.float64) * 0.8 + 0.2
    )  # below the hinge
    return z.to(dtype).requires_grad_()


# --- what the packages say about themselves -------------------------------------------------------

SIGNATURES = {
    lightly.VICRegLoss: "lambda_param=25.0, mu_param=25.0, nu_param=1.0, "
    "gather_distributed=False, eps=0.0001",
    lightly.BarlowTwinsLoss: "lambda_param=0.005, gather_distributed=False",
    lightly.SIGReg: "*, knots=17, t_max=3.0, num_vectors=1024, gather_distributed=False",
    lightly.LeJEPALoss: "lambda_param=0.05, gather_distributed=False, sigreg_knots=17, "
    "sigreg_t_max=3.0, sigreg_num_vectors=1024",
    lightly.VISRegLoss: "lambda_param=0.9, num_slices=4096, lambda_scale=1.0, lambda_shape=1.0, "
    "lambda_center=1.0, gather_distributed=False, eps=0.0001",
    stable_pretraining.VICRegLoss: "sim_coeff=25, std_coeff=25, cov_coeff=1, epsilon=0.0001",
    stable_pretraining.BarlowTwinsLoss: "lambd=0.005",
    stable_pretraining.EppsPulley: "t_max=3.0, n_points=17",
    stable_pretraining.SlicedEppsPulley: "num_slices=1024, t_max=3.0, n_points=17",
    lejepa.SlicingUnivariateTest: "univariate_test, num_slices",
    solo_learn.vicreg_loss_func: "z1, z2, sim_loss_weight=25.0, var_loss_weight=25.0, "
    "cov_loss_weight=1.0",
    solo_learn.barlow_loss_func: "z1, z2, lamb=0.005, scale_loss=0.025",
}
OURS = ("seed", "scope")  # keywords of this package alone


@pytest.mark.parametrize("what", SIGNATURES, ids=lambda what: what.__qualname__)
def test_signature(what):
    parameters = inspect.signature(what).parameters.values()
    own = [p for p in parameters if p.name in OURS]
    assert all(p.kind is p.KEYWORD_ONLY for p in own)
    theirs = [p.replace(annotation=p.empty) for p in parameters if p.name not in OURS]
    assert str(inspect.Signature(theirs)) == f"({SIGNATURES[what]})"


# --- transcriptions -------------------------------------------------------------------------------


def vicreg(a, b, sim=25.0, var=25.0, cov=1.0, eps=1e-4, both=0.5):
    def variance(z):
        return sum(torch.relu(1 - torch.sqrt(column.var() + eps)) for column in z.T) / z.shape[1]

    def covariance(z):
        c = torch.cov(z.T)
        return (c.square().sum() - c.diagonal().square().sum()) / z.shape[1]

    invariance = (a - b).square().mean()
    return (
        sim * invariance
        + var * both * (variance(a) + variance(b))
        + cov * (covariance(a) + covariance(b))
    )


def barlow(a, b, weight=5e-3, eps=1e-5):
    a, b = ((z - z.mean(0)) / torch.sqrt(z.var(0, correction=0) + eps) for z in (a, b))
    c = a.T @ b / len(a)
    on = (c.diagonal() - 1).square().sum()
    return on + weight * (c.square().sum() - c.diagonal().square().sum())


def epps_pulley(x, t_max=3.0, knots=17):
    """Of a column x (N,): N times the integral over [-t_max, t_max] by the trapezoid rule."""
    total, step = 0.0, t_max / (knots - 1)
    for k in range(1 - knots, knots):
        t = k * step
        gap = torch.exp(1j * t * x).mean() - math.exp(-t * t / 2)
        end = 0.5 if abs(k) == knots - 1 else 1.0
        total = total + end * step * math.exp(-t * t / 2) * gap.abs().square()
    return len(x) * total


def sigreg(z, slices, **options):
    columns = [epps_pulley(z[v] @ w, **options) for v in range(len(z)) for w in slices.T]
    return sum(columns) / len(columns)


def visreg(z, slices, eps=1e-4):
    """Scale, shape and centre, each a mean over the views."""
    quantiles = torch.from_numpy(ndtri(np.arange(1, ROWS + 1) / (ROWS + 1)))
    terms = []
    for x in z:
        sigma = x.std(0, correction=0)
        p = (x - x.mean(0)) / (sigma.detach() + eps) @ slices
        shape = (p.sort(dim=0).values - quantiles[:, None]).square().mean()
        terms.append(torch.stack([(1 - sigma).square().mean(), shape, x.mean(0).square().mean()]))
    return sum(terms) / len(terms)


def invariance(z, n_global):
    return (z - z[:n_global].mean(0)).square().mean()


def agree(found, expected, z):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    (gradient,), (wanted,) = (torch.autograd.grad(t, z) for t in (found, expected))
    torch.testing.assert_close(gradient, wanted, rtol=1e-8, atol=1e-11)


# --- values and gradients -------------------------------------------------------------------------


def test_lightly_vicreg():
    z = views()
    agree(lightly.VICRegLoss()(*z), vicreg(*z), z)
    agree(lightly.VICRegLoss(2, 3, 5, eps=0.1)(*z), vicreg(*z, 2, 3, 5, eps=0.1), z)


def test_lightly_vicreg_has_rows_in_front():
    """(N, P, D): each of the P positions by itself."""
    z = views(6).reshape(2, 3, ROWS, DIM)
    a, b = z.movedim(2, 1)
    expected = sum(vicreg(a[:, p], b[:, p]) for p in range(3)) / 3
    torch.testing.assert_close(lightly.VICRegLoss()(a, b), expected)


def test_lightly_barlow_twins():
    z = views()
    agree(lightly.BarlowTwinsLoss()(*z), barlow(*z), z)
    agree(lightly.BarlowTwinsLoss(0.3)(*z), barlow(*z, 0.3), z)


def test_lightly_sigreg():
    z = views(3)
    loss = lightly.SIGReg(knots=9, t_max=2.5, num_vectors=4, seed=2)
    slices = loss.loss.slices(z, step=0)
    agree(loss(z), sigreg(z, slices, t_max=2.5, knots=9), z)
    agree(lightly.SIGReg(num_vectors=4, seed=2)(z), sigreg(z, slices), z)


def test_lightly_lejepa():
    z = views(5)
    loss = lightly.LeJEPALoss(0.1, sigreg_num_vectors=4)
    slices = loss.sigreg.loss.slices(z, step=0)
    expected = 0.1 * sigreg(z, slices) + 0.9 * invariance(z, 2)
    agree(loss(local_proj=z[2:], global_proj=z[:2]), expected, z)


def test_lightly_visreg():
    z = views(5)
    loss = lightly.VISRegLoss(0.7, 6, 2.0, 3.0, 5.0, eps=0.1)
    terms = visreg(z, loss.loss.slices(z, step=0), eps=0.1)
    found = loss.forward_components(local_proj=z[2:], global_proj=z[:2])
    torch.testing.assert_close(torch.stack(found[2:]), terms)
    torch.testing.assert_close(found.pred, invariance(z, 2))
    expected = 0.3 * invariance(z, 2) + 0.7 * (terms @ torch.tensor([2.0, 3.0, 5.0]).double())
    agree(found.total, expected, z)
    again = lightly.VISRegLoss(0.7, 6, 2.0, 3.0, 5.0, eps=0.1)
    assert again(local_proj=z[2:], global_proj=z[:2]) == found.total


def test_stable_pretraining():
    z = views()
    agree(stable_pretraining.VICRegLoss(2, 3, 5, 0.1)(*z), vicreg(*z, 2, 3, 5, 0.1), z)
    agree(stable_pretraining.BarlowTwinsLoss(0.3)(*z), barlow(*z, 0.3, eps=0), z)
    columns = torch.stack([epps_pulley(x, 2.0, 9) for x in z[0].T])
    torch.testing.assert_close(stable_pretraining.EppsPulley(2.0, 9)(z[0]), columns)
    loss = stable_pretraining.SlicedEppsPulley(4, 2.0, 9)
    agree(loss(z), sigreg(z, loss.loss.slices(z, step=0), t_max=2.0, knots=9), z)


def test_lejepa():
    z = views()
    loss = lejepa.SlicingUnivariateTest(lejepa.EppsPulley(n_points=9), num_slices=4)
    agree(loss(z), sigreg(z, loss.loss.slices(z, step=0), knots=9), z)
    with pytest.raises(TypeError, match=r"expected univariate_test to be .*; found Linear"):
        lejepa.SlicingUnivariateTest(torch.nn.Linear(2, 2), 4)


def test_solo_learn():
    z = views()
    agree(solo_learn.vicreg_loss_func(*z, 2, 3, 5), vicreg(*z, 2, 3, 5, both=1.0), z)
    agree(solo_learn.barlow_loss_func(*z, 0.3, 0.1), 0.1 * barlow(*z, 0.3), z)


@pytest.mark.parametrize("loss", [lightly.VISRegLoss(num_slices=4), lightly.LeJEPALoss()])
def test_views_that_do_not_fit(loss):
    with pytest.raises(ValueError, match=r"found local_proj \(2, 14, 4\) beside global_proj"):
        loss(local_proj=views()[..., :4], global_proj=views())
    with pytest.raises(ValueError, match=r"expected lambda_param in \[0, 1\]; found 1.5"):
        type(loss)(1.5)


# --- several processes ----------------------------------------------------------------------------


def on_rank(rank):
    z = views(5).detach()[:, 9 * rank : 9 + 5 * rank].requires_grad_()
    named = {"local_proj": z[2:], "global_proj": z[:2]}
    values = [
        lightly.VICRegLoss(gather_distributed=True)(z[0], z[1]),
        lightly.BarlowTwinsLoss(gather_distributed=True)(z[0], z[1]),
        lightly.SIGReg(num_vectors=4, gather_distributed=True)(z),
        lightly.LeJEPALoss(gather_distributed=True)(**named),
        lightly.VISRegLoss(num_slices=4, gather_distributed=True)(**named),
        solo_learn.barlow_loss_func(z[0], z[1]),
        lejepa.SlicingUnivariateTest(lejepa.EppsPulley(), 4)(z),
    ]
    return torch.stack(values).detach()


def test_gathered_losses_are_those_of_all_rows():
    """Nine rows on the one process, five on the other."""
    z = views(5).detach()
    named = {"local_proj": z[2:], "global_proj": z[:2]}
    expected = torch.stack(
        [
            lightly.VICRegLoss()(z[0], z[1]),
            lightly.BarlowTwinsLoss()(z[0], z[1]),
            lightly.SIGReg(num_vectors=4)(z),
            lightly.LeJEPALoss()(**named),
            lightly.VISRegLoss(num_slices=4)(**named),
            solo_learn.barlow_loss_func(z[0], z[1]),
            lejepa.SlicingUnivariateTest(lejepa.EppsPulley(), 4)(z),
        ]
    )
    for found in successful(run(2, on_rank)):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


# --- lambda ---------------------------------------------------------------------------------------


def test_lambdas_give_objectives_that_differ_by_a_factor():
    z = views()
    distance, statistic = invariance(z, 2), lightly.SIGReg(num_vectors=4)(z)

    def gradient(total):
        (g,) = torch.autograd.grad(total, z, retain_graph=True)
        return g / g.norm()

    forms = {
        "convex": lambda lam, regularizer: (1 - lam) * distance + lam * regularizer,
        "additive": lambda lam, regularizer: distance + lam * regularizer,
    }
    for given, one in forms.items():
        for wanted, other in forms.items():
            lam = compat.convert_lambda(0.3, given, wanted, factor=ROWS)
            expected = gradient(one(0.3, statistic))
            torch.testing.assert_close(gradient(other(lam, statistic / ROWS)), expected)
    assert compat.convert_lambda(0.3, "convex", "convex") == pytest.approx(0.3)
    with pytest.raises(ValueError, match="expected lam >= 0, below 1"):
        compat.convert_lambda(1.0, "convex", "additive")
