r"""Train a backbone with any of the losses.

    python -m reference_train --config-name digits
    python -m reference_train --config-name digits method.name=vicreg run.folder=runs/vicreg
    torchrun --nproc_per_node 2 -m reference_train --config-name digits     # on a CPU
    accelerate launch --num_processes 8 -m reference_train \
        --config-name visreg_vit_b16_imagenet1k data.path=/data/imagenet run.folder=runs/b16

The same command again resumes from the last checkpoint. Every setting: ``--help``. The files of
a run: README.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from reference_train import data, methods, optim, shard, speed
from reference_train.augment import MultiCrop
from reference_train.config import RECIPES, Config, documented, load, to_dict
from reference_train.curves import draw_curves
from reference_train.environment import environment, write_result
from reference_train.errors import LocalError, TrainError, one_line
from reference_train.gradients import Gradients
from reference_train.ledger import Ledger
from reference_train.logs import Log, write_atomically
from reference_train.measure import Measured, closing_table, save_embeddings, table
from reference_train.model import Learner, describe, synchronised
from reference_train.progress import Progress, say
from reference_train.session import Session
from reference_train.splits import Splits, open_splits
from reference_train.trackers import Trackers


def train(config: Config) -> dict[str, dict[str, float]]:
    """A whole run; returns the table of measures at its end (empty where there are no labels)."""
    accelerator = start(config)
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    folder = Path(config.run.folder)
    settings = to_dict(config)

    # Data
    splits = open_splits(config.data, config.run.seed)
    say(accelerator, *splits.notes)
    micro = config.run.accumulate
    steps_per_epoch = data.batches_per_epoch(splits.train, config.data, world, micro) // micro
    steps = config.run.max_steps or max(1, round(config.run.epochs * steps_per_epoch))
    warmup = round(config.optim.warmup_epochs * steps_per_epoch)
    crops_of = MultiCrop(config.augment, config.data).to(device)

    # Model: the weights of a seed are the same on every process, augmentation is not.
    torch.manual_seed(config.run.seed)
    learner = new_learner(config, splits.n_classes).to(device)
    if world > 1:
        synchronised(learner, device)
    method = methods.build(config, learner).to(device)
    dtype = torch.float64 if config.run.precision == "float64" else torch.float32
    learner.to(dtype).train(), method.to(dtype)
    speed.hasten(learner, config.run)
    if config.run.shard:
        shard.share_out(learner, accelerator)
    optimizer = optim.optimizer(learner, config.optim, config.probe)
    average = speed.average(learner, config.optim.ema)
    evaluated = learner if average is None else average.module
    set_seed((config.run.seed * world + rank + 1) % 2**32)

    # State
    parts = {"learner": learner, "method": method, "optimizer": optimizer}
    if average is not None:
        parts["average"] = average
    session = Session(accelerator, config, splits.classes, parts)
    first, lanes, places = session.resume()
    if accelerator.is_main_process:  # not earlier: the folder may belong to another run
        write_atomically(folder / "config.json", json.dumps(settings, indent=1))
        facts = environment(world, device, folder)
        write_atomically(folder / "environment.json", json.dumps(facts, indent=1))
        write_atomically(folder / "classes.json", json.dumps(splits.classes, ensure_ascii=False))
    log = accelerator.is_main_process and Log(folder, "metrics", first)
    evaluations = accelerator.is_main_process and Log(folder, "evaluations", first)
    trackers = accelerator.is_main_process and Trackers(folder, settings, first)
    tested = splits.test is not None and not config.run.shard
    measured = Measured(config, splits, device) if tested else None
    ledger = Ledger(accelerator, folder)
    # data parallel, unless it is in shards; under autocast with bfloat16
    model = accelerator.prepare_model(learner, evaluation_mode=config.run.shard)
    gradients = Gradients(accelerator, model, method, crops_of, dtype, config.run.channels_last)
    together = config.run.statistics == "batch"
    backpropagate = gradients.of_batch if together else gradients.of_means
    say(accelerator, f"{describe(learner)}; steps {first} ... {steps} on {world} x {device}")
    say(accelerator, str(methods.statistic_size(config, world)))
    if warmup >= steps:
        say(accelerator, f"the warm-up of {warmup} steps outlasts the run's {steps}")

    stream = data.batches(
        splits.train, config.data, seed=config.run.seed, rank=rank, world=world,
        start=first * micro, accumulate=micro, lanes=lanes, places=places,
    )  # fmt: skip
    trained = list(optim.trained(learner))
    images = config.data.batch_size * world * micro
    progress = Progress(accelerator, first, steps, images)
    for step in range(first, steps):
        lr = optim.learning_rate(step, steps, warmup, config.optim)
        optim.set_learning_rate(optimizer, lr, config.probe.online_lr)
        places = dict(stream.places)
        try:
            batches = [next(stream) for _ in range(micro)]
        except LocalError:
            if world == 1 and step > first:  # a single process, so that no other has to agree
                ledger.read()  # a step that is not finite leaves no checkpoint
                session.save(step, stream.lanes, places)
                session.writer.wait()
            raise

        terms, statistics = backpropagate(batches, step)
        if config.run.clip_norm is None:
            norm = torch.nn.utils.get_total_norm([p.grad for p in trained])
        else:
            norm = torch.nn.utils.clip_grad_norm_(trained, config.run.clip_norm)
        norm = shard.whole(norm)
        method.before_step(learner, step / steps_per_epoch)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        method.after_step(learner, (step + 1) / steps)
        if average is not None:
            average.update_parameters(learner)
        ids = torch.cat([batch.ids for batch in batches])
        ledger.add(step, {**terms, "gradient": norm}, statistics, ids)
        progress.bar.update()

        # Everything below happens every n-th step: reading the ledger waits for the device.
        done = step + 1
        saving = session.due(done, steps)
        if done % config.run.log_every == 0 or saving:
            saving = session.overdue() or saving
            means = ledger.read()
            if log:
                log.add({"step": done, "epoch": done / steps_per_epoch, "lr": lr, **means})
                trackers.add(done, {"lr": lr, **means})
                progress.report(done, means["loss"])
        if measured:
            found = evaluation(measured, evaluated, done, steps, steps_per_epoch)
            if log and found:
                evaluations.add({"step": done, "epoch": done / steps_per_epoch, **found})
                trackers.add(done, found)
                progress.tell(done, found)
        if saving:  # last, so that a kill before it loses no row: the step is done again
            session.save(done, stream.lanes, stream.places)
    progress.bar.close()
    session.writer.wait()

    results = {}
    if log and log.rows:
        draw_curves(folder)
    if measured:
        results = final_table(accelerator, splits, measured, evaluated, progress.begun)
    if log:
        trackers.close()
    accelerator.wait_for_everyone()
    # DDP ends before its group: while it holds the last reference, its destructor waits, with the
    # interpreter's lock, for Gloo's threads, which may wait for that lock.
    del model, gradients, backpropagate
    accelerator.free_memory()
    gc.collect()
    accelerator.end_training()
    return results


def start(config: Config) -> Accelerator:
    """Process group, device, threads, and the run's folder."""
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    accelerator = Accelerator(
        cpu=config.run.cpu or not torch.cuda.is_available(),
        mixed_precision="bf16" if config.run.precision == "bfloat16" else "no",
    )
    if accelerator.is_main_process:
        Path(config.run.folder).mkdir(parents=True, exist_ok=True)
    return accelerator


