"""Hook of mkdocs: the pages of the reference, made from the code when the site is built.

`index.md` is the README without its headline links; nothing that is made here is kept in the repository.
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "build" / "pages"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Build from a copy of docs/ with what is made beside it: the plugin for languages knows files, not texts."""
    shutil.rmtree(PAGES, ignore_errors=True)
    shutil.copytree(ROOT / "docs", PAGES, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for file in PAGES.glob("*.zh-CN.md"):  # the theme speaks zh
        file.rename(PAGES / file.name.replace(".zh-CN.", ".zh."))
    (PAGES / "reference").mkdir()
    made = {
        "index.md": readme("README.md"),
        "index.zh.md": readme("README.zh-CN.md"),
        "reference/commands.md": commands(),
        "reference/keys.md": keys(),
        "reference/recipes.md": recipes(),
        "reference/python.md": python(),
        "reference/exit-codes.md": exit_codes(),
    }
    for name, text in made.items():
        (PAGES / name).write_text(text, encoding="utf-8")
    config.docs_dir = str(PAGES)
    return config


def on_page_markdown(markdown: str, **_: object) -> str:
    """Links as they are in the repository, as the site has them."""
    markdown = re.sub(r"^\[(?:中文|English)\]\([\w.-]+\)\n", "", markdown, flags=re.M)  # the site has a switch
    markdown = re.sub(r"\[([^\]]*)\]\((?:\.\./)+(?!README)[^)]*\)", r"\1", markdown)  # files that only the clone has
    markdown = re.sub(r"\]\(\.\./README(?:\.zh-CN)?\.md", "](index.md", markdown)
    return markdown.replace(".zh-CN.md", ".md")


@event_priority(-200)  # after the plugin for languages, which puts their indices together
def on_post_build(config: MkDocsConfig) -> None:
    """The index as a script: opened from a folder, a page may not read other files."""
    index = Path(config.site_dir) / "search" / "search_index.json"
    index.with_suffix(".js").write_text(f"var __index = {index.read_text(encoding='utf-8')}", encoding="utf-8")


def readme(name: str) -> str:
    text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
    text = re.sub(r"^\[!\[.*\n", "", text, flags=re.M)  # badges come from other hosts
    return re.sub(r"\[([^\]]*)\]\((?:src/[^)]*|CONTRIBUTING\.md|CITATION\.cff|LICENSE)\)", r"\1", text)


def commands() -> str:
    from unmask.cli import grammar

    _, found = grammar()
    parts = ["# Command line\n\nEvery command answers `--help` with what stands here.\n"]
    for name, command in found.named.items():
        command.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=100)
        parts.append(f"## unmask {name}\n\n```text\n{command.format_help().rstrip()}\n```\n")
    return "\n".join(parts)


def keys() -> str:
    from unmask.config.reference import as_markdown

    return f"# Configuration keys\n\nOf one recipe, as it stands: `unmask config RECIPE`.\n\n{as_markdown()}"


def recipes() -> str:
    from unmask.config.load import load_config, recipe_header, recipe_names, task_of

    rows = ["# Recipes\n", "| recipe | task | what | hardware |", "|---|---|---|---|"]
    for name in recipe_names():
        head = {key: value.replace("|", "\\|") for key, value in recipe_header(name).items()}
        rows.append(f"| `{name}` | {task_of(load_config(name))} | {head['what']} | {head['hardware']} |")
    return "\n".join(rows) + "\n"


def python() -> str:
    import unmask

    names = [name for name in unmask.__all__ if not name.startswith("_") and name not in ("Config", "errors")]
    return "# Python\n\n" + "\n".join(f"::: unmask.{unmask.HOMES[name]}.{name}\n" for name in names)


def exit_codes() -> str:
    from unmask import errors

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    rows = {kind.exit_code: kind.__doc__ for kind in kinds if "exit_code" in vars(kind)}
    table = "\n".join(f"| {code} | {text} |" for code, text in sorted(rows.items()))
    return (
        f"# Exit codes\n\n| code | when |\n|---|---|\n| 0 | Done. |\n{table}\n| 130 | Ctrl-C. |\n| 143 | SIGTERM. |\n"
    )
