# SPDX-License-Identifier: Apache-2.0
"""``hvring kvp``: the key-value pools of this machine, from the inside (PROTOCOL §4.4.5)."""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import Final

from hvring.cli import COMMANDS, pool_names
from hvring.cli.words import directory, seconds
from hvring.guest.pool import DIRECTORY
from hvring.pools.chunks import Convention

_GUEST: Final = "guest, what this machine says"
_EXTERNAL: Final = "external, what the host says"
_POOL: Final = {  # verb: the pool that is meant without --pool
    "get": f"{_EXTERNAL}, and then {_GUEST}",
    "list": _EXTERNAL,
    "set": _GUEST,
    "delete": _GUEST,
    "watch": _EXTERNAL,
    "wait": _EXTERNAL,
    "export": "all but auto",
    "import": "all that are in the file",
}
_OF_SEVERAL: Final = "; of several with one key the last counts"
#: verb: the module that does it, what it takes, what it does
_VERBS: Final = {
    "get": ("pairs", ["key"], f"print the value of a key{_OF_SEVERAL}"),
    "set": ("pairs", ["key", "value"], f"store a value for the host to read{_OF_SEVERAL}"),
    "delete": ("pairs", ["key"], f"remove a key{_OF_SEVERAL}"),
    "list": ("pairs", [], "print all keys and values"),
    "watch": ("waiting", [], "print each change until interrupted: + for a value, - for a key that went"),
    "wait": (
        "waiting",
        ["key"],
        "print the value of a key as soon as it is there; KEY.0, KEY.1, … are joined, as Ignition does",
    ),
    "export": ("transfer", [], "print pools as JSON, which keeps every byte"),
    "import": ("transfer", ["file"], "store what `export` printed: per pool all of it or nothing"),
    "clean": ("transfer", [], "empty all pools and forget whose they are, before a disk becomes an image"),
}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The words of this command."""
    parser = commands.add_parser(
        "kvp",
        help=COMMANDS["kvp"],
        description="Reads and writes the pool files that the KVP service shares with the host. Pool 0 (external) is "
        "written by the host's administrator, pool 1 (guest) by this machine, pool 3 by the host; pool 2 is made up "
        "on demand.",
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, (_, positionals, summary) in _VERBS.items():
        one = verbs.add_parser(verb, help=summary.partition(";")[0], description=summary)
        for word in positionals:
            one.add_argument(word, help="of `export`, - for standard input" if word == "file" else None)
        if verb in _POOL:
            one.add_argument(
                "--pool",
                type=pool_names.pool,
                metavar="POOL",
                help=f"{pool_names.CHOICES}; default: {_POOL[verb]}",
            )
        one.add_argument(
            "--pool-dir", metavar="DIR", type=directory, default=DIRECTORY, help=f"default: {DIRECTORY}"
        )
        _OPTIONS.get(verb, lambda _: None)(one)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0: done; 1: there is no such key, or it did not come in time."""
    module = import_module(f"hvring.cli.kvp.{_VERBS[args.verb][0]}")
    return int(module.VERBS[args.verb](args))


def _get(parser: argparse.ArgumentParser) -> None:
    _output(parser, "a string", ", unless the output is no terminal")
    _convention(parser, "--join", "the value was split into several records in this way")


def _set(parser: argparse.ArgumentParser) -> None:
    _convention(
        parser, "--split", "store a value that is too long for a host as several records, in this way"
    )


def _delete(parser: argparse.ArgumentParser) -> None:
    _convention(parser, "--joined", "all records of a value that was split in this way")


def _list(parser: argparse.ArgumentParser) -> None:
    _output(parser, "a list of pairs", "")


def _watch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one object a line")
    parser.add_argument("--all", action="store_true", help="begin with what is there already")


def _wait(parser: argparse.ArgumentParser) -> None:
    _output(parser, "a string", ", unless the output is no terminal")
    parser.add_argument("--timeout", metavar="SECONDS", type=seconds, help="give up then; default: never")
    parser.add_argument(
        "--quiet",
        metavar="SECONDS",
        type=seconds,
        default=1.0,
        help="parts are complete when none came for so long; default: %(default)g",
    )


def _import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--replace", action="store_true", help="remove the keys that are not in the file; else they stay"
    )


def _clean(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--stale", action="store_true", help="only if they were filled on another machine")
    which.add_argument(
        "--record-only", action="store_true", help="keep the pools; they are this machine's now"
    )
    parser.add_argument("--json", action="store_true", help="print what was done as an object")


_OPTIONS: Final = {
    "get": _get,
    "set": _set,
    "delete": _delete,
    "list": _list,
    "watch": _watch,
    "wait": _wait,
    "import": _import,
    "clean": _clean,
}


def _output(parser: argparse.ArgumentParser, shape: str, unless: str) -> None:
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--json", action="store_true", help=f"print {shape}")
    kinds.add_argument(
        "--raw",
        action="store_true",
        help=f"print the bytes as they are; without it what a terminal would obey is escaped{unless}",
    )


def _convention(parser: argparse.ArgumentParser, option: str, what: str) -> None:
    parser.add_argument(option, choices=[convention.value for convention in Convention], help=what)
