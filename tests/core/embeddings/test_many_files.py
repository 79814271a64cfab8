"""Many files as one input, and URLs: each gives the rows of one array, or one line."""

import io
import json
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import numpy as np
import pytest

from visreg_core import report
from visreg_core.embeddings import EmbeddingsError, _remote
from visreg_core.embeddings._many import in_order
from visreg_core.report._files import open_embeddings

X = np.random.default_rng(0).standard_normal((120, 5)).astype(np.float32)
PARTS = np.split(X, 12)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def npy(part, path):
    np.save(path.with_suffix(".npy"), part)


def parquet(part, path):
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame({"v": list(part)}).to_parquet(path.with_suffix(".parquet"))


def arrow(part, path):
    pa = pytest.importorskip("pyarrow")
    feather = pytest.importorskip("pyarrow.feather")
    table = pa.table({"v": pa.FixedSizeListArray.from_arrays(part.ravel(), 5)})
    feather.write_feather(table, str(path.with_suffix(".arrow")))


def safetensors(part, path):
    numpy = pytest.importorskip("safetensors.numpy")
    numpy.save_file({"z": part}, path.with_suffix(".safetensors"))


def tar(part, path, first=None):
    first = int(path.name.split("-")[1]) * 10 if first is None else first
    with tarfile.open(path.with_suffix(".tar"), "w") as archive:
        for i, row in enumerate(part, first):
            for kind, array in (("emb.npy", row), ("cls", b"3")):
                data = io.BytesIO()
                np.save(data, array) if kind == "emb.npy" else data.write(array)
                member = tarfile.TarInfo(f"a/{i:06d}.{kind}")
                member.size = data.tell()
                data.seek(0)
                archive.addfile(member, data)


@pytest.mark.parametrize("write", [npy, parquet, arrow, safetensors, tar])
def test_shards(folder, write):
    shards = folder / "shards"
    shards.mkdir()
    (shards / "README.md").write_text("not one of them")
    for i, part in enumerate(PARTS):
        write(part, shards / f"part-{i}")
    for spec in ("shards", "shards/part-*", "shards/part-[0-9]*"):
        stored = open_embeddings(spec)
        assert (stored.name, stored.shape, stored.dtype) == (spec, X.shape, X.dtype)
        assert np.array_equal(stored.to_numpy(), X)  # part-2 before part-10
        assert stored.notes[0].startswith("12 files, shards/part-0.")
    assert np.array_equal(open_embeddings("shards").select(np.arange(15, 40)).to_numpy(), X[15:40])


