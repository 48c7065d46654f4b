# SPDX-License-Identifier: Apache-2.0
"""The verbs of ``hvring host``: what each asks of the serving host, and how the answer looks.

Each takes the connection and the command's words, prints, and returns the exit status.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from typing import Any, Final

from hvring.cli.tables import aligned
from hvring.events import printable
from hvring.host.client import ControlClient, RemoteError
from hvring.host.errors import HostError
from hvring.ic import Status

_COPY_HINTS: Final[dict[int | None, str]] = {
    Status.ALREADY_EXISTS: "replace the file with --overwrite",
    Status.FAIL: "the guest must allow the directory, which must exist unless --create-path is given",
}


def status(client: ControlClient, args: argparse.Namespace) -> int:
    return _show_status(args, client.request("status"))


def wait(client: ControlClient, args: argparse.Namespace) -> int:
    return _show_status(args, client.request("wait", services=args.services, timeout=args.timeout))


def shutdown(client: ControlClient, args: argparse.Namespace) -> int:
    words = ("restart", "hibernate", "force", "reason", "timeout", "text")
    result = client.request("shutdown", **{name: getattr(args, name) for name in words})
    what = "restart" if args.restart else "hibernate" if args.hibernate else "power off"
    return _say(args, result, f"the guest agreed to {what}")


def copy(client: ControlClient, args: argparse.Namespace) -> int:
    def progress(event: dict[str, Any]) -> None:
        line = f"{_size(event['sent'])} of {_size(event['size'])}"
        print(f"\r{line:<30}", end="", file=sys.stderr, flush=True)

    shown = sys.stderr.isatty()
    name = args.name or os.path.basename(args.source)
    try:
        result = client.request(
            "copy",
            progress if shown else None,
            source=os.path.abspath(args.source),
            directory=args.directory,
            name=name,
            overwrite=args.overwrite,
            create_path=args.create_path,
        )
    except RemoteError as error:
        hint = _COPY_HINTS.get(error.status)
        raise HostError(f"{error}: {hint}" if hint else str(error)) from error
    finally:
        if shown:
            print("\r\033[K", end="", file=sys.stderr)
    size, seconds = result["size"], result["seconds"]
    target = os.path.join(args.directory, name)
    rate = _size(int(size / max(seconds, 1e-9)))
    return _say(args, result, f"copied {_size(size)} to {target} in {seconds:.2f} s ({rate}/s)")


def kvp(client: ControlClient, args: argparse.Namespace) -> int:
    words = {name: getattr(args, name, None) for name in ("action", "pool", "key", "value")}
    result = client.request("kvp", **words)
    if (args.action == "get" and result["value"] is None) or result.get("removed") is False:
        print(f"hvring host: the guest has no key {args.key!r} in pool {args.pool}", file=sys.stderr)
        return 1
    if args.action == "list":
        rows = [(printable(key), printable(str(value))) for key, value in result["items"]]
        return _say(args, result, *aligned(rows))
    return _say(args, result, *([str(result["value"])] if args.action == "get" else []))


def ip(client: ControlClient, args: argparse.Namespace) -> int:
    if args.action == "get":
        result = client.request("ip", action="get", adapter=args.adapter)
        texts = [(name, result[name]) for name in ("addresses", "subnets", "gateways", "dns")]
        rows = [("dhcp", "yes" if result["dhcp"] else "no"), *texts]
        return _say(args, result, *aligned(rows))
    lists = {"addresses": args.address, "gateways": args.gateway, "dns": args.dns}
    result = client.request("ip", action="set", adapter=args.adapter, dhcp=args.dhcp, **lists)
    return _say(args, result, "the guest took the settings")


def backup(client: ControlClient, args: argparse.Namespace) -> int:
    result = client.request("backup", hold=args.hold)
    return _say(args, result, f"backed up; the guest was frozen for {result['frozen_seconds']:.3f} s")


def time(client: ControlClient, args: argparse.Namespace) -> int:
    result = client.request("time", action=args.action)
    return _say(args, result, f"told; the guest answered in {_milliseconds(result['seconds'])}")


def heartbeat(client: ControlClient, args: argparse.Namespace) -> int:
    result = client.request("heartbeat")
    _say(args, result, _heartbeat(result))
    return 0 if result["contact"] == "ok" else 1


def toggle(client: ControlClient, args: argparse.Namespace) -> int:
    result = client.request("toggle", service=args.service, offered=args.offered == "on")
    return _say(args, result, f"{args.service} is {args.offered}")


def violations(client: ControlClient, args: argparse.Namespace) -> int:
    result = client.request("violations")
    lines = [f"{one['service']}: {one['request']}: {one['what']}" for one in result["violations"]]
    if (more := result["count"] - len(lines)) > 0:
        lines.append(f"and {more} more")
    _say(args, result, *(lines or ["no violations"]))
    return 1 if result["count"] else 0


VERBS: Final[dict[str, Callable[[ControlClient, argparse.Namespace], int]]] = {
    verb.__name__: verb
    for verb in (status, wait, shutdown, copy, kvp, ip, backup, time, heartbeat, toggle, violations)
}


def _say(args: argparse.Namespace, result: Any, *lines: str) -> int:
    """The result as JSON if that was asked for, else the lines."""
    if args.json:
        print(json.dumps(result))
    else:
        for line in lines:  # they quote the guest, who must not steer the terminal
            print(printable(line))
    return 0


def _show_status(args: argparse.Namespace, result: Any) -> int:
    count = result["violations"]
    lines = [
        f"host at {result['socket']}: heartbeat {_heartbeat(result['heartbeat'])}; "
        f"{count or 'no'} violation{'' if count == 1 else 's'}"
    ]
    if result["frozen"]:
        lines.append("the guest's file systems are frozen")
    rows = [("SERVICE", "STATE", "FRAMEWORK", "VERSION", "EXCHANGES", "MEDIAN", "P99")]
    for name, one in result["services"].items():
        times = [_milliseconds(one[key]) for key in ("median_seconds", "p99_seconds")]
        versions = [one[key] or "-" for key in ("framework", "version")]
        rows.append((name, one["state"], *versions, str(one["exchanges"]), *times))
    rows += [(name, state, *"-----") for name, state in result["devices"].items()]
    lines += aligned(rows)
    lines += [f"{name}: {one['failure']}" for name, one in result["services"].items() if one["failure"]]
    return _say(args, result, *lines)


def _heartbeat(state: dict[str, Any]) -> str:
    application = state["application"]
    return f"{state['contact']}, applications {application}" if application else f"{state['contact']}"


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.2f} ms"


def _size(n: int) -> str:
    if n < 1000:
        return f"{n} bytes"
    power = min((len(str(n)) - 1) // 3, 4)
    return f"{n / 1000**power:.1f} {('', 'kB', 'MB', 'GB', 'TB')[power]}"
