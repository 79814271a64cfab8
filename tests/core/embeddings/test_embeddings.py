"""Readers of saved embeddings: what is read, and what is refused in one line."""

import json
import os
import pickle
import struct
import warnings
import zipfile

import numpy as np
import pytest

from tests.core.embeddings.files import SHAPE, WRITERS, values
from visreg_core.embeddings import FORMATS, EmbeddingsError, _sampling, load
from visreg_core.optional import MissingExtraError

FILES = {
    "float32.npy": "float32",
    "float16.npy": "float16",
    "bfloat16.npy": "bfloat16",
    "fortran.npy": "float32",
    "bigendian.npy": "float64",
    "stored.npz": "float32",
    "deflated.npz": "float32",
    "fortran.npz": "float32",
    "float32.safetensors": "float32",
    "bfloat16.safetensors": "bfloat16",
    "tensor.pt": "float32",
    "nested.pt": "bfloat16",
    "strided.pth": "float16",
    "fixed.parquet": "float32",
    "tensors.parquet": "float32",
    "lists.pq": "float64",
    "columns.parquet": "float32",
    "compressed.feather": "float32",
    "plain.feather": "float32",
    "stream.arrow": "float32",
    "lists.arrow": "float16",
    "views.arrow": "float32",
    "plain.h5": "float32",
    "chunked.hdf5": "float32",
    "v2.zarr": "float32",
    "v3.zarr": "float32",
    "sharded.zarr": "float32",
    "plain.csv": "float64",
    "named.csv": "float64",
}
MAPPED = {
    "float32.npy", "float16.npy", "bfloat16.npy", "fortran.npy", "stored.npz",
    "float32.safetensors", "bfloat16.safetensors", "tensor.pt",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("embeddings")
    for write in WRITERS.values():
        write(made)
    return made


def test_every_written_file_is_tested(folder):
    assert {p.name for p in folder.iterdir()} == set(FILES)
    assert {p.suffix for p in folder.iterdir()} == set(FORMATS)


@pytest.mark.parametrize(("file", "dtype"), FILES.items())
def test_reads_what_was_written(folder, file, dtype):
    z = load(folder / file)
    expected = values().astype(z.dtype)
    assert z.shape == SHAPE
    assert z.dtype.name == dtype
    assert z.dtype.isnative
    read = z.to_numpy()
    assert read.dtype == z.dtype
    assert np.array_equal(read, expected)


@pytest.mark.parametrize("file", FILES)
def test_blocks_have_the_size_asked_for(folder, file):
    z = load(folder / file)
    blocks = list(z.blocks(7))
    assert [len(b) for b in blocks] == [7] * 5 + [5]
    assert np.array_equal(np.concatenate(blocks), z.to_numpy())
    rows = np.array([0, 3, 4, 17, 38, 39])
    chosen = z.select(rows)
    assert chosen.shape == (6, SHAPE[1])
    assert [len(b) for b in chosen.blocks(4)] == [4, 2]
    assert np.array_equal(chosen.to_numpy(), z.to_numpy()[rows])
    assert np.array_equal(chosen.select(np.array([1, 5])).to_numpy(), z.to_numpy()[[3, 39]])


@pytest.mark.parametrize("file", sorted(MAPPED))
def test_mapped_blocks_are_views(folder, file):
    z = load(folder / file)
    a, b = next(iter(z.blocks(10))), next(iter(z.blocks(20)))
    assert np.shares_memory(a, b)


def test_nothing_is_imported_for_numpy_files(folder):
    import subprocess
    import sys

    program = (
        "import sys; from visreg_core.embeddings import load\n"
        f"load({str(folder / 'float32.npy')!r}).to_numpy()\n"
        f"load({str(folder / 'plain.csv')!r}).to_numpy()\n"
        "print([m for m in ('torch', 'jax', 'h5py', 'zarr', 'pyarrow', 'ml_dtypes', 'safetensors',"
        " 'scipy', 'matplotlib') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True
    )
    assert out.stdout.strip() == "[]"


# --- one array of several -------------------------------------------------------------------------


@pytest.fixture
def several(tmp_path):
    z = values()
    np.savez(tmp_path / "several.npz", z=z, labels=np.arange(40))
    return tmp_path / "several.npz"


def test_a_name_picks_one_array(several):
    assert np.array_equal(load(f"{several}::z").to_numpy(), values())


def test_without_a_name_the_arrays_are_listed(several):
    with pytest.raises(EmbeddingsError, match=r"found 2 arrays \(z, labels\); expected one array"):
        load(several)
    with pytest.raises(EmbeddingsError, match="found arrays z, labels; expected one named 'y'"):
        load(f"{several}::y")
    with pytest.raises(EmbeddingsError, match="found dtype int64; expected float16, bfloat16"):
        load(f"{several}::labels")


@pytest.mark.parametrize(
    "spec",
    [
        "plain.h5::group/z",
        "plain.h5::/group/z",
        "sharded.zarr::group/z",
        "nested.pt::model/z",
        "fixed.parquet::z",
        "float32.safetensors::z",
    ],
)
def test_names_of_every_store(folder, spec):
    assert load(folder / spec).shape == SHAPE


@pytest.mark.parametrize("file", ["float32.npy", "plain.csv", "tensor.pt"])
def test_a_name_where_there_is_one_array(folder, file):
    with pytest.raises(EmbeddingsError, match="found ::z; expected no name"):
        load(f"{folder / file}::z")


def test_a_path_may_have_colons(tmp_path):
    np.save(tmp_path / "a::b.npy", values())
    assert load(tmp_path / "a::b.npy").shape == SHAPE


# --- wrong input ----------------------------------------------------------------------------------


def refused(path):
    """The one line that says what is wrong."""
    with pytest.raises(EmbeddingsError) as caught:
        for _ in load(path).blocks():
            pass
    line = str(caught.value)
    assert line.isprintable()
    assert line.startswith(str(path))
    assert "found " in line
    assert "expected " in line
    return line


@pytest.mark.parametrize("file", [f for f in FILES if not f.endswith(".zarr")])
def test_truncated(folder, tmp_path, file):
    data = (folder / file).read_bytes()
    # The end of a CSV file may be cut without harm where a number still is one.
    for size in (0, 1, 7, len(data) // 3, len(data) - 200):
        (tmp_path / file).write_bytes(data[:size])
        if file == "stream.arrow" and size == len(data) - 200:
            continue  # a stream of batches may end after any of them
        if not (file.endswith(".csv") and size >= len(data) // 3):
            refused(tmp_path / file)


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros(5), r"an array of shape (5,); expected shape (N, D)"),
        (np.zeros((2, 3, 4)), "an array of shape (2, 3, 4)"),
        (np.zeros((1, 4)), "shape (1, 4); expected (N, D) with N >= 2 rows"),
        (np.zeros((0, 4)), "shape (0, 4)"),
        (np.zeros((4, 0)), "shape (4, 0)"),
        (np.zeros((4, 2), int), "dtype int64; expected float16, bfloat16, float32, float64"),
        (np.zeros((4, 2), complex), "dtype complex128"),
        (np.zeros((4, 2), bool), "dtype '|b1'"),
        (np.zeros((4, 2), "U3"), "dtype '<U3'"),
        (np.zeros((4, 2), [("a", "f4")]), "a structured dtype"),
    ],
)
def test_wrong_arrays(tmp_path, array, found):
    np.save(tmp_path / "z.npy", array)
    line = refused(tmp_path / "z.npy")
    assert found.split(";")[0] in line or "dtype" in line
    np.savez_compressed(tmp_path / "z.npz", z=array)
    refused(tmp_path / "z.npz")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1,2\n3,4\n5,6,7\n", "row 2 of 3 fields, '5,6,7'; expected 2 numbers in each row"),
        ("a,b\n1,2\n3,x\n", "row 1 of 2 fields, '3,x'"),
        ("1;2\n3;4\n5;6\n", "row 0 of 1 fields, '3;4'"),
        ("1,x\n3,4\n5,6\n", "a first line of names and numbers, '1,x'"),
        (",x,1\n0,3,4\n1,5,6\n", "a first line of names and numbers, ',x,1'"),
        ("", "no rows"),
        ("\n \n", "no rows"),
        ("a,b\n", "no rows"),
        ("1,2\n", "shape (1, 2)"),
        ("1,2\n\n3,4\xff\n", "row 1 of 2 fields"),
    ],
)
def test_wrong_csv(tmp_path, text, found):
    (tmp_path / "z.csv").write_text(text, encoding="utf-8")
    assert found in refused(tmp_path / "z.csv")


