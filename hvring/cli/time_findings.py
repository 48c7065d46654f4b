# SPDX-License-Identifier: Apache-2.0
"""What `hvring doctor` says of this machine's time: whose clocks there are, who sets ours, and by what."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from typing import Final

from hvring.cli import chrony
from hvring.cli.findings import Finding, Level
from hvring.cli.time_agents import AgentTime
from hvring.guest.disciplines import disciplines
from hvring.guest.holders import Holder, holders, units
from hvring.guest.ptp import HYPERV, LINK, PtpClock, ptp_clocks
from hvring.guest.regular import read_text
from hvring.transport import modules
from hvring.transport.kernels import Kernel
from hvring.transport.sysfs import UIO_DRIVER, Bus, Device
from hvring.vmbus import BY_NAME

_TOPIC: Final = "time"
_FOREIGN: Final = ("kvm", "vmclock", "ptp_vmw", "xen")  # how clocks of other hypervisors are called
_SOURCE: Final = "refclock PHC {} poll 3 dpoll -2 offset 0 stratum 2"
_RULE: Final = 'SUBSYSTEM=="ptp", ATTR{clock_name}=="hyperv", SYMLINK+="ptp_hyperv"'


def examine_time(
    bus: Bus,
    kernel: Kernel,
    proc: str = "/proc",
    root: str = "",
    machine: str | None = None,
    ours: Collection[AgentTime] = (),
) -> Iterator[Finding]:
    """All there is to say about the time here.  ``root``: where /etc is; ``machine``: as of uname.

    ``ours``: agents that were asked; of others only their command lines are known.
    """
    device = bus.read(BY_NAME["timesync"].instance_guid)
    clocks = ptp_clocks(bus.sysfs, bus.dev)
    found = _disciplines(bus, device, proc, {one.pid for one in ours if one.facts.get("mode") == "step"})
    yield from _duplicates(clocks)
    yield from _setters(found, any(clock.title == HYPERV for clock in clocks))
    for one in found:
        if one.name == "chronyd":
            yield from _chrony(
                bus, device, clocks, one, chrony.configuration(_arguments(proc, one.pid), root), root
            )
    if device is not None and device.driver == UIO_DRIVER:
        yield _counter(bus, kernel, machine or os.uname().machine)


def _disciplines(bus: Bus, device: Device | None, proc: str, steps: Collection[int]) -> list[Holder]:
    """Other programs, and hvring where it sets the clock."""
    node = None if device is None else bus.node(device)
    ours = [] if node is None else holders([node], proc)
    return [
        *disciplines(proc),
        *(one for one in ours if one.pid in steps or "--set-clock" in _arguments(proc, one.pid)),
    ]


def _duplicates(clocks: list[PtpClock]) -> Iterator[Finding]:
    ours = [clock.node for clock in clocks if clock.title == HYPERV]
    if len(ours) > 1:
        text = f"There are {len(ours)} PTP clocks of Hyper-V ({', '.join(ours)}), but one host: restart this machine."
        yield Finding(Level.TODO, _TOPIC, text)
    others = [f"{clock.node} ({clock.title})" for clock in clocks if _is_foreign(clock)]
    if ours and others:
        text = (
            f"Beside Hyper-V's clock ({ours[0]}) there is one of another hypervisor, {', '.join(others)}: take one, "
            "and name it so that its number does not matter."
        )
        yield Finding(Level.NOTE, _TOPIC, text)


def _is_foreign(clock: PtpClock) -> bool:
    return clock.title.lower().startswith(_FOREIGN)


def _setters(found: list[Holder], has_clock: bool) -> Iterator[Finding]:
    if len(found) > 1:
        text = f"{' and '.join(map(str, found))} all set the clock, and against each other: keep one{_rest(found)}."
        yield Finding(Level.TODO, _TOPIC, text)
    elif not found:
        text = "No program keeps the clock right; between two SYNCs of the host it drifts: install chrony, or the like."
        yield Finding(Level.NOTE, _TOPIC, text)
    elif found[0].name.startswith("systemd-timesyn") and has_clock:
        text = f"{found[0]} asks servers of the network only; chrony can take the host's time, too."
        yield Finding(Level.NOTE, _TOPIC, text)


def _rest(found: list[Holder]) -> str:
    """What ends all but one: chrony, which can take the host's time, or else the first."""
    kept = next((one for one in found if one.name == "chronyd"), found[0])
    rest = [one for one in found if one is not kept]
    ends = [f"`systemctl disable --now {unit}`" for unit in units([one for one in rest if not one.is_ours])]
    if any(one.is_ours for one in rest):
        ends.append("`hvring run` without --set-clock or `timesync.mode`")
    return f" ({kept.name}: {', '.join(ends)})" if ends else ""


