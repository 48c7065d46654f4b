# SPDX-License-Identifier: Apache-2.0
"""``hvring kvp watch | wait``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import chain
from typing import Final

from hvring.cli.kvp import output
from hvring.errors import EffectError
from hvring.events import printable
from hvring.ic.kvp import KvpPool
from hvring.pools.changes import difference
from hvring.pools.pool import Pool
from hvring.pools.pools import Pools


def watch(args: argparse.Namespace) -> int:
    with _pool(args).watch() as changes:
        there = difference((), changes.items) if args.all else ()
        for change in chain(there, changes):
            if args.json:
                output.as_json({"key": change.key, "value": change.value, "was": change.was})
            elif change.value is None:
                print(f"- {printable(change.key)}", flush=True)
            else:
                print(f"+ {printable(change.key)}  {printable(change.value)}", flush=True)
    return 0


def wait(args: argparse.Namespace) -> int:
    output.value(args, _pool(args).wait(args.key, args.timeout, quiet=args.quiet))
    return 0


VERBS: Final[dict[str, Callable[[argparse.Namespace], int]]] = {"watch": watch, "wait": wait}


def _pool(args: argparse.Namespace) -> Pool:
    pool = KvpPool.EXTERNAL if args.pool is None else args.pool
    if pool == KvpPool.AUTO:
        raise EffectError("pool 2 (auto) is made up on demand: nothing in it is ever told")
    return Pools(args.pool_dir)[pool]
