"""What a report consists of: the names of its measures, and the records that hold them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from visreg_core import checks
from visreg_core.metrics import PowerLaw, Tanglegram
from visreg_core.metrics.trees.branches import Branch
from visreg_core.metrics.trees.linkage import METHODS, METRICS

DIMENSIONS: tuple[str, ...] = (
    "rankme",
    "participation_ratio",
    "stable_rank",
    "alpha_req",
    "alpha_req_r_squared",
    "condition_number",
)
GEOMETRY: tuple[str, ...] = ("mean_cosine", "norm_variation", "uniformity", "anti_hubs")
TREE: tuple[str, ...] = ("cophenetic_correlation",)
# Measures of labels: of the classified rows, and of the dendrogram's rows.
ASKED: tuple[str, ...] = ("hierarchical_knn_accuracy", "hierarchical_linear_accuracy")
OF_CLASSES: tuple[str, ...] = (
    "lidar",
    "hierarchical_rand_index",
    "hierarchical_adjusted_rand_index",
    "triplet_accuracy",
)
LABELLED: tuple[str, ...] = ASKED + OF_CLASSES
LOSSES: tuple[str, ...] = (
    "visreg_loss",
    "scale_loss",
    "shape_loss",
    "center_loss",
    "gaussian_sliced_wasserstein",
    "sigreg_loss",
    "variance_loss",
    "covariance_loss",
)
GAUSSIANITY: tuple[str, ...] = (
    "gaussianity_epps_pulley_z",
    "gaussianity_epps_pulley_p",
    "gaussianity_wasserstein_z",
    "gaussianity_wasserstein_p",
    "worst_direction_z",
    "worst_direction_p",
)
DISTANCE: tuple[str, ...] = ("sliced_wasserstein", "drift_p")
PAIR_OF_TREES: tuple[str, ...] = (
    "lca_similarity_pearson",
    "lca_similarity_spearman",
    "lca_similarity_kendall",
    "cophenetic_similarity_d1_to_p2",
    "cophenetic_similarity_d2_to_p1",
    "entanglement",
)
# What two files have in common where row i is the same item in both.
SAME_ITEMS: tuple[str, ...] = ("linear_cka", "mutual_knn", *PAIR_OF_TREES)
PAIR: tuple[str, ...] = DISTANCE + SAME_ITEMS


CLUSTERINGS = ("dendrogram", "spectral")


class TreeOptions(NamedTuple):
    """Rows drawn for a dendrogram, `linkage`'s method and metric, clusters of the Rand index."""

    rows: int = 2000
    method: str = "average"
    metric: str = "cosine"
    clustering: str = "dendrogram"

    def check(self) -> None:
        """ValueError where there is no such tree."""
        checks.positive_int("rows", self.rows, minimum=2)
        checks.choice("method", self.method, METHODS)
        checks.choice("metric", self.metric, METRICS)
        checks.choice("clustering", self.clustering, CLUSTERINGS)
        if self.method == "ward" and self.metric != "euclidean":
            raise ValueError(
                f"expected metric 'euclidean' for Ward's linkage; found {self.metric!r}"
            )

    def __str__(self) -> str:
        return f"{self.method} linkage, {self.metric} distance"


DEFAULT_TREE = TreeOptions()


class Measurement(NamedTuple):
    """A value and, where it is a mean over random slices, the standard error of that mean.

    `bound`: where it comes from histograms, how far it may be from the value of all rows (for the
    distances from the Gaussian, that is only larger).
    """

    value: float
    standard_error: float | None = None
    bound: float | None = None


class Interval(NamedTuple):
    """A value and, where it is that of a sample, a 95 % confidence interval."""

    value: float
    low: float | None = None
    high: float | None = None


class Finding(NamedTuple):
    """One judgement.

    verdict
        "good", "look" or "bad".
    subject, value
        What was judged, and what was found, in words.
    expected
        The normal range.
    cause, next_step
        The usual cause, and what to do about it.
    rows
        Row numbers of the file that it is about, the first of them; their ids where it has ids.
    """

    verdict: str
    subject: str
    value: str
    expected: str
    cause: str = ""
    next_step: str = ""
    rows: tuple[int | str, ...] = ()


