"""Configurations: recipes load, and what is wrong is said in one line with the nearest name."""

import pytest

from reference_train import config
from reference_train.errors import TrainError

RECIPES = sorted(path.stem for path in config.RECIPES.glob("*.yaml"))


def refused(*arguments, **named):
    with pytest.raises(TrainError) as caught:
        config.load(*arguments, **named)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_unknown_recipe_names_the_nearest():
    assert "nearest: digits" in refused("digit")


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("optim.learning_rate=1", "optim.lr"),
        ("method.lambda=0.5", "method.lam"),
        ("model.bakcbone=vit_b_16", "model.backbone"),
        ("+run.seeds=1", "run.seed"),
    ],
)
def test_unknown_key_names_the_nearest(override, nearest):
    message = refused("digits", [override])
    assert message.startswith(f"unknown key '{override.split('=')[0]}'")
    assert nearest in message


def test_unknown_key_in_a_recipe_names_the_nearest(tmp_path):
    (tmp_path / "mine.yaml").write_text("defaults: [settings, _self_]\nrun: {foldr: x}\n")
    assert refused("mine", folder=tmp_path) == "mine: unknown key 'run.foldr'; nearest: run.folder"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optim.lr=fast", "digits: optim.lr: Value 'fast' of type 'str' could not be converted"),
        ("augment.global_scale=[0.1,big]", "digits: augment.global_scale[1]: Value 'big'"),
        ("optim.lr", "expected key=value; found 'optim.lr'"),
        ("method.name=visregg", "method.name: no such choice 'visregg'; nearest: visreg"),
        ("run.precision=float16", "run.precision: no such choice 'float16'"),
        ("run.statistics=epoch", "run.statistics: no such choice 'epoch'"),
        ("run.keep=0", "run.keep: expected at least 1"),
        ("augment.n_global=1", "expected at least one global crop and two crops in all"),
        ("data.source=folder", "data.path has to be given for data.source=folder"),
        ("data.batch_size=0", "data.batch_size: expected at least 1; found 0"),
        ("data.batch_size=1", "data.batch_size: expected at least 2; found 1"),
        ("run.max_steps=0", "run.max_steps: expected at least 1; found 0"),
        ("run.epochs=0", "run.epochs: expected more than 0; found 0.0"),
        ("run.seed=-1", "run.seed: expected at least 0; found -1"),
        ("run.folder=", "run.folder: expected a name; found an empty one"),
        ("run.folder='${nowhere}'", "digits: run.folder: Interpolation key 'nowhere' not found"),
        ("model.depth=0", "model.depth: expected at least 1; found 0"),
        ("optim.lr=nan", "optim.lr: expected a finite number; found nan"),
        ("optim.betas=[0.9]", "optim.betas: expected two, less than 1; found [0.9]"),
        ("method.lam=2", "method.lam: expected at most 1; found 2.0"),
        ("augment.flip=2", "augment.flip: expected at most 1; found 2.0"),
        ("augment.global_scale=[1,0.5]", "augment.global_scale: expected [smallest, largest]"),
        ("data.std=[0]", "data.std: expected more than 0; found 0.0"),
        ("data.mean=[]", "data.mean: expected one for each of the channels"),
        ("data.classes=3", "digits: data.classes: "),
        ("data.long_tail=pareta", "data.long_tail: no such choice 'pareta'; nearest: pareto"),
    ],
)
def test_wrong_value_is_one_line(override, said):
    overrides = [override, "augment.n_local=0"] if "n_global" in override else [override]
    assert said in refused("digits", overrides)


def test_setting_that_must_be_given():
    assert refused("visreg_vit_b16_imagenet1k") == (
        "visreg_vit_b16_imagenet1k: run.folder has to be given, as run.folder=VALUE"
    )


def test_dino_has_no_statistics_of_a_batch():
    overrides = ["method.name=dino", "run.statistics=batch"]
    assert "dino is a mean over samples" in refused("digits", overrides)


def test_sag_vicreg_wants_two_views():
    assert "augment.n_global=2" in refused(
        "digits", ["method.name=sag_vicreg", "augment.n_global=3"]
    )


def test_sag_vicreg_wants_more_images_than_neighbours():
    overrides = ["method.name=sag_vicreg", "method.n_neighbors=65"]
    assert "expected at least 65, method.n_neighbors; found 64" in refused("digits", overrides)


def test_every_setting_is_documented():
    for key, type_, _, text in config.documented():
        assert text and type_, key


def test_a_configuration_survives_its_dictionary():
    loaded = config.load("digits", ["optim.lr=0.25", "data.classes=[1,2]"])
    assert config.from_dict(config.to_dict(loaded)) == loaded
