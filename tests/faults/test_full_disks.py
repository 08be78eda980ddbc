"""Every command that writes, on a real file system that becomes full: one line, nothing lost, nothing left over.

Run as a script, this file is the victim, in a mount namespace of its own: `python test_full_disks.py FOLDER`.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runs import ENVIRONMENT, TINY_MODEL

SHARES = (0.0, 0.4, 0.8, 0.97)
"""Of the room that a command needs, how much there is."""
GREY = ["--device", "cpu", "--set", "data.max_bad_share=0.1"]
TRAIN = [*TINY_MODEL, "data.train=photos", "train.batch_size=6", "train.epochs=1", "optimizer.warmup_epochs=0"]
COMMANDS: dict[str, list[str]] = {
    "pretrain": ["pretrain", "mae-vit-tiny", *TRAIN, "train.checkpoint_every=0.5", "output=small/run"],
    "finetune": ["finetune", "finetune-vit-tiny", *TRAIN, "augment.policy=null", "output=small/run"],
    "sweep-labels": [
        *("sweep-labels", "scratch-vit-tiny", *TRAIN, "augment.policy=null", "data.val=photos", "output=small/sweep"),
        *("--labels", "2", "--seeds", "0", "--steps", "1", "--arms", "scratch", "handmade"),
    ],
    "evaluate": ["evaluate", "classifier", "photos", "--device", "cpu", "--out", "small/evaluation"],
    "predict csv": ["predict", "classifier", "photos", *GREY, "--out", "small/p.csv"],
    "predict jsonl": ["predict", "classifier", "photos", *GREY, "--out", "small/p.jsonl"],
    "embed npy": ["embed", "mae", "photos", *GREY, "--batch-size", "2", "--out", "small/e.npy"],
    "embed parquet": ["embed", "mae", "photos", *GREY, "--out", "small/e.parquet"],
    "embed folder": ["embed", "mae", "photos", *GREY, "--batch-size", "2", "--out", "small/e/"],
    "knn": ["knn", "mae", "photos", "photos", "--k", "1", "--device", "cpu", "--cache", "small/features"],
    "probe": ["probe", "mae", "photos", "photos", "--device", "cpu", "--cache", "small/features"],
    "reconstruct": ["reconstruct", "mae", "photos", "--device", "cpu", "--out", "small/r.png"],
    "pack": ["pack", "photos", "small/pack", "--shard-size", "8K"],
    "stats": ["stats", "photos", "--out", "small/stats.json"],
    "check": ["check", "photos", "--smallest", "30", "--out", "small/check"],
    "replay": ["replay", "mae", "--step", "1", "--out", "small/replay"],
    "convert facebook": ["convert", "mae", "small/m.pth", "--to", "facebook"],
    "convert timm": ["convert", "classifier", "small/timm", "--to", "timm"],
    "convert transformers": ["convert", "mae", "small/transformers", "--to", "transformers"],
    "convert mindspore": ["convert", "mae", "small/m.ckpt", "--to", "mindspore"],
    "export onnx": ["export", "classifier", "small/c.onnx"],
    "export int8": ["export", "classifier", "small/c8.onnx", "--int8", "photos", *GREY[2:]],
    "export pt2": ["export", "classifier", "small/c.pt2"],
    "export mindir": ["export", "classifier", "small/c.mindir"],
    "report": ["report", "classifier", "--images", "6", "--out", "small/report.html", *GREY],
    "launch": ["launch", "slurm", "mae-vit-tiny", "data.train=p", "data.workers=1", "output=r", "--out", "small/job"],
}
SAME = {"evaluate", "predict csv", "predict jsonl", "embed npy", "pack", "stats", "check", "launch"}
"""Commands whose files are the same bytes each time."""


def photos(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(12):
        path = folder / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (28 + number, 40), np.uint8)).save(path)
    shutil.copy(folder / "a/00.png", folder / "a/copy.png")


# --- the victim -------------------------------------------------------------------------------------------------------


class Disk:
    """A file system of some size, as `small`, with a file of somebody else."""

    def __init__(self, size: int) -> None:
        Path("small").mkdir(exist_ok=True)
        self.mount(f"size={size}")
        Path("small/earlier").write_bytes(bytes(4096))

    def mount(self, options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", "small"], check=True)

    def grow(self) -> None:
        self.mount("remount,size=64m")

    def used(self) -> int:
        found = os.statvfs("small")
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def files(self) -> dict[str, bytes]:
        """By name, without the time in that of TensorBoard's."""
        paths = [path for path in Path("small").rglob("*") if path.is_file()]
        return {str(path.relative_to("small")).rstrip("0123456789"): path.read_bytes() for path in paths}

    def __enter__(self) -> Disk:
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "small"], check=True)


