# SPDX-License-Identifier: Apache-2.0
"""The units that are shipped, in a machine that is no Hyper-V guest: over a virtual host, with all else as it is."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from machine import HOME, Machine, interpreter, text_of

FITHAW: Final = 0xC0045878
PACKAGING: Final = Path(__file__).parents[2] / "packaging"
UNITS: Final = sorted((PACKAGING / "systemd").glob("hvring*.*"))
SERVICES: Final = ("kvp", "heartbeat", "timesync", "shutdown", "fcopy", "vss")
SOCKET: Final = "/run/host/socket"


def text(name: str) -> str:
    """A unit, each setting on one line."""
    return (PACKAGING / "systemd" / name).read_text(encoding="utf-8").replace("\\\n", " ")


def over_a_virtual_host(name: str, more: str = "") -> str:
    """A drop-in: no conditions, nothing is bound, the virtual host."""
    (start,) = re.findall(r"^ExecStart=(.*)$", text(f"hvring-{name}.service"), re.MULTILINE)
    start = start.replace("--via uio ", "") + f" --virtual {SOCKET} --real {more}"
    return (
        "[Unit]\nConditionVirtualization=\nConditionPathExists=\n"
        f"[Service]\nExecStartPre=\nExecStopPost=\nExecStart=\nExecStart={start}\n"
    )


def files(**more: str) -> dict[str, str]:
    """All that the package brings for systemd, and the drop-ins; ``more``: words for the command line of a service."""
    units = "/etc/systemd/system"
    hooks = f"{interpreter()} -I -S {HOME}/package/hvring/guest/hooks/__main__.py"
    guardian = f"{interpreter()} -I -S {HOME}/package/hvring/guest/guardian.py"
    return {
        **text_of([path for path in UNITS if path.is_file() and path.suffix != ".toml"], units),
        **text_of(sorted((PACKAGING / "sysusers.d").glob("*.conf")), "/usr/lib/sysusers.d"),
        **{
            f"{units}/hvring-{name}.service.d/test.conf": over_a_virtual_host(name, more.get(name, ""))
            for name in SERVICES
        },
        f"{units}/hvring-guardian.socket.d/test.conf": "[Unit]\nConditionVirtualization=\nConditionPathExists=\n",
        f"{units}/hvring-hooks.socket.d/test.conf": "[Unit]\nConditionVirtualization=\nConditionPathExists=\n",
        f"{units}/hvring-hooks@.service.d/test.conf": f"[Service]\nExecStart=\nExecStart={hooks}\n",
        f"{units}/hvring.target.d/test.conf": "[Unit]\nConditionVirtualization=\nConditionPathExists=\n",
        f"{units}/hvring-guardian@.service.d/test.conf": f"[Service]\nExecStart=\nExecStart={guardian}\n",
    }


class Host:
    """The virtual host, in the machine."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        machine.run("mkdir", "-p", "/run/host")
        machine.run("systemd-run", "--quiet", "--unit=host", "hvring", "host", "--socket", SOCKET)
        # Root may, whoever is in the machine may, and nobody else is there.
        machine.run("sh", "-c", f"until [ -S {SOCKET} ]; do sleep 0.05; done; chmod 666 {SOCKET}")

    def ask(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """One of its verbs."""
        return self._machine.run("hvring", "host", "--socket", SOCKET, *words, check=check)

    def start(self, name: str) -> None:
        """The unit of a service, until the host has its guest."""
        self._machine.systemctl("start", f"hvring-{name}.service")
        self.ask("wait", name)


def disk(machine: Machine, where: str, undo: Callable[..., Any]) -> str:
    """A file system on a loop device of this machine, mounted in the other one; its device there."""
    image = machine.folder / where.replace("/", "-")
    subprocess.run(["truncate", "--size=16M", image], check=True)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    loop = subprocess.run(
        ["losetup", "--find", "--show", image], capture_output=True, text=True, check=True
    ).stdout.strip()
    undo(lambda: subprocess.run(["losetup", "--detach", loop], check=True))
    node = f"/dev/{os.path.basename(loop)}"
    minor = os.minor(os.stat(loop).st_rdev)
    machine.run("mknod", node, "b", "7", str(minor))
    machine.run("mkdir", "-p", where)
    machine.run("mount", node, where)
    held = os.open(machine.path(where), os.O_RDONLY)

    def thaw() -> None:
        """Whatever the test did: a frozen file system outlives the machine."""
        with suppress(OSError):
            fcntl.ioctl(held, FITHAW, 0)
        os.close(held)

    undo(thaw)
    return node
