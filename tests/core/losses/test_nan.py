"""A NaN among the kept rows is never a finite number, whatever else happens to it."""

import numpy as np
import pytest

from tests.cases import PRIMARY, each


@each(PRIMARY)
@pytest.mark.dtypes("float64")
@pytest.mark.backends("numpy", "torch")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("masked", [False, True])
def test_nan_stays_nan(case, where, rng, masked):
    arrays = case.draw(rng)
    first = case.differentiated[0]
    arrays[first] = arrays[first].copy()
    arrays[first][(0,) * arrays[first].ndim] = np.nan
    options = {}
    if masked:
        if not case.loss.row_mask:
            pytest.skip("takes no row mask")
        axis = -1 if arrays[first].ndim == 1 else -2
        keep = np.arange(arrays[first].shape[axis]) < 5
        options["row_mask"] = where.asarray(keep)
    given = {n: where.asarray(a) for n, a in arrays.items()}
    both, _ = case.value_and_grad(given, **options)
    for result in (case.call(given, **options), both):
        name = case.loss.fields[0]
        assert np.isnan(where.to_numpy(case.fields(result)[name])).all()
