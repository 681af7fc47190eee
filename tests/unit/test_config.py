"""Recipes: typed, frozen, reachable by dotted name; whatever they do not know they refuse."""

from dataclasses import FrozenInstanceError

import pytest

from redraft import recipes
from redraft.errors import unknown


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_builds_and_survives_a_round_trip(name):
    config = recipes.get(name)
    assert config.recipe == name
    assert recipes.from_dict(recipes.to_dict(config)) == config
    with pytest.raises(FrozenInstanceError):
        config.recipe = "other"
    assert recipes.RECIPES[name].__doc__


def test_override_takes_typed_values_and_strings():
    config = recipes.override(recipes.get("mdlm"), {"train.lr": "3e-4", "train.steps": 7, "train.threads": "none"})
    assert (config.train.lr, config.train.steps, config.train.threads) == (3e-4, 7, None)
    assert recipes.override(config, {"train.compile": "true", "train.threads": "2"}).train.threads == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train.lrr": 1}, "unknown field 'train.lrr'; did you mean 'train.lr'"),
        ({"lr": 1}, "unknown field 'lr'"),
        ({"train": 1}, "unknown field 'train'"),
        ({"train.lr": "fast"}, "train.lr='fast'"),
        ({"train.lr": -1}, "train.lr=-1"),
        ({"train.batch": 2.5}, "train.batch=2.5"),
        ({"process.name": "maskd"}, "process.name='maskd'"),
        ({"train.ema": 1.0}, "train.ema=1.0"),
    ],
)
def test_impossible_fields_are_refused(values, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        recipes.override(recipes.get("mdlm"), values)


def test_unknown_names_offer_the_nearest():
    with pytest.raises(ValueError, match="unknown recipe 'toy_maskd'; did you mean 'toy_masked'"):
        recipes.get("toy_maskd")
    with pytest.raises(ValueError, match=r"unknown field 'model\.deep'"):
        recipes.from_dict({"model": {"deep": 3}})
    assert "did you mean" not in str(unknown("thing", "zzz", ["alpha"]))
