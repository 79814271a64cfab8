"""Kernels of the core's functions of rows, for CPUs; elsewhere the core's functions run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from visreg_core.losses.epps_pulley import Multiples
from visreg_core.losses.rows import kept


class PlatformMultiples(Multiples):
    """Sums over all multiples of the angles in one pass, where XLA would make one for each."""

    def sums(self, keep: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Σ_n cos jθ_n and Σ_n sin jθ_n over the kept samples, each (R, m)."""
        return lax.platform_dependent(
            *(kept(jnp, keep, x) for x in (self.cos, self.sin)),  # all multiples of 0 are 0
            cpu=functools.partial(_sums_in_one_pass, m=self.m),
            default=lambda *_: super(PlatformMultiples, self).sums(keep),
        )


def _sums_in_one_pass(cos: jax.Array, sin: jax.Array, m: int) -> tuple[jax.Array, jax.Array]:
    """One reduction of 2 m arrays that are not stored: rotations of cos and sin (R, N).

    In blocks of about √N, which rounds less and does not force sharded rows together.
    """
    rows, n = cos.shape
    block = 1 << (n.bit_length() // 2)
    padding = [(0, 0), (0, -n % block)]
    c0, s0 = (jnp.pad(x, padding).reshape(rows, -1, block) for x in (cos, sin))
    c, s = c0, s0
    cosines, sines = [c], [s]
    for _ in range(1, m):
        c, s = c * c0 - s * s0, s * c0 + c * s0
        cosines.append(c)
        sines.append(s)
    operands = (*cosines, *sines)
    zeros = (jnp.zeros((), cos.dtype),) * len(operands)
    of_blocks = jnp.stack(lax.reduce(operands, zeros, _add_each, (2,)), axis=1)
    sums = jnp.sum(of_blocks, axis=-1)
    return sums[:, :m], sums[:, m:]


def _add_each(a: tuple[Any, ...], b: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x + y for x, y in zip(a, b, strict=True))


def multiples(_: Any, angle: jax.Array, m: int, *, sharded: bool) -> PlatformMultiples:
    """`PlatformMultiples` of the angles (R, N)."""
    return PlatformMultiples(jnp, angle, m)


KERNELS: dict[str, Callable[..., Any]] = {"multiples": multiples}
"""By the name of the function of the core that each replaces."""
