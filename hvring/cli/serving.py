# SPDX-License-Identifier: Apache-2.0
"""What `hvring run` does where there is something to serve; loaded only then, since it takes a while."""

from __future__ import annotations

import argparse
import asyncio
import os
import stat
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from hvring.agent.channel import Opener
from hvring.agent.settings import Settings
from hvring.agent.standard import standard_services
from hvring.agent.verify import SettingsError
from hvring.cli.run import configuration_path, nothing_to_serve
from hvring.daemon.daemon import Daemon
from hvring.daemon.health import HealthRegister
from hvring.daemon.lines import Lines
from hvring.daemon.log import Log
from hvring.daemon.settings import Configuration, RunSettings, combined
from hvring.daemon.signals import EndingSignals, ending_signals, held_back
from hvring.errors import EndpointError, HvringError
from hvring.events import printable
from hvring.services import Service
from hvring.transport.sysfs import Bus
from hvring.vmbus import SERVICE_NAMES

Words = dict[tuple[str, str], Any]


def serve(args: argparse.Namespace, said: Words) -> int:
    """Serve until told to stop; 2: the lines on stderr say what is wrong with the words or the file."""
    read = partial(read_configuration, args.config, said)
    try:
        configuration = read()
        read = partial(read, own=configuration.run)
    except SettingsError as error:
        _complain(f"{name}: {text}" for name, text in error.problems)
        return 2
    except HvringError as error:
        _complain(map(str, getattr(error, "problems", [error])))
        return 2
    own = configuration.run
    if own.virtual is None and not Bus().present:
        return nothing_to_serve()
    with (
        Lines() as say,
        ending_signals() as signals,
        Log(say, configuration.log, rehearsal=not own.is_real).heard() as out,
    ):
        health = HealthRegister()
        work = partial(
            _serve,
            read,
            configuration_path(args.config),
            configuration,
            _hooks(out, health),
            out,
            signals,
            health,
        )
        if own.virtual is not None:
            from hvring.transport.virtual import connect_async

            work(own.services, partial(connect_async, own.virtual, timeout=None, wait=True))
        else:
            from hvring.cli.run_ways import chosen_services
            from hvring.transport.ways import Via

            with chosen_services(list(own.services), own.bind, Via(own.via), out.tell) as (names, opener):
                work(names, opener)
    return 0


def read_configuration(path: str | None, said: Words, own: RunSettings | None = None) -> Configuration:
    """The file at ``path``, or the usual one if it is there, with the words over it.

    Raises ConfigError, or SettingsError where there is no file. A rehearsal that nobody told where the files go has
    places of its own for them.  ``own``: what a program that serves began with, and stays, whatever the file says now.
    """
    path = configuration_path(path)
    values: Mapping[str, Mapping[str, Any]] = {}
    combine: Callable[[Words], Configuration] = partial(combined, values)
    if path is not None:
        from hvring.daemon.config import (
            reading,
        )  # many an agent has no file, and need not know how to read one

        file = reading.read(path)
        values, combine = file.values, partial(reading.configuration, file)
    own = own or combine(said).run
    more: Words = {}
    if not own.is_real:
        if "pool_directory" not in values.get("kvp", {}):
            more["kvp", "pool_directory"] = _private_directory("pools")
        if own.virtual is not None and "allow" not in values.get("fcopy", {}):
            more["fcopy", "allow"] = (_temporary(),)
    found = combine(more | said)
    return replace(found, services=replace(found.services, real=own.is_real))


def _complain(problems: Iterable[str]) -> None:
    for problem in problems:
        print(f"hvring run: {printable(problem)}", file=sys.stderr)


def _serve(
    read: Callable[[], Configuration],
    file: str | None,
    configuration: Configuration,
    hooked: Callable[[Settings], Settings],
    out: Log,
    signals: EndingSignals,
    health: HealthRegister,
    names: Sequence[str],
    opener: Opener,
) -> None:
    def make(found: Configuration, names: Iterable[str]) -> list[Service]:
        return standard_services(hooked(found.services), names)

    services = make(configuration, names or SERVICE_NAMES)
    settings = configuration.services
    out.say(
        "serving",
        serving=[service.name for service in services],
        pools=os.fspath(settings.kvp.pool_directory),
        allow=[os.fspath(path) for path in settings.fcopy.allow],
    )

    # An exception between the steps of a loop may be taken for one of a callback, and be forgotten.
    with held_back():
        daemon = Daemon(
            services,
            opener,
            out,
            signals,
            configuration,
            read=read,
            remake=make,
            config_file=file,
            health=health,
        )
        asyncio.run(daemon.run())


def _hooks(out: Log, health: HealthRegister) -> Callable[[Settings], Settings]:
    """What no file can say: who hears of orders, and who is asked for health."""

    def hooked(settings: Settings) -> Settings:
        return replace(
            settings,
            shutdown=replace(settings.shutdown, on_request=out.shutdown),
            heartbeat=replace(settings.heartbeat, health=health),
        )

    return hooked


def _private_directory(name: str) -> str:
    """A directory of this user below the one for temporary files, as a rehearsal's stand-in for system ones."""
    base = os.path.join(_temporary(), f"hvring-rehearsal-{os.getuid()}")
    os.makedirs(base, mode=0o700, exist_ok=True)
    found = os.lstat(base)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise EndpointError(f"{base} belongs to somebody else: name a directory with --pool-dir")
    return os.path.join(base, name)


def _temporary() -> str:
    """The directory for temporary files; without the module of that name, which costs a megabyte."""
    return os.environ.get("TMPDIR") or "/tmp"
