"""Large batches: the gradient is that of one graph over the whole batch, the memory a part's."""

import contextlib
import random
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import visreg_torch as vt
from tests.torch_adapter.processes import run, successful

ROWS, FEATURES, DIM = 24, 6, 4
SIZES = [7, 7, 8, 2]


def encoder(*further, dtype=torch.float64):
    torch.manual_seed(1)
    layers = (nn.Linear(FEATURES, 8), nn.LayerNorm(8), nn.GELU(), *further, nn.Linear(8, DIM))
    return nn.Sequential(*layers).to(dtype)


def views(n=ROWS, dtype=torch.float64):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(2, n, FEATURES, generator=generator, dtype=torch.float64).to(dtype)


def affinity(n):
    w = torch.rand(n, n, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return w + w.T


def slices():
    return vt.random_slices(DIM, 10, dtype=torch.float64)


# Every loss that takes embeddings, as a function of two views (2, N, D).
LOSSES = {
    "center_loss": lambda z: vt.center_loss(z),
    "scale_loss": lambda z: vt.scale_loss(z),
    "variance_loss": lambda z: vt.variance_loss(z),
    "covariance_loss": lambda z: vt.covariance_loss(z),
    "invariance_loss": lambda z: vt.invariance_loss(z),
    "shape_loss": lambda z: vt.shape_loss(z, slices()),
    "visreg_loss": lambda z: vt.visreg_loss(z, slices()),
    "sigreg_loss": lambda z: vt.sigreg_loss(z, slices()),
    "weak_sigreg_loss": lambda z: vt.weak_sigreg_loss(z, slices()),
    "gaussian_sliced_wasserstein": lambda z: vt.gaussian_sliced_wasserstein(z, slices()),
    "gaussian_sliced_energy_distance": lambda z: vt.gaussian_sliced_energy_distance(z, slices()),
    "sliced_wasserstein": lambda z: vt.sliced_wasserstein(*z, slices()),
    "max_sliced_wasserstein": lambda z: vt.max_sliced_wasserstein(*z, slices()),
    "epps_pulley": lambda z: vt.epps_pulley(z[0, :, 0]),
    "vicreg_loss": lambda z: vt.vicreg_loss(z),
    "wmse_loss": lambda z: vt.wmse_loss(z),
    "swav_loss": lambda z: vt.swav_loss(z),
    "barlow_twins_loss": lambda z: vt.barlow_twins_loss(z),
    "sag_vicreg_loss": lambda z: vt.SAGVICRegLoss(5)(*z, step=0),
    "spectralnet_loss": lambda z: vt.spectralnet_loss(z[0], affinity(z.shape[-2])),
    "VISRegLoss": lambda z: vt.VISRegLoss(8)(z),
    "SIGRegLoss": lambda z: vt.SIGRegLoss(8)(z),
    "SlicedWassersteinLoss": lambda z: vt.SlicedWassersteinLoss(8)(z),
    "VICRegLoss": lambda z: vt.VICRegLoss()(z),
    "BarlowTwinsLoss": lambda z: vt.BarlowTwinsLoss()(z),
    "SAGVICRegLoss": lambda z: vt.SAGVICRegLoss(5)(*z),
    "JointObjective": lambda z: vt.JointObjective(vt.VISRegLoss(8), 0.6)(z),
}


def test_every_loss_is_listed():
    functions = {name for name in vt.functional.__all__ if name.endswith("_loss")}
    modules = {name for name in vt.modules.__all__ if name.endswith(("Loss", "JointObjective"))}
    assert functions | modules <= set(LOSSES)


def gradients(model):
    return [p.grad for p in model.parameters()]


def in_one_graph(model, loss, batches, embed=None, dim=-2):
    """The oracle: all micro-batches are kept."""
    outputs = torch.cat([(embed or model)(batch) for batch in batches], dim)
    result = loss(outputs)
    (result[0] if isinstance(result, tuple) else result).backward()
    return result, gradients(model)


def assert_close(found, expected, tolerance=1e-10):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * 1e-2)


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_that_of_the_whole_batch(name):
    x, one, parts = views(), encoder(), encoder()
    expected = LOSSES[name](one(x))
    (expected[0] if isinstance(expected, tuple) else expected).backward()
    found = vt.large_batch(parts, LOSSES[name], x.split(SIZES, dim=1))
    assert type(found) is type(expected)
    found, expected = (r if isinstance(r, tuple) else (r,) for r in (found, expected))
    assert not any(t.requires_grad for t in found if isinstance(t, torch.Tensor))
    assert_close(found[:3], expected[:3])
    assert_close(gradients(parts), gradients(one))


