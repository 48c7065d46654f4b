# SPDX-License-Identifier: Apache-2.0
"""What the documents point to exists: files, settings, commands and their words, floors, decisions."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import hvring
from hvring.cli import COMMANDS, parser
from hvring.daemon.config.schema import sections

ROOT = Path(__file__).parents[1]
PACKAGES = Path(hvring.__file__).parents[1]  # elsewhere if it is installed
README = ROOT / "README.md"
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "packaging/**/*.md", "benchmarks/*.md", "tests/**/*.md")
    for path in ROOT.glob(pattern)
)
#: What was once and is no more stands there, too.
HISTORY = ROOT / "CHANGELOG.md"
_FOLDERS = "hvring|tests|docs|packaging|examples|benchmarks"


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


def fenced(text: str, language: str) -> Iterator[str]:
    """The blocks of that language, "" for those that name none."""
    for found, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        if found == language:
            yield block


@pytest.mark.parametrize("path", DOCUMENTS, ids=ids)
def test_links_and_paths_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    missing = []
    for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", text):
        if "://" not in target and not (path.parent / target).exists():
            missing.append(target)
    if path != HISTORY:
        for target in re.findall(rf"`((?:{_FOLDERS})/[\w./*-]*)", text):
            if not any(any(where.glob(target)) for where in (ROOT, PACKAGES)):
                missing.append(target)
    assert missing == []


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if path != HISTORY], ids=ids)
def test_settings_have_the_names_of_the_file(path: Path) -> None:
    known = {f"{section.name}.{knob}" for section in sections().values() for knob in section.knobs}
    named = re.findall(rf"`((?:{'|'.join(sections())})\.[a-z_]+)\b", path.read_text(encoding="utf-8"))
    # what ends like that is a file
    assert [name for name in named if name not in known and not name.endswith((".py", ".c", ".txt"))] == []


def commands() -> Iterator[tuple[str, list[str]]]:
    """Each line of a shell that begins with `hvring`, and its words."""
    for path in (README, ROOT / "docs" / "administrators.md"):
        for block in fenced(path.read_text(encoding="utf-8"), "sh"):
            for line in block.splitlines():
                words = shlex.split(line, comments=True)
                if words and words[0] == "hvring":
                    yield line, words[1:]


@pytest.mark.parametrize("words", [pytest.param(words, id=" ".join(words)) for _, words in commands()])
def test_commands_are_understood(words: list[str]) -> None:
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            parser(words[0]).parse_args(words)
        except SystemExit:
            pytest.fail(said.getvalue())


def picture() -> str:
    (house,) = [block for block in fenced(README.read_text(encoding="utf-8"), "") if "floor 0" in block]
    return house


def test_the_picture_names_every_command() -> None:
    top = picture().split("floor 5")[0]
    assert set(re.findall(r"[a-z]+", top)) - {"floor", "hvring", "cli"} == set(COMMANDS)


def test_the_picture_has_the_floors_of_the_contract() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = project["tool"]["importlinter"]["contracts"]
    house = picture()
    lowest = -1
    for layer in contract["layers"]:
        found = [re.search(rf"{re.escape(name.strip())}\b", house) for name in layer.split("|")]
        places = [place.start() for place in found if place is not None]
        assert len(places) == len(found), layer
        assert min(places) > lowest, layer
        lowest = max(places)


def test_decisions_are_numbered_and_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(
        r"^\| (\d+) \| \[(.*)\]\((.*)\) \|$", (folder / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    there = []
    for path in sorted(folder.glob("[0-9]*.md")):
        number, title = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ").split(". ", 1)
        assert path.name.startswith(f"{int(number):04}-")
        there.append((number, title, path.name))
    assert listed == there
    assert [int(number) for number, _, _ in there] == list(range(1, len(there) + 1))
