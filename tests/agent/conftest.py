# SPDX-License-Identifier: Apache-2.0
"""An agent and a virtual host over real memory and sockets, on one loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from hvring.agent import Agent, FcopySettings, KvpSettings, Settings, standard_services
from hvring.events import Event, EventKind
from hvring.host import VirtualHost
from hvring.transport.virtual import connect_async


@dataclass
class Pair:
    """Both sides, and what the agent told."""

    host: VirtualHost
    agent: Agent
    files: Path
    pools: Path
    events: list[Event] = field(default_factory=list)

    def kinds(self, service: str) -> list[EventKind]:
        return [event.kind for event in self.events if event.service == service]


@pytest.fixture
def both(tmp_path: Path) -> Callable[..., AbstractAsyncContextManager[Pair]]:
    """``async with both("kvp", …) as pair``: attached and negotiated; keywords are settings."""

    @asynccontextmanager
    async def make(*names: str, **more: object) -> AsyncIterator[Pair]:
        files, pools = tmp_path / "files", tmp_path / "pools"
        files.mkdir()
        settings = Settings(kvp=KvpSettings(pools), fcopy=FcopySettings([files]), **more)  # type: ignore[arg-type]
        events: list[Event] = []
        services = standard_services(settings, names) if names else standard_services(settings)
        path = tmp_path / "host.sock"
        opener = partial(connect_async, path, timeout=None, wait=True)
        async with (
            VirtualHost(path) as host,
            Agent(services, opener, on_event=events.append) as agent,
        ):
            async with asyncio.timeout(30):
                await host.wait_ready(*names)
            yield Pair(host, agent, files, pools, events)

    return make
