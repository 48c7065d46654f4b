# SPDX-License-Identifier: Apache-2.0
"""The control socket as a part of a program that serves: where it is, and when."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import Final

from hvring.daemon.control.protocol import DIRECTORY, SUFFIX
from hvring.daemon.settings import ControlSettings
from hvring.daemon.status import name_of
from hvring.errors import EndpointError

AUTO: Final = "auto"
NONE: Final = "none"


def socket_path(settings: ControlSettings, names: Sequence[str], *, real: bool) -> str | None:
    """Where to listen; None: nowhere.  ``auto`` is for root and for effects that are meant."""
    if settings.socket == NONE:
        return None
    if settings.socket != AUTO:
        return settings.socket
    if not real or os.geteuid() != 0:
        return None
    return f"{DIRECTORY}/{name_of(names)}{SUFFIX}"


def make_directory(path: str) -> None:
    """That of the socket at ``path``, if it is the usual one.  Raises EndpointError where it is not safe."""
    if os.path.dirname(path) != DIRECTORY:
        return
    try:
        os.mkdir(DIRECTORY, 0o755)
    except FileExistsError:
        pass
    except OSError as error:
        raise EndpointError(f"cannot make {DIRECTORY}: {error.strerror}") from error
    found = os.lstat(DIRECTORY)
    if not stat.S_ISDIR(found.st_mode) or found.st_mode & stat.S_IWOTH:
        raise EndpointError(f"{DIRECTORY} is no directory, or everybody's: remove it, or set control.socket")
