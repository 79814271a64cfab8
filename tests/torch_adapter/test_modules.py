"""Modules: which slices they draw and when, what their state holds, what they refuse."""

import copy
import inspect

import pytest
import torch

import visreg_core
import visreg_torch
from visreg_torch import modules

SLICED = {
    "VISRegLoss": visreg_core.visreg_loss,
    "SIGRegLoss": visreg_core.sigreg_loss,
    "SlicedWassersteinLoss": visreg_core.gaussian_sliced_wasserstein,
}


def make(name, **options):
    return getattr(visreg_torch, name)(**options)


def embeddings(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(*shape, generator=generator, dtype=torch.float64) * 1.3 + 0.2
    return z.to(dtype).requires_grad_()


def core_slices(d, k, **options):
    return torch.from_numpy(visreg_core.random_slices(d, k, **options))


def close(found, expected):
    pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
    for f, e in pairs:
        torch.testing.assert_close(f, e, rtol=1e-12, atol=1e-14)


def total(result):
    return (result.total if isinstance(result, tuple) else result).item()


# --- slices and steps -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SLICED)
@pytest.mark.parametrize("sampler", ["gaussian", "orthogonal"])
def test_training_steps_draw_the_core_s_slices(name, sampler):
    """Of seed and step 0, 1, 2, …; evaluation stays where it is."""
    z = embeddings(12, 4)
    loss = make(name, n_slices=6, seed=5, sampler=sampler)

    def expected(step):
        return SLICED[name](z, core_slices(4, 6, seed=5, step=step, sampler=sampler))

    close(loss(z), expected(0))
    close(loss(z), expected(1))
    loss.eval()
    close(loss(z), expected(2))
    close(loss(z), expected(2))
    loss.train()
    close(loss(z), expected(2))
    assert int(loss.step) == 3


@pytest.mark.parametrize("name", [*SLICED, "SAGVICRegLoss"])
@pytest.mark.parametrize("given", [7, torch.tensor(7), torch.tensor(7, dtype=torch.int32)], ids=str)
def test_a_given_step_is_used_and_nothing_advances(name, given):
    z = embeddings(12, 4), embeddings(12, 4, seed=1)
    z = z if name == "SAGVICRegLoss" else z[:1]
    loss = make(name, seed=2)
    at_seven = loss(*z, step=given)
    assert int(loss.step) == 0
    for _ in range(7):
        loss(*z)
    close(loss(*z), at_seven)
    assert total(loss(*z)) != total(at_seven)


@pytest.mark.parametrize("name", [*SLICED, "SAGVICRegLoss"])
def test_a_resumed_run_draws_what_the_first_would_have_drawn(name):
    z = embeddings(12, 4), embeddings(12, 4, seed=1)
    z = z if name == "SAGVICRegLoss" else z[:1]
    loss = make(name, seed=2)
    for _ in range(3):
        loss(*z)
    state = copy.deepcopy(loss.state_dict())
    assert list(state) == ["step"]
    assert int(state["step"]) == 3
    resumed = make(name, seed=2)
    resumed.load_state_dict(state)
    for _ in range(2):
        close(resumed(*z), loss(*z))


def test_buffers_follow_casts_and_copies():
    loss = visreg_torch.VISRegLoss(8)
    loss(embeddings(12, 4))
    for other in (copy.deepcopy(loss), copy.deepcopy(loss).half(), loss.to("cpu")):
        assert other.step.dtype == torch.int64
        assert int(other.step) == 1
    meta = copy.deepcopy(loss).to("meta")
    assert meta.step.device.type == "meta"


def test_slices_are_single_precision_but_for_double():
    loss = visreg_torch.VISRegLoss(8)
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        slices = loss.slices(embeddings(12, 4, dtype=dtype))
        assert slices.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert slices.shape == (4, 8)


def test_seeds_and_modules_draw_their_own():
    z = embeddings(12, 4)
    values = [visreg_torch.SIGRegLoss(8, seed=seed)(z).item() for seed in (0, 1)]
    assert values[0] != values[1]


# --- what they compute ----------------------------------------------------------------------------


@pytest.mark.parametrize("n_global", [None, 1, 2])
@pytest.mark.parametrize("detach_center", [False, True])
def test_visreg_objective(n_global, detach_center):
    """(1 − λ) invariance + λ regularizer, by autograd through the core's own functions."""
    z = embeddings(3, 12, 4)
    mask = torch.arange(12) != 4
    loss = visreg_torch.VISRegLoss(
        8, weights=(2, 3, 5), lam=0.7, n_global=n_global, detach_center=detach_center
    )
    found = loss(z, row_mask=mask)
    terms = visreg_core.visreg_loss(z, core_slices(4, 8), (2, 3, 5), row_mask=mask)
    invariance = visreg_core.invariance_loss(
        z, n_global, detach_center=detach_center, row_mask=mask
    )
    total = 0.3 * invariance + 0.7 * terms.total
    close(found, modules.VISRegObjective(total, invariance, *terms))
    (gradient,) = torch.autograd.grad(found.total, z)
    (expected,) = torch.autograd.grad(total, z)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    ("options", "core"),
    [
        ({"weights": (0, 1, 1)}, {"weights": (0, 1, 1)}),
        ({"weights": (1, 0, 1)}, {"weights": (1, 0, 1)}),
        ({"weights": (1, 1, 0)}, {"weights": (1, 1, 0)}),
        ({"weights": (4, 1, 0.5)}, {"weights": (4, 1, 0.5)}),
        ({"detach_scale": False}, {"detach_scale": False}),
        ({"eps": 0.1, "detach_scale": False}, {"eps": 0.1, "detach_scale": False}),
        ({"chunk_size": 3}, {}),
    ],
    ids=str,
)
def test_visreg_ablations(options, core):
    z = embeddings(2, 12, 4)
    found = visreg_torch.VISRegLoss(8, **options)(z)
    expected = visreg_core.visreg_loss(z, core_slices(4, 8), **core)
    close(found, expected)
    (gradient,), (wanted,) = (torch.autograd.grad(t.total, z) for t in (found, expected))
    torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-13)


