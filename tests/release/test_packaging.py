"""What a release holds: the distributions are built from a copy of the repository, as the release workflow does."""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ADDRESS = "https://example.org/owner/unmask"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BUILD = """
import sys
from setuptools import build_meta
folder = sys.argv[1]
build_meta.build_sdist(folder)
build_meta.build_wheel(folder)
"""
"""setuptools changes sys.argv as it goes."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """The tree that was built, the sdist and the wheel."""
    tree, dist = (tmp_path_factory.mktemp(name) for name in ("tree", "dist"))
    hidden = shutil.ignore_patterns(".git", ".venv", ".cache", "build", "runs", "*.egg-info", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, tree, symlinks=True, ignore=hidden, dirs_exist_ok=True)
    subprocess.run([sys.executable, tree / "release" / "addresses.py", ADDRESS], check=True)
    subprocess.run([sys.executable, "-c", BUILD, dist], cwd=tree, check=True, capture_output=True)
    return tree, next(dist.glob("*.tar.gz")), next(dist.glob("*.whl"))


def test_what_an_index_shows_leads_somewhere(built: tuple[Path, Path, Path]) -> None:
    tree, _, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        name = f"unmask-{PROJECT['version']}.dist-info/METADATA"
        shown = email.message_from_string(archive.read(name).decode())
    assert shown["Description-Content-Type"] == "text/markdown"
    assert {f"Homepage, {ADDRESS}", f"Issues, {ADDRESS}/issues"} <= set(shown.get_all("Project-URL", []))
    readme = str(shown.get_payload())
    targets = re.findall(r"\]\(([^)]+)\)", readme)
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []
    at = f"{ADDRESS}/(?:blob|raw)/v{PROJECT['version']}/"
    ours = [re.sub(f"^{at}", "", target) for target in targets if re.match(at, target)]
    assert len(ours) > 5
    assert [target for target in ours if not (tree / target.partition("#")[0]).exists()] == []
    assert all(re.match(f"{ADDRESS}/raw/", target) for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", readme) if
               target.startswith(ADDRESS) and "/actions/" not in target)  # fmt: skip


def test_the_wheel_holds_the_package_and_the_sdist_the_repository(built: tuple[Path, Path, Path]) -> None:
    tree, sdist, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    source = tree / "src"
    files = {str(file.relative_to(source)) for file in (source / "unmask").rglob("*") if file.is_file()}
    assert packed == {file for file in files if "__pycache__" not in file}
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("tests/conftest.py", "tests/engines/golden/pretrain.json", "docs/design.md", "constraints.txt"):
        assert name in names
    listed = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True)
    if listed.returncode == 0:  # not where the tests run from an sdist
        assert {name for name in listed.stdout.split() if (ROOT / name).is_file()} - names == set()


def test_a_tree_is_prepared_once(built: tuple[Path, Path, Path]) -> None:
    again = [sys.executable, built[0] / "release" / "addresses.py", ADDRESS]
    done = subprocess.run(again, capture_output=True, text=True)
    assert done.returncode == 1
    assert "fresh clone" in done.stderr


def test_files_about_the_release_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8"))
    tested = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert [f"Programming Language :: Python :: {version}" in PROJECT["classifiers"] for version in tested] == [
        True
    ] * 3
    assert workflow["jobs"]["publish"]["permissions"] == {"id-token": "write"}
    assert "id-token" not in workflow["permissions"]
    assert yaml.safe_load((ROOT / "release" / "environment.yml").read_text(encoding="utf-8"))["name"] == "unmask"
    subprocess.run(["bash", "-n", ROOT / "release" / "smoke.sh"], check=True)


@pytest.mark.campaign
def test_the_installed_wheel_works_outside_the_clone(built: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """In an environment that sees the libraries of this one, and of unmask the wheel alone."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    venv.create(tmp_path / "clean", with_pip=True)
    (site,) = (tmp_path / "clean" / "lib").glob("python*/site-packages")
    python = tmp_path / "clean" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", built[2]], check=True)
    (site / "zz_libraries.pth").write_text(str(Path(pytest.__file__).parents[1]))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["PATH"] = f"{tmp_path / 'clean' / 'bin'}:{environment['PATH']}"
    command = ["bash", ROOT / "release" / "smoke.sh", PROJECT["version"]]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
