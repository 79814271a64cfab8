"""Runs every check on every library, device and dtype, and compares it with NumPy in float64."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from visreg_core import _xp, checks
from visreg_core.crosscheck._check import Call, Check, Place
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
        At most 256 evenly spread, different rows of these take the place of the package's own
        inputs, except where a check is made for special ones (equal keys, N < D, differences).
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
    functions, losses = _chosen(only)
    own = own_embeddings()
    sets = input_sets(own if embeddings is None else users_embeddings(embeddings))
    # Before anything runs on a library: inputs that a dtype cannot hold are refused here.
    rounded_sets = {d: rounded(sets, d) for d in dict.fromkeys(c.dtype for c in combinations)}
    total = len(combinations) * len(functions) + len(losses)
    records: list[CheckRecord] = []
    references: dict[tuple[str, Check], Reference] = {}
    for combination in combinations:
        for record in _run(combination, functions, rounded_sets[combination.dtype], references):
            records.append(record)
            if on_record is not None:
                on_record(record, total)
    for loss in losses:
        # On well-conditioned inputs: this checks formulas, and a kink or a constant column has no
        # derivative that a difference could see.
        records.append(difference(loss, sets["own" if loss.inputs == "given" else loss.inputs]))
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
        checks.choice("dtype", dtype, _xp.FLOATING)
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


def _run(
    combination: Combination,
    functions: Iterable[Check],
    sets: dict[str, Arrays],
    references: dict[tuple[str, Check], Reference],
) -> Iterator[CheckRecord]:
    xp = _xp.import_namespace(combination.backend)
    with _xp.pinned_precision(xp, x64=combination.dtype == "float64"):
        device = _xp.find_device(xp, combination.device)
        place = Place(xp, device, combination.dtype)
        given = {name: shipped(a, xp, device, combination.dtype) for name, a in sets.items()}
        for check in functions:
            key = combination.dtype, check
            if key not in references:
                references[key] = reference_of(check, sets[check.inputs], combination.dtype)
            yield _one(check, combination, place, given[check.inputs], references[key])


def _one(
    check: Check, combination: Combination, place: Place, arrays: Arrays, reference: Reference
) -> CheckRecord:
    start = time.perf_counter()
    note = "on the host" if check.host else ""
    error = math.nan
    try:
        fields = check.call(Call(place, arrays, reference.upstream))
        host = [on_host(f) / reference.upstream for f in fields]  # waits for the device
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
        wrong = wrong_kind(check, place, fields, reference)
        if wrong:
            note, agrees = wrong, False
        else:
            size = size_of(check, combination.dtype)
            error = max(
                error_of(got, wanted, scale, size)
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
