"""Small embedding files of every format, and mutations of them; run as a program, a fuzzer.

    python -m tests.core.embeddings.files FORMAT COUNT [SEED]

reads COUNT mutated files in a process of limited memory. Each must either read, or raise an
EmbeddingsError of one line: anything else is printed, and so is the last file of a crash or hang.
"""

import random
import resource
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import numpy as np

SHAPE = (40, 6)


def values():
    return np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)


def write_npy(folder):
    import ml_dtypes

    z = values()
    np.save(folder / "float32.npy", z)
    np.save(folder / "float16.npy", z.astype(np.float16))
    np.save(folder / "bfloat16.npy", z.astype(ml_dtypes.bfloat16))
    np.save(folder / "fortran.npy", np.asfortranarray(z))
    np.save(folder / "bigendian.npy", z.astype(">f8"))


def write_npz(folder):
    z = values()
    np.savez(folder / "stored.npz", z=z)
    np.savez_compressed(folder / "deflated.npz", z=z)
    np.savez_compressed(folder / "fortran.npz", z=np.asfortranarray(z))


def write_safetensors(folder):
    import torch
    from safetensors.torch import save_file

    z = torch.from_numpy(values())
    save_file({"z": z}, folder / "float32.safetensors")
    save_file({"z": z.bfloat16()}, folder / "bfloat16.safetensors", metadata={"a": "b"})


def write_pt(folder):
    import torch

    z = torch.from_numpy(values())
    torch.save(z, folder / "tensor.pt")
    torch.save({"model": {"z": z.bfloat16()}, "epoch": 3}, folder / "nested.pt")
    torch.save([z.T.contiguous().T.half()], folder / "strided.pth")


def write_parquet(folder):
    import pyarrow as pa
    from pyarrow import parquet

    z = values()
    lists = pa.FixedSizeListArray.from_arrays(z.ravel(), SHAPE[1])
    tensors = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), SHAPE[1:]), lists)
    ids = list(range(SHAPE[0]))
    parquet.write_table(pa.table({"id": ids, "z": lists}), folder / "fixed.parquet")
    parquet.write_table(pa.table({"z": tensors}), folder / "tensors.parquet")
    parquet.write_table(
        pa.table({"z": [list(row) for row in z.astype(float)]}),
        folder / "lists.pq",
        row_group_size=9,
    )
    parquet.write_table(_flat(z), folder / "columns.parquet", compression="gzip")


def write_arrow(folder):
    import pyarrow as pa
    from pyarrow import feather

    z = values()
    table = _flat(z)
    feather.write_feather(table, folder / "compressed.feather")
    feather.write_feather(table, folder / "plain.feather", compression="uncompressed", chunksize=9)
    with pa.OSFile(str(folder / "stream.arrow"), "wb") as sink:
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=7)
    lists = pa.table({"z": [list(row) for row in z.astype(np.float16)]})
    lists = lists.cast(pa.schema([("z", pa.list_(pa.float16()))]))
    feather.write_feather(lists, folder / "lists.arrow", compression="uncompressed")
    # Views of the rows from the last to the first, whose values lie in the opposite order.
    offsets = pa.array(range((SHAPE[0] - 1) * SHAPE[1], -1, -SHAPE[1]), pa.int32())
    sizes = pa.array([SHAPE[1]] * SHAPE[0], pa.int32())
    views = pa.ListViewArray.from_arrays(offsets, sizes, pa.array(z[::-1].ravel()))
    with pa.OSFile(str(folder / "views.arrow"), "wb") as sink:
        table = pa.table({"z": views})
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)


def _flat(z):
    import pyarrow as pa

    return pa.table({f"x{i}": z[:, i] for i in range(z.shape[1])})


def write_h5(folder):
    import h5py

    z = values()
    with h5py.File(folder / "plain.h5", "w") as file:
        file["group/z"] = z
    with h5py.File(folder / "chunked.hdf5", "w") as file:
        file.create_dataset("z", data=z, chunks=(16, 4), compression="gzip", shuffle=True)


def write_zarr(folder):
    import zarr

    z = values()
    for version in (2, 3):
        zarr.create_array(folder / f"v{version}.zarr", data=z, chunks=(16, 4), zarr_format=version)
    group = zarr.open_group(folder / "sharded.zarr", mode="w")
    group.create_array("group/z", data=z, chunks=(5, 3), shards=(10, 6))


def write_csv(folder):
    z = values()
    np.savetxt(folder / "plain.csv", z, delimiter=",")
    names = ",".join(f"x{i}" for i in range(SHAPE[1]))
    np.savetxt(folder / "named.csv", z, delimiter=",", header=names, comments="")


