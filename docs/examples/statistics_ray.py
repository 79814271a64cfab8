"""Statistics of a Ray dataset, a state a block: `python statistics_ray.py FILES`."""

import io
import sys

import numpy as np
import ray

from visreg_core.statistics import Statistics


def described(batch):
    rows = np.stack(batch["embedding"]).astype(np.float32)
    state, file = Statistics(rows.shape[1]), io.BytesIO()
    state.update(rows, numbers=batch["id"])
    np.savez(file, **state.to_arrays())
    return {"state": np.array([file.getvalue()], dtype=object)}


states = ray.data.read_parquet(sys.argv[1]).map_batches(described, batch_size=50_000)
first, *others = (
    Statistics.from_arrays(np.load(io.BytesIO(row["state"]))) for row in states.iter_rows()
)
for other in others:
    first.merge(other)
print(first.result().n, first.result().sigreg.mean())
