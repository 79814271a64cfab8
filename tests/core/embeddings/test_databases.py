"""Vectors of FAISS, Lance and SQLite, written by these libraries."""

import contextlib
import sqlite3

import numpy as np
import pytest

from visreg_core.embeddings import EmbeddingsError
from visreg_core.report._files import open_embeddings

X = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)


def read(spec):
    return np.concatenate(list(open_embeddings(str(spec)).blocks(7)))


def database(path, rows, kind="BLOB"):
    with sqlite3.connect(path) as made:
        made.execute(f'CREATE TABLE "my ""items" (id INTEGER PRIMARY KEY, text TEXT, v {kind})')
        # Written backwards: the order is that of the rows' numbers.
        for i in reversed(range(len(rows))):
            made.execute('INSERT INTO "my ""items" VALUES (?, ?, ?)', (7 * i, "a", rows[i]))
    made.close()
    return path


@pytest.mark.parametrize("suffix", ["sqlite", "db"])
def test_sqlite(tmp_path, suffix):
    path = database(tmp_path / f"x?y.{suffix}", [x.astype("<f4").tobytes() for x in X])
    assert np.array_equal(read(path), X)
    assert np.array_equal(read(f'{path}::my "items.v'), X)
    assert "bytes of" in open_embeddings(str(path)).notes[0]


@pytest.mark.parametrize(
    ("rows", "kind", "found"),
    [
        ([b"12345678", b"1234"], "BLOB", "values of 4 to 8 bytes"),
        ([b"1234", None], "BLOB", "1 missing vectors"),
        ([b"123", b"123"], "BLOB", "values of 3 to 3 bytes"),
        (["a", "b"], "TEXT", "no"),
        ([], "BLOB", "no rows"),
    ],
)
def test_sqlite_of_something_else(tmp_path, rows, kind, found):
    path = database(tmp_path / "x.sqlite", rows, kind)
    with pytest.raises(EmbeddingsError, match=found) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_tables_of_sqlite_vec(tmp_path):
    vec = pytest.importorskip("sqlite_vec")
    path = tmp_path / "x.db"
    with contextlib.closing(sqlite3.connect(path)) as made:
        if not hasattr(made, "enable_load_extension"):
            pytest.skip("this Python's sqlite3 loads no extensions")
        made.enable_load_extension(True)
        vec.load(made)
        made.execute("CREATE VIRTUAL TABLE items USING vec0(v FLOAT[6], b bit[8], +note text)")
        for i in reversed(range(len(X))):
            made.execute(
                "INSERT INTO items(rowid, v, b, note) VALUES (?, ?, vec_bit(?), 'a')",
                (7 * i + 1, X[i], b"1"),
            )
        made.commit()
    assert np.array_equal(read(path), X)
    assert np.array_equal(read(f"{path}::items.v"), X)


def test_sqlite_that_is_none(tmp_path):
    path = tmp_path / "x.sqlite"
    path.write_bytes(b"no database" * 100)
    with pytest.raises(EmbeddingsError, match="not a database"):
        open_embeddings(str(path))


def test_faiss(tmp_path):
    faiss = pytest.importorskip("faiss")
    flat = faiss.IndexFlatIP(6)
    flat.add(X)
    faiss.write_index(flat, str(tmp_path / "x.faiss"))
    assert np.array_equal(read(tmp_path / "x.faiss"), X)
    named = faiss.IndexIDMap(faiss.IndexFlatL2(6))
    named.add_with_ids(X, 7 * np.arange(50))
    faiss.write_index(named, str(tmp_path / "named.faiss"))
    found = open_embeddings(str(tmp_path / "named.faiss"))
    assert np.array_equal(found.ids, 7 * np.arange(50)) and found.shape == X.shape
    coarse = faiss.index_factory(6, "SQ8")
    coarse.train(X), coarse.add(X)
    faiss.write_index(coarse, str(tmp_path / "coarse.faiss"))
    with pytest.raises(EmbeddingsError, match="ScalarQuantizer; expected a flat index"):
        open_embeddings(str(tmp_path / "coarse.faiss"))
    (tmp_path / "bad.faiss").write_bytes(b"IxF2" + bytes(40))
    with pytest.raises(EmbeddingsError):
        open_embeddings(str(tmp_path / "bad.faiss"))


def test_lance(tmp_path):
    lance, arrow = pytest.importorskip("lance"), pytest.importorskip("pyarrow")
    vectors = arrow.FixedSizeListArray.from_arrays(arrow.array(X.ravel()), 6)
    table = arrow.table({"id": list(range(50)), "v": vectors})
    dataset = lance.write_dataset(table, str(tmp_path / "x.lance"), max_rows_per_file=20)
    assert np.array_equal(read(tmp_path / "x.lance"), X)
    assert np.array_equal(read(f"{tmp_path / 'x.lance'}::v"), X)
    dataset.delete("id < 4")
    assert np.array_equal(read(tmp_path / "x.lance"), X[4:])
