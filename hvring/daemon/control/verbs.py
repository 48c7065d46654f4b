# SPDX-License-Identifier: Apache-2.0
"""What can be asked of a running agent, from checked arguments to plain data."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from hvring.daemon.control.protocol import Args, ControlError
from hvring.daemon.control.server import Answer, Asked, Verb
from hvring.daemon.metrics import exposition
from hvring.daemon.status import Health, Status
from hvring.ic.heartbeat import ApplicationState
from hvring.news import LONGEST, Bucket

_ACTS: Final = 20  # requests that do more than look which may come together,
_ACTS_REFILL: Final = 0.5  # and seconds until there may be one more: each is in the log, or starts a process
_STATES: Final = {state.name.lower(): state for state in ApplicationState}

Tell = Callable[..., None]


def verbs(
    status: Status,
    tell: Tell,
    *,
    reload: Callable[[], Sequence[str]],
    plan: Callable[[], Awaitable[Answer]],
) -> Mapping[str, Verb]:
    """By their names.  ``tell`` writes down who changed something: event, service, detail, facts."""

    acts = Bucket(time.monotonic(), _ACTS, _ACTS_REFILL)

    def act() -> None:
        if not acts.take(time.monotonic()):
            raise ControlError("too much is asked of this agent; try again in a moment", "busy")

    def show(asked: Asked) -> Answer:
        _only(asked.args)
        return status.snapshot()

    def numbers(asked: Asked) -> Answer:
        _only(asked.args)
        return {"text": exposition(status.snapshot())}

    def register() -> Health:
        found = status.health
        if found is None:
            raise ControlError("this agent does not serve heartbeats: ask the one that does", "absent")
        return found

    def show_health(asked: Asked) -> Answer:
        _only(asked.args)
        return register().show()

    def set_health(asked: Asked) -> Answer:
        _only(asked.args, state=(str, type(None)), text=str)
        word, text = asked.args.get("state"), asked.args.get("text", "")[:LONGEST]
        if word is not None and word not in _STATES:
            raise ControlError(f"there is no state {word!r:.100}; there are {', '.join(_STATES)}", "request")
        found = register()
        act()
        found.set(None if word is None else _STATES[word], text)
        tell("health", "heartbeat", f"{asked.peer} set it", state=word, text=text, uid=asked.peer.uid)
        return found.show()

    def apply(asked: Asked) -> Answer:
        _only(asked.args)
        act()
        tell("control", "agent", f"{asked.peer} asked to reload", uid=asked.peer.uid)
        return {"said": list(reload())}

    def plan_backup(asked: Asked) -> Awaitable[Answer]:
        _only(asked.args)
        act()
        return plan()

    return {
        "status": show,
        "metrics": numbers,
        "health": show_health,
        "set_health": set_health,
        "reload": apply,
        "plan": plan_backup,
    }


def _only(args: Args, **kinds: type | tuple[type, ...]) -> None:
    """No other arguments than these, of these types."""
    for name, value in args.items():
        if name not in kinds:
            known = ", ".join(kinds) or "none"
            raise ControlError(f"the argument {name!r:.100} is not known; there are {known}", "request")
        if not isinstance(value, kinds[name]):
            raise ControlError(f"the argument {name!r} cannot be {value!r:.100}", "request")
