# SPDX-License-Identifier: Apache-2.0
"""The key-value pools that a Hyper-V host and this machine share, for programs on this machine.

    from hvring.pools import Pools

    pools = Pools()
    pools.guest.set("app.state", "ready")                        # the host reads it
    config = pools.external.wait("ignition.config", timeout=60)  # the host writes it, in parts or whole
    for change in pools.external.watch():
        print(change.key, change.value)

Beside cloud-init, azure-init and Linux's daemon: both families of locks are taken, and a kill at any moment leaves the
old state or the new one (PROTOCOL §4.4.5).  Needs neither the extensions nor the services.
"""

from __future__ import annotations

from hvring.errors import EffectError
from hvring.guest.pool import DIRECTORY, PoolBusyError
from hvring.guest.records import PoolLimitError
from hvring.pools.changes import Change
from hvring.pools.chunks import Convention, MissingChunkError, join, split
from hvring.pools.limits import FILE, HOST, Limits
from hvring.pools.pool import Pool, PoolTimeoutError
from hvring.pools.pools import Pools
from hvring.pools.watch import Watch

__all__ = [
    "DIRECTORY",
    "FILE",
    "HOST",
    "Change",
    "Convention",
    "EffectError",
    "Limits",
    "MissingChunkError",
    "Pool",
    "PoolBusyError",
    "PoolLimitError",
    "PoolTimeoutError",
    "Pools",
    "Watch",
    "join",
    "split",
]
