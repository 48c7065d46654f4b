# SPDX-License-Identifier: Apache-2.0
"""What the kernel says about the devices on VMBus (PROTOCOL §1.1, §1.2)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from hvring.transport.errors import (
    DeviceNotFoundError,
    NotHyperVError,
    SeveralDevicesError,
    WrongDeviceError,
    WrongNameError,
)
from hvring.vmbus import BY_CLASS, BY_NAME, SERVICE_NAMES
from hvring.vmbus.classes import OTHER_CLASSES
from hvring.vmbus.guids import is_guid, normal_guid

UIO_DRIVER: Final = "uio_hv_generic"
UTILS_DRIVER: Final = "hv_utils"
NO_MONITOR: Final = 255
OPENED: Final = 3  # channel state: somebody has it open


@dataclass(frozen=True, slots=True)
class Device:
    """One device as it was when it was read.

    ``state``: 0 offered, 1 opening, 2 open for use, 3 opened by somebody; None: the kernel does not say.
    ``uio``: such as ``uio0``, while bound to uio_hv_generic. ``maps``: its maps' sizes in bytes. ``override``:
    the driver that alone may have it. ``monitor_id``: None if signalling takes a system call.
    """

    instance: str
    class_guid: str
    relid: int | None
    state: int | None
    driver: str | None
    override: str | None
    uio: str | None
    maps: tuple[int, ...]
    monitor_id: int | None

    @property
    def service(self) -> str | None:
        """``kvp`` and the like; None for a device that is none of the six services."""
        facts = BY_CLASS.get(self.class_guid)
        return None if facts is None else facts.name

    @property
    def title(self) -> str:
        """The service's name, what else it is, or its class GUID."""
        return self.service or OTHER_CLASSES.get(self.class_guid, self.class_guid)

    @property
    def ring_size(self) -> int | None:
        """Bytes of ONE ring, control page included; None while not bound to uio_hv_generic."""
        return self.maps[0] // 2 if self.maps else None


class Bus:
    """The VMBus of this machine. ``sysfs`` and ``dev`` are where the kernel's file systems are mounted."""

    def __init__(self, sysfs: str | os.PathLike[str] = "/sys", dev: str | os.PathLike[str] = "/dev") -> None:
        self.sysfs: Final = os.fspath(sysfs)
        self.dev: Final = os.fspath(dev)
        self._root: Final = os.path.join(sysfs, "bus/vmbus")

    @property
    def present(self) -> bool:
        """Whether there is a VMBus at all."""
        return os.path.isdir(f"{self._root}/devices")

    def devices(self) -> list[Device]:
        """All devices: the six services first and in their order, then the others. NotHyperVError."""
        found = list(self._devices())
        order = {name: n for n, name in enumerate(SERVICE_NAMES)}
        return sorted(found, key=lambda d: (order.get(d.service or "", len(order)), d.title, d.instance))

    def find(self, name: str) -> Device:
        """The device of a service name, class GUID or instance GUID.

        Raises NotHyperVError, WrongNameError, DeviceNotFoundError, WrongDeviceError, SeveralDevicesError.
        """
        if name in BY_NAME:
            device = self.read(BY_NAME[name].instance_guid)
            if device is not None and device.service != name:
                raise WrongDeviceError(
                    f"the device {device.instance} should be {name} but is of class {device.class_guid}: "
                    "name the device that you mean by its class or instance GUID (see `hvring devices`)"
                )
            name = BY_NAME[name].class_guid  # an instance GUID of its own choice: some hosts do so
            if device is not None:
                return device
        guid = normal_guid(name)
        if not is_guid(guid):
            raise WrongNameError(
                f"{name!r} is neither a GUID nor a service: there are {', '.join(SERVICE_NAMES)}"
            )
        device = self.read(guid)
        if device is not None:
            return device
        found = [device for device in self._devices() if device.class_guid == guid]
        if len(found) > 1:
            raise SeveralDevicesError(
                f"{len(found)} devices are of class {guid}: name one by its instance GUID, "
                + ", ".join(device.instance for device in found)
            )
        if not found:
            title = BY_CLASS[guid].name if guid in BY_CLASS else guid
            raise DeviceNotFoundError(
                f"the host does not offer {title}: switch it on in the VM's settings (integration services)"
            )
        return found[0]

    def read(self, instance: str) -> Device | None:
        """The device with this instance GUID, or None if there is none (any more). NotHyperVError."""
        self._require()
        path = self.path(instance)
        class_guid = _text(f"{path}/class_id")
        if class_guid is None:
            return None
        uio = _only_entry(f"{path}/uio")
        monitor_id = read_number(f"{path}/monitor_id")
        return Device(
            instance=instance,
            class_guid=normal_guid(class_guid),
            relid=read_number(f"{path}/id"),
            state=read_number(f"{path}/state"),
            driver=_link(f"{path}/driver"),
            override=_override(f"{path}/driver_override"),
            uio=uio,
            maps=() if uio is None else tuple(_map_sizes(f"{path}/uio/{uio}/maps")),
            monitor_id=None if monitor_id == NO_MONITOR else monitor_id,
        )

    def path(self, instance: str) -> str:
        """Its directory in sysfs."""
        return f"{self._root}/devices/{instance}"

    def driver(self, name: str) -> str:
        """A driver's directory, which exists while the driver is loaded."""
        return f"{self._root}/drivers/{name}"

    def node(self, device: Device) -> str | None:
        """The file to open, such as ``/dev/uio0``; None while the device has none."""
        return None if device.uio is None else os.path.join(self.dev, device.uio)

    def utils_node(self, service: str) -> str:
        """The character device over which hv_utils hands out this service; "" for one that it answers itself."""
        node = BY_NAME[service].node
        return node and os.path.join(self.dev, os.path.relpath(node, "/dev"))

    def write(self, path: str, text: str) -> None:
        """One write to an attribute, as the kernel wants it. OSError with the kernel's answer."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)

    def _require(self) -> None:
        if not self.present:
            raise NotHyperVError(
                f"there is no VMBus here ({self._root} is missing): this works in a Hyper-V guest with the "
                "kernel's hv_vmbus; elsewhere use a virtual host (`hvring host`, `hvring run --virtual`)"
            )

    def _devices(self) -> Iterator[Device]:
        self._require()
        for instance in os.listdir(f"{self._root}/devices"):
            device = self.read(instance)
            if device is not None:
                yield device


def _text(path: str) -> str | None:
    """An attribute without its line end; None if it, or its device, is gone, or has nothing to say."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return None


def read_number(path: str) -> int | None:
    """An attribute that is a number; None if it is not there or is none."""
    text = _text(path)
    try:
        return None if text is None else int(text, 0)
    except ValueError:
        return None


def _override(path: str) -> str | None:
    text = _text(path)
    return None if text in (None, "", "(null)") else text


def _link(path: str) -> str | None:
    try:
        return os.path.basename(os.readlink(path))
    except OSError:
        return None


def _only_entry(path: str) -> str | None:
    try:
        return next(iter(sorted(os.listdir(path))), None)
    except OSError:
        return None


def _map_sizes(path: str) -> Iterator[int]:
    for n in range(5):  # uio's own limit
        size = read_number(f"{path}/map{n}/size")
        if size is None:
            break
        yield size
