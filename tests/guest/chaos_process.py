# SPDX-License-Identifier: Apache-2.0
"""Rounds of a freeze whose processes are killed and stopped at random; runs inside a private mount namespace.

``chaos_process.py SETTINGS``: JSON with targets, below, outside, rounds, seed.  One JSON line per round: what was
hit, in which state, whether all was thawed by itself afterwards, and what the agent's stand-in was told.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import random
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from freezer_process import restricted

from hvring.errors import EffectError
from hvring.guest import guarded, guardian
from hvring.guest.launch import PLAIN, Way
from hvring.pending import Pending

FITHAW = 0xC0045878
PR_SET_CHILD_SUBREAPER = 36
BOUND = 20.0  # seconds until all processes of a round must be gone
STATES = {b"s": "starting", b"b": "freezing", b"f": "frozen", b"t": "thawing", b"d": "done"}
ROLES = ("agent", "guardian", "child")


def stand_in(settings: dict[str, Any], mounts: list[int], tell: int, chance: random.Random) -> None:
    """What an agent does with a freezer, with a word for each state."""
    listener = settings.pop("listener", None)
    if listener:
        settings["ways"] = lambda: [Way((), 5.0, listener), PLAIN]
    freezer = restricted(**settings)
    hold = chance.choice((0.0, 0.02, 0.05, 0.1))
    breaks_off = chance.random() < 0.1

    def state(word: bytes) -> None:
        os.write(tell, word)

    def wait(work: Pending[None]) -> Pending[None] | None:
        poll = select.poll()
        poll.register(work.descriptor, select.POLLIN)
        poll.poll(max(0.0, work.at - time.monotonic()) * 1000)
        return work.resume()

    state(b"s")
    try:
        work = freezer.freeze()
        was_told = False
        while work is not None:
            work = wait(work)
            if freezer.frozen and not was_told:
                was_told = True
                state(b"b")
                if breaks_off:
                    break
        if not breaks_off:
            state(b"f")
            until = time.monotonic() + hold
            while freezer.lost() is None and (left := until - time.monotonic()) > 0:
                select.select([freezer.watch()], [], [], left)
    except EffectError:
        pass  # it could not freeze, with one of its processes killed
    for _ in range(10):
        state(b"t")
        try:
            work = freezer.thaw()
            while work is not None:
                work = wait(work)
        except EffectError:
            pass  # it was thawed too early, or it is not thawed yet
        if not freezer.frozen:
            break
    # It says that all is thawed: is it?
    lies = [index for index, mount in enumerate(mounts) if fithaw(mount) != errno.EINVAL]
    os.write(tell, b"d" if not lies else b"L")


def fithaw(mount: int) -> int:
    try:
        fcntl.ioctl(mount, FITHAW, 0)
    except OSError as problem:
        return problem.errno or errno.EIO
    return 0


def family(agent: int) -> dict[str, int]:
    """The processes of a round, by what they are."""
    found = {"agent": agent}
    with contextlib.suppress(OSError):
        for pid in (*children(agent), *children(os.getpid())):
            if b"guardian.py" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                continue
            found["guardian"] = pid
            for child in children(pid):
                if Path(f"/proc/{child}/comm").read_text() == "hvring-freezer\n":
                    found["child"] = child
    return found


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def manage(listener: socket.socket, agent: int) -> None:
    """As a service manager does with a socket unit, for one connection of the agent: then this process ends."""
    gone = os.pidfd_open(agent)
    ready, _, _ = select.select([listener, gone], [], [])
    if listener in ready:
        connection, _ = listener.accept()
        os.setsid()
        os.dup2(connection.fileno(), 0)
        program = guardian.__file__
        os.execv(sys.executable, [sys.executable, "-I", "-S", program])


class Round:
    def __init__(
        self, settings: dict[str, Any], mounts: list[int], seed: str, listener: socket.socket | None
    ) -> None:
        self.chance = random.Random(seed)
        self.mounts = mounts
        self.heard, told = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.agent = os.fork()
        if self.agent == 0:
            try:
                stand_in({**settings}, mounts, told, self.chance)
            except BaseException as problem:
                os.write(2, f"{seed}: {problem!r}\n".encode())
            finally:
                os._exit(0)
        os.close(told)
        if listener is not None and os.fork() == 0:
            try:
                os.close(self.heard)
                manage(listener, self.agent)
            finally:
                os._exit(0)
        self.said = b""

    def run(self) -> dict[str, Any]:
        chance = self.chance
        chance.random()
        at = chance.random() < 0.75 and chance.choice((b"b", b"f", b"f", b"t"))
        give_up_at = time.monotonic() + 2.0
        while at and at not in self.listen(0.005) and time.monotonic() < give_up_at and b"d" not in self.said:
            pass
        time.sleep(chance.random() * (0.03 if at else 0.15))
        found = family(self.agent)
        self.listen(0)
        state = STATES.get(self.said[-1:], "nothing")
        if b"d" in self.said:
            state = "done"
        # One of the three must be left: nobody else would know that anything is frozen.
        victims = chance.sample(ROLES, chance.choice((1, 1, 2)))
        stops = {role for role in victims if chance.random() < 0.25}
        hit = {}
        for role in victims:
            if role in found:
                number = signal.SIGSTOP if role in stops else signal.SIGKILL
                with contextlib.suppress(ProcessLookupError):
                    os.kill(found[role], number)
                    hit[role] = number.name
        if stops:
            # The guardian may stay stopped: the others must do without it.  An agent that stands still is a deadline's.
            time.sleep(chance.random() * 0.1)
            for role in stops & set(found):
                if role == "agent" or "agent" in hit or chance.random() < 0.6:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(found[role], signal.SIGCONT)
        # Stopped before it had said who it is, a guardian cannot be killed by anybody: it must end by itself, later.
        is_unknown = state == "starting" and "guardian" in stops
        ended = self.reap(found.get("guardian", 0) if is_unknown else 0)
        self.listen(0)
        frozen = [index for index, mount in enumerate(self.mounts) if fithaw(mount) != errno.EINVAL]
        os.close(self.heard)
        return {
            "hit": hit,
            "state": state,
            "ended": ended,
            "frozen": frozen,
            "lied": b"L" in self.said,
            "said": self.said.decode(),
        }

    def listen(self, seconds: float) -> bytes:
        if select.select([self.heard], [], [], seconds)[0]:
            with contextlib.suppress(BlockingIOError):
                words = os.read(self.heard, 100)
                self.said += words
                if not words:
                    time.sleep(seconds)
        return self.said

    def reap(self, goes_on_at_last: int) -> bool:
        """Until nobody of this round is left: whoever loses its parent becomes a child of this process.

        ``goes_on_at_last``: who is stopped until the agent is gone; 0: nobody.
        """
        give_up_at = time.monotonic() + BOUND
        while time.monotonic() < give_up_at:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                time.sleep(0.002)
            elif pid == self.agent and goes_on_at_last:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(goes_on_at_last, signal.SIGCONT)
        for pid in children(os.getpid()):
            os.kill(pid, signal.SIGKILL)
        return False


def main() -> None:
    settings = json.loads(sys.argv[1])
    rounds, seed = settings.pop("rounds"), settings.pop("seed")
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    mounts = [os.open(target, os.O_RDONLY | os.O_CLOEXEC) for target in settings["targets"]]
    # So that many rounds fit into a test: how long a silent guardian is waited for changes no state.
    guarded._TURN, guarded._END = 0.1, 0.3  # type: ignore[misc]
    listener = None
    if path := settings.get("listener"):
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(path)
        listener.listen()
    for number in range(rounds):
        seen = Round(settings, mounts, f"{seed}-{number}", listener).run()
        print(json.dumps({"round": number, **seen}), flush=True)


if __name__ == "__main__":
    main()
