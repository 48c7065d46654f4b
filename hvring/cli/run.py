# SPDX-License-Identifier: Apache-2.0
"""``hvring run``: the agent for administrators."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hvring.cli import COMMANDS, words

CONFIGURATION = "/etc/hvring.toml"
"""What is read if no other file is named and this one is there."""

# What ends without anything to serve, as on a machine that is no VM of Hyper-V, ends at once: nothing here imports more
# than the command line itself needs, and what other modules know better is written down (a test compares).
SERVICES = ("shutdown", "timesync", "heartbeat", "kvp", "vss", "fcopy")
BUS = "/sys/bus/vmbus/devices"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The words of this command."""
    parser = commands.add_parser(
        "run",
        help=COMMANDS["run"],
        description="Serves the host until it is stopped by SIGINT, SIGTERM or the end of its terminal. On Hyper-V "
        "effects on this machine (freeze, power, clock) are real unless --rehearse is given; over a virtual host they "
        "are rehearsed unless --real is given.",
        argument_default=argparse.SUPPRESS,  # what is not said is left to the file
    )
    parser.add_argument(
        "run.services",
        nargs="*",
        metavar="SERVICE",
        help=f"of {', '.join(SERVICES)}; default: on Hyper-V those that are bound or that hv_utils hands out, "
        "over a virtual host all",
    )
    parser.add_argument(
        "--config",
        default=None,
        metavar="FILE",
        help=f"the settings, over which these words win; default: {CONFIGURATION}, if it is there",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--virtual",
        dest="run.virtual",
        metavar="PATH",
        help="serve a virtual host, at this socket",
    )
    where.add_argument(
        "--bind",
        dest="run.bind",
        action="store_true",
        help="take the services from the kernel's driver (see `hvring bind`) and give them back at the end; without "
        "names all but timesync",
    )
    parser.add_argument(
        "--via",
        dest="run.via",
        choices=("auto", "uio", "utils"),
        help="on Hyper-V: over the rings of uio_hv_generic, over hv_utils' character devices, or by what is there; "
        "default: auto",
    )
    meant = parser.add_mutually_exclusive_group()
    meant.add_argument(
        "--real",
        dest="run.rehearse",
        action="store_const",
        const=False,
        help="mean it: really freeze, power off, set the clock",
    )
    meant.add_argument(
        "--rehearse",
        dest="run.rehearse",
        action="store_const",
        const=True,
        help="only say what would be done",
    )
    parser.add_argument(
        "--pool-dir",
        dest="kvp.pool_directory",
        metavar="DIR",
        type=words.directory,
        help="the KVP pool files; if effects are real: /var/lib/hyperv",
    )
    parser.add_argument(
        "--allow",
        dest="fcopy.allow",
        metavar="DIR",
        action="append",
        type=words.directory,
        help="the host may copy files below DIR; may be repeated; default: none, over a virtual host the directory "
        "for temporary files unless --real is given",
    )
    parser.add_argument(
        "--copy-mode",
        dest="fcopy.mode",
        metavar="MODE",
        type=words.mode,
        help="mode of copied files; default: that of the file which is replaced, or else 640",
    )
    parser.add_argument(
        "--copy-owner",
        dest="fcopy.owner",
        metavar="UID:GID",
        type=words.owner,
        help="owner of copied files, in numbers; default: that of the file which is replaced, or else this process's",
    )
    parser.add_argument(
        "--copy-max-size",
        dest="fcopy.max_size",
        metavar="BYTES",
        type=words.size,
        help="refuse larger files; default: no limit",
    )
    parser.add_argument(
        "--exclude",
        dest="vss.exclude",
        metavar="GLOB",
        action="append",
        type=words.file_systems,
        help="mount points that a backup leaves alone, or type:GLOB, or source:GLOB; may be repeated",
    )
    parser.add_argument(
        "--only",
        dest="vss.only",
        metavar="GLOB",
        action="append",
        type=words.file_systems,
        help="a backup freezes only what this names, as --exclude does; may be repeated",
    )
    parser.add_argument(
        "--loop",
        dest="vss.loops",
        metavar="GLOB",
        type=words.file_systems,
        action="append",
        help="a backup freezes what this names, as --exclude does, although it is on a loop device; may be repeated",
    )
    parser.add_argument(
        "--max-frozen",
        dest="vss.max_frozen",
        metavar="SECONDS",
        type=words.seconds,
        help="thaw after so long, whatever the host says; default: 60",
    )
    parser.add_argument(
        "--backup-flags",
        dest="vss.capability_flags",
        metavar="N",
        type=words.backup_flags,
        help="what this machine says of its backups, over a ring; default: 5, no automatic recovery; host: "
        "what the host asked with comes back, as from Linux",
    )
    parser.add_argument(
        "--set-clock",
        dest="timesync.mode",
        action="store_const",
        const="step",
        help="let the host set the clock: by SYNC, and by samples that show that this machine was paused without one",
    )
    parser.add_argument(
        "--health",
        dest="health.state",
        choices=("unknown", "healthy", "critical", "stopped"),
        help="the application health to report with each heartbeat",
    )
    parser.add_argument(
        "--health-file",
        dest="health.file",
        metavar="FILE",
        help="a file whose only word is the application health, read while heartbeats come",
    )
    parser.add_argument(
        "--control",
        dest="control.socket",
        metavar="PATH",
        type=words.control_socket,
        help="the socket that `hvring status` and the like speak to; none: there is none; default: in /run/hvring, "
        "for root where effects are real",
    )
    parser.add_argument(
        "--json",
        dest="log.form",
        action="store_const",
        const="json",
        help="one JSON object a line: events, and the numbers at the end",
    )
    parser.add_argument(
        "--verbose",
        "-v",
        dest="log.level",
        action="store_const",
        const="debug",
        help="log what is done",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop."""
    said = said_words(args)
    unknown = [name for name in said.get(("run", "services"), ()) if name not in SERVICES]
    if unknown:
        print(
            f"hvring run: no service is called {unknown[0]!r}; there are {', '.join(SERVICES)}",
            file=sys.stderr,
        )
        return 2
    if ("run", "virtual") not in said and not os.path.isdir(BUS) and not _names_virtual(args.config):
        return nothing_to_serve()
    with _without_tls():
        from hvring.cli import serving
    return serving.serve(args, said)


def configuration_path(named: str | None) -> str | None:
    """The file to read; None: there is none."""
    return CONFIGURATION if named is None and os.path.lexists(CONFIGURATION) else named


def _names_virtual(path: str | None) -> bool:
    """Whether the file may name a virtual host; one that does not need not be understood where there is no Hyper-V."""
    path = configuration_path(path)
    if path is None:
        return False
    text: bytes | None
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), "rb") as file:
            text = file.read(1 << 17)
    except OSError:
        return True  # whoever reads it next says what is wrong
    if text is None:  # a pipe or a terminal, in which nothing is yet
        return True
    return any(b"virtual" in line for line in text.splitlines() if not line.lstrip().startswith(b"#"))


def said_words(args: argparse.Namespace) -> dict[tuple[str, str], Any]:
    """What the command line says, by section and knob: the names under which argparse has them."""
    said: dict[tuple[str, str], Any] = {}
    for name, value in vars(args).items():
        section, dot, knob = name.partition(".")
        if dot and (value or name != "run.services"):
            said[section, knob] = value
    if ("run", "virtual") in said:  # one of the two in a file is not meant then
        said["run", "bind"] = False
    elif ("run", "bind") in said:
        said["run", "virtual"] = None
    return said


def nothing_to_serve() -> int:
    """The end of the agent where there is no Hyper-V."""
    print(
        "hvring run: this is no Hyper-V guest (there is no VMBus), so there is nothing to serve; "
        "--virtual PATH serves a virtual host",
        file=sys.stderr,
    )
    return 0


@contextmanager
def _without_tls() -> Iterator[None]:
    """The agent stays for as long as the machine.

    Its asyncio comes without TLS, which nothing there speaks and which takes four megabytes.
    """
    spared = not {"asyncio", "ssl"} & sys.modules.keys()
    if spared:
        # To import it is an error now, as where it is missing.
        sys.modules["ssl"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if spared:
            del sys.modules["ssl"]
