# SPDX-License-Identifier: Apache-2.0
"""The C peers of the agent: the in-tree daemons of a Debian package, unmodified, with a socket for a kernel device."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from dpdk import Unavailable, run
from measure import cache
from processors import GUEST, favoured

from hvring.ic.hv_utils import DIALECTS

SHIM = Path(__file__).parents[1] / "tests" / "peers" / "daemon_shim.c"
AGENT = Path(__file__).with_name("utils_agent.py")
TIMEOUT = 30
MESSAGES = {"kvp": 7432, "vss": 12, "fcopy": 6208}  # bytes of one of the kernel's messages, at most


def program(name: str) -> Path:
    """hv_`name`_daemon, downloaded and unpacked (not installed) once.  Raises Unavailable with the reason."""
    for tool in ("apt-get", "dpkg", "cc", "unshare"):
        if shutil.which(tool) is None:
            raise Unavailable(f"the in-tree daemons need {tool}")
    if os.geteuid() != 0:
        raise Unavailable(
            "the in-tree daemons need root: their /var/lib is replaced in a private mount namespace"
        )
    folder = cache() / "hyperv-daemons"
    found = folder / "usr" / "sbin" / f"hv_{name}_daemon"
    if not found.exists():
        folder.mkdir(exist_ok=True)
        run(["apt-get", "-o", "APT::Sandbox::User=root", "download", "-q", "hyperv-daemons"], folder)
        run(["dpkg", "-x", next(folder.glob("hyperv-daemons*.deb")).name, "."], folder)
    if not found.exists():
        raise Unavailable(f"the package hyperv-daemons has no {found.name}")
    return found


def shim() -> Path:
    """What turns the daemons' device into a socket, built once."""
    path = cache() / "daemon_shim.so"
    if not path.exists() or path.stat().st_mtime < SHIM.stat().st_mtime:
        run(["cc", "-shared", "-fPIC", "-Wall", "-O2", "-o", str(path), str(SHIM), "-ldl"], path.parent)
    return path


class Daemon:
    """One daemon that runs and has registered; its /var/lib is `folder`.  Raises Unavailable.

    `device`: the kernel's end of its device.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.pools = folder / "hyperv"
        self.pools.mkdir(parents=True, exist_ok=True)
        self.device, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.device.settimeout(TIMEOUT)
        script = 'mount --bind "$1" /var/lib && LD_PRELOAD="$2" exec "$0" --no-daemon'
        with theirs:
            self.process = subprocess.Popen(
                ["unshare", "--mount", "sh", "-c", script, program(name), folder, shim()],
                env={**os.environ, "HVRING_TEST_DEVICE": str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                stderr=subprocess.DEVNULL,
            )
        hello = self.device.recv(MESSAGES[name])
        if not hello:
            self.close()
            raise Unavailable(f"hv_{name}_daemon does not start in a private mount namespace")
        if name == "kvp":  # PROTOCOL §4.4.7: the registration comes back with a version
            self.device.send(hello[:4] + b"3.1".ljust(MESSAGES[name] - 4, b"\0"))
        else:
            self.device.send(struct.pack("<I", 1))

    @property
    def pid(self) -> int:
        return self.process.pid

    def ask(self, message: bytes) -> bytes:
        """One request and its answer, which begins with the status."""
        self.device.send(message)
        return self.device.recv(MESSAGES["kvp"])

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.device.close()

    def __enter__(self) -> Daemon:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class UtilsAgent:
    """hvring in the place of that daemon, over the same kind of device; pools and files go into `folder`."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.device, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.device.settimeout(TIMEOUT)
        hello = DIALECTS[name].REGISTRATION
        if name == "kvp":
            hello = hello[:4] + b"3.1".ljust(MESSAGES[name] - 4, b"\0")
        self.device.send(hello)  # the kernel's answer is there as soon as its driver was asked
        with theirs, favoured(GUEST):
            self.process = subprocess.Popen(
                [sys.executable, AGENT, str(theirs.fileno()), name, folder],
                env={**os.environ, "PYTHONPATH": str(AGENT.parents[1])},
                pass_fds=[theirs.fileno()],
            )
        if not self.device.recv(MESSAGES[name]):
            self.close()
            raise RuntimeError(f"the agent for {name} has ended")

    @property
    def pid(self) -> int:
        return self.process.pid

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(TIMEOUT)
        self.device.close()

    def __enter__(self) -> UtilsAgent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
