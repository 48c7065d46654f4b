# SPDX-License-Identifier: Apache-2.0
"""``hvring metrics``: the numbers of the running agent."""

from __future__ import annotations

import argparse
import sys

from hvring.cli import COMMANDS
from hvring.cli.agents import add_control, ask_each, exit_status, understood
from hvring.daemon.metrics import exposition


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The words of this command."""
    parser = commands.add_parser(
        "metrics",
        help=COMMANDS["metrics"],
        description="The numbers of the running agent in Prometheus' text format, as metrics.listen serves them.  "
        "Of several agents, as units are, all together on one page.",
    )
    add_control(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print them."""
    answers, errors = ask_each(args, lambda client: client.ask("status"))
    with understood():
        page = exposition(*answers.values())
    sys.stdout.write(page)
    return exit_status("metrics", answers, errors)
