"""Runs every check on every library, device and dtype, and compares it with NumPy in float64."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from visreg_core import _checks, _xp
from visreg_core._optional import MissingExtraError
from visreg_core._typing import Array
from visreg_core.crosscheck._inputs import (
    Arrays,
    input_sets,
    own_embeddings,
    rounded,
    shipped,
    users_embeddings,
)
from visreg_core.crosscheck._registry import CHECKS, LOSSES, Call, Check, Fields, Loss, Place
from visreg_core.embeddings import Embeddings

# Of a directional derivative against a central difference: above what the kinks of the losses that
# sort do to a difference, far below what a lost factor or term does.
DIFFERENCE_TOLERANCE = 1e-4
_DIFFERENCE_STEP = 1e-6

# By how much inputs are moved to see what depends on them: largest relative error of rounding to
# the dtype, times 8 in the two in which sums round at every step.
_MOVE = {"float64": 2.0**-50, "float32": 2.0**-21, "bfloat16": 2.0**-8, "float16": 2.0**-11}


class CheckRecord(NamedTuple):
    """What one check found on one library, device and dtype.

    backend, device, dtype
        Where it ran.
    function, variant
        The public name, and the options in words ("" for the defaults).
    of
        "value", "gradient", "metric", "array", "words" (of the counter-based generator), or
        "difference": the reference's own gradient against a central difference of its value.
    error
        Largest relative error over the fields of the result; NaN where there is no number.
    tolerance
        What it may be.
    agrees
        Whether it is, and the result is of the right library, device, dtype and shape.
    seconds
        Of the first call, compilation included.
    note
        What else is to be said: "on the host", or why there is no number.
    """

    backend: str
    device: str
    dtype: str
    function: str
    variant: str
    of: str
    error: float
    tolerance: float
    agrees: bool
    seconds: float
    note: str = ""


class Combination(NamedTuple):
    """A library, one of its devices and a dtype, by name."""

    backend: str
    device: str
    dtype: str


@dataclass(frozen=True)
class _Reference:
    """Result of a check in float64 on NumPy; or the one line with which it refuses the inputs."""

    fields: Fields
    scales: tuple[float, ...]
    upstream: float
    refusal: str = ""


def crosscheck(
    backends: Sequence[str] | None = None,
    *,
    device: str | None = None,
    dtypes: Sequence[str] | None = None,
    embeddings: Array | Embeddings | None = None,
    only: Sequence[str] | None = None,
    on_record: Callable[[CheckRecord, int], None] | None = None,
) -> list[CheckRecord]:
    """Run every loss, gradient and metric on the installed array libraries against float64 NumPy.

    Parameters
    ----------
    backends : sequence of str, optional
        Of "numpy", "torch", "jax", "cupy", "array_api_strict"; by default all that are installed.
    device : str, optional
        As the library names it ("cpu", "cuda", "cuda:1", "gpu"); by default every kind of device
        of each library. Libraries that do not have it are left out unless asked for.
    dtypes : sequence of str, optional
        Of "float64", "float32", "bfloat16", "float16"; by default all that a library has.
    embeddings : array (N, D) or Embeddings, optional
        Checked on besides the package's own inputs: at most 256 evenly spread, different rows.
    only : sequence of str, optional
        Public names to check, by default all.
    on_record : callable, optional
        Called with each record and the number of records to come in all.

    Returns
    -------
    list of CheckRecord
        In the order in which they ran. All agree if ``all(r.agrees for r in records)``.

    Raises
    ------
    ValueError
        For an unknown name, a library that is not installed or lacks the device or dtype, and
        embeddings on which the reference is not finite: one line.

    Notes
    -----
    The reference computes in float64 on inputs that the dtype under test holds exactly, so that
    rounding the inputs counts for nothing. The error of

    - a value is relative to the larger of |reference| and the sum of absolute values before
      cancellation: (p − q)² counts as (|p| + |q|)², a mean as the mean of absolute values;
    - a gradient is that of its largest wrong element, relative to the larger of the reference's
      largest element and magnitude/(‖z‖ √size), the size of a gradient that does not cancel.
      For losses that sort, below float64 (where a swap of two nearly equal projections moves
      single elements), norms take the place of largest elements;
    - a metric is relative to the larger of 1 and |reference|; the condition number is compared
      by its reciprocal, whose rounding is that of the largest singular value;
    - an array is relative to its largest element, `random_walk_affinity` to 1 + 2/min σ,
      `orthonormalize` to √N times the condition number of the columns.

    Where ranks, neighbours or small singular values decide (gradients of losses that sort,
    metrics, `random_walk_affinity`), the error is also relative to the condition of the inputs:
    to ``change / u``, the change being that of the reference as every input element moves up or
    down by a relative u, a few roundings.

    Words of the generator, and walks whose probabilities are exact, must be equal. Gradients are
    taken of the loss times a power of two that makes the reference's largest element about 1,
    which is loss scaling, and without which float16 would lose small ones.

    While it runs, matrix products are pinned to full precision (no TF32), and JAX makes 64-bit
    arrays for float64 only; both are as before afterwards. CuPy uses TF32 only where the
    environment variable ``CUPY_TF32`` asked for it before it was imported; that stays.

    The reference shares its formulas with what it checks. Its gradients are therefore held
    against central differences of its values (records of "difference").

    Examples
    --------
    >>> from visreg_core.crosscheck import crosscheck
    >>> records = crosscheck(["numpy"], dtypes=["float32"], only=["scale_loss"])
    >>> [(r.of, r.agrees) for r in records]
    [('value', True), ('gradient', True), ('difference', True)]
    """
    combinations = choose(backends, device, dtypes)
    checks, losses = _chosen(only)
    own = own_embeddings()
    sets = input_sets(own if embeddings is None else users_embeddings(embeddings))
    # Before anything runs on a library: inputs that a dtype cannot hold are refused here.
    rounded_sets = {d: rounded(sets, d) for d in dict.fromkeys(c.dtype for c in combinations)}
    total = len(combinations) * len(checks) + len(losses)
    records: list[CheckRecord] = []
    references: dict[tuple[str, Check], _Reference] = {}
    for combination in combinations:
        for record in _run(combination, checks, rounded_sets[combination.dtype], references):
            records.append(record)
            if on_record is not None:
                on_record(record, total)
    for loss in losses:
        # On well-conditioned inputs: this checks formulas, and a kink or a constant column has no
        # derivative that a difference could see.
        records.append(_difference(loss, sets["own" if loss.inputs == "given" else loss.inputs]))
        if on_record is not None:
            on_record(records[-1], total)
    return records


def choose(
    backends: Sequence[str] | None, device: str | None, dtypes: Sequence[str] | None
) -> list[Combination]:
    """The libraries, devices and dtypes to run; ValueError in one line where there are none."""
    installed = _xp.installed()
    for which in backends or ():
        if which not in installed:
            raise ValueError(
                f"expected a backend of {', '.join(installed)} (installed); found {which!r}"
            )
    for dtype in dtypes or ():
        _checks.choice("dtype", dtype, _xp.FLOATING)
    chosen = []
    for which in dict.fromkeys(backends or installed):
        xp = _xp.import_namespace(which)
        if device is None:
            found = _xp.device_names(xp)
        elif backends is None and not _has_device(xp, device):
            continue
        else:
            _xp.find_device(xp, device)  # refuses in one line
            found = (device,)
        if backends is not None and not found:
            raise ValueError(f"expected a device for {which}; found none")
        offered = [d for d in reversed(_xp.FLOATING) if hasattr(xp, d)]
        for d in dtypes or ():
            if backends is not None and d not in offered:
                raise ValueError(f"expected a dtype of {which}, {', '.join(offered)}; found {d!r}")
        chosen += [
            Combination(which, where, d)
            for where in found
            for d in offered
            if dtypes is None or d in dtypes
        ]
    if not chosen:
        raise ValueError(
            f"expected a device and dtype of {', '.join(installed)} (installed); found "
            f"device {device!r}, dtypes {', '.join(dtypes or _xp.FLOATING)}"
        )
    return chosen


def _has_device(xp: Any, device: str) -> bool:
    try:
        _xp.find_device(xp, device)
    except ValueError:
        return False
    return True


def _chosen(only: Sequence[str] | None) -> tuple[list[Check], list[Loss]]:
    """The checks of the public names in `only`, and the losses to differentiate."""
    known = dict.fromkeys(c.function for c in CHECKS)
    for function in only or ():
        _checks.choice("only", function, known)
    return (
        [c for c in CHECKS if only is None or c.function in only],
        [
            loss
            for loss in LOSSES
            if loss.differentiable and (only is None or loss.function in only)
        ],
    )


# --- one library, device and dtype ---------------------------------------------------------------


def _run(
    combination: Combination,
    checks: Iterable[Check],
    sets: dict[str, Arrays],
    references: dict[tuple[str, Check], _Reference],
) -> Iterator[CheckRecord]:
    xp = _xp.import_namespace(combination.backend)
    with _xp.pinned_precision(xp, x64=combination.dtype == "float64"):
        device = _xp.find_device(xp, combination.device)
        place = Place(xp, device, combination.dtype)
        given = {name: shipped(a, xp, device, combination.dtype) for name, a in sets.items()}
        for check in checks:
            key = combination.dtype, check
            if key not in references:
                references[key] = _reference(check, sets[check.inputs], combination.dtype)
            yield _one(check, combination, place, given[check.inputs], references[key])


def _reference(check: Check, arrays: Arrays, dtype: str) -> _Reference:
    """The check in float64 on NumPy; ValueError where its result is not finite."""
    numpy = Place(_xp.as_namespace(None), None, "float64")
    try:
        fields = check.call(Call(numpy, arrays, 1.0))
    except (ValueError, MissingExtraError) as error:  # orthonormalize of N < D rows, for one
        return _Reference((), (), 1.0, str(error).split("\n")[0])
    fields = tuple(np.asarray(f) for f in (*check.expected, *fields[len(check.expected) :]))
    # A metric may be NaN, and says where.
    if check.of != "metric" and not all(np.all(np.isfinite(f)) for f in fields):
        raise ValueError(
            f"expected embeddings on which the float64 reference is finite; found "
            f"{check.of} of {check.name} with NaN or infinity"
        )
    upstream = 1.0
    if check.of == "gradient":
        largest = max(float(np.max(np.abs(f))) for f in fields)
        upstream = 2.0 ** -math.frexp(largest)[1] if largest > 0 else 1.0
    scales = check.scales(arrays, fields)
    if check.conditioned:
        # Half precision rounds the projections of a gradient, and nothing before a metric.
        unit = _MOVE[dtype if check.of == "gradient" or dtype == "float64" else "float32"]
        moved = check.call(Call(numpy, _perturbed(arrays, unit), 1.0))
        size = _size(check, dtype)
        scales = tuple(
            max(scale, size(np.asarray(m) - f) / unit)
            for scale, m, f in zip(scales, moved, fields, strict=True)
        )
    return _Reference(fields, scales, upstream)


def _perturbed(arrays: Arrays, unit: float) -> Arrays:
    """Every floating element up or down by `unit`, relatively."""
    rng = np.random.default_rng(8)
    return {
        name: a * (1 + unit * rng.choice([-1.0, 1.0], size=a.shape)) if a.dtype.kind == "f" else a
        for name, a in arrays.items()
    }


def _size(check: Check, dtype: str) -> Callable[[np.ndarray], float]:
    """The norm of an error, or its largest element."""
    if check.sorts and dtype != "float64":
        return lambda a: float(np.linalg.norm(a))
    return lambda a: float(np.max(np.abs(a), initial=0.0))


def _one(
    check: Check, combination: Combination, place: Place, arrays: Arrays, reference: _Reference
) -> CheckRecord:
    start = time.perf_counter()
    note = "on the host" if check.host else ""
    error = math.nan
    try:
        fields = check.call(Call(place, arrays, reference.upstream))
        host = [_host(f) / reference.upstream for f in fields]  # waits for the device
    except (ValueError, MissingExtraError) as refused:
        # What the reference refuses must be refused everywhere, and in the same words.
        note = str(refused).split("\n")[0]
        agrees = bool(reference.refusal) and note == reference.refusal
        seconds = time.perf_counter() - start
    except Exception as failed:  # a library may raise anything; that is the finding
        note = f"{type(failed).__name__}: {str(failed).strip()}".split("\n")[0][:200]
        agrees, seconds = False, time.perf_counter() - start
    else:
        seconds = time.perf_counter() - start
        wrong = _wrong_kind(check, place, fields, reference)
        if wrong:
            note, agrees = wrong, False
        else:
            size = _size(check, combination.dtype)
            error = max(
                _error(got, wanted, scale, size)
                for got, wanted, scale in zip(host, reference.fields, reference.scales, strict=True)
            )
            agrees = error <= check.tolerance[combination.dtype]
    return CheckRecord(
        *combination,
        check.function,
        check.variant,
        check.of,
        error,
        check.tolerance[combination.dtype],
        agrees,
        seconds,
        note,
    )


def _host(x: Any) -> np.ndarray:
    a = _xp.to_numpy(x) if _xp.is_array(x) else np.asarray(x)
    return a if a.dtype.kind in "biu" else a.astype(np.float64)


def _wrong_kind(check: Check, place: Place, fields: Fields, reference: _Reference) -> str:
    """What is wrong with the library, device, dtype or shape of a result; "" if nothing."""
    if reference.refusal:
        return f"expected {reference.refusal!r}, as the reference says; found a result"
    if len(fields) != len(reference.fields):
        return f"expected {len(reference.fields)} fields; found {len(fields)}"
    narrow = place.dtype if check.result == "input" or place.dtype == "float64" else "float32"
    like = _xp.from_numpy(place.xp, np.zeros(1, np.float32), device=place.device)
    for got, wanted in zip(fields, reference.fields, strict=True):
        if check.result == "host":
            if not isinstance(got, float | int | np.ndarray):
                return f"expected a number or NumPy array; found {type(got).__name__}"
        elif _xp.library(got) != _xp.name(place.xp):
            return f"expected an array of {_xp.name(place.xp)}; found one of {_xp.library(got)}"
        elif str(_xp.device(got)) != str(_xp.device(like)) and not isinstance(got, np.generic):
            return f"expected device {_xp.device(like)}; found {_xp.device(got)}"
        elif check.result == "integer":
            if "int" not in _xp.dtype_name(got):
                return f"expected an integer dtype; found {_xp.dtype_name(got)}"
        elif _xp.dtype_name(got) != narrow:
            return f"expected dtype {narrow}; found {_xp.dtype_name(got)}"
        if tuple(np.shape(got)) != wanted.shape:
            return f"expected shape {wanted.shape}; found {tuple(np.shape(got))}"
    return ""


def _error(
    got: np.ndarray, wanted: np.ndarray, scale: float, size: Callable[[np.ndarray], float]
) -> float:
    """Size of got − wanted, relative to the larger of wanted's and `scale`; integers: a count."""
    if wanted.dtype.kind in "biu":
        return float(np.sum(got != wanted))
    undefined = np.isnan(got) & np.isnan(wanted)
    got, wanted = np.where(undefined, 0.0, got), np.where(undefined, 0.0, wanted)
    difference = got - wanted
    if not np.all(np.isfinite(difference)):
        return math.inf
    unit = float(max(np.max(np.abs(difference)), np.max(np.abs(wanted))))
    if unit == 0.0 or math.isinf(scale):  # equal, or nothing can be asked for
        return 0.0
    # Divided by the largest element first, so that no square overflows.
    return size(difference / unit) / max(scale / unit, size(wanted / unit))


