"""Run every check on every library, device and dtype, and compare it with NumPy in float64."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from visreg_core import _xp, checks
from visreg_core.crosscheck._check import Call, Check, Fields, Target
from visreg_core.crosscheck._compare import (
    Reference,
    error_of,
    on_host,
    reference_of,
    size_of,
    wrong_kind,
)
from visreg_core.crosscheck._differences import difference
from visreg_core.crosscheck._inputs import (
    Arrays,
    input_sets,
    own_embeddings,
    rounded,
    shipped,
    users_embeddings,
)
from visreg_core.crosscheck._losses import LossExample, examples
from visreg_core.crosscheck._records import CheckRecord, Combination
from visreg_core.crosscheck._registry import all_checks
from visreg_core.embeddings import Embeddings
from visreg_core.optional import MissingExtraError
from visreg_core.typing import Array


def crosscheck(
    backends: Sequence[str] | None = None,
    *,
    device: str | None = None,
    dtypes: Sequence[str] | None = None,
    embeddings: Array | Embeddings | None = None,
    only: Sequence[str] | None = None,
    on_record: Callable[[CheckRecord, int], None] | None = None,
) -> list[CheckRecord]:
    """Compare all losses, gradients and metrics of the installed libraries with float64 NumPy.

    Parameters
    ----------
    backends : sequence of str, optional
        Of "numpy", "torch", "jax", "cupy", "array_api_strict"; by default all that are installed.
    device : str, optional
        The library's name for it ("cpu", "cuda", "cuda:1", "gpu"); by default every kind of device
        of each library. Libraries that do not have it are skipped unless `backends` names them.
    dtypes : sequence of str, optional
        Of "float64", "float32", "bfloat16", "float16"; by default all that a library has.
    embeddings : array (N, D) or Embeddings, optional
        At most 256 evenly spread, distinct rows of these replace the package's own inputs, except
        in checks of special inputs (equal keys, N < D, differences).
    only : sequence of str, optional
        Public names to check, by default all.
    on_record : callable, optional
        Called with each record and the total number of records.

    Returns
    -------
    list of CheckRecord
        In the order in which they ran. All agree if ``all(r.agrees for r in records)``.

    Raises
    ------
    ValueError
        For an unknown name, a library that is not installed or lacks the device or dtype, or
        embeddings on which the reference is not finite.

    Notes
    -----
    The reference computes in float64 on inputs that the dtype under test holds exactly, so that
    rounding the inputs does not count. The error of

    - a value is relative to the larger of |reference| and the sum of absolute values before
      cancellation: (p − q)² counts as (|p| + |q|)², a mean as the mean of absolute values;
    - a gradient is its largest elementwise error, relative to the larger of the reference's
      largest element and magnitude/(‖z‖ √size), the size of a gradient that does not cancel.
      For losses that sort, below float64 (where a swap of two nearly equal projections changes
      single elements), norms replace largest elements;
    - a metric is relative to the larger of 1 and |reference|; the condition number is compared
      by its reciprocal, whose rounding is that of the largest singular value;
    - an array is relative to its largest element, `random_walk_affinity` to 1 + 2/min σ,
      `orthonormalize` to √N times the condition number of the columns.

    On the embeddings given, and where results depend on ranks, neighbours or small singular values
    (gradients of losses that sort, metrics, `random_walk_affinity`), the error is also relative to
    the condition of the inputs: to ``change / u``, where `change` is that of the reference when
    every input element is perturbed by a relative ±u, a few roundings.

    Words of the generator, and walks whose probabilities are exact, must be equal. Gradients are
    taken of the loss times a power of two that makes the reference's largest element about 1,
    which is loss scaling: float16 would lose small ones without it.

    While it runs, matrix products are pinned to full precision (no TF32), and JAX makes 64-bit
    arrays for float64 only; both are restored afterwards. CuPy uses TF32 only where the
    environment variable ``CUPY_TF32`` requested it before CuPy was imported; that is not changed.
    On JAX value and gradient of a function that returns arrays are one compiled program, made while
    other libraries run; afterwards JAX's caches are empty, also of other programs. On a CPU
    programs of float64, bfloat16 and float16 are compiled with few optimisations, which takes a
    third of the time ("compiled quickly"); those of float32 as for any other caller.

    The reference shares its formulas with what it checks. Its gradients are therefore compared
    with central differences of its values (records of "difference").

    Examples
    --------
    >>> from visreg_core.crosscheck import crosscheck
    >>> records = crosscheck(["numpy"], dtypes=["float32"], only=["scale_loss"])
    >>> [(r.of, r.agrees) for r in records]
    [('value', True), ('gradient', True), ('difference', True)]
    """
    combinations = choose(backends, device, dtypes)
    functions, losses = _chosen(only)
    own = own_embeddings()
    sets = input_sets(own if embeddings is None else users_embeddings(embeddings))
    # Before any library runs, because this rejects inputs that a dtype cannot represent.
    rounded_sets = {d: rounded(sets, d) for d in dict.fromkeys(c.dtype for c in combinations)}
    total = len(combinations) * len(functions) + len(losses)
    records: list[CheckRecord] = []
    for record in _run(combinations, functions, rounded_sets):
        records.append(record)
        if on_record is not None:
            on_record(record, total)
    for loss in losses:
        # On well-conditioned inputs: this checks formulas, and at a kink or a constant column no
        # difference approximates a derivative.
        records.append(difference(loss, sets["own" if loss.inputs == "given" else loss.inputs]))
        if on_record is not None:
            on_record(records[-1], total)
    return records


def choose(
    backends: Sequence[str] | None, device: str | None, dtypes: Sequence[str] | None
) -> list[Combination]:
    """The libraries, devices and dtypes to run; ValueError if there are none."""
    installed = _xp.installed()
    for which in backends or ():
        if which not in installed:
            raise ValueError(
                f"expected a backend of {', '.join(installed)} (installed); found {which!r}"
            )
    for dtype in dtypes or ():
        checks.choice("dtype", dtype, _xp.FLOATING)
    chosen = []
    for which in dict.fromkeys(backends or installed):
        xp = _xp.import_namespace(which)
        if device is None:
            found = _xp.device_names(xp)
        elif backends is None and not _has_device(xp, device):
            continue
        else:
            _xp.find_device(xp, device)  # raises ValueError
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


def _chosen(only: Sequence[str] | None) -> tuple[list[Check], list[LossExample]]:
    """The checks of the public names in `only`, and the losses to differentiate."""
    functions = all_checks()
    known = dict.fromkeys(c.function for c in functions)
    for function in only or ():
        checks.choice("only", function, known)
    return (
        [c for c in functions if only is None or c.function in only],
        [
            loss
            for loss in examples()
            if loss.example.differentiable and (only is None or loss.function in only)
        ],
    )


# --- one library, device and dtype ----------------------------------------------------------------

# Programs that are compiled at once.
_COMPILERS = 2
# Two programs of XLA that run at once on two cores may wait for each other's threads for ever.
_EXECUTING = threading.Lock()


def _run(
    combinations: Sequence[Combination],
    functions: Sequence[Check],
    sets: dict[str, dict[str, Arrays]],
) -> Iterator[CheckRecord]:
    """Records of `functions` on all combinations in order, on the `sets` of their dtypes."""
    references: dict[str, dict[Check, Reference]] = {}
    pool = ThreadPoolExecutor(_COMPILERS)  # compilers release Python's lock
    compiling: dict[Combination, list[Future[_Timed]]] = {}
    try:
        # Compiled while the other libraries run.
        for dtype, arrays in sets.items():
            references[dtype] = {c: reference_of(c, arrays[c.inputs], dtype) for c in functions}
            for combination in combinations:
                xp = _place(combination).xp
                if combination.dtype == dtype and _xp.compiles(xp):
                    run = _runner(combination, arrays, references[dtype])
                    groups = _groups(functions, together=True)
                    compiling[combination] = [pool.submit(run, group) for group in groups]
                    pool.submit(_xp.forget_programs, xp)
        for combination in combinations:
            place, reference = _place(combination), references[combination.dtype]
            if combination in compiling:
                timed: Iterator[_Timed] = (f.result() for f in compiling.pop(combination))
            else:
                run = _runner(combination, sets[combination.dtype], reference)
                timed = map(run, _groups(functions, together=False))
            for group, outcomes, seconds in timed:
                for check, outcome in zip(group, outcomes, strict=True):
                    yield _record(check, combination, place, reference[check], outcome, seconds)
    finally:
        pool.shutdown(cancel_futures=True)


def _place(combination: Combination) -> Target:
    xp = _xp.import_namespace(combination.backend)
    return Target(xp, _xp.find_device(xp, combination.device), combination.dtype)


# Checks that ran together, their outcomes, and the seconds of each.
_Timed = tuple[list[Check], list["_Outcome"], float]


def _runner(
    combination: Combination, sets: dict[str, Arrays], references: dict[Check, Reference]
) -> Callable[[list[Check]], _Timed]:
    place = _place(combination)
    xp, x64 = place.xp, combination.dtype == "float64"
    with _xp.pinned_precision(xp, x64=x64):
        given = {name: shipped(a, xp, place.device, place.dtype) for name, a in sets.items()}

    def run(group: list[Check]) -> _Timed:
        start = time.perf_counter()
        with _xp.pinned_precision(xp, x64=x64):  # JAX's setting is that of a thread
            outcomes = _outcomes(group, [references[c] for c in group], place, given)
        if _xp.compiles(xp):
            _trim()
        return group, outcomes, (time.perf_counter() - start) / len(group)

    return run


def _trim() -> None:
    """Return memory that compilers have freed, gigabytes, to the system, if the C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # glibc
        trim(0)


