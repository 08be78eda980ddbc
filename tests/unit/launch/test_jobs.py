"""What `unmask launch` prints is what the platforms take, and starts what was asked for, whatever its settings hold."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launchers import TOOLS
from ranks import free_ports
from runs import ENVIRONMENT, TINY_MODEL
from unmask.cli import main
from unmask.errors import ConfigError
from unmask.launch import Options, prepare, written
from unmask.launch.job import GRACE

PLATFORMS = {
    "slurm": Options(),
    "sky": Options(accelerator="H100"),
    "kubernetes": Options(image="registry/unmask:1"),
    "modelarts": Options(image="swr.example/unmask:1", flavor="modelarts.pool.visual.8xlarge"),
}
PLACES = ["data.train=s3://bucket/images", "output=s3://bucket/runs/mae"]
HOSTILE = [
    "it's",
    '"two" words',
    "$HOME `id` $(touch pwned) ${x:-y}",
    "a;b&c|d>e<f",
    "\\n \\\\ \\",
    "图像 – é",
    "*?[a-z]{1,2}~!#%%s%j",
    "$$(VAR) $$$",
    "-x --out=y",
    " # : - | > & * ! % @ ` {x} [y] ",
]


def run(command: list[str], folder: Path, **variables: str) -> list[str]:
    """The words that torchrun, msrun or unmask is given by this command, on the second of two nodes."""
    stand_ins = folder / "bin"
    stand_ins.mkdir(exist_ok=True)
    for name in ("torchrun", "msrun", "unmask"):
        (stand_ins / name).write_text('#!/bin/sh\nprintf "%s\\0" "${0##*/}" "$@" >"$WORDS"\n')
        (stand_ins / name).chmod(0o755)
    # srun starts what follows its options, once on each node.
    (stand_ins / "srun").write_text('#!/bin/sh\nwhile [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"\n')
    (stand_ins / "srun").chmod(0o755)
    words = folder / "words"
    words.unlink(missing_ok=True)
    environment = {"PATH": f"{stand_ins}:{os.environ['PATH']}", "WORDS": str(words), "HOME": str(folder), **variables}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (folder / "pwned").exists()
    return words.read_text().split("\0")[:-1]


def on_slurm(text: str, folder: Path) -> list[str]:
    file = folder / "job.sh"
    file.write_text(text, encoding="utf-8")
    return run(["bash", str(file)], folder, SLURM_JOB_ID="7", SLURM_NODEID="1")


def on_sky(text: str, folder: Path) -> list[str]:
    task = yaml.safe_load(text)
    return run(["bash", "-c", task["run"]], folder, SKYPILOT_NODE_RANK="1", SKYPILOT_NODE_IPS="10.0.0.1\n10.0.0.2")


def on_kubernetes(text: str, folder: Path) -> list[str]:
    trainer = yaml.safe_load(text)["spec"]["trainer"]
    words = [*trainer["command"], *trainer["args"]]
    assert not any(re.search(r"(?<!\$)(\$\$)*\$\(", word) for word in words), "a reference to a variable"
    return run([word.replace("$$", "$") for word in words], folder)


def on_modelarts(text: str, folder: Path) -> list[str]:
    command = json.loads(text)["algorithm"]["command"]
    return run(shlex.split(command), folder, VC_TASK_INDEX="1", VC_WORKER_HOSTS="first.job,second.job")


STARTED: dict[str, Callable[[str, Path], list[str]]] = {
    "slurm": on_slurm,
    "sky": on_sky,
    "kubernetes": on_kubernetes,
    "modelarts": on_modelarts,
}


def check_words(platform: str, word: str, folder: Path) -> None:
    wanted = [f"data.train=s3://bucket/{word}", f"output=s3://bucket/runs/{word}x", "device=cuda"]
    job = prepare("mae-vit-base", wanted, nodes=2, cards=8)
    words = STARTED[platform](written(platform, job, PLATFORMS[platform]), folder)
    assert words[0] == "torchrun"
    assert words[words.index("-m") :] == ["-m", "unmask", "pretrain", "mae-vit-base", *wanted]


@pytest.mark.parametrize("word", HOSTILE)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_every_word_arrives_as_it_is(platform: str, word: str, tmp_path: Path) -> None:
    check_words(platform, word, tmp_path)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(word=st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=40))
@pytest.mark.parametrize("platform", PLATFORMS)
def test_any_word_arrives_as_it_is(platform: str, word: str, tmp_path: Path) -> None:
    check_words(platform, word.replace("/", ""), tmp_path)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_recipe_may_be_a_file(platform: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = 'recipes/it\'s $my "配方".yaml'
    Path("recipes").mkdir()
    Path(name).write_text("base: mae-vit-base\n")
    text = written(platform, prepare(name, PLACES, 2, 8), PLATFORMS[platform])
    assert STARTED[platform](text, tmp_path)[-4:] == ["pretrain", name, *PLACES]
    if platform == "sky":
        assert yaml.safe_load(text)["workdir"] == "."
        for elsewhere in (str(tmp_path / name), f"../{tmp_path.name}/{name}"):
            with pytest.raises(ConfigError, match="give it from a folder above it"):
                written(platform, prepare(elsewhere, PLACES, 2, 8), PLATFORMS[platform])


@pytest.mark.parametrize(
    ("engine", "size", "expected"),
    [
        ("torch", (2, 8), ["torchrun", "--nnodes=2", "--node_rank=1", "--nproc_per_node=8"]),
        ("torch", (1, 8), ["torchrun", "--standalone", "--nproc_per_node=8"]),
        ("torch", (1, 1), ["unmask"]),
        ("mindspore", (2, 8), ["msrun", "--worker_num=16", "--local_worker_num=8", "--node_rank=1", "--join=True"]),
        ("mindspore", (1, 8), ["msrun", "--worker_num=8", "--local_worker_num=8", "--master_addr=127.0.0.1"]),
        ("mindspore", (1, 1), ["unmask"]),
    ],
)
@pytest.mark.parametrize("platform", ["slurm", "sky", "modelarts"])
def test_the_launcher_is_the_engine_s_own(
    platform: str, engine: str, size: tuple[int, int], expected: list[str], tmp_path: Path
) -> None:
    job = prepare("mae-vit-base", [*PLACES, f"engine={engine}"], *size)
    words = STARTED[platform](written(platform, job, PLATFORMS[platform]), tmp_path)
    launcher, ours = words[: words.index("pretrain")], words[words.index("pretrain") :]
    assert ours == ["pretrain", "mae-vit-base", *PLACES, f"engine={engine}"]
    assert launcher[0] == expected[0]
    assert set(expected) <= set(launcher)
    if size[0] == 2:
        first = next(word.partition("=")[2] for word in launcher if word.startswith("--master_addr="))
        assert first == {"sky": "10.0.0.1", "modelarts": "first.job"}.get(platform, os.uname().nodename)


def test_a_recipe_that_fine_tunes_is_a_job_that_fine_tunes() -> None:
    job = prepare("finetune-vit-base", [*PLACES, "init=s3://bucket/runs/mae"], 1, 8)
    assert job.words[:2] == ["finetune", "finetune-vit-base"]


def test_slurm_is_asked_for_what_the_processes_need() -> None:
    job = prepare("mae-vit-base", ["data.train=/data", "output=runs/mae", "data.workers=7"], 16, 8)
    lines = written("slurm", job, Options(partition="gpu", time="1-12")).splitlines()
    asked = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")}
    assert asked == {
        "--job-name=unmask-mae",
        "--nodes=16",
        "--ntasks-per-node=1",
        "--cpus-per-task=64",
        "--gpus-per-node=8",
        "--partition=gpu",
        "--time=1-12",
        "--requeue",
        "--open-mode=append",
        f"--signal=TERM@{GRACE}",
    }
    ascend = prepare("mae-vit-base", ["data.train=/data", "output=runs/mae", "engine=mindspore"], 2, 8)
    assert "#SBATCH --gres=npu:8" in written("slurm", ascend, Options())
    cpu = prepare("mae-vit-base", ["data.train=/data", "output=runs/mae", "device=cpu"], 2, 8)
    assert not re.search("gpus|gres", written("slurm", cpu, Options()))


def test_the_home_folder_is_the_cluster_s(tmp_path: Path) -> None:
    job = prepare("mae-vit-base", ["data.train=/data", "output=~/my runs/$1"], 1, 8)
    words = on_slurm(written("slurm", job, Options()), tmp_path)
    assert words[-1] == "output=~/my runs/$1"
    assert (tmp_path / "my runs" / "$1" / "slurm-7.log").exists()


def test_a_step_that_is_told_to_stop_ends_after_all_have_saved(tmp_path: Path) -> None:
    """A launcher that dies of the signal, as msrun does, while a process that it started is saving."""
    job = prepare("mae-vit-base", ["data.train=/data", "output=run", "engine=mindspore"], 1, 2)
    script = written("slurm", job, Options())
    (tmp_path / "job.sh").write_text(script)
    stand_ins = tmp_path / "bin"
    stand_ins.mkdir()
    for name, text in {
        "srun": 'while [ "${1#--}" != "$1" ]; do shift; done\nsetsid --wait "$@"\n',
        "msrun": "exec 5<&0\n(trap 'sleep 1; touch saved; exit' TERM; touch started\n"
        "while :; do sleep 0.05; done) <&5 &\nwait\n",
        "scontrol": 'test -e saved && echo "$@" >requeued\n',
    }.items():
        (stand_ins / name).write_text(f"#!/bin/sh\n{text}")
        (stand_ins / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{stand_ins}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    process = subprocess.Popen(["bash", "job.sh"], cwd=tmp_path, env=environment)
    deadline = time.monotonic() + 30
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    groups = {os.getpgid(int(each.name)) for each in here(tmp_path)}
    (step,) = groups - {os.getpgid(process.pid)}
    os.killpg(step, 15)  # as Slurm: every process of the step, at once
    assert process.wait(timeout=30) == 143
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"


def here(folder: Path) -> list[Path]:
    """Processes that work in a folder."""
    found: list[Path] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            found += [process] if (process / "cwd").readlink() == folder else []
        except OSError:
            continue
    return found


GOOD = {
    "slurm": [],
    "sky": ["--accelerator", "H100"],
    "kubernetes": ["--image", "i"],
    "modelarts": ["--image", "i", "--flavor", "f"],
}
ON_SLURM = ["slurm", "mae-vit-base", "data.train=x", "output=y"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (ON_SLURM[:3], "output is not set"),
        (["slurm", "mae-vit-base", "output=y"], "data.train is not set"),
        (["slurm", "mae-vit-bse", *ON_SLURM[2:]], "there is no recipe mae-vit-bse, did you mean mae-vit-base?"),
        ([*ON_SLURM, "train.batchsize=8"], "did you mean train.batch_size?"),
        ([*ON_SLURM, "--size", "3x8"], "not a multiple of 24 processes"),
        (["slurm", "finetune-vit-base", *ON_SLURM[2:], "train.batch_size=48", "--size", "2x8"], "make them even"),
        ([*ON_SLURM, "data.val=a\nb"], "cannot stand in a job"),
        ([*ON_SLURM, "data.val=a\x85b"], "cannot stand in a job"),
        ([*ON_SLURM, "data.val=\udcff"], "cannot stand in a job"),
        ([*ON_SLURM, "device=cuda:1", "--size", "1x8"], "set device=auto"),
        ([*ON_SLURM, "device=mps"], "device=mps is not one of a cluster"),
        ([*ON_SLURM, "--out", "."], "--out=. is a folder"),
        ([*ON_SLURM, "--time", "5"], "--time=5 is too short"),
        ([*ON_SLURM, "--time", "soon"], "is not a time of Slurm's"),
        ([*ON_SLURM, "--partition", "a b"], "--partition=a b is not"),
        ([*ON_SLURM, "--image", "i"], "--image is for kubernetes and modelarts"),
        (["sky", "mae-vit-base", *PLACES], "--accelerator NAME is missing"),
        (["sky", "mae-vit-base", *PLACES, "output=runs/x", *GOOD["sky"]], "output=runs/x is not there on"),
        (["sky", "mae-vit-base", *PLACES, "device=cpu", *GOOD["sky"]], "with device=cpu; leave out one"),
        (["kubernetes", "mae-vit-base", *PLACES], "--image NAME is missing"),
        (["kubernetes", "mae-vit-base", *PLACES, "engine=mindspore", *GOOD["kubernetes"]], "set engine=torch"),
        (["kubernetes", "mae-vit-base", *PLACES, *GOOD["kubernetes"], "--volume", "data"], "is not of the form CLAIM:"),
        (
            ["kubernetes", "mae-vit-base", *PLACES, "init=m", "--image", "i", "--volume", "c:/data"],
            "a place below /data",
        ),
        (["modelarts", "mae-vit-base", *PLACES, "--image", "i"], "--flavor is missing"),
        (["modelarts", "mae-vit-base", *PLACES, *GOOD["modelarts"], "--submit"], "has no command to submit with"),
    ],
)
def test_a_job_that_would_die_at_its_start_is_not_printed(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["launch", *arguments]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.out == ""


@pytest.mark.parametrize("size", ["8", "x8", "2x", "0x8", "2x8x2", "twox8"])
def test_a_size_is_nodes_and_cards(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["launch", "slurm", "mae-vit-base", *PLACES, "--size", size])
    assert f"{size!r} is not of the form NODESxCARDS, such as 16x8" in capsys.readouterr().err


@pytest.mark.parametrize(("platform", "tool"), [("slurm", "sbatch"), ("sky", "sky"), ("kubernetes", "kubectl")])
def test_submitting_needs_the_platform_s_command(
    platform: str, tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["launch", platform, "mae-vit-base", *PLACES, *GOOD[platform], "--submit"]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(command) == 2
    assert f"--submit needs {tool}, which is not on the PATH" in capsys.readouterr().err
    stand_in = tmp_path / tool
    stand_in.write_text(f"#!{sys.executable}\nimport sys\nprint(open(sys.argv[-1]).read())\n")
    stand_in.chmod(0o755)
    assert main(command) == 0
    assert "unmask pretrain mae-vit-base" in capsys.readouterr().out
    out = tmp_path / "a job"
    assert main([*command[:-1], "--out", str(out)]) == 0
    assert shlex.split(capsys.readouterr().out.partition("with: ")[2])[-1] == str(out)
    assert main([*command, "--out", str(out)]) == 0
    assert out.read_text().rstrip() == capsys.readouterr().out.rstrip()
    stand_in.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('error: one\\n  two')\n")
    assert main(command) == 2
    assert f"{tool} refused the job: error: one two" in capsys.readouterr().err


def same(ours: Any, theirs: Any) -> None:
    """Whatever we wrote is what was read, and was not passed over."""
    if isinstance(ours, dict):
        for key, value in ours.items():
            assert key in theirs, key
            same(value, theirs[key])
    elif isinstance(ours, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            same(one, other)
    else:
        assert ours == theirs


@pytest.mark.parametrize(
    ("places", "options"),
    [
        (PLACES, Options(image="registry/unmask:1")),
        (["data.train=/shared/我的 data", "output=/shared/runs/x"], Options(image="i", volume="claim:/shared")),
        ([*PLACES, "device=cpu"], Options(image="i")),
    ],
)
def test_kubeflow_s_own_models_take_the_train_job(places: list[str], options: Options) -> None:
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="kubeflow-trainer-api is not installed")
    job = prepare("mae-vit-base", [*places, "data.workers=7"], 4, 8)
    manifest = yaml.safe_load(written("kubernetes", job, options))
    read = models.TrainerV1alpha1TrainJob.from_dict(manifest).to_dict()
    same(manifest, read)
    spec = manifest["spec"]
    assert spec["trainer"]["numNodes"] == 4
    assert spec["trainer"]["numProcPerNode"] == 8
    assert spec["trainer"]["resourcesPerNode"]["limits"]["cpu"] == "64"
    manifest["spec"]["trainer"]["numNodes"] = "four"
    with pytest.raises(ValueError, match="numNodes"):
        models.TrainerV1alpha1TrainJob.from_dict(manifest)


@pytest.mark.campaign
def test_the_variables_of_kubeflow_s_runtime_connect_two_nodes(tmp_path: Path) -> None:
    """Which tell torchrun what its options would; the command alone is the job's."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    small = [*TINY_MODEL, "train.batch_size=16", "train.epochs=0.1", "optimizer.warmup_epochs=0"]
    job = prepare("mae-vit-tiny", ["data.train=bundled:mnist5k/train", "output=/shared/run", *small], 2, 1)
    trainer = yaml.safe_load(written("kubernetes", job, Options(image="i", volume="claim:/shared")))["spec"]["trainer"]
    command = [word.replace("/shared", str(tmp_path)) for word in [*trainer["command"], *trainer["args"]]]
    (port,) = free_ports(1)
    told = {"NNODES": trainer["numNodes"], "NPROC_PER_NODE": trainer["numProcPerNode"], "MASTER_PORT": port}
    told |= {"MASTER_ADDR": "127.0.0.1"}
    nodes = [
        subprocess.Popen(
            [TOOLS / command[0], *command[1:]],
            env=ENVIRONMENT | {f"PET_{name}": str(value) for name, value in {**told, "NODE_RANK": rank}.items()},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (1, 0)
    ]
    said = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0]
    assert "25 steps, 2 processes" in said[1]


