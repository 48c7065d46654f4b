# SPDX-License-Identifier: Apache-2.0
"""``hvring kvp get | set | delete | list``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Final

from hvring.cli.kvp import output
from hvring.errors import EffectError
from hvring.events import printable
from hvring.guest.pool_owner import PoolOwner
from hvring.ic.kvp import KvpPool
from hvring.pools.chunks import Convention
from hvring.pools.pools import Pools


def get(args: argparse.Namespace) -> int:
    pools = (KvpPool.EXTERNAL, KvpPool.GUEST) if args.pool is None else (args.pool,)
    value = next((v for v in (_get(args, pool) for pool in pools) if v is not None), None)
    if value is None:
        return _missing(args, *pools)
    output.value(args, value)
    return 0


def set_(args: argparse.Namespace) -> int:
    _pools(args)[_stored(args)].set(args.key, args.value, split=_convention(args.split))
    return 0


def delete(args: argparse.Namespace) -> int:
    pool = _stored(args)
    if _pools(args)[pool].delete(args.key, joined=_convention(args.joined)):
        return 0
    return _missing(args, pool)


def list_(args: argparse.Namespace) -> int:
    pool = KvpPool.EXTERNAL if args.pool is None else args.pool
    items = _automatic() if pool == KvpPool.AUTO else _pools(args)[pool].items()
    stale = PoolOwner(args.pool_dir).stale()
    if stale is not None and pool != KvpPool.AUTO:
        print(f"hvring kvp: {printable(str(stale))}; see: hvring kvp clean --help", file=sys.stderr)
    if args.json:
        output.as_json(items)
    elif args.raw:
        output.raw("".join(f"{key}\t{value}\n" for key, value in items))
    else:
        rows = [(printable(key), printable(value)) for key, value in items]
        width = max((len(key) for key, _ in rows), default=0)
        for key, value in rows:
            print(f"{key:<{width}}  {value}")
    return 0


VERBS: Final[dict[str, Callable[[argparse.Namespace], int]]] = {
    "get": get,
    "set": set_,
    "delete": delete,
    "list": list_,
}


def _pools(args: argparse.Namespace) -> Pools:
    return Pools(args.pool_dir)


def _get(args: argparse.Namespace, pool: int) -> str | None:
    if pool == KvpPool.AUTO:
        return dict(_automatic()).get(args.key)
    return _pools(args)[pool].get(args.key, join=_convention(args.join))


def _stored(args: argparse.Namespace) -> int:
    pool: int = KvpPool.GUEST if args.pool is None else args.pool
    if pool == KvpPool.AUTO:
        raise EffectError("pool 2 (auto) is made up on demand: nothing can be stored in it")
    return pool


def _automatic() -> list[tuple[str, str]]:
    from hvring.guest.identity import Identity

    return list(Identity().automatic())


def _convention(word: str | None) -> Convention | None:
    return None if word is None else Convention(word)


def _missing(args: argparse.Namespace, *pools: int) -> int:
    print(
        f"hvring kvp: no key {args.key!r} in pool {' or '.join(str(int(pool)) for pool in pools)}; "
        f"see: hvring kvp list --pool {int(pools[0])}",
        file=sys.stderr,
    )
    return 1
