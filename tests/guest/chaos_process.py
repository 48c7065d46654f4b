# SPDX-License-Identifier: Apache-2.0
"""Rounds of a freeze whose processes are killed and stopped at random; runs inside a private mount namespace.

``chaos_process.py SETTINGS``: JSON with mounts, stack, twice, below, outside, rounds, seed.  One JSON line per round:
what was frozen and by whom, what was hit and in which state, whether all was thawed by itself afterwards, what the
host and the freezer's user were told that was not so, and whether all processes have ended.

The first process is the host; its child plays the rounds, and is the parent of whoever loses its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import logging
import os
import random
import select
import signal
import socket
import sys
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import hung_process
from chaos_agents import make_freezer, serve, use
from chaos_choice import SCRIPTS, Choice
from chaos_hooks import LOG, without_one_end
from chaos_host import attend, thaw_all

from hvring.guest import guarded, guardian
from hvring.guest.hooks import launch, run

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
MNT_DETACH = 2
BOUND = 240  # seconds until a round is called endless; what it waits for on the way has bounds of its own
STATES = {b"s": "starting", b"b": "freezing", b"f": "frozen", b"t": "thawing", b"d": "done"}
ROLES = ("agent", "guardian", "child")
#: Who gives the hooks their ends: one of them must be left.
OF_HOOKS = {"agent", "runner"}


class EndlessError(Exception):
    """A round does not end."""


class Process:
    """One of a round, by a handle that nobody else can get."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.handle = os.pidfd_open(pid)
        self.is_stopped = False

    def send(self, number: signal.Signals) -> bool:
        """False: it is gone."""
        try:
            signal.pidfd_send_signal(self.handle, number)
        except ProcessLookupError:
            return False
        self.is_stopped = number == signal.SIGSTOP
        return True

    def is_gone(self) -> bool:
        return bool(select.select([self.handle], [], [], 0)[0])

    def __del__(self) -> None:
        os.close(self.handle)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def below(pid: int) -> list[int]:
    """All that descend from a process."""
    found = []
    for child in children(pid):
        with contextlib.suppress(OSError):
            found += [child, *below(child)]
    return found


def family(agent: Process) -> dict[str, Process]:
    """The processes of a round, by what they are."""
    found = {"agent": agent}
    for pid in below(os.getpid()):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if Path(f"/proc/{pid}/comm").read_text() == "hvring-freezer\n":
                found["child"] = Process(pid)
            elif b"guardian.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found["guardian"] = Process(pid)
            elif b"hooks/__main__.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.setdefault(
                    "runner", Process(pid)
                )  # what it has just forked looks alike, and comes behind it
            elif pid in children(agent.pid):
                found["rescue"] = Process(pid)
    return found


def manage(listeners: list[socket.socket], agent: int) -> None:
    """As a service manager does with socket units, until the agent is gone."""
    gone = os.pidfd_open(agent)
    while gone not in (ready := select.select([*listeners, gone], [], [])[0]):
        for listener in ready:
            connection, _ = listener.accept()
            if os.fork() == 0:
                os.setsid()
                os.dup2(connection.fileno(), 0)
                program = guardian.__file__ if listener is listeners[0] else launch._PROGRAM
                os.execv(sys.executable, [sys.executable, "-I", "-S", program])
            connection.close()


