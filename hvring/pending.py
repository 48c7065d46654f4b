# SPDX-License-Identifier: Apache-2.0
"""The one word for "not yet": how to go on, when, and which descriptor to wait for."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
U = TypeVar("U")


def _nothing() -> None:
    """There is nothing to undo."""


@dataclass(frozen=True, slots=True)
class Pending(Generic[T_co]):
    """Not yet.  Call ``resume()`` once: when ``descriptor`` gets readable, or at ``at`` at the latest.

    ``at`` is a time of ``time.monotonic()``, infinite where only the descriptor tells; ``descriptor`` is -1 where there
    is none.  ``resume`` never blocks; it returns the result or the next Pending, or raises what the call that began
    this would have raised.  ``cancel()`` stands in its place when nobody wants the result any more; it neither blocks
    nor raises.
    """

    resume: Callable[[], T_co | Pending[T_co]]
    at: float
    descriptor: int = -1
    cancel: Callable[[], object] = _nothing


def then(outcome: T | Pending[T], do: Callable[[T], U | Pending[U]]) -> U | Pending[U]:
    """``do`` with the result of ``outcome``, now or as soon as there is one."""
    if isinstance(outcome, Pending):
        pending: Pending[T] = outcome
        return Pending(lambda: then(pending.resume(), do), pending.at, pending.descriptor, pending.cancel)
    return do(outcome)


def soonest(*waits: float | None) -> float | None:
    """The shortest of these waits, or the first of these moments; None stands for one that never ends."""
    least = None
    for wait in waits:
        if wait is not None and (least is None or wait < least):
            least = wait
    return least


def is_due(pending: Pending[T], now: float | None = None) -> bool:
    """Whether it is time to resume. A descriptor is asked itself: others may have caused this look."""
    if (time.monotonic() if now is None else now) >= pending.at:
        return True
    if pending.descriptor < 0:
        return False
    import select

    poll = select.poll()
    poll.register(pending.descriptor, select.POLLIN)
    return bool(poll.poll(0))


def settle(outcome: T | Pending[T]) -> T:
    """The result, for callers that may block."""
    import select

    while isinstance(outcome, Pending):
        poll = select.poll()
        if outcome.descriptor >= 0:
            poll.register(outcome.descriptor, select.POLLIN)
        try:
            wait = max(0.0, outcome.at - time.monotonic()) * 1000
            poll.poll(None if wait == float("inf") else wait)
        except BaseException:
            outcome.cancel()
            raise
        outcome = outcome.resume()
    return outcome


@dataclass(frozen=True, slots=True)
class Wait:
    """What :func:`steps` may wait for: a time of ``time.monotonic()``, and a descriptor where there is one."""

    at: float
    descriptor: int = -1


Steps = Generator[Wait, None, T]
"""Work in several steps: it yields what to wait for before the next one, and returns the result."""


def steps(work: Steps[T]) -> T | Pending[T]:
    """Go on with ``work`` until it has to wait; cancelling closes it, and its ``finally`` must not wait."""
    try:
        wait = next(work)
    except StopIteration as end:
        result: T = end.value
        return result
    return Pending(lambda: steps(work), wait.at, wait.descriptor, work.close)


def awaited(pending: Pending[T]) -> Steps[T]:
    """As a step of such work: the result of ``pending``, which is cancelled with it."""
    while True:
        try:
            yield Wait(pending.at, pending.descriptor)
        except GeneratorExit:
            pending.cancel()
            raise
        if is_due(pending):
            outcome = pending.resume()
            if not isinstance(outcome, Pending):
                return outcome
            pending = outcome
