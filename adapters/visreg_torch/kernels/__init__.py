"""Triton kernels for CUDA devices, in place of the core's functions or of whole losses.

`KERNELS` replaces functions of rows inside the core's passes, on one process or several:

    Execution(kernels=KERNELS)

On one device whole losses are computed by kernels (`whole.whole`): VISReg, its shape term, SIGReg
and the sliced Gaussian Wasserstein distance by `sliced`; VICReg, SAG-VICReg and Barlow Twins by
`pairs`. These make no array of the embeddings' size but the gradient and the projections. What a
pass started is repeated for the next inputs of the same sizes and options (`_tape`).

`dispatch.choose` decides which kernel runs; where none can, the core runs. `explain` shows the
decision, and `forced` overrides it. Each module has the kernels of one operation, their launchers,
and the name of the reference implementation that tests compare them with. Neither triton nor a
device is needed until a kernel is chosen.
"""

from visreg_torch.kernels.dispatch import Choice, choose, explain, forced
from visreg_torch.kernels.rows import KERNELS

__all__ = ["KERNELS", "Choice", "choose", "explain", "forced"]
