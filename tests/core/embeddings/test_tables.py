"""Tables as pandas, polars, R and Arrow write them: an index is not a dimension, lists are rows."""

import csv

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import feather, parquet

from visreg_core.embeddings import EmbeddingsError, EmbeddingsWarning, load
from visreg_core.metrics import hierarchical_labels, rankme
from visreg_core.report._labels import load_labels

N, D = 40, 5


@pytest.fixture
def z():
    return np.random.default_rng(0).standard_normal((N, D))


INDICES = {
    "filtered": pd.Index(np.arange(N) * 3 + 7),
    "shuffled": pd.Index(np.random.default_rng(1).permutation(N)),
    "named": pd.Index(np.arange(N) * 2, name="item"),
    "floats": pd.Index(np.arange(N) / 8),
    "strings": pd.Index([f'a, "{i}"' for i in range(N)]),
    "dates": pd.date_range("2020-01-01", periods=N),
    "multi": pd.MultiIndex.from_product([range(4), range(10)]),
    "named multi": pd.MultiIndex.from_product([range(4), range(10)], names=["a", "b"]),
}
COLUMNS = {"names": [f"x{i}" for i in range(D)], "numbers": list(range(D))}


def read_with_note(path, note=r"left out the table's index \(.*\)$"):
    """The values, of a file whose index was left out and said so."""
    with pytest.warns(EmbeddingsWarning, match=note) as caught:
        read = load(path)
    assert len(caught) == 1
    assert str(caught[0].message) == f"{path}: {read.notes[0]}"
    assert "\n" not in read.notes[0]
    return read.to_numpy()


# --- CSV ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("index", INDICES)
def test_csv_of_a_frame_with_an_index(tmp_path, z, index, columns):
    frame = pd.DataFrame(z, INDICES[index], COLUMNS[columns])
    frame.to_csv(tmp_path / "z.csv")
    if "named" in index and columns == "names":  # then nothing tells it from a column
        with pytest.raises(EmbeddingsError, match=r"found integers in (item|a, b) beside columns"):
            load(tmp_path / "z.csv")
        return
    read = read_with_note(tmp_path / "z.csv")
    levels = frame.index.nlevels
    oracle = pd.read_csv(tmp_path / "z.csv", index_col=list(range(levels))).to_numpy()
    assert np.array_equal(read, z)
    assert np.array_equal(read, oracle)


def test_the_rank_is_that_of_the_dimensions(tmp_path, z):
    frame = pd.DataFrame(z, columns=COLUMNS["names"])
    frame.to_csv(tmp_path / "with.csv")
    frame.to_csv(tmp_path / "without.csv", index=False)
    with_index = rankme(read_with_note(tmp_path / "with.csv", r"\(column 1\)$"))
    assert with_index == rankme(load(tmp_path / "without.csv").to_numpy()) == rankme(z)


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda f, p: f.to_csv(p), id="plain"),
        pytest.param(lambda f, p: f.to_csv(p, header=False), id="no header"),
        pytest.param(lambda f, p: f.to_csv(p, quoting=csv.QUOTE_ALL), id="quoted"),
        pytest.param(lambda f, p: f.reset_index().to_csv(p, index=False), id="reset"),
        pytest.param(lambda f, p: f.to_csv(p, index_label="id"), id="counted, of any name"),
        pytest.param(lambda f, p: f.set_index(f.index + 1).to_csv(p, header=False), id="from 1"),
        pytest.param(
            lambda f, p: (f.to_csv(p), pd.read_csv(p).to_csv(p, index=False)), id="read and written"
        ),
        pytest.param(lambda f, p: (f.to_csv(p), pd.read_csv(p).to_csv(p)), id="twice"),
    ],
)
def test_csv_of_numbered_rows(tmp_path, z, write):
    write(pd.DataFrame(z, columns=COLUMNS["names"]), tmp_path / "z.csv")
    assert np.array_equal(read_with_note(tmp_path / "z.csv"), z)


def test_csv_of_r(tmp_path, z):
    """write.csv has an empty name above the row names, write.table none."""
    rows = [f'"{i + 1}",' + ",".join(map(repr, row.tolist())) for i, row in enumerate(z)]
    for names in (
        '"",' + ",".join(f'"V{i}"' for i in range(D)),
        ",".join(f'"V{i}"' for i in range(D)),
    ):
        (tmp_path / "z.csv").write_text("\n".join([names, *rows]))
        assert np.array_equal(read_with_note(tmp_path / "z.csv"), z)