def test_csv_details(tmp_path):
    (tmp_path / "z.csv").write_bytes(b"\xef\xbb\xbfx0,x1\r\n1, 2\r\n\r\n-3e2,nan\r\n")
    z = load(tmp_path / "z.csv").to_numpy()
    assert np.array_equal(z, [[1, 2], [-300, np.nan]], equal_nan=True)
    (tmp_path / "pandas.csv").write_text("0,1\n5,6\n7,8\n")
    assert np.array_equal(load(tmp_path / "pandas.csv").to_numpy(), [[5, 6], [7, 8]])


def test_no_such_file(tmp_path):
    assert "no such file" in refused(tmp_path / "z.npy")
    assert "File name too long" in refused(tmp_path / ("z" * 300 + ".npy"))
    assert "suffix '.txt'" in refused(tmp_path / "z.txt")


def test_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "z.npy")
    assert "no regular file" in refused(tmp_path / "z.npy")  # and does not wait for a writer
    (tmp_path / "folder.csv").mkdir()
    assert "no regular file" in refused(tmp_path / "folder.csv")
    (tmp_path / "z.zarr").write_bytes(b"")
    assert "a Zarr store" in refused(tmp_path / "z.zarr")


def test_names_are_escaped(tmp_path):
    path = tmp_path / "a\nb\x1b[31m.npy"
    path.write_bytes(b"")
    with pytest.raises(EmbeddingsError) as caught:
        load(path)
    assert str(caught.value).isprintable()
    assert r"a\nb\x1b[31m.npy" in str(caught.value)


