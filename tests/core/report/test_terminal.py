"""The terminal: no number is cut at any width, names stay apart, findings come first."""

import io
import re

import numpy as np
import pytest
from rich.console import Console

from visreg_core import report
from visreg_core.report import _tables, _terminal


def printed(monkeypatch, found, width, terminal):
    """What is printed on a terminal of this width, or into a file."""
    made = []

    def console(**options):
        made.append(Console(
            record=True, width=width, force_terminal=terminal, file=io.StringIO(),
            **options,
        ))  # fmt: skip
        return made[-1]

    monkeypatch.setattr("rich.console.Console", console)
    _terminal.print_tables(found)
    return made[0].export_text()


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((60, 6)), np.arange(60) % 3
    paths = []
    for i in range(5):
        (folder / f"run{i}").mkdir()
        paths.append(folder / f"run{i}" / "embeddings_of_the_whole_validation_set.npy")
        np.save(paths[-1], x + i)
    return report.compare(paths, paired=True, labels=labels, label_rows=40, n_slices=4)


@pytest.mark.parametrize(
    ("width", "terminal"), [*((w, True) for w in (40, 60, 80, 81, 120, 200)), (80, False)]
)
def test_every_cell_is_there_in_full(monkeypatch, five, width, terminal):
    text = printed(monkeypatch, five, width, terminal)
    squeezed = re.sub(r"\s+", " ", text)
    tables = _tables.tables(five)
    for table in tables:
        for row in table.rows:
            for cell in row.cells:
                assert cell in squeezed, (table.title, row.name, cell)
            assert row.name in text


def test_a_terminals_lines_fit_into_it(monkeypatch, five):
    text = printed(monkeypatch, five, 80, True)
    paths = [r.name for r in five.reports]
    long = [line for line in text.split("\n") if len(line) > 80 and line not in paths]
    assert long == []


def test_findings_come_first(monkeypatch):
    x = np.random.default_rng(0).standard_normal((60, 6))
    x[:, 2] = 0
    text = printed(monkeypatch, report.Comparison([report.report(x, n_slices=4)], []), 80, True)
    assert text.index("dead dimensions: 1 of 6 do not vary (2)") < text.index("Dimensions in use")
    assert "next: drop them" in re.sub(r"\s+", " ", text)


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["a.npy", "b.npy"], ["a", "b"]),
        (["runs/1/z.npy", "runs/2/z.npy"], ["1/z", "2/z"]),
        (["/x/a.npy", "/x/a.csv"], ["a.npy", "a.csv"]),
        (["z.npz::a", "z.npz::b"], ["z.npz::a", "z.npz::b"]),
        (["z.npy", "z.npy"], ["1: z.npy", "2: z.npy"]),
        (["a" * 30 + ".npy"], ["aaaaaaaaaaa…aaaaaaaaaaaa"]),
        (["ndarray", "ndarray"], ["1: ndarray", "2: ndarray"]),
    ],
)
def test_short_names(names, short):
    assert _tables.short_names(names) == short


def test_what_was_left_out_is_said(monkeypatch, tmp_path):
    x = np.random.default_rng(0).standard_normal((60, 6))
    x[[3, 9], 1] = np.nan
    found = report.report(x, n_slices=4, drop_bad_rows=True)
    assert found.rows_read == 58
    assert found.dropped.tolist() == [3, 9]
    assert _tables.facts(found) == ("60 × 6 float64, 2 rows with NaN or Inf left out (3, 9)")
    rest = report.report(np.delete(x, [3, 9], axis=0), n_slices=4)
    assert found.dimensions == pytest.approx(rest.dimensions, nan_ok=True)
    y = x.copy()
    y[[3, 9]], y[20] = 1.0, np.inf
    pair = report.compare([x, y], paired=True, n_slices=4, drop_bad_rows=True)
    assert [r.dropped.tolist() for r in pair.reports] == [[3, 9, 20]] * 2
    labels = np.arange(60) % 2
    labelled = report.report(x, labels=labels, n_slices=4, drop_bad_rows=True).labelled
    kept = report.report(
        np.delete(x, [3, 9], axis=0), labels=np.delete(labels, [3, 9]), n_slices=4
    ).labelled
    assert labelled.measures["hierarchical_knn_accuracy"] == kept.measures[
        "hierarchical_knn_accuracy"
    ]  # fmt: skip
