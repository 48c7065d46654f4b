# SPDX-License-Identifier: Apache-2.0
"""What a host is told about a request, in one place for messages and for effects on this machine."""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """The field at P+20 of an answer (PROTOCOL §3.3); Windows' HRESULTs."""

    OK = 0
    FAIL = 0x80004005
    NO_MORE_ITEMS = 0x80070103
    NOT_SUPPORTED = 0x80070032
    MACHINE_LOCKED = 0x800704F7
    NOT_CONNECTED = 0x8007048F
    INVALID_ARG = 0x80070057
    NOT_FOUND = 0x80041002
    ALREADY_EXISTS = 0x80070050
    DISK_FULL = 0x80070070
    ACCESS_DENIED = 0x80070005
