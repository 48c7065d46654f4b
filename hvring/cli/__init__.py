# SPDX-License-Identifier: Apache-2.0
"""The command line: ``hvring COMMAND …``; one module a command, loaded when it is used."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Final, TextIO

import hvring
from hvring.cli.layout import Parser
from hvring.errors import HvringError

COMMANDS: Final = {
    "demo": "all six services between two processes, doing real work; no Hyper-V needed",
    "run": "serve the host: the agent",
    "status": "how the running agent is: each service, what went wrong last and what to do",
    "health": "tell the host how the applications of this machine are",
    "metrics": "the running agent's numbers, for Prometheus",
    "reload": "have the running agent read its configuration anew",
    "config": "look at the configuration file: check it, print it",
    "freeze": "what a backup would freeze here, and what could go wrong",
    "hooks": "the programs around a backup: which there are, and a trial of them",
    "host": "a virtual Hyper-V host, and the verbs to drive it",
    "devices": "the devices on VMBus and their drivers",
    "bind": "give services to uio_hv_generic, so that `hvring run` can serve them",
    "unbind": "give services back to the drivers they came from",
    "doctor": "what is right and what is wrong here for serving Hyper-V",
    "time": "how far this clock is from that of the host",
    "bench": "compare two runs of the benchmarks",
    "kvp": "read and write the key-value pools of this machine",
}


def parser(*names: str | None) -> argparse.ArgumentParser:
    """The words of these commands, all of which are loaded; of the others, the summary."""
    whole = Parser(prog="hvring", description="Hyper-V integration services in user space.")
    whole.add_argument("--version", action="version", version=f"hvring {hvring.__version__}")
    commands = whole.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        if name in names:
            _module(name).add_parser(commands)
        else:
            commands.add_parser(name, help=summary)
    return whole


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status: 0 done, 1 failed, 2 asked wrongly."""
    _hold_standard_descriptors()
    # A name or a text that the terminal's encoding lacks is no failure.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if argv is None else argv)
    chosen = next((word for word in words if not word.startswith("-")), None)
    args = parser(chosen).parse_args(words)
    try:
        status = int(args.run(args))
        # Now, while it can still be said that nobody got it.
        sys.stdout.flush()
    except HvringError as error:
        _complain(args.command, str(error))
        return 1
    except BrokenPipeError:  # the reader of our output left, as `head` does
        _say_no_more(sys.stdout, sys.stderr)
        return 1
    except OSError as error:  # of this machine: an output that is full, a directory that is gone
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
        _complain(args.command, f"{where}{error.strerror or error}")
        _say_no_more(sys.stdout)
        return 1
    except KeyboardInterrupt:  # as a shell counts what SIGINT ended
        return 130
    return status


def _complain(command: str, text: str) -> None:
    from hvring.events import printable  # not needed where all is well

    print(f"hvring {command}: {printable(text)}", file=sys.stderr)


def _hold_standard_descriptors() -> None:
    """A caller may have closed some of the three, and the next file to be opened would be the output or the log."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - it is to stay
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - it is to stay


def _say_no_more(*streams: TextIO) -> None:
    """What is left in these buffers would be tried again at the end, and fail again with a traceback."""
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        for stream in streams:
            # One that a caller of main() put there may have no descriptor.
            with contextlib.suppress(io.UnsupportedOperation):
                os.dup2(nowhere, stream.fileno())
    finally:
        os.close(nowhere)


def _module(name: str) -> ModuleType:
    """The module of a command."""
    return importlib.import_module(f"hvring.cli.{name}")
