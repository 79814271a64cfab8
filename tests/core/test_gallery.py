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
    return gallery.all_flows()


def test_clouds_become_round(flows):
    for name, found in flows.items():
        assert found.values == sorted(found.values, reverse=True)
        cloud = found.clouds[-1, 0]
        if name in ("invariance_loss", "barlow_twins_loss", "wmse_loss"):
            continue  # whatever the scale is
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


def test_views_come_together(flows):
    """Invariance alone leaves the cloud as it is; Barlow Twins and W-MSE see no scale, and W-MSE no
    linear map; SAG-VICReg's pairs are not the views of one point."""
    apart = {name: found.clouds[:, 0] - found.clouds[:, -1] for name, found in flows.items()}
    rms = {name: np.sqrt(np.mean(x**2, axis=(1, 2))) for name, x in apart.items()}
    for name in ("invariance_loss", "visreg_loss and invariance_loss", "vicreg_loss"):
        assert rms[name][-1] < 0.05 * rms[name][0], name
    assert rms["sag_vicreg_loss"][-1] > rms["sag_vicreg_loss"][0]
    covariance = np.cov(flows["invariance_loss"].clouds[-1, 0].T)
    np.testing.assert_allclose(covariance, np.cov(flows["vicreg_loss"].clouds[0].mean(0).T), 1e-6)
    last = flows["barlow_twins_loss"].clouds[-1]
    assert np.abs(np.corrcoef(last[0].T, last[1].T)[:2, 2:] - np.eye(2)).max() < 0.15
    white = [
        x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T for x in flows["wmse_loss"].clouds[-1]
    ]
    assert np.abs(np.cov(np.concatenate(white, axis=1).T)[:2, 2:] - np.eye(2)).max() < 0.05
