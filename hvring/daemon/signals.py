# SPDX-License-Identifier: Apache-2.0
"""Signals that end a command which has something to give back: none of them kills it half-way.

SIGHUP has two meanings: the terminal is gone, for a command that had one, or "read your settings anew" for a service.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

# All that end a program by default, can be held back, and do not tell of an error of its own.
_ENDING: Final = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM),
    *(signal.SIGVTALRM, signal.SIGPROF, signal.SIGXCPU, signal.SIGIO, signal.SIGPWR, signal.SIGSTKFLT),
)


class StoppedError(BaseException):
    """A signal came before or after the time in which an event loop takes it."""


class EndingSignals:
    """Made by :func:`ending_signals`."""

    def __init__(self) -> None:
        self._has_terminal = _has_terminal()
        # `nohup` and the like: who set it to be ignored meant it
        self._hears_hangup = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN

    @contextmanager
    def handled_by(
        self, loop: asyncio.AbstractEventLoop, stop: Callable[[], None], reload: Callable[[], object]
    ) -> Iterator[None]:
        """While the loop runs, ``stop`` is called for each signal that ends, ``reload`` for SIGHUP to a service.

        Those that were held back until now are among them.
        """
        numbers = [*_ENDING]
        for number in _ENDING:
            loop.add_signal_handler(number, stop)
        if self._hears_hangup:
            numbers.append(signal.SIGHUP)
            loop.add_signal_handler(signal.SIGHUP, stop if self._has_terminal else reload)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
        try:
            yield
        finally:
            # What is given back now is given back to the end.  Removing a handler brings the default back for a
            # moment, which would kill.
            signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
            for number in numbers:
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)

    def ending(self) -> tuple[signal.Signals, ...]:
        """Those that end the command outside of the loop."""
        return (*_ENDING, signal.SIGHUP) if self._hears_hangup and self._has_terminal else _ENDING

    def heard(self) -> tuple[signal.Signals, ...]:
        """Those that end it, and SIGHUP to a service, for which there is nothing to do outside of the loop."""
        return (*_ENDING, signal.SIGHUP) if self._hears_hangup else _ENDING


@contextmanager
def ending_signals() -> Iterator[EndingSignals]:
    """From here to the end of the block a signal that ends raises, so that everything is undone; then as before."""
    signals = EndingSignals()

    def stop(number: int, _: object) -> None:
        if number in signals.ending():
            for each in signals.heard():
                signal.signal(each, signal.SIG_IGN)
            raise StoppedError(signal.Signals(number).name)

    before = {number: signal.signal(number, stop) for number in signals.heard()}
    try:
        yield signals
    except StoppedError:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


@contextmanager
def held_back() -> Iterator[None]:
    """Signals that end wait until the end of the block, or for another thread."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (*_ENDING, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
