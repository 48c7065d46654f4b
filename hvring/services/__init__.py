# SPDX-License-Identifier: Apache-2.0
"""The six services: message in, answer out; what they do to a machine goes through effects handed to them.

Each is loaded when it is first used: a program that serves one does not pay for the others.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from hvring.services.base import IntegrationService, Response, Result
    from hvring.services.fcopy import Fcopy
    from hvring.services.heartbeat import Heartbeat
    from hvring.services.kvp import Kvp
    from hvring.services.service import Answer, Counters, Reply, Service
    from hvring.services.shutdown import Shutdown
    from hvring.services.timesync import TimeSync
    from hvring.services.vss import Vss

    SERVICES: tuple[type[Service], ...]

__all__ = [
    "SERVICES",
    "Answer",
    "Counters",
    "Fcopy",
    "Heartbeat",
    "IntegrationService",
    "Kvp",
    "Reply",
    "Response",
    "Result",
    "Service",
    "Shutdown",
    "TimeSync",
    "Vss",
]

_MODULES: Final = {
    "Shutdown": "shutdown",
    "TimeSync": "timesync",
    "Heartbeat": "heartbeat",
    "Kvp": "kvp",
    "Vss": "vss",
    "Fcopy": "fcopy",
    "IntegrationService": "base",
    "Response": "base",
    "Result": "base",
}
_SERVICES: Final = tuple(_MODULES)[:6]


def __getattr__(name: str) -> object:
    found: object
    if name not in __all__:
        raise AttributeError(f"module 'hvring.services' has no attribute {name!r}")
    if name == "SERVICES":
        found = tuple(__getattr__(service) for service in _SERVICES)
    else:
        module = importlib.import_module(f"hvring.services.{_MODULES.get(name, 'service')}")
        found = getattr(module, name)
    globals()[name] = found  # the next use costs nothing
    return found
