# SPDX-License-Identifier: Apache-2.0
"""A backup without the backup: what would be frozen, in which order, whether each can be opened, what may go wrong.

Each mount is opened by a process of its own, which may hang.
"""

from __future__ import annotations

import errno
import os
import select
import signal
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from hvring.guest.capabilities import Capability, has_any
from hvring.guest.disks import Address, attached, disks_below
from hvring.guest.hazards import find_hazards
from hvring.guest.mountinfo import Mount
from hvring.guest.mounts import Filesystem, Plan
from hvring.guest.regular import read_text
from hvring.guest.stack import backing_files, block_devices

_HANGS: Final = -1
_LABEL: Final = 256
_READING_ALL: Final = (Capability.DAC_OVERRIDE, Capability.DAC_READ_SEARCH)


def preflight(
    plan: Plan,
    own_files: Sequence[tuple[str, str]] = (),
    *,
    open_timeout: float = 5.0,
    proc: str = "/proc",
    sysfs: str = "/sys",
) -> dict[str, Any]:
    """Plain data, as docs/freeze-plan.schema.json has it: ``order`` (each with ``problem`` and ``remedy``, None where
    it can be opened), ``skipped`` with ``why``, ``notes``, and ``hazards`` with ``kind``, ``target``, ``what`` and
    ``remedy``.

    ``own_files``: what the agent writes, as (what it is, path).  ``open_timeout`` in seconds, for one mount.
    """
    disks = attached(sysfs)

    def facts(filesystem: Filesystem) -> dict[str, Any]:
        return {**_facts(filesystem), **_below(filesystem, plan, disks, sysfs)}

    return {
        "order": [{**facts(each), **_opened(each, open_timeout, sysfs)} for each in plan.freeze],
        "skipped": [{**facts(one.filesystem), "why": one.why} for one in plan.skipped],
        "notes": list(plan.notes),
        "hazards": [asdict(hazard) for hazard in find_hazards(plan, own_files, proc=proc, sysfs=sysfs)],
    }


def _facts(filesystem: Filesystem) -> dict[str, Any]:
    first = filesystem.mounts[0]
    return {
        "target": filesystem.target,
        "targets": list(filesystem.targets),
        "source": first.source,
        "fstype": first.fstype,
        "device": first.device,
        "process": first.process,
    }


def _below(filesystem: Filesystem, plan: Plan, disks: Mapping[str, Address], sysfs: str) -> dict[str, Any]:
    """What it lies on: file systems that hold its image, and disks; None: that cannot be told of all."""
    first = filesystem.mounts[0]
    if not first.may_be_a_disk:
        return {"lies_on": [], "disks": []}
    devices = block_devices(first.device, first.source, sysfs)
    holders = [plan.holder_of(path) for device in devices for path in backing_files(device, sysfs)]
    places = disks_below(filesystem, plan, sysfs)
    found: list[dict[str, Any]] | None = None
    if None not in places:
        found = [_disk(place, disks.get(place)) for place in sorted(filter(None, places))]
    return {"lies_on": [each.target for each in holders if each is not None], "disks": found}


def _disk(place: str, at: Address | None) -> dict[str, Any]:
    return {
        "name": os.path.basename(place),
        "controller": None if at is None else at.controller,
        "target": None if at is None else at.target,
        "lun": None if at is None else at.lun,
    }


def _opened(filesystem: Filesystem, timeout: float, sysfs: str) -> dict[str, Any]:
    problem = remedy = None
    for mount in filesystem.mounts:
        number = try_to_open(mount, timeout)
        if number == 0:
            problem = remedy = None
            break
        if problem is None:
            problem, remedy = _words(mount, number, timeout, sysfs)
    return {"problem": problem, "remedy": remedy}


def try_to_open(mount: Mount, timeout: float) -> int:
    """0, an errno, or -1 when it did not answer in ``timeout`` seconds."""
    pid = os.fork()
    if pid == 0:
        status = 255
        try:
            for standard in range(3):  # whoever reads this process's output is not to wait for this one
                os.close(standard)
            signal.alarm(int(timeout) + 60)  # it does not outlive its use for long, where it can be killed
            os.close(os.open(mount.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY))
            status = 0
        except OSError as problem:
            status = min(problem.errno or errno.EIO, 254)
        finally:
            os._exit(status)
    process = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(process, select.POLLIN)
        if not poll.poll(timeout * 1000):
            os.kill(pid, signal.SIGKILL)
            if not poll.poll(100):
                return _HANGS  # in the kernel; it is left to whoever reaps this process's children
            os.waitpid(pid, 0)
            return _HANGS
    finally:
        os.close(process)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _words(mount: Mount, number: int, timeout: float, sysfs: str) -> tuple[str, str]:
    """What is wrong, and what to do."""
    if number == _HANGS:
        return (
            f"opening it does not end within {timeout:g} s",
            "see what it waits for (`cat /proc/*/stack`, the network, its disk), or exclude it (vss.exclude)",
        )
    said = os.strerror(number) if number > 0 else "the process that tried was killed"
    is_denied = number in (errno.EACCES, errno.EPERM)
    modules = denials(sysfs) if is_denied and has_any(*_READING_ALL) else []
    if modules:
        label = _label()
        who = f" to {label}" if label else ""
        return (
            f"{said}: this process's capabilities allow it, so it is denied{who} by {' or '.join(modules)}",
            "`ausearch -m avc -ts recent` or `journalctl -k -g denied` has the denial; let the policy allow "
            "dac_read_search and opening of mount points",
        )
    if number in (errno.EACCES, errno.EPERM):
        return said, "run the agent as root, or with CAP_DAC_READ_SEARCH"
    return said, f"look at {mount.target}, or exclude it (vss.exclude)"


def denials(sysfs: str = "/sys") -> list[str]:
    """The security modules of this machine that may deny root something; what cannot is not among them."""
    active = read_text(f"{sysfs}/kernel/security/lsm").strip().split(",")
    if active == [""]:
        active = ["selinux"] if os.path.exists(f"{sysfs}/fs/selinux/enforce") else []
    return [name for name in active if name in ("selinux", "apparmor", "smack", "tomoyo", "landlock", "bpf")]


def _label() -> str:
    """What the policy knows this process by."""
    return read_text("/proc/self/attr/current")[:_LABEL].strip("\0\n ")
