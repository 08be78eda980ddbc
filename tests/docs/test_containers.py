"""What the container files start are commands of ours, without rights, as the page says; CI builds the image."""

from __future__ import annotations

import re
import shlex
import tomllib
from typing import Any

import yaml

from pages import ROOT, blocks
from unmask.cli import grammar
from unmask.config.load import load_config

EXAMPLES = ROOT / "examples" / "containers"
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def check(words: list[str]) -> None:
    """What a container is told is a command, and its settings are those of a recipe."""
    options, rest = grammar()[1].named[words[0]].parse(words[1:])
    assert not rest, words
    if words[0] == "pretrain":
        load_config(options.recipe, options.settings)


def test_the_page_and_the_examples_start_commands_that_exist() -> None:
    assert blocks("text", "docs/containers.md") == blocks("text", "docs/containers.zh-CN.md")
    (block,) = blocks("text", "docs/containers.md")
    shown = [shlex.split(line) for line in block.splitlines() if " run " in line]
    for words in shown:
        check(words[next(i for i, word in enumerate(words) if word.startswith("unmask")) + 1 :])
    services = yaml.safe_load((EXAMPLES / "compose.yaml").read_text(encoding="utf-8"))["services"]
    assert services.keys() == {"pretrain", "serve"}
    for service in services.values():
        check(service["command"])
        assert service["user"]
        assert service["cap_drop"] == ["ALL"]
    pod: dict[str, Any] = yaml.safe_load((EXAMPLES / "job.yaml").read_text(encoding="utf-8"))["spec"]["template"][
        "spec"
    ]
    (container,) = pod["containers"]
    check(container["args"])
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_the_image_holds_what_it_names() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    (chosen,) = re.findall(r"^ARG EXTRAS=(.*)$", DOCKERFILE, re.M)
    assert set(chosen.split(",")) <= extras.keys()
    copied = [word for line in re.findall(r"^COPY (?!--)(.*)$", DOCKERFILE, re.M) for word in line.split()[:-1]]
    assert all((ROOT / name).exists() for name in copied)
    kept = re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.M)
    assert set(copied) == set(kept)
    assert re.findall(r"^USER (.*)$", DOCKERFILE, re.M) == [
        "1000"
    ]  # Kubernetes cannot tell by a name that it is not root
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "container.yml").read_text(encoding="utf-8"))
    assert any("smoke.sh" in step.get("run", "") for step in workflow["jobs"]["build-and-run"]["steps"])
