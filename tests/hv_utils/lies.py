# SPDX-License-Identifier: Apache-2.0
"""Messages that no kernel should hand out, and the status that each deserves."""

from __future__ import annotations

import struct

from hv_utils_model import FAIL
from hv_utils_model.packets import (
    fcopy,
    kvp_enumerate,
    message,
    vss,
)

SERVICES = ("kvp", "vss", "fcopy")
NO_MORE, NOT_SUPPORTED = 0x80070103, 0x80070032


HONEST = {"kvp": kvp_enumerate(2, 0), "vss": vss(2), "fcopy": fcopy(2)}


# ----------------------------------------------------------------------------- any bytes as a message


def kvp_lie(operation: int, *parts: tuple[int, bytes]) -> bytes:
    return message(bytes([operation]), *parts)


FULL_KEY, FULL_VALUE = b"k" * 512, b"v" * 2048
SIZES = struct.pack("<II", 5, 5)
SPLIT = "€".encode()[:2]

LIES: dict[str, tuple[str, bytes, int]] = {
    # name: service, message, status
    "kvp, 1 byte": ("kvp", b"\3", FAIL),
    "kvp, 7431 bytes": ("kvp", bytes(7431), FAIL),
    "kvp, 7433 bytes": ("kvp", bytes(7433), NO_MORE),
    "kvp, 16000 bytes": ("kvp", bytes(16000), NO_MORE),
    "kvp, operation 6": ("kvp", kvp_lie(6), NOT_SUPPORTED),
    "kvp, operation 255": ("kvp", kvp_lie(255), NOT_SUPPORTED),
    "kvp, a registration": ("kvp", kvp_lie(100), NOT_SUPPORTED),
    "kvp, pool 5": ("kvp", message(bytes([3, 5])), NO_MORE),
    "kvp, pool 255": ("kvp", message(bytes([1, 255]), (8, SIZES), (16, b"k"), (528, b"v")), NO_MORE),
    "kvp, index 0xffffffff": ("kvp", kvp_lie(3, (4, b"\xff" * 4)), NO_MORE),
    "kvp, GET without NUL": ("kvp", kvp_lie(0, (16, FULL_KEY)), NO_MORE),
    "kvp, DELETE without NUL": ("kvp", kvp_lie(2, (8, FULL_KEY)), NO_MORE),
    "kvp, SET key without NUL": ("kvp", kvp_lie(1, (8, SIZES), (16, FULL_KEY), (528, b"v")), NO_MORE),
    "kvp, SET value without NUL": ("kvp", kvp_lie(1, (8, SIZES), (16, b"k"), (528, FULL_VALUE)), NO_MORE),
    "kvp, SET broken key": ("kvp", kvp_lie(1, (8, SIZES), (16, SPLIT), (528, b"v")), NO_MORE),
    "kvp, SET broken value": ("kvp", kvp_lie(1, (8, SIZES), (16, b"k"), (528, b"\xff")), NO_MORE),
    "kvp, SET surrogates": ("kvp", kvp_lie(1, (8, SIZES), (16, b"k"), (528, b"\xed\xa0\x80")), NO_MORE),
    "kvp, SET value lost": ("kvp", kvp_lie(1, (8, struct.pack("<II", 2, 0)), (16, b"k")), NO_MORE),
    "kvp, GET_IP without NUL": ("kvp", kvp_lie(4, (4, b"A" * 256)), FAIL),
    "kvp, SET_IP without NUL": ("kvp", kvp_lie(5, (4, b"A" * 256)), FAIL),
    "kvp, SET_IP broken": ("kvp", kvp_lie(5, (4, b"\xff")), FAIL),
    "vss, 1 byte": ("vss", b"\5", FAIL),
    "vss, 11 bytes of FREEZE": ("vss", b"\5" + bytes(10), FAIL),
    "vss, 13 bytes of FREEZE": ("vss", b"\5" + bytes(12), FAIL),
    "vss, 4 bytes, a registration": ("vss", b"\x81\0\0\0", FAIL),
    "vss, 8000 bytes of FREEZE": ("vss", b"\5" + bytes(7999), FAIL),
    "fcopy, 1 byte": ("fcopy", b"\0", FAIL),
    "fcopy, 35 bytes": ("fcopy", bytes(35), FAIL),
    "fcopy, START of 1087 bytes": ("fcopy", bytes(1087), FAIL),
    "fcopy, START of 1089 bytes": ("fcopy", bytes(1089), FAIL),
    "fcopy, START without NUL": ("fcopy", message(bytes(4), (36, b"n" * 1040), size=1088), FAIL),
    "fcopy, START broken name": ("fcopy", message(bytes(4), (36, b"\xff"), (556, b"/"), size=1088), FAIL),
    "fcopy, WRITE of 6195 bytes": ("fcopy", b"\1\0\0\0" + bytes(6191), FAIL),
    "fcopy, WRITE of nothing": ("fcopy", b"\1\0\0\0" + bytes(32), FAIL),
    "fcopy, WRITE size absurd": ("fcopy", message(b"\1\0\0\0", (48, b"\xff" * 4), size=6196), FAIL),
    "fcopy, WRITE offset absurd": ("fcopy", message(b"\1\0\0\0", (40, b"\xff" * 8), size=6196), FAIL),
    "fcopy, operation 4": ("fcopy", b"\4\0\0\0" + bytes(60), FAIL),
    "fcopy, operation 0xffffffff": ("fcopy", b"\xff" * 64, FAIL),
}