def test_csv_without_an_index_says_nothing(tmp_path, z):
    z[:, 2] = 0  # a dead dimension, also as text of integers
    z[:, 3] = np.arange(N)  # a dimension that counts is one, written as fractions
    for columns in COLUMNS.values():
        frame = pd.DataFrame(z, columns=columns)
        frame.to_csv(tmp_path / "z.csv", index=False)
        assert np.array_equal(load(tmp_path / "z.csv").to_numpy(), z)
    frame[2] = 0
    frame.to_csv(tmp_path / "z.csv", index=False, header=False)
    assert np.array_equal(load(tmp_path / "z.csv").to_numpy(), z)


def test_integers_are_dimensions_where_all_are(tmp_path):
    z = np.random.default_rng(0).integers(-128, 128, (N, D))
    np.savetxt(tmp_path / "z.csv", z, "%d", delimiter=",")
    assert np.array_equal(load(tmp_path / "z.csv").to_numpy(), z)
    (tmp_path / "z.csv").write_text("".join(f"{i}\n" for i in range(N)))
    assert np.array_equal(load(tmp_path / "z.csv").to_numpy()[:, 0], np.arange(N))
    pd.DataFrame(z).to_csv(tmp_path / "z.csv", header=False)
    assert np.array_equal(read_with_note(tmp_path / "z.csv", r"\(column 1\)"), z)


@pytest.mark.parametrize("ids", [np.arange(N) * 2, [f"item {i}" for i in range(N)]])
def test_a_first_column_named_id_is_left_out(tmp_path, z, ids):
    frame = pd.DataFrame(z, columns=COLUMNS["names"])
    frame.insert(0, "id", ids)
    frame.to_csv(tmp_path / "z.csv", index=False)
    assert np.array_equal(read_with_note(tmp_path / "z.csv", r"index \(id\)"), z)


@pytest.mark.parametrize("place", [0, 2, D])
def test_a_column_of_ids_among_fractions_is_refused(tmp_path, z, place):
    frame = pd.DataFrame(z, columns=COLUMNS["names"])
    frame.insert(place, "item", np.arange(N) * 2)
    frame.to_csv(tmp_path / "z.csv", index=False)
    with pytest.raises(EmbeddingsError, match="found integers in item beside columns of fractions"):
        load(tmp_path / "z.csv")
    frame.insert(place, "class", "bee")
    frame.to_csv(tmp_path / "z.csv", index=False)
    with pytest.raises(EmbeddingsError, match="row 0 of 7 fields"):
        load(tmp_path / "z.csv").to_numpy()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a\n1.5,2.5,3.5\n4.5,5.5,6.5\n", "1 names above rows of 3 fields"),
        ("a,b,c,d\n1.5,2.5,3.5\n4.5,5.5,6.5\n", "4 names above rows of 3 fields"),
        (",a,b\n0,1.5,2.5\n1,1.5,2.5,3.5\n", "row 1 of 4 fields"),
        (",a,b\n0,1.5,2.5\n1,1.5\n", "row 1 of 2 fields"),
        (",a,b\n0,1.5,2.5\n1,x,2.5\n", "expected 2 numbers in each row beside its index"),
        (',a\n0,1.5\n"1,1.5\n2,2.5"\n', "row 1 of 1 fields"),
        (',a\n0,1.5\n1,"2.5\n2,3.5"\n', "row 1 of 2 fields"),
        ("5,0,1\n0.5,1.5,2.5,3.5\n", "row 1 of 4 fields"),
    ],
)
@pytest.mark.filterwarnings("ignore::visreg_core.embeddings.EmbeddingsWarning")
def test_wrong_tables(tmp_path, text, found):
    (tmp_path / "z.csv").write_text(text)
    with pytest.raises(EmbeddingsError) as caught:
        load(tmp_path / "z.csv").to_numpy()
    assert found in str(caught.value)


def test_numbers_above_no_columns_are_a_row(tmp_path):
    (tmp_path / "z.csv").write_text("5,0,1\n2,3,4\n")
    assert np.array_equal(load(tmp_path / "z.csv").to_numpy(), [[5, 0, 1], [2, 3, 4]])


# --- labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", INDICES)
def test_labels_of_a_frame_with_an_index(tmp_path, index):
    labels = np.array([[f"g{i % 2}", f"c{i % 4}"] for i in range(N)])
    frame = pd.DataFrame(labels, INDICES[index])
    frame.to_csv(tmp_path / "l.csv")
    with pytest.warns(EmbeddingsWarning, match="l.csv: left out the table's index"):
        assert np.array_equal(load_labels(str(tmp_path / "l.csv"), N), labels)


