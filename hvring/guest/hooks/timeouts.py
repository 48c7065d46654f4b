# SPDX-License-Identifier: Apache-2.0
"""How long hooks may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timeouts:
    """In seconds: for one phase of one hook; for all that is before the freeze; until hooks get their end unasked."""

    hook: float = 30.0
    total: float = 120.0
    hold: float = 150.0
