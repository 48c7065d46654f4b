# SPDX-License-Identifier: Apache-2.0
"""``hvring run``: the agent for administrators."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from hvring.agent import Agent, Effects, Event, Opener, standard_services
from hvring.errors import EndpointError
from hvring.guest.pools import DIRECTORY
from hvring.guest.power import ShutdownOrder
from hvring.ic.heartbeat import ApplicationState
from hvring.services import TimeSync
from hvring.vmbus import SERVICE_NAMES

REHEARSAL = "rehearsal: "


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The words of this command."""
    parser = commands.add_parser(
        "run",
        help="serve the host: the agent",
        description="Serves the host until it is stopped by SIGINT or SIGTERM. On Hyper-V effects on this machine "
        "(freeze, power, clock) are real unless --rehearse is given; over a virtual host they are rehearsed unless "
        "--real is given.",
    )
    parser.add_argument(
        "services",
        nargs="*",
        metavar="SERVICE",
        help=f"of {', '.join(SERVICE_NAMES)}; default: on Hyper-V those that are bound, over a virtual host all",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--virtual", metavar="PATH", help="serve a virtual host, at this socket")
    where.add_argument(
        "--bind",
        action="store_true",
        help="take the services from the kernel's driver (see `hvring bind`) and give them back at the end; without "
        "names all but timesync",
    )
    meant = parser.add_mutually_exclusive_group()
    meant.add_argument("--real", action="store_true", help="mean it: really freeze, power off, set the clock")
    meant.add_argument("--rehearse", action="store_true", help="only say what would be done")
    parser.add_argument(
        "--pool-dir", metavar="DIR", help=f"the KVP pool files; if effects are real: {DIRECTORY}"
    )
    parser.add_argument(
        "--allow",
        metavar="DIR",
        action="append",
        help="the host may copy files below DIR; may be repeated; default: none, over a virtual host the directory "
        "for temporary files unless --real is given",
    )
    parser.add_argument("--set-clock", action="store_true", help="let the host's SYNC set the clock")
    states = [state.name.lower() for state in ApplicationState]
    parser.add_argument(
        "--health", choices=states, help="the application health to report with each heartbeat"
    )
    parser.add_argument("--health-file", metavar="FILE", help="read the health from FILE at each heartbeat")
    parser.add_argument(
        "--json", action="store_true", help="one JSON object a line: events, and the numbers at the end"
    )
    parser.add_argument("--verbose", "-v", action="store_true", help="log what is done")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop."""
    unknown = [name for name in args.services if name not in SERVICE_NAMES]
    if unknown:
        print(
            f"hvring run: no service is called {unknown[0]!r}; there are {', '.join(SERVICE_NAMES)}",
            file=sys.stderr,
        )
        return 2
    real = args.real or (args.virtual is None and not args.rehearse)
    prefix = "" if real else REHEARSAL
    logging.basicConfig(
        level=logging.DEBUG if args.verbose else logging.WARNING,
        format=f"{prefix}%(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("hvring.agent").setLevel(logging.ERROR)  # its events are printed below
    out = _Output(args.json, prefix)
    if args.virtual is not None:
        from hvring.transport.virtual import connect_async

        _run(args, real, out, args.services, partial(connect_async, args.virtual, timeout=None, wait=True))
        return 0
    from hvring.cli.run_uio import line
    from hvring.transport.sysfs import Bus

    if not Bus().present:
        print(
            "hvring run: this is no Hyper-V guest (there is no VMBus), so there is nothing to serve; "
            "--virtual PATH serves a virtual host",
            file=sys.stderr,
        )
        return 0
    with line(args.services, args.bind, out.tell) as (names, opener):
        _run(args, real, out, names, opener)
    return 0


def _run(args: argparse.Namespace, real: bool, out: _Output, names: Sequence[str], opener: Opener) -> None:
    effects = Effects(
        real=real,
        pool_directory=args.pool_dir or (DIRECTORY if real else _private_directory("pools")),
        allow=args.allow or ([] if real or args.virtual is None else [_temporary()]),
        set_clock=args.set_clock,
        health=_health(args),
        on_shutdown=out.shutdown,
    )
    services = standard_services(effects, names or SERVICE_NAMES)
    out.say(
        serving=[service.name for service in services],
        pools=os.fspath(effects.pool_directory),
        allow=[os.fspath(path) for path in effects.allow],
    )
    asyncio.run(_serve(Agent(services, opener, on_event=out.event), out))


async def _serve(agent: Agent, out: _Output) -> None:
    loop = asyncio.get_running_loop()
    work = asyncio.create_task(agent.run())

    def stop() -> None:
        if not work.cancelling():
            out.end(agent)  # before the services forget what they know
            work.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        await work
    except asyncio.CancelledError:
        if not work.cancelled():
            raise
    else:
        raise EndpointError("no service could be opened; the lines above say why")


class _Output:
    """Lines for people, or JSON for programs; a rehearsal says so on every line."""

    def __init__(self, as_json: bool, prefix: str) -> None:
        self._json = as_json
        self._prefix = prefix
        self._orders: list[dict[str, Any]] = []

    def say(self, **fields: Any) -> None:
        if self._json:
            print(json.dumps({"rehearsal": bool(self._prefix), **fields}), flush=True)
        else:
            words = "  ".join(
                f"{key}: {_words(value)}" for key, value in fields.items() if value not in ("", [], None)
            )
            print(f"{self._prefix}{words}", flush=True)

    def event(self, event: Event) -> None:
        self.tell(event.kind.value, event.service, event.detail)

    def tell(self, what: str, service: str, detail: str) -> None:
        if self._json:
            self.say(event=what, service=service, detail=detail)
        else:
            shown = "".join(c if c.isprintable() else "?" for c in detail)  # a host's words may be in it
            print(f"{self._prefix}{service}: {what} {shown}".rstrip(), flush=True)

    def shutdown(self, order: ShutdownOrder) -> None:
        fields = {
            "action": order.action.value,
            "force": order.force,
            "reason": f"{order.reason:#010x}",
            "timeout": order.timeout,
            "text": order.text,
        }
        self._orders.append(fields)
        del self._orders[:-100]  # a host could go on for ever
        if self._json:
            self.say(event="order", service="shutdown", **fields)
        else:
            print(f"{self._prefix}shutdown: the host orders {order.action.value}: {order.text!r}", flush=True)

    def end(self, agent: Agent) -> None:
        """The numbers of this run."""
        if not self._json:
            return
        stats = agent.stats()
        time_service = agent.services.get("timesync")
        measured = time_service.measurement if isinstance(time_service, TimeSync) else None
        self.say(
            event="summary",
            services=stats,
            orders=self._orders,
            clock_offset_ns=None if measured is None else measured.offset_ns,
            clock_sample_age=None if measured is None else time.monotonic() - measured.taken,
        )


def _words(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else str(value)


def _health(args: argparse.Namespace) -> Callable[[], ApplicationState] | None:
    if args.health_file:
        return lambda: _read_health(args.health_file)
    if args.health:
        state = ApplicationState[args.health.upper()]
        return lambda: state
    return None


def _private_directory(name: str) -> str:
    """A directory of this user below the one for temporary files, as a rehearsal's stand-in for system ones."""
    base = os.path.join(_temporary(), f"hvring-rehearsal-{os.getuid()}")
    os.makedirs(base, mode=0o700, exist_ok=True)
    found = os.lstat(base)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise EndpointError(f"{base} belongs to somebody else: name a directory with --pool-dir")
    return os.path.join(base, name)


def _read_health(path: str) -> ApplicationState:
    with open(path, encoding="ascii") as file:
        return ApplicationState[file.read().strip().upper()]


def _temporary() -> str:
    """The directory for temporary files; without the module of that name, which costs a megabyte."""
    return os.environ.get("TMPDIR") or "/tmp"
