# SPDX-License-Identifier: Apache-2.0
"""Integration-service messages, both directions, without any I/O: guest and virtual host share one truth.

One module per service holds its messages; the names that others need are found here, too, and loaded when
they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from hvring.ic.fcopy import CancelCopy, CompleteCopy, FcopyFlag, FcopyOperation, StartCopy, WriteChunk
    from hvring.ic.frame import (
        HEADER,
        MAX_MESSAGE,
        PIPE_HEADER,
        Frame,
        HeaderFlag,
        MessageType,
        Request,
        Version,
    )
    from hvring.ic.heartbeat import ApplicationState, Heartbeat
    from hvring.ic.kvp import (
        KvpDelete,
        KvpEnumerate,
        KvpGet,
        KvpItem,
        KvpOperation,
        KvpPool,
        KvpSet,
        KvpValue,
        ValueType,
    )
    from hvring.ic.kvp_ip import AddressFamily, KvpIpInfo
    from hvring.ic.negotiate import Negotiated, NegotiateReply, NegotiateRequest
    from hvring.ic.shutdown import ShutdownFlag, ShutdownRequest
    from hvring.ic.timesync import SampleFlag, TimeSampleV3, TimeSampleV4
    from hvring.ic.vss import FreezeFlag, Lun, VssAutoRecover, VssFlags, VssFreeze, VssOperation, VssRequest
    from hvring.status import Status

__all__ = [
    "HEADER",
    "MAX_MESSAGE",
    "PIPE_HEADER",
    "AddressFamily",
    "ApplicationState",
    "CancelCopy",
    "CompleteCopy",
    "FcopyFlag",
    "FcopyOperation",
    "Frame",
    "FreezeFlag",
    "HeaderFlag",
    "Heartbeat",
    "KvpDelete",
    "KvpEnumerate",
    "KvpGet",
    "KvpIpInfo",
    "KvpItem",
    "KvpOperation",
    "KvpPool",
    "KvpSet",
    "KvpValue",
    "Lun",
    "MessageType",
    "NegotiateReply",
    "NegotiateRequest",
    "Negotiated",
    "Request",
    "SampleFlag",
    "ShutdownFlag",
    "ShutdownRequest",
    "StartCopy",
    "Status",
    "TimeSampleV3",
    "TimeSampleV4",
    "ValueType",
    "Version",
    "VssAutoRecover",
    "VssFlags",
    "VssFreeze",
    "VssOperation",
    "VssRequest",
    "WriteChunk",
]

_NAMES: Final = {
    "hvring.ic.fcopy": (
        "CancelCopy",
        "CompleteCopy",
        "FcopyFlag",
        "FcopyOperation",
        "StartCopy",
        "WriteChunk",
    ),
    "hvring.ic.frame": (
        "HEADER",
        "MAX_MESSAGE",
        "PIPE_HEADER",
        "Frame",
        "HeaderFlag",
        "MessageType",
        "Request",
        "Version",
    ),
    "hvring.ic.heartbeat": ("ApplicationState", "Heartbeat"),
    "hvring.ic.kvp": (
        "KvpDelete",
        "KvpEnumerate",
        "KvpGet",
        "KvpItem",
        "KvpOperation",
        "KvpPool",
        "KvpSet",
        "KvpValue",
        "ValueType",
    ),
    "hvring.ic.kvp_ip": ("AddressFamily", "KvpIpInfo"),
    "hvring.ic.negotiate": ("Negotiated", "NegotiateReply", "NegotiateRequest"),
    "hvring.ic.shutdown": ("ShutdownFlag", "ShutdownRequest"),
    "hvring.ic.timesync": ("SampleFlag", "TimeSampleV3", "TimeSampleV4"),
    "hvring.ic.vss": (
        "FreezeFlag",
        "Lun",
        "VssAutoRecover",
        "VssFlags",
        "VssFreeze",
        "VssOperation",
        "VssRequest",
    ),
    "hvring.status": ("Status",),
}
_HOMES: Final = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'hvring.ic' has no attribute {name!r}")
    found: object = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = found  # the next use costs nothing
    return found
