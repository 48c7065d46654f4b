# SPDX-License-Identifier: Apache-2.0
"""Who freezes in rounds of chaos: a freezer that is used as a service does, and a service in a real agent."""

from __future__ import annotations

import asyncio
import os
import random
import select
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from chaos_choice import Choice
from chaos_host import thaw_all
from freezer_process import restricted

from hvring.agent import Agent
from hvring.errors import EffectError
from hvring.events import Event, EventKind
from hvring.guest.freezer import SystemFreezer
from hvring.guest.hooks.freezer import HookedFreezer
from hvring.guest.hooks.timeouts import Timeouts as HookTimeouts
from hvring.guest.launch import PLAIN, Way
from hvring.pending import Pending
from hvring.services import Heartbeat, Vss
from hvring.transport.virtual import connect_async

#: Of a hook: long beside a shell's start on a busy machine, for one that is late is killed before it does anything.
HOOK_TIMEOUTS = HookTimeouts(hook=6.0, total=12.0, hold=30.0)


def make_freezer(choice: Choice, listeners: dict[str, str]) -> SystemFreezer | HookedFreezer:
    """``listeners``: where a manager starts guardians, and processes that run hooks, if it does."""

    def ways(what: str) -> Callable[[], list[Way]]:
        # 5 seconds is what one costs that is stopped before it is ready.
        plain = replace(PLAIN, timeout=5.0)
        found = [Way((), 5.0, listeners[what]), plain] if choice.over_socket else [plain]
        return lambda: found

    freezer = restricted(**choice.freezer, ways=ways("guardian"))
    if not choice.hooks:
        return freezer
    return HookedFreezer(
        freezer, choice.hook_directories, HOOK_TIMEOUTS, ways=ways("hooks"), answer=60.0, blocking=False
    )


def use(freezer: SystemFreezer | HookedFreezer, mounts: list[int], tell: int, chance: random.Random) -> None:
    """Freeze, hold and thaw, with a word for each state."""
    hold = chance.choice((0.0, 0.02, 0.05, 0.1))
    breaks_off = chance.choices(("never", "when some are frozen", "at once"), (17, 2, 1))[0]

    def state(word: bytes) -> None:
        os.write(tell, word)

    def wait(work: Pending[None]) -> Pending[None] | None:
        poll = select.poll()
        poll.register(work.descriptor, select.POLLIN)
        poll.poll(max(0.0, work.at - time.monotonic()) * 1000)
        return work.resume()

    state(b"s")
    try:
        work = freezer.freeze()
        was_told = False
        while work is not None:
            if breaks_off == "at once" or (was_told and breaks_off == "when some are frozen"):
                work.cancel()
                break
            work = wait(work)
            if freezer.frozen and not was_told:
                was_told = True
                state(b"b")
        if work is None:
            state(b"f")
            until = time.monotonic() + hold
            while freezer.lost() is None and (left := until - time.monotonic()) > 0:
                select.select([freezer.watch()], [], [], left)
    except EffectError:
        pass  # it could not freeze, with one of its processes killed
    for _ in range(10):
        state(b"t")
        try:
            work = freezer.thaw()
            while work is not None:
                work = wait(work)
        except EffectError:
            pass  # it was thawed too early, or it is not thawed yet
        if not freezer.frozen:
            break
    while isinstance(freezer, HookedFreezer) and (ending := freezer.ending) is not None:
        select.select(
            [ending.descriptor] if ending.descriptor >= 0 else [],
            [],
            [],
            max(0.0, ending.at - time.monotonic()),
        )
        freezer.look()
    # It says that all is thawed: is it?
    os.write(tell, b"L" if thaw_all(mounts) else b"d")


async def serve(
    make: Callable[[], SystemFreezer | HookedFreezer],
    host: str,
    tell: int,
    max_frozen: float,
    reload_after: float | None,
) -> None:
    """An agent until SIGTERM.  ``reload_after``: seconds until it gets new settings, whatever it does then."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    problems: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, problem: problems.append(problem))

    def service() -> Vss:
        return Vss(make(), max_frozen=max_frozen)

    vss = service()
    if reload_after is not None:
        loop.call_later(reload_after, lambda: vss.adopt(service()))
    os.write(tell, b"s")
    opener = partial(connect_async, host, timeout=None, wait=True)

    def hear(event: Event) -> None:
        if event.kind is EventKind.FROZEN and "not frozen" in event.detail:
            os.write(tell, b"o")

    async with Agent([vss, Heartbeat()], opener, on_event=hear):
        await ended.wait()
    if problems:
        raise AssertionError(problems)
