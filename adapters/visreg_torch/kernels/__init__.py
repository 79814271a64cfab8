"""Triton kernels for CUDA devices, in place of the core's functions or of whole losses.

`KERNELS` replaces functions of rows in the core's own pass, sharded or not:

    implementation(…, execution=PLAIN._replace(kernels=KERNELS))

On one device whole losses are computed by kernels (`whole.whole`): VISReg, its shape term, SIGReg
and the sliced Gaussian Wasserstein distance by `sliced`, VICReg, SAG-VICReg and Barlow Twins by
`pairs`. These make no array of the embeddings' size but the gradient and the projections.

`dispatch.choose` decides which kernel runs; where none can, the core runs. `explain` tells what was
decided, and `forced` overrules it. A module has one operation: its kernels, their launchers, and
the name of the slow twin that tests compare them with. Nothing here needs triton to be imported,
or a device, until a kernel is chosen.
"""

from visreg_torch.kernels.dispatch import Choice, choose, explain, forced
from visreg_torch.kernels.rows import KERNELS

__all__ = ["KERNELS", "Choice", "choose", "explain", "forced"]
