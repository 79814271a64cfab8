"""Ids: files in any order and of different items are joined, and what is missing is said."""

import json

import numpy as np
import pytest

from visreg_core import report
from visreg_core.cli import main
from visreg_core.embeddings import EmbeddingsError, _source
from visreg_core.report._ids import join
from visreg_core.report._model import TreeOptions
from visreg_core.report._taken import embeddings_of

RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 4)).astype(np.float32)
IDS = RNG.permutation(1000)[:60]
FEW = {"n_slices": 4, "tree": TreeOptions(rows=30)}


def shuffled(seed=1, keep=50):
    order = np.random.default_rng(seed).permutation(60)[:keep]
    return X[order], IDS[order]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def values(pair):
    return {n: pair.measure(n) for n in ("sliced_wasserstein", "linear_cka", "mutual_knn")}


@pytest.mark.parametrize("kind", [np.int64, np.str_, object])
def test_joined_files_are_compared_item_by_item(kind):
    y, ids = shuffled()
    found = report.compare([X, 2 * y], ids=[IDS.astype(kind), ids.astype(kind)], **FEW)
    assert found.by_ids
    assert found.pairs[0].linear_cka == pytest.approx(1)
    assert found.pairs[0].mutual_knn == 1
    assert [r.shape for r in found.reports] == [(50, 4), (50, 4)]
    first, second = (r.notes[-1] for r in found.reports)
    said = "joined by ids: 50 items in all files"
    assert (first, second) == (f"{said}, 10 of this one are not in every other", said)
    common = np.isin(IDS, ids)
    expected = report.compare([X[common], 2 * X[common]], paired=True, **FEW)
    assert values(found.pairs[0]) == values(expected.pairs[0])


def test_three_files_and_labels_of_the_first():
    y, ids = shuffled()
    z, others = shuffled(2, 55)
    labels = (X[:, 0] > 0).astype(int)
    found = report.compare([X, y, z], ids=[IDS, ids, others], labels=labels, **FEW)
    common = np.isin(IDS, ids) & np.isin(IDS, others)
    assert {r.shape[0] for r in found.reports} == {np.count_nonzero(common)}
    expected = report.report(X[common], labels=labels[common], **FEW).labelled
    assert [r.labelled for r in found.reports] == [expected] * 3


def test_without_ids_it_goes_by_position_and_says_so():
    y, _ = shuffled(keep=60)
    found = report.compare([X, y], paired=True, **FEW)
    assert not found.by_ids
    assert found.pairs[0].linear_cka < 0.5
    from visreg_core.report._tables import tables

    assert "by position: row i the same item" in tables(found)[0].note


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.repeat([7, 8], 30), r"id 7 in rows 0 and 1 and 57 more repeated ones; .* each id once"),
        (IDS[:50], "found 50; expected 60, one for each row"),
        (IDS.astype(float), r"found float64 of shape \(60,\); expected integers or strings"),
        (np.array([None, *range(59)]), "no id in 1 rows, the first at 0"),
        (IDS + 5000, "found 0 ids in all files"),
        (IDS.astype(str), "numbers in one file, strings in another"),
    ],
)
def test_ids_that_join_nothing(ids, message):
    with pytest.raises(EmbeddingsError, match=message) as caught:
        report.compare([X, X], ids=[IDS, ids], **FEW)
    assert "\n" not in str(caught.value)


def test_ids_in_one_file_only():
    with pytest.raises(EmbeddingsError, match="found no ids; expected ids in every file"):
        join([embeddings_of(X), embeddings_of(X)])


def test_findings_call_rows_by_their_ids():
    x = X.copy()
    x[9] = 0
    names = np.array([f"item {i}" for i in IDS])
    for drop in (False, True):
        if drop:
            x[3] = np.nan
        found = report.report(x, ids=names, drop_bad_rows=drop, **FEW).findings
        (rows,) = (f.rows for f in found if f.subject == "zero rows")
        assert rows == (names[9],)


