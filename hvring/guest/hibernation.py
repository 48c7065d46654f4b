# SPDX-License-Identifier: Apache-2.0
"""Whether this machine can be hibernated, looked at before a host is promised anything (PROTOCOL §4.1)."""

from __future__ import annotations

import os
from typing import Final

from hvring.guest.regular import read_text

_UIO_DEVICES: Final = "bus/vmbus/drivers/uio_hv_generic"


def obstacle(
    sysfs: str | os.PathLike[str] = "/sys",
    proc: str | os.PathLike[str] = "/proc",
    sleep_states: str | os.PathLike[str] | None = None,
) -> str | None:
    """What is known to be in the way, in words; None if nothing is.

    ``sysfs`` and ``proc``: where these are mounted. ``sleep_states``: another file than sysfs's ``power/state``.
    """
    sysfs, proc = os.fspath(sysfs), os.fspath(proc)
    if "[none]" not in (lockdown := read_text(f"{sysfs}/kernel/security/lockdown")) and lockdown:
        return "the kernel is locked down, which forbids hibernation"
    if "disk" not in read_text(sleep_states or f"{sysfs}/power/state").split():
        return "the kernel does not offer hibernation (/sys/power/state has no `disk`)"
    if "[disabled]" in read_text(f"{sysfs}/power/disk"):
        return "hibernation is disabled in the kernel (/sys/power/disk)"
    if read_text(f"{sysfs}/bus/vmbus/hibernation").strip() == "0":
        return "the host does not support hibernation of this VM (/sys/bus/vmbus/hibernation)"
    # A driver that cannot suspend makes vmbus_suspend() fail, and with it every hibernation: uio_hv_generic is one.
    if bound := _bound(f"{sysfs}/{_UIO_DEVICES}"):
        return f"{bound} bound to uio_hv_generic, which Linux cannot suspend: `hvring unbind --all` first"
    return _no_room(proc) or _no_way_back(sysfs)


def _bound(path: str) -> str:
    try:
        # A device is a link named by its GUID; the driver's own files have no hyphen.
        count = sum(name.count("-") == 4 for name in os.listdir(path))
    except OSError:
        return ""
    return f"{count} devices are" if count > 1 else "a device is" if count else ""


def _no_room(proc: str) -> str | None:
    """As systemd: what programs use now must fit into the swap that is free. A compressed disk in memory is none."""
    free = 0
    for line in read_text(f"{proc}/swaps").splitlines()[1:]:
        fields = line.split()
        if len(fields) >= 4 and not fields[0].startswith("/dev/zram"):
            free += int(fields[2]) - int(fields[3])
    if free <= 0:
        return "there is no swap to hibernate into"
    for line in read_text(f"{proc}/meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == "Active(anon)" and int(value.split()[0]) > free:
            return f"{free // 1024} MiB of free swap are too little for what is in memory"
    return None


def _no_way_back(sysfs: str) -> str | None:
    """Without UEFI, whose variables systemd uses, the kernel must have been told where to look at the next start."""
    if read_text(f"{sysfs}/power/resume").strip() == "0:0" and not os.path.isdir(f"{sysfs}/firmware/efi"):
        return "no `resume=` is configured: what was saved would not be found at the next start"
    return None
