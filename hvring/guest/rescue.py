# SPDX-License-Identifier: Apache-2.0
"""A thaw by this side's own descriptors, in a process of its own: FITHAW may wait, and nobody here does."""

from __future__ import annotations

import os
import signal
import struct
import threading
import warnings
from collections.abc import Mapping
from typing import Final

from hvring.guest import guardian

_STEP: Final = struct.Struct("=ii")
_THREAD_STACK: Final = 256 * 1024


class Rescue:
    """A forked process that thaws until all is thawed, even when this process is gone meanwhile.

    Nothing is looked up, imported or started for it: file systems are frozen.  ``descriptor`` gets readable when it has
    said something or is gone.  ``lease``: a descriptor that it keeps open, as the sign that it is there; -1: none.
    Raises OSError when there is no room for a process.
    """

    def __init__(self, mounts: Mapping[int, int], lease: int = -1) -> None:
        self.is_clear = False  #: all are thawed
        self.is_over = False  #: the process is gone
        self.descriptor, theirs = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            with warnings.catch_warnings():
                # Beside other threads a fork is safe for what takes no lock of theirs, and the child takes none.
                warnings.simplefilter("ignore", DeprecationWarning)
                self._pid = os.fork()
        except OSError:
            os.close(self.descriptor)
            os.close(theirs)
            raise
        if self._pid == 0:
            try:
                guardian.become_a_child()
                guardian.keep_only(theirs, lease, *mounts.values())
                threading.stack_size(_THREAD_STACK)
                guardian.Thawing(mounts).finish(lambda index, error: _tell(theirs, index, error))
                _tell(theirs, -1, 0)
            finally:
                os._exit(0)
        os.close(theirs)

    def look(self) -> tuple[int, int] | None:
        """Take what it has said: index and errno of one that would not thaw.  Does not wait."""
        trouble = None
        while not self.is_over:
            try:
                raw = os.read(self.descriptor, _STEP.size)
            except BlockingIOError:
                break
            if len(raw) != _STEP.size:
                self.is_over = True
                break
            index, error = _STEP.unpack(raw)
            if index < 0:
                self.is_clear = True
            else:
                trouble = index, error
        return trouble

    def kill(self) -> None:
        """It has nothing left to do, and may be stopped."""
        os.kill(self._pid, signal.SIGKILL)

    def close(self) -> None:
        """Once it is over, or when nobody waits any more; it thaws what is left to thaw in any case."""
        os.close(self.descriptor)
        try:
            # It has closed its pipe, and is about to be gone; the kernel may be a moment behind.
            os.waitpid(self._pid, 0 if self.is_over else os.WNOHANG)
        except ChildProcessError:
            pass


def _tell(pipe: int, index: int, error: int) -> None:
    try:
        os.write(pipe, _STEP.pack(index, error))
    except OSError:
        pass
