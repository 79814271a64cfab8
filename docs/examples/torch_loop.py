"""Train with VISReg in a plain loop, stop, and go on with the slices that are next.

python docs/examples/torch_loop.py
"""

import copy

import torch
from digits_views import Digits, knn_accuracy, make_encoder

from visreg_torch import VISRegLoss


def train(encoder, loss, optimizer, epochs):
    loader = torch.utils.data.DataLoader(Digits(), batch_size=256, shuffle=True, drop_last=True)
    for _ in range(epochs):
        for batch in loader:
            z = encoder(batch["views"].transpose(0, 1))  # (V, N, D)
            terms = loss(z)
            optimizer.zero_grad()
            terms.total.backward()
            optimizer.step()
        print(" ".join(f"{name} {term:.3f}" for name, term in terms._asdict().items()))


def main():
    torch.manual_seed(0)
    encoder = make_encoder()
    loss = VISRegLoss(n_slices=256, lam=0.6)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=2e-3)
    train(encoder, loss, optimizer, epochs=3)
    # The loss's state is its step.
    saved = [copy.deepcopy(part.state_dict()) for part in (encoder, loss, optimizer)]

    encoder = make_encoder()
    loss = VISRegLoss(n_slices=256, lam=0.6)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=2e-3)
    for part, state in zip((encoder, loss, optimizer), saved, strict=True):
        part.load_state_dict(state)
    train(encoder, loss, optimizer, epochs=3)
    print(f"step {loss.step}, nearest neighbours {knn_accuracy(encoder):.2f}")


if __name__ == "__main__":
    main()
