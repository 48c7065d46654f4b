# SPDX-License-Identifier: Apache-2.0
"""What can be wrong between a name and an open channel on Hyper-V; each message ends with what to do about it.

One question divides them: :class:`DeviceUnavailableError` and its kinds may pass without anybody doing anything here,
and a host can cause them at any time, so whoever serves for long tries again. All others need somebody on this machine.
"""

from __future__ import annotations

from hvring.errors import HvringError


class DeviceError(HvringError):
    """A VMBus device cannot be found, bound, given back or opened."""


class DeviceUnavailableError(DeviceError):
    """Not now, but perhaps later without a change of the request: a caller that waits tries again."""

    is_final = False


class DeviceFaultError(DeviceUnavailableError):
    """What the host offers, or the kernel makes of it, cannot be used as it is now: try again after a pause.

    Nothing will say when it is better, unlike with the other kinds, so the functions that wait do not wait for it.
    """


class NotHyperVError(DeviceError):
    """This machine has no VMBus."""

    is_final = True


class WrongNameError(DeviceError):
    """Neither the name of a service nor a GUID."""

    is_final = True


class SeveralDevicesError(DeviceFaultError, WrongNameError):
    """The name is that of a class of which the host offers several devices now."""


class DeviceNotFoundError(DeviceUnavailableError):
    """The host does not offer this device now."""


class WrongDeviceError(DeviceFaultError):
    """The device is of another class than its instance GUID promises."""


class NotBoundError(DeviceUnavailableError):
    """The device belongs to another driver than uio_hv_generic, or to none."""


class NodeMissingError(DeviceUnavailableError):
    """The device is bound, but its uio node is not there yet, or not any more."""


class DeviceBusyError(DeviceUnavailableError):
    """Another program has the device open, or the kernel is using it."""


class DevicePermissionError(DeviceError):
    """This user may not do that."""

    is_final = True


class NodePermissionError(DevicePermissionError):
    """This user may not open the uio node; udev may give it away in a moment."""


class DriverMissingError(DeviceError):
    """uio_hv_generic is not loaded and could not be loaded."""

    is_final = True


class BindRefusedError(DeviceError):
    """Binding would hurt this machine, or cannot work on it: storage, the only network adapter, a confidential VM, a
    kernel that would panic or does not give this device away."""

    is_final = True


class BindFailedError(DeviceFaultError):
    """The kernel refused to bind the device; it went back to where it was."""
