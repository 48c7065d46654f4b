# SPDX-License-Identifier: Apache-2.0
"""``hvring config``: look at the configuration file before an agent does."""

from __future__ import annotations

import argparse
import os
import sys

from hvring.cli import COMMANDS
from hvring.daemon.config import printing, reading
from hvring.daemon.config.errors import ConfigError


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The words of this command."""
    parser = commands.add_parser(
        "config",
        help=COMMANDS["config"],
        description="Looks at the configuration of `hvring run`, and changes nothing. Exit status: 0 it is right, "
        "1 it is not, and each line on standard error says where.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--check", action="store_true", help="say all that is wrong with FILE, a line each")
    what.add_argument(
        "--print-defaults",
        action="store_true",
        help="a whole file: every setting, its meaning and its default",
    )
    what.add_argument(
        "--show", action="store_true", help="what holds with FILE, and where each setting comes from"
    )
    parser.add_argument("file", nargs="?", metavar="FILE", help=f"default: {reading.PATH}, if it is there")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0: done, and right; 1: the lines on stderr say what is wrong."""
    if args.print_defaults:
        print("\n".join(printing.defaults()))
        return 0
    path = args.file
    if path is None and os.path.lexists(reading.PATH):
        path = reading.PATH
    try:
        file = reading.File() if path is None else reading.read(path)
        configuration = reading.configuration(file)
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return 1
    if args.show:
        print("\n".join(printing.holding(configuration, file, {})).rstrip())
    elif path is None:
        print(f"there is no {reading.PATH}: the defaults hold")
    else:
        print(f"{path}: right")
    return 0
