# SPDX-License-Identifier: Apache-2.0
"""``hvring status``: how the running agent is."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any, Final

from hvring.cli import COMMANDS
from hvring.cli.agents import (
    NOBODY,
    NOT_RUNNING,
    WELL,
    WRONG,
    add_control,
    ask_each,
    exit_status,
    named,
    understood,
)
from hvring.cli.tables import aligned
from hvring.daemon.control.client import ControlClient
from hvring.daemon.control.protocol import ControlError
from hvring.events import printable

_HEAD: Final = (
    *("service", "state", "way", "framework", "version", "last request"),
    *("requests", "failed", "openings"),
)
_CLEAR: Final = "\x1b[H\x1b[2J"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The words of this command."""
    parser = commands.add_parser(
        "status",
        help=COMMANDS["status"],
        description="How the running agent is: per service by which way and which versions it is served, when the host "
        "asked last, what went wrong last and what to do.  Ends with 0 when all is well, with 1 when something is "
        "wrong, with 3 when no agent runs.",
    )
    add_control(parser)
    parser.add_argument(
        "--json", action="store_true", help="an object: of each socket its agent; with --watch one a line"
    )
    parser.add_argument("--watch", action="store_true", help="again with each change, until it is stopped")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Show it."""
    if args.watch:
        return _watch(args)
    answers, errors = ask_each(args, lambda client: client.ask("status"))
    if args.json:
        said = {path: {"error": str(error), "kind": error.kind} for path, error in errors.items()}
        print(json.dumps(answers | said, indent=2))
    else:
        for number, (path, answer) in enumerate(answers.items()):
            print("\n" * bool(number) + "\n".join(_page(path, answer)))
    status = exit_status("status", answers, errors)
    return status or (WELL if all(answer.get("ok") is True for answer in answers.values()) else WRONG)


def _watch(args: argparse.Namespace) -> int:
    paths = named(args.control)
    if len(paths) != 1:
        what = f"which of {', '.join(paths)}? name one with --control" if paths else NOBODY
        print(f"hvring status: {what}", file=sys.stderr)
        return WRONG if paths else NOT_RUNNING
    try:
        with ControlClient(paths[0]) as client:
            for message in client.watch():
                with understood():
                    lines = _shown(paths[0], message, args.json)
                print("\n".join(lines), flush=True)
    except ControlError as error:
        return exit_status("status", {}, {paths[0]: error})
    print(f"hvring status: the agent at {paths[0]} ended", file=sys.stderr)
    return NOT_RUNNING


def _shown(path: str, message: dict[str, Any], as_json: bool) -> list[str]:
    """A terminal is drawn anew; in a pipe each change is a line."""
    if as_json:
        return [json.dumps(message)]
    changes = [_change(change) for change in message.get("changed", ())]
    if sys.stdout.isatty():
        first, *rest = _page(path, message["result"])
        return [_CLEAR + first, *rest, *changes[-5:]]
    if not changes:
        return _page(path, message["result"])
    left_out = int(message.get("left_out", 0))
    return changes + ([f"({left_out} more changes)"] if left_out else [])


def _change(change: dict[str, Any]) -> str:
    at = time.strftime("%H:%M:%S", time.localtime(change["at"]))
    return printable(f"{at} {change['service']}: {change['event']} {change['detail']}").rstrip()


def _page(path: str, status: dict[str, Any]) -> list[str]:
    try:
        with understood():
            return page(path, status)
    except ControlError as error:
        return [f"{path}: {error}"]


def page(path: str, status: dict[str, Any]) -> list[str]:
    """For people; nothing in it obeys."""
    process = status["process"]
    rehearsal = ", a rehearsal" if process["rehearsal"] else ""
    lines = [
        f"hvring {process['version']}{rehearsal}: process {process['pid']}, {path}, up {_span(process['uptime'])}"
    ]
    if process["config"] is not None:
        read_at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(process["config_read_at"]))
        lines.append(f"configuration: {process['config']}, read {read_at}")
    rows: list[tuple[str, ...]] = [_HEAD]
    rows += [_row(name, one) for name, one in status["services"].items()]
    lines += ["", *aligned(rows), ""]
    lines += _notes(status)
    lines += _problems(status["problems"])
    return [printable(line) for line in lines]


def _row(name: str, one: dict[str, Any]) -> tuple[str, ...]:
    age = one["last_request_age"]
    counters = one["counters"]
    return (
        name,
        one["state"],
        one["way"] or "-",
        one["framework"] or "-",
        one["version"] or (f"kernel {one['kernel']}" if one["kernel"] else "-"),
        "never" if age is None else f"{_span(age)} ago",
        str(counters["requests"]),
        str(counters["failed"]),
        str(one["openings"]),
    )


def _notes(status: dict[str, Any]) -> list[str]:
    """What is no problem, and yet worth a line."""
    lines = []
    for name, one in status["services"].items():
        if one["waits_for"]:
            lines.append(f"{name} waits: {one['waits_for']}")
        if one.get("frozen_for") is not None:
            lines.append(f"{name}: file systems are frozen, for {_span(one['frozen_for'])}")
        if one.get("copies"):
            lines.append(f"{name}: {one['copies']} files were copied, {one['copied_bytes']} bytes")
        clock = one.get("clock")
        if clock is not None:
            lines.append(
                f"{name}: the host's clock is {clock['offset']:+.6f} s from this one, known to "
                f"{clock['uncertainty']:.6f} s, {_span(clock['age'])} ago"
            )
        if one["last_error"] is not None and one["last_error_over_at"] is not None:
            when = _span(max(0.0, time.time() - one["last_error_at"]))
            lines.append(
                f"{name}: {one['last_error_what']} failed {when} ago ({one['last_reason']}) and works again"
            )
    health = status["health"]
    if health is not None and health.get("state") is not None:
        why = f": {health['why']}" if health.get("why") else ""
        lines.append(f"applications are {health['state']}{why}")
    return lines


def _problems(problems: list[dict[str, Any]]) -> list[str]:
    if not problems:
        return ["all is well"]
    lines = []
    for problem in problems:
        reason = f" ({problem['reason']})" if problem["reason"] else ""
        lines.append(f"WRONG: {problem['service']}: {problem['what']}{reason}")
        if problem["remedy"]:
            lines.append(f"  what to do: {problem['remedy']}")
    return lines


def _span(seconds: float) -> str:
    """Of time, in the two largest units."""
    units = (("d", 86400), ("h", 3600), ("min", 60))
    for place, (unit, size) in enumerate(units):
        if seconds >= size:
            smaller, smaller_size = (*units, ("s", 1))[place + 1]
            rest = int(seconds % size // smaller_size)
            return f"{int(seconds // size)} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{seconds:.3g} s" if seconds < 10 else f"{int(seconds)} s"
