# SPDX-License-Identifier: Apache-2.0
"""Writing the fields of a message: what does not fit is the fault of whoever made it, a ValueError."""

from __future__ import annotations

import struct


def pack(layout: struct.Struct, what: str, *values: int | bytes) -> bytes:
    """``values`` as ``layout`` has them; ``what`` names the message.  ValueError for a number that does not fit."""
    try:
        return layout.pack(*values)
    except struct.error:
        numbers = ", ".join(str(value) for value in values if not isinstance(value, bytes))
        raise ValueError(f"{what} with a number that does not fit its field: {numbers}") from None


def exactly(raw: bytes, size: int, what: str) -> bytes:
    """``raw``, which a layout would cut or fill up silently.  ValueError if it is not of this size."""
    if len(raw) != size:
        raise ValueError(f"{what} of {len(raw)} bytes, it has {size}")
    return raw
