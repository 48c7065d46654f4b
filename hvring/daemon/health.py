# SPDX-License-Identifier: Apache-2.0
"""How the applications of this machine are, for the heartbeat: the worst of what somebody said and what checks found.

Nothing happens by itself: a heartbeat asks, gets what is known by then, and starts the checks that are due.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from hvring.daemon.settings import HealthSettings
from hvring.ic.heartbeat import ApplicationState

if TYPE_CHECKING:
    from hvring.daemon.watched import Check, Pace, Watched

_UNKNOWN, _HEALTHY = ApplicationState.UNKNOWN, ApplicationState.HEALTHY
_STOPPED, _CRITICAL = ApplicationState.STOPPED, ApplicationState.CRITICAL

#: From the best to the worst.
_ORDER: Final = (_HEALTHY, _UNKNOWN, _STOPPED, _CRITICAL)
_LONGEST: Final = 200  # characters of a reason, which may be a stranger's


class Finding(NamedTuple):
    """A state, and why in words."""

    state: ApplicationState
    why: str = ""


class HealthRegister:
    """What a heartbeat asks: ``health`` of :class:`hvring.services.Heartbeat`.  Used on one event loop."""

    def __init__(
        self,
        checks: Sequence[Check] = (),
        pace: Pace | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._monotonic = monotonic
        self._said: Finding | None = None
        self._configured: str | None = None
        self._watched: list[Watched] = []
        self._left: dict[str, list[int]] = {}  # processes of checks, by these, that hang or were given up
        self.use(checks, pace)

    def use(self, checks: Sequence[Check], pace: Pace | None = None) -> None:
        """These checks in place of those until now; what is known of one of the same name stays."""
        if not (checks or self._watched):
            return
        from hvring.daemon.watched import Pace, Watched  # many an agent has nothing to look at

        before = {watched.check.name: watched for watched in self._watched}
        self._watched = [Watched(check, pace or Pace(), self._monotonic) for check in checks]
        for watched in self._watched:
            if (known := before.get(watched.check.name)) is not None:
                watched.finding = known.finding
        for old in before.values():
            old.cancel()

    def set(self, state: ApplicationState | None, text: str = "") -> None:
        """Somebody says how things are, until somebody says otherwise; None takes it back."""
        self._said = None if state is None else Finding(state, text[:_LONGEST])

    def __call__(self) -> ApplicationState | None:
        """What is known now, without waiting; None when there is nobody to know it.  Starts the checks that are due."""
        self._reap()
        for watched in self._watched:
            watched.start_if_due()
        return self.state

    @property
    def state(self) -> ApplicationState | None:
        """The worst of all."""
        return None if (worst := self._worst()) is None else worst[1].state

    @property
    def why(self) -> str:
        """The reason for that state, with the name of what it comes from."""
        worst = self._worst()
        return "" if worst is None else ": ".join(filter(None, (worst[0], worst[1].why)))

    def show(self) -> dict[str, Any]:
        """For status and metrics: ``state`` (a lower-case name or None), ``why``, ``sources`` with ``name``, too."""
        state = self.state
        return {
            "state": None if state is None else state.name.lower(),
            "why": self.why,
            "sources": [
                {"name": name, "state": finding.state.name.lower(), "why": finding.why}
                for name, finding in self._findings()
            ],
        }

    def adopt(self, settings: HealthSettings) -> None:
        """Look at what these settings name; what is known of the rest is forgotten."""
        checks: Sequence[Check] = ()
        pace = None
        if settings.units or settings.urls or settings.fresh or settings.file is not None:
            from hvring.daemon import checks as made

            checks, pace = made.checks(settings, self._left), made.pace(settings)
        if settings.state != self._configured:
            self._configured = settings.state
            self.set(None if settings.state is None else ApplicationState[settings.state.upper()])
        self.use(checks, pace)

    def close(self) -> None:
        """No check goes on."""
        for watched in self._watched:
            watched.cancel()

    def _reap(self) -> None:
        """Those whose check is not made any more, too."""
        for left in self._left.values():
            if left:
                from hvring.guest.command import wait_for

                left[:] = [pid for pid in left if wait_for(pid) is None]

    def _findings(self) -> list[tuple[str, Finding]]:
        said = [] if self._said is None else [("said", self._said)]
        return said + [(watched.check.name, watched.finding) for watched in self._watched]

    def _worst(self) -> tuple[str, Finding] | None:
        return max(self._findings(), key=lambda found: _ORDER.index(found[1].state), default=None)
