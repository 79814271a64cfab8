"""Where images come from: every source gives uint8 images, a label and an id, by index.

They are squares, but for what is trained on with ``data.whole``.

Streams, which cannot be indexed, are in streams.py.
"""

from __future__ import annotations

import copy
import io
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from reference_train.config import Data
from reference_train.errors import TrainError, one_line
from reference_train.folders import Paths, images_below
from reference_train.images import Decoder


class Sample(NamedTuple):
    """One image before it is batched."""

    image: torch.Tensor  # uint8, (C, height, width)
    label: int  # -1 where there is none
    id: int  # its index in the source


class Unreadable(NamedTuple):
    """Takes the place of a sample that cannot be read."""

    name: str
    reason: str


class Source(Protocol):
    """Indexed images. `labels` is known without reading an image."""

    labels: np.ndarray  # int64, (n,); -1 where there is none
    classes: list[str] | None  # names of the labels, where they are known

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample | Unreadable: ...


class ImageArrays:
    """Images of ten numbered classes, in memory."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images = torch.from_numpy(images)
        self.labels = np.asarray(labels, dtype=np.int64)
        self.classes = [str(label) for label in range(10)]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.images[index], int(self.labels[index]), index)


class Files:
    """Image files, opened on access."""

    def __init__(
        self,
        paths: Paths,
        labels: np.ndarray,
        data: Data,
        classes: list[str] | None = None,
        left_out: str | None = None,
    ) -> None:
        self.paths, self.classes, self.left_out = paths, classes, left_out
        self.labels = labels
        self.decode = Decoder(data.size, data.channels)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample | Unreadable:
        path = self.paths[index]
        try:
            pixels = self.decode(path)
        except Exception as error:  # decoders may raise anything on a damaged file
            return Unreadable(str(path), str(error))
        return Sample(pixels, int(self.labels[index]), index)


class ImageTable:
    """A Hugging Face dataset with an index."""

    def __init__(self, table: Any, data: Data) -> None:
        self.table = with_encoded(table, data)
        self.image_key = data.image_key
        has_label = data.label_key in table.column_names
        labels = np.asarray(table[data.label_key] if has_label else [-1] * len(table))
        if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
            raise TrainError(f"data.label_key={data.label_key!r}: expected a column of integers")
        self.labels = labels.astype(np.int64)
        self.classes = getattr(table.features.get(data.label_key), "names", None)
        self.decode = Decoder(data.size, data.channels)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Sample | Unreadable:
        try:
            content = encoded(self.table[int(index)][self.image_key])
            pixels = self.decode(io.BytesIO(content))
        except Exception as error:  # decoders may raise anything on a damaged file
            return Unreadable(f"row {index}", str(error))
        return Sample(pixels, int(self.labels[index]), index)


def whole(source: Source, side: int | None) -> Source:
    """The source with all of its images' pixels, the longer side at most `side`."""
    if side is None:
        return source
    seen = copy.copy(source)
    seen.decode = source.decode._replace(whole=side)
    return seen


class Subset:
    """Some of a source's images; their ids remain the source's."""

    def __init__(self, source: Source, index: np.ndarray) -> None:
        self.source, self.index = source, index
        self.labels, self.classes = source.labels[index], source.classes

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Sample | Unreadable:
        return self.source[int(self.index[index])]


def long_tail(labels: np.ndarray, data: Data, seed: int) -> np.ndarray:
    """Indices of a part whose class sizes fall from ``long_tail_max`` to ``long_tail_min``.

    Class c of C (a random order, by the seed) keeps, with u = c / (C - 1),
    "pareto": the quantile of a Pareto law with exponent 6, as ImageNet-LT's, brought to the range;
    "exponential": max (min / max)^u, as CIFAR-LT's. A class with fewer images keeps all of them.
    """
    classes = np.unique(labels)
    u = np.linspace(0, 1, len(classes))
    largest, smallest = data.long_tail_max, data.long_tail_min
    if data.long_tail == "exponential":
        sizes = largest * (smallest / largest) ** u
    else:
        # x(q) = (1 - q)^(-1/6) at q = (C - c) / (C + 1): finite, and from its largest to its least
        x = ((np.arange(len(classes)) + 1) / (len(classes) + 1)) ** (-1 / 6)
        share = (x - x[-1]) / max(x[0] - x[-1], np.finfo(float).tiny)
        sizes = smallest + (largest - smallest) * share
    rng = np.random.default_rng(seed)
    kept = []
    for label, size in zip(rng.permutation(classes), np.rint(sizes).astype(int), strict=True):
        members = np.flatnonzero(labels == label)
        kept.append(rng.permutation(members)[:size])
    return np.sort(np.concatenate(kept))


# --- the sources ----------------------------------------------------------------------------------


