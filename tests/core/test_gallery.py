"""The gallery's numbers: every loss falls, and gradients at collapse are what theory says."""

import importlib
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="module")
def flows():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "docs" / "_ext")
        gallery = importlib.import_module("gallery")
    return {name: gallery.flow(loss) for name, loss in gallery.LOSSES.items()}


def test_clouds_become_round(flows):
    for name, found in flows.items():
        assert found.values == sorted(found.values, reverse=True)
        cloud = found.clouds[-1]
        if name == "spherical_mmd":  # of directions alone
            cloud = np.sqrt(2) * cloud / np.linalg.norm(cloud, axis=1, keepdims=True)
            assert np.linalg.norm(cloud.mean(axis=0)) < 0.1
        assert np.abs(np.cov(cloud.T) - np.eye(2)).max() < 0.25, name


def test_gradients_at_collapse(flows):
    """From a scale of 0.1 to 0.001: as 1/r where rows are normalised, as r where the loss is
    smooth and even at 0, else not at all."""
    ratio = {name: found.at_collapse for name, found in flows.items()}
    for name in ("visreg_loss", "spherical_mmd"):
        assert ratio[name] == pytest.approx(100, rel=0.05)
    even = "sigreg_loss", "sigreg_limit", "weak_sigreg_loss", "gaussian_mmd", "gaussian_ksd"
    for name in even:
        assert ratio[name] == pytest.approx(0.01, rel=0.05)
    for name in ("gaussian_sliced_wasserstein", "sliced_statistic"):
        assert ratio[name] == pytest.approx(1, rel=0.15)
