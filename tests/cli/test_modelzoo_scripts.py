"""The model zoo's launch scripts: what they start on which devices, and two real processes of them."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launchers import TOOLS, ended, older_table_of, stand_ins, started, table_of

ROOT = Path(__file__).parents[2]
FILES = ROOT / "config"
SCRIPTS = ROOT / "scripts"
SMALL = ["--device_target=CPU", "--num_workers=0", "--encoder_layers=1", "--encoder_num_heads=4", "--encoder_dim=32"]
SMALL += ["--image_size=32", "--batch_size=6", "--warmup_epochs=0", "--epoch=2"]


def launch(script: str, *arguments: str | Path, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script to its end; in the background it may have left what it started."""
    ours = ("ENGINE", "SERVER_ID", "MASTER_PORT", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if name not in ours} | variables
    command = ["sh", str(SCRIPTS / script), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("layout", ["servers", "groups", "a group of single devices"])
@pytest.mark.parametrize(
    ("script", "command", "logs"),
    [
        ("pretrain_distribute.sh", "pretrain", "train_parallel"),
        ("finetune_distribute.sh", "finetune", "train_parallel"),
        ("eval_distribute.sh", "evaluate", "eval"),
    ],
)
def test_a_script_starts_msrun_on_every_device_of_the_table(
    script: str, command: str, logs: str, layout: str, tmp_path: Path
) -> None:
    devices = [[0, 1, 2], [4, 5, 7]]
    one_each = layout == "a group of single devices"
    table = (
        table_of(tmp_path, *devices)
        if layout == "servers"
        else older_table_of(tmp_path, *devices, one_instance_each=one_each)
    )
    config = FILES / "eval.yaml"
    done = launch(script, table, config, "--batch_size", "2", folder=tmp_path, SERVER_ID="1", **stand_ins(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "mindspore: 3 of 6 processes on machine 1 of 2, in the background; to stop them: kill " in done.stdout
    assert f"logs: {logs}0/log and so on, by rank; what msrun says: {logs}.log\n" in done.stdout
    ended(done, 30)
    launcher, visible, *given = started(tmp_path, logs)
    assert (launcher, visible) == ("msrun", "4,5,7")
    split = given.index(str(SCRIPTS / "rank.py"))
    assert set(given[:split]) >= {"--worker_num=6", "--local_worker_num=3", "--master_addr=10.0.0.1", "--node_rank=1"}
    flat = [f"--config_path={config}", "--use_parallel", "True", "--engine", "mindspore", "--batch_size", "2"]
    assert given[split + 1 :] == [logs, command, *flat]


def test_torchrun_is_started_for_pytorch(tmp_path: Path) -> None:
    config, table = FILES / "mae-vit-base-p16.yaml", table_of(tmp_path, [0, 1, 2, 3], [4, 5])
    done = launch(
        "pretrain_distribute.sh",
        table,
        config,
        folder=tmp_path,
        ENGINE="torch",
        MASTER_PORT="29511",
        **stand_ins(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    ended(done, 30)
    launcher, visible, *given = started(tmp_path, "train_parallel")
    assert (launcher, visible) == ("torchrun", "0,1,2,3")
    split = given.index(str(SCRIPTS / "rank.py"))
    assert set(given[:split]) == {
        *("--nnodes=2", "--nproc_per_node=4", "--node_rank=0", "--master_addr=10.0.0.1", "--master_port=29511")
    }
    flat = [f"--config_path={config}", "--use_parallel", "True", "--engine", "torch"]
    assert given[split + 1 :] == ["train_parallel", "pretrain", *flat]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage: sh eval_distribute.sh RANK_TABLE_FILE CONFIG_PATH"),
        (["TABLE"], "usage: sh eval_distribute.sh RANK_TABLE_FILE CONFIG_PATH"),
        (["none.json", "CONFIG"], "RANK_TABLE_FILE=none.json is not a file"),
        (["TABLE", "none.yaml"], "CONFIG_PATH=none.yaml is not a file"),
        (["CONFIG", "CONFIG"], "is not a rank table"),
        (["EMPTY", "CONFIG"], "lists no devices"),
        (["TABLE", "CONFIG", "SERVER_ID=2"], "SERVER_ID=2: the rank table has 2 machines, counted from 0"),
        (["TABLE", "CONFIG", "SERVER_ID=first"], "SERVER_ID=first: the rank table has 2 machines"),
        (["TABLE", "CONFIG", "ENGINE=mindspore"], "msrun needs machines with the same number of devices"),
        (["TABLE", "CONFIG", "ENGINE=jax"], "ENGINE=jax: mindspore or torch"),
    ],
)
def test_a_script_says_what_is_wrong_before_it_goes_to_the_background(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    empty = tmp_path / "empty.json"
    empty.write_text('{"server_list": []}')
    real = {"TABLE": str(table_of(tmp_path, [0, 1], [4])), "CONFIG": str(FILES / "eval.yaml"), "EMPTY": str(empty)}
    variables = dict(argument.split("=") for argument in arguments if "=" in argument)
    given = [real.get(argument, argument) for argument in arguments if "=" not in argument]
    done = launch("eval_distribute.sh", *given, folder=tmp_path, **variables, **stand_ins(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "eval.log").exists()


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param("torch", marks=pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed")),
        pytest.param(
            "mindspore",
            marks=[
                pytest.mark.campaign,
                pytest.mark.skipif(find_spec("mindspore") is None, reason="mindspore is not installed"),
            ],
        ),
    ],
)
def test_two_processes_train_and_evaluate_and_log_where_the_model_zoo_s_did(engine: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(8):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(
                tmp_path / "photos" / name / f"{index}.png"
            )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        here = {
            "ENGINE": engine,
            "MASTER_PORT": str(free.getsockname()[1]),
            "OMP_NUM_THREADS": "1",
            "PATH": f"{TOOLS}:{os.environ['PATH']}",
        }
    table = older_table_of(tmp_path, [0, 1])
    images = ["--dataset_path=photos", "--eval_path=photos"]
    options = [*SMALL, "--layer_decay=1", *images]
    done = launch("finetune_distribute.sh", table, FILES / "vit-base-p16.yaml", *options, folder=tmp_path, **here)
    ended(done, 240)
    log = (tmp_path / "train_parallel0" / "log").read_text()
    assert "finetune in output/ViT-B-P16: 24 images, 4 steps, 2 processes\n" in log, log
    assert "\ndone: output/ViT-B-P16" in log
    assert (tmp_path / "train_parallel1" / "log").exists()
    assert (tmp_path / "output" / "ViT-B-P16-2_2.ckpt").exists()

    options = [*SMALL, "--eval_path=photos", "--use_ckpt=output/ViT-B-P16-2_2.ckpt"]
    done = launch("eval_distribute.sh", table, FILES / "eval.yaml", *options, folder=tmp_path, **here)
    ended(done, 240)
    assert re.search(r"^accuracy=[01]\.\d{3}$", (tmp_path / "eval0" / "log").read_text(), re.M)
