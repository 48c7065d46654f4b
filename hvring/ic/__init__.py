# SPDX-License-Identifier: Apache-2.0
"""Integration-service messages, both directions, without any I/O: guest and virtual host share one truth.

One module per service holds its messages; the names that others need are re-exported here.
"""

from hvring.ic.fcopy import CancelCopy, CompleteCopy, FcopyFlag, FcopyOperation, StartCopy, WriteChunk
from hvring.ic.frame import HEADER, MAX_MESSAGE, PIPE_HEADER, Frame, HeaderFlag, MessageType, Request, Version
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
