# SPDX-License-Identifier: Apache-2.0
"""Freezing the file systems of this machine for a backup (PROTOCOL §4.5.3)."""

from __future__ import annotations

from typing import Protocol


class Freezer(Protocol):
    """What the backup service needs."""

    @property
    def ready(self) -> bool:
        """Whether a freeze can be expected to work now."""
        ...

    @property
    def frozen(self) -> bool:
        """Whether the file systems are frozen now."""
        ...

    def freeze(self) -> None:
        """Freeze all or none; EffectError on failure, with everything thawed again."""
        ...

    def thaw(self) -> None:
        """Thaw everything; EffectError if something could not be thawed, or was thawed too early."""
        ...
