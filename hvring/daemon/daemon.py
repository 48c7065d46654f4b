# SPDX-License-Identifier: Apache-2.0
"""An agent as a program: it serves until a signal ends it, and is looked at and told things meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from hvring.agent.agent import Agent
from hvring.agent.channel import Opener
from hvring.agent.stay import Stay
from hvring.daemon.health import HealthRegister
from hvring.daemon.log import Log
from hvring.daemon.notify import ServiceManager
from hvring.daemon.parts import Parts
from hvring.daemon.reasons_pool import ReasonsPool
from hvring.daemon.reload import Reloader, Remake
from hvring.daemon.settings import Configuration
from hvring.daemon.signals import EndingSignals
from hvring.daemon.status import Status
from hvring.errors import EndpointError
from hvring.events import Event
from hvring.services.service import Service


class Daemon:
    """An agent, and around it what only a program of its own has.

    ``listeners`` hear each event when it happens, also during a freeze: then they must not write.
    """

    def __init__(
        self,
        services: Iterable[Service],
        opener: Opener,
        log: Log,
        signals: EndingSignals,
        configuration: Configuration,
        *,
        read: Callable[[], Configuration],
        remake: Remake,
        config_file: str | None = None,
        health: HealthRegister | None = None,
    ) -> None:
        """``configuration`` as it holds, the services' ``real`` included; ``config_file``: where it was read.

        ``read`` gives the next one, ``remake`` the services by it.
        """
        self.listeners: list[Callable[[Event], None]] = [log.event]
        run = configuration.run
        self.agent = Agent(
            services,
            opener,
            on_event=self._heard,
            on_calm=self._calm,
            keeps_events=False,
            stay=Stay(run.stay, run.stay_share),
        )
        self.reloader = Reloader(self.agent, configuration, read, remake, self._heard)
        self.health = health or HealthRegister()
        self.status = Status(
            self.agent,
            rehearsal=not configuration.services.real,
            config=config_file,
            waits=log.waits,
            health=self.health if "heartbeat" in self.agent.services else None,
        )
        self.log = log
        self._signals = signals
        log.follow(self.agent)
        self.manager = ServiceManager()
        self.reasons = ReasonsPool(self.agent, lambda: self.configuration.services, log.tell)
        self.listeners += (self.status.heard, self.manager.heard, self.reasons.heard)
        self.reloader.applies("log", log.adopt)
        self.health.adopt(configuration.health)
        self.reloader.applies("health", self.health.adopt)

    async def run(self) -> None:
        """Serve until a signal.  EndpointError when no service is served any more, or a part cannot start."""
        async with Parts(self), self.reasons:
            work = asyncio.create_task(self.agent.run())

            def stop() -> None:
                if not work.cancelling():
                    self.manager.stopping()
                    self.log.end(self.agent)  # before the services forget what they know
                    work.cancel()

            loop = asyncio.get_running_loop()
            with self.manager.told_of(self.agent, loop), self._signals.handled_by(loop, stop, self.reload):
                try:
                    await work
                except asyncio.CancelledError:
                    if not work.cancelled():
                        raise
                else:
                    raise EndpointError("no service is served any more; the lines above say why")

    @property
    def configuration(self) -> Configuration:
        """What holds now."""
        return self.reloader.configuration

    def reload(self) -> list[str]:
        """Read the configuration anew; what was applied and what was not, a line each.  The events say so, too."""
        self.manager.reloading()
        try:
            return self.reloader.reload()
        finally:
            self.manager.ready(self.agent)

    def _calm(self) -> None:
        self.log.calm()
        self.reasons.look()
        self.reloader.calm()

    def _heard(self, event: Event) -> None:
        for listener in self.listeners:
            listener(event)