class Hierarchy(NamedTuple):
    """The dendrogram of rows drawn from a file.

    `linkage` (T − 1, 4) of the T rows drawn; `measures` by the names of `TREE`; `labels` (T, L),
    the classes of these rows as codes, or None; `classes`, the names behind the codes.
    """

    linkage: np.ndarray
    measures: dict[str, float]
    labels: np.ndarray | None = None
    classes: tuple[tuple[str, ...], ...] = ()

    @property
    def n_classes(self) -> tuple[int, ...]:
        """How many classes of each level the rows drawn have."""
        return tuple(map(len, self.classes))

    @property
    def rows(self) -> int:
        """How many rows the dendrogram has."""
        return len(self.linkage) + 1


class Confusion(NamedTuple):
    """`counts` (C, C): how many rows of each class (a row) their neighbours give each class."""

    counts: tuple[tuple[int, ...], ...]
    classes: tuple[str, ...]


class Labelled(NamedTuple):
    """Agreement with labels, level by level.

    `n_classes` of all rows; `measures` by the names of `LABELLED`, one for each level, None where
    a level has no such measure; `asked` of `among` rows were classified, each by all other rows;
    `probe` is the linear rule; `confusion` by the neighbours, None of more than 40 classes.
    """

    n_classes: tuple[int, ...]
    measures: dict[str, tuple[Interval | None, ...]]
    asked: int
    among: int
    probe: str
    confusion: tuple[Confusion | None, ...] = ()


class TreePair(NamedTuple):
    """Similarity of two files' dendrograms, by the names of `PAIR_OF_TREES`, and their layout.

    `branches` of the first that the second arranges most differently; `rows` (T,) are the numbers
    of their leaves in the file, or their ids.
    """

    measures: dict[str, Interval]
    layout: Tanglegram
    branches: list[Branch]
    rows: np.ndarray


class Drift(NamedTuple):
    """A permutation test of whether two files are rows of one distribution.

    by_chance, by_chance_95
        Mean and 95 % bound of the distance of two files of these sizes from one distribution.
    p
        Share of permutations whose distance is as large, the files' own counted.
    rows, n_slices, n_permutations
        Rows of each file and slices that the test used, and how often they were dealt anew.
    paired
        Whether rows changed sides with their partner in the other file only.
    """

    by_chance: float
    by_chance_95: float
    p: float
    rows: tuple[int, int]
    n_slices: int
    n_permutations: int
    paired: bool


class Drawn(NamedTuple):
    """The rows drawn from a file for measures of pairs.

    `points` (T, D); `names` (T,), numbers in the file or ids; `neighbors` (T, k), the nearest
    others of each as places among them, and their cosine `distances`; their `texts` (T,), or None.
    """

    points: np.ndarray
    names: np.ndarray
    neighbors: np.ndarray
    distances: np.ndarray
    texts: np.ndarray | None = None


@dataclass(frozen=True)
class Pictures:
    """Arrays behind the figures.

    eigenvalues (D,) of the covariance, descending, and the power law `fit` to them; `sigma` (D,);
    `quantiles` (Q,) of the Gaussian, and those of the projections on the worst and the median
    slice (by shape loss), with their indices and values; `correlation` of `dimensions`;
    and the rows `drawn`.
    """

    eigenvalues: np.ndarray
    fit: PowerLaw
    sigma: np.ndarray
    quantiles: np.ndarray
    worst: np.ndarray
    median: np.ndarray
    worst_slice: tuple[int, float]
    median_slice: tuple[int, float]
    correlation: np.ndarray
    dimensions: np.ndarray
    drawn: Drawn


