"""Train with SIGReg under Hugging Face Accelerate.

accelerate launch docs/examples/torch_accelerate.py
"""

import gc

import torch
from accelerate import Accelerator
from digits_views import Digits, knn_accuracy, make_encoder

from visreg_torch import SIGRegLoss, invariance_loss, joint_objective


def main():
    accelerator = Accelerator(gradient_accumulation_steps=2)
    torch.manual_seed(0)
    encoder = make_encoder()
    regularizer = SIGRegLoss(n_slices=256, scope="global").to(accelerator.device)
    encoder, optimizer, loader = accelerator.prepare(
        encoder,
        torch.optim.AdamW(encoder.parameters(), lr=2e-3),
        torch.utils.data.DataLoader(Digits(), batch_size=256, shuffle=True),
    )
    accelerator.register_for_checkpointing(regularizer)  # its step
    for _ in range(4):
        for batch in loader:
            with accelerator.accumulate(encoder):
                z = encoder(batch["views"].transpose(0, 1))
                loss = joint_objective(invariance_loss(z, scope="global"), regularizer(z), lam=0.05)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
        accelerator.print(f"loss {loss:.3f}")
    accelerator.save_state("checkpoint")
    accelerator.load_state("checkpoint")
    accuracy = knn_accuracy(accelerator.unwrap_model(encoder).cpu())
    accelerator.print(f"step {regularizer.step}, nearest neighbours {accuracy:.2f}")
    # DDP ends before its group does: torch_ddp.py says why.
    accelerator.free_memory()
    del encoder
    gc.collect()
    accelerator.end_training()


if __name__ == "__main__":
    main()
