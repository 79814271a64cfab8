"""Chunked stores: which files are chunks, which chunks are missing, which array is meant."""

import json
import shutil

import h5py
import numpy as np
import pytest
import zarr

from visreg_core.embeddings import EmbeddingsError, load

Z = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)

LAYOUTS = {
    "v2": {"chunks": (16, 4), "zarr_format": 2},
    "v2 folders": {
        "chunks": (16, 4),
        "zarr_format": 2,
        "chunk_key_encoding": {"name": "v2", "separator": "/"},
    },
    "v3": {"chunks": (16, 4)},
    "v3 dots": {
        "chunks": (16, 4),
        "chunk_key_encoding": {"name": "default", "separator": "."},
    },
    "v3 names of v2": {
        "chunks": (16, 4),
        "chunk_key_encoding": {"name": "v2", "separator": "."},
    },
    "sharded": {"chunks": (5, 3), "shards": (10, 6)},
    "sharded beyond the edge": {"chunks": (7, 2), "shards": (21, 4)},
}
STRAYS = [
    ".DS_Store", "._0.0", "Thumbs.db", "desktop.ini", "0.0.tmp", "0.0.1", "9.9", "00.0", "c.0",
    "notes.txt", "c/.DS_Store", "c/0/._0", "c/0/0.partial", "c/9/9", "0/.DS_Store",
    "0.9", "9.0", "c/0/9", "0/9", "c.0.9",
]  # fmt: skip


def made(path, layout, data=Z):
    zarr.create_array(path, data=data, **LAYOUTS[layout])
    return sorted(
        p for p in path.rglob("*") if p.is_file() and not p.name.startswith((".z", "zarr.json"))
    )


def refused(spec):
    with pytest.raises(EmbeddingsError) as caught:
        load(spec).to_numpy()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def stray(path, names=STRAYS):
    """Write files that are no chunks beside those that are; how many."""
    count = 0
    for name in names:
        file = path / name
        if file.parent.exists() and not file.parent.is_file():
            file.write_bytes(b"stray")
            count += 1
    return count


@pytest.mark.parametrize("layout", LAYOUTS)
def test_stray_files_are_no_chunks(tmp_path, layout):
    chunks = made(tmp_path / "z.zarr", layout)
    assert stray(tmp_path / "z.zarr") >= 8
    assert np.array_equal(load(tmp_path / "z.zarr").to_numpy(), Z)
    for gone in chunks:
        content = gone.read_bytes()
        gone.unlink()
        found = f"found {len(chunks) - 1} chunks; expected all {len(chunks)} chunks"
        assert found in refused(tmp_path / "z.zarr")
        gone.write_bytes(content)
    assert np.array_equal(load(tmp_path / "z.zarr").to_numpy(), Z)