def test_labels_with_row_numbers(tmp_path):
    labels = np.array([f"c{i % 4}" for i in range(N)])
    for write in (
        lambda p: pd.Series(labels).to_csv(p),
        lambda p: pd.Series(labels).to_csv(p, header=False),
        lambda p: pd.Series(labels, name="class").to_csv(p, index_label="item"),
        lambda p: pd.DataFrame({"class": labels}).reset_index().to_csv(p, index=False),
        lambda p: p.write_text("class\n" + "".join(f"{i + 1},{c}\n" for i, c in enumerate(labels))),
    ):
        write(tmp_path / "l.csv")
        with pytest.warns(EmbeddingsWarning, match="left out the table's index"):
            assert np.array_equal(load_labels(str(tmp_path / "l.csv"), N)[:, 0], labels)


def test_labels_of_a_series_with_an_index_have_one_level_for_a_tree(tmp_path):
    pd.Series(["ant", "bee"] * 4).to_csv(tmp_path / "l.csv")
    (tmp_path / "tree.csv").write_text("insects,ant\ninsects,bee\nbirds,tit\n")
    np.save(tmp_path / "bytes.npy", np.array([b"ant", b"bee"] * 4))
    with pytest.warns(EmbeddingsWarning, match="index"):
        found = load_labels(str(tmp_path / "l.csv"), 8, str(tmp_path / "tree.csv"))
    assert found[:2].tolist() == [["insects", "insects / ant"], ["insects", "insects / bee"]]
    of_bytes = load_labels(str(tmp_path / "bytes.npy"), 8, str(tmp_path / "tree.csv"))
    assert np.array_equal(of_bytes, found)


def test_the_first_line_of_labels(tmp_path):
    def read(text, n):
        (tmp_path / "l.csv").write_text(text)
        return load_labels(str(tmp_path / "l.csv"), n)[:, 0].tolist()

    with pytest.raises(EmbeddingsError, match="found labels of 4 items; expected 3"):
        read("ant\nbee\nant\nbee\n", 3)  # a class, no name of a column
    with pytest.raises(EmbeddingsError, match="labels of 3 items below a line of names"):
        read("class\n1\n2\n1\n", 4)
    with pytest.warns(EmbeddingsWarning, match=r"took the first line \(0\) for names of columns"):
        assert read("0\n0\n1\n1\n", 3) == ["0", "1", "1"]
    assert read("class\nant\nbee\n", 2) == ["ant", "bee"]
    with pytest.raises(EmbeddingsError, match="3 names above lines of 1 columns"):
        read("a,b,c\nant\nbee\n", 2)


def test_missing_labels_are_no_class(tmp_path):
    pd.DataFrame({"a": ["x", None, "y"], "b": [1, 2, 1]}).to_csv(tmp_path / "l.csv", index=False)
    with pytest.raises(EmbeddingsError, match=r"no label in 1 rows \(1\); expected a label"):
        load_labels(str(tmp_path / "l.csv"), 3)


# --- Parquet and Arrow ----------------------------------------------------------------------------


def feather_of(frame, path):
    feather.write_feather(pa.Table.from_pandas(frame), path)


def stream_of(frame, path):
    table = pa.Table.from_pandas(frame)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


TABLES = {
    "z.parquet": lambda frame, path: frame.to_parquet(path),
    "z.feather": feather_of,
    "z.arrow": stream_of,
}


@pytest.mark.parametrize("file", TABLES)
@pytest.mark.parametrize("index", INDICES)
def test_tables_of_a_frame_with_an_index(tmp_path, z, index, file):
    frame = pd.DataFrame(z, INDICES[index], COLUMNS["names"])
    TABLES[file](frame, tmp_path / file)
    read = read_with_note(tmp_path / file)
    assert np.array_equal(read, z)
    if file == "z.parquet":
        assert np.array_equal(read, pd.read_parquet(tmp_path / file).to_numpy())


@pytest.mark.parametrize("file", TABLES)
def test_tables_of_a_frame_without_an_index(tmp_path, z, file):
    for index in (pd.RangeIndex(N), pd.RangeIndex(5, 5 + 2 * N, 2, name="rows")):
        TABLES[file](pd.DataFrame(z, index, COLUMNS["names"]), tmp_path / file)
        assert np.array_equal(load(tmp_path / file).to_numpy(), z)


