"""The one list of checks: what is called, on which inputs, and how large an error may be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

import visreg_core
from visreg_core import _xp, metrics
from visreg_core._typing import Array, Device, Namespace
from visreg_core.crosscheck import _magnitudes as magnitudes
from visreg_core.crosscheck._inputs import Arrays
from visreg_core.losses._differentiable import value_and_vjp
from visreg_core.slices import threefry2x32

Fields = tuple[Any, ...]
Tolerance = Mapping[str, float]


class Place(NamedTuple):
    """A library, one of its devices, and the name of the floating dtype under test."""

    xp: Namespace
    device: Device
    dtype: str

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of a function that makes arrays there."""
        return {"xp": self.xp, "device": self.device, "dtype": getattr(self.xp, self.dtype)}


class Call(NamedTuple):
    """What a check may use: the place, its arrays, and the factor on the loss (gradients)."""

    place: Place
    arrays: Arrays
    upstream: float


# Tolerances of relative errors. Two correct evaluations differ by a few roundings of the dtype
# computed in, which is float32 for the 16-bit dtypes: there, inputs are exact, and only the product
# of embeddings and slices and what is returned in the inputs' dtype round, by 2⁻⁸ (bfloat16) or
# 2⁻¹¹ (float16) at most. Beside each line, the largest errors on the own inputs (NumPy, torch, JAX
# and array-api-strict on CPUs).
TOLERANCES: dict[str, Tolerance] = {}


def _tolerance(name: str, float64: float, float32: float, bfloat16: float, float16: float) -> None:
    TOLERANCES[name] = {
        "float64": float64,
        "float32": float32,
        "bfloat16": bfloat16,
        "float16": float16,
    }


_tolerance("value", 1e-12, 2e-6, 2e-6, 2e-6)  # 4e-16, 2e-7, 2e-7, 2e-7
_tolerance("projected value", 1e-12, 2e-6, 2e-3, 3e-4)  # 1e-16, 7e-8, 6e-5, 2e-5
_tolerance("gradient", 1e-12, 5e-6, 4e-3, 5e-4)  # 1e-15, 5e-7, 4e-3, 5e-4
_tolerance("projected gradient", 1e-12, 5e-6, 3e-2, 6e-3)  # 1e-15, 5e-7, 9e-3, 3e-3
_tolerance("array", 1e-12, 2e-6, 4e-3, 5e-4)  # 4e-16, 3e-7, 3e-3, 4e-4
_tolerance("metric", 1e-11, 2e-5, 2e-5, 2e-5)  # 4e-16, 5e-7, 5e-7, 5e-7
_tolerance("exact", 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, eq=False)
class Check:
    """One call whose result on a library is held against NumPy's in float64.

    function : the public name that is checked; variant : its options, in words.
    of : "value", "gradient", "metric", "array" or "words".
    call : the result's fields, arrays or Python numbers.
    scales : what the error of each field is relative to, from the host's arrays and reference.
    result : "compute" (float64 for float64 inputs, else float32), "input" (the dtype under test),
        "integer" or "host" (Python numbers, NumPy arrays): the kind that the fields must be of.
    sorts : a swap of near-equal projections moves single elements, so that below float64 the
        error is that of the norm.
    conditioned : a small change of the inputs may change the result by much (ranks, neighbours,
        small singular values): the error is also relative to that change.
    host : computed on the host from a copy of the arrays, whatever their library.
    expected : known answers of the first fields, which the reference does not compute.
    """

    function: str
    variant: str
    of: str
    inputs: str
    call: Callable[[Call], Fields]
    scales: Callable[[Arrays, Fields], tuple[float, ...]]
    tolerance: Tolerance
    result: str
    sorts: bool = False
    conditioned: bool = False
    host: bool = False
    expected: Fields = ()

    @property
    def name(self) -> str:
        """Function and variant."""
        return f"{self.function} ({self.variant})" if self.variant else self.function


def _largest(fields: Fields) -> tuple[float, ...]:
    return tuple(float(np.max(np.abs(f), initial=0.0)) for f in fields)


def _as_fields(result: Any) -> Fields:
    return tuple(result) if isinstance(result, tuple) else (result,)


# --- losses: the value and the gradient ----------------------------------------------------------