@pytest.mark.parametrize("layout", ["sharded", "sharded beyond the edge"])
@pytest.mark.parametrize("location", ["start", "end"])
def test_chunks_missing_inside_a_shard(tmp_path, layout, location):
    """As an interrupted writer leaves them; zarr reads zeros in their place."""
    settings = LAYOUTS[layout]
    serializer = zarr.codecs.ShardingCodec(
        chunk_shape=settings["chunks"], index_location=location, codecs=[zarr.codecs.BytesCodec()]
    )
    array = zarr.create_array(
        tmp_path / "z.zarr",
        shape=Z.shape,
        dtype=Z.dtype,
        chunks=settings["shards"],
        serializer=serializer,
        compressors=None,
    )
    rows, columns = settings["chunks"]
    array[:] = Z
    assert np.array_equal(load(tmp_path / "z.zarr").to_numpy(), Z)
    array[:rows, :columns] = 0  # all zeros: zarr takes the chunk out of its shard
    inside = -(-40 // rows) * -(-6 // columns)
    assert np.array_equal(
        zarr.open_array(tmp_path / "z.zarr")[:rows, :columns], np.zeros((rows, columns))
    )
    found = f"found {inside - 1} chunks inside shards; expected all {inside} chunks"
    assert found in refused(tmp_path / "z.zarr")


def test_strange_shards_are_refused(tmp_path):
    made(tmp_path / "z.zarr", "sharded")
    file = tmp_path / "z.zarr/zarr.json"
    about = json.loads(file.read_text())

    def rewritten(change):
        changed = json.loads(json.dumps(about))
        change(changed["codecs"][0]["configuration"], changed)
        file.write_text(json.dumps(changed))
        return refused(tmp_path / "z.zarr")

    plain = "expected shards with a plain index"
    assert plain in rewritten(lambda c, a: c["index_codecs"].append({"name": "gzip"}))
    assert plain in rewritten(lambda c, a: c["codecs"].append(about["codecs"][0]))
    assert plain in rewritten(
        lambda c, a: c["index_codecs"][0]["configuration"].update(endian="big")
    )
    assert plain in rewritten(
        lambda c, a: a["codecs"].append({"name": "gzip", "configuration": {}})
    )
    assert "whole chunks" in rewritten(lambda c, a: c.update(chunk_shape=[7, 6]))
    file.write_text(json.dumps(about))
    (tmp_path / "z.zarr/c/0/0").write_bytes(b"short")
    assert "a shard of 5 bytes" in refused(tmp_path / "z.zarr")


def test_two_descriptions_of_one_array_are_refused(tmp_path):
    """One would be checked for codecs that run code, and the other used."""
    made(tmp_path / "z.zarr", "v2")
    made(tmp_path / "other.zarr", "v3 names of v2")
    shutil.copy(tmp_path / "other.zarr/zarr.json", tmp_path / "z.zarr/zarr.json")
    assert "described by .zarray and by zarr.json" in refused(tmp_path / "z.zarr")


# --- the array that is named ----------------------------------------------------------------------


def test_an_hdf5_array_behind_a_thousand_others(tmp_path):
    with h5py.File(tmp_path / "z.h5", "w") as file:
        for i in range(1100):
            file[f"a/{i:04}"] = [1.0]
        file["model/z"] = Z
    assert np.array_equal(load(f"{tmp_path / 'z.h5'}::model/z").to_numpy(), Z)
    assert "1000 arrays or more; expected FILE::name" in refused(tmp_path / "z.h5")
    assert "expected one named 'model/y'" in refused(f"{tmp_path / 'z.h5'}::model/y")
    assert "expected one named 'model'" in refused(f"{tmp_path / 'z.h5'}::model")


def test_links_inside_an_hdf5_file(tmp_path):
    with h5py.File(tmp_path / "z.h5", "w") as file:
        file["runs/3/z"] = Z
        file["latest"] = h5py.SoftLink("/runs/3")
        file["z"] = h5py.SoftLink("latest/z")
        file["runs/relative"] = h5py.SoftLink("3/z")
        file["hard"] = file["runs/3/z"]
        file["dangling"] = h5py.SoftLink("/nowhere")
        file["round"] = h5py.SoftLink("/round/round")
        file["outside"] = h5py.ExternalLink("other.h5", "z")
        file["through"] = h5py.SoftLink("/outside")
    shutil.copy(tmp_path / "z.h5", tmp_path / "other.h5")
    for name in ("z", "/z", "latest/z", "runs/relative", "hard", "runs//3/./z"):
        assert np.array_equal(load(f"{tmp_path / 'z.h5'}::{name}").to_numpy(), Z)
    for name in ("dangling", "round", "z/z"):
        assert f"expected one named '{name}'" in refused(f"{tmp_path / 'z.h5'}::{name}")
    for name in ("outside", "through"):
        assert "a link to another file" in refused(f"{tmp_path / 'z.h5'}::{name}")


def test_a_zarr_array_behind_a_thousand_folders(tmp_path):
    group = zarr.open_group(tmp_path / "z.zarr", mode="w")
    group.create_array("model/z", data=Z, chunks=(16, 4))
    for i in range(1100):
        (tmp_path / f"z.zarr/a/{i}").mkdir(parents=True)
    made(tmp_path / "outside.zarr", "v3")
    (tmp_path / "z.zarr/link").symlink_to(tmp_path / "outside.zarr")
    assert np.array_equal(load(f"{tmp_path / 'z.zarr'}::model/z").to_numpy(), Z)
    assert np.array_equal(load(f"{tmp_path / 'z.zarr'}::/model/z/").to_numpy(), Z)
    assert "more than 1000 folders; expected FILE::name" in refused(tmp_path / "z.zarr")
    for name in ("model/y", "../outside.zarr", "link", "model"):
        assert f"expected one named '{name}'" in refused(f"{tmp_path / 'z.zarr'}::{name}")
