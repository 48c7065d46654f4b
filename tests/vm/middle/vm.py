# SPDX-License-Identifier: Apache-2.0
"""The Lab object that a scenario gets: the guest's machine, its shell, its devices, and what was checked."""

from __future__ import annotations

import base64
import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from device import Device
from qmp import Qmp
from shell import Shell, ShellError

if TYPE_CHECKING:
    from host import LabHost

_RUN = Path("/run")
# kvm=off hides KVM's own CPUID leaves, which Linux would prefer to Hyper-V's
_CPU = "host,kvm=off,hv-relaxed,hv-vapic,hv-vpindex,hv-synic,hv-time,hv-stimer,hv-runtime,hv-frequencies"
_WORDS = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable"
_BALLOON = "11223344-5566-7788-99aa-bbccddeeff00"


class SkipError(Exception):
    """A check does not apply here."""


class Lab:
    """One guest. ``guest`` is a scenario's GUEST with all defaults; ``kernel`` is the guest's release.

    ``devices`` are the hv-ic devices by service name; ``qmp("query-…")`` talks to the guest's QEMU;
    ``kept`` is for what a check leaves to later ones.
    Methods that wait raise ShellError or ConnectionError when the guest is gone.
    """

    def __init__(self, guest: dict[str, Any], kernel: str) -> None:
        self.kernel = kernel
        self.failed: list[str] = []
        self.kept: dict[str, Any] = {}
        self._at_end = ExitStack()
        self.devices = {
            name: Device(name, _RUN, guest["subchannels"].get(name, 0)) for name in guest["services"]
        }
        self._start = time.monotonic()
        command = [
            "qemu-system-x86_64",
            "-accel",
            "kvm",
            "-cpu",
            _CPU,
            "-machine",
            "pc",
            "-nodefaults",
            "-nographic",
        ]
        command += ["-smp", str(guest["cpus"]), "-m", guest["memory"], "-no-reboot", "-serial", "stdio"]
        command += [
            "-qmp",
            f"unix:{_RUN}/qmp,server=on,wait=off",
            "-device",
            "vmbus-bridge",
            "-device",
            "virtio-serial-pci",
        ]
        command += ["-chardev", f"socket,id=shell,path={_RUN}/shell,server=on,wait=off"]
        command += ["-device", "virtserialport,chardev=shell,nr=1"]
        for device in self.devices.values():
            command += device.arguments()
        if guest["balloon"]:
            command += ["-device", f"hv-balloon,id=balloon,instanceid={_BALLOON},status-report=on"]
        command += [
            "-kernel",
            "/lab/kernel",
            "-initrd",
            "/lab/initramfs",
            "-append",
            f"{_WORDS} {guest['append']}",
        ]
        environment = dict(os.environ, LD_PRELOAD="/lab/hv-ic.so")
        self.qemu = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)

    def start(self, timeout: float = 120.0) -> None:
        """Connect to everything and wait for the guest's shell. TimeoutError, ShellError."""
        for device in self.devices.values():
            device.connect(timeout)
        self._shell = Shell(self._connect("shell", timeout))
        self.qmp = Qmp(f"{_RUN}/qmp")
        self._shell.wait_ready(timeout)

    @cached_property
    def host(self) -> LabHost:
        """hvring's host, in a thread of its own and with all devices, from the first use on: ``lab.host.do(…)``."""
        from host import LabHost

        from hvring.host.testing import in_thread

        host = LabHost(self.devices, on_event=lambda event: self.say("host:", event))
        return self._at_end.enter_context(in_thread(host))

    def say(self, *words: object) -> None:
        """A line in the log, with the seconds since the guest's start."""
        print(f"L1 {time.monotonic() - self._start:6.2f}", *words, flush=True)

    def check(self, condition: object, what: str) -> bool:
        """Record whether something that must hold does."""
        self.say("ok" if condition else "FAILED", what)
        if not condition:
            self.failed.append(what)
        return bool(condition)

    def skip(self, reason: str) -> None:
        """Leave the check: it does not apply here."""
        raise SkipError(reason)

    def sh(self, line: str, timeout: float = 30.0) -> str:
        """Run a shell line in the guest and return its output. ShellError if it fails."""
        status, output = self.try_sh(line, timeout)
        if status:
            raise ShellError(f"exit status {status}: {line}\n{output}")
        return output

    def try_sh(self, line: str, timeout: float = 30.0) -> tuple[int, str]:
        """Run a shell line in the guest: (exit status, output)."""
        self.say("guest$", line)
        return self._run(line, timeout)

    def python(self, code: str, timeout: float = 60.0) -> str:
        """Run Python code in the guest (hvring is importable); its output. ShellError if it fails."""
        self.say("guest>>>", code)
        text = base64.b64encode(code.encode()).decode()
        status, output = self._run(f"echo {text} | base64 -d > /tmp/.code.py; python3 /tmp/.code.py", timeout)
        if status:
            raise ShellError(f"exit status {status}\n{output}")
        return output

    def load(self, *modules: str) -> None:
        """Load kernel modules in the guest; loaded ones are left alone."""
        self.sh("load " + " ".join(modules))

    def stop(self, timeout: float = 15.0) -> None:
        """Switch the guest off, by force if need be."""
        self._at_end.close()
        if self.qemu.poll() is None:
            try:
                self._shell.tell("poweroff -f")
                self.qemu.wait(timeout)
            except (AttributeError, OSError, subprocess.TimeoutExpired):
                self.say("killing the guest's QEMU")
                self.qemu.kill()
        self.say("QEMU's exit status", self.qemu.wait())
        sys.stdout.flush()

    def _run(self, line: str, timeout: float) -> tuple[int, str]:
        status, output = self._shell.run(line, timeout)
        for text in output.splitlines():
            self.say("   |", text)
        return status, output

    def _connect(self, name: str, timeout: float) -> socket.socket:
        end = time.monotonic() + timeout
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(_RUN / name))
                return connection
            except OSError:
                connection.close()
                if self.qemu.poll() is not None or time.monotonic() > end:
                    raise
                time.sleep(0.1)