@dataclass(frozen=True)
class Loss:
    """A way to call a loss: names of its arrays, its options, and its magnitudes."""

    function: str
    arguments: tuple[str, ...]
    magnitude: Callable[..., tuple[float, ...]]
    variant: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    inputs: str = "given"
    sorts: bool = False
    differentiable: bool = True
    root: float = 1  # the loss is a root of this order of a mean of powers

    @property
    def name(self) -> str:
        """Function and variant, as in the checks made of it."""
        return f"{self.function} ({self.variant})" if self.variant else self.function

    @property
    def public(self) -> Callable[..., Any]:
        """The loss itself, looked up when it is called."""
        return getattr(visreg_core, self.function)

    def bound(self, arrays: Arrays) -> tuple[list[Array], dict[str, Any]]:
        """Positional and keyword arguments."""
        keywords = {k: arrays[name] for k, name in self.weights.items()}
        return [arrays[name] for name in self.arguments], {**self.options, **keywords}

    def magnitudes(self, arrays: Arrays) -> tuple[float, ...]:
        """Sums of absolute values before cancellation, one for each field."""
        return self.magnitude(*(arrays[name] for name in self.arguments), **self.options)

    def value(self, call: Call) -> Fields:
        """Fields of the loss's result."""
        positional, keywords = self.bound(call.arrays)
        return _as_fields(self.public(*positional, **keywords))

    def gradient(self, call: Call) -> Fields:
        """Gradients of `upstream` times the loss (its total, its sum)."""
        positional, keywords = self.bound(call.arrays)
        result, vjp = value_and_vjp(self.public)(*positional, **keywords)
        others = len(_as_fields(result)) - 1
        return _as_fields(vjp(call.upstream, *[0.0] * others))

    def value_scales(self, arrays: Arrays, reference: Fields) -> tuple[float, ...]:
        """The larger of |reference| and the magnitude."""
        sizes = self.magnitudes(arrays)
        return tuple(
            max(abs(float(np.max(np.abs(r)))), m) for r, m in zip(reference, sizes, strict=True)
        )

    def gradient_floor(self, arrays: Arrays, index: int) -> float:
        """Norm of the gradient of a sum that does not cancel.

        M / ‖z‖ with M the magnitude, as Euler's relation ⟨∇L, z⟩ = p L of a loss of degree p
        suggests: a gradient that nearly vanishes (of the scale loss of standardised embeddings,
        say) has no relative accuracy of its own. A p-th root L = S^(1/p) divides the gradient of
        the sum S by L^(p−1), and so its error.
        """
        size = float(np.linalg.norm(arrays[self.arguments[index]]))
        if size == 0:
            return 0.0
        (magnitude, *_) = self.magnitudes(arrays)
        if self.root == 1:
            return magnitude / size
        host = Place(_xp.as_namespace(None), None, "float64")
        (value,) = self.value(Call(host, arrays, 1.0))
        if value == 0:
            return math.inf  # where the root has no derivative
        return magnitude / size * (magnitude / float(value)) ** (self.root - 1)


def _checks_of(loss: Loss) -> list[Check]:
    projected = "slices" in loss.arguments
    exact = loss.inputs == "ties"  # every projection is exact in every dtype
    kind = "projected " if projected and not exact else ""

    def gradient_scales(arrays: Arrays, reference: Fields) -> tuple[float, ...]:
        floors = [loss.gradient_floor(arrays, i) for i in range(len(reference))]
        if loss.sorts and not exact:
            return tuple(floors)
        return tuple(f / math.sqrt(r.size) for f, r in zip(floors, reference, strict=True))

    return [
        Check(
            loss.function,
            loss.variant,
            "value",
            loss.inputs,
            loss.value,
            loss.value_scales,
            TOLERANCES[kind + "value"],
            "compute",
        ),
        Check(
            loss.function,
            loss.variant,
            "gradient",
            loss.inputs,
            loss.gradient,
            gradient_scales,
            TOLERANCES[kind + "gradient"],
            "input",
            sorts=loss.sorts and not exact,
            conditioned=loss.sorts and not exact,
        ),
    ]


_Z, _Z_SLICES, _X_Y_SLICES = ("z",), ("z", "slices"), ("z", "y", "slices")
_PAIR, _VIEWS = ("a", "b"), ("views",)

