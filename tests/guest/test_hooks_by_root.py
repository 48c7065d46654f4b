# SPDX-License-Identifier: Apache-2.0
"""The process that runs hooks as a service manager starts it: it runs what the file says, and not what it is asked."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hook_scripts import HOLDS, TIMEOUT, Scripts, Still

from hvring.errors import EffectError
from hvring.guest.hooks import launch
from hvring.guest.hooks.found import Hook
from hvring.guest.hooks.freezer import HookedFreezer
from hvring.guest.hooks.rules import Rules, configured
from hvring.guest.hooks.timeouts import Timeouts
from hvring.guest.launch import Way
from hvring.reasons import Reason

PROGRAM = Path(launch.__file__).with_name("__main__.py")


class Manager:
    """As a socket unit with Accept=yes: one process for each connection, with that as its standard input."""

    def __init__(self, path: Path, environment: dict[str, str]) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self._environment = environment
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection:
                    self.processes.append(
                        subprocess.Popen(
                            [sys.executable, "-I", "-S", str(PROGRAM)],
                            stdin=connection,
                            stderr=subprocess.DEVNULL,
                            env=self._environment,
                        )
                    )

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        for process in self.processes:
            process.wait(TIMEOUT)


@pytest.fixture
def scripts(tmp_path: Path) -> Scripts:
    return Scripts(tmp_path)


@pytest.fixture
def manager(scripts: Scripts) -> Iterator[Manager]:
    config = scripts.folder / "hvring.toml"
    config.write_text(f'[vss]\nhooks = "{scripts.directory}"\n')
    made = Manager(scripts.folder / "socket", {**os.environ, "HVRING_CONFIG": str(config)})
    yield made
    made.close()


def hooked(scripts: Scripts, directory: Path | None = None) -> HookedFreezer:
    return HookedFreezer(
        Still(scripts),
        [(str(directory or scripts.directory), "native")],
        Timeouts(TIMEOUT, 10 * TIMEOUT, 10 * TIMEOUT),
        answer=10 * TIMEOUT,
        ways=lambda: [Way((), TIMEOUT, str(scripts.folder / "socket"))],
    )


def test_a_manager_starts_one_for_each_backup(scripts: Scripts, manager: Manager) -> None:
    scripts.add("10-one")
    scripts.add("20-holds", freeze=HOLDS)
    freezer = hooked(scripts)
    for _ in range(2):
        scripts.log.write_text("")
        freezer.freeze()
        freezer.thaw()
        scripts.check_ends("thaw")
    assert len(manager.processes) == 2


def test_another_one_takes_over_when_it_is_killed(scripts: Scripts, manager: Manager) -> None:
    scripts.add("10-one")
    scripts.add("20-holds", freeze=HOLDS)
    freezer = hooked(scripts)
    freezer.freeze()
    manager.processes[0].send_signal(signal.SIGKILL)
    assert select.select([freezer.watch()], [], [], TIMEOUT)[0]
    with pytest.raises(EffectError, match="was killed"):
        freezer.thaw()
    scripts.check_ends("abort")
    assert len(manager.processes) == 2


def test_a_directory_that_the_file_does_not_name_is_refused(scripts: Scripts, manager: Manager) -> None:
    other = scripts.folder / "other"
    other.mkdir(mode=0o755)
    scripts.add("10-one", other)
    with pytest.raises(EffectError, match="no others are run by root") as failed:
        hooked(scripts, other).freeze()
    assert failed.value.reason is Reason.HOOK_REFUSED
    assert scripts.lines() == []


def test_a_program_that_is_no_hook_is_not_run_for_who_says_that_it_took_over(
    scripts: Scripts, manager: Manager
) -> None:
    evil = ["/bin/sh", "-c", f"touch {scripts.folder}/evil"]
    request: dict[str, Any] = {
        "backup": "b",
        "directories": [],
        "only": None,
        "entry_points": [],
        "mounts": [],
        "timeout": TIMEOUT,
        "total": TIMEOUT,
        "hold": TIMEOUT,
        "hooks": [
            {
                "name": "evil",
                "argv": evil,
                "style": "native",
                "group": 0,
            }
        ],
        "known": [{"started": True, "ended": False, "held": False, "runs": False}],
    }
    runner = launch.start(Way((), TIMEOUT, str(scripts.folder / "socket")), request, [])
    runner.control.setblocking(True)
    runner.control.settimeout(TIMEOUT)
    said = []
    while raw := runner.control.recv(65536):
        said.append(json.loads(raw)["event"])
    runner.close(True)
    assert said == ["here"]
    assert not (scripts.folder / "evil").exists()


def test_what_a_file_configures() -> None:
    usual = [("/etc/hvring/hooks.d", "native")]
    assert configured({}) == usual
    assert configured({"hooks": "none"}) == []
    assert configured({"hooks": "none", "hooks_qemu_ga": ["/a"], "hooks_open_vm_tools": ["/b", "/c"]}) == [
        ("/a", "qemu-ga"),
        ("/b", "open-vm-tools"),
        ("/c", "open-vm-tools"),
    ]


@pytest.mark.parametrize("text", ["", "[vss", "vss = 3"])
def test_a_file_that_says_nothing_allows_what_is_usual(tmp_path: Path, text: str) -> None:
    path = tmp_path / "hvring.toml"
    path.write_text(text)
    for rules in (Rules.read(str(path)), Rules.read(str(tmp_path / "none"))):
        assert rules.allow("/etc/hvring/hooks.d", "native")
        assert not rules.allow(str(tmp_path), "native")
        assert not rules.entry_points
        with pytest.raises(ValueError, match="is no hook here"):
            rules.check([Hook("sh", ("/bin/sh",))])


def test_only_processes_of_the_same_unit_are_signalled(tmp_path: Path) -> None:
    own = os.pidfd_open(os.getpid())
    try:
        rules = Rules([])
        assert rules.is_one_of_ours(own)
        groups = {
            "self": "0::/system.slice/system-hvring\\x2dhooks.slice/hvring-hooks@1.service",
            str(os.getpid()): "0::/system.slice/ssh.service",
        }
        for name, group in groups.items():
            (tmp_path / name).mkdir()
            (tmp_path / name / "cgroup").write_text(group + "\n")
        assert not rules.is_one_of_ours(own, str(tmp_path))
        theirs = tmp_path / str(os.getpid()) / "cgroup"
        theirs.write_text(groups["self"].replace("@1", "@2") + "\n")
        assert rules.is_one_of_ours(own, str(tmp_path))
    finally:
        os.close(own)
