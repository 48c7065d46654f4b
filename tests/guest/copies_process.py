# SPDX-License-Identifier: Apache-2.0
"""Rounds of a copy that is interrupted at random; runs inside a private mount namespace.

``copies_process.py SETTINGS``: JSON with the directories ``disk`` (a file system that can be frozen), ``small`` (one
that is soon full) and ``plain``, the ``socket``, ``rounds``, ``seed``.  A host and an agent, whole ones, and between
them one copy a round.  One JSON line per round: what was done and when, what the host was told, and what is wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import json
import os
import random
import select
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from hvring.agent import Agent, CopyRule, FcopySettings, Settings, standard_services
from hvring.errors import HvringError
from hvring.guest import workers
from hvring.guest.files import DirectoryReceiver
from hvring.guest.leftovers import is_temporary
from hvring.host import GuestStatusError, VirtualHost
from hvring.ic.fcopy import CHUNK, CancelCopy, CompleteCopy, FcopyFlag, StartCopy, WriteChunk
from hvring.pending import settle
from hvring.services import fcopy
from hvring.transport.virtual import connect_async

FIFREEZE, FITHAW = 0xC0045877, 0xC0045878
PR_SET_CHILD_SUBREAPER = 36
BOUND = 60.0  # seconds until a round must be at rest
QUOTA = 1 << 20

#: Workers on a file system that has no files without a name.
NAMED = """
import errno, os
really = os.open
def opened(path, flags, *rest, **more):
    if flags & os.O_TMPFILE == os.O_TMPFILE:
        raise OSError(errno.EOPNOTSUPP, "not supported")
    return really(path, flags, *rest, **more)
os.open = opened
"""

KINDS = (
    *("nothing", "cancel", "anew", "rescind", "kill agent", "stop agent", "kill worker", "kill worker"),
    *("stop worker", "reload", "full", "quota", "freeze", "short", "kill both"),
)


def serve(settings: dict[str, Any], tell: int) -> None:
    """The agent.  SIGHUP: other settings; SIGUSR1: which process is idle."""
    if settings["named"]:
        workers._PROGRAM = NAMED + workers._PROGRAM  # type: ignore[misc]
    fcopy.SWEEP_AFTER, fcopy.LOST_SWEEP_AFTER = 0.0, 0.2  # type: ignore[misc]
    folders = [settings[name] for name in ("disk", "small", "plain")]
    rule = CopyRule(settings["plain"] + "/quota", quota=QUOTA)
    own = FcopySettings(
        folders,
        rules=[rule],
        timeout=1.0,
        sync_timeout=1.5,
        allocate=settings["allocate"],
        sync=settings["sync"],
    )

    async def main() -> None:
        def make() -> Any:
            (service,) = standard_services(Settings(real=True, fcopy=own), ["fcopy"])
            return service

        def idle() -> None:
            worker = service._receiver._workers._idle
            os.write(tell, f"{0 if worker is None else worker.pid}\n".encode())

        service = make()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, lambda: service.adopt(make()))
        loop.add_signal_handler(signal.SIGUSR1, idle)
        opener = partial(connect_async, settings["socket"], timeout=None, wait=True)
        async with Agent([service], opener):
            os.write(tell, b"ready\n")
            await asyncio.Event().wait()

    asyncio.run(main())


def breed(requests: socket.socket) -> None:
    """A process without threads that forks agents."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while raw := requests.recv(4096):
        heard, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            requests.close()
            try:
                serve(json.loads(raw), tell)
            finally:
                os._exit(1)
        socket.send_fds(requests, [str(pid).encode()], [heard])
        os.close(heard)
        os.close(tell)


