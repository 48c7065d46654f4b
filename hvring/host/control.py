# SPDX-License-Identifier: Apache-2.0
"""The control socket of a serving host: JSON lines that drive its verbs.

A request is one line ``{"verb": <name>, "args": {...}}``. The answer is any number of lines with a key
``event``, then one line: ``{"result": ...}`` or ``{"error": <text>, "kind": <class>, "status": <number>}``.
Requests follow one another; closing the connection cancels the one that runs.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import socket
from collections.abc import Callable
from dataclasses import asdict
from types import TracebackType
from typing import Any, Final

from hvring.errors import HvringError
from hvring.host.errors import GuestStatusError, HostError
from hvring.host.virtual_host import VirtualHost
from hvring.ic.kvp import KvpOperation, KvpPool
from hvring.ic.kvp_ip import KvpIpInfo
from hvring.transport.listener import Listener

SUFFIX: Final = ".ctl"  # behind the path of the guests' socket
MAX_CLIENTS: Final = 32  # at the same time; one more is refused
_REFUSAL: Final = 1.0  # seconds that a client too many has to say what it wants
_LAST_WORDS: Final = 10.0  # seconds that a guest has to thaw before the host takes its channel back
_PROGRESS_EVERY: Final = 0.1  # seconds

_log = logging.getLogger("hvring.host")

Args = dict[str, Any]
Emit = Callable[[dict[str, Any]], None]


class ControlServer:
    """Listens beside a VirtualHost; ``async with VirtualHost(path) as host, ControlServer(host):``."""

    def __init__(self, host: VirtualHost) -> None:
        self.path = host.path + SUFFIX
        self._host = host
        self._listener: Listener | None = None
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> ControlServer:
        self._listener = Listener(self.path, socket.SOCK_STREAM)
        self._server = await asyncio.start_unix_server(self._connected, sock=self._listener.socket.dup())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Verbs that run are cancelled, and end properly, a backup by a thaw: if the guest answers in time."""
        if self._listener is not None:
            self._listener.close()
        if self._server is not None:
            self._server.close()
        for task in self._clients:
            task.cancel()
        if self._clients:
            await asyncio.wait(self._clients, timeout=_LAST_WORDS)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        others = len(self._clients)
        if others >= 2 * MAX_CLIENTS:
            writer.close()
            return
        self._clients.add(task)
        try:
            if others < MAX_CLIENTS:
                await self._serve(reader, writer)
                return
            # Closed before it has asked, the client would find no answer but a broken pipe.
            async with asyncio.timeout(_REFUSAL):
                await reader.readline()
            why = f"{MAX_CLIENTS} programs drive this host already"
            _send(writer, {"error": why, "kind": "HostError", "status": None})
        except (OSError, ValueError):  # the client is gone, or its line has no end
            pass
        except asyncio.CancelledError:  # only __aexit__ does that
            pass
        finally:
            self._clients.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        next_line = asyncio.ensure_future(reader.readline())
        try:
            while line := await next_line:
                next_line = asyncio.ensure_future(reader.readline())
                answer = asyncio.ensure_future(self._answer(line, lambda event: _send(writer, event)))
                try:
                    await asyncio.wait([answer, next_line], return_when=asyncio.FIRST_COMPLETED)
                    if not answer.done() and not next_line.result():
                        return
                    _send(writer, await answer)
                    await writer.drain()
                finally:
                    answer.cancel()
                    await asyncio.wait([answer])
        finally:
            next_line.cancel()

    async def _answer(self, line: bytes, emit: Emit) -> dict[str, Any]:
        try:
            verb, args = _request(line)
            return {"result": await getattr(_Verbs(self._host, emit), verb)(args)}
        except Exception as error:  # whatever it is, the client gets its answer
            if not isinstance(error, (HvringError, OSError, TimeoutError, ValueError)):
                _log.error("a verb failed: %r", error, exc_info=error)
            status = error.status if isinstance(error, GuestStatusError) else None
            return {"error": str(error) or "timed out", "kind": type(error).__name__, "status": status}


