# SPDX-License-Identifier: Apache-2.0
"""Lines of a program that serves: whoever reads them, or stops to, holds nothing up."""

from __future__ import annotations

import os
import queue
import select
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Final, TextIO

from hvring.daemon.signals import held_back

_KEPT: Final = 1000  # lines for a reader that is slow; those behind them are counted
_LAST: Final = 1.0  # seconds that a reader has for the last lines
_LOOK_AGAIN: Final = 1.0  # seconds, while lines are held: a freeze may end before anybody saw it begin


def lost(count: int) -> str:
    """For people."""
    return f"({count} lines were lost: nobody read)"


class Lines:
    """``with Lines() as say: say("hello")`` writes to standard output from a thread of its own.

    A pager that waits for a key, or a pipe that nobody empties, blocks a write for ever: then lines are lost, and their
    number is said later.  A reader that has left is no error.
    """

    def __init__(self, stream: TextIO | None = None, *, lost: Callable[[int], str] = lost) -> None:
        """``stream``: standard output if there is none; ``lost`` says how many lines nobody read."""
        self._stream = sys.stdout if stream is None else stream
        self.lost = lost
        self.is_held: Callable[[], bool] = lambda: (
            False
        )  # asked by that thread: nothing is written while it is true
        # Without a standard output, which a caller may have closed, nobody reads.
        self.descriptor: Final = -1 if self._stream is None else self._stream.fileno()
        self._encoding = "utf-8" if self._stream is None else self._stream.encoding
        self._queue: queue.Queue[str | None] = queue.Queue(_KEPT)
        self._lost = 0
        self._calm = threading.Condition()
        self._is_started = False  # many a log stays empty
        # A daemon, and without the buffer of sys.stdout: the program can end while it is blocked.
        self._thread = threading.Thread(target=self._write, name="hvring-lines", daemon=True)

    def __call__(self, line: str) -> None:
        """Never blocks, never raises."""
        if not self._is_started:
            try:
                with held_back():  # the thread inherits that, so that the signals stay with the loop
                    self._thread.start()
            except (
                RuntimeError
            ):  # as many threads as this machine allows: with a later line there may be room
                self._lost += 1
                return
            self._is_started = True
        try:
            if self._lost:
                self._queue.put_nowait(self.lost(self._lost))
                self._lost = 0
            self._queue.put_nowait(line)
        except queue.Full:
            self._lost += 1

    def wake(self) -> None:
        """``is_held`` is not true any more."""
        with self._calm:
            self._calm.notify_all()

    @property
    def is_terminal(self) -> bool:
        """Whether a person reads them."""
        return os.isatty(self.descriptor)

    def __enter__(self) -> Lines:
        if self._stream is not None:
            self._stream.flush()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._is_started:
            return
        try:
            self._queue.put(None, timeout=_LAST)
        except queue.Full:
            return
        self._thread.join(_LAST)

    def _write(self) -> None:
        while (line := self._queue.get()) is not None:
            with self._calm:
                while self.is_held():
                    self._calm.wait(_LOOK_AGAIN)
            data = f"{line}\n".encode(self._encoding, "backslashreplace")
            try:
                while data:
                    data = data[self._write_some(data) :]
            except OSError:  # the reader left; what is said from now on is not for anybody
                data = b""

    def _write_some(self, data: bytes) -> int:
        try:
            return os.write(self.descriptor, data)
        except BlockingIOError:  # O_NONBLOCK is one flag for all who have this output: here it is waited for
            poll = select.poll()
            poll.register(self.descriptor, select.POLLOUT)
            poll.poll()
            return 0
