"""What the trainer's files may be and need, and the tables of results that it makes."""

import ast
import tomllib
from pathlib import Path

import numpy as np
import pytest

from reference_train import config, experiments
from tests.core.test_packaging import declared, distribution, executed

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "reference_train").glob("*.py"))
PINNED = {
    line.split("==")[0].lower().replace("_", "-")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if "==" in line
}
# Asked for by name only where they are used: timm: backbones, and run.wandb=true.
OPTIONAL = {"timm", "wandb"}
# Brought by what the extra asks for.
BROUGHT = {"omegaconf", "braceexpand"}
DISTRIBUTION = {"pil": "pillow", "hydra": "hydra-core"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_every_import_is_a_dependency(path):
    imported = set()
    for node in executed(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {distribution(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(distribution(node.module))
    imported = {DISTRIBUTION.get(name, name) for name in imported}
    import sys

    known = {name.replace("_", "-") for name in sys.stdlib_module_names}
    known |= {"visreg-core", "visreg-torch", "reference-train"} | OPTIONAL | BROUGHT
    assert imported <= known | declared() | declared("train", "torch", "report")


def test_the_extra_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ours, *_ = project["optional-dependencies"]["test"]
    assert "train" in ours.removeprefix("visreg-core[").removesuffix("]").split(",")
    assert declared("train") - {"visreg-core"} <= PINNED


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_a_file_is_read_in_one_sitting(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    assert text.count("torch.load(") == text.count("weights_only=True)")


def test_no_step_waits_for_the_device():
    """In the loop of train.py nothing reads a tensor but the ledger, every n-th step."""
    tree = ast.parse((ROOT / "reference_train" / "train.py").read_text())
    (train,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "train")
    (loop,) = (n for n in train.body if isinstance(n, ast.For))
    called = {
        n.func.attr
        for n in ast.walk(loop)
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)
    }
    assert not called & {"item", "tolist", "cpu", "numpy", "synchronize"}


@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
def test_the_settings_of_an_experiment_exist(name):
    for settings in experiments.EXPERIMENTS[name].variants.values():
        given = {**experiments.SMALL, **settings}
        given.pop("processes", None)
        loaded = config.load("digits", [f"{key}={value}" for key, value in given.items()])
        assert loaded.run.epochs == experiments.SMALL["run.epochs"]


def test_mean_and_spread_over_seeds():
    values = [0.901, 0.905, 0.921]
    mean, deviation = np.mean(values) * 100, np.std(values, ddof=1) * 100
    assert experiments.spread(values, "kNN") == f"{mean:.1f} ± {deviation:.1f} %"
    assert experiments.spread([1.0, 2.0], "whole run") == "1.500 ± 0.707"


def test_correlation_of_loss_and_accuracy(tmp_path):
    rows = [f'{{"step": {i}, "loss": {10 - i}, "probe_accuracy": {i / 10}}}' for i in range(10)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(rows))
    (found,) = experiments.loss_and_accuracy([tmp_path])
    assert list(found.values()) == pytest.approx([-1, -1])


def test_stability_is_that_of_pairs_of_seeds(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((12, 3))
    folders = []
    for i, embeddings in enumerate((x, x, rng.standard_normal((12, 3)))):
        folder = tmp_path / str(i)
        (folder / "embeddings").mkdir(parents=True)
        (folder / "results.json").write_text('{"trained": {"kNN": 0.5}}')
        np.save(folder / "embeddings" / "trained.npy", embeddings)
        folders.append(folder)
    first, second, third = (r["LCA stability"] for r in experiments.with_stability(folders))
    assert first == pytest.approx(1)
    assert second == pytest.approx(third)
    assert second < 0.9
