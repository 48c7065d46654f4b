# SPDX-License-Identifier: Apache-2.0
"""What `hvring doctor` looks at: one function a topic, each a few plain sentences."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from hvring.cli.servers import node_holders
from hvring.events import printable
from hvring.guest.holders import Holder, names, running, stop_advice, units
from hvring.guest.pool_owner import PoolOwner
from hvring.guest.regular import read_text
from hvring.transport import modules
from hvring.transport.confidential import technology
from hvring.transport.kernels import Kernel
from hvring.transport.sysfs import OPENED, UIO_DRIVER, UTILS_DRIVER, Bus, Device
from hvring.vmbus import BY_NAME, SERVICE_NAMES

_MB = 1_000_000
UNIT_DIRECTORIES = ("/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")


class Level(Enum):
    """How a finding is meant."""

    GOOD = "ok"
    NOTE = "note"
    TODO = "to do"


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence or two about ``topic``."""

    level: Level
    topic: str
    text: str


def absent(bus: Bus) -> Finding:
    """There is no VMBus: is this the wrong machine, or the wrong kernel?"""
    vendor, product = (
        read_text(f"{bus.sysfs}/class/dmi/id/{name}").strip() for name in ("sys_vendor", "product_name")
    )
    if vendor == "Microsoft Corporation" and product == "Virtual Machine":
        text = "This is a Hyper-V guest, but there is no VMBus: load hv_vmbus, or use a kernel with CONFIG_HYPERV."
        return Finding(Level.TODO, "vmbus", text)
    text = "This is no Hyper-V guest: there is no VMBus, and nothing to do. `hvring demo` works everywhere."
    return Finding(Level.NOTE, "vmbus", text)


def examine(
    bus: Bus,
    kernel: Kernel,
    remembered: list[str],
    proc: str = "/proc",
    unit_directories: Sequence[str] = UNIT_DIRECTORIES,
) -> Iterator[Finding]:
    """All there is to say about a machine with a VMBus. ``proc`` tells which programs have which device open."""
    devices = {device.service: device for device in bus.devices() if device.service}
    isolation = technology(bus.sysfs, bus.dev, proc)
    yield from _kernel(kernel)
    yield from _module(bus, kernel)
    yield _memory(kernel, devices)
    if isolation is not None:
        text = f"This VM is confidential ({isolation}): hvring binds nothing here, the kernel's drivers stay."
        yield Finding(Level.NOTE, "isolation", text)
    if os.geteuid() != 0:
        text = "You are not root: binding and serving need it, and seeing who serves."
        yield Finding(Level.NOTE, "user", text)
    look = _Look(bus, kernel, proc, unit_directories, isolation)
    for name in SERVICE_NAMES:
        yield from look.at(name, devices.get(name))
    for instance in remembered:
        device = bus.read(instance)
        if device is None or device.driver != UIO_DRIVER:
            owner = "gone" if device is None else f"with {device.driver or 'no driver'}"
            text = f"It was bound by hvring but is {owner} now; `hvring unbind --all` forgets it."
            yield Finding(Level.NOTE, instance if device is None else device.title, text)


def stale_pools(owner: PoolOwner) -> Iterator[Finding]:
    """Whether the pools came along with a copied disk."""
    stale = owner.stale()
    if stale is not None:
        remedy = "`hvring kvp clean --stale` empties them, `hvring kvp clean --record-only` keeps them"
        yield Finding(Level.TODO, "pools", printable(f"T{str(stale)[1:]}; {remedy}."))


def _kernel(kernel: Kernel) -> Iterator[Finding]:
    if kernel.may_panic:
        text = f"{kernel.name} may panic with {UIO_DRIVER} (Debian bug 1120602): install {kernel.cured_by} or newer."
        yield Finding(Level.TODO, "kernel", text)
    if not kernel.takes_services:
        text = (
            f"{kernel.name} gives no rings of services to user space (6.10 and newer do): hvring serves data exchange, "
            f"backup and file copy over {UTILS_DRIVER}'s devices here, the rest stays with the kernel."
        )
        yield Finding(Level.NOTE, "kernel", text)
    elif kernel.may_panic:
        return
    elif kernel.masks_itself:
        text = f"{kernel.name} changes the interrupt mask by itself; hvring looks once a second to be safe."
        yield Finding(Level.NOTE, "kernel", text)
    else:
        yield Finding(Level.GOOD, "kernel", f"{kernel.name} gives services to user space.")


def _module(bus: Bus, kernel: Kernel) -> Iterator[Finding]:
    if os.path.isdir(bus.driver(UIO_DRIVER)):
        yield Finding(Level.GOOD, "module", f"{UIO_DRIVER} is loaded.")
        return
    available = modules.available(UIO_DRIVER, kernel.name)
    if available:
        yield Finding(Level.GOOD, "module", f"{UIO_DRIVER} is not loaded; `hvring bind` does that.")
    elif available is None:
        text = f"{UIO_DRIVER} is not loaded, and this kernel's modules are not listed: try `modprobe {UIO_DRIVER}`."
        yield Finding(Level.NOTE, "module", text)
    else:
        text = f"{UIO_DRIVER} is not there: install your distribution's extra modules for {kernel.name}."
        yield Finding(Level.TODO, "module", text)


def _memory(kernel: Kernel, devices: dict[str, Device]) -> Finding:
    bound = [device for device in devices.values() if device.driver == UIO_DRIVER]
    taken = sum(kernel.memory_per_service(device.ring_size or 0) for device in bound)
    one, fcopy = (kernel.memory_per_service(BY_NAME[name].ring_size) for name in ("kvp", "fcopy"))
    text = f"A bound service takes {one / _MB:.1f} MB of kernel memory, fcopy {fcopy / _MB:.1f} MB"
    return Finding(Level.NOTE, "memory", f"{text}; now {taken / _MB:.1f} MB for {len(bound)}.")