class Round:
    def __init__(
        self,
        settings: dict[str, Any],
        number: int,
        mounts: list[int],
        listeners: list[socket.socket],
        host: socket.socket,
    ) -> None:
        self.seed = f"{settings['seed']}-{number}"
        self.chance = chance = random.Random(self.seed)
        self.settings = settings
        self.choice = Choice(settings, number, chance)
        self.mounts = mounts
        self.listeners = listeners
        self.host = host
        self.hung: tuple[str, Process] | None = None
        self.signalled: list[Process] = []
        self.hit: dict[str, str] = {}
        self.said = b""
        self.has_ended = False
        self.statuses: list[int] = []
        self.reload_after = chance.random() * 0.3 if chance.random() < 0.25 else None
        self.comes_back = chance.random() < 0.4
        self.log = Path(settings["below"], "told-to-hooks")
        self.log.unlink(missing_ok=True)
        os.environ[LOG] = str(self.log)
        self.heard, self.told = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def run(self) -> dict[str, Any]:
        chance = self.chance
        began = time.monotonic()
        for stale in iter(self._next_connection, None):
            stale.close()
        if "behind" in self.choice.freezer:
            self._hang(os.path.dirname(self.choice.freezer["behind"][0]))
        if self.choice.plan == "backwards":  # something to write out, which waits for what is frozen below it
            for name in self.settings["stack"]:
                Path(self.settings["mounts"][name], "dirty").write_text(self.seed)
        if self.choice.is_service:
            order = {
                "script": self.choice.script,
                "hold": chance.choice((0.0, 0.02, 0.1, 0.3)),
                "backups": chance.choice((1, 1, 2)),
                "freezes": self.choice.indices,
                "seed": self.seed,
            }
            socket.send_fds(self.host, [json.dumps(order).encode()], [self.told])
        self.agent = self._start()
        try:
            signal.alarm(BOUND)
            state = self._play()
            self._reap()
            signal.alarm(0)
            left = []
        except EndlessError:
            left = [
                [pid, Path(f"/proc/{pid}/comm").read_text(), Path(f"/proc/{pid}/stack").read_text()]
                for pid in children(os.getpid())
            ]
            state = "endless"
            for pid in children(os.getpid()):
                os.kill(pid, signal.SIGKILL)
        broken = self._end_host() if self.choice.is_service else []
        self._listen(0)
        frozen = thaw_all(self.mounts)
        if self.hung is not None:
            ctypes.CDLL(None).umount2(self.hung[0].encode(), MNT_DETACH)
            os.rmdir(self.hung[0])
        os.close(self.heard)
        os.close(self.told)
        return {
            "what": str(self.choice),
            "freezes": self.choice.names,
            "hit": self.hit,
            "state": state,
            "left": left,
            "frozen": frozen,
            "lies": "".join(word for word in "LW" if word.encode() in self.said),
            "broken": broken if "agent" not in self.hit else [],
            "failed": [
                status for status in self.statuses if -status not in (0, signal.SIGKILL, signal.SIGTERM)
            ],
            "ends": without_one_end(self.log),
            "said": self.said.decode(),
            "seconds": time.monotonic() - began,
        }

    # ------------------------------------------------------------------------- who is there

    def _start(self) -> Process:
        """An agent, and a manager that starts its guardians."""
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                self.host.close()
                os.close(self.heard)
                make = partial(make_freezer, self.choice, self.settings["listeners"])
                if self.choice.is_service:
                    max_frozen = SCRIPTS[self.choice.script]
                    asyncio.run(serve(make, self.settings["host"], self.told, max_frozen, self.reload_after))
                else:
                    use(make(), self.mounts, self.told, self.chance)
                status = 0
            except BaseException as problem:
                os.write(2, f"{self.seed}: {problem!r}\n".encode())
            finally:
                os._exit(status)
        agent = Process(pid)
        if self.choice.over_socket and os.fork() == 0:
            try:
                self.host.close()
                os.close(self.heard)
                os.close(self.told)
                manage(self.listeners, pid)
            finally:
                os._exit(0)
        return agent

    def _next_connection(self) -> socket.socket | None:
        """One that an earlier round has left."""
        ready, _, _ = select.select(self.listeners, [], [], 0)
        return ready[0].accept()[0] if ready else None

    def _hang(self, target: str) -> None:
        """A FUSE mount that does not answer, until the agent is gone."""
        os.mkdir(target)
        mounted, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                os.dup2(tell, 1)
                self.host.close()
                os.close(self.heard)
                os.close(self.told)
                hung_process.main(target, self.choice.is_read)
            finally:
                os._exit(1)
        os.close(tell)
        assert os.read(mounted, 100), "no FUSE mount"
        os.close(mounted)
        self.hung = target, Process(pid)

    def _end_host(self) -> list[str]:
        self.host.send(b"end")
        broken: list[str] = json.loads(self.host.recv(1 << 16))
        return broken

    # ------------------------------------------------------------------------- what happens

    def _play(self) -> str:
        chance = self.chance
        at = chance.random() < (0.6 if self.choice.hooks else 0.75) and chance.choice(
            (b"b", b"f", b"f", b"t")
        )
        while at and at not in self.said and b"d" not in self.said and not self.agent.is_gone():
            self._listen(None)
        time.sleep(chance.random() * (0.03 if at else 0.15))
        found = family(self.agent)
        self._listen(0)
        state = "done" if b"d" in self.said else STATES.get(self.said.strip(b"LWo")[-1:], "nothing")
        # One of the three must be left: nobody else would know that anything is frozen.
        roles = (*ROLES, "runner") if self.choice.hooks else ROLES
        victims = chance.sample(roles, chance.choice((1, 1, 2)))
        if set(victims) >= OF_HOOKS:
            victims.remove(chance.choice(sorted(OF_HOOKS)))
        self._strike(found, victims)
        if chance.random() < 0.2 and "agent" not in self.hit:
            time.sleep(chance.random() * 0.1)
            later = family(self.agent)
            self._strike(later, [chance.choice(("guardian", "child", "rescue", "runner"))])
        return state

    def _strike(self, found: dict[str, Process], victims: list[str]) -> None:
        chance = self.chance
        numbers = (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM)
        stopped = []
        for role in victims:
            number = chance.choices(numbers, (6, 3, 1))[0]
            if role in found and found[role].send(number):
                self.hit[role] = number.name
                self.signalled.append(found[role])
                if number == signal.SIGSTOP:
                    stopped.append(role)
        if stopped:
            # The guardian may stay stopped: the others must do without it.  An agent that stands still is a deadline's,
            # and what looks like a rescue may be a guardian that the agent is just starting, and waits for.
            time.sleep(chance.random() * 0.1)
            for role in stopped:
                share = {"agent": 1.0, "rescue": 1.0, "runner": 0.9}.get(role, 0.6)
                if "agent" in victims or chance.random() < share:
                    found[role].send(signal.SIGCONT)

    def _listen(self, seconds: float | None) -> None:
        ready = select.select([self.heard, self.agent.handle], [], [], seconds)[0]
        if self.heard in ready:
            with contextlib.suppress(BlockingIOError):
                self.said += os.read(self.heard, 100)

    # ------------------------------------------------------------------------- the end

    def _reap(self) -> None:
        """Until nobody of this round is left: whoever loses its parent becomes a child of this process."""
        if self.choice.is_service:
            self._let_the_host_finish()
            self.agent.send(signal.SIGTERM)
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, 0)
                if pid == self.agent.pid:
                    self.statuses.append(os.waitstatus_to_exitcode(status))
                    self._agent_is_gone()

    def _let_the_host_finish(self) -> None:
        while b"d" not in self.said:
            self._listen(None)
            if self.agent.is_gone():
                if not self.comes_back:
                    return
                # As a manager does with a service that has crashed.
                self.comes_back = False
                self.agent = self._start()

    def _agent_is_gone(self) -> None:
        """Whoever is still stopped cannot be killed by anybody any more, and must end by itself once it goes on."""
        for process in self.signalled:
            if process.is_stopped:
                process.send(signal.SIGCONT)
        if self.hung is not None:
            self.hung[1].send(signal.SIGKILL)


