# SPDX-License-Identifier: Apache-2.0
"""The pools of data exchange, as the words of a command name them (PROTOCOL §4.4.4)."""

from __future__ import annotations

import argparse
from typing import Final

from hvring.ic.kvp import KvpPool

POOLS: Final[dict[str, int]] = {pool.name.lower().replace("_", "-"): int(pool) for pool in KvpPool}
CHOICES: Final = f"0 to {max(POOLS.values())}, or {', '.join(POOLS)}"


def pool(text: str) -> int:
    """The number of a pool that is named so, for argparse."""
    if text in POOLS:
        return POOLS[text]
    if text.isdecimal() and int(text) in POOLS.values():
        return int(text)
    raise argparse.ArgumentTypeError(f"no pool is called {text!r}; there are {CHOICES}")
