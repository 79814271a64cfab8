"""What Gaussian rows have, against measures of Gaussian rows."""

import numpy as np
import pytest

from visreg_core import report
from visreg_core.report import _model, _spectrum, _tables

NAMES = (*_model.DIMENSIONS, *_model.GEOMETRY)


@pytest.mark.parametrize(("n", "d"), [(600, 40), (60, 90), (91, 90), (300, 1)])
def test_null_against_gaussian_rows(n, d):
    def measures(seed):
        r = report.report(np.random.default_rng(seed).standard_normal((n, d)), n_slices=2)
        return [{**r.dimensions, **r.geometry}[name] for name in NAMES]

    known = np.array([measures(seed) for seed in range(4)])
    drawn = np.array(
        [list(map(_spectrum.gaussian_null(n, d, min(n, 2000), s).get, NAMES)) for s in range(4)]
    )
    for i, name in enumerate(NAMES):
        a, b = known[:, i], drawn[:, i]
        if np.isnan(a).all():
            assert np.isnan(b).all(), name
            continue
        if name == "condition_number":
            a, b = np.log(a), np.log(b)
        spread = a.std() + b.std() + 1e-3 * abs(a.mean()) + 1e-3
        assert abs(a.mean() - b.mean()) < 3 * spread, (name, a, b)


def test_tables_have_a_column_of_it():
    x = np.random.default_rng(0).standard_normal((90, 4))
    one = report.report(x, n_slices=2)
    for table in _tables.tables(_model.Comparison([one], [])):
        beside = table.title in ("Dimensions in use", "Geometry")
        assert table.heads == ["value", *["N(0, I)"] * beside]
        assert all(len(row.cells) == len(table.heads) for row in table.rows)
    other = report.report(x[:, :3], n_slices=2)
    for table in _tables.tables(_model.Comparison([one, other], [])):
        assert "N(0, I)" not in table.heads  # one column cannot stand for both
    assert _spectrum.gaussian_null(10, 2000, 10, 0) == {}
