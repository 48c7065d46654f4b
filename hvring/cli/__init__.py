# SPDX-License-Identifier: Apache-2.0
"""The command line: ``hvring COMMAND …``; one module a command, loaded when it is used."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Final

import hvring
from hvring.errors import HvringError

COMMANDS: Final = {
    "demo": "all six services between two processes, doing real work; no Hyper-V needed",
    "run": "serve the host: the agent",
    "host": "a virtual Hyper-V host, and the verbs to drive it",
    "devices": "the devices on VMBus and their drivers",
    "bind": "give services to uio_hv_generic, so that `hvring run` can serve them",
    "unbind": "give services back to the drivers they came from",
    "doctor": "what is right and what is wrong here for serving Hyper-V",
    "bench": "compare two runs of the benchmarks",
    "kvp": "read and write the key-value pools of this machine",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status: 0 done, 1 failed, 2 asked wrongly."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="hvring", description=hvring.__doc__)
    parser.add_argument("--version", action="version", version=f"hvring {hvring.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = next((word for word in words if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        if name == chosen:
            _module(name).add_parser(commands)
        else:
            commands.add_parser(name, help=summary)
    args = parser.parse_args(words)
    try:
        return int(args.run(args))
    except HvringError as error:
        print(f"hvring {args.command}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output left, as `head` does
        sys.stderr.close()
        return 1


def _module(name: str) -> ModuleType:
    """The module of a command.

    ``run`` stays for as long as the machine: its asyncio comes without TLS, which nothing there speaks and which takes
    four megabytes.
    """
    spared = name == "run" and not {"asyncio", "ssl"} & sys.modules.keys()
    if spared:
        sys.modules["ssl"] = None  # type: ignore[assignment]  # to import it is an error now, as where it is missing
    try:
        return importlib.import_module(f"hvring.cli.{name}")
    finally:
        if spared:
            del sys.modules["ssl"]
