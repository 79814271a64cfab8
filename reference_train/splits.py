"""What a run reads: its training source, and what it is evaluated on."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from reference_train import sources
from reference_train.config import Data
from reference_train.errors import TrainError
from reference_train.sources import Source


class Splits(NamedTuple):
    """What a run reads. `bank` and `test` have all classes, `train` those of ``data.classes``."""

    train: Any  # Source, or a stream
    bank: Source | None  # labelled training images, which probes are fitted on
    test: Source | None  # labelled images of ``data.test_split``, which they are tested on
    notes: tuple[str, ...] = ()  # what was left out, a line each
    classes: list[str] | None = None  # names of the labels 0, 1, ...; none where none are known

    @property
    def n_classes(self) -> int:
        """Labels of the bank are below it; 0 where there are none."""
        return 0 if self.bank is None else int(self.bank.labels.max()) + 1


def open_splits(data: Data, seed: int = 0) -> Splits:
    """The training source and what it is evaluated on."""
    if data.source == "webdataset" or (data.source == "hf" and data.streaming):
        from reference_train.streams import open_stream  # its libraries are for streams alone

        return Splits(open_stream(data, seed), None, None)
    bank, test = {
        "digits": sources.digits,
        "folder": sources.folders,
        "hf": sources.tables,
        "synthetic": sources.synthetic,
    }[data.source](data)
    if data.test_split is None:
        test = None
    classes = bank.classes
    notes = tuple(s.left_out for s in (bank, test) if isinstance(s, sources.Files) and s.left_out)
    train = sources.whole(bank, data.whole)
    if data.long_tail is not None:
        rows = sources.long_tail(bank.labels, data, seed)
        bank, train = sources.Subset(bank, rows), sources.Subset(train, rows)
    if data.classes is not None:
        missing = sorted(set(data.classes) - set(bank.labels.tolist()))
        if missing:
            raise TrainError(
                f"data.classes: expected classes with images; found {missing[:8]} without, of "
                f"{len(np.unique(bank.labels))} classes"
            )
        train = sources.Subset(train, np.flatnonzero(np.isin(bank.labels, data.classes)))
    if test is not None and not (test.labels >= 0).all():
        notes += _no_labels(data.test_split, test.labels, "nothing is tested")
        test = None
    if not (bank.labels >= 0).all():
        notes += _no_labels(data.train_split, bank.labels, "no probe and no evaluation")
        return Splits(train, None, None, notes, classes)
    return Splits(train, bank, test, notes, classes)


def _no_labels(split: str, labels: np.ndarray, so: str) -> tuple[str, ...]:
    return (f"{split}: {int((labels < 0).sum())} of {len(labels)} images have no label: {so}",)
