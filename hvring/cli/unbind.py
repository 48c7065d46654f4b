# SPDX-License-Identifier: Apache-2.0
"""``hvring unbind``: give services back to the drivers they came from."""

from __future__ import annotations

import argparse
import sys

from hvring.cli import COMMANDS, bus
from hvring.errors import HvringError
from hvring.transport.errors import NotHyperVError
from hvring.transport.sysfs import Device
from hvring.vmbus import SERVICE_NAMES


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The words of this command."""
    parser = commands.add_parser(
        "unbind",
        help=COMMANDS["unbind"],
        description="Gives devices back to the drivers from which `hvring bind` or `hvring run --bind` took them, "
        "also after a crash. A program that serves one of them loses it.",
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "services", nargs="*", metavar="SERVICE", default=[], help=f"of {', '.join(SERVICE_NAMES)}, or a GUID"
    )
    which.add_argument("--all", action="store_true", help="all that hvring took")
    bus.add_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0: all are back; 1: the lines on stderr say which are not, and why."""
    binder = bus.binder(args)
    status = 0
    for name in binder.bound() if args.all else args.services:
        try:
            _say(name, binder.unbind(name))
        except NotHyperVError:
            raise
        except HvringError as error:
            print(f"hvring unbind: {name}: {error}", file=sys.stderr)
            status = 1
    return status


def _say(name: str, device: Device | None) -> None:
    if device is None:
        print(f"{name}: not offered any more")
    else:
        print(f"{device.title}: {device.driver or 'no driver'}")
