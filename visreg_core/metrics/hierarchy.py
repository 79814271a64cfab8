"""Accuracy on a hierarchy of labels: of nearest neighbours, and of linear probes.

Labels are ``(N, L)``, column 0 the coarsest level (`hierarchical_labels` makes them from a tree);
``(N,)`` is one level. Logistic regression is scikit-learn's, on the host.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from visreg_core import _xp, checks
from visreg_core.metrics import _discriminant
from visreg_core.metrics._inputs import labels as host_labels
from visreg_core.metrics._inputs import matrix
from visreg_core.metrics._levels import level_columns
from visreg_core.metrics._resampling import drawn_order, taken
from visreg_core.metrics.similarity import METRICS, nearest
from visreg_core.optional import require
from visreg_core.typing import Array

_SOLVERS = ("logistic", "discriminant")


def hierarchical_knn_accuracy(
    x: Array,
    labels: Any,
    *,
    test: Array | None = None,
    test_labels: Any = None,
    k: int = 20,
    metric: str = "cosine",
    temperature: float | None = None,
) -> tuple[float, ...]:
    """Top-1 accuracy of a nearest-neighbour classifier, level by level (SAG-VICReg Table 4).

    Parameters
    ----------
    x : array (N, D)
        Embeddings, any namespace; neighbours are searched there, votes counted on the host.
    labels : array_like (N, L) or (N,)
        Column 0 the coarsest level. Each level votes for itself.
    test, test_labels : array (M, D), array_like (M, L) or (M,), optional
        Items to classify by their neighbours in `x`. Without them each item of `x` is classified
        by the others (leave one out).
    k : int
        Neighbours that vote, those of `mutual_knn`; equal distances go by a random order of `x`.
        Ties of votes go to the class that sorts first.
    metric : str
        "cosine" or "euclidean".
    temperature : float, optional
        A vote weighs exp(cosine / temperature), as in Wu et al. 2018 (0.07); only for "cosine".
        Without it all votes are equal.

    Returns
    -------
    tuple of float
        Accuracy on each level, in [0, 1].

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import hierarchical_knn_accuracy
    >>> x = np.asarray([[0.0], [0.1], [1.0], [1.1], [9.0], [9.1]])
    >>> labels = [[0, 0], [0, 0], [0, 1], [0, 1], [1, 2], [1, 2]]
    >>> hierarchical_knn_accuracy(x, labels, k=1, metric="euclidean")
    (1.0, 1.0)
    """
    checks.choice("metric", metric, METRICS)
    checks.positive_int("k", k)
    if temperature is not None and (metric != "cosine" or not 0 < temperature < math.inf):
        raise ValueError(
            "expected a positive temperature with metric='cosine'; "
            f"found {temperature!r} with {metric!r}"
        )
    queries, columns, truth = _split(x, labels, test, test_labels)
    candidates = x.shape[0] - (test is None)
    if k > candidates:
        raise ValueError(f"expected k <= {candidates} neighbours; found k = {k}")
    order = drawn_order(x.shape[0])
    x, columns = taken(x, order), [c[order] for c in columns]
    if test is None:
        queries, truth = x, columns
    index, distance = nearest(queries, x, k, metric=metric, leave_one_out=test is None)
    if temperature is None:
        weights = np.ones(index.shape)
    else:
        weights = np.exp((distance[:, :1] - distance) / temperature)
    accuracies = []
    for column, true in zip(columns, truth, strict=True):
        votes = np.zeros((index.shape[0], int(column.max()) + 1))
        np.add.at(votes, (np.arange(index.shape[0])[:, None], column[index]), weights)
        accuracies.append(float(np.mean(votes.argmax(axis=1) == true)))
    return tuple(accuracies)


def hierarchical_linear_accuracy(
    x: Array,
    labels: Any,
    *,
    test: Array | None = None,
    test_labels: Any = None,
    solver: str = "logistic",
    regularization: float = 1.0,
    n_folds: int = 5,
    max_iter: int = 1000,
    seed: int = 0,
) -> tuple[float, ...]:
    """Top-1 accuracy of a linear probe, trained anew on each level (SAG-VICReg Table 5).

    Computed on the host, in float64.

    Parameters
    ----------
    x : array (N, D)
        Embeddings, any namespace.
    labels : array_like (N, L) or (N,)
        Column 0 the coarsest level.
    test, test_labels : array (M, D), array_like (M, L) or (M,), optional
        Items to classify. Without them: stratified cross-validation on `x` ("logistic"), or each
        item by a rule that leaves it out ("discriminant").
    solver : str
        "logistic": scikit-learn's multinomial logistic regression, on columns standardised by the
        training rows. "discriminant": linear discriminant analysis, the covariance within classes
        shrunk by 0.1 towards a multiple of I; in closed form, a hundred times faster for hundreds
        of classes, and mostly within a few hundredths of the other.
    regularization : float
        Weight of the squared norm of the coefficients, scikit-learn's 1/C.
    n_folds : int
        Of the cross-validation; classes of fewer items are missing from some folds, and
        scikit-learn warns of them. One class at least needs as many.
    max_iter : int
        Of the optimiser, L-BFGS; scikit-learn warns where it does not suffice.
    seed : int
        Of the folds. This and the three before it are for "logistic" alone.

    Returns
    -------
    tuple of float
        Accuracy on each level, in [0, 1]; 1 on a level of a single class.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import hierarchical_linear_accuracy
    >>> x = np.arange(12.0)[:, None]
    >>> hierarchical_linear_accuracy(x, (x[:, 0] > 5).astype(int), n_folds=3)
    (1.0,)
    """
    if not 0 < regularization < math.inf:
        raise ValueError(f"expected regularization to be positive; found {regularization!r}")
    checks.choice("solver", solver, _SOLVERS)
    checks.positive_int("n_folds", n_folds, minimum=2)
    checks.positive_int("max_iter", max_iter)
    queries, columns, truth = _split(x, labels, test, test_labels)
    if solver == "discriminant":
        points, tested = _host_rows("x", x), _host_rows("test", queries)
        return tuple(
            float(np.mean(_discriminant.classify(points, c, None if test is None else tested) == t))
            for c, t in zip(columns, truth, strict=True)
        )
    purpose = "a linear probe"
    linear_model = require("sklearn.linear_model", extra="report", purpose=purpose)
    selection = require("sklearn.model_selection", extra="report", purpose=purpose)
    pipeline = require("sklearn.pipeline", extra="report", purpose=purpose)
    preprocessing = require("sklearn.preprocessing", extra="report", purpose=purpose)

    def probe() -> Any:
        return pipeline.make_pipeline(
            preprocessing.StandardScaler(),
            linear_model.LogisticRegression(C=1 / regularization, max_iter=max_iter),
        )

    points, tested = _host_rows("x", x), _host_rows("test", queries)

    def accuracy(column: np.ndarray, true: np.ndarray) -> float:
        if np.unique(column).size == 1:
            predicted = np.full(true.shape, column[0])
        elif test is None:
            if np.bincount(column).max() < n_folds:
                raise ValueError(
                    f"expected n_folds <= {np.bincount(column).max()}, the items of the largest "
                    f"class; found {n_folds}"
                )
            folds = selection.StratifiedKFold(n_folds, shuffle=True, random_state=seed)
            predicted = selection.cross_val_predict(probe(), points, column, cv=folds)
        else:
            predicted = probe().fit(points, column).predict(tested)
        return float(np.mean(predicted == true))

    return tuple(accuracy(c, t) for c, t in zip(columns, truth, strict=True))


def _host_rows(argument: str, x: Array) -> np.ndarray:
    return np.asarray(_xp.to_numpy(matrix(argument, x, min_rows=1)[1]), dtype=np.float64)


def _split(
    x: Array, labels: Any, test: Array | None, test_labels: Any
) -> tuple[Array, list[np.ndarray], list[np.ndarray]]:
    """Rows to classify, the training labels' columns and the true ones, in common codes."""
    matrix("x", x)
    if (test is None) != (test_labels is None):
        raise ValueError("expected test and test_labels together; found one of them")
    if test is None:
        columns = level_columns(labels, x.shape[0])
        return x, columns, columns
    _xp.namespace(x, test)
    matrix("test", test, min_rows=1)
    if test.shape[1] != x.shape[1]:
        raise ValueError(
            f"expected test with D = {x.shape[1]} columns; found shape {tuple(test.shape)}"
        )
    # Checked one by one, coded together, so that a class is one number in both.
    n, n_levels = x.shape[0], len(level_columns(labels, x.shape[0]))
    if len(level_columns(test_labels, test.shape[0])) != n_levels:
        raise ValueError("expected labels and test_labels with one number of levels")
    both = [host_labels("labels", v) for v in (labels, test_labels)]
    if len({isinstance(v.flat[0], str) for v in both}) > 1:
        raise ValueError("expected labels and test_labels of one sort; found numbers and strings")
    if both[0].dtype.kind != both[1].dtype.kind:  # one dtype for both would round some
        both = [v.astype(object) for v in both]
    joined = level_columns(np.concatenate(both), n + test.shape[0])
    return test, [c[:n] for c in joined], [c[n:] for c in joined]
