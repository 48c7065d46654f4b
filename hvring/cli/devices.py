# SPDX-License-Identifier: Apache-2.0
"""``hvring devices``: what is on this machine's VMBus, and which driver has it."""

from __future__ import annotations

import argparse
import json

from hvring.cli import bus
from hvring.transport.sysfs import Device


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The words of this command."""
    parser = commands.add_parser(
        "devices",
        help="the devices on VMBus and their drivers",
        description="Lists the devices on VMBus, the six services first. Needs no root.",
    )
    parser.add_argument("--json", action="store_true", help="one JSON array")
    bus.add_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0: listed; NotHyperVError off Hyper-V."""
    here = bus.bus(args)
    devices = here.devices()
    if args.json:
        print(json.dumps([_fields(device, here.node(device)) for device in devices], indent=1))
    else:
        head = ("SERVICE", "DRIVER", "NODE", "RING", "MONITOR", "STATE", "INSTANCE", "CLASS")
        print(bus.table([head, *(_row(device, here.node(device)) for device in devices)]))
    return 0


def _row(device: Device, node: str | None) -> tuple[str | None, ...]:
    ring = None if device.ring_size is None else f"2 x {device.ring_size // 1024} KiB"
    monitor = None if device.monitor_id is None else str(device.monitor_id)
    where = (device.instance, device.class_guid)
    return (device.title, device.driver, node, ring, monitor, bus.state(device), *where)


def _fields(device: Device, node: str | None) -> dict[str, object]:
    return {
        "service": device.service,
        "title": device.title,
        "class": device.class_guid,
        "instance": device.instance,
        "driver": device.driver,
        "override": device.override,
        "node": node,
        "ring_size": device.ring_size,
        "maps": list(device.maps),
        "monitor_id": device.monitor_id,
        "relid": device.relid,
        "state": device.state,
    }
