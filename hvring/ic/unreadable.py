# SPDX-License-Identifier: Apache-2.0
"""What stands in the place of a message that cannot be read."""

from __future__ import annotations

from dataclasses import dataclass

from hvring.errors import MessageError


@dataclass(frozen=True, slots=True)
class Unreadable:
    """The operation of such a message, which may end what came before it, and what is wrong."""

    operation: int
    error: MessageError
