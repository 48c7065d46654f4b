# SPDX-License-Identifier: Apache-2.0
"""The process that runs the hooks of one backup, and gives each that it started exactly one end (decision 0016).

It takes orders of the agent over a socket: ``prepare``, ``freeze``, and then ``thaw`` or ``abort``.  Whoever has begun
is known to the agent, with the ends of its pipes, before it becomes a hook: so another process can go on when this one
is killed.  When the agent is gone it waits until nobody holds the freeze any more, and aborts.

While file systems are frozen nothing here is started, looked up or written.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from hvring.guest import guardian
from hvring.guest.hooks.found import STYLES, Hook, Refused, find, in_order_of_end
from hvring.guest.hooks.process import KILL_GRACE, TERM_GRACE, HookProcess
from hvring.guest.hooks.rules import Rules
from hvring.guest.hooks.words import hear, say

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LARGEST_REQUEST: Final = 4 * 1024 * 1024
_LARGEST_MOUNTS: Final = 100_000  # bytes; the kernel takes 128 KiB in one variable
_NOT_FOR_HOOKS: Final = ("NOTIFY_SOCKET", "WATCHDOG_", "LISTEN_", "PYTHON", "HVRING_")


class _Entry:
    """A hook, and how far it is."""

    def __init__(self, hook: Hook, known: Mapping[str, Any]) -> None:
        self.hook = hook
        self.has_started = bool(known.get("started"))
        self.has_end = bool(known.get("ended"))  # it was begun
        self.held: HookProcess | None = None
        self.taken_over: HookProcess | None = None  # of a runner that was killed; neither held nor ended


class Runner:
    """``request`` is what the agent's side wrote; ``descriptors`` those of hooks that another runner has started."""

    def __init__(
        self, control: socket.socket, service: int, request: Mapping[str, Any], rules: Rules | None = None
    ) -> None:
        """``rules``: what of the request counts, where it comes from one who may do less than this process."""
        self._rules = rules
        self._control = control
        self._service = service
        self._request = request
        self._timeout = float(request["timeout"])
        self._guards: list[int] = []  # end when nobody can hold the freeze any more
        self._end: str | None = None  # that was ordered
        self._orders: list[str] = []
        self._is_alone = False  # the agent is gone
        self._is_terminated = False
        self._signalled, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake)
        for number in _SIGNALS:
            signal.signal(number, lambda *_: None)
        hooks = [Hook(h["name"], tuple(h["argv"]), h["style"], h["group"]) for h in request["hooks"]]
        refused: list[Refused] = []
        if not hooks:
            hooks, refused = _found(request, rules)
        elif rules is not None:
            rules.check(hooks)
        self._refused = [[one.path, one.why] for one in refused]
        known = request["known"] or [{}] * len(hooks)
        self._entries = [_Entry(hook, known[index]) for index, hook in enumerate(hooks)]
        self._environment = environment(request)

    def run(self) -> None:
        """Until each that started has its end."""
        self._lock_memory()
        is_apart = guardian.is_apart(guardian.pid_of(self._service))
        hooks = [
            {"name": e.hook.name, "argv": e.hook.argv, "style": e.hook.style, "group": e.hook.group}
            for e in self._entries
        ]
        self._tell("ready", apart=is_apart, hooks=hooks, refused=self._refused)
        hold = float(self._request["hold"])
        give_up_at = time.monotonic() + float(self._request["total"])
        hold_until = give_up_at + hold
        while not self._is_over():
            if self._orders:
                self._do_all(self._orders.pop(0), give_up_at)
                hold_until = time.monotonic() + hold
            elif (
                time.monotonic() >= hold_until
            ):  # the agent was stopped, and the guardian has thawed long since
                self._tell("expired")
                self._end = "abort"
            else:
                self._wait((), hold_until)
        if self._end is None:
            self._until_nobody_holds()
        self._end_all(self._end or "abort")
        self._tell("over")

    # ------------------------------------------------------------------------- before the freeze

    def _do_all(self, phase: str, give_up_at: float) -> None:
        for index, entry in enumerate(self._entries):
            if self._is_over():
                return
            why = self._begin(index, entry, phase, give_up_at)
            if why is not None and not self._is_over():
                self._tell("failed", phase=phase, hook=index, why=why[0], reason=why[1])
                return
        self._tell("done", phase=phase)

    def _begin(self, index: int, entry: _Entry, phase: str, give_up_at: float) -> tuple[str, str] | None:
        """None, or why not and a reason: also when it was broken off, which nobody asks for any more."""
        if phase not in STYLES[entry.hook.style].words:
            return None
        now = time.monotonic()
        process, why = self._start(index, entry, phase)
        if process is None:
            return why, "failed"
        until = min(now + self._timeout, give_up_at)
        is_in_time = self._follow(process, until, phase, STYLES[entry.hook.style].may_hold)
        if process.error:
            process.close()
            entry.has_started = False
            why = os.strerror(process.error)
            self._tell("never", hook=index, why=why)
            return f"cannot be started: {why}", "failed"
        if is_in_time and process.has_said_held and phase == "freeze" and not process.has_ended():
            entry.held = process
            self._tell("did", hook=index, phase=phase, seconds=time.monotonic() - now, held=True, words="")
            return None
        if not process.has_ended():
            self._terminate(process)
            how = f"did not end within {until - now:.3g} s" if not self._is_over() else "was broken off"
            is_late = True
        else:
            is_late = False
        status, words = process.close(), process.words()
        if not is_late:
            if status == 0 and not (process.has_said_held and phase == "freeze"):
                seconds = time.monotonic() - now
                self._tell("did", hook=index, phase=phase, seconds=seconds, held=False, words=words)
                return None
            how = "said that it holds, and ended" if status == 0 else _how(status)
        why = f"{how}: {words}" if words else how
        self._tell("undone", hook=index, phase=phase, seconds=time.monotonic() - now, why=why)
        return why, "timeout" if is_late else "failed"

    def _start(self, index: int, entry: _Entry, phase: str) -> tuple[HookProcess | None, str]:
        word = STYLES[entry.hook.style].words[phase]
        said = {"event": "began", "hook": index, "phase": phase}
        try:
            process = HookProcess.start(
                [*entry.hook.argv, word],
                {**self._environment, "HVRING_PHASE": phase, "HVRING_HOOK": entry.hook.name},
                lambda descriptors: say(self._control, said, descriptors),
                listens=phase == "freeze" and STYLES[entry.hook.style].may_hold,
            )
        except OSError as error:
            return None, f"cannot be started: {error.strerror}"
        entry.has_started = True
        return process, ""

    # ------------------------------------------------------------------------- held

    def _is_over(self) -> bool:
        """Whether it is time for the ends."""
        return self._end is not None or self._is_alone or self._is_terminated

    def _until_nobody_holds(self) -> None:
        """The agent is gone, or this process shall end: programs are started when all is thawed, or never again."""
        if self._is_terminated:
            self._tell("terminated")
        until = time.monotonic() + float(self._request["hold"])
        while self._end is None and time.monotonic() < until:
            if self._is_alone and not self._guards:
                return
            self._wait((), until)

    # ------------------------------------------------------------------------- the ends

    def _end_all(self, word: str) -> None:
        for index in in_order_of_end([entry.hook for entry in self._entries]):
            entry = self._entries[index]
            if entry.taken_over is not None:
                self._finish_for_another(index, entry)
            if entry.has_started and not entry.has_end:
                self._give_end(index, entry, word)

    def _give_end(self, index: int, entry: _Entry, word: str) -> None:
        now = time.monotonic()
        process, entry.held = entry.held, None
        why = ""
        entry.has_end = True
        if process is not None and not process.has_ended():
            # Who goes on in this one's place must not tell it a second time; it hears the end of the pipe at the least.
            self._tell("ending", hook=index, phase=word)
            process.tell(word)
        else:
            if process is not None:  # what it held it cannot give back
                process.close()
            process, why = self._start(index, entry, word)
        if process is None:
            self._tell("undone", hook=index, phase=word, seconds=0.0, why=why)
            return
        self._finish(index, process, word, now)

    def _finish(self, index: int, process: HookProcess, word: str, begun: float) -> None:
        is_child = process.pid != 0
        self._follow(process, time.monotonic() + self._timeout, word, False)
        how = ""
        if process.error:
            how = os.strerror(process.error)
        elif not process.has_ended():
            how = f"did not end within {self._timeout:g} s"
            self._terminate(process)
        status, words = process.close(), process.words()
        how = how or ("" if status == 0 or not is_child else _how(status))
        seconds = time.monotonic() - begun
        if how:
            self._tell(
                "undone", hook=index, phase=word, seconds=seconds, why=f"{how}: {words}" if words else how
            )
        else:
            self._tell("did", hook=index, phase=word, seconds=seconds, held=False, words=words)

    def _finish_for_another(self, index: int, entry: _Entry) -> None:
        """What a runner that was killed has left running."""
        process, entry.taken_over = entry.taken_over, None
        if process is None:
            return
        if entry.has_end:
            self._finish(index, process, "abort", process.begun)
            return
        self._terminate(process)
        process.close()

    def take_over(self, descriptors: Sequence[int]) -> None:
        """What a runner that was killed has left: held hooks, and others that run."""
        left = list(descriptors)
        for entry, known in zip(self._entries, self._request["known"] or (), strict=False):
            if known.get("runs"):
                process = HookProcess(0, *left[:4])
                del left[:4]
                if self._rules is not None and not self._rules.is_one_of_ours(process.pidfd):
                    process.close()
                    continue
                if known.get("held") and not entry.has_end:
                    entry.held = process
                else:
                    entry.taken_over = process

    def _terminate(self, process: HookProcess) -> None:
        for number, grace in ((signal.SIGTERM, TERM_GRACE), (signal.SIGKILL, KILL_GRACE)):
            process.signal(number)
            until = time.monotonic() + grace
            while not process.has_ended() and time.monotonic() < until:
                process.read(_readable(process.descriptors(), until))

    # ------------------------------------------------------------------------- what is heard

    def _follow(self, process: HookProcess, until: float, phase: str, may_hold: bool) -> bool:
        """Until it has ended, or holds; False: time is over, or something else is to be done."""
        is_end = phase in ("thaw", "abort")
        while time.monotonic() < until:
            ready = (
                self._wait(process.descriptors(), until)
                if not is_end
                else _readable(process.descriptors(), until)
            )
            process.read(ready)
            if process.error:
                return False
            if process.has_ended():
                process.read(process.descriptors())
                return True
            if may_hold and phase == "freeze" and process.has_said_held:
                return True
            if not is_end and self._is_over():
                return False
        return False

    def _wait(self, descriptors: Iterable[int], until: float | None) -> set[int]:
        """Which of these are readable; takes in meanwhile what the agent and others say."""
        own = {self._signalled, *self._guards} if not self._is_terminated else {*self._guards}
        if not self._is_alone:
            own |= {self._control.fileno(), self._service}
        held = {e.held.pidfd: i for i, e in enumerate(self._entries) if e.held is not None}
        ready = _readable([*descriptors, *own, *held], until)
        if self._signalled in ready:
            self._is_terminated = True
        for guard in [guard for guard in self._guards if guard in ready]:
            if not os.read(guard, 1):
                os.close(guard)
                self._guards.remove(guard)
        for pidfd, index in held.items():
            if pidfd in ready:
                self._died(index)
        if self._control.fileno() in ready:
            self._hear()
        elif self._service in ready:
            self._is_alone = True
        return ready

    def _hear(self) -> None:
        while not self._is_alone:
            try:
                said, descriptors = hear(self._control)
            except BlockingIOError:
                return
            if said is None:
                self._is_alone = True
                return
            order = said.get("order")
            if order == "guard":
                self._guards += descriptors
                self._tell("guarded")
            elif order in ("thaw", "abort"):
                self._end = str(order)
            elif order in ("prepare", "freeze"):
                self._orders.append(str(order))

    def _died(self, index: int) -> None:
        """One that held: what it held is not held any more, and its end is another process's."""
        entry = self._entries[index]
        if entry.held is None:
            return
        process, entry.held = entry.held, None
        status, words = process.close(), process.words()
        how = _how(status)
        self._tell("died", hook=index, why=f"{how}: {words}" if words else how)

    def _tell(self, event: str, **what: Any) -> None:
        if not self._is_alone:
            say(self._control, {"event": event, **what})

    def _lock_memory(self) -> None:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(15, b"hvring-hooks", 0, 0, 0)
        libc.mlockall(
            3
        )  # where it may not, it does without: nobody waits for this process while all is frozen