def test_gradients_are_added_and_the_step_advances_once():
    model, loss = encoder(), vt.VISRegLoss(8)
    vt.large_batch(model, loss, views().split(6, dim=1))
    first = [g.clone() for g in gradients(model)]
    assert int(loss.step) == 1
    vt.large_batch(model, lambda z: loss(z, step=0), views().split(6, dim=1))
    assert_close(gradients(model), [2 * g for g in first])


def test_several_outputs_are_joined_each(rng):
    """A dictionary with a head for each, one that takes no part, and one that is None."""
    labels = torch.from_numpy(rng.integers(0, DIM, ROWS))
    x = views()

    def embed_with(model):
        def embed(rows):
            z = model(rows)
            return {"views": z, "logits": z[0].detach() + model[0].bias[0], "no": None, "idle": z}

        return embed

    def loss(outputs):
        assert outputs["no"] is None
        vicreg = vt.vicreg_loss(outputs["views"]).total
        return vicreg + nn.functional.cross_entropy(outputs["logits"], labels), "beside it"

    one, parts = encoder(), encoder()
    loss(embed_with(one)(x))[0].backward()
    total, beside = vt.large_batch(parts, loss, x.split(SIZES, dim=1), embed=embed_with(parts))
    assert beside == "beside it" and not total.requires_grad
    assert_close(gradients(parts), gradients(one))


# --- what both passes must have in common ---------------------------------------------------------


class AugmentedFirst:
    """Draws from each of the generators that augmentations use."""

    def __init__(self, model):
        self.model = model

    def __call__(self, x):
        x = x + 0.1 * torch.randn_like(x)
        return self.model(x * (1 + random.random()) + float(np.random.rand()))  # noqa: NPY002


def test_dropout_and_augmentation_are_drawn_again():
    def loss(z):
        return vt.VISRegLoss(8)(z).total * torch.rand(())

    results = []
    for run_it in (in_one_graph, vt.large_batch):
        model = encoder(nn.Dropout(0.5))
        torch.manual_seed(4), random.seed(4), np.random.seed(4)  # noqa: NPY002
        run_it(model, loss, views().split(SIZES, dim=1), embed=AugmentedFirst(model))
        after = torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
        results.append((gradients(model), after))
    (expected, drawn), (found, drawn_then) = results
    assert_close(found, expected)
    assert torch.equal(drawn[0], drawn_then[0]) and drawn[1:] == drawn_then[1:]


class PowerIteration(nn.Module):
    """As in spectral normalisation: a buffer that each forward pass changes, and that it uses."""

    def __init__(self):
        super().__init__()
        self.register_buffer("u", torch.ones(8, dtype=torch.float64))

    def forward(self, x):
        self.u = self.u * 0.9 + x.detach().mean(dim=(0, 1))
        return x + self.u


