"""The CPU path with the calls taken away that Windows lacks, and among them those that macOS lacks.

What our libraries need of them is loaded first: elsewhere these have others in their place.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runs import ENVIRONMENT, TINY_MODEL
from unmask.doctor import _memory

pytest.importorskip("torch", reason="torch is not installed")

CODE = """
import os, signal, sys, types
import filelock, grain, mlxtend.data, torch, torch._dynamo
for name in ["shutil", *(name for name in sys.modules if name.startswith("filelock."))]:
    vars(sys.modules[name])["os"] = types.SimpleNamespace(**vars(os))
for name in ("fcntl", "pwd", "resource", "termios"):
    sys.modules[name] = None
for name in ("O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK chown fork geteuid getuid killpg pread pwrite "
             "register_at_fork sched_getaffinity statvfs sysconf").split():
    delattr(os, name)
for name in "SIGBUS SIGHUP SIGKILL SIGUSR1 pthread_sigmask setitimer".split():
    delattr(signal, name)
from unmask.cli import main
sys.exit(main(sys.argv[1:]))
"""


def unmask(*arguments: str, cwd: Path) -> str:
    """What `unmask ARGUMENTS` prints in a process without them."""
    command = [sys.executable, "-c", CODE, *arguments]
    done = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_cpu_path_needs_no_call_that_windows_or_macos_lacks(tmp_path: Path) -> None:
    pretrain = ["pretrain", "mae-vit-tiny", "data.train=bundled:mnist5k", "data.workers=0", "output=run", *TINY_MODEL]
    pretrain += ["train.batch_size=1000", "train.checkpoint_every=0.2", "train.epochs=1"]
    assert "5 steps" in unmask(*pretrain, cwd=tmp_path)
    assert "resumed after step 5" in unmask(*pretrain, cwd=tmp_path)
    (tmp_path / "images").mkdir()
    for value in range(3):
        Image.new("L", (28, 28), 80 * value).save(tmp_path / "images" / f"{value}.png")
    unmask("embed", "run", "images", "--out", "features.npy", "--device", "cpu", cwd=tmp_path)
    assert np.load(tmp_path / "features.npy").shape == (3, 32)


def test_memory_is_not_told_where_the_system_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "GiB" in _memory()
    monkeypatch.delattr(os, "sysconf")
    assert _memory() == ""
