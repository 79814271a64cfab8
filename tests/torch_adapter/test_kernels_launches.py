"""Launches and host work of a step, without a device: kernels and products are counted, not run."""

import pytest
import torch

import visreg_torch as vt
from tests.torch_adapter.kernels.stubbed import META, stubbed
from visreg_core.losses.declaration import declaration_of
from visreg_core.losses.execution import Execution
from visreg_torch.kernels import _launch, _tape, dispatch
from visreg_torch.kernels.whole import Whole

pytestmark = pytest.mark.backends("torch")
STEP, PAIR = (10, 512, 256, 4096), (256, 1024)
SLICED = ("visreg_loss", "sigreg_loss", "gaussian_sliced_wasserstein")
PAIRS = ("vicreg_loss", "sag_vicreg_loss", "barlow_twins_loss")


def step_of(name, dtype):
    """Slices drawn where there are any, forward and backward, through the public function."""
    if name in PAIRS:
        a, b = (torch.empty(PAIR, dtype=dtype, device=META, requires_grad=True) for _ in range(2))
        n = PAIR[0]
        drawn = (torch.empty(n, dtype=torch.int64, device=META), torch.empty(n, device=META))
        more = drawn if name == "sag_vicreg_loss" else ()
        return lambda: getattr(vt, name)(a, b, *more).total.backward()
    v, n, d, k = STEP
    z = torch.empty((v, n, d), dtype=dtype, device=META, requires_grad=True)

    def run():
        w = vt.random_slices(d, k, step=3, dtype=torch.float32, device=META)
        result = getattr(vt, name)(z, w)
        (result.total if name == "visreg_loss" else result).backward()

    return run


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("name", "limit"), [*((n, 8) for n in SLICED), *((n, 10) for n in PAIRS)])
def test_a_step_is_a_handful_of_launches(backend, name, limit, dtype):
    """The first, which decides, the second, which is recorded, and the third, which repeats it."""
    run, found = step_of(name, dtype), []
    with stubbed() as counts:
        for _ in range(3):
            counts.clear()
            run()
            found.append(dict(counts))
        assert all(isinstance(tape, _tape.Tape) for tape in _tape._TAPES.values())
        assert len(_tape._TAPES) == 2
    assert found[1] == found[2]
    assert found[0]["launches"] == found[1]["launches"] <= limit


# --- what a tape repeats --------------------------------------------------------------------------


@pytest.fixture
def fake(monkeypatch):
    """On the CPU: launches are noted with the addresses that they are given, and start nothing."""
    noted = []

    def launch(kernel, grid, args, options):
        def again(stream, *args):
            given = [x.data_ptr() if isinstance(x, torch.Tensor) else x for x in args]
            noted.append((kernel.__name__, grid, options, given))

        again(0, *args)
        return again

    monkeypatch.setitem(_launch.LAUNCHERS, "cpu", launch)
    _tape.clear()
    yield noted
    _tape.clear()


@pytest.fixture
def memory(monkeypatch):
    """The same memory for each run: allocations of equal size and order have equal addresses."""
    held, empty, at = [], torch.empty, [0]

    def again(*args, **options):
        if at[0] == len(held):
            held.append(empty(*args, **options).zero_())
        at[0] += 1
        return held[at[0] - 1]

    def restart():
        at[0] = 0

    monkeypatch.setattr(torch, "empty", again)
    return restart


def passes(name):
    """A loss's passes by kernels, and its arguments for two views."""
    declaration = declaration_of(getattr(vt, name))
    module, short, kind = dispatch._WHOLE[name]
    forward, backward, saved = (
        dispatch.load(module, part) for part in (f"{short}_forward", f"{short}_backward", kind)
    )
    whole = Whole(declaration, forward, backward, saved)

    def arguments(x, y):
        if name not in PAIRS:
            return declaration.bind((torch.stack([x, y]), torch.ones(x.shape[1], 24)), {})
        more = (torch.arange(len(x)), torch.ones(len(x))) if name == "sag_vicreg_loss" else ()
        return declaration.bind((x, y, *more), {})

    return whole, arguments


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
@pytest.mark.parametrize("name", [*SLICED, *PAIRS])
def test_a_repeated_pass_starts_what_the_first_one_did(name, shape, fake, memory):
    """The same kernels on the same grids with the same numbers, at the new tensors' addresses."""
    whole, arguments = passes(name)
    cotangents = [torch.ones(())] + [None] * (len(whole.declaration.fields) - 1)
    generator = torch.Generator().manual_seed(0)
    inputs = [arguments(*torch.randn(2, *shape, generator=generator)) for _ in range(4)]

    def run(given):
        fake.clear()
        memory()
        fields, saved = whole.forward(Execution(need_gradient=True), **given)
        gradients = whole.backward(Execution(), given, saved, *cotangents)
        results = [x.data_ptr() for x in (*fields, *gradients)]
        return list(fake), results, [x.shape for x in (*fields, *gradients)]

    for given in inputs[:2]:
        run(given)
    assert all(isinstance(tape, _tape.Tape) for tape in _tape._TAPES.values())
    repeated = [run(given) for given in inputs]
    _tape.DEVICES.discard("cpu")
    try:
        decided = [run(given) for given in inputs]
    finally:
        _tape.DEVICES.add("cpu")
    assert repeated == decided