@dataclass(frozen=True)
class Report:
    """What is found in one file; see `visreg_core.report.report`.

    name, shape, dtype
        Of the file.
    rows_read
        How many of its rows were read.
    dropped
        Numbers of the rows left out because they hold NaN or Inf.
    dimensions, geometry, losses, gaussianity
        Measures by the names of `DIMENSIONS`, `GEOMETRY`, `LOSSES`, `GAUSSIANITY`.
    gaussian
        The measures of dimensions and geometry that as many rows of N(0, I) have.
    hierarchy, labelled
        The dendrogram, and agreement with labels (None without).
    findings
        Judgements, the worst first.

    notes, pictures
        What was left out of the file, or assumed of it, a line each; arrays behind the figures.
    """

    name: str
    shape: tuple[int, int]
    dtype: str
    rows_read: int
    dropped: np.ndarray
    dimensions: dict[str, float]
    geometry: dict[str, float]
    gaussian: dict[str, float]
    losses: dict[str, Measurement]
    gaussianity: dict[str, float]
    hierarchy: Hierarchy
    labelled: Labelled | None
    findings: list[Finding]
    notes: tuple[str, ...]
    pictures: Pictures = field(repr=False)

    def to_frame(self, backend: str = "pandas") -> Any:
        """A frame of pandas or polars with a row for each measure.

        Columns: ``file``, ``measure``, ``level`` of the labels from 1 or 0, ``value``,
        ``standard_error`` over slices, ``bound`` of histograms, ``low`` and ``high`` of an
        interval, and ``sample``, the number of rows where it is not all of them.
        """
        from visreg_core.report._measures import frame

        return frame([self], backend)

    def to_atlas(self, path: str) -> None:
        """Write the rows drawn as a Parquet file for embedding-atlas (extra ``io``).

        Columns: ``row``, its number or id; ``projection_x`` and ``projection_y``, two principal
        components; ``level1`` and on, its classes; ``neighbor_of``, how many others it is near to;
        ``neighbors``, places in the table and cosine distances of its nearest; ``vector``.
        """
        from visreg_core.report._atlas import to_parquet

        content = to_parquet(self)
        with open(path, "wb") as stream:
            stream.write(content)

    def _repr_html_(self) -> str | None:
        """What a notebook shows: the page that `visreg report --html` writes."""
        from visreg_core.report._html import framed

        return framed(Comparison([self], []))


class ChangedNeighbors(NamedTuple):
    """Rows drawn whose nearest others differ most between two files.

    rows : their numbers, or ids, those that keep least first; kept : the share of the `k` nearest
    others that each keeps. n_lost : rows that keep none, of `n`.
    """

    rows: list[Any]
    kept: list[float]
    k: int
    n_lost: int
    n: int


@dataclass(frozen=True)
class Pair:
    """Two files compared; a measure that they do not have is None."""

    first: str
    second: str
    sliced_wasserstein: Measurement | None
    drift: Drift | None
    linear_cka: float | None
    mutual_knn: float | None
    changed: ChangedNeighbors | None
    trees: TreePair | None

    def measure(self, name: str) -> Measurement | Interval | None:
        """The measure of `PAIR` of this name, or None."""
        if name == "sliced_wasserstein":
            return self.sliced_wasserstein
        if name in PAIR_OF_TREES:
            return None if self.trees is None else self.trees.measures[name]
        if name == "drift_p":
            value = None if self.drift is None else self.drift.p
        else:
            value = self.linear_cka if name == "linear_cka" else self.mutual_knn
        return None if value is None else Measurement(value)


@dataclass(frozen=True)
class Comparison:
    """Reports of several files and every pair of them; see `visreg_core.report.compare`."""

    reports: list[Report]
    pairs: list[Pair]
    tree: TreeOptions = DEFAULT_TREE
    paired: bool = False
    by_ids: bool = False
    steps: tuple[int, ...] = ()

    def to_frame(self, backend: str = "pandas") -> Any:
        """As `Report.to_frame`, of all files."""
        from visreg_core.report._measures import frame

        return frame(self.reports, backend)

    def _repr_html_(self) -> str | None:
        """What a notebook shows: the page that `visreg compare --html` writes."""
        from visreg_core.report._html import framed

        return framed(self)
