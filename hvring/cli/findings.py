# SPDX-License-Identifier: Apache-2.0
"""What `hvring doctor` looks at: one function a topic, each a few plain sentences."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from hvring.transport import modules
from hvring.transport.kernels import Kernel
from hvring.transport.sysfs import OPENED, UIO_DRIVER, Bus, Device
from hvring.vmbus import SERVICE_NAMES, ring_size_for

_MB = 1_000_000


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
    vendor, product = (_dmi(bus, name) for name in ("sys_vendor", "product_name"))
    if vendor == "Microsoft Corporation" and product == "Virtual Machine":
        text = "This is a Hyper-V guest, but there is no VMBus: load hv_vmbus, or use a kernel with CONFIG_HYPERV."
        return Finding(Level.TODO, "vmbus", text)
    text = "This is no Hyper-V guest: there is no VMBus, and nothing to do. `hvring demo` works everywhere."
    return Finding(Level.NOTE, "vmbus", text)


def examine(bus: Bus, kernel: Kernel, remembered: list[str], proc: str = "/proc") -> Iterator[Finding]:
    """All there is to say about a machine with a VMBus."""
    devices = {device.service: device for device in bus.devices() if device.service}
    yield from _kernel(kernel)
    yield from _module(bus, kernel)
    yield _memory(kernel, devices)
    if os.geteuid() != 0:
        yield Finding(Level.NOTE, "user", "You are not root: binding and serving need it.")
    for name in SERVICE_NAMES:
        yield from _service(bus, name, devices.get(name), proc)
    for instance in remembered:
        device = bus.read(instance)
        if device is None or device.driver != UIO_DRIVER:
            owner = "gone" if device is None else f"with {device.driver or 'no driver'}"
            text = f"It was bound by hvring but is {owner} now; `hvring unbind --all` forgets it."
            yield Finding(Level.NOTE, instance if device is None else device.title, text)


def _kernel(kernel: Kernel) -> Iterator[Finding]:
    if not kernel.takes_services:
        text = f"{kernel.name} does not give services to user space: install 6.10 or newer."
        yield Finding(Level.TODO, "kernel", text)
    elif kernel.may_panic:
        text = f"{kernel.name} may panic with {UIO_DRIVER} (Debian bug 1120602): install a newer one."
        yield Finding(Level.TODO, "kernel", text)
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
    one, fcopy = (kernel.memory_per_service(ring_size_for(name)) for name in ("kvp", "fcopy"))
    text = f"A bound service takes {one / _MB:.1f} MB of kernel memory, fcopy {fcopy / _MB:.1f} MB"
    return Finding(Level.NOTE, "memory", f"{text}; now {taken / _MB:.1f} MB for {len(bound)}.")


def _service(bus: Bus, name: str, device: Device | None, proc: str) -> Iterator[Finding]:
    if device is None:
        text = "The host does not offer it: it is off in the VM's settings"
        if name in ("kvp", "vss", "fcopy"):
            text += ", or the VM is confidential"
        yield Finding(Level.NOTE, name, f"{text}.")
    elif device.driver == UIO_DRIVER:
        yield _bound(bus, name, device, proc)
        if name == "timesync":
            text = "While it is bound the kernel has no PTP clock of Hyper-V; chrony may miss it."
            yield Finding(Level.NOTE, name, text)
    elif device.driver is None:
        yield Finding(Level.NOTE, name, f"No driver has it; `hvring bind {name}` takes it.")
    else:
        yield Finding(Level.GOOD, name, f"The kernel's {device.driver} serves it.")


def _bound(bus: Bus, name: str, device: Device, proc: str) -> Finding:
    node = bus.node(device)
    if node is None or not os.path.exists(node):
        return Finding(Level.TODO, name, f"It is bound, but {node or 'its uio node'} is missing.")
    if device.state != OPENED:
        text = f"It is bound ({node}), but nobody serves it: `hvring run {name}`, or `hvring unbind {name}`."
        return Finding(Level.TODO, name, text)
    users = ", ".join(_users(node, proc))
    if users or os.geteuid() != 0:
        return Finding(Level.GOOD, name, f"It is bound ({node}) and served by {users or 'somebody'}.")
    text = (
        f"{node} counts as open, but no program has it: it was unbound while open, and only a restart helps."
    )
    return Finding(Level.TODO, name, text)


def _users(node: str, proc: str) -> Iterator[str]:
    """Programs that have ``node`` open or mapped, as far as this user can see."""
    for pid in os.listdir(proc):
        if not pid.isdigit():
            continue
        try:
            links = [os.readlink(f"{proc}/{pid}/fd/{fd}") for fd in os.listdir(f"{proc}/{pid}/fd")]
            with open(f"{proc}/{pid}/comm", encoding="utf-8", errors="replace") as file:
                name = file.read().strip()
        except OSError:
            continue
        if node in links:
            yield f"{name} (process {pid})"


def _dmi(bus: Bus, name: str) -> str:
    try:
        with open(f"{bus.sysfs}/class/dmi/id/{name}", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""
