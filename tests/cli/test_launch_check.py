"""`unmask launch --check`, as it is typed."""

from __future__ import annotations

import pytest

from runs import TINY_MODEL
from unmask.cli import main

pytest.importorskip("torch", reason="a step is counted with PyTorch, which is not installed")

SMALL = [*TINY_MODEL, "train.batch_size=512", "data.train=photos", "output=runs/mae"]


def rows(out: str) -> dict[str, list[str]]:
    lines = [line.split() for line in out.splitlines()]
    return {words[0]: words[1:] for words in lines if words and words[0][:1].isdigit() and len(words) == 9}


def test_a_plan_has_a_row_for_each_size_and_says_what_it_assumes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "mae-vit-tiny", *SMALL, "--check", "2x8", "--card", "a100", "--mfu", "0.25"]) == 0
    out = capsys.readouterr().out
    found = rows(out)
    assert list(found) == ["1x8", "2x8", "8x8", "32x8"]
    assert [row[0] for row in found.values()] == ["64", "32", "8", "2"]
    assert "2x8 a100: 16 processes, DDP, fp32, train.batch_size=512 in micro-batches of 32" in out
    assert "not 128x8: train.batch_size=512 cannot be shared among so many" in out
    assert "19.5 TFLOPS in fp32, of which a step reaches 25%" in out
    computed = [float(row[3]) for row in found.values()]
    assert computed == sorted(computed, reverse=True)


def test_the_job_comes_after_its_plan(capsys: pytest.CaptureFixture[str]) -> None:
    shards = ["train.shard=true", "train.precision=bf16"]
    assert main(["launch", "slurm", "mae-vit-tiny", *SMALL, *shards, "--check", "2x4"]) == 0
    out = capsys.readouterr().out
    assert "2x4 h100: 8 processes, FSDP2, bf16" in out
    assert "#SBATCH --nodes=2" in out.partition("#!/bin/bash")[2]


def test_mindspore_is_planned_with_pytorch_in_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "mae-vit-tiny", *SMALL, "engine=mindspore", "train.precision=fp16", "--check", "1x8"]) == 0
    out = capsys.readouterr().out
    assert "1x8 ascend-910b" in out
    assert "with PyTorch in MindSpore's place" in out


def test_a_classifier_without_its_data_has_a_thousand_classes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "finetune-vit-tiny", *SMALL, "--check", "1x8"]) == 0
    assert "planned with 1000 classes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mae-vit-tiny", *SMALL, "--check", "3x8"], "train.batch_size=512 is not a multiple of 24 processes"),
        (["mae-vit-tiny", *SMALL], "name a platform and a recipe"),
        (["slurm", "--check", "1x8"], "name a platform and a recipe"),
        (["mae-vit-tiny", *SMALL, "model.dept=3", "--check", "1x8"], "did you mean model.depth"),
        (["probe-vit-tiny", *SMALL, "--check", "1x8"], "trains its head on the host; it cannot be planned"),
        (
            ["mae-vit-tiny", *SMALL[:-3], "model.width=65536", "train.batch_size=8", "--check", "1x1"],
            "no setting makes it fit; take more cards",
        ),
    ],
)
def test_what_cannot_be_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", *words]) != 0
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_step_that_does_not_fit_fits_with_the_settings_that_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["launch", "mae-vit-tiny", *SMALL[:-3], "model.width=2048", "train.batch_size=786432", "--check", "1x3"]
    assert main(words) == 2
    error = capsys.readouterr().err
    advice = error.partition("a tenth of it kept free: set ")[2].split()
    assert "train.activation_checkpointing=true" in advice, error
    assert main([*words, *advice]) == 0, capsys.readouterr().err
