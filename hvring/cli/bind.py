# SPDX-License-Identifier: Apache-2.0
"""``hvring bind``: take services from the kernel's driver, to serve them from here."""

from __future__ import annotations

import argparse
import sys

from hvring.cli import COMMANDS, bus
from hvring.errors import HvringError
from hvring.guest.holders import names, running, stop_advice
from hvring.transport.errors import NotHyperVError
from hvring.transport.sysfs import Device
from hvring.vmbus import BY_NAME, SERVICE_NAMES


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The words of this command."""
    parser = commands.add_parser(
        "bind",
        help=COMMANDS["bind"],
        description="Takes devices from their driver for uio_hv_generic; harmless if done before. `hvring unbind` "
        "gives them back. With timesync bound the kernel's PTP clock of Hyper-V is gone.",
    )
    parser.add_argument(
        "services", nargs="+", metavar="SERVICE", help=f"of {', '.join(SERVICE_NAMES)}, or a GUID"
    )
    parser.add_argument("--force", action="store_true", help="also on a kernel that may panic")
    bus.add_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0: all are bound; 1: the lines on stderr say which are not, and why."""
    binder = bus.binder(args)
    status = 0
    for name in args.services:
        try:
            device = binder.bind(name, force=args.force)
        except NotHyperVError:
            raise
        except HvringError as error:
            print(f"hvring bind: {name}: {error}", file=sys.stderr)
            status = 1
        else:
            print(f"{device.title}: {device.driver} {binder.bus.node(device) or ''}".rstrip())
            _warn(device)
    return status


def _warn(device: Device) -> None:
    """Of what goes with the kernel's driver, and of what may come back with it."""
    if device.service is None:
        return
    facts = BY_NAME[device.service]
    if facts.only_if_named:
        print(f"{facts.name}: the kernel's PTP clock of Hyper-V is gone until it is given back")
    found = running(facts.daemons)
    if found:
        print(f"{facts.name}: {names(found)} has lost its device: {stop_advice(found)}")