@pytest.mark.parametrize("block", [7, 1000])
def test_rows_in_another_order(monkeypatch, block):
    """Mapped files are read where the rows are, others are held."""
    monkeypatch.setattr(_source, "BLOCK_VALUES", block * 4)
    order = np.random.default_rng(3).permutation(60)[:40]
    streamed = _source.embeddings(
        "s", X.shape, X.dtype, lambda rows: (X[i : i + rows] for i in range(0, 60, rows))
    )
    for stored in (embeddings_of(X), streamed, streamed.select(np.arange(60))):
        assert np.array_equal(stored.ordered(order).to_numpy(), X[order])
        again = stored.ordered(order).select(np.arange(3, 9))
        assert np.array_equal(again.to_numpy(), X[order][3:9])


# --- ids of files ---------------------------------------------------------------------------------


def write(kind, name, x, ids):
    if kind == "safetensors":
        from safetensors.numpy import save_file

        save_file({"embeddings": x, "labels": ids % 3, "ids": ids}, f"{name}.safetensors")
        return f"{name}.safetensors::embeddings"
    if kind == "npz":
        np.savez(f"{name}.npz", embeddings=x, ids=ids)
        return f"{name}.npz::embeddings"
    if kind == "h5":
        h5py = pytest.importorskip("h5py")
        with h5py.File(f"{name}.h5", "w") as file:
            file["embeddings"], file["ids"] = x, ids
        return f"{name}.h5::embeddings"
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"ids": ids, "v": list(x)})
    frame.to_parquet(f"{name}.parquet")
    return f"{name}.parquet::v"


@pytest.mark.parametrize("kind", ["safetensors", "npz", "h5", "parquet"])
def test_a_column_of_ids(folder, kind, capsys):
    y, ids = shuffled()
    files = [write(kind, "a", X, IDS), write(kind, "b", y, ids)]
    options = ["--ids", "ids", "--slices", "4", "--json", "c.json"]
    assert main(["compare", *files, *options]) == 0
    out = capsys.readouterr().out
    assert "the same items, joined by ids" in out
    assert "10 of this one are not in every other" in out
    pair = json.loads((folder / "c.json").read_text())["pairs"][0]
    assert pair["linear_cka"] == pytest.approx(1)


def test_files_of_ids(folder, capsys):
    y, ids = shuffled()
    for name, array in (("a", X), ("b", y), ("of_a", IDS), ("of_b", ids)):
        np.save(f"{name}.npy", array)
    files = ["compare", "a.npy", "b.npy", "--slices", "4"]
    assert main([*files, "--ids", "of_a.npy", "--ids", "of_b.npy"]) == 0
    assert "joined by ids: 50 items" in capsys.readouterr().out
    for wrong, message in (
        (["--ids", "of_a.npy"], "found 60; expected 50"),
        (["--ids", "nothing"], "no such file"),
        (["--ids", "of_a.npy"] * 3, "expected it once, or once for each of 2 files"),
    ):
        assert main([*files, *wrong]) == 2
        assert message in capsys.readouterr().err


def test_the_trainers_exports_carry_ids(folder, capsys):
    """One file of three arrays, or a folder of arrays with ids.npy among them."""
    y, ids = shuffled()
    files = [write("safetensors", "a", X, IDS), write("safetensors", "b", y, ids)]
    assert main(["compare", *files, "--paired", "--slices", "4"]) == 0
    assert "the same items, joined by ids" in capsys.readouterr().out
    for name, x, i in (("run1", X, IDS), ("run2", y, ids)):
        (folder / name).mkdir()
        np.save(folder / name / "backbone.npy", x)
        np.save(folder / name / "ids.npy", i)
    found = report.compare(["run1/backbone.npy", "run2/backbone.npy"], paired=True, **FEW)
    assert found.by_ids
    assert found.pairs[0].linear_cka == pytest.approx(1)