def test_an_index_of_safetensors(folder):
    numpy = pytest.importorskip("safetensors.numpy")
    weight_map = {}
    for i in range(len(PARTS)):
        file = f"model-{i % 3}.safetensors"
        weight_map[f"z.{i}"] = file
    for k in range(3):
        mine = {
            t: PARTS[int(t[2:])] for t, f in weight_map.items() if f == f"model-{k}.safetensors"
        }
        numpy.save_file(mine, f"model-{k}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for spec in ("model.safetensors.index.json", ".", "model.safetensors.index.json::z"):
        assert np.array_equal(open_embeddings(spec).to_numpy(), X), spec
    one = open_embeddings("model.safetensors.index.json::z.7")
    assert np.array_equal(one.to_numpy(), PARTS[7])
    for listed, message in (
        (
            {"a": "model-0.safetensors", "b": "model-0.safetensors"},
            "found tensors a, b; expected one",
        ),
        ({"z.0": "../elsewhere.safetensors"}, "a malformed index"),
        ([], "a malformed index"),
    ):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
        with pytest.raises(EmbeddingsError, match=message):
            open_embeddings("model.safetensors.index.json")


def test_ids_of_a_webdataset(folder):
    tar(X, folder / "z-0")
    stored = open_embeddings("z-0.tar")
    assert stored.ids[:2].tolist() == ["a/000000", "a/000001"]
    other = np.random.default_rng(1).permutation(120)
    tar(X[::-1], folder / "y-0", first=0)
    found = report.compare(["z-0.tar", "y-0.tar"], paired=True, n_slices=4)
    assert found.by_ids
    assert len(other) == found.reports[0].shape[0]


def test_order():
    names = ["a10", "a2", "a1", "b", "a2b10", "a2b9"]
    assert in_order(names) == ["a1", "a2", "a2b9", "a2b10", "a10", "b"]


def test_what_is_not_one_input(folder):
    (folder / "empty").mkdir()
    (folder / "mixed").mkdir()
    np.save("mixed/a.npy", X)
    (folder / "mixed" / "b.csv").write_text("1.5,2.5\n")
    (folder / "wide").mkdir()
    np.save("wide/a.npy", X)
    np.save("wide/b.npy", X[:, :3])
    tar(X, folder / "odd-0")
    with tarfile.open("odd-0.tar", "a") as archive:
        data = io.BytesIO()
        np.save(data, X[0, :2])
        member = tarfile.TarInfo("z.emb.npy")
        member.size = data.tell()
        data.seek(0)
        archive.addfile(member, data)
    for spec, message in (
        ("nothing-*.npy", "no file of that pattern"),
        ("empty", "no file of embeddings"),
        ("mixed", r"found files .csv, .npy; expected a folder of shards"),
        ("wide", r"found 3 dimensions in wide/b.npy; expected 5, as in wide/a.npy"),
        ("odd-0.tar", "found other sizes of z; expected vectors of one length"),
    ):
        with pytest.raises(EmbeddingsError, match=message) as caught:
            open_embeddings(spec)
        assert "\n" not in str(caught.value)


def test_shards_of_two_dtypes(folder):
    np.save("a-1.npy", X)
    np.save("a-2.npy", X.astype(np.float16))
    stored = open_embeddings("a-*.npy")
    assert stored.dtype == np.float32
    assert "float16, float32 read as float32" in stored.notes
    assert np.array_equal(stored.to_numpy()[120:], X.astype(np.float16))


# --- columns --------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.* read as float32 numbers")
def test_columns_of_bytes_and_views(folder):
    pa = pytest.importorskip("pyarrow")
    parquet_ = pytest.importorskip("pyarrow.parquet")
    ipc = pytest.importorskip("pyarrow.ipc")
    half = X.astype(np.float16)
    offsets = pa.array(np.arange(0, 600, 5), pa.int32())
    sizes = pa.array(np.full(120, 5), pa.int32())
    columns = {
        "bytes": pa.array([r.tobytes() for r in X]),
        "fixed": pa.array([r.tobytes() for r in X], pa.binary(20)),
        "half": pa.FixedSizeListArray.from_arrays(pa.array(half.ravel()), 5),
        "view": pa.ListViewArray.from_arrays(offsets, sizes, pa.array(half.ravel())),
    }
    table = pa.table(columns)
    parquet_.write_table(table.drop(["view"]), "t.parquet")
    with ipc.new_file("t.arrow", table.schema) as file:
        file.write_table(table)
    for file, names in (("t.parquet", list(columns)[:3]), ("t.arrow", list(columns))):
        for name in names:
            expected = half if name in ("half", "view") else X
            stored = open_embeddings(f"{file}::{name}")
            assert stored.dtype == expected.dtype
            assert np.array_equal(stored.to_numpy(), expected)
    assert "bytes of bytes read as float32" in open_embeddings("t.parquet::bytes").notes[0]
    odd = pa.table({"b": [b"12345678", b"1234"], "c": [b"123", b"123"], "d": [b"1234", None]})
    parquet_.write_table(odd, "odd.parquet")
    for name, message in (
        ("b", "found values of 4 to 8 bytes; expected 4 bytes for each dimension|values of 8 to 8"),
        ("c", "found values of 3 to 3 bytes"),
        ("d", "1 missing vectors|values"),
    ):
        with pytest.raises(EmbeddingsError, match=message):
            open_embeddings(f"odd.parquet::{name}").to_numpy()


# --- URLs -----------------------------------------------------------------------------------------


class Server(BaseHTTPRequestHandler):
    """Serves `files` by ranges; breaks off the first `breaks` answers in their middle."""

    files: ClassVar[dict[str, bytes]] = {}
    breaks = 0
    ranges = True
    asked: ClassVar[list[str]] = []

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        data = self.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        span = self.headers.get("Range") if self.ranges else None
        if span:
            first, last = span.removeprefix("bytes=").split("-")
            part = data[int(first) : int(last) + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        else:
            part = data
            self.send_response(200)
        if self.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if not body:
            return
        self.asked.append(span or "all")
        if Server.breaks > 0 and len(part) > 200:
            Server.breaks -= 1
            self.wfile.write(part[: len(part) // 2])
            self.wfile.flush()
            self.connection.close()
            return
        self.wfile.write(part)

    def log_message(self, *_):
        pass


@pytest.fixture
def served(monkeypatch):
    pytest.importorskip("fsspec")
    pytest.importorskip("aiohttp")
    data = io.BytesIO()
    np.save(data, X)
    monkeypatch.setattr(_remote, "_RANGE", 1000)
    monkeypatch.setattr(_remote, "_PAUSE", 0.0)
    monkeypatch.setattr(Server, "files", {"/z.npy": data.getvalue()})
    monkeypatch.setattr(Server, "asked", [])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("breaks", [0, 2])
def test_http(served, monkeypatch, ranges, breaks):
    monkeypatch.setattr(Server, "breaks", breaks)
    monkeypatch.setattr(Server, "ranges", ranges)
    stored = open_embeddings(f"{served}/z.npy")
    assert stored.name == f"{served}/z.npy"
    assert np.array_equal(stored.to_numpy(), X)
    assert Server.breaks == 0
    assert any("fetched" in n for n in stored.notes)
    if ranges:  # each byte once, but for the answers that broke off
        assert len([a for a in Server.asked if a != "all"]) == 3 + breaks


def test_http_that_is_not_there(served, monkeypatch):
    with pytest.raises(EmbeddingsError, match=r"/no.npy: found no such file") as caught:
        open_embeddings(f"{served}/no.npy")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(Server, "breaks", 10**6)
    with pytest.raises(EmbeddingsError, match="at 5 tries; expected a connection that lasts"):
        open_embeddings(f"{served}/z.npy")


def test_memory():
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    for i, part in enumerate(PARTS):
        data = io.BytesIO()
        np.save(data, part)
        system.pipe_file(f"/bucket/part-{i}.npy", data.getvalue())
    one = open_embeddings("memory://bucket/part-3.npy")
    assert np.array_equal(one.to_numpy(), PARTS[3])
    every = open_embeddings("memory://bucket/part-*.npy")
    assert np.array_equal(every.to_numpy(), X)
    with pytest.raises(EmbeddingsError, match="memory://bucket/none-"):
        open_embeddings("memory://bucket/none-*.npy")
    with pytest.raises(EmbeddingsError, match="expected"):
        open_embeddings("nosuchprotocol://bucket/x.npy")
    system.pipe_file("/bucket/broken.npy", b"\x93NUMPY")
    with pytest.raises(EmbeddingsError, match=r"^memory://bucket/broken.npy: found"):
        open_embeddings("memory://bucket/broken.npy")
