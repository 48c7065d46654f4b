# SPDX-License-Identifier: Apache-2.0
"""Take a device from its driver for uio_hv_generic, and give it back (PROTOCOL §1.3).

Bound by ``driver_override``, so that doing it twice is harmless and no other device is taken along. The driver it
came from is written down before anything is changed, in a file that is gone after a reboot as the binding is.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from hvring.transport import file_lock, kernels
from hvring.transport.confidential import technology
from hvring.transport.errors import (
    BindFailedError,
    BindRefusedError,
    DeviceBusyError,
    DeviceError,
    DeviceNotFoundError,
    DevicePermissionError,
    DriverMissingError,
)
from hvring.transport.modules import load_module
from hvring.transport.sysfs import OPENED, UIO_DRIVER, UTILS_DRIVER, Bus, Device
from hvring.transport.unclaimed import is_unclaimed
from hvring.vmbus import BY_NAME
from hvring.vmbus.classes import MAY_HOLD_DISKS, NETWORK

STATE: Final = "/run/hvring"
_USUAL_DRIVER: Final = UTILS_DRIVER  # of all services, file copy on kernels from 6.10 on excepted
_ENOTSUPP: Final = 524  # the kernel's own, without a name in user space


class Binder:
    """Binds and unbinds devices of ``bus``; ``state``: the directory with the file of origins.

    ``load``: loads a kernel module; False if it could not. ``kernel``: what to assume of this kernel. ``isolation``:
    what isolates this VM from its host, or None. ``lock_timeout``: seconds to wait for another process that binds.
    """

    def __init__(
        self,
        bus: Bus | None = None,
        *,
        state: str | os.PathLike[str] = STATE,
        load: Callable[[str], bool] = load_module,
        kernel: kernels.Kernel | None = None,
        isolation: Callable[[], str | None] | None = None,
        lock_timeout: float = 10.0,
    ) -> None:
        self.bus: Final = bus or Bus()
        self._state: Final = os.fspath(state)
        self._load = load
        self._kernel = kernel or kernels.running()
        self._isolation = isolation or partial(technology, self.bus.sysfs, self.bus.dev)
        self._lock_timeout = lock_timeout

    def bind(self, name: str, *, force: bool = False) -> Device:
        """Give the device to uio_hv_generic; the device as it is then. Nothing is done if it is there already.

        ``force``: also on a kernel that may panic. Raises NotHyperVError, WrongNameError, DeviceNotFoundError,
        BindRefusedError, DriverMissingError, DevicePermissionError, DeviceBusyError, BindFailedError.
        """
        device = self.bus.find(name)
        if device.driver == UIO_DRIVER:
            return device
        self._refuse(device, force)
        with self._origins() as origins:
            self._need_driver()
            device = self.bus.find(device.instance)
            if device.driver == UIO_DRIVER:  # while we waited for the lock or the module
                return device
            if device.instance not in origins:
                origins[device.instance] = device.driver or ""
                self._store(origins)
            try:
                self._take(device)
            except DeviceError:
                self._give_back(device.instance, origins)
                raise
        return self.bus.find(device.instance)

    def unbind(self, name: str) -> Device | None:
        """Take the device from uio_hv_generic and give it to the driver it came from; the device as it is then.

        None: it is one of :meth:`bound`, but the host does not offer it any more. Nothing is done to a device that is
        not bound to uio_hv_generic. One that was bound by other means goes to hv_utils if that takes it. Raises as
        :meth:`bind`; DeviceBusyError while the device is open, because the driver then frees the rings without
        closing the channel: the host would go on writing there, and nobody could open it again.
        """
        instance = name if name in self.bound() else self.bus.find(name).instance
        with self._origins() as origins:
            self._give_back(instance, origins)
        return self.bus.read(instance)

    def bound(self) -> list[str]:
        """The instance GUIDs of all devices that :meth:`bind` took, also in other processes and before a crash."""
        return list(self._read())

    def is_unclaimed(self, name: str) -> bool:
        """Whether nobody loses this service when it is bound: hv_utils is there, and does not drive it."""
        device = self.bus.read(BY_NAME[name].instance_guid)
        return device is not None and is_unclaimed(device, self.bus, self._kernel)

    def _refuse(self, device: Device, force: bool) -> None:
        isolation = self._isolation()
        if isolation is not None:
            raise BindRefusedError(
                f"this VM is confidential ({isolation}): {device.title} stays with the kernel's driver, which is "
                "hardened against the host"
            )
        if device.class_guid in MAY_HOLD_DISKS:
            raise BindRefusedError(f"{device.title} may hold this machine's disks: hvring does not take it")
        if device.class_guid == NETWORK and not self._other_adapters(device):
            raise BindRefusedError("this is the only network adapter: add another one to the VM first")
        # Where hv_utils is there and leaves file copy, the kernel has what came with that, whatever its number.
        takes = self._kernel.takes_services or is_unclaimed(device, self.bus, self._kernel)
        if not takes and device.monitor_id is None:
            raise BindRefusedError(
                f"kernel {self._kernel.name} cannot give {device.title} to user space: 6.10 or newer is needed"
            )
        if self._kernel.may_panic and not force:
            raise BindRefusedError(
                f"kernel {self._kernel.name} may panic with {UIO_DRIVER} (Debian bug 1120602): install "
                f"{self._kernel.cured_by} or newer, or insist with --force"
            )

    def _other_adapters(self, device: Device) -> list[str]:
        """Network interfaces with hardware of their own: not this one's, nor a virtual function below another."""
        own = os.path.realpath(f"{self.bus.path(device.instance)}/net")
        interfaces = os.path.join(self.bus.sysfs, "class/net")
        found = []
        for name in os.listdir(interfaces) if os.path.isdir(interfaces) else []:
            path = f"{interfaces}/{name}"
            has_hardware = os.path.exists(f"{path}/device") and not os.path.exists(f"{path}/master")
            if has_hardware and os.path.dirname(os.path.realpath(path)) != own:
                found.append(name)
        return found

    def _need_driver(self) -> None:
        path = self.bus.driver(UIO_DRIVER)
        if not os.path.exists(path) and not (self._load(UIO_DRIVER) and os.path.exists(path)):
            raise DriverMissingError(
                f"the kernel module {UIO_DRIVER} is not loaded and could not be: run `modprobe {UIO_DRIVER}` as "
                "root; if there is none, the kernel was built without CONFIG_UIO_HV_GENERIC"
            )

    def _take(self, device: Device) -> None:
        path = self.bus.path(device.instance)
        self._write(f"{path}/driver_override", UIO_DRIVER, device)
        # A module that was loaded just now may have taken it in the meantime.
        driver = (self.bus.read(device.instance) or device).driver
        if driver == UIO_DRIVER:
            return
        if driver is not None:
            self._write(f"{self.bus.driver(driver)}/unbind", device.instance, device)
        self._write(f"{self.bus.driver(UIO_DRIVER)}/bind", device.instance, device)

    def _give_back(self, instance: str, origins: dict[str, str]) -> None:
        device = self.bus.read(instance)
        if device is not None:
            if device.driver == UIO_DRIVER and device.state == OPENED:
                raise DeviceBusyError(
                    f"a program has {device.title} open: stop it first (`hvring doctor` names it); unbound now, the "
                    "channel could not be opened again before a restart"
                )
            if device.override == UIO_DRIVER:
                self._write(f"{self.bus.path(instance)}/driver_override", "\n", device)
            if device.driver == UIO_DRIVER:
                self._write(f"{self.bus.driver(UIO_DRIVER)}/unbind", instance, device)
            if device.driver in (UIO_DRIVER, None):
                self._hand_to(origins.get(instance), device)
        if origins.pop(instance, None) is not None:
            self._store(origins)

    def _hand_to(self, origin: str | None, device: Device) -> None:
        """``origin``: "" for a device that had no driver, None if that is not known."""
        driver = _USUAL_DRIVER if origin is None and device.service not in (None, "fcopy") else origin
        if not driver or not os.path.exists(self.bus.driver(driver)):
            return  # a driver that is loaded later finds it by itself
        try:
            self._write(f"{self.bus.driver(driver)}/bind", device.instance, device)
        except BindFailedError:
            if origin is not None:
                raise

    def _write(self, path: str, text: str, device: Device) -> None:
        try:
            self.bus.write(path, text)
        except OSError as error:
            raise _failed(error, path, device) from error

    # ------------------------------------------------------------------------------ the file of origins

    @contextmanager
    def _origins(self) -> Iterator[dict[str, str]]:
        """What is written down, for the only one who may change it now."""
        try:
            os.makedirs(self._state, mode=0o755, exist_ok=True)
            lock = os.open(f"{self._state}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _denied(error, self._state) from error
        try:
            # Not waited for without end: a kernel may keep who binds for as long as a daemon keeps the device.
            if not file_lock.lock(lock, self._lock_timeout):
                raise DeviceBusyError(
                    f"another program is binding devices and does not come to an end ({self._state}/lock)"
                )
            yield self._read()
        finally:
            os.close(lock)

    def _read(self) -> dict[str, str]:
        try:
            with open(f"{self._state}/bound.json", encoding="utf-8") as file:
                known = json.load(file)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise _denied(error, self._state) from error
        except ValueError:
            return {}  # cut off: devices go back by what is usual
        return {str(key): str(value) for key, value in known.items()} if isinstance(known, dict) else {}

    def _store(self, origins: dict[str, str]) -> None:
        path = f"{self._state}/bound.json"
        try:
            with open(f"{path}.new", "w", encoding="utf-8") as file:
                file.write(json.dumps(origins, indent=1) + "\n")
            os.replace(f"{path}.new", path)
        except OSError as error:
            raise _denied(error, path) from error


def _failed(error: OSError, path: str, device: Device) -> DeviceError:
    number = error.errno
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return _denied(error, path)
    if number == errno.EBUSY:
        return DeviceBusyError(f"the kernel is using {device.title}: try again in a moment")
    if number == errno.ENOENT and not os.path.exists(os.path.dirname(path)):
        return DeviceNotFoundError(
            f"{device.title} or its driver went away meanwhile: look with `hvring devices`"
        )
    what = f"the kernel refused to {os.path.basename(path)} {device.title}"
    if number == _ENOTSUPP:
        return BindFailedError(f"{what}: it takes only channels with a monitor bit; 6.10 or newer is needed")
    if number == errno.ENOMEM:
        return BindFailedError(
            f"{what} for want of memory in one piece: free some (`echo 1 > /proc/sys/vm/compact_memory`), try again"
        )
    return BindFailedError(f"{what}: {error.strerror}; its log may say more (dmesg)")


def _denied(error: OSError, path: str) -> DeviceError:
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return DevicePermissionError(f"no permission for {path}: binding needs root and a writable /sys")
    return DeviceError(f"{path}: {error.strerror}")