def test_the_other_modules_pass_their_options_on():
    a, b = embeddings(12, 4), embeddings(12, 4, seed=1)
    mask = torch.arange(12) != 4
    slices = core_slices(4, 8)
    vc, vt = visreg_core, visreg_torch
    options = {"t_max": 4.0, "n_knots": 9, "scale_by_n": False}
    close(
        vt.SIGRegLoss(8, **options)(a, row_mask=mask),
        vc.sigreg_loss(a, slices, **options, row_mask=mask),
    )
    close(
        vt.SlicedWassersteinLoss(8, reduction="sum")(a, row_mask=mask),
        vc.gaussian_sliced_wasserstein(a, slices, reduction="sum", row_mask=mask),
    )
    options = {"gamma": 1.5, "eps": 1e-2, "convention": "paper"}
    close(
        vt.VICRegLoss((2, 3, 5), **options)(a, b, row_mask=mask),
        vc.vicreg_loss(a, b, (2, 3, 5), **options, row_mask=mask),
    )
    close(
        vt.BarlowTwinsLoss(0.3, eps=1e-3)(torch.stack([a, b, a + b]), row_mask=mask),
        vc.barlow_twins_loss(torch.stack([a, b, a + b]), None, 0.3, eps=1e-3, row_mask=mask),
    )


def test_sag_vicreg_draws_its_pairs():
    a, b = embeddings(20, 4), embeddings(20, 4, seed=1)
    affinity = {"n_neighbors": 4, "percentile": 50, "scale": "global", "symmetrize": True}
    options = {"weights": (2, 3, 5), "gamma": 1.5, "eps": 1e-2}
    loss = visreg_torch.SAGVICRegLoss(**affinity, **options, n_steps=3, seed=9)
    for step in range(2):
        w = visreg_core.random_walk_affinity(a.detach().numpy(), b.detach().numpy(), **affinity)
        pairs = visreg_core.sample_random_walk(
            visreg_core.transition_matrix(w), seed=9, step=step, n_steps=3
        )
        weights = torch.from_numpy(w[range(20), pairs])
        expected = visreg_core.sag_vicreg_loss(a, b, torch.from_numpy(pairs), weights, **options)
        found = loss(a, b)
        close(found, expected)
        gradients, wanted = (torch.autograd.grad(t.total, (a, b)) for t in (found, expected))
        for g, e in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(g, e, rtol=1e-10, atol=1e-13)


# --- settings -------------------------------------------------------------------------------------


ALL = [name for name in modules.__all__ if name.endswith("Loss")]


@pytest.mark.parametrize("name", ALL)
def test_repr_shows_every_setting(name):
    loss = make(name)
    shown = repr(loss)
    assert shown.startswith(f"{name}(")
    settings = inspect.signature(type(loss).__init__).parameters
    for setting in settings:
        assert (f"{setting}=" in shown) == (setting not in ("self", "group"))
    again = eval(shown, {name: getattr(visreg_torch, name)})
    assert repr(again) == shown


@pytest.mark.parametrize("name", ALL)
def test_unknown_options_are_refused_with_the_known(name):
    known = list(inspect.signature(getattr(visreg_torch, name).__init__).parameters)[1:]
    with pytest.raises(TypeError, match=f"options of {', '.join(known)}; found sise"):
        make(name, sise=3)


def test_subclasses_may_pass_options_on():
    class Weighted(visreg_torch.VISRegLoss):
        def __init__(self, factor=1.0, *args, unshown=None, **options):
            super().__init__(*args, **options)
            self.factor = factor

    loss = Weighted(2.0, 8, lam=0.5, unshown=1)
    assert repr(loss).startswith("Weighted(factor=2.0, n_slices=8, weights=(1, 1, 1), lam=0.5, ")
    assert "unshown" not in repr(loss)
    with pytest.raises(TypeError, match=r"options of factor, unshown, n_slices, .*; found sise"):
        Weighted(sise=3)


