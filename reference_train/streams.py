"""Data that is read in order: WebDataset shards, and Hugging Face data sets with streaming.

A pass over the shards is shuffled by (seed, pass) and split over lanes, of which each loading
process reads one or several; a lane mixes its samples in a buffer. Micro-batch g of all processes
comes from lane g mod L, so the order does not depend on who reads a lane.

A lane's place is its pass and how many samples of it were given. To go on from there the numbers
of the shards' samples are enough: which samples are in the buffer follows from the seed, and only
these are read again. In shards on a local disk nothing but the members' headers is read for it;
others are read through, without decoding.
"""

from __future__ import annotations

import functools
import io
import itertools
import random
import sys
import tarfile
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from reference_train.config import Data
from reference_train.data import Batch, Place, collate
from reference_train.errors import LocalError, TrainError, one_line
from reference_train.images import Decoder
from reference_train.sources import Sample, Unreadable, encoded, load_table, with_encoded

Raw = tuple[bytes, int, str]  # an encoded image, its label, its name
ALL = range(sys.maxsize)


class ShardStream:
    """Tar shards of WebDataset; reads raw bytes."""

    def __init__(self, data: Data, seed: int) -> None:
        from braceexpand import braceexpand

        self.shards = list(braceexpand(data.path))
        self.image_key, self.label_key, self.seed = data.image_key, data.label_key, seed

    def read(self, url: str, wanted: Container[int] = ALL) -> Iterator[Raw]:
        """(image, label, name) of a shard's samples, or of those at the `wanted` places."""
        suffixes = self.image_key.split(";")
        for i, sample in enumerate(_samples(url)):
            if i not in wanted:
                continue
            found = next((s for s in suffixes if s in sample), None)
            if found is None:
                keys = ", ".join(k for k in sample if not k.startswith("__"))
                raise LocalError(
                    f"data.image_key={self.image_key!r}: {sample['__key__']} has {keys}"
                )
            label = int(sample.get(self.label_key, lambda: b"-1")())
            yield sample[found](), label, sample["__key__"]

    @staticmethod
    def count(url: str) -> int:
        """Samples of a shard."""
        return sum(1 for _ in _samples(url))


def _samples(url: str) -> Iterator[dict[str, Any]]:
    """A shard's samples by WebDataset's rule: suffixes, and functions that read the contents."""
    from webdataset.gopen import gopen
    from webdataset.tariterators import group_by_keys

    path = Path(url.removeprefix("file:"))
    try:
        if not path.is_file():
            raise tarfile.ReadError
        archive = tarfile.open(path, "r:")  # noqa: SIM115  seeks; refuses what is compressed
    except tarfile.ReadError:
        with gopen(url) as stream, tarfile.open(fileobj=stream, mode="r|*") as archive:
            yield from group_by_keys(_members(url, archive, seeks=False))
        return
    with archive:
        yield from group_by_keys(_members(url, archive, seeks=True))


def _members(url: str, archive: tarfile.TarFile, *, seeks: bool) -> Iterator[dict[str, Any]]:
    """Files of a shard, without WebDataset's own and macOS's ``._NAME`` beside the file NAME."""
    for member in archive:
        name = member.name
        first, last = name.split("/", 1)[0], name.rsplit("/", 1)[-1]
        if not member.isreg() or (first[:2] == first[-2:] == "__") or last.startswith("._"):
            continue
        read = functools.partial(_content, archive, member)
        yield {"fname": name, "data": read if seeks else functools.partial(bytes, read())} | {
            "__url__": url
        }


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    return archive.extractfile(member).read()


class RowStream:
    """A streaming data set of Hugging Face."""

    def __init__(self, data: Data, seed: int) -> None:
        self.table = with_encoded(load_table(data, data.train_split, streaming=True), data)
        self.image_key, self.label_key, self.seed = data.image_key, data.label_key, seed
        self.shards = list(range(self.table.num_shards))

    def _rows(self, shard: int) -> Iterable[dict[str, Any]]:
        return self.table.shard(num_shards=len(self.shards), index=shard)

    def read(self, shard: int, wanted: Container[int] = ALL) -> Iterator[Raw]:
        """(image, label, name) of a shard's samples, or of those at the `wanted` places."""
        for i, row in enumerate(self._rows(shard)):
            if i not in wanted:
                continue
            label = row.get(self.label_key, -1)
            if type(label) is not int:
                raise LocalError(
                    f"data.label_key={self.label_key!r}: expected integers; found {label!r}"
                )
            yield encoded(row[self.image_key]), label, f"shard {shard}"

    def count(self, shard: int) -> int:
        """Samples of a shard."""
        return sum(1 for _ in self._rows(shard))


def open_stream(data: Data, seed: int) -> Stream:
    """The stream that ``data.source`` names."""
    return Stream(
        ShardStream(data, seed) if data.source == "webdataset" else RowStream(data, seed), data
    )


