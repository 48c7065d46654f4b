# SPDX-License-Identifier: Apache-2.0
"""What a guardian's errors mean: in words, and by the names that stay."""

from __future__ import annotations

import errno
import os
from typing import Final

from hvring.guest import guardian
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


def explain_open(error: int) -> str:
    """Why a mount point could not be opened, for people."""
    if error == guardian.HIDDEN:
        return "hidden under another mount"
    if error == errno.ETIMEDOUT:
        return "opening it hangs"
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


def freeze_reason(error: int) -> Reason:
    """The same, by its name."""
    return _FREEZE_REASONS.get(error, Reason.FREEZE_FAILED)
