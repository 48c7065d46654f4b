# SPDX-License-Identifier: Apache-2.0
"""What can be wrong between a name and an open channel on Hyper-V; each message ends with what to do about it."""

from __future__ import annotations

from hvring.errors import HvringError


class DeviceError(HvringError):
    """A VMBus device cannot be found, bound, given back or opened."""


class DeviceUnavailableError(DeviceError):
    """Not now, but perhaps later without a change of the request: a caller that waits tries again."""


class NotHyperVError(DeviceError):
    """This machine has no VMBus."""


class WrongNameError(DeviceError):
    """Neither the name of a service nor a GUID, or a class with several devices."""


class DeviceNotFoundError(DeviceUnavailableError):
    """The host does not offer this device now."""


class WrongDeviceError(DeviceError):
    """The device is of another class than its instance GUID promises."""


class NotBoundError(DeviceUnavailableError):
    """The device belongs to another driver than uio_hv_generic, or to none."""


class NodeMissingError(DeviceUnavailableError):
    """The device is bound, but its uio node is not there yet, or not any more."""


class DeviceBusyError(DeviceUnavailableError):
    """Another program has the device open, or the kernel is using it."""


class DevicePermissionError(DeviceError):
    """This user may not do that."""


class DriverMissingError(DeviceError):
    """uio_hv_generic is not loaded and could not be loaded."""


class BindRefusedError(DeviceError):
    """Binding would hurt this machine: storage, the only network adapter, a kernel that would panic."""


class BindFailedError(DeviceError):
    """The kernel refused to bind the device; it went back to where it was."""
