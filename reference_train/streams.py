"""Data that is read in order: WebDataset shards, and Hugging Face data sets with streaming.

A pass over the shards is shuffled by (seed, pass), split over all readers (loading processes of
all training processes), and mixed in a buffer. Resuming replays a reader's order without decoding
up to its position: slow for late positions, but exact.
"""

from __future__ import annotations

import io
import itertools
import random
import tarfile
from collections.abc import Iterable, Iterator
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from reference_train.config import Data
from reference_train.data import Batch, collate
from reference_train.errors import LocalError, TrainError, one_line
from reference_train.images import decoded
from reference_train.sources import Sample, Unreadable, encoded, load_table, with_encoded

Raw = tuple[bytes, int, str]  # an encoded image, its label, its name


class ShardStream:
    """Tar shards of WebDataset; reads raw bytes."""

    def __init__(self, data: Data, seed: int) -> None:
        from braceexpand import braceexpand

        self.urls = list(braceexpand(data.path))
        self.image_key, self.label_key, self.seed = data.image_key, data.label_key, seed

    def parts(self) -> int:
        """Shards."""
        return len(self.urls)

    def read(self, epoch: int, part: int, parts: int) -> Iterator[Raw]:
        """(image, label, name) of every parts-th shard of a pass."""
        from webdataset.gopen import gopen
        from webdataset.tariterators import group_by_keys, tar_file_expander

        urls = list(self.urls)
        random.Random(f"{self.seed} {epoch}").shuffle(urls)
        suffixes = self.image_key.split(";")
        for url in urls[part::parts]:
            with gopen(url) as stream:
                shard = [{"url": url, "stream": stream}]
                for sample in group_by_keys(tar_file_expander(shard, select_files=_no_double)):
                    found = next((s for s in suffixes if s in sample), None)
                    if found is None:
                        keys = ", ".join(k for k in sample if not k.startswith("__"))
                        raise LocalError(
                            f"data.image_key={self.image_key!r}: {sample['__key__']} has {keys}"
                        )
                    label = int(sample.get(self.label_key, b"-1"))
                    yield sample[found], label, sample["__key__"]


def _no_double(member: str) -> bool:
    """Not AppleDouble's: macOS adds ``._NAME`` with what it knows about the file NAME."""
    return not member.rsplit("/", 1)[-1].startswith("._")


class RowStream:
    """A streaming data set of Hugging Face."""

    def __init__(self, data: Data, seed: int) -> None:
        self.table = with_encoded(load_table(data, data.train_split, streaming=True), data)
        self.image_key, self.label_key, self.seed = data.image_key, data.label_key, seed

    def parts(self) -> int:
        """Shards."""
        return self.table.num_shards

    def read(self, epoch: int, part: int, parts: int) -> Iterator[Raw]:
        """(image, label, name) of every parts-th shard of a pass."""
        order = list(range(self.parts()))
        random.Random(f"{self.seed} {epoch}").shuffle(order)
        for shard in order[part::parts]:
            for row in self.table.shard(num_shards=self.parts(), index=shard):
                label = row.get(self.label_key, -1)
                if type(label) is not int:
                    raise LocalError(
                        f"data.label_key={self.label_key!r}: expected integers; found {label!r}"
                    )
                yield encoded(row[self.image_key]), label, f"shard {shard}"


def open_stream(data: Data, seed: int) -> Stream:
    """The stream that ``data.source`` names."""
    return Stream(
        ShardStream(data, seed) if data.source == "webdataset" else RowStream(data, seed), data
    )


class Stream:
    """A stream's settings; `batches` opens it at a position."""

    def __init__(self, reader: ShardStream | RowStream, data: Data) -> None:
        self.reader, self.data = reader, data

    def batches(self, size: int, *, rank: int, world: int, start: int, skip: bool) -> Batches:
        """Batches of one training process, from its `start`-th on."""
        readers = world * max(self.data.workers, 1)
        if self.reader.parts() < readers:
            raise TrainError(
                f"{self.reader.parts()} shards for {readers} readers (processes x data.workers)"
            )
        return Batches(self, size, rank, world, start, skip)


class Batches(IterableDataset):
    """Loading process w of W makes batches ``start + w, start + w + W, ...``.

    Batch b is always the work of reader b mod W, so the batches do not depend on the position at
    which the loading processes were started.
    """

    def __init__(
        self, stream: Stream, size: int, rank: int, world: int, start: int, skip: bool
    ) -> None:
        self.stream, self.size, self.skip = stream, size, skip
        self.rank, self.world, self.start = rank, world, start

    def __iter__(self) -> Iterator[Batch | Unreadable]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        first = self.start + worker
        part = self.rank * workers + first % workers
        raw = self._endless(part, self.world * workers)
        decoded = map(self._decode, itertools.islice(raw, self._taken(first, workers), None))
        if self.skip:
            decoded = (sample for sample in decoded if not isinstance(sample, Unreadable))
        try:
            while True:
                yield collate(list(itertools.islice(decoded, self.size)))
        except (TrainError, OSError, tarfile.TarError, ValueError) as error:
            # returned, not raised: a loading process would add its traceback
            yield Unreadable(self.stream.data.path, one_line(error))

    def _taken(self, batch: int, workers: int) -> int:
        """Samples that batch's reader gave before it (exactly so unless unreadable are skipped)."""
        return batch // workers * self.size

    def _endless(self, part: int, parts: int) -> Iterator[Raw]:
        for epoch in itertools.count():
            rng = random.Random(f"{self.stream.reader.seed} {epoch} {part}")
            samples = self.stream.reader.read(epoch, part, parts)
            empty = True
            for sample in mixed(samples, self.stream.data.shuffle_buffer, rng):
                empty = False
                yield sample
            if empty:
                raise LocalError(f"data.path={self.stream.data.path}: a reader found no sample")

    def _decode(self, sample: Raw) -> Sample | Unreadable:
        raw, label, name = sample
        data = self.stream.data
        try:
            return Sample(decoded(io.BytesIO(raw), data.size, data.channels), label, -1)
        except Exception as error:  # decoders may raise anything on a damaged file
            return Unreadable(name, str(error))


def mixed(samples: Iterable[Any], size: int, rng: random.Random) -> Iterator[Any]:
    """Samples through a buffer of `size`, each time one of it at random."""
    buffer: list[Any] = []
    for sample in samples:
        if len(buffer) < size:
            buffer.append(sample)
            continue
        index = rng.randrange(size)
        yield buffer[index]
        buffer[index] = sample
    rng.shuffle(buffer)
    yield from buffer
