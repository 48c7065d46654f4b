# SPDX-License-Identifier: Apache-2.0
"""How much of the one loop's time those who ask may have; the rest is the services'."""

from __future__ import annotations

from typing import Final

_PARTS: Final = 4


class Share:
    """One part in four of the time: what took a while is followed by a rest.  Times are those of the loop's clock."""

    def __init__(self) -> None:
        self._free_at = 0.0

    def wait(self, now: float) -> float:
        """Seconds until it is their turn."""
        return max(0.0, self._free_at - now)

    def took(self, began: float, ended: float) -> None:
        """What was done for one of them."""
        self._free_at = ended + (_PARTS - 1) * (ended - began)