@pytest.mark.parametrize("size", [(1, 1), (4, 8)])
def test_skypilot_reads_the_task(size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    sky = pytest.importorskip("sky", reason="skypilot is not installed (460 MB with what it needs)")
    file = tmp_path / "job.yaml"
    file.write_text(written("sky", prepare("mae-vit-base", PLACES, *size), PLATFORMS["sky"]), encoding="utf-8")
    task = sky.Task.from_yaml(str(file))
    assert task.num_nodes == size[0]
    (resources,) = task.resources
    assert resources.accelerators == {"H100": size[1]}
    assert resources.job_recovery["max_restarts_on_errors"] == 3
    assert "unmask" in task.run
    file.write_text(file.read_text().replace("num_nodes", "num_nodez"))
    with pytest.raises(ValueError, match="num_nodez"):
        sky.Task.from_yaml(str(file))


def test_huawei_s_own_models_take_the_training_job() -> None:
    models = pytest.importorskip("huaweicloudsdkmodelarts.v1", reason="huaweicloudsdkmodelarts is not installed")
    job = prepare("mae-vit-base", [*PLACES, "engine=mindspore"], 4, 8)
    body = json.loads(written("modelarts", job, PLATFORMS["modelarts"]))

    def check(value: Any, kind: str) -> None:
        """`value` has the names and types of the model `kind`, as the client sends them."""
        if kind.startswith("dict("):
            assert all(isinstance(each, str) for each in value.values())
        elif kind in ("str", "int"):
            assert isinstance(value, {"str": str, "int": int}[kind])
        else:
            model = getattr(models, kind)
            for name, each in value.items():
                assert name in model.attribute_map.values(), f"{kind}.{name}"
                check(each, model.openapi_types[name])

    check(body, "Job")
    assert re.fullmatch(r"[\w-]{1,64}", body["metadata"]["name"], re.A)
    assert body["spec"]["resource"] == {"flavor_id": "modelarts.pool.visual.8xlarge", "node_count": 4}
