"""Train with VICReg under Lightning.

python docs/examples/torch_lightning.py
"""

import lightning
import torch
from digits_views import Digits, knn_accuracy, make_encoder

from visreg_torch import VICRegLoss


class Learner(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.encoder = make_encoder()
        self.loss = VICRegLoss(scope="global")  # on one process the same as "local"

    def training_step(self, batch, _):
        terms = self.loss(self.encoder(batch["views"].transpose(0, 1)))
        self.log_dict({name: term.detach() for name, term in terms._asdict().items()})
        return terms.total

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def main():
    lightning.seed_everything(0, verbose=False)
    learner = Learner()
    trainer = lightning.Trainer(
        max_epochs=4, accelerator="auto", devices=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(learner, torch.utils.data.DataLoader(Digits(), batch_size=256, shuffle=True))
    print(" ".join(f"{name} {term:.3f}" for name, term in trainer.logged_metrics.items()))
    print(f"nearest neighbours {knn_accuracy(learner.encoder.cpu()):.2f}")


if __name__ == "__main__":
    main()
