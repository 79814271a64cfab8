"""Triton kernels for CUDA devices, in place of the functions that dominate the sliced losses.

`KERNELS` replaces functions of rows in the core's own pass, sharded or not:

    implementation(…, execution=PLAIN._replace(kernels=KERNELS))

`visreg_torch.kernels.fused.run` replaces the whole pass of VISReg, SIGReg and the sliced Gaussian
Wasserstein distance on one device, and makes no array of the embeddings' size but the gradient.
Eager code takes it, and compiled code whose sizes are no symbols.

`dispatch.choose` decides which kernel runs; where none can, the core runs. `explain` tells what was
decided, and `forced` overrules it. A module has one operation: its kernels, their launchers, and
the name of the slow twin that tests compare them with. Nothing here needs triton to be imported,
or a device, until a kernel is chosen.
"""

from visreg_torch.kernels.dispatch import Choice, choose, explain, forced
from visreg_torch.kernels.rows import KERNELS

__all__ = ["KERNELS", "Choice", "choose", "explain", "forced"]
