# SPDX-License-Identifier: Apache-2.0
"""How a machine is made to go down: logind, systemctl, a word to its first process, a command.

A way has begun when it is certain that the machine goes down, and not before: the host is told so.  Until the answer
has left something holds it up, where there is such a thing: a delay lock, or that the last word is yet to come.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Final

from hvring.errors import EffectError
from hvring.guest import first_process
from hvring.guest.command import Command, find, run, wait_for
from hvring.guest.power import Begun, Places, PowerAction, ShutdownOrder
from hvring.pending import Steps, Wait
from hvring.reasons import Reason

WHO: Final = "hvring"
WHY: Final = "The host is being told"
_VERBS: Final = {
    PowerAction.OFF: "poweroff",
    PowerAction.RESTART: "reboot",
    PowerAction.HIBERNATE: "hibernate",
}
_TELLING: Final = (Reason.INHIBITED, Reason.PERMISSION_DENIED, Reason.CANNOT_HIBERNATE)
_LOCKED_WITHIN: Final = 5.0  # seconds


def missing(way: str, action: PowerAction, commands: Sequence[Sequence[str]], places: Places) -> str | None:
    """Why this way cannot be used for this action here, as far as that is known without trying; None: it can."""
    if way == "logind":
        return _no_logind(places)
    if way == "systemctl":
        return None if find("systemctl") else "no systemctl"
    if way == "init":
        return first_process.missing(action, places)
    if any(find(command[0]) for command in commands):
        return None
    return f"no {' and no '.join(command[0] for command in commands) or 'command'}"


def begin(
    order: ShutdownOrder,
    ways: Sequence[str],
    commands: Sequence[Sequence[str]],
    timeout: float,
    places: Places,
    left: list[int],
) -> Steps[Begun]:
    """One way after the other until one has begun; EffectError with what each said if none has.

    ``left``: processes that were not waited for until their end.
    """
    left[:] = [pid for pid in left if wait_for(pid) is None]
    failures = []
    reasons = []
    for way in ways:
        if (why := missing(way, order.action, commands, places)) is not None:
            failures.append(why)
            continue
        try:
            if way == "logind":
                return (yield from _by_logind(order, timeout, places))
            if way == "systemctl":
                return (yield from _by_systemctl(order, timeout, left))
            if way == "init":
                return first_process.begin(order.action, places)
            return (yield from _by_commands(order, commands, timeout, left))
        except (EffectError, OSError, ImportError) as error:
            failures.append(f"{way}: {error}")
            if isinstance(error, EffectError):
                reasons.append(error.reason)
    known = (reason for reason in _TELLING if reason in reasons)
    reason = next(known, Reason.COMMAND_FAILED)
    raise EffectError(f"cannot {order.action.value}: {'; '.join(failures)}", reason=reason)


def _no_logind(places: Places) -> str | None:
    if not os.path.exists(places.bus):
        return "no system bus for logind"
    from importlib.util import find_spec

    return None if find_spec("jeepney") else "no jeepney for logind"


def _by_logind(order: ShutdownOrder, timeout: float, places: Places) -> Steps[Begun]:
    from hvring.guest import logind  # and with it jeepney

    return (yield from logind.begin(order, places.bus, time.monotonic() + timeout))


def _by_systemctl(order: ShutdownOrder, timeout: float, left: list[int]) -> Steps[Begun]:
    """systemctl, with a lock that holds the end up until the host was told; without a lock where there is none such."""
    lock = yield from _locked("sleep" if order.action is PowerAction.HIBERNATE else "shutdown", left)
    try:
        yield from _run(("systemctl", _VERBS[order.action]), order, timeout, left)
    except BaseException:
        lock()
        raise
    return lock


def _locked(what: str, left: list[int]) -> Steps[Begun]:
    program = find("systemd-inhibit")
    if program is None:
        return _nothing
    ours, theirs = os.pipe2(os.O_CLOEXEC)[::-1]
    words = (f"--what={what}", "--mode=delay", f"--who={WHO}", f"--why={WHY}")
    try:
        # It holds the lock for as long as the program that it starts reads, which is until we are through or gone.
        holder = Command(
            "systemd-inhibit",
            program,
            ("systemd-inhibit", *words, "sh", "-c", "echo locked; exec cat"),
            left,
            keeps=True,
            stdin=theirs,
        )
    except OSError:
        os.close(ours)
        return _nothing
    finally:
        os.close(theirs)

    def release() -> None:
        os.close(ours)
        holder.close()

    end = time.monotonic() + _LOCKED_WITHIN
    try:
        while "locked" not in holder.said() and time.monotonic() < end and holder.failure() is None:
            yield Wait(min(end, time.monotonic() + 0.02), holder.descriptor)
    except BaseException:
        release()
        raise
    return release


def _by_commands(
    order: ShutdownOrder, commands: Sequence[Sequence[str]], timeout: float, left: list[int]
) -> Steps[Begun]:
    failures = []
    for command in commands:
        try:
            yield from _run(command, order, timeout, left)
        except EffectError as error:
            failures.append(str(error))
        else:
            return _nothing
    raise EffectError("; ".join(failures), reason=Reason.COMMAND_FAILED)


def _run(command: Sequence[str], order: ShutdownOrder, timeout: float, left: list[int]) -> Steps[None]:
    yield from run(command, time.monotonic() + timeout, left, argv=_argv(command, order))


def _argv(command: Sequence[str], order: ShutdownOrder) -> list[bytes]:
    argv = [os.fsencode(word) for word in command]
    if os.path.basename(command[0]) == "systemctl":
        if order.force:
            argv.append(b"--ignore-inhibitors")
        # The text came from the host: one argument, no NUL, one line, and nothing that cannot be encoded.
        text = " ".join(order.text.replace("\0", " ").split())
        if text and order.action is not PowerAction.HIBERNATE:
            argv.append(f"--message={text}".encode(errors="replace"))
    return argv


def _nothing() -> None:
    """Nothing was held up."""