def run(words: list[str]) -> dict[str, Any]:
    from unmask.cli import main

    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code: Any = main(words)
        except BaseException as error:
            code = repr(error)
    return {"code": code, "err": err.getvalue()}


def victim(folder: Path, name: str) -> list[dict[str, Any]]:
    os.chdir(folder)
    words = COMMANDS[name]
    with Disk(64 << 20) as disk:
        whole = run(words)
        needed, wanted = disk.used() - 4096, disk.files()
    found: list[dict[str, Any]] = [{**whole, "needed": needed}]
    for share in SHARES:
        with Disk(4096 + int(share * needed) // 4096 * 4096) as disk:
            full = run(words)
            there = disk.files()
            disk.grow()
            again = run(words)
            same = disk.files() == wanted if name in SAME else disk.files().keys() >= wanted.keys()
        left = [path for path in there if "/.tmp-" in f"/{path}"]
        whole_already = all(there[path] == wanted[path] for path in there.keys() & wanted.keys() if name in SAME)
        facts = {"earlier": there["earlier"] == bytes(4096), "left": left, "again": again["code"], "same": same}
        found.append({"share": share, **full, **facts, "whole": whole_already})
    return found


def push(folder: Path) -> dict[str, Any]:
    """To a hub on loopback, with what is sent put together on a full disk."""
    from hub_server import TOKEN, connect, serving

    with pytest.MonkeyPatch.context() as patch, serving(folder / "hub") as hub, Disk(8192):
        connect(patch, hub, folder / "cache")
        patch.setenv("HF_TOKEN", TOKEN)
        patch.setattr(tempfile, "tempdir", "small")
        found = run(["push", "mae", "hf://someone/new"])
        return {**found, "left": sorted(path.name for path in Path("small").iterdir()), "repos": list(hub.repos)}


# --- the test ---------------------------------------------------------------------------------------------------------

UNSHARE = ["unshare", "--user", "--map-root-user", "--mount"]
NO_SPACE = shutil.which("unshare") is None or subprocess.run([*UNSHARE, "true"], capture_output=True).returncode != 0


QUICK = ("pretrain", "evaluate", "predict csv", "embed npy", "reconstruct", "check", "convert facebook", "launch")


@pytest.mark.skipif(NO_SPACE, reason="no file systems can be mounted here")
@pytest.mark.parametrize(
    "names", [QUICK, pytest.param([name for name in COMMANDS if name not in QUICK], marks=pytest.mark.campaign)]
)
def test_a_full_disk_is_one_line_and_loses_nothing(names: Sequence[str], tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    photos(tmp_path / "photos")
    command = [*UNSHARE, sys.executable, __file__, str(tmp_path), *names]
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(paths), "UNMASK_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    pushed = found.pop("push")
    assert pushed["code"] == 4, pushed
    assert re.search("No space left on device.*TMPDIR=FOLDER names another place", pushed["err"]), pushed
    assert pushed["err"].count("\n") == 1, pushed
    assert (pushed["left"], pushed["repos"]) == (["earlier"], []), pushed
    for name in names:
        whole, *full = found[name]
        assert whole["code"] == 0, whole
        assert any(one["code"] != 0 for one in full), name
        for one in full:
            if one["code"] != 0:  # the last pages may be those of a file that was written aside
                assert one["code"] in (1, 3, 4), one
                assert "No space left on device" in one["err"], one
                assert "small" in one["err"], one
                assert one["err"].startswith("unmask: "), one
                assert one["err"].count("\n") == 1, one
            assert one["earlier"], one
            assert not one["left"], one
            assert one["whole"], one
            assert one["again"] == 0, one
            assert one["same"], one


def script(folder: Path, names: Sequence[str]) -> None:
    os.chdir(folder)
    for words in (
        ["pretrain", "mae-vit-tiny", *TRAIN, "output=mae"],
        ["finetune", "finetune-vit-tiny", *TRAIN, "augment.policy=null", "output=classifier"],
    ):
        assert run(words)["code"] == 0
    print(json.dumps({**{name: victim(folder, name) for name in names}, "push": push(folder)}))


if __name__ == "__main__":
    script(Path(sys.argv[1]), sys.argv[2:])