class _Look:
    """At one service after the other: who serves it, the kernel alone or a program, or nobody."""

    def __init__(
        self, bus: Bus, kernel: Kernel, proc: str, unit_directories: Sequence[str], isolation: str | None
    ) -> None:
        self._bus = bus
        self._kernel = kernel
        self._proc = proc
        self._unit_directories = unit_directories
        self._isolation = isolation

    def at(self, name: str, device: Device | None) -> Iterator[Finding]:
        """One service; ``device`` is None if the host does not offer it."""
        if device is None:
            text = "The host does not offer it: it is off in the VM's settings"
            if not BY_NAME[name].in_confidential_vms:
                text += (
                    ", or the VM is confidential" if self._isolation is None else ", or withheld as the VM is"
                )
            yield Finding(Level.NOTE, name, f"{text}.")
        elif device.driver == UIO_DRIVER:
            yield from self._bound(name, device)
        elif device.driver is None:
            yield Finding(Level.TODO, name, self._without_driver(name, device))
        elif not BY_NAME[name].node:
            yield Finding(Level.GOOD, name, f"The kernel's {device.driver} serves it by itself.")
        else:
            yield from self._by_daemon(name, device.driver)

    def _bound(self, name: str, device: Device) -> Iterator[Finding]:
        node = self._bus.node(device)
        found = self._holders(node) if node is not None else []
        yield self._uio(name, device, node, found)
        if self._isolation is not None:
            text = f"It is bound in a confidential VM: `hvring unbind {name}` gives it back to the kernel's driver."
            yield Finding(Level.TODO, name, text)
        if BY_NAME[name].only_if_named:
            text = "While it is bound the kernel has no PTP clock of Hyper-V; chrony may miss it."
            yield Finding(Level.NOTE, name, text)
        idle = [one for one in running(BY_NAME[name].daemons, self._proc) if one not in found]
        if idle:
            text = f"{names(idle)} runs beside, without its device: {stop_advice(idle)}."
            yield Finding(Level.NOTE, name, text)

    def _uio(self, name: str, device: Device, node: str | None, found: list[Holder]) -> Finding:
        if node is None or not os.path.exists(node):
            return Finding(Level.TODO, name, f"It is bound, but {node or 'its uio node'} is missing.")
        if device.state != OPENED:
            text = (
                f"It is bound ({node}), but nobody serves it: `hvring run {name}`, or `hvring unbind {name}`."
            )
            return Finding(Level.TODO, name, text)
        if found or os.geteuid() != 0:
            who = names(found) or "somebody"
            return Finding(Level.GOOD, name, f"It is bound ({node}) and served by {who}.")
        text = f"{node} counts as open, but no program has it: it was unbound while open, and only a restart helps."
        return Finding(Level.TODO, name, text)

    def _without_driver(self, name: str, device: Device) -> str:
        if device.override == UIO_DRIVER:
            return f"It is kept for {UIO_DRIVER}, which does not have it, so nobody serves it: `hvring unbind {name}`."
        if name == "fcopy" and not self._kernel.serves_fcopy:
            return f"Nobody serves it: this kernel leaves it to a program, `hvring run {name}` or hv_fcopy_uio_daemon."
        text = f"No driver has it, so nobody serves it: load {BY_NAME[name].driver}"
        if self._isolation is None and self._kernel.takes_services:
            text += f", or take it with `hvring bind {name}` and `hvring run {name}`"
        return f"{text}."

    def _by_daemon(self, name: str, driver: str) -> Iterator[Finding]:
        """The driver hands each request to whoever has the node open, and answers with an error if nobody has."""
        facts = BY_NAME[name]
        found = self._holders(facts.node)
        if found:
            yield Finding(Level.GOOD, name, f"The kernel's {driver} and {names(found)} serve it.")
            others = [one for one in found if not one.is_ours]
            if units(others):
                yield Finding(Level.NOTE, name, f"Before hvring serves it: {stop_advice(others)}.")
            elif not others:
                yield from self._faults(name)
            return
        idle = running(facts.daemons, self._proc)
        if os.geteuid() != 0:
            seen = f"{names(idle)} runs" if idle else f"no {facts.daemons[0]} runs"
            text = (
                f"The kernel's {driver} has it, and {seen}; only root sees whether it has {facts.node} open."
            )
            yield Finding(Level.NOTE if idle else Level.TODO, name, text)
            return
        text = f"The kernel's {driver} has it, but nobody has {facts.node} open, so nobody serves it: "
        if idle:
            text += f"{names(idle)} runs, but without it; restart it, or {stop_advice(idle)} and "
        text += f"`hvring run {name}`"
        if not idle:
            unit = self._installed(facts.units)
            text += (
                f", or `systemctl enable --now {unit}`"
                if unit
                else ", or your distribution's Hyper-V daemons"
            )
        yield Finding(Level.TODO, name, f"{text}.")

    def _faults(self, name: str) -> Iterator[Finding]:
        """What the kernel gets wrong between the host and whoever serves this over its device."""
        for fault in self._kernel.utils_faults.get(name, ()):
            yield Finding(Level.NOTE, name, fault)

    def _installed(self, units: Sequence[str]) -> str | None:
        there = (u for u in units if any(os.path.exists(f"{path}/{u}") for path in self._unit_directories))
        return next(there, None)

    def _holders(self, node: str) -> list[Holder]:
        return node_holders(self._bus, node, self._proc)
