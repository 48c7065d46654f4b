# SPDX-License-Identifier: Apache-2.0
"""A freeze inside a unit of a real systemd: whatever ends the unit, nothing stays frozen (decision 0006)."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from manager_process import SYSTEMD
from writers import TIMEOUT, wait_for

pytestmark = pytest.mark.root

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
#: What the shipped unit says about its end.
KILL_SETTINGS = re.findall(
    r"^(?:KillMode|KillSignal|SendSIGKILL|OOMPolicy|TimeoutStopSec)=.*$",
    (ROOT / "packaging" / "systemd" / "hvring-vss.service").read_text(encoding="utf-8"),
    re.MULTILINE,
)


ROUNDS = max(5, int(os.environ.get("HVRING_CHAOS_ROUNDS", "30")) // 10)
SEED = os.environ.get("HVRING_CHAOS_SEED", "1")
IS_FROZEN = """
import fcntl, os, sys
try:
    fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0xC0045878, 0)
except OSError as problem:
    print("no" if problem.errno == 22 else problem)
else:
    print("it was")
"""


class Manager:
    """manager_process.py in the namespace of the mounts."""

    def __init__(self, namespace: Any, folder: Path, group: Path) -> None:
        self.folder = folder
        self._group = group
        into = f'echo 0 > {group}/cgroup.procs && exec "$@"'
        unshare = ("unshare", "--mount", "--pid", "--cgroup", "--fork", "--kill-child", "--mount-proc")
        self._process = subprocess.Popen(
            namespace.inside(
                "sh",
                "-c",
                into,
                "sh",
                *unshare,
                sys.executable,
                str(HERE / "manager_process.py"),
                str(folder),
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert self._answer() == "ready"

    def run(self, *command: str, fine: tuple[int, ...] = (0,)) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        self._process.stdin.flush()
        status, output = self._answer()
        assert status in fine, (command, output)
        return str(output)

    def control(self, *words: str) -> str:
        return self.run("systemctl", "--user", *words)

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        assert select.select([self._process.stdout], [], [], 2 * TIMEOUT)[0], "the manager hangs"
        line = self._process.stdout.readline()
        assert line, "no manager: " + (self.folder / "manager.log").read_text(errors="replace")
        return json.loads(line)

    def is_active(self) -> bool:
        return "ActiveState=active" in self.control("show", "hvring.service")

    def processes(self) -> set[str]:
        """The names of those that are left in any of the manager's groups."""
        found = set()
        for folder, _, _ in os.walk(self._group):  # groups come and go meanwhile
            with contextlib.suppress(OSError):
                for pid in Path(folder, "cgroup.procs").read_text().split():
                    found.add(Path(f"/proc/{pid}/comm").read_text().rstrip())
        return found

    def kill_group_of(self, unit: str) -> None:
        """As the kernel does for a whole control group."""
        for folder, _, _ in os.walk(self._group):
            if os.path.basename(folder) == unit:
                with contextlib.suppress(FileNotFoundError):  # it has ended by itself
                    Path(folder, "cgroup.kill").write_text("1")

    def end(self) -> None:
        (self._group / "cgroup.kill").write_text("1")
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def mounts(namespace: Any) -> list[str]:
    return [namespace.mount_image(name) for name in "abc"]


@pytest.fixture
def manager(
    namespace: Any, mounts: list[str], group: Path, processes: contextlib.ExitStack, tmp_path: Path
) -> Manager:
    """With a unit "hvring.service" that freezes the mounts and has the shipped unit's words about its end."""
    for tool in ("systemd-run", "systemctl", SYSTEMD):
        if shutil.which(tool) is None:
            pytest.skip(f"not installed: {tool}")
    folder = tmp_path / "manager"
    (folder / "units").mkdir(parents=True)
    settings = {
        "targets": mounts,
        "below": str(namespace.folder),
        "outside": os.readlink("/proc/self/ns/mnt"),
        "told": str(folder / "told"),
    }
    (folder / "settings").write_text(json.dumps(settings))
    program = f"{sys.executable} {HERE / 'managed_process.py'} {folder / 'settings'}"
    unit = ["[Unit]", "DefaultDependencies=no", "[Service]", f"ExecStart={program}", *KILL_SETTINGS]
    (folder / "units" / "hvring.service").write_text("\n".join(unit) + "\n")
    made = Manager(namespace, folder, group)
    processes.callback(made.end)
    return made


