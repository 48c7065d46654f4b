# SPDX-License-Identifier: Apache-2.0
"""Telling the first process of a machine to end it, where it is known which one it is and what it understands."""

from __future__ import annotations

import os
import signal
import stat
import struct
from typing import Final

from hvring.errors import EffectError
from hvring.guest.power import Begun, Places, PowerAction
from hvring.reasons import Reason

_SYSTEMD: Final = {
    PowerAction.OFF: signal.SIGRTMIN + 4,  # systemd(1): starts poweroff.target
    PowerAction.RESTART: signal.SIGRTMIN + 5,
}
_BUSYBOX: Final = {PowerAction.OFF: signal.SIGUSR2, PowerAction.RESTART: signal.SIGTERM}
_RUNLEVELS: Final = {PowerAction.OFF: b"0", PowerAction.RESTART: b"6"}
# sysvinit's struct init_request: magic, command, run level, seconds between SIGTERM and SIGKILL, and room.
_REQUEST: Final = struct.Struct("=iiii368x")
_MAGIC: Final = 0x03091969
_RUNLEVEL: Final = 1


def missing(action: PowerAction, places: Places) -> str | None:
    """Why the first process cannot be told; None: it can."""
    kind = _kind(places)
    if kind is None:
        return "a first process that is none of systemd, busybox and sysvinit"
    if action not in _RUNLEVELS:
        return f"no word for {kind} to {action.value}"
    return None


def begin(action: PowerAction, places: Places) -> Begun:
    """See that it can be told; it is told when the result is called.  EffectError, OSError: it cannot be."""
    kind = _kind(places)
    if kind == "sysvinit":
        return _by_runlevel(action, places)
    number = (_SYSTEMD if kind == "systemd" else _BUSYBOX)[action]
    # Of the process that was looked at, should this be a namespace whose first process is about to change.
    first = os.pidfd_open(places.first)
    try:
        signal.pidfd_send_signal(first, 0)
    except OSError as error:
        os.close(first)
        raise EffectError(f"the first process cannot be told: {error.strerror}") from error

    def tell() -> None:
        try:
            signal.pidfd_send_signal(first, number)
        except OSError:
            pass  # a first process does not go away, and may be told by who may tell it once
        finally:
            os.close(first)

    return tell


def _kind(places: Places) -> str | None:
    """By its program and not by its name, which anything may have."""
    try:
        program = os.path.basename(os.readlink(f"{places.proc}/{places.first}/exe"))
    except OSError:  # not ours to look at; systemd says it itself
        return "systemd" if os.path.isdir(f"{places.run}/systemd/system") else None
    if program == "systemd":
        return "systemd"
    if program.startswith("busybox"):
        return "busybox" if _is_called_init(places) else None
    if program == "init" and _is_fifo(_pipe(places)):
        return "sysvinit"
    return None


def _is_called_init(places: Places) -> bool:
    """Whether busybox was started as init: a shell's script may be the first process, too, and hears no signal."""
    try:
        with open(f"{places.proc}/{places.first}/cmdline", "rb") as line:
            name = line.read(256).split(b"\0")[0]
    except OSError:
        return False
    return os.path.basename(name) in (b"init", b"linuxrc")


def _pipe(places: Places) -> str:
    return f"{places.run}/initctl"


def _is_fifo(path: str) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except OSError:
        return False


def _by_runlevel(action: PowerAction, places: Places) -> Begun:
    try:
        pipe = os.open(_pipe(places), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # ENXIO: nobody reads
    except OSError as error:
        raise EffectError(f"{_pipe(places)}: {error.strerror}", reason=Reason.NO_WAY) from error

    def tell() -> None:
        try:
            os.write(pipe, _REQUEST.pack(_MAGIC, _RUNLEVEL, _RUNLEVELS[action][0], 0))
        except OSError:
            pass  # it had been opened: its reader is the first process
        finally:
            os.close(pipe)

    return tell