LOSSES: tuple[Loss, ...] = (
    Loss("center_loss", _Z, magnitudes.center),
    Loss("scale_loss", _Z, magnitudes.scale),
    # The default holds σ fixed in the gradient, which differences of the value do not.
    Loss("shape_loss", _Z_SLICES, magnitudes.shape, sorts=True, differentiable=False),
    Loss(
        "shape_loss",
        _Z_SLICES,
        magnitudes.shape,
        "detach_scale=False",
        {"detach_scale": False},
        sorts=True,
    ),
    Loss("visreg_loss", _Z_SLICES, magnitudes.visreg, sorts=True, differentiable=False),
    Loss(
        "visreg_loss",
        _Z_SLICES,
        magnitudes.visreg,
        "detach_scale=False",
        {"detach_scale": False, "weights": (0.5, 2.0, 3.0)},
        sorts=True,
    ),
    Loss("invariance_loss", _VIEWS, magnitudes.invariance),
    Loss("invariance_loss", _VIEWS, magnitudes.invariance, "n_global=2", {"n_global": 2}),
    Loss("gaussian_sliced_wasserstein", _Z_SLICES, magnitudes.to_quantiles, sorts=True),
    Loss(
        "gaussian_sliced_wasserstein",
        _Z_SLICES,
        magnitudes.to_quantiles,
        "equal keys",
        inputs="ties",
        sorts=True,
        differentiable=False,
    ),
    Loss("sliced_wasserstein", ("a", "b", "slices"), magnitudes.two_sample, sorts=True, root=2),
    Loss(
        "sliced_wasserstein",
        _X_Y_SLICES,
        magnitudes.two_sample,
        "unequal sizes",
        sorts=True,
        root=2,
    ),
    Loss(
        "sliced_wasserstein",
        _X_Y_SLICES,
        magnitudes.two_sample,
        "weights, p=1.5",
        {"p": 1.5},
        {"x_weights": "z_weights", "y_weights": "y_weights"},
        sorts=True,
        root=1.5,
    ),
    Loss(
        "sliced_wasserstein",
        _X_Y_SLICES,
        magnitudes.two_sample,
        "equal keys",
        {"power": True},
        inputs="ties",
        sorts=True,
        differentiable=False,
    ),
    Loss("max_sliced_wasserstein", _X_Y_SLICES, magnitudes.farthest, sorts=True, root=2),
    Loss("epps_pulley", ("line",), magnitudes.epps_pulley),
    Loss("sigreg_loss", _Z_SLICES, magnitudes.sigreg),
    Loss("variance_loss", _Z, magnitudes.variance, "gamma=2", {"gamma": 2.0}),
    Loss("covariance_loss", _Z, magnitudes.covariance),
    Loss("covariance_loss", _Z, magnitudes.covariance, "N < D", inputs="wide"),
    *(
        Loss(
            "vicreg_loss",
            _PAIR,
            magnitudes.vicreg,
            "" if convention == "vicreg" else convention,
            {"convention": convention},
        )
        for convention in ("vicreg", "solo-learn", "paper", "visreg")
    ),
    Loss("vicreg_loss", _VIEWS, magnitudes.vicreg_of_views, "three views"),
    Loss("barlow_twins_loss", _PAIR, magnitudes.barlow_twins),
    Loss("barlow_twins_loss", _PAIR, magnitudes.barlow_twins, "N < D", inputs="wide"),
    Loss("barlow_twins_loss", _VIEWS, magnitudes.barlow_twins_of_views, "three views"),
    Loss("sag_vicreg_loss", (*_PAIR, "pairs", "pair_weights"), magnitudes.sag_vicreg),
    Loss("spectralnet_loss", ("z", "affinity"), magnitudes.spectralnet),
)


# --- other functions of the package --------------------------------------------------------------


def _words(call: Call) -> Fields:
    """Words of the known answers, and of a block of counters under one key."""
    xp, device, _ = call.place

    def int32(values: Any) -> Array:
        words = np.asarray(values, dtype=np.uint64).astype(np.uint32).view(np.int32)
        return _xp.from_numpy(xp, words, device=device, dtype=xp.int32)

    known = threefry2x32(*(int32(column) for column in zip(*_KNOWN_INPUTS, strict=True)))
    block = np.arange(1 << 12)
    key = [np.full(block.size, k) for k in (0x9E3779B9, 0xDEADBEEF)]
    many = threefry2x32(*map(int32, (*key, block * 0x000F1234, block % 61)))
    return (*known, *many)