@pytest.mark.parametrize("layer", [PowerIteration, lambda: nn.BatchNorm1d(6).double()])
def test_buffers_move_once(layer):
    batches = views().split(ROWS // 4, dim=1)[:3] * 2
    one, parts = encoder(layer()), encoder(layer())
    _, expected = in_one_graph(one, vt.vicreg_loss, batches)
    vt.large_batch(parts, vt.vicreg_loss, batches)
    assert_close(gradients(parts), expected)
    assert_close(parts.buffers(), one.buffers(), tolerance=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast(dtype):
    """Autocast's cache of 16-bit weights, filled without a graph, would cut the second pass off."""
    x, found = views(dtype=torch.float32), []
    for run_it in (in_one_graph, vt.large_batch):
        model = encoder(nn.Linear(8, 8), dtype=torch.float32)
        with torch.autocast("cpu", dtype):
            run_it(model, vt.VICRegLoss(), x.split(6, dim=1))
            run_it(model, vt.VICRegLoss(), x.split(6, dim=1))
        found.append(torch.cat([g.flatten() for g in gradients(model)]))
    assert (found[0] - found[1]).norm() < 1e-2 * found[0].norm()


def test_loss_scaling_happens_inside_of_the_loss():
    scaler, loss = torch.amp.GradScaler("cpu", init_scale=1024.0), vt.VICRegLoss()
    model, plain = encoder(), encoder()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = views().split(6, dim=1)
    value = vt.large_batch(model, lambda z: scaler.scale(loss(z).total), batches)
    scaler.unscale_(optimizer)
    terms = vt.large_batch(plain, loss, batches)
    torch.testing.assert_close(value / 1024, terms.total)
    assert_close(gradients(model), gradients(plain))


def test_a_generator_of_its_own_is_told():
    model, own = encoder(), torch.Generator().manual_seed(0)
    draw = lambda x: model(x + torch.randn(x.shape, generator=own, dtype=x.dtype))  # noqa: E731
    with pytest.raises(RuntimeError, match="generator of its own"):
        vt.large_batch(model, vt.VICRegLoss(), views().split(6, dim=1), embed=draw)


def test_what_cannot_be_trained_is_told():
    with pytest.raises(ValueError, match="expected at least one micro-batch; found none"):
        vt.large_batch(encoder(), vt.VICRegLoss(), [])
    frozen = encoder().requires_grad_(False)
    with pytest.raises(ValueError, match="expected outputs that require a gradient; found none"):
        vt.large_batch(frozen, vt.VICRegLoss(), [views()])


@pytest.mark.parametrize("other", [0, 2])  # the call: of the first pass, of the second
def test_outputs_of_other_structures_are_not_taken_by_their_place(other):
    model, calls = encoder(), iter(range(4))

    def embed(x):
        named = {"a": model(x), "b": model(-x)}
        return dict(reversed(named.items())) if next(calls) == other else named

    with pytest.raises(ValueError, match="expected outputs of one structure, keys in one order"):
        vt.large_batch(model, lambda z: z["a"].var(), views().split(12, dim=1), embed=embed)


# --- memory ---------------------------------------------------------------------------------------


class Saved:
    """Bytes that graphs keep for their backward passes: now, and at most."""

    def __init__(self):
        self.now = self.most = 0

    def freed(self, nbytes):
        self.now -= nbytes

    @contextlib.contextmanager
    def counted(self):
        def pack(tensor):
            kept = tensor.detach()
            self.now += kept.nbytes
            self.most = max(self.most, self.now)
            box = [kept]
            holder = Holder(box)
            weakref.finalize(holder, self.freed, kept.nbytes)
            return holder

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda holder: holder.box[0]):
            yield self


class Holder:
    """What a graph holds in place of a tensor."""

    def __init__(self, box):
        self.box = box


def kept_at_most(run_it, batches, width):
    torch.manual_seed(0)
    layers = [nn.Linear(FEATURES, width), nn.GELU(), nn.Linear(width, width), nn.GELU()]
    model = nn.Sequential(*layers, nn.Linear(width, DIM)).double()
    with Saved().counted() as saved:
        run_it(model, vt.VICRegLoss(), batches)
    assert saved.now == 0
    return saved.most


def test_graphs_keep_one_micro_batch():
    """However many there are: what is kept is one's activations, and the loss's of B x D."""
    width, micro = 256, views(8)
    of_loss = 64 * 2 * DIM * 8 * 8  # generous: what VICReg saves of (2, 64, DIM) in float64
    alone = kept_at_most(in_one_graph, [micro], width)
    assert kept_at_most(in_one_graph, [micro] * 8, width) > 4 * alone
    assert kept_at_most(vt.large_batch, [micro] * 8, width) <= alone + of_loss < 1.5 * alone


# --- several processes ----------------------------------------------------------------------------


def of_rank(rank, rows):
    return views(sum(sum(r) for r in rows)).split([sum(r) for r in rows], dim=1)[rank]


def under_ddp(rank, rows):
    """Two processes, with different numbers of micro-batches, and a loss of all of them."""
    ddp = DistributedDataParallel(encoder(nn.Dropout(0.0)))
    reductions = []
    ddp.register_comm_hook(reductions, counting)
    loss = vt.VISRegLoss(8, scope="global")
    terms = vt.large_batch(ddp, loss, of_rank(rank, rows).split(rows[rank], dim=1))
    return [terms.total, *gradients(ddp)], len(reductions)


def counting(reductions, bucket):
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    reductions.append(bucket.index())
    return allreduce_hook(None, bucket)


def test_ddp_reduces_once_and_averages_to_the_gradient_of_one_process():
    rows = [[5, 4, 3], [9, 3]]
    one = encoder()
    terms = vt.VISRegLoss(8)(one(views(24)))
    terms.total.backward()
    for found, reductions in successful(run(2, under_ddp, rows)):
        assert reductions == 1
        assert_close(found, [terms.total.detach(), *gradients(one)])


def buffers_under_ddp(rank):
    ddp = DistributedDataParallel(encoder(PowerIteration()))
    for step in range(2):
        batches = (views(8) + rank + step).split(4, dim=1)
        vt.large_batch(ddp, vt.VICRegLoss(scope="global"), batches)
    return [b.clone() for b in ddp.buffers()]


def accumulated_under_ddp(rank):
    """The oracle: the same forward passes as they come, whose buffers rank 0 sends."""
    ddp = DistributedDataParallel(encoder(PowerIteration()))
    for step in range(2):
        batches = (views(8) + rank + step).split(4, dim=1)
        for batch in batches:
            with contextlib.nullcontext() if batch is batches[-1] else ddp.no_sync():
                ddp(batch).sum().backward()
    return [b.clone() for b in ddp.buffers()]


def test_ddp_sends_buffers_as_it_does_without():
    found, expected = (
        successful(run(2, work)) for work in (buffers_under_ddp, accumulated_under_ddp)
    )
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, tolerance=1e-13)


def test_a_first_pass_that_raises_leaves_everything_as_it_was():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    before = {name: b.clone() for name, b in model.named_buffers()}
    state = torch.get_rng_state()
    calls = []

    def embed(x):
        calls.append(x)
        if len(calls) == 2:
            raise RuntimeError("the second micro-batch")
        return model(x)

    with pytest.raises(RuntimeError, match="the second micro-batch"):
        vt.large_batch(model, vt.VISRegLoss(n_slices=4), torch.randn(8, 4).split(4), embed=embed)
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())
    torch.randn(8, 4)  # what the test itself drew
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    torch.randn(8, 4)
    torch.randn(8, 4)
    assert torch.equal(after, torch.get_rng_state())


@pytest.mark.parametrize("shape", [(), (4,)])
def test_outputs_without_rows_are_told(shape):
    weight = nn.Parameter(torch.ones(shape))
    with pytest.raises(ValueError, match=r"rows along axis -2; found shape \("):
        vt.large_batch(nn.Module(), lambda z: z.sum(), [1.0, 2.0], embed=lambda x: x * weight)