WRITERS = {
    "npy": write_npy,
    "npz": write_npz,
    "safetensors": write_safetensors,
    "pt": write_pt,
    "parquet": write_parquet,
    "arrow": write_arrow,
    "h5": write_h5,
    "zarr": write_zarr,
    "csv": write_csv,
}

_DIGITS = b"0123456789"
_EXTREMES = (
    b"\x00" * 8, b"\xff" * 8, b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80", b"\xff" * 7 + b"\x7f",
    b"9" * 12, b"-1", b"nan", b"inf", b"1e999", b"NaN", b"(", b"[" * 50, b"{" * 200, b",", b"\n",
    b"'",
)  # fmt: skip


def mutate(data, rng):
    """Bytes of a file with one to four accidents."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(data) + 1)
        if rng.random() < 0.4:  # headers are where the sizes are
            at = rng.choice(
                (min(at, rng.randrange(200)), max(0, len(data) - rng.randrange(1, 400)))
            )
        kind = rng.randrange(8)
        if kind == 0:
            del data[at:]
        elif kind == 1 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2 and at < len(data):
            data[at] = rng.randrange(256)
        elif kind == 3:
            new = rng.choice(_EXTREMES)
            data[at : at + len(new)] = new
        elif kind == 4:
            data[at:at] = rng.choice((rng.randbytes(rng.randrange(1, 9)), rng.choice(_EXTREMES)))
        elif kind == 5:
            del data[at : at + rng.randrange(1, 33)]
        elif kind == 6:
            source = rng.randrange(len(data) + 1)
            size = rng.randrange(1, 65)
            data[at : at + size] = data[source : source + size]
        else:  # another number where a number is written in text
            places = [i for i, c in enumerate(data[:4096]) if c in _DIGITS]
            if places:
                data[rng.choice(places)] = rng.choice(_DIGITS)
    return bytes(data)


def mutated(original, target, rng):
    """Write a mutation of the file, or of one file of the store, `original` at `target`."""
    if original.is_file():
        target.write_bytes(mutate(original.read_bytes(), rng))
        return
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(original, target)
    files = sorted(f for f in target.rglob("*") if f.is_file())
    about = [f for f in files if f.name.startswith((".z", "zarr.json"))]
    victim = rng.choice(rng.choice((files, about)))
    if rng.random() < 0.1:
        victim.unlink()
    else:
        victim.write_bytes(mutate(victim.read_bytes(), rng))


class Hang(BaseException):
    """Raised by the alarm; not an Exception, so that no reader can swallow it."""


def _alarm(signum, frame):
    raise Hang


def fuzz(kind, count, seed, keep):
    """Number of mutated files that read, were refused, and the complaints about the rest."""
    from visreg_core.embeddings import EmbeddingsError, load

    unpickled = []
    sys.addaudithook(
        lambda event, args: unpickled.append(args) if event == "pickle.find_class" else None
    )
    rng = random.Random(f"{kind} {seed}")
    read, refused, complaints = 0, 0, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "original").mkdir()
        WRITERS[kind](folder / "original")
        originals = sorted((folder / "original").iterdir())
        for original in originals:
            assert load(original).to_numpy().shape == SHAPE  # warm, and every original is good
        unpickled.clear()
        signal.signal(signal.SIGALRM, _alarm)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(count):
            original = rng.choice(originals)
            target = keep / f"{kind}-last{original.suffix}"
            mutated(original, target, rng)
            signal.alarm(20)
            try:
                embeddings = load(target)
                for block in embeddings.blocks(16):
                    np.isfinite(block)
                read += 1
            except EmbeddingsError as error:
                refused += 1
                if "\n" in str(error) or not str(error).isprintable() or len(str(error)) > 1500:
                    complaints.append(f"{number}: not one line: {error!r}")
            except (Exception, Hang) as error:
                complaints.append(f"{number} ({original.name}): {type(error).__name__}: {error}")
            signal.alarm(0)
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
            if grown > 300_000:
                complaints.append(
                    f"{number} ({original.name}): {grown // 1000} MB more than before"
                )
                peak += grown
            if unpickled:
                complaints.append(f"{number}: unpickled {unpickled}")
                unpickled.clear()
    return read, refused, complaints


def main(kind, count, seed="0"):
    limit = 12 << 30  # address space: libraries reserve much more than they use
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    keep = Path(tempfile.mkdtemp(prefix="fuzz-"))
    print(f"files in {keep}", file=sys.stderr, flush=True)
    read, refused, complaints = fuzz(kind, int(count), int(seed), keep)
    print(f"{kind}: {read} read, {refused} refused, {len(complaints)} complaints")
    print("\n".join(complaints[:20]))
    shutil.rmtree(keep)
    return bool(complaints)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
