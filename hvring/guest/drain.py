# SPDX-License-Identifier: Apache-2.0
"""What is done before the machine goes down on the host's order: commands, and an embedder's callables."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Final

from hvring.errors import EffectError
from hvring.guest.command import run, wait_for
from hvring.guest.power import OnDrain, PowerAction, ShutdownOrder
from hvring.pending import Pending, Steps, awaited
from hvring.reasons import Reason

_WORDS: Final = {
    PowerAction.OFF: "poweroff",
    PowerAction.RESTART: "restart",
    PowerAction.HIBERNATE: "hibernate",
}


class Drain:
    """``commands`` one after the other, each a program and its words, then ``callables``; all until one deadline."""

    def __init__(self, commands: Sequence[Sequence[str]] = (), callables: Sequence[OnDrain] = ()) -> None:
        self._commands = commands
        self._callables = callables
        self._left: list[int] = []

    def __call__(self, order: ShutdownOrder, until: float) -> Steps[None]:
        """All of them, though some fail; then EffectError with what those said."""
        self._left[:] = [pid for pid in self._left if wait_for(pid) is None]
        failures = []
        for command in self._commands:
            try:
                yield from self._run(command, order, until)
            except EffectError as error:
                failures.append(str(error))
        for one in self._callables:
            try:
                yield from _limited(one(order), until)
            except Exception as error:  # an embedder's own
                failures.append(str(error) or repr(error))
        if failures:
            raise EffectError("; ".join(failures), reason=Reason.DRAIN_FAILED)

    def _run(self, command: Sequence[str], order: ShutdownOrder, until: float) -> Steps[None]:
        if time.monotonic() >= until:
            raise EffectError(f"{command[0]}: not run, the time was up")
        yield from run(command, until, self._left, environment=_environment(order, until))


def _limited(outcome: Pending[None] | None, until: float) -> Steps[None]:
    work = awaited(outcome) if isinstance(outcome, Pending) else None
    if work is None:
        return
    try:
        for wait in work:
            if time.monotonic() >= until:
                raise EffectError("was not ready in time")
            yield type(wait)(min(wait.at, until), wait.descriptor)
    finally:
        work.close()


def _environment(order: ShutdownOrder, until: float) -> dict[str, str]:
    """Ours, and HVRING_SHUTDOWN_…; TEXT is a stranger's, DEADLINE the seconds that are left."""
    text = order.text.replace("\0", " ").encode(errors="replace").decode()
    told = {
        "ACTION": _WORDS[order.action],
        "REASON": f"{order.reason:#010x}",
        "TEXT": text,
        "FORCE": str(int(order.force)),
        "DEADLINE": f"{max(0.0, until - time.monotonic()):.3f}",
    }
    return {**os.environ, **{f"HVRING_SHUTDOWN_{name}": value for name, value in told.items()}}
