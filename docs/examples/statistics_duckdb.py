"""Statistics of a table that DuckDB reads, by Arrow: `python statistics_duckdb.py FILES`."""

import sys

import duckdb
import numpy as np

from visreg_core.statistics import Statistics

query = duckdb.sql(f"SELECT id, embedding FROM read_parquet('{sys.argv[1]}')")
state = None
for batch in query.to_arrow_reader(50_000):
    rows = np.stack(batch["embedding"].to_numpy(zero_copy_only=False)).astype(np.float32)
    state = state or Statistics(rows.shape[1])
    state.update(rows, numbers=batch["id"].to_numpy())
found = state.result()
print(found.n, found.sigreg.mean(), found.moments.singular_values(center=True)[:3])
