"""Triples of items against a loop over all of them."""

import numpy as np
import pytest
import scipy.cluster.hierarchy as sch
from scipy.spatial.distance import squareform

from visreg_core.metrics import linkage, triplet_accuracy


def naive(z, labels):
    height = squareform(sch.cophenet(z))
    n, levels = labels.shape
    out = []
    for level in range(levels):
        shares = []
        for a in range(n):
            above = (labels[:, :level] == labels[a, :level]).all(axis=1)
            same = above & (labels[:, level] == labels[a, level])
            won = [
                np.heaviside(height[a, c] - height[a, b], 0.5)
                for b in np.flatnonzero(same)
                if b != a
                for c in np.flatnonzero(above & ~same)
            ]
            if won:
                shares.append(np.mean(won))
        out.append(np.mean(shares) if shares else np.nan)
    return out


@pytest.mark.parametrize("ties", [False, True])
def test_every_triple(rng, ties):
    x = rng.standard_normal((40, 3))
    if ties:
        x = np.round(x)
    z = linkage(x, metric="euclidean")
    # Levels that are not nested count as paths: two classes of one name are two.
    labels = rng.integers(3, size=(40, 3))
    assert triplet_accuracy(z, labels) == pytest.approx(naive(z, labels), abs=1e-12)
    one = np.zeros((40, 1), dtype=int)
    constant = np.hstack([one, labels, np.arange(40)[:, None]])
    np.testing.assert_allclose(triplet_accuracy(z, constant), naive(z, constant), atol=1e-12)
    assert triplet_accuracy(z, labels[:, 0]) == triplet_accuracy(z, labels)[:1]


def test_the_level_that_is_lost(rng):
    """The coarser levels keep their share whatever the finer ones do."""
    fine = np.repeat(np.arange(8), 20)
    middle = np.stack([40.0 * (fine // 4), 8.0 * (fine // 2 % 2), 0.0 * fine], axis=1)
    x = middle + rng.standard_normal((160, 3))
    labels = np.stack([fine // 4, fine // 2, fine], axis=1)
    coarse, pair, lost = triplet_accuracy(linkage(x, metric="euclidean"), labels)
    assert coarse == pair == 1
    assert 0.4 < lost < 0.6


def test_errors(rng):
    z = linkage(rng.standard_normal((9, 2)))
    with pytest.raises(ValueError, match=r"labels of shape \(9, L\)"):
        triplet_accuracy(z, np.zeros(8, dtype=int))
    with pytest.raises(ValueError, match="linkage matrix"):
        triplet_accuracy(z[0], np.zeros(9, dtype=int))
