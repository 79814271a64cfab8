"""What people hold: every kind gives the report of its array, or one line that says why not."""

import json

import numpy as np
import pytest

import visreg_core
from visreg_core import report
from visreg_core.cli import main
from visreg_core.embeddings import EmbeddingsError
from visreg_core.report._taken import embeddings_of, labels_of

pandas = pytest.importorskip("pandas")
pyarrow = pytest.importorskip("pyarrow")
X = np.random.default_rng(0).standard_normal((12, 3)).astype(np.float32)
LABELS = np.array(list("abc") * 4)


def frame():
    table = pandas.DataFrame(X, columns=["x", "y", "z"])
    table.insert(0, "id", np.arange(12))
    table["name"] = LABELS
    return table


def vectors():
    return pandas.DataFrame({"id": np.arange(12), "v": list(X), "name": LABELS})


def tensor():
    return pytest.importorskip("torch").tensor(X, requires_grad=True)


def series():
    return vectors()["v"]


def table():
    return pyarrow.Table.from_pandas(vectors())


@pytest.mark.parametrize("hold", [lambda: X, X.tolist, frame, vectors, series, table, tensor])
def test_embeddings(hold):
    assert np.allclose(embeddings_of(hold()).to_numpy(), X)


def test_the_package_is_its_function():
    options = {"n_slices": 4, "labels": LABELS}
    assert visreg_core.report(X, **options).losses == report.report(X, **options).losses
    with pytest.raises(ValueError, match=r"a sequence of two files or more; found 'x\.npy'"):
        report.compare("x.npy")


def test_paths_and_whole_numbers(tmp_path):
    np.save(tmp_path / "x.npy", X)
    for path in (tmp_path / "x.npy", str(tmp_path / "x.npy")):
        assert np.array_equal(embeddings_of(path).to_numpy(), X)
    for whole in (np.int8, np.uint8, np.bool_):
        codes = (10 * X).astype(whole)
        stored = embeddings_of(codes)
        assert stored.dtype == np.float32
        assert np.array_equal(stored.to_numpy(), codes)


def test_quantised_files_and_wide_tables(tmp_path):
    for kind, note in (
        (np.int8, "int8 numbers read as float32"),
        (np.uint8, "uint8 numbers read as float32, not as packed bits"),
    ):
        codes = np.abs(10 * X).astype(kind)
        np.save(tmp_path / "q.npy", codes)
        stored = embeddings_of(tmp_path / "q.npy")
        assert (stored.dtype, stored.notes) == (np.float32, (note,))
        assert np.array_equal(stored.to_numpy(), codes)
    np.save(tmp_path / "ids.npy", np.arange(12))
    with pytest.raises(EmbeddingsError, match="found dtype int64"):
        embeddings_of(tmp_path / "ids.npy")
    frame().to_parquet(tmp_path / "wide.parquet")
    stored = embeddings_of(tmp_path / "wide.parquet")
    assert np.array_equal(stored.to_numpy(), X)
    assert stored.notes == ("left out columns id, name",)
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    for name in ("cut.npy", "cut.parquet"):
        with pytest.raises(EmbeddingsError) as caught:
            embeddings_of(tmp_path / name)
        assert "\n" not in str(caught.value)


def files(folder):
    rows = [
        {"id": i, "v": v, "name": n}
        for i, (v, n) in enumerate(zip(X.tolist(), LABELS, strict=True))
    ]
    (folder / "x.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    frame().to_csv(folder / "x.tsv", sep="\t", index=False)
    vectors().to_parquet(folder / "x.parquet")
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_pandas(vectors()).save_to_disk(folder / "saved", num_shards=2)


def test_files(tmp_path):
    files(tmp_path)
    for name in ("x.jsonl", "x.tsv", "saved", "x.jsonl::v", "x.parquet::v"):
        stored = embeddings_of(str(tmp_path / name))
        assert np.allclose(stored.to_numpy(), X, atol=1e-6), name
    assert embeddings_of(str(tmp_path / "x.tsv")).notes == ("left out columns id, name",)
    for name in ("x.jsonl", "x.tsv", "x.parquet", "saved"):
        labels = labels_of(f"{tmp_path / name}::name", 12, "x")
        assert labels.tolist() == LABELS[:, None].tolist()
    both = labels_of(f"{tmp_path}/x.tsv::name,id", 12, "x")
    assert both[4].tolist() == ["b", "4"]


@pytest.mark.parametrize(
    "labels",
    [LABELS, LABELS.tolist(), pandas.Series(LABELS), pandas.Series(LABELS, dtype="category"),
     pandas.DataFrame({"a": LABELS}), np.arange(12) // 4, pandas.Series(np.arange(12) // 4)],
)  # fmt: skip
def test_labels(labels):
    found = report.report(X, labels=labels, n_slices=2)
    assert found.labelled.n_classes == (3,)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (5, r"an array of shape \(\); expected shape \(N, D\)"),
        ("memory://bucket/x.npy", "found no such file; expected an existing one"),
        ([[1.0, 2.0], [3.0]], "expected rows of one length"),
        ([["a"], ["b"]], "found dtype <U1|found dtype str"),
        ([object(), object()], "values that are no numbers"),
        (pandas.DataFrame({"a": ["x", "y"]}), "expected columns of floating numbers"),
        ("no.jsonl", "found no such file"),
        (None, "values that are no numbers"),
    ],
)
def test_what_holds_no_embeddings(data, message):
    with pytest.raises(EmbeddingsError, match=message) as caught:
        report.report(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS[:5], "found 5; expected 12, one for each row of ndarray"),
        (pandas.Series([None, *LABELS[1:]]), "no label in 1 rows, the first at 0"),
        (np.full(12, np.nan), "no label in 12 rows"),
        ("x.tsv::nothing", "expected one named 'nothing'"),
        ("x.npy::a", "found suffix '.npy'; expected a table"),
        ("none.tsv::a", "found no such file"),
    ],
)
def test_what_holds_no_labels(tmp_path, monkeypatch, labels, message):
    monkeypatch.chdir(tmp_path)
    frame().to_csv("x.tsv", sep="\t", index=False)
    np.save("x.npy", LABELS)
    with pytest.raises(EmbeddingsError, match=message) as caught:
        report.report(X, labels=labels)
    assert "\n" not in str(caught.value)


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files(tmp_path)
    capsys.readouterr()  # datasets' progress
    assert main(["report", "x.tsv", "--labels", "x.parquet::name", "--slices", "4"]) == 0
    out, err = capsys.readouterr()
    assert "left out columns id, name" in out
    assert "3 classes; all 12 rows classified" in out
    assert err == ""
    for arguments in (["memory://b/x.npy"], ["x.jsonl::w"], ["x.tsv", "--labels", "x.tsv::"]):
        assert main(["report", *arguments]) == 2
        err = capsys.readouterr().err
        assert err.startswith("visreg: ")
        assert err.count("\n") == 1
