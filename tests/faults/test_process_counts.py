"""The result does not depend on how a run was spread: over how many processes, with all weights or a share each."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from ranks import ENGINES, agree, launch, records
from runs import TINY_MODEL
from unmask.cli import main

MODEL = [
    *TINY_MODEL,
    "data.train=bundled:mnist5k/train",
    "data.val=bundled:mnist5k/val",
    "train.batch_size=48",
    "train.accumulate=2",
    "train.log_every=1",
    "optimizer.clip_grad=1.0",
    "output=run",
]
PRETRAIN = ["pretrain", "mae-vit-tiny", *MODEL, "train.ema_decay=0.9", "optimizer.warmup_epochs=0.04"]
FINETUNE = ["finetune", "finetune-vit-tiny", *MODEL, "optimizer.warmup_epochs=0.04"]
SHARDS = ["train.shard=true", "train.activation_checkpointing=true"]


def steps(count: int) -> str:
    return f"train.epochs={count * 48 / 4000}"


def alone(folder: Path, *arguments: str) -> list[dict[str, float]]:
    """In this process, which has begun already."""
    assert main([*arguments, f"output={folder}/run"]) == 0
    return records(folder)


def together(folder: Path, *arguments: str, processes: int, engine: str = "torch") -> list[dict[str, float]]:
    folder.mkdir()
    ranks = launch(engine, *arguments, f"engine={engine}", cwd=folder, processes=processes)
    said = ranks.end()
    assert ranks.launcher.returncode == 0, said
    return records(folder)


def test_shards_train_as_one_process_which_takes_them_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    run = [*PRETRAIN, steps(60), "train.eval_every=0.3"]  # between updates too, on an average that is shared out
    expected = alone(tmp_path / "alone", *run)
    (shared := tmp_path / "shared").mkdir()
    ranks = launch("torch", *run, *SHARDS, cwd=shared)
    ranks.until_step(5)
    ranks.send(signal.SIGTERM, 0)
    said = ranks.end()
    assert 5 <= (stopped_at := len(records(shared))) < 60, said
    capsys.readouterr()
    resumed = alone(shared, *run)
    assert f"resumed after step {stopped_at}" in capsys.readouterr().out
    agree(resumed, expected, rel=1e-5)


BOTH = [ENGINES[0], pytest.param("mindspore", marks=[*ENGINES[1].marks, pytest.mark.campaign])]


@pytest.mark.parametrize("engine", BOTH)
@pytest.mark.parametrize(
    "recipe", ["lejepa-vit-small", pytest.param("mae-lejepa-vit-small", marks=pytest.mark.campaign)]
)
def test_features_are_gaussian_over_all_processes(engine: str, recipe: str, tmp_path: Path) -> None:
    views = ["objective.views=2", "objective.projector_width=32", "objective.directions=16"]
    run = ["pretrain", recipe, *TINY_MODEL, *views, "data.train=bundled:mnist5k/train", "train.batch_size=48"]
    run += ["objective.gaussian_weight=0.5", "optimizer.warmup_epochs=0.04", "train.precision=fp32"]
    run += ["output=run", steps(10)]
    expected = alone(tmp_path / "alone", *run, f"engine={engine}")
    agree(together(tmp_path / "two", *run, processes=2, engine=engine), expected, rel=1e-5)
    if engine == "torch" and recipe.startswith("mae"):
        agree(together(tmp_path / "shards", *run, "train.shard=true", processes=2), expected, rel=1e-5)


@pytest.mark.parametrize("engine", BOTH)
def test_images_without_labels_are_the_same_over_two_processes(engine: str, tmp_path: Path) -> None:
    run = ["finetune", "finetune-vit-tiny", *MODEL, "objective=semi", "objective.unlabelled_ratio=2"]
    run += [
        "objective.head=probe",
        "objective.confidence=0.3",
        "data.labels_per_class=10",
        "train.ema_decay=0.9",
        "train.epochs=5",
        "train.eval_every=5",
    ]
    run += ["optimizer.warmup_epochs=1", f"engine={engine}"]
    expected = alone(tmp_path / "alone", *run)
    assert any(0 < row.get("confident", 0) < 1 for row in expected)
    agree(together(tmp_path / "two", *run, processes=2, engine=engine), expected, rel=1e-4)
    if engine == "torch":
        agree(together(tmp_path / "shards", *run, "train.shard=true", processes=2), expected, rel=1e-4)


@pytest.mark.parametrize("engine", BOTH)
def test_a_teacher_that_stays_is_the_same_over_two_processes(engine: str, tmp_path: Path) -> None:
    run = ["finetune", "finetune-vit-tiny", *MODEL, "objective.teacher=[handmade]", "objective.teacher_share=0.25"]
    run += ["data.train=bundled:mnist5k/val", "data.eval_crop=1", "data.labels_per_class=10", "train.eval_every=1"]
    run += ["train.epochs=1", "objective.head=drawn", "optimizer.warmup_epochs=0", f"engine={engine}"]
    expected = alone(tmp_path / "alone", *run)
    agree(together(tmp_path / "two", *run, processes=2, engine=engine), expected, rel=1e-4)


def test_gradients_that_travel_in_bf16_are_nearly_the_same(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    run = [*PRETRAIN, steps(4)]
    expected = alone(tmp_path / "alone", *run)
    found = together(tmp_path / "bf16", *run, "train.exchange_dtype=bf16", processes=2)
    norms = [[record["grad_norm"] for record in log[:4]] for log in (found, expected)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-2)
    assert norms[0] != pytest.approx(norms[1], rel=1e-6), "they did travel in bf16"


@pytest.mark.campaign
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("task", [PRETRAIN, FINETUNE], ids=["pretrain", "finetune"])
def test_fifty_steps_over_one_two_and_four_processes(task: list[str], engine: str, tmp_path: Path) -> None:
    """Losses and norms to 1e-5; what is counted over the validation images exactly."""
    run = [*task, steps(50)]
    expected = alone(tmp_path / "alone", *run, f"engine={engine}")
    ways = {"replicas": [], "shards": SHARDS} if engine == "torch" else {"replicas": []}
    for processes in (2, 4):
        for name, settings in ways.items():
            found = together(tmp_path / f"{name}-{processes}", *run, *settings, processes=processes, engine=engine)
            agree(found, expected, rel=1e-5)
            for figure in ("top1", "top5"):
                assert [record.get(figure) for record in found] == [record.get(figure) for record in expected]


@pytest.mark.campaign
@pytest.mark.parametrize("engine", ENGINES[1:])
def test_shards_go_on_with_the_other_engine(engine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = [*PRETRAIN, steps(400)]
    (shared := tmp_path / "shared").mkdir()
    ranks = launch("torch", *run, "train.shard=true", cwd=shared)
    ranks.until_step(5)
    ranks.send(signal.SIGTERM, 1)
    ranks.end()
    stopped_at = len(records(shared))
    assert stopped_at < 400
    resumed = alone(shared, *run, f"engine={engine}")
    assert f"resumed after step {stopped_at}" in capsys.readouterr().out
    agree(resumed, alone(tmp_path / "alone", *run), rel=1e-3)
