"""Fine-tuning on what a teacher says of images without labels, as a user types it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import unmask
from runs import TINY_MODEL
from unmask.checkpoint.store import load_newest
from unmask.cli import main
from unmask.data.sources import open_source
from unmask.report.log import read_log

pytest.importorskip("torch", reason="PyTorch is not installed")

TRAIN, VAL = "bundled:mnist5k/train", "bundled:mnist5k/val"
RUN = [
    *("finetune", "small-finetune", f"data.train={TRAIN}", f"data.val={VAL}", *TINY_MODEL, "model.patch_stem=null"),
    *("data.labels_per_class=10", "data.exclude=EXCLUDE", "train.batch_size=16", "train.epochs=1", "seed=1"),
    *("train.eval_every=1", "train.checkpoint_every=100", "train.log_every=1", "optimizer.warmup_epochs=0"),
    *("data.eval_crop=1", "augment.color_jitter=[0,0,0,0]"),
]

STAYS = ["objective.teacher=[handmade]", "objective.teacher_share=0.25"]
"""In the classifier."""
NONE = ["train.epochs=0", "objective.head=probe"]
"""The teacher is asked, and nothing trained."""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """On 200 of the 4,000 digits, of which 100 have labels that are looked at: 12 updates."""
    exclude = tmp_path_factory.mktemp("digits") / "exclude.txt"
    source = open_source(TRAIN, key="data.train", labels=True)
    assert source.labels is not None
    kept = {index for label in range(10) for index in np.flatnonzero(source.labels == label)[:20].tolist()}
    exclude.write_text("".join(f"{source.name(index)}\n" for index in range(len(source)) if index not in kept))
    return [each.replace("EXCLUDE", str(exclude)) for each in RUN]


@pytest.fixture(scope="module")
def run(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("taught") / "run"
    assert main([*settings, *STAYS, f"output={folder}"]) == 0
    return folder


def test_all_images_are_trained_on_and_the_answers_are_kept(
    run: Path, settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = [row["step"] for row in read_log(run / "metrics.jsonl") if row["split"] == "train"]
    assert steps == list(range(1, round(200 / 16) + 1))
    answers = np.fromfile(next(run.glob("teacher/*/rows.bin")), np.float32).reshape(100, 10)
    assert answers.sum(1) == pytest.approx(np.ones(100), abs=1e-5)
    assert main(["evaluate", str(run), VAL]) == 0

    shutil.copytree(run, tmp_path / "again")
    assert main([*settings, *STAYS, f"output={tmp_path / 'again'}"]) == 0
    assert "100 of 100 images are done already" in capsys.readouterr().out


def test_a_run_that_was_stopped_goes_on_bit_for_bit(run: Path, settings: list[str], tmp_path: Path) -> None:
    """Also with loader processes."""
    values = {key: _value(text) for key, _, text in (each.partition("=") for each in settings[2:])}
    values |= {"objective.teacher": ["handmade"], "objective.teacher_share": 0.25, "output": tmp_path / "run"}
    unmask.finetune("small-finetune", values, callbacks=[lambda step, _: step >= 5])
    unmask.finetune("small-finetune", values | {"data.workers": 1})
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    one, other = (load_newest(folder / "checkpoints").state for folder in (run, tmp_path / "run"))
    assert all(np.array_equal(one.weights[name], other.weights[name]) for name in one.weights)


def test_a_teacher_that_stays_answers_with_the_network(run: Path, digits: Path, tmp_path: Path) -> None:
    """In evaluation while it is trained too, and in a graph that is exported."""

    def said(share: float) -> NDArray[np.float64]:
        with unmask.load(run, settings={"objective.teacher_share": share}) as model:
            return np.log(model.predict(digits).astype(np.float64))

    network, mostly_teacher, both = said(0.0), said(1 - 1e-6), said(0.25)
    mean = 0.75 * network + 0.25 * mostly_teacher
    mean -= np.log(np.exp(mean).sum(1, keepdims=True))
    np.testing.assert_allclose(both, mean, atol=1e-4)
    assert not np.allclose(network, both, atol=0.1)
    with unmask.load(run) as model:
        np.testing.assert_allclose(np.log(model.predict(digits)), both, atol=1e-5)
        top1 = model.evaluate(VAL)["top1"]
    assert next(row["top1"] for row in read_log(run / "metrics.jsonl") if row["split"] == "val") == pytest.approx(top1)
    assert main(["export", str(run), str(tmp_path / "both.pt2")]) == 0


def test_other_tools_get_the_network_alone(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main(["convert", str(run), str(tmp_path / "timm"), "--to", "timm"]) == 0
    assert "the network alone is written, without its teacher" in caplog.text
    with (
        unmask.load(tmp_path / "timm", settings={"data.eval_crop": 1.0}) as alone,
        unmask.load(run, settings={"objective.teacher_share": 0}) as network,
    ):
        assert alone.evaluate(VAL)["top1"] == pytest.approx(network.evaluate(VAL)["top1"], abs=2e-3)


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _answers(run: Path) -> NDArray[np.float32]:
    return np.fromfile(next(run.glob("teacher/*/rows.bin")), np.float32).reshape(-1, 10)


def test_a_step_is_done_again_and_the_page_shows_the_images(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", str(run), "--step", "3", "--out", str(tmp_path / "again")]) == 0
    out = capsys.readouterr().out
    assert "100 of 100 images are done already" in out, "the answers of the run, not of today"
    assert json.loads((tmp_path / "again" / "step.json").read_text("utf-8"))["same"]
    assert main(["report", str(run), "--images", "20", "--out", str(tmp_path / "page.html")]) == 0
    assert "Missing" not in capsys.readouterr().out


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """40 digits as files, in one folder without classes."""
    source = open_source(TRAIN, key="data.train", labels=False)
    (tmp_path / "digits").mkdir()
    for index in range(0, 4000, 100):
        Image.fromarray(np.asarray(source.read(index))[..., 0]).save(tmp_path / "digits" / f"{index:04}.png")
    return tmp_path / "digits"


def test_classifiers_teach_and_are_not_needed_any_more(
    digits: Path, run: Path, settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of several the mean is taken."""
    teacher = tmp_path / "a classifier"
    shutil.copytree(run, teacher)
    with unmask.load(teacher) as model:
        said = model.predict(digits)
    found: dict[str, NDArray[np.float32]] = {}
    for names in (f"[{teacher}]", "[handmade]", f"[handmade,{teacher}]"):
        output = tmp_path / f"run{len(found)}"
        taught = [*settings, f"data.unlabelled={digits}", f"objective.teacher={names}", f"output={output}"]
        taught += ["objective.teacher_share=0.25"] if "handmade" in names else []
        assert main([*taught, *NONE]) == 0
        found[names] = _answers(output)
    alone, handmade, both = found.values()
    assert np.array_equal(alone, said)
    assert both == pytest.approx((alone + handmade) / 2, abs=1e-6)
    assert not np.allclose(alone, handmade, atol=0.01)

    shutil.rmtree(teacher)
    capsys.readouterr()
    assert main([*taught, *NONE]) == 0
    assert "40 of 40 images are done already" in capsys.readouterr().out


