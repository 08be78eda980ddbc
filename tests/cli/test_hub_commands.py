"""Commands on models of the Hugging Face hub, from training to a model that others load: a server on loopback."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

import unmask
from hub_server import TOKEN, Hub, connect, environment, serving
from runs import TINY_MODEL
from unmask.cli import main
from unmask.interchange import read_model

pytest.importorskip("huggingface_hub", reason="hf:// needs unmask[hub]")
# huggingface_hub 2.4 sends large files in a way that its own HTTP library wants to be rid of.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

SHORT = ["train.epochs=0.1", "train.batch_size=20", "optimizer.warmup_epochs=0", "train.log_every=5"]
DIGITS = "bundled:mnist5k/val"
TESTS = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def mae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mae") / "run"
    settings = ["data.train=bundled:mnist5k/train", f"data.val={DIGITS}", *TINY_MODEL, *SHORT, f"output={folder}"]
    assert main(["pretrain", "mae-vit-tiny", *settings]) == 0
    return folder


@pytest.fixture(scope="module")
def classifier(mae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier") / "run"
    settings = [f"data.train={DIGITS}", f"init={mae}", f"output={folder}", "model.pool=cls", "objective.head=drawn"]
    assert main(["finetune", "finetune-vit-tiny", *TINY_MODEL, *SHORT, *settings]) == 0
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(tmp_path / "hub") as hub:
        connect(monkeypatch, hub, tmp_path / "cache")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def uploads(hub: Hub) -> int:
    return sum(request.startswith("PUT ") for request in hub.requests)


def python_of(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


def test_a_pushed_model_computes_what_the_run_does(
    hub: Hub, mae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(mae), "hf://someone/digits", "--message", "first weights"]) == 0
    repo = hub.repos["someone/digits"]
    pinned = f"hf://someone/digits@{repo.branches['main']}"
    shown = capsys.readouterr()
    assert (shown.out.splitlines()[-1], shown.err) == (f"{mae} -> {pinned} (transformers)", "")
    assert repo.messages == ["first", "first weights"]
    assert not repo.private
    assert {"README.md", "config.json", "model.safetensors"} <= {path.name for path in repo.folder.iterdir()}
    found, run = read_model(pinned), read_model(mae)
    assert found.weights.keys() == run.weights.keys()
    for name in ("hf://someone/digits", pinned):
        out = tmp_path / "e.npy"
        settings = [f"--set={setting}" for setting in TINY_MODEL if setting.startswith("data.")]
        assert main(["embed", name, DIGITS, "--out", str(out), *settings]) == 0
        expected = unmask.load(mae, device="cpu").embed(DIGITS)
        np.testing.assert_allclose(np.load(out), expected, atol=1e-6)
        out.unlink()


def test_a_run_starts_from_the_hub_and_writes_down_the_commit(hub: Hub, mae: Path, tmp_path: Path) -> None:
    assert main(["push", str(mae), "hf://someone/digits"]) == 0
    repo, run = hub.repos["someone/digits"], tmp_path / "run"
    loaded = f"hf://someone/digits@{repo.branches['main']}"
    settings = [*TINY_MODEL, *SHORT, f"data.train={DIGITS}", "init=hf://someone/digits", f"output={run}"]
    assert main(["finetune", "finetune-vit-tiny", *settings]) == 0
    assert yaml.safe_load((run / "run.yaml").read_text())["config"]["init"] == loaded
    repo.commit("something else")
    assert main(["finetune", "finetune-vit-tiny", *settings]) == 0
    assert yaml.safe_load((run / "run.yaml").read_text())["config"]["init"] == loaded
    assert read_model(run).config["init"] == loaded  # pyright: ignore[reportOptionalSubscript]


def test_the_card_says_what_the_model_is_and_tells_no_path(hub: Hub, mae: Path, classifier: Path) -> None:
    assert main(["push", str(mae), "hf://someone/digits"]) == 0
    card = (hub.repos["someone/digits"].folder / "README.md").read_text()
    header = yaml.safe_load(card.split("---\n")[1])
    assert header == {
        "library_name": "transformers",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["unmask", "vision", "masked-autoencoder"],
    }
    assert "# license: fill in" in card
    run = yaml.safe_load((mae / "run.yaml").read_text())
    assert f"Trained on 4000 images from `bundled:mnist5k/train` (fingerprint `{run['data']['fingerprint']}`)" in card
    last = [json.loads(line) for line in (mae / "metrics.jsonl").read_text().splitlines()][-1]
    assert f"| val loss | {last['loss']:.4g} |" in card
    assert "A masked autoencoder: a Vision Transformer of 2 blocks and width 32 on images of 28×28 pixels" in card
    assert "eprint = {2111.06377}" in card
    assert str(mae.parent) not in card
    recipe = yaml.safe_load(card.partition("```yaml\n")[2].partition("```")[0])
    assert recipe["model"] == run["config"]["model"]

    assert main(["push", str(classifier), "hf://someone/digits-classes", "--to", "transformers"]) == 0
    card = (hub.repos["someone/digits-classes"].folder / "README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1])["pipeline_tag"] == "image-classification"
    assert "10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9" in card
    assert str(mae.parent) not in card, "the path it was trained from"


@pytest.mark.parametrize("to", ["transformers", "facebook"])
def test_what_the_card_says_of_loading_is_true(hub: Hub, classifier: Path, tmp_path: Path, to: str) -> None:
    pytest.importorskip("transformers", reason="transformers, the reference, is not installed")
    assert main(["push", str(classifier), "hf://someone/digits", "--to", to]) == 0
    card = (hub.repos["someone/digits"].folder / "README.md").read_text()
    ours, theirs = python_of(card)
    (tmp_path / "photos").mkdir()
    from PIL import Image

    Image.new("L", (30, 30)).save(tmp_path / "photos" / "1.png")
    told = "{'data.mean': [0.1307], 'data.std': [0.3081]}"
    ours = re.sub(r'load\("([^"]*)"\)', rf'load("\1", settings={told})', ours) + "\nassert classes.shape == (1, 10)\n"
    tail = (
        "assert not isinstance(model, str)\n"
        if to == "transformers"
        else "assert weights['head.bias'].shape == (10,)\n"
    )
    env = environment(hub, tmp_path / "home")
    shared = (
        f"import sys; sys.path.insert(0, {str(TESTS)!r}); import conftest\n"  # torchvision beside a PyTorch for the CPU
    )
    for code in (ours, theirs + tail):
        done = subprocess.run(
            [sys.executable, "-c", shared + code], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


def test_weights_that_the_hub_has_are_not_sent_again_and_a_card_is_not_overwritten(
    hub: Hub, mae: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repo = hub.create("someone/digits")
    (repo.folder / "README.md").write_text("---\nlicense: mit\n---\nMine.\n")
    (repo.folder / "notes.txt").write_text("Mine too.")
    assert main(["push", str(mae), "hf://someone/digits"]) == 0
    assert "hf://someone/digits has a README.md, which stays as it is; --overwrite-card" in capsys.readouterr().out
    assert (repo.folder / "README.md").read_text().endswith("Mine.\n")
    sent = uploads(hub)
    assert main(["push", str(mae), "hf://someone/digits", "--overwrite-card"]) == 0
    assert uploads(hub) == sent
    assert (repo.folder / "README.md").read_text().startswith("---\n# license")
    assert (repo.folder / "notes.txt").read_text() == "Mine too."


def test_a_file_format_is_loaded_by_the_name_that_is_said(
    hub: Hub, mae: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(mae), "hf://someone/digits", "--to", "facebook", "--private"]) == 0
    repo = hub.repos["someone/digits"]
    assert repo.private
    said = capsys.readouterr().out.split()[-2]
    assert said == f"hf://someone/digits@{repo.branches['main']}/model.pth"
    assert read_model(said).format == "facebook"
    card = (repo.folder / "README.md").read_text()
    assert 'unmask.load("hf://someone/digits/model.pth")' in card


@pytest.mark.parametrize(
    ("name", "token", "code", "message"),
    [
        (
            "hf://someone/new",
            "",
            4,
            "hf://someone/new cannot be written: .*log in with `hf auth login` or set HF_TOKEN",
        ),
        (
            "hf://others/new",
            TOKEN,
            4,
            "hf://others/new cannot be written: your token may not write it; log in .*that may",
        ),
        ("hf://someone/public@v9", TOKEN, 4, "hf://someone/public@v9 cannot be written: .*public has no revision v9"),
        (
            "hf://someone/new@v9",
            TOKEN,
            2,
            "hf://someone/new@v9 is to be created, with a main branch alone; write hf://",
        ),
        ("hf://someone/public", TOKEN, 2, "hf://someone/public is public already; make it private in its settings, or"),
        ("hf://someone/public/x.pth", TOKEN, 2, "names a file; write to a repository: hf://someone/public"),
        ("someone/public", TOKEN, 2, r"someone/public names no model of the hub; write hf://OWNER/NAME"),
    ],
)
def test_what_cannot_be_written_is_one_line(
    hub: Hub,
    mae: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    token: str,
    code: int,
    message: str,
) -> None:
    hub.create("someone/public")
    monkeypatch.setenv("HF_TOKEN", token)
    assert main(["push", str(mae), name, "--private"]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
    assert hub.repos["someone/public"].messages == ["first"]
    assert not uploads(hub)


def test_an_upload_that_fails_midway_leaves_nothing_half_there(
    hub: Hub, mae: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, hub.full in (("someone/one", "PUT /large/"), ("someone/two", "POST /api/models/someone/two/commit/")):
        assert main(["push", str(mae), f"hf://{name}"]) == 4
        (line,) = capsys.readouterr().err.splitlines()
        assert re.search(rf"hf://{name} cannot be written: .*507.*the same command fills it$", line), line
        assert hub.repos[name].messages == ["first"]
    hub.full = ""
    assert main(["push", str(mae), "hf://someone/two"]) == 0
    hub.full = "POST /api/models/someone/two/commit/"
    before = hub.repos["someone/two"].branches["main"]
    assert main(["push", str(mae), "hf://someone/two", "--to", "facebook"]) == 4
    assert "is empty" not in capsys.readouterr().err
    assert hub.repos["someone/two"].branches["main"] == before


def test_a_model_that_a_format_has_no_place_for(hub: Hub, mae: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["--set", "model.patch_size=14"]
    assert main(["push", str(mae), "hf://someone/digits", "--to", "transformers", *settings]) == 4
    assert "cannot be pushed as transformers: " in capsys.readouterr().err
    assert "someone/digits" not in hub.repos, "nothing was begun"


@pytest.mark.parametrize(
    "command", ["predict", "evaluate", "knn", "probe", "reconstruct", "convert", "export", "finetune"]
)
def test_every_command_takes_a_name_of_the_hub(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """That of a model that is not there, which each must have asked for."""
    model, out = "hf://someone/else", str(tmp_path / "out")
    arguments = {
        "predict": [model, DIGITS],
        "evaluate": [model, DIGITS],
        "knn": [model, DIGITS, DIGITS],
        "probe": [model, DIGITS, DIGITS],
        "reconstruct": [model, DIGITS],
        "convert": [model, out, "--to", "facebook"],
        "export": [model, f"{out}.mindir"],
        "finetune": ["finetune-vit-tiny", *TINY_MODEL, f"data.train={DIGITS}", f"init={model}", f"output={out}"],
    }
    assert main([command, *arguments[command]]) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("unmask: hf://someone/else cannot be read: ")
    assert "GET /api/models/someone/else" in hub.requests
