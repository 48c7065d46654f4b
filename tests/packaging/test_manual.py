# SPDX-License-Identifier: Apache-2.0
"""Manual pages and completions, made of the program's own words as the packages make them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hvring.cli import COMMANDS
from hvring.daemon.config.schema import sections

TREE = Path(__file__).parents[2]


def made(what: str, directory: Path) -> Path:
    environment = os.environ | {"SOURCE_DATE_EPOCH": "1700000000"}
    subprocess.run([sys.executable, TREE / "packaging" / what, directory], check=True, env=environment)
    return directory


@pytest.fixture(scope="module")
def manual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made("manual", tmp_path_factory.mktemp("manual"))


@pytest.fixture(scope="module")
def completions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("shtab", reason="shtab makes the completions")
    return made("completions", tmp_path_factory.mktemp("completions"))


def shown(page: Path) -> str:
    """The page as a terminal shows it, without bold and underline, in one line."""
    if shutil.which("mandoc") is None:
        pytest.skip("mandoc is not installed")
    text = subprocess.run(
        ["mandoc", "-T", "ascii", "-O", "width=1000", page], check=True, capture_output=True, text=True
    ).stdout
    while (place := text.find("\b")) >= 0:
        text = text[: place - 1] + text[place + 1 :]
    return " ".join(text.split())


def test_a_page_for_each_command_and_one_for_the_file(manual: Path) -> None:
    pages = {"hvring.1", "hvring.toml.5"} | {f"hvring-{name}.1" for name in COMMANDS}
    assert {page.name for page in manual.iterdir()} == pages
    assert ".Dd November 14, 2023\n" in (manual / "hvring.1").read_text()


def test_mandoc_has_nothing_to_say(manual: Path) -> None:
    if shutil.which("mandoc") is None:
        pytest.skip("mandoc is not installed")
    for page in sorted(manual.iterdir()):
        found = subprocess.run(
            ["mandoc", "-T", "lint", "-W", "warning", page], capture_output=True, text=True, check=False
        )
        assert (found.stdout, found.returncode) == ("", 0)


def test_options_and_verbs_are_there(manual: Path) -> None:
    run = shown(manual / "hvring-run.1")
    assert "--max-frozen SECONDS" in run
    assert "[--real | --rehearse]" in run
    host = shown(manual / "hvring-host.1")
    assert "hvring host kvp set [--json] KEY VALUE [--pool POOL]" in host
    assert "hvring host --socket /tmp/hv backup --hold 5 freeze, wait five seconds, thaw" in host


def test_every_setting_has_its_default_and_its_words(manual: Path) -> None:
    page = shown(manual / "hvring.toml.5")
    for section in sections().values():
        assert f"[{section.name}]" in page
        for knob in section.knobs.values():
            assert f" {knob.name} = " in page
    assert 'ways = ["logind", "systemctl", "init", "command"]' in page
    assert "max_frozen = 60.0 Seconds after which the service thaws, whatever the host says" in page


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["ru"], {"run"}),
        (["run", "--virt"], {"--virtual"}),
        (["run", "hear"], {"heartbeat"}),
        (["run", "--via", ""], {"auto", "uio", "utils"}),
        (["kvp", "exp"], {"export"}),
        (["run", "--config", "{here}/hvring.t"], {"{here}/hvring.toml"}),
        (["host", "--socket", "/tmp/hv", "back"], {"backup"}),
    ],
)
def test_bash_completes(completions: Path, tmp_path: Path, words: list[str], offered: set[str]) -> None:
    (tmp_path / "hvring.toml").touch()
    words = [word.format(here=tmp_path) for word in words]
    script = (
        f'source "{completions}/hvring"; words=$#; COMP_WORDS=(hvring "$@"); COMP_CWORD=$words\n'
        'function=$(complete -p hvring); function=${function#*-F }; "${function%% *}"\n'
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    answer = subprocess.run(["bash", "-c", script, "-", *words], check=True, capture_output=True, text=True)
    assert set(answer.stdout.split()) == {word.format(here=tmp_path) for word in offered}


def test_zsh_can_read_it(completions: Path) -> None:
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    subprocess.run(["zsh", "-n", completions / "_hvring"], check=True)
