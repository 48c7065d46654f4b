# SPDX-License-Identifier: Apache-2.0
"""What the commands about VMBus devices have in common: where the bus is, and a table of devices."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from hvring.cli.tables import aligned
from hvring.transport.binding import STATE, Binder
from hvring.transport.sysfs import OPENED, Bus, Device


def add_options(parser: argparse.ArgumentParser) -> None:
    """Where the kernel's file systems are, for containers that mount them elsewhere."""
    parser.add_argument("--sysfs", metavar="DIR", default="/sys", help="default: /sys")
    parser.add_argument("--dev", metavar="DIR", default="/dev", help="default: /dev")
    parser.add_argument(
        "--state", metavar="DIR", default=STATE, help=f"remembers the drivers; default: {STATE}"
    )


def bus(args: argparse.Namespace) -> Bus:
    """The bus of these options."""
    return Bus(args.sysfs, args.dev)


def binder(args: argparse.Namespace) -> Binder:
    """Binds on that bus."""
    return Binder(bus(args), state=args.state)


def state(device: Device) -> str:
    """``open`` by somebody, ``-`` if not; ``?`` where the kernel does not say."""
    if device.state is None:
        return "?"
    return "open" if device.state == OPENED else "-"


def table(rows: Iterable[tuple[str | None, ...]]) -> str:
    """The rows with aligned columns; nothing is ``-``."""
    return "\n".join(aligned([[cell or "-" for cell in row] for row in rows]))
