# SPDX-License-Identifier: Apache-2.0
"""How values are printed: escaped for people, as they are for programs."""

from __future__ import annotations

import argparse
import json
import sys

from hvring.events import printable


def value(args: argparse.Namespace, text: str) -> None:
    """One value, as ``--json`` and ``--raw`` say."""
    if args.json:
        as_json(text)
    elif args.raw or not sys.stdout.isatty():
        raw(f"{text}\n")
    else:
        print(printable(text))


def as_json(what: object) -> None:
    """JSON that is right in any encoding, gives back any key, and has nothing in it that a terminal would obey."""
    text = json.dumps(what, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        text = json.dumps(what)
    print("".join(map(_escaped, text)), flush=True)


def _escaped(letter: str) -> str:
    if letter.isprintable():
        return letter
    units = letter.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def raw(text: str) -> None:
    """Bytes of pools, which may be no UTF-8."""
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode(errors="surrogateescape"))
    sys.stdout.buffer.flush()