class RunningAgent:
    """One that lives until it is killed."""

    def __init__(self, breeder: socket.socket, settings: dict[str, Any]) -> None:
        breeder.send(json.dumps(settings).encode())
        raw, (self._heard,), _, _ = socket.recv_fds(breeder, 100, 1)
        self.pid = int(raw)
        self.process = os.pidfd_open(self.pid)
        self.hear()

    def hear(self) -> str:
        if not select.select([self._heard], [], [], BOUND)[0]:
            raise TimeoutError("the agent says nothing")
        return os.read(self._heard, 100).decode().strip()

    @property
    def is_alive(self) -> bool:
        return not select.select([self.process], [], [], 0)[0]

    def workers(self) -> list[int]:
        with contextlib.suppress(OSError):
            return children(self.pid)
        return []

    def idle(self) -> int:
        os.kill(self.pid, signal.SIGUSR1)
        return int(self.hear())

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        select.select([self.process], [], [], BOUND)

    def close(self) -> None:
        os.close(self.process)
        os.close(self._heard)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def signal_to(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


class Rounds:
    def __init__(self, settings: dict[str, Any], breeder: socket.socket, breeder_pid: int) -> None:
        self.settings = settings
        self.breeder, self.breeder_pid = breeder, breeder_pid
        self.folders = {name: Path(settings[name]) for name in ("disk", "small", "plain")}
        (self.folders["plain"] / "quota").mkdir()
        self.disk = os.open(settings["disk"], os.O_RDONLY)
        self.agent: RunningAgent | None = None
        self.was_killed = False  # a process, since the last sweep: it may have left something
        self.host = VirtualHost(settings["socket"], ["fcopy"])

    async def run(self) -> None:
        async with self.host:
            for number in range(self.settings["rounds"]):
                chance = random.Random(f"{self.settings['seed']}-{number}")
                seen = await Round(self, chance, number).run()
                if number % 25 == 24 or number == self.settings["rounds"] - 1:
                    seen["problems"] += await self.sweep()
                print(json.dumps({"round": number, **seen}), flush=True)

    async def have_agent(self, chance: random.Random) -> RunningAgent:
        if self.agent is not None and not self.agent.is_alive:
            self.agent.close()
            self.agent = None
        if self.agent is None:
            how = {
                "named": chance.random() < 0.5,
                "allocate": chance.random() < 0.7,
                "sync": chance.random() < 0.7,
            }
            self.agent = RunningAgent(self.breeder, {**self.settings, **how})
        await self.host.wait_ready("fcopy", timeout=BOUND)
        return self.agent

    async def rest(self) -> None:
        """Until nobody is at work any more: all processes for files are gone, but the one that is idle."""
        until = time.monotonic() + BOUND
        while True:
            while os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG) is not None:
                pass
            alive = self.agent is not None and self.agent.is_alive
            at_work = {pid for pid in children(os.getpid()) if pid != self.breeder_pid}
            if alive:
                assert self.agent is not None
                at_work |= {pid for pid in self.agent.workers() if not is_over(pid)} - {self.agent.idle()}
            if not at_work:
                return
            if time.monotonic() > until:
                raise TimeoutError(f"still at work: {[described(pid) for pid in at_work]}")
            await asyncio.sleep(0.002)

    async def sweep(self) -> list[str]:
        """What the start of an agent does; nothing may be left then."""
        receiver = DirectoryReceiver(self.folders.values())
        await asyncio.to_thread(lambda: settle(receiver.sweep()))
        await self.rest()
        self.was_killed = False
        return [f"left after a sweep: {name}" for name in self.leftovers()]

    def leftovers(self) -> list[str]:
        return [
            str(path)
            for folder in self.folders.values()
            for path in folder.rglob("*")
            if is_temporary(path.name)
        ]

    def state(self) -> dict[str, bytes | None]:
        """What is visible: the contents of each file, None for a directory."""
        found = {}
        for folder in self.folders.values():
            for path in folder.rglob("*"):
                if not is_temporary(path.name):
                    found[str(path)] = path.read_bytes() if path.is_file() else None
        return found


def described(pid: int) -> str:
    files = []
    with contextlib.suppress(OSError):
        files = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    tasks = Path(f"/proc/{pid}/task")
    wait = [(each / "wchan").read_text() for each in tasks.iterdir()] if tasks.exists() else []
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return f"{pid}: {lines[2]} {[line for line in lines if line.startswith('PPid')]} {wait} {files}"