def test_whatever_ends_the_unit_leaves_nothing_frozen(
    namespace: Any, manager: Manager, mounts: list[str], write: Any
) -> None:
    told = manager.folder / "told"
    ends = {
        "the manager kills all of it": lambda: manager.control("kill", "--signal=KILL", "hvring.service"),
        "its process is killed": lambda: manager.control(
            "kill", "--signal=KILL", "--kill-whom=main", "hvring.service"
        ),
        "its control group is killed": lambda: manager.kill_group_of("hvring.service"),
        "it crashes": lambda: manager.control("kill", "--signal=SEGV", "--kill-whom=main", "hvring.service"),
        "it is stopped": lambda: manager.control("stop", "hvring.service"),
    }
    for what, end in ends.items():
        told.unlink(missing_ok=True)
        manager.control("start", "hvring.service")
        wait_for(lambda: told.exists() and told.read_text())
        assert json.loads(told.read_text()) is None, what
        writers = [write(mount) for mount in mounts]
        for writer in writers:
            writer.wait_until_blocked()
        end()
        assert all(writer.has_written() for writer in writers), what
        wait_for(lambda: manager.control("list-units", "--plain", "--no-legend", "run-*.scope") == "")
        manager.control("reset-failed")


def test_without_a_manager_that_answers_the_guardian_is_a_child_and_that_is_said(
    namespace: Any, manager: Manager, mounts: list[str], write: Any
) -> None:
    unit = manager.folder / "units" / "hvring.service"
    unit.write_text(unit.read_text() + "UnsetEnvironment=XDG_RUNTIME_DIR\n")
    manager.control("daemon-reload")
    manager.control("start", "hvring.service")
    told = manager.folder / "told"
    wait_for(lambda: told.exists() and told.read_text())
    assert "control group" in json.loads(told.read_text())
    writers = [write(mount) for mount in mounts]
    for writer in writers:
        writer.wait_until_blocked()
    manager.control("kill", "--signal=KILL", "--kill-whom=main", "hvring.service")
    assert all(writer.has_written() for writer in writers)


def test_a_unit_that_is_ended_at_any_moment_leaves_nothing_frozen(
    namespace: Any, manager: Manager, mounts: list[str]
) -> None:
    chance = random.Random(SEED)
    told = manager.folder / "told"
    hit_frozen = 0
    for number in range(ROUNDS):
        told.unlink(missing_ok=True)
        manager.control("start", "hvring.service")
        if chance.random() < 0.5:
            wait_for(lambda: told.exists())
        time.sleep(chance.random() * 0.2)
        hit_frozen += told.exists()
        match chance.choice(("all", "main", "group", "stop", "scope too late")):
            case "all":
                manager.control("kill", "--signal=KILL", "hvring.service")
            case "main":
                manager.control("kill", "--signal=KILL", "--kill-whom=main", "hvring.service")
            case "group":
                manager.kill_group_of("hvring.service")
            case "stop":
                manager.control("stop", "hvring.service")
            case "scope too late":  # as a shutdown ends everything
                # 5: a scope ended by itself between two looks of systemctl
                manager.run("systemctl", "--user", "stop", "run-*.scope", "hvring.service", fine=(0, 5))
        # Only once nobody is left who could thaw: what is frozen now stays frozen.
        wait_for(lambda: "hvring-guardian" not in manager.processes())
        wait_for(lambda: "hvring-freezer" not in manager.processes())
        manager.control("kill", "--signal=KILL", "hvring.service") if manager.is_active() else None
        assert [namespace.run(sys.executable, "-c", IS_FROZEN, mount) for mount in mounts] == ["no"] * 3, (
            number
        )
        manager.control("reset-failed")
    print(f"{ROUNDS} rounds, {hit_frozen} of them while frozen")
    assert hit_frozen >= ROUNDS // 4
