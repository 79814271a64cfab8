"""Watching a training run: what is measured when, in a loop, under Lightning and under Trainer."""

import warnings

import pytest
import torch
from torch import nn

from visreg_core import metrics
from visreg_torch.monitor import FeatureQueue, Monitor, lightning_callback, trainer_callback


def batches(*sizes, views=2, dim=6):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(views, n, dim, generator=generator) for n in sizes]


def test_a_queue_has_the_last_rows():
    queue, all_of_them = FeatureQueue(10), batches(4, 4, 7, 2, 30, 3)
    for i, batch in enumerate(all_of_them):
        queue.add(batch.requires_grad_())
        expected = torch.cat(all_of_them[: i + 1], 1)[:, -10:]
        assert torch.equal(queue.rows(), expected) and len(queue) == expected.shape[1]
        assert not queue.rows().requires_grad
    assert sum(b.shape[-2] for b in queue.batches) <= 13
    queue.add(torch.ones(5, 3))  # another shape: what was there is of something else
    assert queue.rows().shape == (5, 3)


def test_a_queue_keeps_copies():
    queue, batch = FeatureQueue(10), torch.zeros(4, 3)
    queue.add(batch)
    batch += 1
    assert not queue.rows().any()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone, self.projector = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.projector(self.backbone(x))


def test_a_monitor_measures_every_nth_step():
    model = Net()
    monitor = Monitor(model, ["backbone", "projector", ""], every=2, max_rows=50)
    seen = batches(20, 20, 20, 20)
    found = []
    for batch in seen:
        model(batch)
        with torch.no_grad():
            model(batch + 1)  # an evaluation
        found.append(monitor.step())
    assert [bool(f) for f in found] == [False, True, False, True]
    model.eval()
    model(seen[0])
    z = model.backbone(torch.cat(seen, 1)[:, -50:])
    expected = metrics.summary(z.detach())
    assert {f"backbone/{k}": v for k, v in expected.items()}.items() <= found[-1].items()
    names = {"rankme", "effective_rank", "uniformity", "std", "alignment", "knn_agreement"}
    assert set(expected) == names | {"lca_stability"}
    assert {name.partition("/")[0] for name in found[-1]} == {"backbone", "projector", "output"}
    monitor.close()
    model.train()(seen[0])
    assert torch.equal(monitor.queues["backbone"].rows(), z)


def test_views_below_each_other():
    model = Net()
    monitor = Monitor(model, ["projector"], views=2)
    (batch,) = batches(20)
    z = model(batch.flatten(0, 1))
    assert torch.equal(monitor.queues["projector"].rows(), z.unflatten(0, (2, 20)))
    with pytest.raises(ValueError, match="expected layers of the model; found 'head'"):
        Monitor(model, ["head"])


def test_lightning_logs_it():
    import lightning
    from lightning.pytorch.loggers.logger import Logger

    class Kept(Logger):
        name, version, rows = "kept", 0, None

        def log_metrics(self, metrics, step=None):
            self.rows = [*(self.rows or []), (step, metrics)]

        def log_hyperparams(self, *_, **__):
            pass

    class Learner(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def training_step(self, batch, _):
            return self.net(batch[0].transpose(0, 1)).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    data = torch.utils.data.TensorDataset(batches(64)[0].transpose(0, 1))
    kept = Kept()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_epochs=1, logger=kept, log_every_n_steps=1, accelerator="cpu",
            callbacks=[lightning_callback(["net.backbone"], every=2)], enable_progress_bar=False,
            enable_checkpointing=False, enable_model_summary=False,
        )  # fmt: skip
        learner = Learner()
        trainer.fit(learner, torch.utils.data.DataLoader(data, batch_size=16))
    measured = [(step, m["net.backbone/rankme"]) for step, m in kept.rows]
    assert [step for step, _ in measured] == [2, 4]
    assert all(1 < rank <= 8 for _, rank in measured)
    assert not learner.net.backbone._forward_hooks


def test_trainer_of_transformers_logs_it(tmp_path):
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Learner(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def forward(self, views):
            return {"loss": self.net(views.transpose(0, 1)).square().mean()}

    class Told(TrainerCallback):
        rows = ()

        def on_log(self, *_, logs, **__):
            self.rows = (*self.rows, logs)

    data = [{"views": views} for views in batches(64)[0].transpose(0, 1)]
    told = Told()
    arguments = TrainingArguments(
        str(tmp_path), max_steps=4, per_device_train_batch_size=16, use_cpu=True, report_to=[],
        save_strategy="no", logging_strategy="no", disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(Learner(), arguments, train_dataset=data, callbacks=[told])
        trainer_callback(trainer, ["net.projector"], every=2)
        trainer.train()
    measured = [row for row in told.rows if "net.projector/rankme" in row]
    assert len(measured) == 2
    assert not trainer.model.net.projector._forward_hooks
