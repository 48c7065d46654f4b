# SPDX-License-Identifier: Apache-2.0
"""Serving: :class:`Agent` for asyncio, :func:`serve` for one service in a thread of the caller.

Loaded when they are used, so that a program which serves without asyncio does not pay for it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from hvring.agent.agent import Agent
    from hvring.agent.blocking import serve
    from hvring.agent.channel import MessageChannel, Opener, ServiceChannel
    from hvring.agent.message_responder import MessageResponder
    from hvring.agent.responder import Responder
    from hvring.agent.settings import (
        CopyRule,
        FcopySettings,
        HeartbeatSettings,
        KvpSettings,
        Settings,
        ShutdownSettings,
        TimeSyncSettings,
        VssSettings,
    )
    from hvring.agent.standard import Effects, standard_services
    from hvring.agent.stay import Stay

__all__ = [
    "Agent",
    "CopyRule",
    "Effects",
    "FcopySettings",
    "HeartbeatSettings",
    "KvpSettings",
    "MessageChannel",
    "MessageResponder",
    "Opener",
    "Responder",
    "ServiceChannel",
    "Settings",
    "ShutdownSettings",
    "Stay",
    "TimeSyncSettings",
    "VssSettings",
    "serve",
    "standard_services",
]

_MODULES: Final = {
    "Agent": "agent",
    "Effects": "standard",
    "MessageChannel": "channel",
    "MessageResponder": "message_responder",
    "Opener": "channel",
    "Responder": "responder",
    "ServiceChannel": "channel",
    "Stay": "stay",
    "serve": "blocking",
    "standard_services": "standard",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'hvring.agent' has no attribute {name!r}")
    return getattr(importlib.import_module(f"hvring.agent.{_MODULES.get(name, 'settings')}"), name)
