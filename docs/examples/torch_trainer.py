"""Train with VISReg under Hugging Face's Trainer.

python docs/examples/torch_trainer.py
"""

import tempfile

from digits_views import Digits, knn_accuracy, make_encoder
from torch import nn
from transformers import Trainer, TrainingArguments, set_seed

from visreg_torch import VISRegLoss


class Learner(nn.Module):
    """Trainer takes the loss from the outputs, and saves the step with the weights."""

    def __init__(self):
        super().__init__()
        self.encoder = make_encoder()
        self.loss = VISRegLoss(n_slices=256, lam=0.6, scope="global")

    def forward(self, views):
        z = self.encoder(views.transpose(0, 1))
        return {"loss": self.loss(z).total, "embeddings": z.transpose(0, 1)}


def main():
    set_seed(0)
    learner = Learner()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, num_train_epochs=4, per_device_train_batch_size=256, learning_rate=2e-3,
            logging_steps=8, save_strategy="epoch", report_to="none", disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(learner, arguments, train_dataset=Digits())
        trainer.train()
    accuracy = knn_accuracy(learner.encoder.cpu())
    print(f"step {learner.loss.step}, nearest neighbours {accuracy:.2f}")


if __name__ == "__main__":
    main()