def _found(request: Mapping[str, Any], rules: Rules | None) -> tuple[list[Hook], list[Refused]]:
    directories = [(str(path), str(style)) for path, style in request["directories"]]
    refused: list[Refused] = []
    if rules is not None:
        refused = [
            Refused(path, rules.NOT_CONFIGURED) for path, style in directories if not rules.allow(path, style)
        ]
    found = find([one for one in directories if rules is None or rules.allow(*one)])
    wanted = request.get("only")
    hooks = list(found.hooks)
    if request["entry_points"]:
        from hvring.guest.hooks import entry_point

        if rules is None or rules.entry_points:
            hooks += entry_point.hooks(list(map(str, request["entry_points"])), len(directories))
        else:
            refused.append(Refused("hooks_entry_points", rules.NOT_CONFIGURED))
    hooks = [hook for hook in hooks if wanted is None or hook.name == wanted]
    return hooks, [*refused, *found.refused]


def environment(request: Mapping[str, Any]) -> dict[str, str]:
    """What every hook gets, but for its phase and its name."""
    given = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_FOR_HOOKS)}
    given.setdefault("PATH", _PATH)
    mounts = "\n".join(map(_one_line, request["mounts"]))
    if len(mounts.encode()) > _LARGEST_MOUNTS:
        mounts = mounts[: _LARGEST_MOUNTS // 4].rpartition("\n")[0]
        given["HVRING_MOUNTS_CUT"] = "yes"
    return {
        **given,
        "HVRING_BACKUP_ID": request["backup"],
        "HVRING_TIMEOUT": f"{request['timeout']:g}",
        "HVRING_HOLD": f"{request['hold']:g}",
        "HVRING_MOUNTS": mounts,
    }


def _one_line(path: str) -> str:
    """As in /proc/mounts."""
    return path.replace("\\", "\\134").replace("\n", "\\012")


def _how(status: int | None) -> str:
    if status is None:
        return "it is gone"
    if status >= 0:
        return f"exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"killed by {name}"


def _readable(descriptors: Iterable[int], until: float | None) -> set[int]:
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    wait = None if until is None else max(0.0, until - time.monotonic()) * 1000
    return {descriptor for descriptor, _ in poll.poll(wait)}


def main(arguments: Sequence[str]) -> None:
    """``CONTROL SERVICE REQUEST DESCRIPTOR…``, all descriptors: a socket, a pidfd of the agent, JSON, and those of
    hooks that another runner has left.  Without words it takes them as the first message of its standard input."""
    rules = None
    if arguments:
        control, service, request, *others = map(int, arguments)
        connection = socket.socket(fileno=control)
    else:
        connection = socket.socket(fileno=os.dup(0))
        try:
            _, descriptors, _, _ = socket.recv_fds(connection, 16, 250)
            service, request, *others = descriptors
            own = os.pidfd_open(os.getpid())
        except (OSError, ValueError):  # whoever asked is gone
            return
        rules = Rules.read()
        say(connection, {"event": "here"}, [own])
        os.close(own)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    for descriptor in (connection.fileno(), service, request, *others):
        os.set_inheritable(descriptor, False)
    asked = json.loads(os.pread(request, _LARGEST_REQUEST, 0))
    os.close(request)
    runner = Runner(connection, service, asked, rules)
    runner.take_over(others)
    runner.run()


if __name__ == "__main__":
    main(sys.argv[1:])
