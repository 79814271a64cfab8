"""What `crosscheck` returns."""

from __future__ import annotations

from typing import NamedTuple


class CheckRecord(NamedTuple):
    """The result of one check on one library, device and dtype.

    backend, device, dtype
        Where it ran.
    function, variant
        The public name, and the options in words ("" for the defaults).
    of
        "value", "gradient", "metric", "array", "words" (of the counter-based generator), or
        "difference": the reference's own gradient compared with a central difference of its value.
    error
        Largest relative error over the fields of the result; NaN where there is no number.
    tolerance
        The largest allowed error.
    agrees
        Whether the error is allowed, and the library, device, dtype and shape are right.
    seconds
        Of the first call, compilation included. Checks that were compiled as one program share its
        time equally.
    note
        A remark: "on the host", "compiled quickly" (with few optimisations), or why there is no
        number.
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
