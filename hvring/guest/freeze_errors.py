# SPDX-License-Identifier: Apache-2.0
"""What a guardian's errors mean: in words, and by the names that stay."""

from __future__ import annotations

import errno
import os
from typing import Final

from hvring.events import printable
from hvring.guest import guardian
from hvring.guest.mounts import Filesystem
from hvring.guest.stack import backing_files, block_devices
from hvring.reasons import Reason, of_errno

_FREEZE_REASONS: Final = {
    errno.ETIMEDOUT: Reason.FREEZE_TIMEOUT,
    errno.ECHILD: Reason.GUARDIAN_LOST,
    errno.EOPNOTSUPP: Reason.FREEZE_UNSUPPORTED,
    errno.ENOTTY: Reason.FREEZE_UNSUPPORTED,
    errno.EPERM: Reason.NOT_PRIVILEGED,
    errno.EIO: Reason.IO_ERROR,
    errno.EROFS: Reason.READ_ONLY,
}


def explain_open(error: int, where: str = "") -> str:
    """Why a mount point could not be opened, for people; ``where``: in the kernel, if it hangs."""
    if error == guardian.HIDDEN:
        return "hidden under another mount"
    if error == errno.ETIMEDOUT:
        return f"opening it hangs (in {where})" if where else "opening it hangs"
    return os.strerror(error)


def open_reason(error: int) -> Reason:
    """The same, by its name."""
    if error == errno.ETIMEDOUT:
        return Reason.MOUNT_UNREACHABLE
    found = of_errno(error)
    return Reason.MOUNT_NOT_OPENED if found is Reason.FAILED else found


def explain_freeze(error: int) -> str:
    """Why a file system could not be frozen, for people."""
    if error == errno.ETIMEDOUT:
        return "it took too long"
    if error == errno.ECHILD:
        return "the freezing process was killed"
    return os.strerror(error)


def explain_stuck(filesystem: Filesystem, words: str, sysfs: str = "/sys") -> str:
    """Why freezing it does not end: what the guardian found, and what it lies on; "" if nothing is known."""
    found = [words] if words else []
    first = filesystem.mounts[0]
    for device in block_devices(first.device, first.source, sysfs):
        found += [f"it is an image: {printable(path)}" for path in backing_files(device, sysfs)]
    return f" ({'; '.join(found)})" if found else ""


def freeze_reason(error: int) -> Reason:
    """The same, by its name."""
    return _FREEZE_REASONS.get(error, Reason.FREEZE_FAILED)
