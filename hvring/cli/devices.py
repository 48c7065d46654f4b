# SPDX-License-Identifier: Apache-2.0
"""``hvring devices``: what is on this machine's VMBus, and which driver has it."""

from __future__ import annotations

import argparse
import json

from hvring.cli import COMMANDS, bus
from hvring.cli.servers import Server, server
from hvring.transport.sysfs import Device


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The words of this command."""
    parser = commands.add_parser(
        "devices",
        help=COMMANDS["devices"],
        description="Lists the devices on VMBus, the six services first, and who serves them by which way. "
        "Needs no root, but only root sees all programs.",
    )
    parser.add_argument("--json", action="store_true", help="one JSON array")
    bus.add_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0: listed; NotHyperVError off Hyper-V."""
    here = bus.bus(args)
    devices = here.devices()
    if args.json:
        print(json.dumps([_fields(device, server(here, device)) for device in devices], indent=1))
    else:
        head = ("SERVICE", "DRIVER", "NODE", "RING", "MONITOR", "STATE", "INSTANCE", "CLASS", "SERVED BY")
        print(bus.table([head, *(_row(device, server(here, device)) for device in devices)]))
    return 0


def _row(device: Device, served: Server) -> tuple[str | None, ...]:
    ring = None if device.ring_size is None else f"2 x {device.ring_size // 1024} KiB"
    monitor = None if device.monitor_id is None else str(device.monitor_id)
    where = (device.instance, device.class_guid)
    by = str(served) if device.service else None
    return (device.title, device.driver, served.node, ring, monitor, bus.state(device), *where, by)


def _fields(device: Device, served: Server) -> dict[str, object]:
    return {
        "service": device.service,
        "title": device.title,
        "class": device.class_guid,
        "instance": device.instance,
        "driver": device.driver,
        "override": device.override,
        "node": served.node,
        "ring_size": device.ring_size,
        "maps": list(device.maps),
        "monitor_id": device.monitor_id,
        "relid": device.relid,
        "state": device.state,
        "way": served.way if device.service else None,
        "served_by": [{"pid": one.pid, "name": one.name, "unit": one.unit} for one in served.holders],
    }