def digits(data: Data) -> tuple[ImageArrays, ImageArrays]:
    """scikit-learn's 1797 handwritten digits, 8 x 8; every fifth image is for the test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    if data.channels != 1 or data.size != 8:
        raise TrainError("digits are grey, 8 x 8: data.channels=1 data.size=8")
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    test = np.arange(len(images)) % 5 == 0
    return ImageArrays(images[~test], digits.target[~test]), ImageArrays(
        images[test], digits.target[test]
    )


def synthetic(data: Data) -> tuple[ImageArrays, ImageArrays]:
    """Noise with ten labels: shapes and throughput without a data set."""
    rng = np.random.default_rng(0)
    shape = (data.channels, data.size, data.size)

    def noise(n: int) -> ImageArrays:
        return ImageArrays(rng.integers(0, 256, (n, *shape), dtype=np.uint8), np.arange(n) % 10)

    return noise(data.samples or 256), noise(64)


def folders(data: Data) -> tuple[Files, Files | None]:
    """PATH/train/CLASS/*.jpg and PATH/val/CLASS/*.jpg, or a list of files with labels."""
    root = Path(data.path)
    if not root.is_dir():
        raise TrainError(f"data.path: no folder {root}")
    if data.file_list is not None:
        train = _listed(root, Path(data.file_list), data)
    else:
        train = _classes(root / data.train_split, data)
    if data.test_split is None:
        return train, None
    return train, _classes(root / data.test_split, data, train.classes)


def _classes(folder: Path, data: Data, names: list[str] | None = None) -> Files:
    """The images below a folder; labels are places in `names`, by default the folder's own."""
    found = images_below(folder)
    if names is None:
        names = found.classes
    unknown = sorted(set(found.classes) - set(names))
    if unknown:
        raise TrainError(f"{folder}: {unknown[0]!r} is not a class of data.train_split")
    number = [names.index(name) for name in found.classes] + [-1]  # images without a class have -1
    labels = np.array(number)[found.labels]
    return Files(found.paths, labels, data, names, found.left_out)


def _listed(root: Path, file: Path, data: Data) -> Files:
    labels = array("q")

    def names(lines: Iterable[str]) -> Iterator[str]:
        for line in lines:
            if line.strip():
                name, label = line.rsplit(maxsplit=1)
                labels.append(int(label))
                yield name

    try:
        with file.open() as lines:
            paths = Paths(root, names(lines))
    except OSError as error:
        raise TrainError(f"data.file_list: {error}") from None
    except ValueError:
        raise TrainError(f"{file}: expected 'PATH LABEL' on each line") from None
    return Files(paths, np.array(labels), data)


def tables(data: Data) -> tuple[ImageTable, ImageTable | None]:
    """A data set of Hugging Face: a folder of `save_to_disk`, or a name that its hub knows."""
    test = None if data.test_split is None else ImageTable(load_table(data, data.test_split), data)
    return ImageTable(load_table(data, data.train_split), data), test


def load_table(data: Data, split: str, streaming: bool = False) -> Any:
    """One split of a Hugging Face data set, from a folder or by name."""
    import datasets

    try:
        if not Path(data.path).is_dir():
            return datasets.load_dataset(data.path, split=split, streaming=streaming)
        try:
            loaded = datasets.load_from_disk(data.path)
        except FileNotFoundError:  # files of images, parquet, ... rather than save_to_disk's
            return datasets.load_dataset(data.path, split=split, streaming=streaming)
        if isinstance(loaded, datasets.DatasetDict):
            loaded = loaded[split]
        shards = min(64, len(loaded))
        return loaded.to_iterable_dataset(num_shards=shards) if streaming else loaded
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        raise TrainError(f"data.path={data.path}, split {split!r}: {error}") from None


def with_encoded(table: Any, data: Data) -> Any:
    """The table with its images as they are stored, so that they are decoded like all others."""
    from datasets import Image as Column
    from datasets import Value

    features = table.features or {}  # a stream may not know them
    if features and data.image_key not in features:
        columns = ", ".join(features)
        raise TrainError(f"data.image_key={data.image_key!r}: the columns are {columns}")
    feature = features.get(data.image_key)
    mode = getattr(feature, "mode", None)
    if mode not in (None, "L" if data.channels == 1 else "RGB"):
        raise TrainError(
            f"data.image_key={data.image_key!r}: expected images as they are stored; "
            f"found a column that converts them to {mode}"
        )
    try:
        if isinstance(feature, Value) and not feature.dtype.endswith(("binary", "string")):
            raise TypeError(feature.dtype)  # a stream would notice it at its first image
        return table.cast_column(data.image_key, Column(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:
        raise TrainError(
            f"data.image_key={data.image_key!r}: expected a column of images; "
            f"found {one_line(error)}"
        ) from None


def encoded(content: dict[str, Any] | None) -> bytes:
    """An image of such a column: its bytes, or those of the file that it names."""
    if content is None:
        return b""
    return content["bytes"] or Path(content["path"]).read_bytes()
