"""The gallery's numbers: every loss falls, and gradients at collapse are what theory says."""

import importlib
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def gallery(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "docs" / "_ext")
    return importlib.import_module("gallery")


def test_clouds_become_round(gallery):
    for loss in gallery.LOSSES.values():
        found = gallery.flow(loss)
        assert found.values == sorted(found.values, reverse=True)
        covariance = np.cov(found.clouds[-1].T)
        assert np.abs(covariance - np.eye(2)).max() < 0.25


def test_gradients_at_collapse(gallery):
    """From a scale of 0.1 to 0.001: VISReg's as 1/r, SIGReg's as r, others not at all."""
    ratio = {name: gallery.flow(loss).at_collapse for name, loss in gallery.LOSSES.items()}
    assert ratio["visreg_loss"] == pytest.approx(100, rel=0.05)
    assert ratio["sigreg_loss"] == pytest.approx(0.01, rel=0.05)
    assert ratio["gaussian_sliced_wasserstein"] == pytest.approx(1, rel=0.15)