@pytest.mark.parametrize("scope", ["local", "global"])
def test_a_sharding_is_taken_for_a_group(scope):
    z = embeddings(12, 4)
    loss = visreg_torch.VISRegLoss(8, scope=scope, group=visreg_torch.Sharding())
    close(loss(z), visreg_torch.VISRegLoss(8)(z))


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("VISRegLoss", {"n_slices": 0}, ValueError, "n_slices to be an integer >= 1; found 0"),
        ("VISRegLoss", {"sampler": "sobol"}, ValueError, "sampler to be one of .*found 'sobol'"),
        ("VISRegLoss", {"weights": (1, 2)}, ValueError, r"3 numbers \(scale, shape, center\)"),
        ("VISRegLoss", {"eps": 0.0}, ValueError, "eps to be a finite number > 0"),
        ("VISRegLoss", {"n_global": 2}, ValueError, "expected lam beside n_global"),
        ("VISRegLoss", {"n_global": 0, "lam": 1}, ValueError, "n_global to be an integer >= 1"),
        ("VISRegLoss", {"chunk_size": 0}, ValueError, "chunk_size to be an integer >= 1"),
        ("VISRegLoss", {"projection_dtype": "half"}, TypeError, "projection_dtype to be float16"),
        ("VISRegLoss", {"detach_center": True}, ValueError, "expected lam beside"),
        ("VISRegLoss", {"lam": "0.5"}, TypeError, "expected lam to be a number"),
        ("VISRegLoss", {"seed": -1}, ValueError, "seed to be an integer >= 0"),
        ("VISRegLoss", {"scope": "world"}, ValueError, "scope to be one of"),
        ("SIGRegLoss", {"n_knots": 1}, ValueError, "n_knots to be an integer >= 2"),
        ("SIGRegLoss", {"t_max": 0.0}, ValueError, "expected t_max > 0; found 0.0"),
        ("SlicedWassersteinLoss", {"reduction": "max"}, ValueError, "reduction to be one of"),
        ("VICRegLoss", {"convention": "mine"}, ValueError, "convention to be one of"),
        ("BarlowTwinsLoss", {"off_diagonal_weight": None}, TypeError, "off_diagonal_weight"),
        ("SAGVICRegLoss", {"n_neighbors": 0}, ValueError, "n_neighbors to be an integer >= 1"),
        ("SAGVICRegLoss", {"scale": "row"}, ValueError, "scale to be one of"),
        ("SAGVICRegLoss", {"percentile": 101}, ValueError, r"percentile in 0 \.\.\. 100"),
    ],
)  # fmt: skip
def test_settings_are_checked_when_they_are_made(name, options, error, message):
    with pytest.raises(error, match=message):
        make(name, **options)


def test_all_is_sorted_and_is_what_is_public():
    for module in (visreg_torch, modules, visreg_torch.functional):
        assert list(module.__all__) == sorted(module.__all__)
        for name in module.__all__:
            assert getattr(module, name).__doc__, name
    for module in (modules, visreg_torch.functional):
        assert set(module.__all__) <= set(visreg_torch.__all__)


@pytest.mark.parametrize("name", ["VISRegLoss", "SIGRegLoss", "SlicedWassersteinLoss"])
def test_the_joint_objective_serves_every_regulariser(name):
    regularizer = getattr(visreg_torch, name)(16, seed=3)
    alone = getattr(visreg_torch, name)(16, seed=3)
    objective = visreg_torch.JointObjective(regularizer, 0.3, n_global=2, detach_center=True)
    views = torch.randn(3, 24, 6, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(24, dtype=torch.bool)
    mask[5] = False
    terms = objective(views, row_mask=mask)
    own = alone(views, row_mask=mask)
    expected = own.total if isinstance(own, tuple) else own
    invariance = visreg_torch.invariance_loss(views, 2, detach_center=True, row_mask=mask)
    torch.testing.assert_close(terms.regularizer, expected)
    torch.testing.assert_close(terms.invariance, invariance)
    torch.testing.assert_close(terms.total, 0.7 * invariance + 0.3 * expected)
    assert int(regularizer.step) == 1
    assert "lam=0.3" in repr(objective)


def test_the_older_spelling_of_the_joint_objective():
    views = torch.randn(2, 24, 6)
    older = visreg_torch.VISRegLoss(16, lam=0.3, n_global=1)(views)
    terms = visreg_torch.JointObjective(visreg_torch.VISRegLoss(16), 0.3, n_global=1)(views)
    assert older._fields == ("total", "invariance", "regularizer", "scale", "shape", "center")
    assert older.total == terms.total and older.scale == terms.terms.scale