def test_a_network_teaches_too_where_there_are_500_labels(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is trained first, on four fifths of them; what it counts is found on the rest, and it goes on when stopped."""
    both = ["objective.teacher=[handmade,network]", "objective.teacher_share=0.25"]
    assert main([*settings, *both, *NONE, f"output={tmp_path / 'few'}"]) == 0
    assert "100 labelled images are fewer than 500: no network" in capsys.readouterr().out
    assert not (tmp_path / "few" / "teacher" / "network").exists()

    stem = ["model.patch_size=4", "model.patch_stem=8", "model.depth=1", "data.flip=0", "augment.mix_prob=0"]
    stem += ["augment.label_smoothing=0", "optimizer.base_lr=5.0e-2"]
    many = ["data.labels_per_class=50", f"data.unlabelled={VAL}", "data.exclude=null", "train.precision=fp32"]
    command = [*settings, *stem, *many, *NONE, "data.crop_scale=[0.8,1.0]"]
    assert main([*command, *both, f"output={tmp_path / 'run'}"]) == 0
    out = capsys.readouterr().out
    assert "a network among the teachers: 400 labelled images to learn from, 100 to judge by" in out
    found = json.loads((tmp_path / "run" / "teacher" / "network.json").read_text("utf-8"))
    assert found["weight"] > 0
    assert found["set_aside"] == 100
    with unmask.load(tmp_path / "run" / "teacher" / "network") as model:
        network = model.predict(VAL)
    assert main([*command, "objective.teacher=[handmade]", f"output={tmp_path / 'alone'}"]) == 0
    handmade = _answers(tmp_path / "alone")
    expected = found["weight"] * network + (1 - found["weight"]) * handmade
    np.testing.assert_allclose(_answers(tmp_path / "run"), expected, atol=1e-4)
    labels = open_source(VAL, key="data.val", labels=True).labels
    right = [(each.argmax(1) == labels).mean() for each in (network, handmade, expected)]
    assert right[2] > max(right[:2])

    capsys.readouterr()
    assert main([*command, *both, f"output={tmp_path / 'run'}"]) == 0
    out = capsys.readouterr().out
    assert "1000 of 1000 images are done already" in out
    assert "labelled images to learn from" not in out


def test_a_network_that_teaches_is_trained_in_one_process(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    many = ["data.labels_per_class=50", "data.exclude=null", "objective.teacher=[handmade,network]"]
    assert main([*settings, *many, f"output={tmp_path / 'run'}"]) == 2
    assert "network is trained beforehand in one process; start one, or leave network out" in capsys.readouterr().err
    assert not (tmp_path / "run" / "teacher").exists()


def test_one_image_without_label_is_broken(
    digits: Path, settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (digits / "0100.png").write_bytes(b"no image")
    own = [*settings, "objective.teacher=[handmade]", f"data.unlabelled={digits}", f"output={tmp_path / 'run'}"]
    assert main([*own, "data.max_bad_share=0.1"]) == 0
    assert "140 images, 9 steps" in capsys.readouterr().out
    assert (tmp_path / "run" / "bad_files.txt").read_text().startswith("0100.png\t")
    assert _answers(tmp_path / "run")[1] == pytest.approx(np.full(10, 0.1))


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        (["data.labels_per_class=null"], 2, "objective.teacher is for training on images without labels too"),
        (["objective.loss=bce"], 2, "objective.teacher is for objective.loss=cross_entropy"),
        (["objective.teacher_share=0.5", "data.eval_crop=0.9"], 2, "set data.eval_crop=1"),
        (["objective.teacher=[]", "objective.teacher_share=0.5"], 2, "name it in objective.teacher, or leave this out"),
        (["objective.teacher_share=0.5", "model.num_classes=12"], 2, "data.train has 10 classes"),
        (["objective.teacher=[network]"], 2, "network is asked beside handmade; name both"),
        (["objective.teacher=[nowhere]"], 4, "objective.teacher=nowhere: nowhere does not exist"),
        (["objective.teacher=handmade"], 2, "objective.teacher"),
        (["objective=semi", "objective.teacher=[handmade]"], 2, "objective.teacher"),
    ],
)
def test_what_cannot_be_is_refused(
    changes: list[str], code: int, message: str, settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taught = [] if any("objective.teacher=" in each for each in changes) else ["objective.teacher=[handmade]"]
    assert main([*settings, *taught, *changes, f"output={tmp_path / 'run'}"]) == code
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


def test_a_teacher_of_other_classes(settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for label in ("cat", "dog"):
        (tmp_path / "animals" / label).mkdir(parents=True)
        for number in range(2):
            Image.fromarray(np.full((28, 28), 40 * number, np.uint8)).save(
                tmp_path / "animals" / label / f"{number}.png"
            )
    animals = ["finetune", "small-finetune", f"data.train={tmp_path / 'animals'}", *TINY_MODEL]
    small = ["model.patch_stem=null", "train.batch_size=2", "train.epochs=1", "optimizer.warmup_epochs=0"]
    plain = ["data.eval_crop=1", "augment.color_jitter=[0,0,0,0]"]
    assert main([*animals, *small, *plain, f"output={tmp_path / 'cats'}"]) == 0
    assert main([*settings, f"objective.teacher=[{tmp_path / 'cats'}]", f"output={tmp_path / 'run'}"]) == 3
    err = capsys.readouterr().err
    assert "objective.teacher=" in err
    assert "different classes" in err
