# SPDX-License-Identifier: Apache-2.0
"""The parts of a program that serves which are only there if the settings ask for them; imported only then."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import TYPE_CHECKING, Any

from hvring.daemon.settings import Configuration, MetricsSettings
from hvring.errors import EndpointError

if TYPE_CHECKING:
    from hvring.daemon.control.server import ControlServer
    from hvring.daemon.daemon import Daemon
    from hvring.daemon.listener import MetricsListener
    from hvring.daemon.planning import Planner


class Parts:
    """``async with Parts(daemon):`` they are there inside of the block."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._control: ControlServer | None = None
        self._metrics: MetricsListener | None = None
        self._planner: Planner | None = None
        self._starting: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Parts:
        """EndpointError when something is in the way of one: then there is none of them."""
        configuration = self._daemon.configuration
        try:
            await self._listen(configuration)
            try:
                self._serve_metrics(configuration.metrics)
            except EndpointError as error:  # several agents read the same file: it serves all the same
                self._daemon.log.tell(
                    "failed", "agent", f"nobody can fetch the numbers of this agent: {error}"
                )
            self._daemon.reloader.applies("metrics", self._serve_metrics)
        except BaseException:
            self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    async def _listen(self, configuration: Configuration) -> None:
        from hvring.daemon.control.part import make_directory, socket_path

        real, names = configuration.services.real, list(self._daemon.agent.services)
        path = socket_path(configuration.control, names, real=real)
        if path is None:
            return
        from hvring.daemon.control.server import ControlServer, group_number
        from hvring.daemon.control.verbs import verbs

        daemon, group = self._daemon, configuration.control.group
        self._control = control = ControlServer(
            path,
            verbs(daemon.status, daemon.log.tell, reload=daemon.reload, plan=self._plan),
            daemon.status.snapshot,
            group=None if group is None else group_number(group),
        )
        try:
            make_directory(path)
            await control.start()
        except EndpointError as error:
            if path == configuration.control.socket:
                raise
            daemon.log.tell(
                "failed", "agent", f"nobody can ask how this agent is: {error}"
            )  # it serves all the same
        daemon.listeners.append(control.changed)

    async def _plan(self) -> dict[str, Any]:
        from hvring.daemon.control.protocol import ControlError

        daemon = self._daemon
        if "vss" not in daemon.agent.services:
            raise ControlError("this agent makes no backups: ask the one that does", "absent")
        if daemon.agent.quiet:
            raise ControlError("file systems are frozen now: ask after the thaw", "frozen")
        from hvring.daemon.planning import Planner, standard_files

        if self._planner is None:
            self._planner = Planner()
        own = standard_files()
        if self._control is not None:
            own.append(("the control socket", self._control.path))
        return await self._planner.ask(daemon.configuration.services, own)

    def _serve_metrics(self, settings: MetricsSettings) -> None:
        """By these settings from now on.  EndpointError: by the old ones."""
        fresh: MetricsListener | None = None
        if settings.listen is not None:
            from hvring.daemon.listener import MetricsListener

            fresh = MetricsListener(settings.listen, self._daemon.status.snapshot)
            fresh.bind()
        self._end_metrics()
        self._metrics = fresh
        if fresh is not None:
            self._starting = asyncio.get_running_loop().create_task(fresh.start())

    def _end_metrics(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
        if self._metrics is not None:
            self._metrics.close()

    def _close(self) -> None:
        if self._control is not None:
            self._control.close()
        self._end_metrics()
