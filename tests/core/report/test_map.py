"""The map: two principal components, against a decomposition of the rows themselves."""

import re

import numpy as np
import pytest
from sklearn.decomposition import PCA

from visreg_core import report
from visreg_core.report import _figures, _map


@pytest.mark.parametrize("shape", [(60, 7), (9, 40)])
@pytest.mark.parametrize("scale", [1e-170, 1.0, 1e140])
def test_plane_against_principal_components(shape, scale):
    x = np.random.default_rng(0).standard_normal(shape) * np.arange(1, shape[1] + 1) + 3
    xy, shares = _map.plane(scale * x)
    known = PCA(2, svd_solver="full").fit(x)
    expected = known.transform(x)
    assert shares == pytest.approx(known.explained_variance_ratio_)
    unit = np.abs(expected).max(axis=0)
    assert np.abs(xy / np.abs(xy).max(axis=0)) == pytest.approx(np.abs(expected / unit), abs=1e-9)
    assert np.all(xy.max(axis=0) == np.abs(xy).max(axis=0))


@pytest.mark.parametrize("x", [np.ones((5, 3)), np.arange(4.0)[:, None]])
def test_plane_of_rows_without_two_directions(x):
    xy, shares = _map.plane(x)
    assert xy.shape == (len(x), 2) and np.isfinite(xy).all()
    assert shares.sum() == pytest.approx(float(len(np.unique(x)) > 1))


def test_titles_say_what_is_drawn():
    x = np.random.default_rng(0).standard_normal((90, 4))
    labels = np.stack([np.zeros(90, int), np.arange(90) % 3], axis=1)
    made = _map.maps([report.report(x, labels=labels, n_slices=2)], ["a"])
    ((title, _),) = made.figures
    assert "of 90 rows, coloured by level 2" in title  # the first has a single class
    (plain,) = _map.maps([report.report(x, n_slices=2)], ["a"]).figures
    assert "coloured" not in plain[0]


def test_figures_have_tenths_of_a_point():
    def draw(figure):
        figure.subplots().plot([0, 1 / 3, 2 / 7])

    drawn = _figures.svg_document(draw, (3, 2))
    assert "0.015625" in drawn  # the scale of letters is not a place
    assert not re.search(r"[1-9]\d\.\d{2}", drawn)


def test_texts_are_those_of_the_rows(tmp_path):
    x = np.random.default_rng(0).standard_normal((90, 4))
    x[[3, 50]] = np.nan
    texts = np.array([f"<b>{i}</b>" for i in range(90)])
    found = report.report(
        x, texts=texts, drop_bad_rows=True, tree=report.TreeOptions(rows=30), n_slices=2
    )
    drawn = found.pictures.drawn
    assert drawn.texts.tolist() == [f"<b>{i}</b>" for i in drawn.names]
    figure = _map._figure(found, _map.plane(drawn.points)[0])
    (source,) = (r.data_source for r in figure.renderers)
    assert source.data["text"] == drawn.texts.tolist()
    found.to_atlas(tmp_path / "rows.parquet")
    read = pytest.importorskip("pyarrow.parquet").read_table(tmp_path / "rows.parquet")
    assert read.column("text").to_pylist() == drawn.texts.tolist()
    with pytest.raises(ValueError, match="found 3; expected 90"):
        report.report(x, texts=texts[:3], n_slices=2)