def _groups(functions: Iterable[Check], *, together: bool) -> Iterator[list[Check]]:
    """Each check alone, or a function's value and gradient, which share a program.

    Programs of more, as of three views of 256 rows, can wait for each other's threads for ever in
    XLA on two cores. Metrics go to the host and back, and are no programs.
    """

    def shared(check: Check) -> tuple[str, str, bool]:
        return check.function, check.variant, together and check.result != "host"

    for (*_, one), group in itertools.groupby(functions, shared):
        if one:
            yield list(group)
        else:
            yield from ([check] for check in group)


# The result of a check's call, on the host in float64, and what is wrong with its kind; or the
# exception that it raised.
_Outcome = tuple[list[np.ndarray], str] | Exception


def _outcomes(
    functions: list[Check], references: list[Reference], place: Target, given: dict[str, Arrays]
) -> list[_Outcome]:
    """Outcome of each check; where a program of several checks raises, each is run separately."""

    def fields(given: dict[str, Arrays]) -> list[Fields]:
        return [
            check.call(Call(place, given[check.inputs], reference.upstream))
            for check, reference in zip(functions, references, strict=True)
        ]

    def program(given: dict[str, Arrays]) -> list[Fields]:
        found = fields(given)
        for f in itertools.chain.from_iterable(found):
            _xp.namespace(next(iter(given["given"].values())), f)  # a program would convert it
        return found

    whole = _xp.compiles(place.xp) and functions[0].result != "host"
    try:
        run = _xp.program(place.xp, program, given, quickly=_quickly(place)) if whole else fields
        with _EXECUTING if _xp.compiles(place.xp) else contextlib.nullcontext():
            found = run(given)
            return [
                (
                    [on_host(f) / reference.upstream for f in result],  # waits for the device
                    wrong_kind(check, place, result, reference),
                )
                for check, result, reference in zip(functions, found, references, strict=True)
            ]
    except Exception as failed:  # a library may raise anything; that is the finding
        if len(functions) == 1:
            return [failed]
    pairs = zip(functions, references, strict=True)
    return [o for c, r in pairs for o in _outcomes([c], [r], place, given)]


def _quickly(place: Target) -> bool:
    """Whether programs are compiled with few optimisations: on a CPU people use float32."""
    return _xp.compiles(place.xp) and _xp.is_on_host(place.xp) and place.dtype != "float32"


def _record(
    check: Check,
    combination: Combination,
    place: Target,
    reference: Reference,
    outcome: _Outcome,
    seconds: float,
) -> CheckRecord:
    note = "on the host" if check.host else "compiled quickly" if _quickly(place) else ""
    error = math.nan
    if isinstance(outcome, ValueError | MissingExtraError):
        # What the reference rejects must be rejected everywhere, with the same message.
        note = str(outcome).split("\n")[0]
        agrees = bool(reference.refusal) and note == reference.refusal
    elif isinstance(outcome, Exception):
        note = f"{type(outcome).__name__}: {str(outcome).strip()}".split("\n")[0][:200]
        agrees = False
    elif outcome[1]:
        note, agrees = outcome[1], False
    else:
        size = size_of(check, combination.dtype)
        error = max(
            error_of(got, wanted, scale, size)
            for got, wanted, scale in zip(
                outcome[0], reference.fields, reference.scales, strict=True
            )
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
