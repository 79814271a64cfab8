"""Statistics of a Spark table, a state a partition: `spark-submit statistics_spark.py FILES`."""

import io
import sys

import numpy as np
import pyarrow as pa
from pyspark.sql import SparkSession

from visreg_core.statistics import Statistics


def described(batches):
    state, file = None, io.BytesIO()
    for batch in batches:
        rows = np.stack(batch["embedding"].to_numpy(zero_copy_only=False)).astype(np.float32)
        state = state or Statistics(rows.shape[1])
        state.update(rows, numbers=batch["id"].to_numpy())
    if state is not None:
        np.savez(file, **state.to_arrays())
        yield pa.RecordBatch.from_pydict({"state": [file.getvalue()]})


table = SparkSession.builder.getOrCreate().read.parquet(sys.argv[1])
first, *others = (
    Statistics.from_arrays(np.load(io.BytesIO(row.state)))
    for row in table.mapInArrow(described, "state binary").toLocalIterator()
)
for other in others:
    first.merge(other)
print(first.result().n, first.result().sigreg.mean())
