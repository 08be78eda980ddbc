"""Recipes, overrides, and the one line a mistake is answered with."""

from __future__ import annotations

import random
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from unmask import plugins
from unmask.config.load import check_config, flatten, known_keys, load_config, recipe_names, to_dict
from unmask.errors import ConfigError


def refusal(recipe: str | Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load_config(recipe, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_overrides_win_over_the_recipe_and_reach_every_section() -> None:
    config = load_config(
        "mae-vit-base", ["train.epochs=2.5", "model.image_size=[64, 96]", "data.train=a b=c", "seed=4"]
    )
    assert (config.train.epochs, config.model.image_size, config.seed) == (2.5, (64, 96), 4)
    assert config.data.train == "a b=c"
    assert config.model.grid == (4, 6)
    assert config.optimizer.base_lr == 1.5e-4


def test_a_config_survives_yaml_and_json() -> None:
    for name in recipe_names():
        config = load_config(name)
        assert check_config(yaml.safe_load(yaml.safe_dump(to_dict(config)))) == config


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.batchsize=4", ["train.batchsize: unknown key", "train.batch_size?"]),
        ("batch_size=4", ["batch_size: unknown key", "train.batch_size?"]),
        ("train.epochs=many", ["train.epochs", "number", "'many'"]),
        ("objective.mask_ratio=1", ["command line: objective.mask_ratio: ", "less than 1"]),
        ("objective.mask_ratio=0.999", ["objective.mask_ratio=0.999", "keeps 0 of 196 patches"]),
        ("objective.mask_rati=0.5", ["objective.mask_rati: unknown key", "objective.mask_ratio?"]),
        ("objective=mea", ["objective", "name='mea' is no objective; there are mae, "]),
        ("model.image_size=225", ["image_size=225x225", "patch_size=16"]),
        ("model.heads=7", ["width=768", "heads=7"]),
        ("model.channels=1", ["data.mean has 3 values", "model.channels=1"]),
        ("train.accumulate=3", ["batch_size=4096", "accumulate=3"]),
        ("engine=jax", ["engine", "'jax' is no engine; there are torch, mindspore"]),
        ("data.crop_scale=[0.5,0.2]", ["crop_scale=[0.5, 0.2]"]),
        ("epochs", ["'epochs' is not of the form key=value"]),
    ],
)
def test_a_mistake_is_named_in_one_line(override: str, parts: list[str]) -> None:
    message = refusal("mae-vit-base", override)
    assert all(part in message for part in parts), message


