# SPDX-License-Identifier: Apache-2.0
"""``hvring freeze --plan``: what a backup would freeze, and what could go wrong; freezes nothing."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from hvring.agent.settings import FcopySettings, KvpSettings, Settings, VssSettings
from hvring.cli import COMMANDS, words
from hvring.cli.agents import WELL, WRONG, add_control, ask_each, exit_status, understood
from hvring.cli.tables import aligned
from hvring.daemon.control.client import ControlClient
from hvring.daemon.control.protocol import ControlError
from hvring.daemon.planning import TIMEOUT, answer, question
from hvring.events import printable
from hvring.guest.mounts import ON_NO_DISK


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The words of this command."""
    parser = commands.add_parser(
        "freeze",
        help=COMMANDS["freeze"],
        description="In which order a backup would freeze the file systems of this machine, what it would leave alone "
        "and why, whether each can be opened, and what is known to go wrong.  Asked of the running agent, by its "
        "settings; without one, found by this command itself.  Ends with 1 when a file system cannot be opened.",
    )
    parser.add_argument(
        "--plan", action="store_true", required=True, help="only say it: this command freezes nothing"
    )
    parser.add_argument("--json", action="store_true", help="an object")
    add_control(parser)
    local = parser.add_argument_group("without an agent (given any of these, none is asked)")
    for flag in ("--exclude", "--only", "--loop"):
        local.add_argument(
            flag, metavar="GLOB", action="append", type=words.file_systems, help="as of `hvring run`"
        )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print it."""
    is_local = any(given is not None for given in (args.exclude, args.only, args.loop))
    plan = None if is_local else _asked(args)
    if isinstance(plan, int):
        return plan
    if plan is None:
        vss = VssSettings(exclude=args.exclude or (), only=args.only, loops=args.loop or ())
        plan = answer(question(Settings(real=True, vss=vss, kvp=KvpSettings(), fcopy=FcopySettings())))
        plan["by"] = None
    with understood():
        lines = [json.dumps(plan, indent=2)] if args.json else list(map(printable, _page(plan)))
        is_well = plan["obstacle"] is None and not any(each["problem"] for each in plan["order"])
    print("\n".join(lines))
    return WELL if is_well else WRONG


def _asked(args: argparse.Namespace) -> dict[str, Any] | int | None:
    """Of the agent that makes backups; None: there is none; a number: what to end with."""
    found: dict[str, Any] | None = None

    def ask(client: ControlClient) -> dict[str, Any]:
        nonlocal found
        try:
            found = {**client.ask("plan"), "by": client.path}
        except ControlError as error:
            if error.kind != "absent":
                raise
            return {"absent": str(error)}
        return found

    answers, errors = ask_each(args, ask, timeout=TIMEOUT + 10)
    if found is not None:
        return found
    if args.control is None and not errors:
        return None
    status = exit_status("freeze", answers, errors)
    for absent in answers.values():
        print(f"hvring freeze: {absent['absent']}", file=sys.stderr)
    return status or WRONG


def _page(plan: dict[str, Any]) -> list[str]:
    by = f"the agent at {plan['by']}" if plan["by"] else "this command (no agent was asked)"
    lines = [f"found by {by}; nothing is frozen", ""]
    if plan["obstacle"]:
        lines += [f"WRONG: no freeze can work: {plan['obstacle']}", ""]
    lines.append("frozen, in this order:" if plan["order"] else "nothing would be frozen")
    rows = [
        (f"{n}.", *_columns(each), _disks(each), each["problem"] or "")
        for n, each in enumerate(plan["order"], 1)
    ]
    lines += [f"  {line}" for line in aligned(rows)] if rows else []
    if plan["rules"]["only_named"]:
        lines.append("  of these, only what is on the disks that the host names then (vss.only_named)")
    for each in plan["order"]:
        if each["problem"]:
            lines.append(f"WRONG: {each['target']} cannot be opened: {each['problem']}")
            lines.append(f"  what to do: {each['remedy']}")
    if plan.get("hooks"):
        hooks = [(one["name"], one["path"], one["refused"] or one["style"]) for one in plan["hooks"]]
        lines += ["", "run before it, and told of the end in reverse order:"]
        lines += [f"  {line}" for line in aligned(hooks)]
    if plan["skipped"]:
        lines += ["", "left alone:"]
        disks = [each for each in plan["skipped"] if each["why"] != ON_NO_DISK]
        left = [(*_columns(each), each["why"]) for each in disks]
        lines += [f"  {line}" for line in aligned(left)] if left else []
        lines.append(f"  {len(plan['skipped']) - len(disks)} that are {ON_NO_DISK} (--json has them)")
    if plan["hazards"]:
        lines += ["", "known to go wrong, or to wait:"]
        for hazard in plan["hazards"]:
            lines += [f"  {hazard['kind']}: {hazard['what']}", f"    what to do: {hazard['remedy']}"]
    return lines + [f"note: {note}" for note in plan["notes"]]


def _disks(each: dict[str, Any]) -> str:
    if each["lies_on"]:
        return f"image on {', '.join(each['lies_on'])}"
    return "?" if each["disks"] is None else ", ".join(disk["name"] for disk in each["disks"])


def _columns(each: dict[str, Any]) -> tuple[str, str, str]:
    where = f" (in the namespace of process {each['process']})" if each["process"] else ""
    return printable(each["target"] + where), printable(each["source"]), each["fstype"]