def is_over(pid: int) -> bool:
    """Whether nothing is left of a process but what its parent has yet to ask for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


class Round:
    """One copy, and what happens to it."""

    def __init__(self, rounds: Rounds, chance: random.Random, number: int) -> None:
        self.rounds, self.chance = rounds, chance
        self.kind = chance.choice(KINDS)
        place = {"full": "small", "freeze": "disk", "quota": "plain"}.get(self.kind)
        place = place or chance.choice(("disk", "plain", "plain"))
        folder = rounds.folders[place] / ("quota" if self.kind == "quota" else "")
        if self.kind not in ("quota", "full") and chance.random() < 0.3:
            folder = folder / "made" / "deep"
        self.target = folder / f"f{chance.randrange(3)}"
        size = chance.choice((0, 1, CHUNK, chance.randrange(40_000), chance.randrange(600_000)))
        if self.kind in ("quota", "full"):
            size = 1_500_000
        self.data = number.to_bytes(8, "little") + chance.randbytes(size)
        self.is_announced = chance.random() < (0.3 if self.kind in ("quota", "full") else 0.8)
        self.overwrite = chance.random() < 0.9
        self.asked_to_complete = False
        self.at = "never"

    async def run(self) -> dict[str, Any]:
        for path in self.rounds.folders.values():
            for old in path.rglob("f*"):
                if self.chance.random() < 0.3:
                    old.unlink()
        before = self.rounds.state()
        self.agent = await self.rounds.have_agent(self.chance)
        after_this = []
        try:
            outcome = await asyncio.wait_for(self.copy(after_this), BOUND)
        finally:
            for undo in after_this:
                undo()
        if self.agent.is_alive and outcome != "ok":
            with contextlib.suppress(HvringError, asyncio.TimeoutError):
                await self.rounds.host.wait_ready("fcopy", timeout=BOUND)
                await self.ask(CancelCopy())  # which it is told in any case
        try:
            await self.rounds.rest()
        except TimeoutError as error:
            raise TimeoutError(f"{self.kind} at {self.at}, {outcome}: {error}") from error
        return {"kind": self.kind, "at": self.at, "outcome": outcome, "problems": self.look(before, outcome)}

    def look(self, before: dict[str, bytes | None], outcome: str) -> list[str]:
        target, after = str(self.target), self.rounds.state()
        files = {path: contents for path, contents in after.items() if contents is not None}
        expected = {path: contents for path, contents in before.items() if contents is not None}
        problems = []
        is_unknown = outcome == "silence" and self.asked_to_complete
        if outcome == "ok" or (is_unknown and files.get(target, b"") == self.data):
            expected[target] = self.data
        if files != expected:
            wrong = {path for path in files.keys() | expected.keys() if files.get(path) != expected.get(path)}
            told = {path: self.told(before.get(path), files.get(path)) for path in sorted(wrong)}
            problems.append(f"{outcome}, but not as it should be: {told}")
        if not self.rounds.was_killed:
            problems += [f"left: {path}" for path in self.rounds.leftovers()]
            if outcome != "ok" and not self.asked_to_complete and after.keys() - before.keys():
                problems.append(f"made: {sorted(after.keys() - before.keys())}")
        for path in sorted(after.keys() - files.keys(), reverse=True):
            if "made" in path:
                with contextlib.suppress(OSError):  # a killed process does not take directories back
                    os.rmdir(path)
        return problems

    def told(self, before: bytes | None, after: bytes | None) -> str:
        words = [
            "none" if data is None else "the new one" if data == self.data else f"one of {len(data)} bytes"
            for data in (before, after)
        ]
        return f"before {words[0]}, now {words[1]}, of {len(self.data)}; overwrite {self.overwrite}"

    async def copy(self, after_this: list[Callable[[], None]]) -> str:
        """What the host was told in the end: ok, an error, or nothing (silence)."""
        pieces = [self.data[at : at + CHUNK] for at in range(0, len(self.data), CHUNK)]
        flags = FcopyFlag.CREATE_PATH | (FcopyFlag.OVERWRITE if self.overwrite else FcopyFlag(0))
        size = len(self.data) if self.is_announced else 0
        messages: list[Any] = [
            StartCopy(self.target.name, str(self.target.parent), flags, size),
            *(WriteChunk(n * CHUNK, piece) for n, piece in enumerate(pieces)),
            CompleteCopy(),
        ]
        if self.kind == "short" and len(pieces) > 1:
            del messages[self.chance.randrange(1, len(pieces))]
        # The end is where most can go wrong.
        moment = self.chance.choice(
            (0, len(messages) - 1, len(messages) - 1, self.chance.randrange(len(messages)))
        )
        try:
            for number, message in enumerate(messages):
                if number == moment and self.kind in ("cancel", "anew"):
                    self.at = type(message).__name__
                    return await self.turn_away()
                if isinstance(message, CompleteCopy):
                    self.asked_to_complete = True
                asking = asyncio.ensure_future(self.ask(message))
                if number == moment:
                    self.at = type(message).__name__
                    await asyncio.sleep(
                        self.chance.choice((0, self.chance.random() * 0.002, self.chance.random() * 0.02))
                    )
                    try:
                        await self.interrupt(after_this)
                    except BaseException:
                        asking.cancel()
                        raise
                await asking
        except GuestStatusError as error:
            return f"{error.status:#x}"
        except HvringError:
            return "silence"
        return "ok"

    async def turn_away(self) -> str:
        """The host does something else in the middle of it."""
        if self.kind == "cancel":
            await self.ask(CancelCopy())
        else:
            other = StartCopy("other", str(self.rounds.folders["plain"]), FcopyFlag.OVERWRITE, 4)
            await self.ask(other)
            await self.ask(CancelCopy())
        return "cancelled"

    async def interrupt(self, after_this: list[Callable[[], None]]) -> None:
        chance, agent, host = self.chance, self.agent, self.rounds.host
        while_long = chance.random() * 0.1 if chance.random() < 0.85 else 1.2 + chance.random()
        at_work = [pid for pid in agent.workers() if not is_over(pid)]
        worker = chance.choice(at_work) if at_work else None
        if self.kind == "rescind":
            await host.set_offered("fcopy", False)
            await host.set_offered("fcopy", True)
        elif self.kind == "kill agent":
            agent.kill()  # and its processes take back what is not done
        elif self.kind == "stop agent":
            await self.paused(agent.pid, while_long, after_this)
        elif self.kind == "reload":
            signal_to(agent.pid, signal.SIGHUP)
        elif self.kind == "freeze":
            thaw = partial(ioctl, self.rounds.disk, FITHAW)
            after_this.append(thaw)
            if ioctl(self.rounds.disk, FIFREEZE):
                await asyncio.sleep(while_long)
                thaw()
        elif worker is not None and self.kind == "stop worker":
            await self.paused(worker, while_long, after_this)
        elif worker is not None and self.kind == "kill worker":
            self.rounds.was_killed = True
            signal_to(worker, signal.SIGKILL)
        elif self.kind == "kill both":
            self.rounds.was_killed = True
            for pid in (worker, agent.pid) if chance.random() < 0.5 else (agent.pid, worker):
                if pid is not None:
                    signal_to(pid, signal.SIGKILL)
            agent.kill()

    async def paused(self, pid: int, seconds: float, after_this: list[Callable[[], None]]) -> None:
        after_this.append(lambda: signal_to(pid, signal.SIGCONT))
        signal_to(pid, signal.SIGSTOP)
        await asyncio.sleep(seconds)
        signal_to(pid, signal.SIGCONT)

    def ask(self, message: Any) -> Awaitable[None]:
        return self.rounds.host.fcopy._ask(type(message).__name__, message.encode())


def ioctl(descriptor: int, operation: int) -> bool:
    try:
        fcntl.ioctl(descriptor, operation, 0)
    except OSError:
        return False
    return True


def main() -> None:
    settings = json.loads(sys.argv[1])
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    breeder = os.fork()
    if breeder == 0:
        ours.close()
        try:
            breed(theirs)
        finally:
            os._exit(0)
    theirs.close()
    rounds = Rounds(settings, ours, breeder)
    try:
        asyncio.run(rounds.run())
    finally:
        if rounds.agent is not None:
            rounds.agent.kill()


if __name__ == "__main__":
    main()
