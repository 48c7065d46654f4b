# SPDX-License-Identifier: Apache-2.0
"""Opening what is not there yet: attempts, and the kernel's word that another one is worth it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Final, TypeVar

from hvring.pending import soonest
from hvring.transport import uevents
from hvring.transport.errors import (
    DeviceError,
    DeviceFaultError,
    DeviceNotFoundError,
    DeviceUnavailableError,
    NodeMissingError,
    NodePermissionError,
    NotBoundError,
)
from hvring.transport.uevents import Uevents

T = TypeVar("T")

_GIVEN_AWAY_WITHIN: Final = 2.0  # seconds that udev has to give a new node to this user


def opened(attempt: Callable[[], T], *, timeout: float | None, wait: bool) -> T:
    """What ``attempt`` opens, at the latest after ``timeout`` seconds; None: for ever.

    A node that comes late is waited for, with ``wait`` whatever a DeviceUnavailableError can say. Raises what the last
    attempt did.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    waits = _Waits(wait)
    with ExitStack() as stack:
        listening = False
        notices: Uevents | None = None
        while True:
            try:
                return attempt()
            except DeviceError as error:
                if not waits.covers(error):
                    raise
                if not listening:  # and look again: the event may have come before the socket
                    listening, notices = True, _listen(stack)
                elif not uevents.wait(notices, waits.until(deadline), _look_after(notices, error)):
                    raise


async def opened_async(
    attempt: Callable[[], T],
    *,
    timeout: float | None,
    wait: bool,
    prepare: Callable[[], object] | None = None,
    on_wait: Callable[[DeviceError], object] | None = None,
) -> T:
    """As :func:`opened`, for asyncio; may be cancelled at any time.

    ``prepare`` is called before each attempt and may raise what an attempt may; what it returns is awaited if it
    can be.  ``on_wait`` hears why it is waited, and whenever that changes.
    """
    import asyncio

    last: DeviceError | None = None
    told = ""
    waits = _Waits(wait)
    try:
        with ExitStack() as stack:
            async with asyncio.timeout(timeout):
                listening = False
                notices: Uevents | None = None
                while True:
                    try:
                        if prepare is not None:
                            prepared = prepare()
                            if isinstance(prepared, Awaitable):
                                await prepared
                        return attempt()
                    except DeviceError as error:
                        if not waits.covers(error):
                            raise
                        last = error
                    if not listening:
                        listening, notices = True, _listen(stack)
                    else:
                        if on_wait is not None and str(last) != told:
                            told = str(last)
                            on_wait(last)
                        end = waits.until(None)
                        async with asyncio.timeout(None if end is None else end - time.monotonic()):
                            await uevents.wait_async(notices, _look_after(notices, last))
    except TimeoutError:
        assert last is not None
        raise last from None


class _Waits:
    """Which errors are waited for, and until when."""

    def __init__(self, wait: bool) -> None:
        self._wait = wait
        self._refused_until: float | None = None

    def covers(self, error: DeviceError) -> bool:
        """Whether to wait and try again."""
        if not isinstance(error, NodePermissionError):
            self._refused_until = None
            waits = isinstance(error, DeviceUnavailableError) and not isinstance(error, DeviceFaultError)
            return (waits and self._wait) or isinstance(error, NodeMissingError)
        # A node is given away by udev a moment after the kernel made it, and a host can have it made anew at any time.
        if self._refused_until is None:
            self._refused_until = time.monotonic() + _GIVEN_AWAY_WITHIN
        return time.monotonic() < self._refused_until

    def until(self, deadline: float | None) -> float | None:
        """``deadline`` (time.monotonic), or when the present error is not waited for any more."""
        return soonest(deadline, self._refused_until)


def _look_after(notices: Uevents | None, error: DeviceError) -> float:
    """Seconds after which to look unasked: rarely for what the kernel says, as that a device came or was bound."""
    is_said = isinstance(error, (DeviceNotFoundError, NodeMissingError, NotBoundError))
    return (
        uevents.LOOK_RARELY if is_said and notices is not None and uevents.come_here() else uevents.LOOK_EVERY
    )


def _listen(stack: ExitStack) -> Uevents | None:
    """None: this machine has no descriptor left or no such sockets; whoever waits looks now and then."""
    try:
        return stack.enter_context(Uevents())
    except DeviceFaultError:
        return None
