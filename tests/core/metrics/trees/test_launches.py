"""What linkage asks of a device: launches, and when it waits for them."""

import importlib

import pytest

from tests.backends import Backend
from tests.core.metrics.trees.test_linkage import BY_ROUNDS, nested
from visreg_core.metrics import linkage

screen = importlib.import_module("visreg_core.metrics.trees._screen")
torch = pytest.importorskip("torch")
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

# What makes the host wait for a device, whoever calls it.
WAITS = {"_local_scalar_dense", "nonzero", "equal", "masked_select", "item"}

# What only makes another view of memory.
VIEWS = set(
    "_unsafe_view alias detach expand lift_fresh permute slice t transpose unsqueeze view".split()
)


class Recorded(TorchDispatchMode):
    """Names of operations, in order."""

    def __init__(self, events):
        super().__init__()
        self.events = events

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.events.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("method", "metric"), BY_ROUNDS)
def test_blocks_are_launched_before_the_first_is_waited_for(rng, method, metric, monkeypatch):
    searches = []
    to_numpy, listed = screen._xp.to_numpy, screen.Screen._listed

    def recorded(self, rows):
        searches.append([])
        with Recorded(searches[-1]):
            return listed(self, rows)

    def waits(a):
        if searches:
            searches[-1].append("to the host")
        return to_numpy(a)

    monkeypatch.setattr(screen.Screen, "_listed", recorded)
    monkeypatch.setattr(screen._xp, "to_numpy", waits)
    monkeypatch.setattr(screen, "_BLOCK_BYTES_DEVICE", 1)  # 64 rows a block
    linkage(Backend.TORCH.asarray(nested(rng, 700, 8), "float32"), method, metric)
    blocks = []
    for events in searches:
        launched = events[: events.index("to the host")]
        blocks.append(launched.count("mm"))
        assert events.count("mm") == blocks[-1]
        assert events.count("to the host") >= 2 * blocks[-1]
        assert not WAITS & set(launched)
        kernels = [name for name in launched if name not in VIEWS]
        assert len(kernels) <= 40 * blocks[-1] + 4
    assert max(blocks) == 11
