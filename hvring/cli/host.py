# SPDX-License-Identifier: Apache-2.0
"""``hvring host``: serve a virtual Hyper-V host, or drive one that serves."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from hvring.cli import COMMANDS
from hvring.cli.layout import Parser, RawLayout
from hvring.cli.pool_names import CHOICES, pool
from hvring.events import EventKind, printable
from hvring.vmbus import SERVICE_NAMES

if TYPE_CHECKING:
    from hvring.host import Event

_DESCRIPTION: Final = """\
Without a verb: serve the six integration services at a Unix socket, negotiate
with every guest that attaches, send heartbeats and time samples, and report what
guests do wrong. With a verb: have the host that serves there do something.
"""
_EXAMPLES: Final = """\
examples:
  hvring host --socket /tmp/hv                    serve all six services until Ctrl-C
  hvring run --virtual /tmp/hv                    (elsewhere) attach the guest's agent
  hvring host --socket /tmp/hv status             who is attached, and how it does
  hvring host --socket /tmp/hv copy report.pdf /srv/in
  hvring host --socket /tmp/hv backup --hold 5    freeze, wait five seconds, thaw
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The words of this command."""
    parser = commands.add_parser(
        "host",
        help=COMMANDS["host"],
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=RawLayout,
    )
    parser.add_argument("--socket", required=True, metavar="PATH", help="where guests attach")
    parser.add_argument("--json", action="store_true", help="print JSON, one object a line")
    parser.add_argument("--quiet", action="store_true", help="serve without a line for each event")
    parser.add_argument(
        "--services",
        type=_services,
        default=SERVICE_NAMES,
        metavar="NAME,…",
        help="serve only these at first; `toggle` adds others",
    )
    parser.add_argument(
        "--echo",
        type=_class,
        action="append",
        default=[],
        metavar="GUID",
        help="offer a device of this class, too, which sends back what it gets: to try a driver of your own with",
    )
    parser.set_defaults(run=run)
    _add_verbs(parser)


def _add_verbs(parser: argparse.ArgumentParser) -> None:
    common = Parser(add_help=False)
    common.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")

    def add(name: str, summary: str) -> argparse.ArgumentParser:
        return verbs.add_parser(name, help=summary, description=summary, parents=[common])

    add("status", "show each service's guest, versions and answer times")

    wait = add("wait", "wait until guests are ready")
    wait.add_argument("services", nargs="*", metavar="SERVICE", help="default: all that are offered")
    wait.add_argument("--timeout", type=float, metavar="SECONDS", help="default: for ever")

    shutdown = add("shutdown", "power the guest off")
    kinds = shutdown.add_mutually_exclusive_group()
    kinds.add_argument("--restart", action="store_true", help="restart it instead")
    kinds.add_argument("--hibernate", action="store_true", help="hibernate it instead")
    shutdown.add_argument("--force", action="store_true")
    shutdown.add_argument("--reason", type=_number, metavar="CODE", help="a number, as 0x80000000")
    shutdown.add_argument("--timeout", type=int, metavar="SECONDS", help="how long the guest is told it has")
    shutdown.add_argument("--text", help="a message for the guest's users")

    copy = add("copy", "copy a file into a directory of the guest")
    copy.add_argument("source", metavar="FILE")
    copy.add_argument(
        "directory", metavar="DIRECTORY", help="a directory of the guest, or the full path of the file there"
    )
    copy.add_argument("--name", help="the file's name in the guest, if it is to be another")
    copy.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    copy.add_argument("--create-path", action="store_true", help="make missing directories")

    kvp = add("kvp", "exchange data with the guest")
    actions = kvp.add_subparsers(dest="action", metavar="ACTION", required=True)
    for action, words, summary in (
        ("get", ["key"], "print a key's value"),
        ("set", ["key", "value"], "store a value"),
        ("remove", ["key"], "remove a key"),
        ("list", [], "print all keys and values"),
    ):
        one = actions.add_parser(action, help=summary, description=summary, parents=[common])
        for word in words:
            one.add_argument(word, metavar=word.upper())
        pools = f"{CHOICES}; default: external"
        one.add_argument("--pool", type=pool, default=0, metavar="POOL", help=pools)

    ip = add("ip", "read or change the IP settings of a network adapter of the guest")
    actions = ip.add_subparsers(dest="action", metavar="ACTION", required=True)
    get = actions.add_parser("get", help="print them", description="print them", parents=[common])
    get.add_argument("adapter", metavar="MAC", help="as 00:15:5D:01:02:03")
    put = actions.add_parser("set", help="change them", description="change them", parents=[common])
    put.add_argument("adapter", metavar="GUID", help="of the adapter's device on VMBus, in braces")
    put.add_argument("--dhcp", action="store_true", help="IPv4 addresses by DHCP")
    for option, shape, what in (
        ("--address", "ADDRESS/MASK", "as 192.0.2.7/255.255.255.0 or 2001:db8::7/64"),
        ("--gateway", "ADDRESS", "a router to everywhere"),
        ("--dns", "ADDRESS", "a name server"),
    ):
        put.add_argument(option, action="append", default=[], metavar=shape, help=f"{what}; may be repeated")

    backup = add("backup", "freeze the guest's file systems and thaw them")
    backup.add_argument("--hold", type=float, default=0.0, metavar="SECONDS", help="stay frozen that long")

    time = add("time", "tell the guest the time")
    time.add_argument("action", choices=("sample", "sync"), help="a hint, or a request to set the clock")

    add("heartbeat", "show what the heartbeat says; the status is 1 without contact")

    toggle = add("toggle", "take a service away from the guest, or give it back")
    toggle.add_argument("service", type=_service, metavar="SERVICE", help="a name, or the GUID of a device")
    toggle.add_argument("offered", choices=("on", "off"))

    add("violations", "list the rules that guests broke; the status is 1 when there are any")


def run(args: argparse.Namespace) -> int:
    """Serve, or carry one verb out. Raises EndpointError, HostError."""
    if args.verb is None:
        return serve(args.socket, args.services, echoes=args.echo, quiet=args.quiet, as_json=args.json)
    from hvring.cli.host_verbs import VERBS
    from hvring.host.client import ControlClient

    with ControlClient(args.socket) as client:
        return VERBS[args.verb](client, args)


def serve(
    path: str,
    services: Sequence[str],
    *,
    echoes: Sequence[str] = (),
    quiet: bool = False,
    as_json: bool = False,
) -> int:
    """Serve until SIGINT or SIGTERM. Raises EndpointError when another host serves there."""
    import asyncio
    import signal

    from hvring.daemon.lines import Lines
    from hvring.host import VirtualHost, echo
    from hvring.host.control import ControlServer

    async def main(say: Lines) -> int:
        def report(event: Event) -> None:
            word, text = _told(event)
            if as_json:
                say(json.dumps({"event": word, "service": event.service, "text": text}))
            else:
                say(f"{event.service:<9}  {printable(text)}")

        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        devices = dict.fromkeys(echoes, echo)
        host = VirtualHost(path, services, devices=devices, on_event=None if quiet else report)
        async with host, ControlServer(host):
            if not quiet and not as_json:
                say(f"serving {', '.join((*services, *echoes))} at {printable(path)}")
                say(f"attach a guest with `hvring run --virtual {printable(path)}`, end with Ctrl-C")
            await stop.wait()
        return host.violation_count

    with Lines() as say:
        count = asyncio.run(main(say))
        if not quiet and not as_json:
            say(f"ended; {count or 'no'} violation{'' if count == 1 else 's'}")
    return 0


_WORDS: Final = {
    EventKind.ATTACHED: ("attached", "a guest attached"),
    EventKind.NEGOTIATED: ("negotiated", "negotiated {}"),
    EventKind.REFUSED: ("refused", "refused: {}"),
    EventKind.OFFERED: ("offer", "offered"),
    EventKind.WITHDRAWN: ("offer", "no longer offered"),
    EventKind.VIOLATION: ("violation", "violation: {}"),
}


def _told(event: Event) -> tuple[str, str]:
    """An event's kind as programs read it, and the sentence for people."""
    word, sentence = _WORDS.get(event.kind, (event.kind.value, "{}"))
    if event.detail and "{}" not in sentence:
        sentence += " {}"
    return word, sentence.format(event.detail)


def _services(text: str) -> tuple[str, ...]:
    names = tuple(name for name in text.split(",") if name)
    if unknown := set(names) - set(SERVICE_NAMES):
        raise argparse.ArgumentTypeError(
            f"no such service: {', '.join(sorted(unknown))}; there are {', '.join(SERVICE_NAMES)}"
        )
    return names


def _service(text: str) -> str:
    if text in SERVICE_NAMES:
        return text
    try:
        return _class(text)
    except argparse.ArgumentTypeError:
        names = ", ".join(SERVICE_NAMES)
        raise argparse.ArgumentTypeError(f"no such service: {text}; there are {names}") from None


def _class(text: str) -> str:
    from hvring.host.device import device_facts

    try:
        return device_facts(text).class_guid
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _number(text: str) -> int:
    return int(text, 0)