def _send(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    writer.write(json.dumps(message).encode() + b"\n")


def _request(line: bytes) -> tuple[str, Args]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        raise HostError("the request is not a line of JSON")
    if not isinstance(fields, dict) or not isinstance(fields.get("args", {}), dict):
        raise HostError("the request is not an object with a verb and args")
    verb = fields.get("verb")
    if verb not in VERBS:
        raise HostError(f"there is no verb {verb!r:.100}; there are {', '.join(VERBS)}")
    return verb, fields.get("args", {})


def _only(args: Args, **kinds: type | tuple[type, ...]) -> Args:
    """The arguments, of which there may be no others and which must be of these types."""
    for name, value in args.items():
        if name not in kinds:
            raise HostError(
                f"the argument {name!r:.100} is not known; there are {', '.join(kinds) or 'none'}"
            )
        if not _is(value, kinds[name]):
            raise HostError(f"the argument {name!r} cannot be {value!r:.100}")
    return args


def _is(value: object, kind: type | tuple[type, ...]) -> bool:
    """Whether ``value`` is of this kind: true is no number, a number is finite, and a list is one of texts."""
    if isinstance(value, bool):
        return kind is bool
    if isinstance(value, list):
        return kind is list and all(isinstance(one, str) for one in value)
    return isinstance(value, kind) and not (isinstance(value, float) and not math.isfinite(value))


def _need(args: Args, name: str) -> Any:
    if name not in args:
        raise HostError(f"the argument {name!r} is missing")
    return args[name]


class _Verbs:
    """What a client may ask for: one coroutine per verb, from checked arguments to plain data."""

    def __init__(self, host: VirtualHost, emit: Emit) -> None:
        self._host = host
        self._emit = emit

    async def status(self, args: Args) -> Any:
        _only(args)
        return self._host.status()

    async def violations(self, args: Args) -> Any:
        _only(args)
        found = [{"service": v.service, "request": v.request, "what": v.what} for v in self._host.violations]
        return {"count": self._host.violation_count, "violations": found}

    async def wait(self, args: Args) -> Any:
        _only(args, services=list, timeout=(int, float))
        try:
            await self._host.wait_ready(*args.get("services", []), timeout=args.get("timeout"))
        except TimeoutError:
            raise HostError("no guest was ready in time; `status` shows which services have none")
        return self._host.status()

    async def shutdown(self, args: Args) -> Any:
        _only(args, restart=bool, hibernate=bool, force=bool, reason=int, timeout=int, text=str)
        await self._host.shutdown.request(**args)
        return {}

    async def copy(self, args: Args) -> Any:
        _only(args, source=str, directory=str, name=str, overwrite=bool, create_path=bool)
        loop = asyncio.get_running_loop()
        told = loop.time()

        def progress(sent: int, size: int) -> None:
            nonlocal told
            if loop.time() - told >= _PROGRESS_EVERY:
                told = loop.time()
                self._emit({"event": "progress", "sent": sent, "size": size})

        source, directory = _need(args, "source"), _need(args, "directory")
        rest = {key: value for key, value in args.items() if key not in ("source", "directory")}
        report = await self._host.fcopy.copy(source, directory, progress=progress, **rest)
        return {"size": report.size, "seconds": report.seconds}

    async def kvp(self, args: Args) -> Any:
        _only(args, action=str, key=str, value=(str, int), pool=int)
        action, pool = _need(args, "action"), args.get("pool", 0)
        verbs = self._host.kvp
        if action == "list":
            return {"items": await verbs.list(pool)}
        key = _need(args, "key")
        if action == "get":
            return {"value": await verbs.get(key, pool)}
        if action == "set":
            await verbs.set(key, _need(args, "value"), pool)
            return {}
        if action == "remove":
            return {"removed": await verbs.remove(key, pool)}
        raise HostError(f"there is no action {action!r:.100}; there are get, set, remove, list")

    async def ip(self, args: Args) -> Any:
        _only(args, action=str, adapter=str, dhcp=bool, addresses=list, gateways=list, dns=list)
        action, adapter = _need(args, "action"), _need(args, "adapter")
        if action == "get":
            return asdict(await self._host.kvp.get_ip(adapter))
        if action != "set":
            raise HostError(f"there is no action {action!r:.100}; there are get, set")
        pairs = [address.partition("/")[::2] for address in args.get("addresses", [])]
        texts = [address for address, _ in pairs]
        await self._host.kvp.set_ip(
            KvpIpInfo(
                KvpOperation.SET_IP,
                KvpPool.GUEST,
                adapter,
                any("." in text for text in texts) | any(":" in text for text in texts) << 1,
                int(args.get("dhcp", False)),
                ";".join(texts),
                ";".join(f"/{mask}" if ":" in text else mask for text, mask in pairs),
                ";".join(args.get("gateways", [])),
                ";".join(args.get("dns", [])),
            )
        )
        return {}

    async def backup(self, args: Args) -> Any:
        _only(args, hold=(int, float))

        async def during() -> None:
            self._emit({"event": "frozen"})
            await asyncio.sleep(args.get("hold", 0))

        return asdict(await self._host.vss.backup(during))

    async def time(self, args: Args) -> Any:
        _only(args, action=str)
        verbs = self._host.timesync
        action = _need(args, "action")
        if action not in ("sample", "sync"):
            raise HostError(f"there is no action {action!r:.100}; there are sample, sync")
        return asdict(await (verbs.sync() if action == "sync" else verbs.sample()))

    async def heartbeat(self, args: Args) -> Any:
        _only(args)
        return self._host.status()["heartbeat"]

    async def toggle(self, args: Args) -> Any:
        _only(args, service=str, offered=bool)
        await self._host.set_offered(_need(args, "service"), _need(args, "offered"))
        return {}


VERBS: Final = tuple(name for name in vars(_Verbs) if not name.startswith("_"))