@pytest.mark.parametrize("name", ["", "index", "Unnamed: 0", "__index_level_0__"])
def test_an_index_without_the_metadata_of_pandas(tmp_path, z, name):
    table = pa.table({f"x{i}": z[:, i] for i in range(D)}).append_column(name, [range(N)])
    parquet.write_table(table, tmp_path / "z.parquet")
    assert np.array_equal(read_with_note(tmp_path / "z.parquet"), z)


def test_lists_beside_an_index(tmp_path, z):
    frame = pd.DataFrame({"z": list(z)}, INDICES["strings"])
    frame.to_parquet(tmp_path / "z.parquet")
    assert np.array_equal(load(tmp_path / "z.parquet").to_numpy(), z)


def test_damaged_metadata_of_pandas(tmp_path, z):
    for said in (b"{", b"[]", b'{"index_columns": 3}'):
        table = pa.table({"z": list(z)}).replace_schema_metadata({b"pandas": said})
        parquet.write_table(table, tmp_path / "z.parquet")
        with pytest.raises(EmbeddingsError) as caught:
            load(tmp_path / "z.parquet")
        assert "\n" not in str(caught.value)


# --- lists ----------------------------------------------------------------------------------------

VIEWS = {"list_view": (pa.ListViewArray, "i4"), "large_list_view": (pa.LargeListViewArray, "i8")}


def arrow_file(column, path, chunk=None):
    table = pa.table({"z": column})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=chunk)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("kind", VIEWS)