_KNOWN_INPUTS = (
    (0, 0, 0, 0),
    (0xFFFFFFFF,) * 4,
    (0x13198A2E, 0x03707344, 0x243F6A88, 0x85A308D3),
)
_KNOWN_WORDS = ((0x6B200159, 0x1CB996FC, 0xC4923A9C), (0x99BA4EFE, 0xBB002BE7, 0x483DF7A0))


def _dyadic_walk(call: Call) -> Fields:
    """A walk whose cumulative probabilities are multiples of 1/8: exact in every dtype."""
    shares = np.array([0.125, 0.25, 0.5, 0.125])
    transition = np.zeros((64, 64))
    for i in range(64):
        transition[i, (i + 7 * np.arange(4)) % 64] = np.roll(shares, i)
    xp, device, dtype = call.place
    p = _xp.from_numpy(xp, transition, device=device, dtype=getattr(xp, dtype))
    return (visreg_core.sample_random_walk(p, seed=5, step=6, n_steps=3),)


def _array(
    function: str,
    variant: str,
    call: Callable[[Call], Any],
    tolerance: str = "array",
    *,
    result: str = "input",
    scale: Callable[[Arrays], float] | None = None,
    conditioned: bool = False,
) -> Check:
    def scales(arrays: Arrays, reference: Fields) -> tuple[float, ...]:
        return tuple(scale(arrays) if scale else r for r in _largest(reference))

    return Check(
        function,
        variant,
        "array",
        "given",
        lambda c: _as_fields(call(c)),
        scales,
        TOLERANCES[tolerance],
        result,
        conditioned=conditioned,
    )


def _wide(call: Call, name: str) -> Array:
    """An array in the compute dtype, which losses and affinities are always in."""
    x = call.arrays[name]
    return _xp.cast(call.place.xp, x, _xp.compute_dtype(call.place.xp, x))


def _orthonormal_scale(arrays: Arrays) -> float:
    return math.sqrt(arrays["z"].shape[0]) * magnitudes.column_condition(arrays["z"])


FUNCTIONS: tuple[Check, ...] = (
    Check(
        "random_slices",
        "Threefry words",
        "words",
        "given",
        _words,
        lambda arrays, reference: (1.0,) * len(reference),
        TOLERANCES["exact"],
        "integer",
        expected=tuple(np.array(w, dtype=np.uint32).view(np.int32) for w in _KNOWN_WORDS),
    ),
    _array(
        "random_slices",
        "",
        lambda c: visreg_core.random_slices(13, 40, seed=7, step=8, **c.place.options),
    ),
    _array(
        "random_slices",
        "orthogonal",
        lambda c: visreg_core.random_slices(
            13, 40, seed=7, sampler="orthogonal", **c.place.options
        ),
        scale=lambda arrays: 30.0,
    ),
    _array("normal_quantiles", "", lambda c: visreg_core.normal_quantiles(101, **c.place.options)),
    _array(
        "joint_objective",
        "",
        lambda c: visreg_core.joint_objective(_wide(c, "one"), _wide(c, "other"), 0.75),
        "value",
        result="compute",
    ),
    _array(
        "random_walk_affinity",
        "",
        lambda c: visreg_core.random_walk_affinity(c.arrays["a"], c.arrays["b"]),
        "value",
        result="compute",
        scale=lambda arrays: magnitudes.affinity(arrays["a"], arrays["b"]),
        conditioned=True,
    ),
    _array(
        "transition_matrix",
        "",
        lambda c: visreg_core.transition_matrix(_wide(c, "affinity")),
        "value",
        result="compute",
    ),
    _array("sample_random_walk", "", _dyadic_walk, "exact", result="integer"),
    _array(
        "orthonormalize",
        "",
        lambda c: visreg_core.orthonormalize(c.arrays["z"]),
        scale=_orthonormal_scale,
    ),
)


# --- metrics -------------------------------------------------------------------------------------


def _metric(
    function: str,
    call: Callable[[Arrays], Any],
    variant: str = "",
    *,
    tolerance: str = "metric",
    inputs: str = "given",
    host: bool = False,
) -> Check:
    return Check(
        function,
        variant,
        "metric",
        inputs,
        lambda c: _as_fields(call(c.arrays)),
        lambda arrays, reference: tuple(max(1.0, r) for r in _largest(reference)),
        TOLERANCES[tolerance],
        "host",
        conditioned=True,
        host=host,
    )


