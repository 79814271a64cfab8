"""What `crosscheck` returns."""

from __future__ import annotations

from typing import NamedTuple


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
        Of the first call, compilation included. What a library compiled as one program has equal
        shares of its time.
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
