# SPDX-License-Identifier: Apache-2.0
"""``hvring kvp export | import | clean``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Final

from hvring.cli.kvp import output
from hvring.errors import EffectError
from hvring.events import printable
from hvring.guest.pool_owner import PoolOwner
from hvring.guest.records import pack_raw
from hvring.ic.kvp import KvpPool
from hvring.pools.pools import NAMES, Pools

_FORMAT: Final = "hvring pools 1"
Records = list[tuple[str, str]]


def export(args: argparse.Namespace) -> int:
    """Escaped to ASCII: bytes that are no UTF-8 stand there as lone surrogates, U+DC80 to U+DCFF."""
    pools = Pools(args.pool_dir)
    wanted = [name for name in NAMES if name != "auto"] if args.pool is None else [_name(args.pool)]
    found = {name: pools[name].items() for name in wanted}
    print(json.dumps({"format": _FORMAT, "pools": found}, indent=1))
    return 0


def import_(args: argparse.Namespace) -> int:
    try:
        with open(0 if args.file == "-" else args.file, encoding="utf-8", closefd=args.file != "-") as file:
            wanted = _read(json.load(file))
    except (ValueError, RecursionError) as error:
        words = "nested too deep" if isinstance(error, RecursionError) else error
        raise EffectError(f"{args.file}: {words}") from error
    if args.pool is not None:
        name = _name(args.pool)
        if name not in wanted:
            raise EffectError(
                f"{args.file}: there is no pool {name}; there are {', '.join(wanted) or 'none'}"
            )
        wanted = {name: wanted[name]}
    pools = Pools(args.pool_dir)
    for name, records in wanted.items():
        pools[name].exchange(None if args.replace else {key for key, _ in records}, records)
    return 0


def clean(args: argparse.Namespace) -> int:
    owner = PoolOwner(args.pool_dir)
    stale = owner.stale()
    emptied: list[str] = []
    if args.record_only:
        owner.record()
        said = "the pools are this machine's"
    elif args.stale and stale is None:
        said = "the pools are not known to be another machine's: nothing was done"
    else:
        emptied = owner.empty()
        owner.forget()
        said = f"emptied {', '.join(emptied)}" if emptied else "the pools are empty"
    if args.json:
        output.as_json({"emptied": emptied, "stale": None if stale is None else stale.was})
    else:
        print(printable(said))
    return 0


VERBS: Final[dict[str, Callable[[argparse.Namespace], int]]] = {
    "export": export,
    "import": import_,
    "clean": clean,
}


def _name(pool: int) -> str:
    if pool == KvpPool.AUTO:
        raise EffectError("pool 2 (auto) is made up on demand: nothing is stored in it")
    return NAMES[pool]


def _read(document: object) -> dict[str, Records]:
    """All of it, before anything is changed; raises ValueError."""
    pools = document.get("pools") if isinstance(document, dict) else None
    if not isinstance(pools, dict) or not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise ValueError(f'this is no output of `hvring kvp export`: "format" is to be "{_FORMAT}"')
    return {str(name): _records(str(name), records) for name, records in pools.items()}


def _records(name: str, records: object) -> Records:
    if name not in NAMES or name == "auto":
        raise ValueError(f"there is no pool {name!r}")
    if not isinstance(records, list):
        raise ValueError(f"the pool {name} is no list")
    found: Records = []
    for number, record in enumerate(records):
        match record:
            case [str(key), str(value)]:
                try:
                    pack_raw(key, value)
                except EffectError as error:
                    raise ValueError(f"record {number} of the pool {name}: {error}") from error
                found.append((key, value))
            case _:
                raise ValueError(f"record {number} of the pool {name} is no pair of texts")
    return found
