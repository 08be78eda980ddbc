"""Asking for help must not cost the start of a framework."""

import subprocess
import sys

import pytest

HEAVY = {
    "PIL",
    "grain",
    "matplotlib",
    "mindspore",
    "numpy",
    "pyarrow",
    "pydantic",
    "rich",
    "safetensors",
    "tensorboardX",
    "torch",
    "transformers",
    "yaml",
}


def imported_by(code: str) -> set[str]:
    """Top-level names of the modules a fresh interpreter has loaded after running the code."""
    tail = "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules}, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code + tail], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("arguments", [["--help"], ["pretrain", "--help"]])
def test_help_imports_nothing_but_the_standard_library(arguments: list[str]) -> None:
    code = f"""
import contextlib, io
from unmask.cli import main
with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
    main({arguments!r})
if "unmask" not in shown.getvalue():
    raise RuntimeError("no help was shown")"""
    loaded = imported_by(code)
    assert "argparse" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("module", ["unmask", "unmask.errors", "unmask.schedules"])
def test_light_modules_import_nothing_heavy(module: str) -> None:
    assert not imported_by(f"import {module}") & HEAVY


@pytest.mark.parametrize("module", ["unmask.report.log", "unmask.report.pictures", "unmask.config.schema"])
def test_no_framework_and_no_plotting_is_imported_before_it_is_used(module: str) -> None:
    assert not imported_by(f"import {module}") & {"grain", "matplotlib", "mindspore", "PIL", "tensorboardX", "torch"}
