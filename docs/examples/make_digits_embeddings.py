"""Two embeddings of the 1797 handwritten digits that scikit-learn ships, and their labels.

    python docs/examples/make_digits_embeddings.py FOLDER

writes ``pixels.npy`` (1797, 64), the images themselves; ``projection.npy`` (1797, 16), the hidden
layer of a small classifier trained on every second image; and ``labels.npy`` (1797,).
"""

import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier


def main(folder):
    digits = load_digits()
    pixels = (digits.data / 16).astype(np.float32)  # 16 grey levels, as 0 ... 1
    classifier = MLPClassifier(
        hidden_layer_sizes=(16,), activation="tanh", alpha=1e-3, max_iter=1000, random_state=0
    )
    train, held_out = slice(0, None, 2), slice(1, None, 2)
    classifier.fit(pixels[train], digits.target[train])
    accuracy = classifier.score(pixels[held_out], digits.target[held_out])
    projection = np.tanh(pixels @ classifier.coefs_[0] + classifier.intercepts_[0])

    folder.mkdir(parents=True, exist_ok=True)
    for name, array in {
        "pixels": pixels,
        "projection": projection.astype(np.float32),
        "labels": digits.target,
    }.items():
        np.save(folder / f"{name}.npy", array)
        print(f"{folder / name}.npy  {array.dtype}  {array.shape}")
    print(f"the projection's classifier is right on {accuracy:.1%} of the images it never saw")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
