"""The table for embedding-atlas: what its options name is there, and of the right rows."""

import numpy as np
import pytest

from visreg_core import cli, report

parquet = pytest.importorskip("pyarrow.parquet")


def test_table_of_the_rows_drawn(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((90, 6)).astype(np.float32)
    labels = np.stack([np.arange(90) % 2, np.arange(90) % 6], axis=1)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "labels.npy", labels)
    arguments = ["report", "x.npy", "--labels", "labels.npy", "--slices", "2", "--tree-rows", "50"]
    arguments = [str(tmp_path / a) if a.endswith("npy") else a for a in arguments]
    assert cli.main([*arguments, "--atlas", str(tmp_path / "rows.parquet")]) == 0
    table = parquet.read_table(tmp_path / "rows.parquet").to_pandas()
    rows = table["row"].to_numpy()
    assert len(set(rows)) == 50
    assert np.array_equal(np.stack(table["vector"]), x[rows])
    for level in (0, 1):
        assert table[f"level{level + 1}"].tolist() == labels[rows, level].astype(str).tolist()
    unit = x[rows].astype(float)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    apart = 1 - unit @ unit.T
    np.fill_diagonal(apart, np.inf)
    near = np.stack([n["ids"] for n in table["neighbors"]])
    assert np.array_equal(near, np.argsort(apart, axis=1)[:, :10])
    assert np.stack([n["distances"] for n in table["neighbors"]]) == pytest.approx(
        np.sort(apart, axis=1)[:, :10]
    )
    assert table["neighbor_of"].tolist() == np.bincount(near.ravel(), minlength=50).tolist()
    centred = x[rows] - x[rows].mean(axis=0)
    spread = np.linalg.svd(centred, compute_uv=False)[:2]
    xy = table[["projection_x", "projection_y"]].to_numpy()
    assert np.linalg.norm(xy, axis=0) / np.linalg.norm(xy[:, 0]) == pytest.approx(
        spread / spread[0], rel=1e-5
    )


def test_ids_are_kept(tmp_path):
    ids = [f"item {i}" for i in range(20)]
    found = report.report(np.random.default_rng(0).standard_normal((20, 3)), ids=ids, n_slices=2)
    found.to_atlas(str(tmp_path / "rows.parquet"))
    assert parquet.read_table(tmp_path / "rows.parquet")["row"].to_pylist() == ids
