"""Agreement of rows with their labels: each is classified by all other rows.

The neighbours and the linear rule use every row that was read. The number of rows that are
classified is bounded by time; where it is not all, accuracies have intervals.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from visreg_core.metrics import _discriminant, lidar
from visreg_core.report._model import Confusion, Interval
from visreg_core.report._nearest import Nearest
from visreg_core.statistics import Moments

NEIGHBORS = 20
# Multiplications for all classified rows: some ten seconds.
_PRODUCTS = 3e11
_FEWEST_CLASSIFIED = 1000
# Largest size of the classes' means.
_MEANS = 1 << 26
_Z = 1.959963984540054  # of a 95 % interval
# Share of neighbours of one other class that makes a label doubtful.
_SURE = 0.9
# Fewest rows that make a confusion of two classes.
_FEWEST_CONFUSED = 5
# Most classes whose confusions are shown.
_SHOWN_CLASSES = 40


class Levels(NamedTuple):
    """Labels of all rows: codes (N,) and names of each level, the coarsest first."""

    codes: tuple[np.ndarray, ...]
    names: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, labels: np.ndarray) -> Levels:
        """Levels of labels (N,) or (N, L)."""
        codes, names = [], []
        for column in labels.reshape(len(labels), -1).T:
            known, code = np.unique(column, return_inverse=True)
            codes.append(code)
            names.append(tuple(map(str, known.tolist())))
        return cls(tuple(codes), tuple(names))

    def at(self, rows: np.ndarray | slice) -> Levels:
        """Those of some rows, with the names of all."""
        return Levels(tuple(c[rows] for c in self.codes), self.names)

    def sizes(self, level: int) -> np.ndarray:
        """How many rows each class has."""
        return np.bincount(self.codes[level], minlength=len(self.names[level]))

    def has_classes(self, level: int) -> bool:
        """Whether there is more than one class, and one of more than one row."""
        return 1 < int(np.count_nonzero(self.sizes(level))) < len(self.codes[level])


class Answers(NamedTuple):
    """Classes predicted for some rows.

    `rows`, as places among the rows read; on each level their true class, the classes predicted by
    the neighbours and by the linear rule (None where the level has a single class, or
    no rule was requested), and the share of neighbours that agree.
    """

    rows: np.ndarray
    true: tuple[np.ndarray, ...]
    neighbors: tuple[np.ndarray | None, ...]
    votes: tuple[np.ndarray | None, ...]
    linear: tuple[np.ndarray | None, ...]


def asked_rows(n: int, d: int) -> int:
    """How many of n rows of d dimensions are classified by default."""
    return min(n, max(_FEWEST_CLASSIFIED, int(_PRODUCTS / (n * (d + 64)))))


class Asking:
    """What the second pass over all rows answers; shown each block of rows with their places.

    `rows` are the places of the `queries` (M, D) among all n rows. The linear rule needs the sums
    of the classes' rows.
    """

    def __init__(
        self,
        n: int,
        of: Moments,
        levels: Levels,
        rows: np.ndarray,
        queries: np.ndarray,
        metric: str,
        *,
        linear: bool,
    ) -> None:
        self.of, self.levels = of, levels
        self.rows, self.queries = rows, queries
        self.known = [k for k in range(len(levels.codes)) if levels.has_classes(k)]
        d = queries.shape[1]
        lines = [k for k in self.known if linear and len(levels.names[k]) * d <= _MEANS]
        self.sums = {k: np.zeros((len(levels.names[k]), d)) for k in lines}
        self.near = Nearest(rows, queries, min(NEIGHBORS, n - 1), metric)

    def update(self, places: slice, block: np.ndarray) -> None:
        """Let these rows of all answer."""
        if not self.known:
            return
        self.near.update(places, block)
        if self.sums:
            z = block.astype(np.float64) - self.of.mean
            for level, sums in self.sums.items():
                codes = self.levels.codes[level][places]
                sums += _discriminant.class_sums(z, codes, len(sums))

    def answers(self) -> Answers:
        """What all rows say."""
        index = self.near.places()
        true = tuple(c[self.rows] for c in self.levels.codes)
        predicted: list[np.ndarray | None] = []
        votes: list[np.ndarray | None] = []
        lines: list[np.ndarray | None] = []
        for level, codes in enumerate(self.levels.codes):
            known = level in self.known
            answer, share = majority(codes[index]) if known else (None, None)
            predicted.append(answer)
            votes.append(share)
            line = None
            if level in self.sums:
                of, sizes = self.of, self.levels.sizes(level)
                rule = _discriminant.fit(sizes, self.sums[level], of.mean, of.scatter())
                line = _discriminant.predict(rule, self.queries, true[level])
            lines.append(line)
        return Answers(self.rows, true, tuple(predicted), tuple(votes), tuple(lines))


def accuracy(predicted: np.ndarray | None, true: np.ndarray, n: int) -> Interval | None:
    """Share classified correctly, with Wilson's interval (1927) where not all n rows were.

    Rows are drawn without replacement, which narrows the interval by the finite population's factor
    (n − 1)/(n − m) of m rows.
    """
    if predicted is None:
        return None
    asked, p = len(true), float(np.mean(predicted == true))
    if asked == n:
        return Interval(p)
    m = asked * (n - 1) / (n - asked)
    center = (p + _Z**2 / (2 * m)) / (1 + _Z**2 / m)
    reach = _Z / (1 + _Z**2 / m) * math.sqrt(p * (1 - p) / m + _Z**2 / (4 * m * m))
    return Interval(p, max(0.0, center - reach), min(1.0, center + reach))


def lidar_of(points: np.ndarray, codes: np.ndarray) -> Interval | None:
    """LiDAR of rows with their classes as sources; None where no class has two, or there is one."""
    classes = np.unique(codes).size
    if not 1 < classes < len(codes):
        return None
    return Interval(lidar(points.astype(np.float64), codes.tolist()))


def sure_of_another(answers: Answers, level: int) -> np.ndarray:
    """Places among the classified rows that both rules put into one other class."""
    predicted, votes = answers.neighbors[level], answers.votes[level]
    if predicted is None or votes is None:
        return np.empty(0, np.intp)
    other = (predicted != answers.true[level]) & (votes >= _SURE)
    line = answers.linear[level]
    if line is not None:
        other &= line == predicted
    return np.flatnonzero(other)


def confusion(
    predicted: np.ndarray | None, true: np.ndarray, classes: tuple[str, ...]
) -> Confusion | None:
    """Which classes are taken for which; None where they are not asked for, or too many to show."""
    count = len(classes)
    if predicted is None or count > _SHOWN_CLASSES:
        return None
    pairs = np.bincount(true * count + predicted, minlength=count**2)
    return Confusion(tuple(map(tuple, pairs.reshape(count, count).tolist())), classes)


def confused(answers: Answers, level: int) -> tuple[int, int, float] | None:
    """The class most often taken for one other class, that class, and the share of its rows."""
    predicted, true = answers.neighbors[level], answers.true[level]
    if predicted is None:
        return None
    sizes = np.bincount(true)
    wrong = predicted != true
    if not wrong.any():
        return None
    pairs, counts = np.unique(np.stack([true[wrong], predicted[wrong]]), axis=1, return_counts=True)
    top = int(np.argmax(counts))
    first, second = pairs[:, top].tolist()
    if counts[top] < _FEWEST_CONFUSED:
        return None
    return first, second, float(counts[top] / sizes[first])


# --- neighbours -----------------------------------------------------------------------------------


def majority(classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Most frequent of each row's k classes (M, k), the least of equal ones; and its share."""
    step = max(1, (1 << 22) // classes.shape[1] ** 2)
    predicted, share = [], []
    for start in range(0, len(classes), step):
        c = np.sort(classes[start : start + step], axis=1)
        counts = np.sum(c[:, :, None] == c[:, None, :], axis=2)
        top = np.argmax(counts, axis=1)[:, None]
        predicted.append(np.take_along_axis(c, top, axis=1)[:, 0])
        share.append(np.take_along_axis(counts, top, axis=1)[:, 0] / c.shape[1])
    return np.concatenate(predicted), np.concatenate(share)
