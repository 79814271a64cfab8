"""What the torch examples train: two noisy views of scikit-learn's digits, and a small encoder."""

import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from torch import nn


class Digits(torch.utils.data.Dataset):
    """Two views (2, 64) of every image."""

    def __init__(self):
        images, self.labels = load_digits(return_X_y=True)
        self.images = torch.tensor(images / 16, dtype=torch.float32)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        image = self.images[i].expand(2, 64)
        shown = torch.rand(2, 64) > 0.25
        return {"views": image * shown + 0.1 * torch.randn(2, 64)}


def make_encoder():
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32))


@torch.no_grad()
def knn_accuracy(encoder):
    """How many of the second half's digits their nearest neighbours in the first half name."""
    digits = Digits()
    z = encoder(digits.images).numpy()
    half = len(z) // 2
    knn = KNeighborsClassifier().fit(z[:half], digits.labels[:half])
    return knn.score(z[half:], digits.labels[half:])