def _chrony(
    bus: Bus, device: Device | None, clocks: list[PtpClock], who: Holder, path: str | None, root: str
) -> Iterator[Finding]:
    try:
        named = [] if path is None else chrony.ptp_sources(path, root)
    except OSError as problem:
        text = f"The configuration of {who}, {path}, cannot be read: {problem.strerror}."
        yield Finding(Level.NOTE, _TOPIC, text)
        return
    by_node = {os.path.realpath(clock.node): clock for clock in clocks}
    where = path or chrony.CONFIGURATIONS[0]
    reads_host = False
    for source in named:
        here = bus.dev + source.removeprefix("/dev") if source.startswith("/dev/") else source
        clock = by_node.get(os.path.realpath(here))
        if clock is None and not os.path.exists(here):
            yield Finding(
                Level.TODO, _TOPIC, f"{who} is to read {source} ({where}), which is not there{_why(device)}."
            )
        elif clock is not None and _is_foreign(clock):
            text = f"{who} reads {source} ({where}), which is {clock.title}, not the clock of this host."
            yield Finding(Level.TODO, _TOPIC, text)
        elif clock is not None and clock.title == HYPERV:
            reads_host = True
            yield Finding(Level.GOOD, _TOPIC, f"{who} reads the host's clock, {source}.")
            if len(clocks) > 1 and os.path.basename(source) == clock.name:
                text = f"{clock.name} may be another clock after a restart: {_name(bus)} in {where}."
                yield Finding(Level.NOTE, _TOPIC, text)
    ours = next((clock for clock in clocks if clock.title == HYPERV), None)
    if ours is not None and not reads_host:
        link = f"{bus.dev}/{LINK}"
        line = _SOURCE.format(f"/dev/{LINK}" if os.path.exists(link) else f"/dev/{ours.name}")
        text = f"{who} does not read the host's clock: a line `{line}` in {where} adds it."
        yield Finding(Level.NOTE, _TOPIC, text)


def _why(device: Device | None) -> str:
    if device is None or device.driver != UIO_DRIVER:
        return ""
    return f" while timesync is bound to {UIO_DRIVER}: `hvring unbind timesync`, or take that line out"


def _name(bus: Bus) -> str:
    if os.path.exists(f"{bus.dev}/{LINK}"):
        return f"name /dev/{LINK} instead"
    return f"name /dev/{LINK} instead, which udev makes with the rule `{_RULE}`,"


def _counter(bus: Bus, kernel: Kernel, machine: str) -> Finding:
    """Whether hvring can tell how old a message of the host is."""
    unknown = "so how long a message waited is not known, and this machine may be further behind by as much"
    if machine not in ("x86_64", "i686"):
        text = f"On {machine} only the kernel can read the reference counter, {unknown} (PROTOCOL 4.2)."
        return Finding(Level.NOTE, _TOPIC, text)
    if "hyperv_clocksource" not in read_text(
        f"{bus.sysfs}/devices/system/clocksource/clocksource0/available_clocksource"
    ):
        text = f"This kernel shows no reference counter of Hyper-V, {unknown} (PROTOCOL 4.2)."
        return Finding(Level.NOTE, _TOPIC, text)
    if os.path.exists(f"{bus.dev}/cpu/0/msr"):
        return Finding(
            Level.GOOD, _TOPIC, "The reference counter can be read: how long a message waited is known."
        )
    if modules.available("msr", kernel.name) is False:
        text = f"{kernel.name} has no module msr, {unknown} (PROTOCOL 4.2)."
        return Finding(Level.NOTE, _TOPIC, text)
    text = f"The module msr is not loaded, {unknown}: `modprobe msr`, and name it in /etc/modules-load.d."
    return Finding(Level.NOTE, _TOPIC, text)


def _arguments(proc: str, pid: int) -> list[str]:
    return read_text(f"{proc}/{pid}/cmdline").split("\0")[:-1]
