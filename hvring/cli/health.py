# SPDX-License-Identifier: Apache-2.0
"""``hvring health``: what the host hears of this machine's applications."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any, Final

from hvring.cli import COMMANDS
from hvring.cli.agents import WRONG, add_control, ask_each, exit_status, understood
from hvring.daemon.control.client import ControlClient
from hvring.daemon.control.protocol import ControlError
from hvring.events import printable
from hvring.ic.heartbeat import ApplicationState

_NONE: Final = "none"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The words of this command."""
    parser = commands.add_parser(
        "health",
        help=COMMANDS["health"],
        description="What the running agent tells the host with each heartbeat of this machine's applications: the "
        "worst of what was said here and of what its checks find.",
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    setting = verbs.add_parser("set", help="say how they are, until something else is said")
    states = [state.name.lower() for state in ApplicationState]
    setting.add_argument(
        "state",
        metavar="STATE",
        choices=[*states, _NONE],
        help=f"of {', '.join(states)}; none: nothing is said",
    )
    setting.add_argument("--text", default="", help="why, for who looks at it on this machine")
    showing = verbs.add_parser("show", help="what the host is told, and why")
    showing.add_argument("--json", action="store_true", help="an object")
    for each in (setting, showing):
        add_control(each)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Say or show it.  Agents that do not serve heartbeats have none."""
    absent: list[ControlError] = []
    nothing: dict[str, Any] = {}

    def ask(client: ControlClient) -> dict[str, Any]:
        try:
            if args.verb == "show":
                return client.ask("health")
            return client.ask("set_health", state=None if args.state == _NONE else args.state, text=args.text)
        except ControlError as error:
            if error.kind != "absent":
                raise
            absent.append(error)
            return nothing

    answers, errors = ask_each(args, ask)
    status = exit_status("health", answers, errors)
    told = [answer for answer in answers.values() if answer is not nothing]
    if absent and not told:
        print(f"hvring health: {absent[0]}", file=sys.stderr)
        return WRONG
    for answer in told:
        if args.verb == "show" and args.json:
            print(json.dumps(answer))
        else:
            with understood():
                lines = _lines(answer)
            print("\n".join(printable(line) for line in lines))
    return status


def _lines(health: dict[str, Any]) -> list[str]:
    lines = [f"the host is told: {health['state'] or 'nothing'}"]
    for source in health.get("sources", ()):
        lines.append(f"  {source['name']}: {source['state']} {source['why']}".rstrip())
    return lines
