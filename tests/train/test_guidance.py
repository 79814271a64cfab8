"""Patch features on a latent's grid, and REPA's loss."""

import numpy as np
import pytest
import torch

from reference_train import guidance
from reference_train.errors import TrainError
from tests.train.test_finetune import tiny


def test_features_are_the_patches_row_by_row():
    _, encoder = tiny("augment.global_size=16")
    images = torch.randn(2, 1, 16, 16)
    own = guidance.latent_features(encoder, images, 4)
    tokens = encoder.tokens(images, 1)[-1][:, 1:]
    torch.testing.assert_close(own, tokens)
    halved = guidance.latent_features(encoder, images, 2)
    assert halved.shape == (2, 4, 16)
    with pytest.raises(TrainError, match="patch features"):
        guidance.latent_features(torch.nn.Identity(), images, 2)


def test_the_loss_is_minus_the_mean_cosine(rng):
    a, b = rng.standard_normal((2, 3, 5, 4))
    pairs = zip(a.reshape(-1, 4), b.reshape(-1, 4), strict=True)
    cosines = [x @ y / np.sqrt(x @ x * (y @ y)) for x, y in pairs]
    projected, features = (torch.tensor(x, requires_grad=True) for x in (a, b))
    loss = guidance.projection_loss(projected, features)
    assert loss.item() == pytest.approx(-np.mean(cosines))
    loss.backward()
    assert features.grad is None and projected.grad.abs().sum() > 0
    with pytest.raises(TrainError, match=r"expected \(3, 5, 4\); found \(3, 4, 4\)"):
        guidance.projection_loss(projected[:, 1:], features)
