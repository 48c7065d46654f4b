# SPDX-License-Identifier: Apache-2.0
"""What running agents know of the host's time, asked over their control sockets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hvring.cli.agents import named
from hvring.daemon.control.client import ControlClient
from hvring.daemon.control.protocol import ControlError

_PATIENCE = 5.0  # seconds


@dataclass(frozen=True, slots=True)
class AgentTime:
    """Of the agent that is process ``pid``; ``facts`` as of :meth:`hvring.services.TimeSync.facts`."""

    path: str
    pid: int
    facts: Mapping[str, Any]


def agents(control: str | None = None) -> list[AgentTime]:
    """Those that have timesync, here or at the socket ``control``; who does not answer is left out."""
    found = []
    for path in named(control):
        try:
            with ControlClient(path, timeout=_PATIENCE) as client:
                status = client.ask("status")
            facts, pid = status["services"]["timesync"]["time"], status["process"]["pid"]
        except (ControlError, KeyError, TypeError):
            continue
        if isinstance(facts, dict) and isinstance(pid, int):
            found.append(AgentTime(path, pid, facts))
    return found
