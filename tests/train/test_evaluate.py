"""Evaluation of a checkpoint: the probes, the export, the pictures."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from sklearn.decomposition import PCA

from reference_train import checkpoint, crops_probe, data, evaluate, loading, pictures, probe
from reference_train.train import main
from tests.train import runs
from visreg_core import cli

LINE = ["--cpu"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("run")
    arguments = runs.command(
        folder / "run", *runs.EVALUATED, "run.max_steps=3", "probe.max_rows=300"
    )
    codes, printed = runs.run(main, arguments, output=folder / "output")
    assert codes == [0], printed
    return folder / "run"


def result(capsys, *arguments):
    evaluate.main([*map(str, arguments), *LINE])
    return json.loads(capsys.readouterr().out)


def clusters(rng, n=60, classes=3, dim=5, apart=4):
    labels = np.arange(n) % classes
    centres = apart * rng.standard_normal((classes, dim))
    return (centres[labels] + rng.standard_normal((n, dim))).astype(np.float32), labels


def test_the_grid_is_so_many_separate_probes(rng):
    """Each head of the grid is Torch's own SGD on the same batches."""
    # so close that the accuracy hangs on the boundaries' exact places
    x, y = clusters(rng, apart=0.3)
    test, test_labels = clusters(rng, n=3000, apart=0.3)
    rates = (0.02, 0.5)
    found = probe.linear_probe(x, y, test, test_labels, epochs=2, rates=rates, batch_size=8, seed=3)
    for rate in rates:
        generator = torch.Generator().manual_seed(3)
        head = torch.nn.Linear(5, 3)
        with torch.no_grad():
            head.weight.copy_(torch.randn(5, 3, generator=generator).T * 0.01)
            head.bias.zero_()
        norm = torch.nn.BatchNorm1d(5, affine=False)
        optimizer = torch.optim.SGD(head.parameters(), rate * 8 / 256, momentum=0.9)
        annealing = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda s: (1 + math.cos(math.pi * s / 14)) / 2
        )
        for _ in range(2):
            order = torch.randperm(60, generator=generator)
            for batch in range(7):
                rows = order[8 * batch : 8 * batch + 8]
                logits = head(norm(torch.from_numpy(x)[rows]))
                loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(y)[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                annealing.step()
        predicted = head(norm.eval()(torch.from_numpy(test))).argmax(-1).numpy()
        assert found.accuracies[rate] == pytest.approx((predicted == test_labels).mean(), abs=4e-4)


def test_the_papers_grid_has_thirteen_rates():
    assert len(probe.GRID) == 13 and max(probe.GRID) == 0.5


def test_few_shots_draw_that_many_of_each_class(rng, monkeypatch):
    x, y = clusters(rng)
    seen = []

    def spy(bank, labels, **named):
        seen.append(np.bincount(labels).tolist())
        return (0.25 * len(seen),)

    monkeypatch.setattr(probe, "hierarchical_linear_accuracy", spy)
    spread = probe.few_shot(x, y, x, y, shots=4, draws=3)
    assert seen == [[4, 4, 4]] * 3
    assert spread == (0.5, pytest.approx(np.std([0.25, 0.5, 0.75])))
    with pytest.raises(evaluate.TrainError, match="30 shots: a class has 20 images"):
        probe.few_shot(x, y, x, y, shots=30, draws=1)


def test_components_are_scikit_learns(rng):
    patches = rng.standard_normal((30, 6)) * np.arange(1, 7)
    expected = PCA(3).fit_transform(patches)
    found = pictures.principal_components(patches)
    np.testing.assert_allclose(np.abs(found), np.abs(expected), rtol=1e-9)


def test_matching_undoes_order_and_sign(rng):
    reference = rng.standard_normal((40, 3))
    other = np.stack([-reference[:, 2], reference[:, 0], -reference[:, 1]], axis=1)
    noisy = other + 0.1 * rng.standard_normal(other.shape)
    aligned, correlation = pictures.matched(reference, noisy)
    assert (correlation > 0.9).all()
    for column in range(3):
        assert np.corrcoef(aligned[:, column], reference[:, column])[0, 1] > 0.9


def test_colours_fill_the_range(rng):
    scaled = pictures.colours(rng.standard_normal((10, 3)))
    np.testing.assert_allclose([scaled.min(axis=0), scaled.max(axis=0)], [[0] * 3, [1] * 3])
    assert np.isfinite(pictures.colours(np.ones((4, 3)))).all()


def test_probe_and_knn(run, capsys):
    found = result(capsys, "probe", run, "--epochs", 2)
    assert len(found["by learning rate"]) == 13
    assert found["accuracy"] == max(found["by learning rate"].values())
    neighbours = result(capsys, "knn", run, "--k", 3, 7)
    assert list(neighbours) == ["k = 3", "k = 7", "features"]
    before = result(capsys, "knn", run, "--k", 3, "--untrained")
    assert before["k = 3"] != neighbours["k = 3"]
    assert json.loads((run / "knn.json").read_text()).items() >= neighbours.items()
    assert json.loads((run / "knn-untrained.json").read_text()).items() >= before.items()


def test_the_table_at_the_runs_end_is_that_of_its_checkpoint(run, capsys):
    """Every number, and so are the measures that are asked for one by one."""
    at_end = json.loads((run / "results.json").read_text())
    del at_end["provenance"]
    assert result(capsys, "table", run) == at_end
    assert list(at_end) == ["trained", "untrained", "pixels", "protocol"]
    assert at_end["protocol"]["features"] == "of the last 2 layer(s)"
    for options, row in (([], "trained"), (["--untrained"], "untrained")):
        assert result(capsys, "knn", run, *options)["k = 20"] == at_end[row]["kNN"]
        assert result(capsys, "probe", run, *options)["accuracy"] == at_end[row]["linear probe"]
    other = result(capsys, "table", run, "probe.layers=1", "probe.k=1")
    assert other["protocol"]["features"] == "of the last 1 layer(s)"
    assert other["trained"]["kNN"] != at_end["trained"]["kNN"]


def test_a_probe_on_crops_that_are_the_whole_image_is_that_on_features(run, capsys, monkeypatch):
    """The same batches of the loader, on features that are in memory."""
    told = result(capsys, "probe", run, "--crops", "--epochs", 1, "--rates", 0.1, "--batch", 64)
    assert told["trained on"] == "random crops, all training images" and told["batch"] == 64
    loaded = evaluate.load_run(run, ["probe.max_rows=2000"], untrained=False, cpu=True)
    measured = evaluate.Measured(loaded.config, loaded.splits, loaded.device)
    encoder = measured.encoder(loaded.learner)
    f = measured.features(encoder)
    whole = lambda images, sizes: [measured.resize(images)[None]]  # noqa: E731
    whole.to = lambda device: whole
    monkeypatch.setattr(crops_probe, "MultiCrop", lambda augment, data: whole)
    rates = (0.05, 0.5)
    found = crops_probe.probe_of_crops(measured, encoder, f, epochs=2, rates=rates, batch_size=64)
    settings = dataclasses.replace(loaded.config.data, batch_size=64)
    stream = data.batches(loaded.splits.bank, settings, seed=0, rank=0, world=1, start=0)
    ids = [next(stream).ids for _ in range(2 * (1437 // 64))]
    heads = probe.Heads(
        rates, f.bank.shape[1], 10, steps=len(ids), batch_size=64, device=None,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    x, y = torch.from_numpy(f.bank), torch.from_numpy(f.bank_labels)
    probe.trained(heads, ((x[i], y[i]) for i in ids))
    expected = probe.tested(heads, rates, f.test, f.test_labels).accuracies
    assert found.accuracies == pytest.approx(expected, abs=0.003)


def test_several_labels_an_image(run, capsys, tmp_path):
    """AUROC by its definition: the share of pairs of which the one with the label scores more."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / "train.npy", tmp_path / "test.npy"]
    for path, n in zip(paths, (1437, 360), strict=True):
        np.save(path, rng.integers(0, 2, (n, 3)))
    told = result(capsys, "multilabel", run, "--labels", *paths)
    assert told["AUROC"] == max(told["by learning rate"].values())
    labels = np.load(paths[1])[:40]
    labels[:, 2] = 1  # a label that all have is left out
    x = np.concatenate([labels[:, :2], rng.standard_normal((40, 2))], axis=1).astype(np.float32)
    found = probe.multilabel_probe(x, labels, x, labels, epochs=2, rates=(0.1,))
    heads = probe.fitted(x, labels.astype(np.float32), 3, epochs=2, rates=(0.1,))
    (scores,) = heads.scores(x)
    shares = []
    for j in range(2):
        s = scores[:, 0, j].numpy()
        pairs = s[labels[:, j] == 1][:, None] - s[labels[:, j] == 0]
        shares.append(((pairs > 0) + 0.5 * (pairs == 0)).mean())
    assert found[0.1] == pytest.approx(np.mean(shares), abs=1e-6)
    np.save(paths[1], np.ones((3, 3)))
    with pytest.raises(SystemExit):
        evaluate.main(["multilabel", str(run), "--labels", *map(str, paths), "--cpu"])
    assert "expected 0 and 1, (360, labels); found (3, 3)" in capsys.readouterr().err


def test_steps_on_several_labels_are_those_of_the_logistic_loss(rng):
    x, y = rng.standard_normal((8, 5)), rng.integers(0, 2, (8, 3))
    x, y = torch.from_numpy(x).float(), torch.from_numpy(y).float()
    generator = torch.Generator().manual_seed(1)
    heads = probe.Heads((0.5,), 5, 3, steps=4, batch_size=8, generator=generator, device=None)
    head = torch.nn.Linear(5, 3)
    with torch.no_grad():
        head.weight.copy_(heads.weight[:, 0].T)
        head.bias.zero_()
    logits = head(torch.nn.BatchNorm1d(5, affine=False)(x))
    torch.nn.functional.binary_cross_entropy_with_logits(logits, y).backward()
    before = heads.weight.clone()
    heads.step(x, y)
    moved = (before - heads.weight)[:, 0].T / (0.5 * 8 / 256)
    torch.testing.assert_close(moved, head.weight.grad, atol=1e-5, rtol=1e-4)


def test_a_best_rate_at_an_end_of_the_grid_is_said():
    ends = probe.Probed({0.1: 0.5, 0.2: 0.6}, None)
    assert ends.warning == "the best rate, 0.2, is an end of the grid: another may be better"
    assert probe.Probed({0.1: 0.5, 0.2: 0.6, 0.3: 0.6}, None).warning is None
    assert probe.Probed({0.1: 0.5}, None).warning is None


def test_hierarchy(run, capsys, tmp_path):
    tree = tmp_path / "tree.csv"
    tree.write_text("".join(f"{'even' if d % 2 == 0 else 'odd'},{d}\n" for d in range(10)))
    found = result(capsys, "hierarchy", run, "--class-tree", tree, "--k", 5)
    coarse, fine = found["kNN by level"]
    assert coarse >= fine
    assert len(found["linear by level"]) == 2


@pytest.mark.parametrize("command", ["export", "probe", "fewshot"])
def test_layers_beyond_the_models_are_refused(run, capsys, command):
    with pytest.raises(SystemExit):
        result(capsys, command, run, "--layers", 9)
    assert "--layers=9: the model has features of 2 layer(s)" in capsys.readouterr().err
    assert result(capsys, "export", run, "--rows", 5, "--layers", 2)["shape"] == [5, 2 * 16]


def test_few_shots_and_fine_tuning(run, capsys):
    shots = result(capsys, "fewshot", run, "--shots", 1, 3, "--draws", 2)
    assert list(shots) == ["1 shots", "3 shots", "features"]
    tuned = result(capsys, "finetune", run, "--epochs", 1)
    assert 0 <= tuned["accuracy"] <= 1


def test_export_has_labels_and_ids_and_is_read_by_the_report(run, capsys):
    from sklearn.datasets import load_digits

    found = result(capsys, "export", run, "--split", "train", "--rows", 50)
    arrays = load_file(run / "embeddings-train.safetensors")
    assert arrays["embeddings"].shape == (50, 16) == tuple(found["shape"])
    kept = np.flatnonzero(np.arange(1797) % 5)[arrays["ids"]]
    np.testing.assert_array_equal(arrays["labels"], load_digits().target[kept])
    assert cli.main(["report", found["file"], "--slices", "8"]) in (0, None)


def test_pictures_of_two_runs(run, capsys):
    found = result(capsys, "pca", run, "--against", run, "--images", 2)
    assert (run / "patches.png").read_bytes().startswith(b"\x89PNG")
    np.testing.assert_allclose(found["matched |correlation|"], 1, atol=1e-9)


def test_another_data_set_by_settings(run, capsys):
    found = result(capsys, "knn", run, "data.source=synthetic", "data.classes=null", "--k", 3)
    assert 0 <= found["k = 3"] <= 1


def test_the_training_images_need_not_be_there(run, capsys, tmp_path):
    state = runs.state(run, 3)
    state["config"]["data"] |= {"source": "folder", "path": "/gone"}
    state["config"]["run"]["folder"] = "moved"
    checkpoint.save(tmp_path, state, keep=1)
    found = result(capsys, "knn", tmp_path, "data.source=digits", "--k", 3)
    assert found == result(capsys, "knn", run, "--k", 3)


def test_other_peoples_models_need_no_run(run, capsys, tmp_path, monkeypatch):
    """A model of the hub's form by its own mean and deviation; a run's backbone as itself."""
    from transformers import ViTImageProcessor, ViTMAEConfig, ViTMAEModel

    monkeypatch.chdir(tmp_path)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"intermediate_size": 32, "image_size": 8, "patch_size": 4, "num_channels": 1}
    ViTMAEModel(ViTMAEConfig(**shape)).save_pretrained("mae")
    ViTImageProcessor(image_mean=[0.3], image_std=[0.4]).save_pretrained("mae")
    images = ["data.source=digits", "data.channels=1", "augment.global_size=8", "probe.max_rows=60"]
    found = result(capsys, "probe", "--model", "hf:mae", *images, "--epochs", 1)
    assert found == result(capsys, "probe", "--model", "hf:mae", *images, "--epochs", 1)
    assert (tmp_path / "runs" / "models" / "hf-mae" / "probe.json").exists()
    opened, _, _ = loading.given(None, "hf:mae", images)
    assert (opened.data.mean, opened.data.std, opened.data.size) == ([0.3], [0.4], 8)
    own = ["data.mean=[0.3]", "data.std=[0.38]"]
    found = result(capsys, "knn", "--model", run, *images, *own, "--k", 3)
    assert found == result(capsys, "knn", run, "probe.max_rows=60", "--k", 3)


def test_a_run_starts_from_another(run, tmp_path):
    arguments = runs.command(tmp_path / "on", f"model.init_from={run}", "run.max_steps=1")
    codes, printed = runs.run(main, arguments, output=tmp_path / "output")
    assert codes == [0], printed
    before, after = runs.state(run, 3)["learner"], runs.state(tmp_path / "on", 1)["learner"]
    name = "backbone.model.embeddings.patch_embeddings.projection.weight"
    moved = (after[name] - before[name]).abs().max()
    assert 0 < moved < 0.01  # one step away, where another draw of the weights would be far


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["knn"], "expected either RUN or --model; found both or neither"),
        (["knn", "--model", "hf:x"], "the images are not known: data.source="),
        (["knn", "{run}", "data.sauce=folder"], "unknown key 'data.sauce'; nearest: data.source"),
        (["knn", "{run}", "data.size"], "expected key=value; found 'data.size'"),
        (["knn", "{run}", "data.size=big"], "'big' of type 'str' could not be converted"),
        (["knn", "{run}", "model.width=8"], "model.width is fixed by the run"),
        (["knn", "{run}/nothing"], "no checkpoint"),
        (["hierarchy", "{run}", "--class-tree", "none.csv"], "none.csv"),
    ],
)
def test_what_is_wrong_is_one_line(run, capsys, arguments, said):
    with pytest.raises(SystemExit, match="1"):
        evaluate.main([a.format(run=run) for a in arguments])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("reference_train.evaluate: ") and said in line
