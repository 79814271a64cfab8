"""Write the table of backends: ``python -m tests.backends_table > docs/_generated/backends.md``.

Rows come from the declarations the tests are parametrised with, errors from running them.
"""

import numpy as np

from tests.backends import Backend
from tests.cases import FUNCTIONS, PRIMARY
from tests.core.losses.test_half_precision import SHAPE, measure

HALVES = (
    (Backend.TORCH, "bfloat16"),
    (Backend.TORCH, "float16"),
    (Backend.JAX, "bfloat16"),
    (Backend.NUMPY, "float16"),
)


def yes(flag):
    return "yes" if flag else "no"


def table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def support():
    """What each loss takes, and the backends whose tests it must pass."""
    backends = list(Backend)
    header = ["loss", *(str(b) for b in backends), "gradient of", "`row_mask`", "leading axes"]
    rows = [
        [
            f"`{loss.name}`",
            *("tested" if b.required else "with hardware" for b in backends),
            ", ".join(f"`{name}`" for name in loss.wrt),
            yes(loss.row_mask),
            yes(loss.leading),
        ]
        for loss in FUNCTIONS.values()
    ]
    return table(header, rows)


def half_precision():
    """Relative L2 error of the gradient with 16-bit inputs."""
    header = ["loss", *(f"{b}, {dtype}" for b, dtype in HALVES), "narrow projection, bfloat16"]
    rows = []
    for case in PRIMARY:
        cells = [measure(case, b, dtype, np.random.default_rng(20261123))[1] for b, dtype in HALVES]
        row = [f"`{case.loss.name}`", *(f"{100 * error:.2f} %" for error in cells)]
        if case.loss.sliced:
            narrow = Backend.TORCH.dtype("bfloat16")
            rng = np.random.default_rng(20261123)
            error = measure(case, Backend.TORCH, "bfloat16", rng, projection_dtype=narrow)[1]
            row.append(f"{100 * error:.2f} %")
        else:
            row.append("")
        rows.append(row)
    return table(header, rows)


def main():
    n, d, k = SHAPE
    print(support())
    print()
    print(
        f"Relative L2 error of the gradient for 16-bit inputs (N = {n}, D = {d}, K = {k}) against "
        "float64 on the same inputs. The returned gradient alone rounds by up to 0.4 % in "
        "bfloat16 and 0.05 % in float16. The last column is `projection_dtype=bfloat16`."
    )
    print()
    print(half_precision())


if __name__ == "__main__":
    main()