def test_a_recipe_file_is_answered_with_its_line(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("objective: mae\ntrain:\n  epochs: 3\n  batchsize: 4\n")
    assert f"{recipe}:4: train.batchsize: unknown key, did you mean train.batch_size?" in refusal(recipe)
    recipe.write_text("seed: 1\nseed: 2\n")
    assert f"{recipe}:2: seed is set a second time" in refusal(recipe)
    recipe.write_text("train: {epochs: 3")
    assert f"{recipe} cannot be read" in refusal(recipe)
    recipe.write_text("- 1\n")
    assert "holds no keys" in refusal(recipe)
    assert "does not exist" in refusal(tmp_path / "none.yaml")
    assert "did you mean mae-vit-base?" in refusal("mae-vit-bse")


def write(folder: Path, **recipes: str) -> Path:
    """Writes NAME.yaml for each; the first of them."""
    for name, text in recipes.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / f"{next(iter(recipes))}.yaml"


def test_a_recipe_of_ones_own_starts_from_a_packaged_one(tmp_path: Path) -> None:
    mine = write(tmp_path, mine="base: finetune-vit-large\nmodel: {drop_path: 0.5}\naugment: {policy: null}\nseed: 3\n")
    config, base = load_config(mine, ["train.epochs=7"]), load_config("finetune-vit-large")
    expected = to_dict(base) | {"seed": 3}
    expected["model"]["drop_path"], expected["augment"]["policy"], expected["train"]["epochs"] = 0.5, None, 7
    assert to_dict(config) == expected


def test_later_bases_win_and_the_recipe_itself_over_all(tmp_path: Path) -> None:
    recipe = write(
        tmp_path,
        mine="base: [vit-small, parts/first.yaml, second.yaml]\ntrain: {epochs: 3}\n",
        second="seed: 2\ntrain: {batch_size: 16, keep: 2}\n",
    )
    (tmp_path / "parts").mkdir()
    write(tmp_path / "parts", first="base: below.yaml\ntrain: {epochs: 1, batch_size: 8, keep: 1}\n")
    write(tmp_path / "parts", below="engine: mindspore\nseed: 1\ntrain: {log_every: 5, epochs: 9}\n")
    config = load_config(recipe)
    assert (config.engine, config.seed, config.model.width, config.model.heads) == ("mindspore", 2, 384, 6)
    train = config.train
    assert (train.epochs, train.batch_size, train.keep, train.log_every) == (3, 16, 2, 5)


def test_a_mistake_in_a_base_is_answered_with_its_line(tmp_path: Path) -> None:
    mine = write(
        tmp_path,
        mine="seed: 1\nbase: other.yaml\nmodel:\n  heads: 7\n",
        other="task: pretrain\ntrain:\n  batchsize: 4\n  epochs: many\nmodel:\n  width: 768\n",
    )
    message = refusal(mine)
    assert f"{tmp_path}/other.yaml:3: train.batchsize: unknown key, did you mean train.batch_size?" in message
    assert f"{tmp_path}/other.yaml:4: train.epochs: " in message
    assert f"{mine}:3: model: width=768 is not a multiple of heads=7" in message


@pytest.mark.parametrize(
    ("base", "part"),
    [
        ("mae-vit-bse", "base: there is no recipe mae-vit-bse, did you mean mae-vit-base?"),
        ("vit-lage", "base: there is no recipe vit-lage, did you mean vit-large?"),
        ("[mae, none.yaml]", "none.yaml does not exist"),
        ("3", "base: 3 is not the name of a recipe"),
        ("{mae: 1}", "base: {'mae': 1} is not the name of a recipe"),
        ("", "base: None is not the name of a recipe"),
        ("mine.yaml", "base: mine.yaml starts from this file itself"),
    ],
)
def test_a_base_that_cannot_be_is_named_with_its_line(tmp_path: Path, base: str, part: str) -> None:
    message = refusal(mine := write(tmp_path, mine=f"seed: 1\nbase: {base}\n"))
    assert message.startswith(f"{mine}:2: base: ")
    assert part in message


def test_bases_in_a_circle_are_named(tmp_path: Path) -> None:
    first = write(
        tmp_path, first="base: [mae, second.yaml]\n", second="base: third.yaml\n", third="base: second.yaml\n"
    )
    assert f"{tmp_path}/third.yaml:1: base: second.yaml starts from this file itself" in refusal(first)


def test_parts_of_recipes_are_not_recipes() -> None:
    assert not {"mae", "finetune", "vit-large"} & set(recipe_names())
    assert "there is no recipe vit-large" in refusal("vit-large")
    assert refusal("mae-vit-smal").endswith("there is no recipe mae-vit-smal, did you mean mae-vit-small?")
    assert ", mae-vit-small, " in refusal("xyz")
    assert "command line: base: unknown key" in refusal("mae-vit-base", "base=mae-vit-large")


def test_a_thousand_mutated_configs_are_all_refused() -> None:
    rng = random.Random(0)
    configs = [to_dict(check_config({"objective": name})) for name in plugins.names(plugins.OBJECTIVES)]
    assert set().union(*(flatten(values) for values in configs)) == set(known_keys())
    for _ in range(1000):
        values = deepcopy(rng.choice(configs))
        with pytest.raises(ConfigError) as error:
            check_config(mutated(rng, values, rng.choice(list(flatten(values)))))
        assert "\n" not in str(error.value)


def mutated(rng: random.Random, values: dict[str, Any], key: str) -> dict[str, Any]:
    """The values with one key misspelt, of the wrong type, or out of range."""
    *sections, last = key.split(".")
    section = values
    for name in sections:
        section = section[name]
    kind = rng.choice(["misspelt", "type", "range"])
    if kind == "misspelt":
        i = rng.randrange(len(last))
        wrong = last[:i] + rng.choice("qxz7") + last[i:]
        section[wrong] = section.pop(last)
    elif kind == "type" or not isinstance(section[last], int | float) or isinstance(section[last], bool):
        section[last] = rng.choice([{"a": 1}, [[1]], [{}, 2], {"x": {"y": 2}}])
    else:
        section[last] = rng.choice([-1, -7.5, float("inf"), float("nan"), -(10**20)])
    return values


@pytest.mark.parametrize("text", ["set #1", "2024-05-01", "2024-02-30", "0x_", "!!int y", "no", "~/photos", "[" * 1200])
def test_text_is_taken_as_it_stands(text: str) -> None:
    config = load_config("mae-vit-tiny", [f"data.train={text}", f"output={text}"])
    assert (config.data.train, config.output) == (text, text)


def test_null_is_nothing() -> None:
    assert load_config("mae-vit-tiny", ["data.train=photos", "data.train=null"]).data.train is None


@pytest.mark.parametrize("text", ["", " "])
@pytest.mark.parametrize("key", ["init", "data.val", "output", "augment.policy", "train.epochs", "objective.teacher"])
def test_a_variable_that_is_empty_is_not_taken_for_none(key: str, text: str) -> None:
    """`init=$RUN` would train from scratch."""
    said = refusal("finetune-vit-tiny", f"{key}={text}")
    assert said == f"command line: {key}= has no value, as when a variable is empty; for none write {key}=null"


@pytest.mark.parametrize("text", ["2024-02-30", "0x_", "!!int y", "[" * 1200])
def test_what_is_no_number_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^command line: train\.epochs: input should be a valid number"):
        load_config("mae-vit-tiny", [f"train.epochs={text}"])


@pytest.mark.parametrize(
    ("text", "expected"), [("seed=010", 10), ("seed=0x10", 16), ("seed=1_000", 1000), ("train.epochs=1:30", None)]
)
def test_a_number_is_the_one_that_a_person_reads(text: str, expected: int | None, tmp_path: Path) -> None:
    """Not that of YAML 1.1, where 010 is 8 and 1:30 is 90; of a recipe neither."""
    key, _, value = text.partition("=")
    section, _, name = key.rpartition(".")
    recipe = tmp_path / "own.yaml"
    recipe.write_text(
        f"base: mae-vit-tiny\n{section}: {{{name}: {value}}}\n" if section else f"base: mae-vit-tiny\n{name}: {value}\n"
    )
    for words in (("mae-vit-tiny", [text]), (str(recipe), [])):
        if expected is None:
            with pytest.raises(ConfigError, match=r"train\.epochs: input should be a valid number"):
                load_config(*words)
        else:
            assert load_config(*words).seed == expected


@pytest.mark.parametrize("value", ["", " 5", " text", " [1]"])
def test_a_section_without_keys_is_named(tmp_path: Path, value: str) -> None:
    (tmp_path / "own.yaml").write_text(f"base: mae-vit-tiny\nmodel:{value}\n")
    with pytest.raises(ConfigError, match=r"own\.yaml:2: model: a section; give its keys below it, or leave it out$"):
        load_config(tmp_path / "own.yaml")
