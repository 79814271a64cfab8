"""Train with VISReg on several processes, exactly as one process would with all rows.

torchrun --nproc-per-node 2 docs/examples/torch_ddp.py
"""

import gc
import os

import torch
import torch.distributed as dist
from digits_views import Digits, knn_accuracy, make_encoder
from torch.nn.parallel import DistributedDataParallel

from visreg_torch import VISRegLoss


def main():
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    rank = dist.get_rank()
    device = f"cuda:{os.environ['LOCAL_RANK']}" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(rank)  # of the views; DDP starts from the first process's weights
    encoder = DistributedDataParallel(make_encoder().to(device))
    # The loss of the whole batch with all slices, a part of which each process computes. With
    # scope="local" each would have a loss of its own rows, and slices of its own.
    loss = VISRegLoss(n_slices=256, lam=0.6, scope="global").to(device)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=2e-3)
    digits = Digits()
    sampler = torch.utils.data.DistributedSampler(digits)
    loader = torch.utils.data.DataLoader(digits, batch_size=128, sampler=sampler)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for batch in loader:
            terms = loss(encoder(batch["views"].to(device).transpose(0, 1)))
            optimizer.zero_grad()
            terms.total.backward()
            optimizer.step()
        if rank == 0:
            print(" ".join(f"{name} {term:.3f}" for name, term in terms._asdict().items()))
    if rank == 0:
        print(f"step {loss.step}, nearest neighbours {knn_accuracy(encoder.module.cpu()):.2f}")
    # DDP ends before its group: while it holds the last reference, its destructor waits, with the
    # interpreter's lock, for Gloo's threads, which may wait for that lock.
    del encoder
    gc.collect()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