@pytest.mark.parametrize("name", [*SLICED, "vicreg_loss", "barlow_twins_loss"])
def test_addresses_are_those_of_the_tensors(name, fake, memory, monkeypatch):
    """On a device kernels are given addresses, on the CPU tensors; those of two views in one array
    lie within it."""
    whole, arguments = passes(name)
    x, y = torch.randn(2, 24, 40)
    one_array = name not in SLICED
    given = whole.declaration.bind((torch.stack([x, y]),), {}) if one_array else arguments(x, y)
    found = []
    for addresses in (False, False, False, True):
        monkeypatch.setattr(_tape, "takes_addresses", lambda _, now=addresses: now)
        fake.clear()
        memory()
        whole.forward(Execution(need_gradient=True), **given)
        found.append(list(fake))
    assert found[3] == found[2] == found[0]
    if one_array:
        first = found[3][0][3]
        assert first[1] - first[0] == 24 * 40 * 4


def test_what_cannot_be_repeated_is_decided_each_time(fake):
    """A mask's count is no tensor of the pass."""
    whole, arguments = passes("visreg_loss")
    given = arguments(*torch.randn(2, 24, 40)) | {"row_mask": torch.arange(24) < 20}
    for _ in range(3):
        whole.forward(Execution(), **given)
    assert list(_tape._TAPES.values()) == [False]


def test_parts_of_one_tensor_are_inputs_of_their_own(fake, memory):
    """Where they lie to each other may change from call to call; where they overlap no tape is."""
    whole, arguments = passes("vicreg_loss")
    both = torch.randn(3, 24, 40)

    def run(a, b):
        fake.clear()
        memory()
        whole.forward(Execution(), **arguments(a, b))
        return [x for _, _, _, given in fake for x in given]

    run(both[0], both[1])
    run(both[0], both[1])
    (tape,) = _tape._TAPES.values()
    assert isinstance(tape, _tape.Tape)
    found = run(both[2], both[0])
    assert both[2].data_ptr() in found
    assert both[0].data_ptr() in found
    assert both[1].data_ptr() not in found
    _tape.clear()
    for _ in range(2):
        run(both[0], both[0])
    assert list(_tape._TAPES.values()) == [False]


def test_tapes_are_few(fake):
    """Weights that are numbers and change at each step do not fill the memory."""
    whole, arguments = passes("visreg_loss")
    given = arguments(*torch.randn(2, 8, 8))
    for i in range(_tape.MAX_TAPES + 5):
        whole.forward(Execution(), **given | {"weights": (1.0, i / 8, 1.0)})
    assert len(_tape._TAPES) == _tape.MAX_TAPES


def test_options_have_tapes_of_their_own(fake):
    whole, arguments = passes("visreg_loss")
    given = arguments(*torch.randn(2, 24, 40))
    for more in ({}, {"eps": 0.5}, {"weights": (1, 2.0, 3)}, {"weights": (1.0, 2.0, 3)}):
        whole.forward(Execution(), **given | more)
    whole.forward(Execution(need_gradient=True), **given)
    assert len(_tape._TAPES) == 5
    # Kernels for addresses that 16 divides are others than for any address.
    at_any = torch.empty(given["z"].numel() + 1)[1:].view(given["z"].shape)
    whole.forward(Execution(need_gradient=True), **given | {"z": at_any})
    assert len(_tape._TAPES) == 6


def test_a_launcher_of_another_triton(monkeypatch):
    """Kernels are then started triton's own way, each time."""

    class Kernel:
        arg_names, do_not_specialize = ("x", "n", "SIZE"), ()
        started = 0
        function = packed_metadata = None

        def __getitem__(self, grid):
            return self.start

        def start(self, *args, **options):
            self.started += 1
            return self

        def run(self, grid):
            """It takes fewer arguments than this package passes."""

    kernel = Kernel()
    monkeypatch.setattr(_launch, "_COMPILED", {})
    monkeypatch.setattr(_launch, "stream_of", int)
    for _ in range(3):
        found = _launch._launch_here(kernel, (1,), 0, (torch.ones(3), 3), {"SIZE": 4})
        assert found is None
    assert kernel.started == 3
    assert list(_launch._COMPILED.values()) == [()]
