"""Paths in WordNet, of a few synsets in place of NLTK's data; and of those where they are."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from visreg_core.metrics import hierarchical_labels, wordnet_paths

# Name, and parents, of the synset at each offset.
SYNSETS = {
    1: ("entity.n.01", []),
    2: ("animal.n.01", [1]),
    3: ("dog.n.01", [9, 4]),
    4: ("domestic_animal.n.01", [2]),
    5: ("canine.n.02", [8]),
    6: ("poodle.n.01", [3]),
    7: ("wolf.n.01", [5]),
    8: ("carnivore.n.01", [2]),
    9: ("canid.n.01", [2]),
}


class Synset:
    def __init__(self, offset):
        self.offset = offset

    def name(self):
        return SYNSETS[self.offset][0]

    def hypernym_paths(self):
        above = SYNSETS[self.offset][1]
        return [[*p, self] for a in above for p in Synset(a).hypernym_paths()] or [[self]]


def corpus(version="3.0", missing=False):
    def get_version():
        if missing:
            raise LookupError("a page of text")
        return version

    return SimpleNamespace(
        get_version=get_version,
        synset_from_pos_and_offset=lambda pos, at: Synset(at) if at in SYNSETS else None,
    )


def install(monkeypatch, wordnet):
    monkeypatch.setitem(sys.modules, "nltk", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "nltk.corpus", SimpleNamespace(wordnet=wordnet))


def test_one_path_to_each(monkeypatch):
    """A dog is a canid and a domestic animal, both equally near the root: the first by name."""
    install(monkeypatch, corpus())
    items = ["n00000006", "n00000007", "n00000006", "n00000003"]
    paths = wordnet_paths(items[:3])
    assert paths == [
        ("entity.n.01", "animal.n.01", "canid.n.01", "dog.n.01", "n00000006"),
        ("entity.n.01", "animal.n.01", "carnivore.n.01", "canine.n.02", "n00000007"),
    ]
    labels = hierarchical_labels(items[:3], paths)
    np.testing.assert_array_equal(labels, [[0, 0, 0], [1, 1, 1], [0, 0, 0]])


def test_errors(monkeypatch):
    install(monkeypatch, corpus())
    for name in ("dog", "n123", "n00000077"):
        with pytest.raises(ValueError, match=rf"as 'n02084071'; found '{name}'"):
            wordnet_paths([name])
    install(monkeypatch, corpus("3.1"))
    with pytest.raises(ValueError, match=r"expected WordNet 3\.0.*found 3\.1"):
        wordnet_paths(["n00000006"])
    install(monkeypatch, corpus(missing=True))
    with pytest.raises(LookupError, match=r"found none: python -m nltk\.downloader wordnet"):
        wordnet_paths(["n00000006"])
    monkeypatch.setitem(sys.modules, "nltk", None)
    monkeypatch.setitem(sys.modules, "nltk.corpus", None)
    with pytest.raises(ImportError, match=r"pip install 'visreg-core\[wordnet\]'"):
        wordnet_paths(["n00000006"])


def test_nltks_data():
    corpora = pytest.importorskip("nltk.corpus")
    try:
        corpora.wordnet.get_version()
    except LookupError:
        pytest.skip("NLTK's WordNet is not installed")
    (path,) = wordnet_paths(["n02085620"])  # Chihuahua
    assert path[0] == "entity.n.01"
    assert {"animal.n.01", "dog.n.01"} <= set(path)
    assert path[-1] == "n02085620"