def _gaussianity(arrays: Arrays) -> Fields:
    tests = metrics.gaussianity(arrays["z"], arrays["slices"], n_simulations=1)
    return tuple(v for t in tests for v in (t.mean, t.max, t.mean_z, t.max_z))


def _linkage(x: Array, **options: str) -> Fields:
    tree = metrics.linkage(x, **options)
    return tree[:, 2], tree[:, [0, 1, 3]]  # heights, and who is joined


def _worst_direction(arrays: Arrays) -> Fields:
    found = metrics.worst_direction(arrays["z"], arrays["slices"], n_steps=2)
    return found.statistic, found.z, _xp.to_numpy(found.direction)


def _on_host(labels: Array) -> np.ndarray:
    return _xp.to_numpy(labels)


def _resolved_ranks(arrays: Arrays) -> tuple[int, int]:
    """Ranks of the eigenvalues that float32 resolves, for the fit of α."""
    s = metrics.singular_values(_xp.to_numpy(arrays["z"]).astype(np.float64), center=True)
    return 1, max(2, int(np.sum(s > 1e-2 * s[0])))


METRICS: tuple[Check, ...] = (
    _metric("rankme", lambda a: metrics.rankme(a["z"])),
    _metric("effective_rank", lambda a: metrics.effective_rank(a["z"])),
    _metric("stable_rank", lambda a: metrics.stable_rank(a["z"])),
    _metric("participation_ratio", lambda a: metrics.participation_ratio(a["z"])),
    _metric(
        "alpha_req",
        lambda a: metrics.alpha_req(a["z"], fit_range=_resolved_ranks(a)),
        "resolved ranks",
    ),
    # σ_min has the absolute accuracy of σ_max, and so has the reciprocal of the condition number.
    _metric("condition_number", lambda a: 1 / metrics.condition_number(a["z"]), "reciprocal"),
    _metric("singular_values", lambda a: metrics.singular_values(a["z"])),
    _metric("alignment", lambda a: metrics.alignment(a["a"], a["b"])),
    _metric("uniformity", lambda a: metrics.uniformity(a["z"])),
    _metric("linear_cka", lambda a: metrics.linear_cka(a["a"], a["b"])),
    _metric("mutual_knn", lambda a: metrics.mutual_knn(a["a"], a["b"])),
    _metric("lidar", lambda a: metrics.lidar(a["z"], _on_host(a["labels"])[:, 1].tolist())),
    _metric("gaussianity", _gaussianity),
    # A few steps uphill may go elsewhere after one rounding, so not on any embeddings.
    _metric("worst_direction", _worst_direction, inputs="own"),
    _metric("linkage", lambda a: _linkage(a["z"])),
    _metric("linkage", lambda a: _linkage(a["z"], method="ward", metric="euclidean"), "Ward"),
    _metric("lca_similarity", lambda a: metrics.lca_similarity(a["a"], a["b"])),
    _metric(
        "lca_similarity",
        lambda a: metrics.lca_similarity(a["a"], a["b"], distance="depth"),
        "depth",
    ),
    _metric("cophenetic_similarity", lambda a: metrics.cophenetic_similarity(a["a"], a["b"])),
    _metric("cophenetic_correlation", lambda a: metrics.cophenetic_correlation(a["z"])),
    _metric(
        "hierarchical_knn_accuracy",
        lambda a: metrics.hierarchical_knn_accuracy(a["z"], _on_host(a["labels"]), k=5),
    ),
    _metric(
        "hierarchical_linear_accuracy",
        lambda a: metrics.hierarchical_linear_accuracy(a["z"], _on_host(a["labels"]), n_folds=2),
        host=True,
    ),
    _metric(
        "hierarchical_rand_index",
        lambda a: (
            metrics.hierarchical_rand_index(
                a["z"], _on_host(a["labels"]), clustering="dendrogram"
            ).rand
        ),
        "dendrogram",
    ),
    _metric(
        "rand_index_sweep",
        lambda a: (
            metrics.rand_index_sweep(
                a["z"], _on_host(a["labels"])[:, 1:], (2, 3, 5), clustering="dendrogram"
            ).rand
        ),
        "dendrogram",
    ),
)

CHECKS: tuple[Check, ...] = (
    *FUNCTIONS,
    *(check for loss in LOSSES for check in _checks_of(loss)),
    *METRICS,
)