def new_learner(config: Config, n_classes: int) -> Learner:
    """The untrained model; the same weights for the same seed."""
    return Learner(config, n_classes, methods.last_layer(config))


def due(epochs: float | None, done: int, steps: int, steps_per_epoch: float) -> bool:
    """Whether what happens every so many epochs, and at the end, is due after `done` steps."""
    if epochs is None:
        return False
    return done == steps or done % max(1, round(epochs * steps_per_epoch)) == 0


def evaluation(measured: Measured, learner: Learner, *when: float) -> dict[str, float]:
    """What is due: kNN, and the online probe's accuracy on the test images."""
    run, found = measured.config.run, {}
    if due(run.evaluate_every, *when):
        found["knn"] = measured.knn(measured.features(measured.encoder(learner)))
    if learner.probe is not None and (found or due(run.validate_every, *when)):
        found["probe_validation"] = measured.online(learner)
    return found


def final_table(
    accelerator: Accelerator, splits: Splits, measured: Measured, learner: Learner, begun: float
) -> dict[str, dict[str, float]]:
    """Measures of the trained encoder, of the same one untrained, and of the pixels."""
    config, started = measured.config, time.monotonic()
    torch.manual_seed(config.run.seed)
    untrained = new_learner(config, splits.n_classes).to(next(learner.parameters()))
    results, features, said = closing_table(measured, {"trained": learner, "untrained": untrained})
    if accelerator.is_main_process:
        folder = Path(config.run.folder)
        save_embeddings(folder / "embeddings", features)
        write_result(folder / "results.json", results)
        print(table(results))  # noqa: T201
    took, whole = time.monotonic() - started, time.monotonic() - begun
    said.append(f"the table took {took:.1f} s, {took / whole:.0%} of the run's {whole:.1f} s")
    if took > 0.1 * whole:
        said.append("fewer probe.max_rows, probe.tree_rows or probe.epochs make it shorter")
    say(accelerator, *said)
    return results


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="reference_train", add_help=False, description=__doc__, usage=__doc__
    )
    parser.add_argument("--config-name", metavar="RECIPE")
    parser.add_argument("--config-dir", default=RECIPES, help="folder of other recipes")
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    given = parser.parse_args(arguments)
    if given.help or given.config_name is None:
        recipes = ", ".join(sorted(p.stem for p in Path(given.config_dir).glob("*.yaml")))
        lines = [f"{key:26} {default!s:24} {text}" for key, _, default, text in documented()]
        print(__doc__, f"Recipes: {recipes}", "", *lines, sep="\n")  # noqa: T201
        sys.exit(0 if given.help else 2)
    try:
        train(load(given.config_name, given.settings, given.config_dir))
    except (TrainError, OSError) as error:
        rank = int(os.environ.get("RANK", "0"))
        if rank == 0 or isinstance(error, LocalError):
            where = f" (process {rank})" if rank else ""
            print(f"reference_train{where}: {one_line(error)}", file=sys.stderr)  # noqa: T201
        sys.exit(1)
    except KeyboardInterrupt:
        print("\nreference_train: interrupted", file=sys.stderr)  # noqa: T201
        sys.exit(130)