def test_lists_of_different_lengths(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table({"z": [[1.0, 2.0], [3.0]]}), tmp_path / "z.parquet")
    assert "lists of 1 to 2 numbers" in refused(tmp_path / "z.parquet")
    parquet.write_table(pa.table({"z": [[1.0, 2.0], None]}), tmp_path / "z.parquet")
    assert "1 missing lists" in refused(tmp_path / "z.parquet")
    parquet.write_table(pa.table({"z": [1.0, 2.0], "t": [1, 2]}), tmp_path / "z.parquet")
    assert "columns z (double), t (int64)" in refused(tmp_path / "z.parquet")
    parquet.write_table(pa.table({"z": [[1.0, None], [3.0, 4.0]]}), tmp_path / "z.parquet")
    assert np.isnan(load(tmp_path / "z.parquet").to_numpy()[0, 1])


def test_a_missing_library_is_named(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r"needs h5py: pip install 'visreg-core\[io\]'"):
        load(folder / "plain.h5")


# --- what other programs write, and what only looks sound -----------------------------------------


@pytest.mark.parametrize(
    "shape", ["(60L, 4L)", "(60L, 4)", "(60 , 4L ,)", "(60L,4L)", "(60L , 4L )", "(60, 4)"]
)
@pytest.mark.parametrize("version", [b"\x01\x00", b"\x02\x00"])
def test_headers_of_python_2(tmp_path, shape, version):
    z = np.arange(240, dtype="<f4").reshape(60, 4)
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 13) % 64) + b"\n"
    size = len(header).to_bytes(2 if version[0] == 1 else 4, "little")
    content = b"\x93NUMPY" + version + size + header + z.tobytes()
    (tmp_path / "z.npy").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "z.npz", "w") as archive:
        archive.writestr("z.npy", content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy warns of such headers
        assert np.array_equal(np.load(tmp_path / "z.npy"), z)  # the oracle
    assert np.array_equal(load(tmp_path / "z.npy").to_numpy(), z)
    assert np.array_equal(load(tmp_path / "z.npz").to_numpy(), z)


@pytest.mark.parametrize(
    "header", [b"(60LL, 4)", b"{'descr': ", b"(" * 500, b"f()", b"\x00", b"1L"]
)
def test_malformed_headers_are_quoted(tmp_path, header):
    size = struct.pack("<H", len(header))
    (tmp_path / "z.npy").write_bytes(b"\x93NUMPY\x01\x00" + size + header)
    line = refused(tmp_path / "z.npy")
    assert "header" in line
    assert "Error" not in line


def test_errors_of_code_are_no_words_for_a_reader(tmp_path):
    header = json.dumps({"z": {"dtype": "F32", "data_offsets": [0, 8]}}).encode()
    (tmp_path / "z.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    assert "a malformed description (KeyError: 'shape')" in refused(tmp_path / "z.safetensors")


def test_two_arrays_of_one_name(tmp_path):
    import torch

    a, b = torch.zeros(3, 2), torch.ones(3, 2)
    trees = (
        ({"x/z": a, "x": {"z": b}}, "x/z"),
        ({1: a, "1": b}, "1"),
        ({"x": [a], "x/0": b}, "x/0"),
    )
    for tree, name in trees:
        torch.save({**tree, "other": a}, tmp_path / "z.pt")
        found = f"found 2 arrays named '{name}'; expected one array of that name"
        assert found in refused(f"{tmp_path / 'z.pt'}::{name}")
        assert load(f"{tmp_path / 'z.pt'}::other").shape == (3, 2)
        assert "found 3 arrays" in refused(tmp_path / "z.pt")
    with zipfile.ZipFile(tmp_path / "z.npz", "w") as archive:
        archive.writestr("z.npy", npy((2, 1), data=bytes(8)))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("z.npy", npy((3, 1), data=bytes(12)))
    assert "2 arrays named 'z'" in refused(f"{tmp_path / 'z.npz'}::z")
    assert "2 arrays (z, z)" in refused(tmp_path / "z.npz")
    torch.save({"z": a}, tmp_path / "twice.pt")
    with zipfile.ZipFile(tmp_path / "twice.pt", "a") as archive:
        (member,) = [n for n in archive.namelist() if n.endswith("data/0")]
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr(member, bytes(24))
    assert "two members of one name" in refused(tmp_path / "twice.pt")
    entry = '"z": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]}'
    header = f"{{{entry}, {entry}}}".encode()
    (tmp_path / "z.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    assert "two entries of one name" in refused(tmp_path / "z.safetensors")


def test_tensors_whose_signs_are_still_to_be_turned(tmp_path):
    import torch

    z = torch.from_numpy(values())
    tensors = {
        "imaginary": torch.complex(z, -z).conj().imag,
        "single": torch._neg_view(-z),
        "bfloat16": torch._neg_view(-z.bfloat16()),
        "half": torch._neg_view(-z.half())[::2],
    }
    assert all(t.is_neg() for t in tensors.values())
    torch.save(tensors, tmp_path / "z.pt")
    for name, tensor in tensors.items():
        read = load(f"{tmp_path / 'z.pt'}::{name}").to_numpy()
        assert np.array_equal(read.astype(np.float32), tensor.resolve_neg().float().numpy())
    torch.save(torch._neg_view(torch.zeros(1)).expand(10**9, 10**6), tmp_path / "wide.pt")
    assert "by repeating values" in refused(tmp_path / "wide.pt")
    torch.save(torch.complex(z, z).conj(), tmp_path / "complex.pt")
    assert "dtype complex64" in refused(tmp_path / "complex.pt")


# --- hostile input --------------------------------------------------------------------------------


class Trap:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def npy(shape, descr="<f4", data=b""):
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def test_nothing_is_unpickled(tmp_path):
    import torch

    trap = Trap(tmp_path / "sprung")
    objects = np.empty((2, 2), object)
    objects[:] = trap
    np.save(tmp_path / "objects.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "objects.npz", objects, allow_pickle=True)
    (tmp_path / "bare.npy").write_bytes(pickle.dumps(trap))
    torch.save({"z": torch.zeros(3, 3), "trap": trap}, tmp_path / "trap.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(trap))
    for name in ("objects.npy", "objects.npz", "bare.npy", "trap.pt", "bare.pt"):
        refused(tmp_path / name)
    assert "io open" in refused(tmp_path / "trap.pt")
    assert not (tmp_path / "sprung").exists()


def test_the_pickle_codec_of_zarr_is_refused(tmp_path, folder):
    import shutil

    shutil.copytree(folder / "v2.zarr", tmp_path / "z.zarr")
    about = json.loads((tmp_path / "z.zarr/.zarray").read_text())
    about["filters"] = [{"id": "pickle", "protocol": 5}]
    (tmp_path / "z.zarr/.zarray").write_text(json.dumps(about))
    assert "codec pickle" in refused(tmp_path / "z.zarr")
    about["filters"], about["dtype"] = None, "|O"
    (tmp_path / "z.zarr/.zarray").write_text(json.dumps(about))
    assert "Python objects" in refused(tmp_path / "z.zarr")


def test_declared_sizes_are_not_believed(tmp_path, folder):
    import h5py
    import torch

    (tmp_path / "z.npy").write_bytes(npy((10**15, 10**6)))
    assert "bytes for float32 of shape (1000000000000000, 1000000)" in refused(tmp_path / "z.npy")
    with zipfile.ZipFile(tmp_path / "z.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("z.npy", npy((10**9, 10**3), data=bytes(100)))
    refused(tmp_path / "z.npz")
    header = json.dumps({"z": {"dtype": "F32", "shape": [2**40, 2], "data_offsets": [0, 2**43]}})
    data = struct.pack("<Q", len(header)) + header.encode()
    (tmp_path / "z.safetensors").write_bytes(data)
    refused(tmp_path / "z.safetensors")
    (tmp_path / "y.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    refused(tmp_path / "y.safetensors")
    torch.save(torch.zeros(1).expand(10**9, 10**6), tmp_path / "z.pt")
    assert "by repeating values" in refused(tmp_path / "z.pt")
    with h5py.File(tmp_path / "z.h5", "w") as file:
        file.create_dataset("z", shape=(10**12, 64), chunks=(1024, 64), dtype="f4")
    assert "found 0 chunks" in refused(tmp_path / "z.h5")
    with h5py.File(tmp_path / "y.h5", "w") as file:
        file.create_dataset("z", shape=(10**12, 64), dtype="f4")
    assert "found 0 bytes" in refused(tmp_path / "y.h5")


def test_a_chunk_larger_than_its_file_can_hold(tmp_path):
    import zarr

    zarr.create_array(
        tmp_path / "z.zarr",
        data=np.zeros((4, 2), np.float32),
        chunks=(4, 2),
        config={"write_empty_chunks": True},
    )
    about = json.loads((tmp_path / "z.zarr/zarr.json").read_text())
    about["shape"] = about["chunk_grid"]["configuration"]["chunk_shape"] = [10**9, 2]
    (tmp_path / "z.zarr/zarr.json").write_text(json.dumps(about))
    assert "chunks of 8000000000 bytes" in refused(tmp_path / "z.zarr")


def test_values_in_other_files_are_refused(tmp_path):
    import h5py

    secret = tmp_path / "secret"
    secret.write_bytes(values().tobytes())
    with h5py.File(tmp_path / "z.h5", "w") as file:
        file.create_dataset("z", SHAPE, "f4", external=[(str(secret), 0, secret.stat().st_size)])
    assert "values kept in another file" in refused(tmp_path / "z.h5")
    with h5py.File(tmp_path / "y.h5", "w") as file:
        file["z"] = h5py.ExternalLink(str(tmp_path / "z.h5"), "z")
    assert "no array of embeddings" in refused(tmp_path / "y.h5")


def test_missing_chunks_are_refused(tmp_path, folder):
    import shutil

    for version in ("v2", "v3", "sharded"):
        shutil.copytree(folder / f"{version}.zarr", tmp_path / f"{version}.zarr")
        chunks = [
            p for p in (tmp_path / f"{version}.zarr").rglob("*")
            if p.is_file() and not p.name.startswith((".z", "zarr.json"))
        ]  # fmt: skip
        chunks[0].unlink()
        assert f"found {len(chunks) - 1} chunks; expected all {len(chunks)} chunks" in refused(
            tmp_path / f"{version}.zarr"
        )


# --- sampling -------------------------------------------------------------------------------------


def test_draws_are_without_replacement_and_reproducible():
    rows = _sampling.draw(1000, 300, seed=5)
    assert np.all(np.diff(rows) > 0)
    assert rows[0] >= 0
    assert rows[-1] < 1000
    assert np.array_equal(rows, _sampling.draw(1000, 300, seed=5))
    assert not np.array_equal(rows, _sampling.draw(1000, 300, seed=6))
    # A smaller draw keeps rows of the larger one: both take the smallest words.
    assert set(_sampling.draw(1000, 30, seed=5)) < set(rows)


def test_draws_do_not_depend_on_how_rows_are_stepped_through(monkeypatch):
    rows = _sampling.draw(1000, 300, seed=5)
    monkeypatch.setattr(_sampling, "_STEP", 64)
    assert np.array_equal(rows, _sampling.draw(1000, 300, seed=5))


def test_draws_are_uniform():
    counts = sum(np.bincount(_sampling.draw(50, 10, seed=s), minlength=50) for s in range(2000))
    # 2000 draws of 10 out of 50: mean 400, standard deviation sqrt(2000 · 0.2 · 0.8) = 17.9
    assert abs(counts - 400).max() < 5 * 17.9


def test_draws_use_words_of_their_own(monkeypatch):
    from visreg_core import slices
    from visreg_core._xp import threefry

    seen = {}

    def spy(key0, key1, counter0, counter1):
        seen["counter1"] = np.unique(np.asarray(counter1))
        return threefry.threefry2x32(key0, key1, counter0, counter1)

    monkeypatch.setattr(_sampling, "threefry2x32", spy)
    _sampling.draw(100, 10, seed=0)
    assert (seen["counter1"] >> 28).tolist() == [slices.DOMAIN_ROWS]
    assert slices.DOMAIN_ROWS != slices.DOMAIN_SLICES


def test_sample_of_a_file(folder):
    z = load(folder / "plain.csv")
    assert z.sample(1000) is z
    assert np.array_equal(
        z.sample(9, seed=3).to_numpy(), z.to_numpy()[_sampling.draw(SHAPE[0], 9, 3)]
    )
    with pytest.raises(ValueError, match="count"):
        z.sample(1)