def test_list_views_are_read_by_their_offsets(tmp_path, kind, dtype):
    view, integer = VIEWS[kind]
    pool = np.random.default_rng(2).standard_normal(300).astype(dtype)
    offsets = np.random.default_rng(3).integers(0, 300 - D, N)  # any order, gaps, overlaps
    made = view.from_arrays(offsets.astype(integer), np.full(N, D, integer), pa.array(pool))
    rows = np.stack([pool[o : o + D] for o in offsets])
    for column, expected in ((made, rows), (made.slice(3, 20), rows[3:23])):
        arrow_file(column, tmp_path / "z.arrow", chunk=9)
        read = load(tmp_path / "z.arrow")
        assert read.dtype == dtype
        assert np.array_equal(read.to_numpy(), expected)
        assert np.array_equal(read.to_numpy(), np.array(column.to_pylist(), dtype))
        assert [len(b) for b in read.blocks(7)][:-1] == [7] * ((len(expected) - 1) // 7)


@pytest.mark.parametrize("kind", VIEWS)
def test_ragged_list_views_are_refused(tmp_path, kind):
    view, integer = VIEWS[kind]
    # Offsets five apart: as neat as a matrix, were it not for the sizes.
    offsets, sizes = np.arange(N) * D, np.where(np.arange(N) % 2, D, D - 2)
    pool = pa.array(np.ones(N * D, "f4"))
    arrow_file(
        view.from_arrays(offsets.astype(integer), sizes.astype(integer), pool), tmp_path / "z.arrow"
    )
    with pytest.raises(EmbeddingsError, match="lists of 3 to 5 numbers; expected lists of one"):
        load(tmp_path / "z.arrow").to_numpy()


LISTS = {
    "list": lambda rows: pa.array(rows, pa.list_(pa.float32())),
    "large_list": lambda rows: pa.array(rows, pa.large_list(pa.float32())),
    "fixed_size_list": lambda rows: pa.array(rows, pa.list_(pa.float32(), D)),
    "list_view": lambda rows: pa.array(rows, pa.list_view(pa.float32())),
    "large_list_view": lambda rows: pa.array(rows, pa.large_list_view(pa.float32())),
}


@pytest.mark.parametrize("suffix", ["arrow", "parquet"])
@pytest.mark.parametrize("kind", LISTS)
def test_lists_of_every_kind(tmp_path, z, kind, suffix):
    path = tmp_path / f"z.{suffix}"

    def write(rows, part=slice(None)):
        column = LISTS[kind](rows)[part]
        if suffix == "arrow":
            arrow_file(column, path, chunk=11)
        else:
            parquet.write_table(pa.table({"z": column}), path, row_group_size=11)

    rows = z.astype("f4").tolist()
    write(rows)
    assert np.array_equal(load(path).to_numpy(), z.astype("f4"))
    write(rows, slice(5, 31))
    assert np.array_equal(load(path).to_numpy(), z[5:31].astype("f4"))
    write([[None, *row[1:]] if i == 3 else row for i, row in enumerate(rows)])
    assert np.argwhere(np.isnan(load(path).to_numpy())).tolist() == [[3, 0]]
    write([None if i == 13 else row for i, row in enumerate(rows)])
    with pytest.raises(EmbeddingsError, match="1 missing lists; expected a list in every row"):
        load(path).to_numpy()
    if kind != "fixed_size_list":
        write([row[:2] if i == 13 else row for i, row in enumerate(rows)])
        with pytest.raises(EmbeddingsError, match=r"lists of 2 to 5 numbers|rows of shape"):
            load(path).to_numpy()


def test_offsets_that_begin_and_end_inside_the_values(tmp_path):
    values = pa.array(np.arange(20, dtype="f4"))
    column = pa.ListArray.from_arrays(pa.array([4, 7, 10, 13], pa.int32()), values)
    arrow_file(column, tmp_path / "z.arrow")
    assert np.array_equal(load(tmp_path / "z.arrow").to_numpy(), np.arange(4, 13).reshape(3, 3))


def test_tensors_in_rows_are_vectors(tmp_path):
    kind = pa.fixed_shape_tensor(pa.float32(), (2, 3))
    column = pa.ExtensionArray.from_storage(
        kind, pa.array(np.ones((4, 6)).tolist(), kind.storage_type)
    )
    arrow_file(column, tmp_path / "z.arrow")
    with pytest.raises(EmbeddingsError, match=r"tensors of shape \(2, 3\); expected a vector"):
        load(tmp_path / "z.arrow")


def test_columns_with_missing_numbers(tmp_path):
    for kind in (pa.float16(), pa.float32(), pa.float64()):
        table = pa.table({"a": pa.array([1, None, 3], kind), "b": pa.array([4, 5, 6], kind)})
        parquet.write_table(table, tmp_path / "z.parquet")
        assert np.array_equal(
            load(tmp_path / "z.parquet").to_numpy(), [[1, 4], [np.nan, 5], [3, 6]], equal_nan=True
        )


# --- trees of classes -----------------------------------------------------------------------------

PATHS = [["animal", "bird", "eagle"], ["animal", "fish", "eel"], ["thing", "tool", "saw"]]


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda f, p: f.to_csv(p), id="plain"),
        pytest.param(lambda f, p: f.to_csv(p, header=False), id="no header"),
        pytest.param(lambda f, p: f.set_index([[7, 3, 5]]).to_csv(p), id="other index"),
        pytest.param(lambda f, p: f.set_index([[7, 3, 5], list("abc")]).to_csv(p), id="multi"),
        pytest.param(lambda f, p: f.reset_index().to_csv(p, index=False), id="reset"),
    ],
)
def test_trees_of_a_frame_with_an_index(tmp_path, write):
    classes = ["eel", "saw", "eel", "eagle"]
    write(pd.DataFrame(PATHS, columns=["coarse", "middle", "fine"]), tmp_path / "tree.csv")
    with pytest.warns(UserWarning, match=r"tree.csv: left out the table's index \("):
        found = hierarchical_labels(classes, tmp_path / "tree.csv")
    assert np.array_equal(found, hierarchical_labels(classes, PATHS))
    np.save(tmp_path / "l.npy", np.array(classes))
    with pytest.warns(EmbeddingsWarning, match=r"tree.csv: left out the table's index \("):
        named = load_labels(str(tmp_path / "l.npy"), 4, str(tmp_path / "tree.csv"))
    assert named[1].tolist() == ["thing", "thing / tool", "thing / tool / saw"]


def test_trees_without_an_index_say_nothing(tmp_path):
    frame = pd.DataFrame(PATHS)
    frame.to_csv(tmp_path / "tree.csv", index=False, header=False)
    found = hierarchical_labels(["eel", "saw"], tmp_path / "tree.csv")
    assert np.array_equal(found, hierarchical_labels(["eel", "saw"], PATHS))
    (tmp_path / "tree.csv").write_text("0\n1\n2\n")  # leaves alone, whatever their names
    assert hierarchical_labels(["2", "0"], tmp_path / "tree.csv").tolist() == [[2], [0]]
    (tmp_path / "tree.csv").write_text("animal,eel\nsaw\n\n ,\n")
    assert hierarchical_labels(["saw", "eel"], tmp_path / "tree.csv").tolist() == [[1, 1], [0, 0]]
