# SPDX-License-Identifier: Apache-2.0
"""Hooks that Python packages bring."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hook_scripts import TIMEOUT, Scripts, Still

from hvring.errors import EffectError
from hvring.guest.hooks import entry_point
from hvring.guest.hooks.freezer import HookedFreezer
from hvring.guest.hooks.timeouts import Timeouts
from hvring.guest.launch import PLAIN

MODULE = """
import os
LOG = {log!r}

def say(words):
    with open(LOG, "a") as log:
        log.write(words + "\\n")

class Holder:
    token = ""
    def prepare(self): say("holder prepare")
    def freeze(self): say("holder freeze"); self.token = os.urandom(4).hex()
    def thaw(self): say("holder thaw") if self.token else say("who?")
    def abort(self): say("holder abort") if self.token else say("who?")

class Plain:
    def freeze(self):
        say("plain freeze")
        if os.path.exists(LOG + ".fail"):
            raise SystemExit("plain does not want to")
"""


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scripts:
    """A package with two entry points, for this process and for those that it starts."""
    made = Scripts(tmp_path)
    packages = tmp_path / "packages"
    (packages / "quiet-1.dist-info").mkdir(parents=True)
    (packages / "quiet.py").write_text(MODULE.format(log=str(made.log)))
    (packages / "quiet-1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: quiet\nVersion: 1\n"
    )
    (packages / "quiet-1.dist-info" / "entry_points.txt").write_text(
        "[hvring.hooks]\nplain = quiet:Plain\nholder = quiet:Holder\n"
    )
    monkeypatch.syspath_prepend(str(packages))
    # Where a package is installed, its path needs no word.
    program = f"import sys; sys.path.insert(0, {str(packages)!r}); " + entry_point._PROGRAM
    monkeypatch.setattr(entry_point, "_PROGRAM", program)
    return made


def test_an_object_stays_across_the_freeze(scripts: Scripts) -> None:
    assert entry_point.names()[-2:] == ["holder", "plain"]
    (hook,) = entry_point.hooks(["holder"], 0)

    def run(phase: str, said: str = "") -> str:
        words = [*hook.argv, phase]
        done = subprocess.run(words, input=said, capture_output=True, text=True, check=True, timeout=TIMEOUT)
        return done.stdout

    assert run("prepare") == ""
    assert run("freeze", "thaw\n") == "held\n"
    assert run("freeze") == "held\n"
    assert run("abort") == ""
    assert scripts.lines() == [
        *("holder prepare", "holder freeze", "holder thaw", "holder freeze", "holder abort", "who?")
    ]
    (hook,) = entry_point.hooks(["plain"], 0)
    assert run("freeze") == run("thaw") == ""


@pytest.mark.parametrize("fails", [False, True])
def test_they_are_run_around_a_freeze(scripts: Scripts, fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if fails:
        Path(f"{scripts.log}.fail").touch()
    # The process that runs them makes the same command lines of their names: with the path of the test in them.
    root = Path(entry_point.__file__).parents[3]
    main = scripts.folder / "main.py"
    main.write_text(
        f"import sys\nsys.path.insert(0, {str(root)!r})\nfrom hvring.guest.hooks import entry_point\n"
        f"entry_point._PROGRAM = {entry_point._PROGRAM!r}\n"
        "from hvring.guest.hooks.runner import main\nmain(sys.argv[1:])\n"
    )
    monkeypatch.setattr("hvring.guest.hooks.launch._PROGRAM", str(main))
    monkeypatch.setattr(entry_point, "names", lambda: ["holder", "plain"])
    scripts.add("10-native")
    freezer = HookedFreezer(
        Still(scripts),
        [(str(scripts.directory), "native")],
        Timeouts(TIMEOUT, 10 * TIMEOUT, 10 * TIMEOUT),
        entry_points=True,
        answer=10 * TIMEOUT,
        ways=lambda: [PLAIN],
    )
    if fails:
        with pytest.raises(
            EffectError, match=r"^the hook plain at freeze: exit status 1: plain does not want to$"
        ):
            freezer.freeze()
        assert scripts.lines()[-3:] == ["plain freeze", "holder abort", "10-native abort"]
        return
    freezer.freeze()
    freezer.thaw()
    assert scripts.lines() == [
        *("10-native prepare", "holder prepare", "10-native freeze", "holder freeze", "plain freeze"),
        *("- frozen", "- thawed", "holder thaw", "10-native thaw"),
    ]
