# SPDX-License-Identifier: Apache-2.0
"""The running agents that a command speaks to."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from hvring.daemon.control.client import TIMEOUT, ControlClient, NotRunningError, sockets
from hvring.daemon.control.protocol import DIRECTORY, ControlError

OTHER_VERSION: Final = "what an agent answers is of another version of hvring: restart it"
WELL, WRONG, NOT_RUNNING = 0, 1, 3
NOBODY: Final = (
    f"no agent listens in {DIRECTORY}: start one (`systemctl start hvring.target`, or `hvring run` as root), "
    "or name its socket with --control PATH"
)


def add_control(parser: argparse.ArgumentParser) -> None:
    """Which of them."""
    parser.add_argument(
        "--control",
        metavar="PATH",
        help=f"the socket of one agent; default: all in {DIRECTORY}",
    )


def named(control: str | None) -> list[str]:
    """The sockets of those that are meant: this one, or all."""
    return sockets() if control is None else [control]


def ask_each(
    args: argparse.Namespace, ask: Callable[[ControlClient], dict[str, Any]], *, timeout: float = TIMEOUT
) -> tuple[dict[str, dict[str, Any]], dict[str, ControlError]]:
    """By the paths of their sockets: what was answered, and what went wrong.  A stale socket is nobody's."""
    answers: dict[str, dict[str, Any]] = {}
    errors: dict[str, ControlError] = {}
    for path in named(args.control):
        try:
            with ControlClient(path, timeout=timeout) as client:
                answers[path] = ask(client)
        except NotRunningError as error:
            if args.control is not None:
                errors[path] = error
        except ControlError as error:
            errors[path] = error
    return answers, errors


@contextmanager
def understood() -> Iterator[None]:
    """In the block an answer is looked at.  ControlError for one that is not as this version's are."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise ControlError(OTHER_VERSION) from error


def exit_status(command: str, answers: dict[str, Any], errors: dict[str, ControlError]) -> int:
    """Says what went wrong; what the command ends with, as far as that decides it."""
    for error in errors.values():
        print(f"hvring {command}: {error}", file=sys.stderr)
    if answers:
        return WRONG if errors else WELL
    if not errors:
        print(f"hvring {command}: {NOBODY}", file=sys.stderr)
        return NOT_RUNNING
    if all(isinstance(error, NotRunningError) for error in errors.values()):
        print(
            "start it with `hvring run --control PATH`, or see `systemctl status 'hvring*'`", file=sys.stderr
        )
        return NOT_RUNNING
    return WRONG
