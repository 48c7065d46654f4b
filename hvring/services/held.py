# SPDX-License-Identifier: Apache-2.0
"""What writes to this machine's file systems waits while they are frozen: in the kernel it would take the loop along.

The THAW that ends the wait comes over the same loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

from hvring.errors import EffectError
from hvring.pending import Pending
from hvring.reasons import Reason

LONGEST: Final = 20.0  # seconds; hosts and hv_utils wait for 30
_LOOK: Final = 0.05  # seconds from one look to the next

T = TypeVar("T")


def when_thawed(is_frozen: Callable[[], bool] | None, write: Callable[[], T | Pending[T]]) -> T | Pending[T]:
    """``write``, as soon as nothing is frozen.  EffectError when that takes longer than a host waits."""
    if is_frozen is None or not is_frozen():
        return write()
    give_up_at = time.monotonic() + LONGEST

    def look() -> T | Pending[T]:
        if not is_frozen():
            return write()
        now = time.monotonic()
        if now >= give_up_at:
            raise EffectError("the file systems are frozen for a backup", reason=Reason.FROZEN)
        return Pending(look, min(now + _LOOK, give_up_at))

    return look()
