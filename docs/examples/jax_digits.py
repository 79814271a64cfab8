"""Handwritten digits for the training examples: two noisy views of a batch, and a linear probe."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeClassifier

DIGITS = load_digits()
PIXELS = (DIGITS.data / 16).astype(np.float32)  # (1797, 64), 0 ... 1
TRAIN, HELD_OUT = slice(0, None, 2), slice(1, None, 2)


def two_views(rng, size):
    """(2, size, 64): a batch of images twice, each with pixels dropped and noise of its own."""
    images = PIXELS[TRAIN][rng.integers(0, len(PIXELS[TRAIN]), size)]
    views = np.stack([images, images])
    views *= rng.uniform(size=views.shape) > 0.25
    return views + 0.1 * rng.standard_normal(views.shape, dtype=np.float32)


def probe_accuracy(embed):
    """Of a linear classifier of frozen embeddings, on images that nobody was trained on."""
    train, held_out = np.asarray(embed(PIXELS[TRAIN])), np.asarray(embed(PIXELS[HELD_OUT]))
    probe = RidgeClassifier().fit(train, DIGITS.target[TRAIN])
    return probe.score(held_out, DIGITS.target[HELD_OUT])