def play(settings: dict[str, Any], mounts: list[int], host: socket.socket) -> None:
    def overdue(*_: object) -> None:
        raise EndlessError

    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGALRM, overdue)
    logging.getLogger("hvring").addHandler(logging.NullHandler())  # what fails is what the rounds are for
    # So that many rounds fit into a test: how long a silent guardian is waited for changes no state.
    guarded._TURN, guarded._END = 0.1, 0.3  # type: ignore[misc]
    run._SLACK, run.TERM_GRACE, run.KILL_GRACE = 2.0, 0.5, 0.5  # type: ignore[misc]
    listeners = []
    for what in ("guardian", "hooks"):
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(settings["listeners"][what])
        listener.listen()
        listeners.append(listener)
    for number in range(settings["first"], settings["first"] + settings["rounds"]):
        seen = Round(settings, number, mounts, listeners, host).run()
        print(json.dumps({"round": number, **seen}), flush=True)


def main() -> None:
    settings = json.loads(sys.argv[1])
    mounts = [os.open(target, os.O_RDONLY | os.O_CLOEXEC) for target in settings["mounts"].values()]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        try:
            ours.close()
            play(settings, mounts, theirs)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    theirs.close()
    asyncio.run(attend(ours, settings["host"], mounts))


if __name__ == "__main__":
    main()
