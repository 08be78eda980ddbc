"""Before a release is built: make the README's links absolute and name the project's pages, in the tree that is built.

    python release/addresses.py https://github.com/OWNER/NAME

A package index shows README.md far from the repository, where relative links lead nowhere. The address is known where a
release is made (on GitHub `$GITHUB_SERVER_URL/$GITHUB_REPOSITORY`), so nothing in the repository depends on where it is
kept, and a fork names itself. Links go to the tag of the version, whose files do not change any more.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def absolute(readme: str, address: str, version: str) -> str:
    """The text with every relative link and picture under `address`, at the tag of `version`."""

    def page(kind: str, target: str) -> str:
        if target.startswith("../../"):  # pages of the host that are no files, such as the runs of CI
            return f"{address}/{target.removeprefix('../../')}"
        return f"{address}/{kind}/v{version}/{target}"

    relative = r"\((?!https?:|#)([^)\s]+)\)"
    readme = re.sub(rf"(!\[[^\]]*\]){relative}", lambda match: f"{match[1]}({page('raw', match[2])})", readme)
    return re.sub(rf"\]{relative}", lambda match: f"]({page('blob', match[1])})", readme)


def urls(address: str, version: str) -> str:
    """The section of pyproject.toml, with the names that an index knows icons for."""
    pages = {
        "Homepage": address,
        "Documentation": f"{address}/tree/v{version}/docs",
        "Changelog": f"{address}/blob/v{version}/CHANGELOG.md",
        "Source": address,
        "Issues": f"{address}/issues",
    }
    return "[project.urls]\n" + "".join(f'{name} = "{page}"\n' for name, page in pages.items())


def main(address: str) -> None:
    address = address.rstrip("/")
    project = ROOT / "pyproject.toml"
    text = project.read_text(encoding="utf-8")
    version = tomllib.loads(text)["project"]["version"]
    if "[project.urls]" in text:
        sys.exit("pyproject.toml has [project.urls] already: it was prepared before; take a fresh clone")
    project.write_text(f"{text.rstrip()}\n\n{urls(address, version)}", encoding="utf-8")
    readme = ROOT / "README.md"
    readme.write_text(absolute(readme.read_text(encoding="utf-8"), address, version), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1].startswith("https://"):
        sys.exit("usage: python release/addresses.py https://HOST/OWNER/NAME")
    main(sys.argv[1])