class Stream:
    """A stream's settings; `batches` opens it at a position."""

    def __init__(self, reader: ShardStream | RowStream, data: Data) -> None:
        self.reader, self.data = reader, data
        self.decode = Decoder(data.size, data.channels, data.whole)

    def decode_raw(self, sample: Raw) -> Sample | Unreadable:
        """A sample's pixels."""
        raw, label, name = sample
        try:
            return Sample(self.decode(io.BytesIO(raw)), label, -1)
        except Exception as error:  # decoders may raise anything on a damaged file
            return Unreadable(name, str(error))

    def lanes(self, world: int) -> int:
        """Of a run that begins on `world` processes: one for each loading process."""
        return world * max(self.data.workers, 1)

    def batches(
        self,
        size: int,
        *,
        rank: int,
        world: int,
        start: int,
        skip: bool,
        lanes: int,
        places: dict[int, Place],
    ) -> Batches:
        """Batches of one training process, from its `start`-th on, with the lanes' places there."""
        readers = self.lanes(world)
        if lanes % readers:
            raise TrainError(
                f"the run began with {lanes} lanes (processes x data.workers), which have to be "
                f"shared out: expected a divisor of {lanes}; found {readers}"
            )
        if len(self.reader.shards) < lanes:
            raise TrainError(
                f"{len(self.reader.shards)} shards for {lanes} readers (processes x data.workers)"
            )
        return Batches(self, size, rank, world, start, skip, lanes, places)


class Batches(IterableDataset):
    """Loading process w of W makes batches ``start + w, start + w + W, ...``."""

    def __init__(
        self,
        stream: Stream,
        size: int,
        rank: int,
        world: int,
        start: int,
        skip: bool,
        lanes: int,
        places: dict[int, Place],
    ) -> None:
        self.stream, self.size, self.skip, self.places = stream, size, skip, places
        self.rank, self.world, self.start, self.lanes = rank, world, start, lanes

    def __iter__(self) -> Iterator[Batch | Unreadable]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        opened: dict[int, tuple[Lane, Iterator[Sample | Unreadable]]] = {}
        try:
            for batch in itertools.count(self.start + worker, workers):
                number = (batch * self.world + self.rank) % self.lanes
                if number not in opened:
                    opened[number] = self._open(number)
                lane, samples = opened[number]
                made = collate(list(itertools.islice(samples, self.size)))
                place = (number, lane.epoch, lane.taken)
                yield made if isinstance(made, Unreadable) else made._replace(place=place)
        except (TrainError, OSError, tarfile.TarError, ValueError) as error:
            # returned, not raised: a loading process would add its traceback
            yield Unreadable(self.stream.data.path, one_line(error))

    def _open(self, number: int) -> tuple[Lane, Iterator[Sample | Unreadable]]:
        lane = Lane(self.stream.reader, number, self.lanes, self.stream.data.shuffle_buffer)
        if number in self.places:
            lane.epoch, lane.taken = self.places[number]
        else:  # by the micro-batches of all processes before this one
            lane.skip(-(-max(0, self.start * self.world - number) // self.lanes) * self.size)
        samples = map(self.stream.decode_raw, lane)
        if self.skip:
            samples = (sample for sample in samples if not isinstance(sample, Unreadable))
        return lane, samples


@dataclass
class Slot:
    """A sample on its way through the buffer; without its content while a place is looked for."""

    content: Raw | None = None
    at: tuple[Any, int] | None = None  # shard, number in it


class Lane:
    """Every L-th shard of each pass, without end; knows its place."""

    def __init__(self, reader: ShardStream | RowStream, number: int, lanes: int, size: int) -> None:
        self.reader, self.number, self.lanes, self.size = reader, number, lanes, size
        self.count: Callable[[Any], int] = functools.cache(reader.count)
        self.epoch = self.taken = 0

    def skip(self, samples: int) -> None:
        """Go so many samples on from the start, over whole passes by their length alone."""
        self.epoch, self.taken = 0, samples
        while self.taken and 0 < (length := sum(map(self.count, self._shards()))) <= self.taken:
            self.epoch, self.taken = self.epoch + 1, self.taken - length

    def __iter__(self) -> Iterator[Raw]:
        while True:
            for sample in self._pass():
                self.taken += 1
                yield sample
            if not self.taken:
                raise LocalError("a reader found no sample")
            self.epoch, self.taken = self.epoch + 1, 0

    def _shards(self) -> list[Any]:
        order = list(self.reader.shards)
        random.Random(f"{self.reader.seed} {self.epoch}").shuffle(order)
        return order[self.number :: self.lanes]

    def _pass(self) -> Iterator[Raw]:
        """A pass from the place on: what came before goes through the buffer as numbers."""
        before: dict[tuple[Any, int], Slot] = {}
        looking = self.taken > 0

        def slots() -> Iterator[Slot]:
            for shard in self._shards():
                number = 0
                while looking and number < self.count(shard):
                    slot = before[shard, number] = Slot(at=(shard, number))
                    yield slot
                    number += 1
                if not looking:
                    yield from map(Slot, self.reader.read(shard, range(number, sys.maxsize)))

        rng = random.Random(f"{self.reader.seed} {self.epoch} {self.number}")
        given = mixed(slots(), self.size, rng)
        for slot in itertools.islice(given, self.taken):
            del before[slot.at]
        looking = False
        self._read(before)
        for slot in given:
            yield slot.content

    def _read(self, slots: dict[tuple[Any, int], Slot]) -> None:
        """The contents of these slots."""
        for shard, found in itertools.groupby(sorted(slots), key=lambda at: at[0]):
            numbers = [number for _, number in found]
            for number, content in zip(numbers, self.reader.read(shard, set(numbers))):  # noqa: B905
                slots[shard, number].content = content


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
