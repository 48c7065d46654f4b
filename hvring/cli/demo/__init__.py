# SPDX-License-Identifier: Apache-2.0
"""``hvring demo``: host and agent as two processes, all six services, real work."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
from pathlib import Path

from hvring.cli import COMMANDS
from hvring.cli.demo.guest import GuestError, GuestProcess
from hvring.cli.demo.scenario import Scenario
from hvring.cli.demo.screen import Screen, summary
from hvring.events import printable
from hvring.host import VirtualHost


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The words of this command."""
    parser = commands.add_parser(
        "demo",
        help=COMMANDS["demo"],
        description="Starts a virtual Hyper-V host and, as a second process, the agent; lets the host use all six "
        "services and checks what came of it. Freeze, power and clock are rehearsed.",
    )
    parser.add_argument(
        "--size", type=_positive, default=256, metavar="MIB", help="file to copy in; default: 256"
    )
    parser.add_argument(
        "--items", type=_positive, default=1000, metavar="N", help="KVP items to set; default: 1000"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON and nothing else")
    parser.add_argument("--keep", metavar="DIR", help="leave the pool files and the copied file in DIR")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0: everything was right; 1: something was not."""
    directory = Path(args.keep).absolute() if args.keep else Path(tempfile.mkdtemp(prefix="hvring-demo-"))
    try:
        return asyncio.run(_run(args, directory))
    except GuestError as error:
        print(f"hvring demo: {printable(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("hvring demo: interrupted", file=sys.stderr)
        return 1
    finally:
        if not args.keep:
            shutil.rmtree(directory, ignore_errors=True)


async def _run(args: argparse.Namespace, directory: Path) -> int:
    directory.mkdir(parents=True, exist_ok=True)
    socket = directory / "host.sock"
    async with VirtualHost(socket) as host, GuestProcess(socket, directory) as guest:
        scenario = Scenario(host, guest, directory, size=args.size << 20, items=args.items)
        with Screen(host, scenario, quiet=args.json):
            await scenario.run()
    result = scenario.result()
    print(json.dumps(result) if args.json else summary(result))
    return 0 if result["ok"] else 1


def _positive(text: str) -> int:
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return value
