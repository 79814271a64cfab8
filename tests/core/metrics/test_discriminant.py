"""Linear discriminants that leave each row out: the rule fitted anew without it says the same."""

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from visreg_core import metrics
from visreg_core.metrics import _discriminant


def classes(rng, sizes, d=4, apart=1.5):
    codes = np.repeat(np.arange(len(sizes)), sizes)
    centres = apart * rng.standard_normal((len(sizes), d))
    return centres[codes] + rng.standard_normal((len(codes), d)), codes


def without(x, codes, i, shrinkage=0.1):
    """The rule of all rows but i, by its formula; what is shrunk to is that of all rows."""
    within = sum(
        (x[codes == c] - x[codes == c].mean(0)).T @ (x[codes == c] - x[codes == c].mean(0))
        for c in np.unique(codes)
    )
    ridge = shrinkage * np.trace(within) / x.shape[1] * np.eye(x.shape[1])
    rest, known = np.delete(x, i, axis=0), np.delete(codes, i)
    scatter = np.zeros_like(ridge)
    for c in np.unique(known):
        z = rest[known == c] - rest[known == c].mean(0)
        scatter += z.T @ z
    inverse = np.linalg.inv((1 - shrinkage) * scatter + ridge)
    scores = {}
    degrees = len(rest) - len(np.unique(known))
    for c in np.unique(known):
        d = x[i] - rest[known == c].mean(0)
        scores[c] = np.log(np.sum(known == c)) - degrees / 2 * d @ inverse @ d
    return max(scores, key=scores.get)


@pytest.mark.parametrize("sizes", [[20, 20], [3, 30, 7, 12], [1, 9, 2, 1, 14], [5] * 8])
def test_each_row_is_left_out(rng, sizes):
    x, codes = classes(rng, sizes)
    told = _discriminant.classify(x, codes)
    assert told.tolist() == [without(x, codes, i) for i in range(len(x))]


@pytest.mark.parametrize("seed", range(4))
def test_rows_that_the_covariance_leans_on(seed):
    """As many columns as rows by class allow: leaving one out turns the covariance."""
    x, codes = classes(np.random.default_rng(seed), [4] * 6, d=14, apart=0.7)
    told = _discriminant.classify(x, codes)
    assert told.tolist() == [without(x, codes, i) for i in range(len(x))]


def test_the_rule_is_scikit_learns(rng):
    x, codes = classes(rng, [30, 50, 20], apart=1.0)
    test = classes(rng, [40, 40, 40], apart=1.0)[0]
    fitted = LinearDiscriminantAnalysis(solver="lsqr").fit(x, codes)
    mean = x.mean(0)
    rule = _discriminant.fit(
        np.bincount(codes), _discriminant.class_sums(x - mean, codes, 3), mean,
        (x - mean).T @ (x - mean), shrinkage=0.0,
    )  # fmt: skip
    # Its covariance is divided by N, ours by N − C: told by a class or two where that decides.
    assert np.mean(_discriminant.predict(rule, test) == fitted.predict(test)) > 0.98


def test_blocks_and_a_far_mean_change_nothing(rng, monkeypatch):
    x, codes = classes(rng, [20, 30, 10])
    told = _discriminant.classify(x, codes)
    monkeypatch.setattr(_discriminant, "_BLOCK", 21)
    assert np.array_equal(_discriminant.classify(x + 1e6, codes), told)


def test_dead_columns_and_equal_rows(rng):
    x, codes = classes(rng, [12, 12])
    dead = np.concatenate([x, np.ones((24, 2))], axis=1)
    accuracy = metrics.hierarchical_linear_accuracy(dead, codes, solver="discriminant")[0]
    assert accuracy == pytest.approx(np.mean(_discriminant.classify(x, codes) == codes), abs=0.1)
    same = np.ones((10, 3))
    told = _discriminant.classify(same, np.arange(10) % 2)
    assert set(told) <= {0, 1}


def test_public_function(rng):
    x, codes = classes(rng, [30, 30, 30])
    labels = np.stack([codes // 2, codes], axis=1)
    found = metrics.hierarchical_linear_accuracy(x, labels, solver="discriminant")
    assert found == tuple(np.mean(_discriminant.classify(x, c) == c) for c in labels.T)
    test, truth = classes(np.random.default_rng(1), [5, 5, 5])
    split = metrics.hierarchical_linear_accuracy(
        x, codes, test=test, test_labels=truth, solver="discriminant"
    )
    assert split == (np.mean(_discriminant.classify(x, codes, test) == truth),)
    with pytest.raises(ValueError, match="expected solver to be one of"):
        metrics.hierarchical_linear_accuracy(x, codes, solver="ridge")
