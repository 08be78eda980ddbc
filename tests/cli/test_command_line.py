"""The command line itself: what it answers alone, in which order its words may stand, what programs read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from runs import TINY_MODEL
from unmask.cli import grammar, main
from unmask.config.load import load_config, recipe_names, to_dict
from unmask.config.reference import as_markdown, as_recipe, every_key

WORDS: dict[str, tuple[list[str], list[list[str]]]] = {
    "pretrain": (["mae-vit-tiny", "data.train=a", "seed=1"], [["--json"]]),
    "finetune": (["finetune-vit-tiny", "data.train=a", "seed=1"], [["--json"]]),
    "sweep-labels": (
        ["finetune-vit-tiny", "init=a", "seed=1"],
        [["--labels", "1", "5"], ["--seeds", "0"], ["--arms", "probe", "cnn"], ["--steps", "3"]],
    ),
    "replay": (["run"], [["--step", "3"], ["--out", "o"]]),
    "demo": (["seed=1", "engine=torch"], [["--json"]]),
    "evaluate": (["run", "images"], [["--out", "o"], ["--set", "data.eval_crop=1"], ["--flip"]]),
    "predict": (["run", "a.png", "b.png"], [["--top", "3"], ["--set", "data.eval_crop=1"]]),
    "embed": (["run", "a.png", "b.png"], [["--out", "o.npy"], ["--pool", "cls"]]),
    "knn": (["run", "a", "b"], [["--k", "3"], ["--json"]]),
    "probe": (["run", "a", "b"], [["--segment", "c", "d"], ["--seed", "1"]]),
    "reconstruct": (["run", "a.png", "b.png"], [["--count", "3"], ["--seed", "1"]]),
    "pack": (["a", "b"], [["--quality", "80"], ["--set", "data.nodata=0"]]),
    "stats": (["a"], [["--set", "data.dtype=uint8"], ["--json"]]),
    "check": (["a"], [["--against", "b"], ["--smallest", "20"]]),
    "convert": (["run", "out"], [["--to", "timm"], ["--set", "data.eval_crop=1"]]),
    "push": (["run", "hf://a/b"], [["--to", "timm"], ["--private"]]),
    "export": (["run", "out.onnx"], [["--dtype", "uint8"], ["--checkpoint", "best"]]),
    "report": (["run", "other"], [["--images", "5"], ["--out", "page.html"]]),
    "serve": (["run"], [["--port", "0"], ["--images", "a"]]),
    "launch": (["slurm", "mae-vit-tiny", "data.train=a", "seed=1"], [["--size", "1x2"], ["--submit"], ["--out", "j"]]),
    "recipes": ([], [["--json"]]),
    "config": (["mae-vit-tiny", "seed=1", "engine=torch"], [["--json"]]),
    "bench": (["mae-vit-tiny", "seed=1", "engine=torch"], [["--seconds", "3"], ["--json"]]),
    "doctor": ([], [["--json"]]),
    "completion": (["bash"], []),
}
"""Of each command its words, and options with their values."""


def parsed(name: str, words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    options, rest = grammar()[1].named[name].parse(words)
    return vars(options), rest


@pytest.mark.parametrize("name", grammar()[1].named)
def test_options_and_settings_stand_in_any_order(name: str) -> None:
    words, options = WORDS[name]
    flat = [word for option in options for word in option]
    expected = parsed(name, [*words, *flat])
    assert expected[1] == []
    first = 1 if name == "sweep-labels" else 0  # before it, RECIPE would be one more value of --labels
    for place in range(first, len(words) + 1):
        turned = [word for option in options[::-1] for word in option]
        for between in (flat, turned):
            assert parsed(name, [*words[:place], *between, *words[place:]]) == expected
    for place, option in enumerate(options):  # each option between other words than the last
        others = [word for other in options[:place] + options[place + 1 :] for word in other]
        assert parsed(name, [*words[:1], *option, *words[1:], *others]) == expected


def test_settings_are_no_values_of_an_option_before_them() -> None:
    options, _ = parsed("sweep-labels", ["r", "--labels", "1", "5", "init=a", "data.train=b", "--seeds", "0", "seed=1"])
    assert options["labels"] == [1, 5]
    assert options["seeds"] == [0]
    assert options["settings"] == ["init=a", "data.train=b", "seed=1"]


def test_names_that_begin_like_an_option_follow_two_dashes() -> None:
    assert parsed("predict", ["--top", "3", "run", "--", "-x.png"])[0]["images"] == ["-x.png"]


def test_what_is_unknown_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["knn", "run", "a", "b", "--nonsense"])
    assert stopped.value.code == 2
    assert "unmask knn: error: unrecognized arguments: --nonsense" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["embed", "", "a", "--out", "o"], ["embed", "run", "a", "--out", ""], ["report", ""]]
)
def test_an_empty_argument_is_not_the_folder_one_is_in(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert f"error: argument {words.index('')} is empty, as when a variable is\n" in capsys.readouterr().err


def test_alone_it_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "pretrain" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("unmask ")
    assert f"python {sys.version_info.major}." in out


def test_every_recipe_is_listed_with_what_it_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in listed] == recipe_names()
    for one in listed:
        assert one["task"] in ("pretrain", "finetune")
        assert all(one[key] for key in ("what", "command", "hardware", "expected", "source")), one
        assert "\\" not in one["command"]
        assert one["what"].endswith("."), one
    assert main(["recipes"]) == 0
    assert "mae-vit-base" in capsys.readouterr().out


@pytest.mark.parametrize("recipe", ["mae-vit-tiny", "cifar10-semi", "lejepa-vit-small"])
def test_a_printed_configuration_is_a_recipe(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["train.epochs=3", "data.train=photos", "augment.color_jitter=0.1"]
    assert main(["config", recipe, *settings]) == 0
    file = tmp_path / "printed.yaml"
    file.write_text(capsys.readouterr().out, encoding="utf-8")
    assert to_dict(load_config(file)) == to_dict(load_config(recipe, settings))


def test_every_key_has_a_meaning_and_a_range() -> None:
    keys = [key for section in every_key() for key in section.keys]
    assert not [key.name for key in keys if not key.meaning]
    assert not [key.name for key in keys if key.values.startswith("value")]
    page = as_markdown()
    assert "| `model.patch_size` | `16` | whole number from 1 to 65536 |" in page
    assert "## objective: semi" in page
    assert "[null or number above 0]" in as_recipe(load_config("mae-vit-tiny"))


def test_the_configuration_as_facts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "mae-vit-tiny", "train.epochs=3", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["train.epochs"] == {
        "value": 3.0,
        "default": 800.0,
        "values": "number from 0 to 1e+07",
        "meaning": facts["train.epochs"]["meaning"],
    }
    assert facts["objective.name"]["value"] == "mae"


def test_a_mistake_in_a_setting_is_told_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "mae-vit-tiny", "train.epoch=3"]) == 2
    assert "did you mean train.epochs?" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_completion(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("argcomplete", reason="argcomplete is not installed")
    assert main(["completion", shell]) == 0
    assert "unmask" in capsys.readouterr().out


def completed(line: str, tmp_path: Path) -> list[str]:
    """What bash would offer at the end of the line."""
    answer = tmp_path / "answer"
    env = {**os.environ, "_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9"}
    env |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_SHELL": "bash"}
    subprocess.run([sys.executable, "-m", "unmask"], env=env, check=True, timeout=60)
    return answer.read_text().split("\n")


def test_commands_recipes_and_keys_are_completed(tmp_path: Path) -> None:
    pytest.importorskip("argcomplete", reason="argcomplete is not installed")
    assert [one.strip() for one in completed("unmask sw", tmp_path)] == ["sweep-labels"]
    assert any("mae-vit-huge" in one for one in completed("unmask pretrain mae-vit-h", tmp_path))
    assert any("train.batch_size=" in one for one in completed("unmask pretrain mae-vit-huge train.bat", tmp_path))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("figures")
    for number in range(12):
        path = root / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (28, 28), np.uint8)).save(path)
    return root


def figures(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> Any:
    assert main(arguments) == 0
    return json.loads(capfd.readouterr().out)


def test_programs_read_the_figures_of_each_command(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    monkeypatch.chdir(place)
    short = [*TINY_MODEL, "train.batch_size=4", "train.epochs=1", "optimizer.warmup_epochs=0", "device=cpu"]
    trained = figures(["pretrain", "mae-vit-tiny", "--json", "data.train=photos", "output=run", *short], capfd)
    assert trained["folder"] == "run"
    assert trained["metrics"]["loss"] > 0
    sets = ["run", "photos", "photos", "--device", "cpu", "--json"]
    assert set(figures(["knn", *sets, "--k", "3"], capfd)) == {"count", "top1", "top5"}
    assert 0 <= figures(["probe", *sets], capfd)["accuracy"] <= 1
    assert 0 <= figures(["probe", *sets, "--attentive"], capfd)["linear"]["accuracy"] <= 1
    assert figures(["evaluate", "run", "photos", "--json"], capfd)["count"] == 12
    assert len(figures(["stats", "photos", "--json"], capfd)["mean"]) == 1
    assert figures(["check", "photos", "--json"], capfd)["images"] == 12
    assert figures(["doctor", "--json"], capfd)["engines"][0]["engine"] == "torch"
    assert main(["predict", "run", "photos"]) != 0
    said = capfd.readouterr()
    assert said.out == ""  # no header of a table that does not follow
    assert len(said.err.splitlines()) == 1


def test_the_reference_is_yaml_whatever_a_setting_holds() -> None:
    awkward = load_config("mae-vit-tiny", {"data.train": "a: b # c", "output": "- x"})
    assert yaml.safe_load(as_recipe(awkward))["data"]["train"] == "a: b # c"
