# SPDX-License-Identifier: Apache-2.0
"""``hvring kvp``: the key-value pools of this machine, from the inside (PROTOCOL §4.4.5)."""

from __future__ import annotations

import argparse
import json
import sys

from hvring.guest.pools import DIRECTORY, PoolStore

POOLS = {"external": 0, "guest": 1, "auto": 2, "auto-external": 3, "auto-internal": 4}
AUTO = 2


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The words of this command."""
    parser = commands.add_parser(
        "kvp",
        help="read and write the key-value pools of this machine",
        description="Reads and writes the pool files that the KVP service shares with the host. Pool 0 (external) is "
        "written by the host's administrator, pool 1 (guest) by this machine, pool 3 by the host; pool 2 is made up "
        "on demand.",
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, words, summary in (
        ("get", ["key"], "print the value of a key"),
        ("set", ["key", "value"], "store a value"),
        ("delete", ["key"], "remove a key"),
        ("list", [], "print all keys and values"),
    ):
        one = verbs.add_parser(verb, help=summary)
        for word in words:
            one.add_argument(word)
        default = "guest" if verb in ("set", "delete") else "external"
        one.add_argument(
            "--pool",
            type=_pool,
            default=POOLS[default],
            metavar="POOL",
            help=f"0 to 4, or {', '.join(POOLS)}; default: {default}",
        )
        one.add_argument("--pool-dir", metavar="DIR", default=DIRECTORY, help=f"default: {DIRECTORY}")
        one.add_argument("--json", action="store_true")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0: done; 1: there is no such key."""
    store = PoolStore(args.pool_dir)
    if args.verb == "list":
        items = list(store.automatic()) if args.pool == AUTO else store.pools[args.pool].items()
        if args.json:
            print(json.dumps(dict(items), ensure_ascii=False))
        else:
            width = max((len(key) for key, _ in items), default=0)
            for key, value in items:
                print(f"{key:<{width}}  {value}")
        return 0
    if args.verb == "set":
        store.set(args.pool, args.key, args.value)
        return 0
    if args.verb == "get":
        value = dict(store.automatic()).get(args.key) if args.pool == AUTO else store.get(args.pool, args.key)
        if value is not None:
            print(json.dumps(value, ensure_ascii=False) if args.json else value)
            return 0
    elif store.delete(args.pool, args.key):
        return 0
    print(
        f"hvring kvp: no key {args.key!r} in pool {args.pool}; see: hvring kvp list --pool {args.pool}",
        file=sys.stderr,
    )
    return 1


def _pool(text: str) -> int:
    number = POOLS.get(text, text)
    if str(number) not in "01234" or len(str(number)) != 1:
        raise argparse.ArgumentTypeError(f"no pool is called {text!r}")
    return int(number)