# --- the reference's gradients -------------------------------------------------------------------


def _difference(loss: Loss, arrays: Arrays) -> CheckRecord:
    """⟨gradient, v⟩ against a central difference of the value, along v = gradient + noise."""
    start = time.perf_counter()
    numpy = Place(_xp.as_namespace(None), None, "float64")
    gradients = loss.gradient(Call(numpy, arrays, 1.0))
    names = loss.arguments[: len(gradients)]
    sizes = [float(np.linalg.norm(arrays[name])) for name in names]
    rng = np.random.default_rng(9)
    direction = [_unit(_unit(g) + 0.5 * _unit(rng.normal(size=g.shape))) for g in gradients]

    def value(step: float) -> float:
        moved = {
            name: arrays[name] + step * size * v
            for name, size, v in zip(names, sizes, direction, strict=True)
        }
        return float(np.sum(loss.value(Call(numpy, {**arrays, **moved}, 1.0))[0]))

    measured = (value(_DIFFERENCE_STEP) - value(-_DIFFERENCE_STEP)) / (2 * _DIFFERENCE_STEP)
    stated = sum(
        size * float(np.sum(g * v)) for g, v, size in zip(gradients, direction, sizes, strict=True)
    )
    # The difference itself is uncertain by the value's rounding over the step.
    scale = max(abs(measured), 1e-3 * loss.magnitudes(arrays)[0])
    error = abs(stated - measured) / scale if scale > 0 else 0.0
    return CheckRecord(
        "numpy",
        "cpu",
        "float64",
        loss.function,
        loss.variant,
        "difference",
        error,
        DIFFERENCE_TOLERANCE,
        error <= DIFFERENCE_TOLERANCE,
        time.perf_counter() - start,
    )


def _unit(a: np.ndarray) -> np.ndarray:
    norm = float(np.linalg.norm(a))
    return a / norm if norm > 0 else a
