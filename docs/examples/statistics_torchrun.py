"""Both passes on the ranks of torchrun, which read what they have: `torchrun … FILE.npy`."""

import sys

import numpy as np
import torch.distributed as dist

from visreg_core.statistics import Statistics


def merged(state):
    """The state of all ranks, on all of them: arrays are gathered, in the order of the ranks."""
    arrays = [None] * dist.get_world_size()
    dist.all_gather_object(arrays, state.to_arrays())
    first, *others = (type(state).from_arrays(a) for a in arrays)
    for other in others:
        first.merge(other)
    return first


dist.init_process_group("gloo")
rows = np.load(sys.argv[1], mmap_mode="r")
mine = np.array_split(np.arange(len(rows)), dist.get_world_size())[dist.get_rank()]
first = Statistics(rows.shape[1])
first.update(rows[mine[0] : mine[-1] + 1], numbers=mine)
first = merged(first)
second = first.distributions()
second.update(rows[mine[0] : mine[-1] + 1])
value, bound = (float(x.mean()) for x in merged(second).result().shape)
if dist.get_rank() == 0:
    print(first.result().n, first.result().sigreg.mean(), value, bound)
dist.barrier()
dist.destroy_process_group()
