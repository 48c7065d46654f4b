# SPDX-License-Identifier: Apache-2.0
"""``hvring reload``: the running agent reads its configuration anew."""

from __future__ import annotations

import argparse

from hvring.cli import COMMANDS
from hvring.cli.agents import WELL, WRONG, add_control, ask_each, exit_status, understood
from hvring.events import printable


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The words of this command."""
    parser = commands.add_parser(
        "reload",
        help=COMMANDS["reload"],
        description="The running agent reads its configuration anew and applies what can be applied without dropping a "
        "channel; says what was applied and what was not.  Ends "
        "with 1 when something changed and nothing of it was applied.",
    )
    add_control(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Ask for it."""
    answers, errors = ask_each(args, lambda client: client.ask("reload"))
    with understood():
        told = {path: [str(said) for said in answer["said"]] for path, answer in answers.items()}
    for path, lines in told.items():
        for said in lines or ["nothing changed"]:
            print(printable(f"{path}: {said}" if len(answers) > 1 else said))
    status = exit_status("reload", answers, errors)
    is_refused = any(map(_is_refused, told.values()))
    return status or (WRONG if is_refused else WELL)


def _is_refused(said: list[str]) -> bool:
    """Whether nothing of what changed could be applied."""
    return bool(said) and all(line.startswith("not applied") for line in said)
