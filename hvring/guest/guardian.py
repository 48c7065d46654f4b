# SPDX-License-Identifier: Apache-2.0
"""The process that freezes mounts and sees to it that they are thawed again, whatever happens.

It is started before the freeze as a program of its own, opens the mounts and hands the descriptors to the service:
each of the two can thaw without the other.  Opening is done by children that may hang.  Freezing is done by a child
that may hang, too, and that stays while the mounts are frozen: a third one to thaw them, when the guardian is killed
or stopped.

From the first freeze to the thaw all three look up no path, start no program, write no log and need no memory.  The
guardian thaws when it is told to, when the service is gone, at the deadline and on SIGTERM; a mount that does not thaw
stops none of the others, and is tried again until it does.

Run as ``python guardian.py CONTROL LIFELINE SERVICE PLAN OPEN_TIMEOUT FREEZE_TIMEOUT DEADLINE`` (descriptors, seconds).
CONTROL is a SOCK_SEQPACKET socket: it takes FREEZE and then THAW, and gives :data:`EVENT` records.  LIFELINE is only
held: its other end shows whether the guardian or the freezing child is alive.  SERVICE is a pidfd.  PLAN is JSON: per
file system its mounts as [path, mount id], to be tried in this order.  This file imports nothing but the standard
library.

Run without words it takes them, and the descriptors but CONTROL, as the first message of CONTROL, which is its standard
input then: so a service manager starts it for a connection.  It answers with HERE.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import signal
import socket
import stat
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    import ctypes
    from types import ModuleType

FIFREEZE: Final = 0xC0045877
FITHAW: Final = 0xC0045878

FREEZE: Final = b"F"
THAW: Final = b"T"

#: What happened, the index of the file system that it is about (or -1), an errno (or 0); words may follow.
EVENT: Final = struct.Struct("=cii")
WORDS: Final = 1000  #: bytes of them at most
HERE: Final = b"p"  #: with a pidfd, from a guardian that a service manager has started
READY: Final = (
    b"r"  #: started; index: whether its control group is not the service's; errno: memory is not locked
)
OPENED: Final = b"o"  #: with a descriptor, or with the errno that tells why there is none
FREEZING: Final = b"b"  #: all are written out, and now they are frozen one by one
FOREIGN: Final = b"x"  #: somebody else has frozen this one, and it is not ours to thaw
LEFT_OUT: Final = b"l"  #: this one cannot be frozen, which stops nothing
FROZEN: Final = b"f"  #: all that can be are frozen
FAILED: Final = b"e"  #: this one could not be frozen; all are being thawed
STUCK: Final = b"s"  #: freezing this one does not end; the others are being thawed
EXPIRED: Final = b"d"  #: the deadline: all are being thawed
TERMINATED: Final = b"k"  #: SIGTERM: all are being thawed
HELD: Final = b"h"  #: this one would not thaw; it is tried again
CLEAR: Final = b"t"  #: all are known to be thawed; the guardian ends

#: Not what the kernel says: the path leads to another mount.
HIDDEN: Final = errno.ESTALE

_OPENING: Final = struct.Struct("=ii")  # from an opener: index and errno
_STEP: Final = struct.Struct("=cii")  # from the freezing child: kind, index and errno
_WRITTEN: Final = b"w"  # one file system was written out,
_FROZEN: Final = b"f"  # or frozen, or could not be
_HALTED: Final = b"h"  # no more is done
_STEPPED: Final = b"."  # never sent: the child has done something
_TOLD: Final = b"!"  # never sent: an order, or the end of the control socket
_MCL_CURRENT_FUTURE: Final = 3
_PR_SET_NAME: Final = 15
_GRACE: Final = 1.0  # for a killed child to be gone, and for a guardian before the child acts in its place
_THAW_TURN: Final = 0.2  # for one mount, before the next one has its turn
_THAW_TIME: Final = 5.0  # for all, before somebody hears of it
_RETRY: Final = 1.0
_THREAD_STACK: Final = 256 * 1024
_NOT_FROZEN: Final = (errno.EINVAL, errno.EOPNOTSUPP)
# EIO: the file system is shut down or its disk is gone, and nothing can write to it any more.
_CANNOT_BE_FROZEN: Final = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EROFS, errno.EIO)
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Hand:
    """A thread that thaws one mount at a time.  One that was started before the freeze needs no memory afterwards.

    Raises RuntimeError when there is no room for a thread.
    """

    def __init__(self) -> None:
        self._mount, self._error = -1, 0
        self._go, self._done = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._done.acquire()
        threading.Thread(target=self._run, daemon=True).start()

    def begin(self, mount: int) -> None:
        """Thaw this one; once the one before is done."""
        self._mount = mount
        self._go.release()

    def end(self, seconds: float) -> int | None:
        """What became of it, an errno or 0; None: it is not done within that time."""
        return self._error if self._done.acquire(timeout=seconds) else None

    def _run(self) -> None:
        while self._go.acquire():
            self._error = _ioctl(self._mount, FITHAW)
            self._done.release()


class Thawing:
    """Thaws, in reverse order and through errors; ``left`` is what is not known to be thawed."""

    def __init__(self, mounts: Mapping[int, int], hands: list[Hand] | None = None) -> None:
        """``mounts``: index to descriptor, in the order of freezing.  ``hands`` are taken from and given back, but for
        those that hang: there are new ones then."""
        self.left = dict(mounts)
        self._idle = [] if hands is None else hands
        self._running: dict[int, Hand] = {}

    def attempt(self) -> tuple[int, int]:
        """One attempt at each: index and errno of the first that would not, or (-1, 0).

        ETIMEDOUT stands for a thaw that hangs; it goes on in its thread.
        """
        first = (-1, 0)
        until = time.monotonic() + _THAW_TIME
        # One that hangs may wait for one that comes after it.
        for turn, indexes in ((_THAW_TURN, self.left), (_THAW_TIME, self._running)):
            for index in sorted(indexes, reverse=True):
                error = self._thaw(index, min(turn, max(0.0, until - time.monotonic())))
                if error == 0:
                    del self.left[index]
                elif error != errno.ETIMEDOUT and first == (-1, 0):
                    first = (index, error)
        if self.left and first == (-1, 0):
            first = (max(self.left), errno.ETIMEDOUT)
        return first

    def finish(self, tell: Callable[[int, int], object]) -> None:
        """Until all are thawed; ``tell`` hears of those that would not at first."""
        while True:
            index, error = self.attempt()
            if not self.left:
                return
            tell(index, error)
            time.sleep(_RETRY)

    def _thaw(self, index: int, turn: float) -> int:
        hand = self._running.get(index)
        if hand is None:
            mount = self.left[index]
            try:
                hand = self._idle.pop() if self._idle else Hand()
            except RuntimeError:  # no room for a thread
                return _thawed(_ioctl(mount, FITHAW))
            self._running[index] = hand
            hand.begin(mount)
        error = hand.end(turn)
        if error is None:
            return errno.ETIMEDOUT
        self._idle.append(self._running.pop(index))
        return _thawed(error)


def _thawed(error: int) -> int:
    """Whoever says that nothing is frozen says that it is thawed."""
    return 0 if error in _NOT_FROZEN else error


def _ioctl(mount: int, request: int) -> int:
    try:
        fcntl.ioctl(mount, request, 0)
    except OSError as problem:
        return problem.errno or errno.EIO
    return 0


def _readable(descriptors: Iterable[int], seconds: float | None) -> set[int]:
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return {fd for fd, _ in poll.poll(None if seconds is None else max(0.0, seconds) * 1000)}


def keep_only(*descriptors: int) -> None:
    """Close all others."""
    low = 3
    for descriptor in sorted(fd for fd in descriptors if fd >= 3):
        os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, 1 << 20)


def become_a_child() -> None:
    """What a forked process must do first: signals are not for it, and never for its parent's event loop."""
    signal.set_wakeup_fd(-1)
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class Openers:
    """Opens mounts in children, one after the other; one that hangs is given up after ``timeout`` seconds."""

    def __init__(self, plan: Sequence[Sequence[tuple[str, int]]], timeout: float) -> None:
        self._plan = plan
        self._timeout = timeout
        self.hung = 0  #: the one that was given up last

    def run(self, found: Callable[[int, int, int], bool], others: Iterable[int]) -> bool:
        """``found(index, errno, descriptor)`` for each file system; False: it said so, or one of ``others`` spoke."""
        others = set(others)
        at, mount = 0, 0
        worst = 0
        while at < len(self._plan):
            answers, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            pid = os.fork()
            if pid == 0:
                self._child(theirs, at, mount)
            theirs.close()
            with answers:
                while at < len(self._plan):
                    ready = _readable([answers.fileno(), *others], self._timeout)
                    if ready & others:
                        os.kill(pid, signal.SIGKILL)
                        return False
                    error, descriptor, ended = errno.ETIMEDOUT, -1, True
                    hangs = not ready
                    if hangs:
                        self.hung = pid
                    if ready:
                        raw, descriptors, _, _ = socket.recv_fds(answers, _OPENING.size, 1)
                        ended = len(raw) != _OPENING.size
                        error = errno.ECHILD if ended else _OPENING.unpack(raw)[1]
                        descriptor = descriptors[0] if descriptors else -1
                        if not error and descriptor < 0:
                            error = errno.EMFILE  # it came, and there was no room for it
                    mount += 1
                    worst = errno.ETIMEDOUT if errno.ETIMEDOUT in (worst, error) else worst or error
                    if error == 0 or mount >= len(self._plan[at]):
                        if not found(at, error and worst, descriptor):
                            os.kill(pid, signal.SIGKILL)
                            return False
                        at, mount, worst = at + 1, 0, 0
                    if ended:
                        break
            os.kill(pid, signal.SIGKILL)
            # One that waits for a dead server dies when that wait is over; nobody waits for it.
            os.waitpid(pid, os.WNOHANG if hangs else 0)
        return True

    def _child(self, answers: socket.socket, at: int, mount: int) -> NoReturn:
        try:
            become_a_child()
            keep_only(answers.fileno())
            for index in range(at, len(self._plan)):
                for path, mount_id in self._plan[index][mount:]:
                    error, descriptor = open_mount(path, mount_id)
                    socket.send_fds(
                        answers, [_OPENING.pack(index, error)], [descriptor] if error == 0 else []
                    )
                    if error == 0:
                        os.close(descriptor)
                        break
                mount = 0
        finally:
            os._exit(0)


def open_mount(path: str, mount_id: int) -> tuple[int, int]:
    """0 and a descriptor on the mount, or an errno and -1.  Nothing of another mount is opened for reading."""
    try:
        # Names are bytes to the kernel; the one who read the table took them for UTF-8, whatever the locale says.
        place = os.open(path.encode("utf-8", "surrogateescape"), os.O_PATH | os.O_CLOEXEC)
        try:
            if not _is_on(place, mount_id):
                return HIDDEN, -1
            if not stat.S_ISDIR(mode := os.fstat(place).st_mode) and not stat.S_ISREG(mode):
                return errno.ENOTDIR, -1
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
            return 0, os.open(f"/proc/self/fd/{place}", flags)
        finally:
            os.close(place)
    except OSError as problem:
        return problem.errno or errno.EIO, -1


def _is_on(descriptor: int, mount_id: int) -> bool:
    with open(f"/proc/self/fdinfo/{descriptor}", encoding="utf-8") as facts:
        return any(line.split() == ["mnt_id:", str(mount_id)] for line in facts)


def start_hands(nothing: int) -> list[Hand]:
    """Before anything is frozen: all that a thaw needs, tried once on a descriptor on which nothing can be thawed."""
    hands: list[Hand] = []
    try:
        hands += Hand(), Hand()
    except RuntimeError:  # no room: then when it is needed
        return hands
    Thawing({0: nothing, 1: nothing}, hands).attempt()
    return hands


class FreezingChild:
    """Writes out every mount, then freezes every mount, and reports each step; then thaws if nobody else does."""

    def __init__(
        self, mounts: Mapping[int, int], service: int, lifeline: int, deadline: float, libc: ctypes.CDLL
    ) -> None:
        self.steps, steps = os.pipe()
        orders, self._orders = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            frozen: dict[int, int] = {}
            hands: list[Hand] = []
            try:
                become_a_child()
                keep_only(steps, orders, service, lifeline, *mounts.values())
                libc.prctl(_PR_SET_NAME, b"hvring-freezer", 0, 0, 0)
                libc.mlockall(_MCL_CURRENT_FUTURE)
                hands = start_hands(lifeline)
                self._work(mounts, frozen, steps, orders, libc)
                self._watch(steps, orders, service, deadline)
            finally:
                Thawing(frozen, hands).finish(lambda *_: None)
                os._exit(0)
        os.close(steps)
        os.close(orders)

    @staticmethod
    def _work(
        mounts: Mapping[int, int], frozen: dict[int, int], steps: int, orders: int, libc: ctypes.CDLL
    ) -> None:
        """Until all is done, one is an obstacle, or there is an order to halt."""
        import ctypes

        for kind in (_WRITTEN, _FROZEN):
            for index, mount in mounts.items():
                if _readable([orders], 0):
                    return
                if kind == _WRITTEN:
                    # What is written now need not be written while everything waits.
                    error = ctypes.get_errno() if libc.syncfs(mount) else 0
                else:
                    frozen[index] = mount
                    error = _ioctl(mount, FIFREEZE)
                    if error:
                        del frozen[index]
                os.write(steps, _STEP.pack(kind, index, error))
                if kind == _FROZEN and is_obstacle(error):
                    return

    @staticmethod
    def _watch(steps: int, orders: int, service: int, deadline: float) -> None:
        """Until it is time to thaw.  When the guardian has thawed, it kills this child instead."""
        watched, until = [orders, service], time.monotonic() + deadline
        while True:
            if orders in _readable(watched, until - time.monotonic()):
                if not os.read(orders, 1):
                    return  # the guardian was killed
                os.write(steps, _STEP.pack(_HALTED, -1, 0))
            elif service in watched:  # the service is gone, or it is time: the guardian thaws, if it runs
                watched, until = [orders], time.monotonic() + _GRACE
            else:
                return

    def step(self) -> tuple[bytes, int, int] | None:
        """Kind, index and errno of the next step, or None if the child is gone.  Waits for it."""
        raw = os.read(self.steps, _STEP.size)
        if len(raw) != _STEP.size:
            return None
        kind, index, error = _STEP.unpack(raw)
        return kind, index, error

    def halt(self, heard: Callable[[bytes, int, int], object]) -> bool:
        """No further step: ``heard`` hears of those that were made; False if it does not answer, or is gone."""
        try:
            os.write(self._orders, b"h")
        except OSError:
            return False
        while _readable([self.steps], _GRACE):
            step = self.step()
            if step is None:
                return False
            if step[0] == _HALTED:
                return True
            heard(*step)
        return False

    def end(self, heard: Callable[[bytes, int, int], object], timeout: float | None) -> bool:
        """Kill it; True once it is gone.  One that waits in the kernel dies only when that wait is over."""
        os.kill(self.pid, signal.SIGKILL)
        while _readable([self.steps], timeout):
            step = self.step()
            if step is None:
                os.waitpid(self.pid, 0)
                return True
            heard(*step)
        return False


def is_obstacle(error: int) -> bool:
    """Whether what a freeze gave ends all of it."""
    return error not in (0, errno.EBUSY, *_CANNOT_BE_FROZEN)


class Guardian:
    """One freeze, from the order to the thaw."""

    def __init__(
        self, control: socket.socket, lifeline: int, service: int, inquest: ModuleType | None = None
    ) -> None:
        """``inquest``: hvring.guest.inquest, by whatever name it was loaded."""
        import ctypes  # the service imports this module too, and has no use for it

        self._control = control
        self._lifeline = lifeline
        self._service = service
        self._inquest = inquest
        self._openers: Openers | None = None
        self._namespaces: set[int] = set()  # processes by which mounts are reached
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._signalled, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake)
        for number in _SIGNALS:
            signal.signal(number, lambda *_: None)
        self._mounts: dict[int, int] = {}
        self._hands: list[Hand] = []
        self._frozen: dict[int, int] = {}  # may be frozen by this family
        self._to_write: list[int] = []  # what the child has not done yet, as far as it has said so
        self._to_freeze: list[int] = []

    def run(
        self,
        plan: Sequence[Sequence[tuple[str, int]]],
        open_timeout: float,
        freeze_timeout: float,
        deadline: float,
    ) -> None:
        """Until the mounts are thawed, or the service is gone before it gave an order."""
        self._tell(READY, int(is_apart(pid_of(self._service))), self._lock_memory())
        others = (self._control.fileno(), self._signalled, self._service)
        self._openers = Openers(plan, open_timeout)
        ways = [path.removeprefix("/proc/").partition("/") for mounts in plan for path, _ in mounts]
        self._namespaces = {int(pid) for pid, _, rest in ways if pid.isdecimal() and rest.startswith("root")}
        if not self._openers.run(self._opened, others):
            return
        if self._wait(None) != _TOLD or self._order() != FREEZE:
            return
        watching = self._freeze(freeze_timeout, deadline)
        Thawing(self._frozen, self._hands).finish(lambda index, error: self._tell(HELD, index, error))
        self._tell(CLEAR)
        if watching is not None:  # it would have thawed in this one's place
            watching.end(lambda *_: None, _GRACE)

    def thaw(self) -> None:
        """Whatever went wrong here: what may be frozen is thawed."""
        Thawing(self._frozen, self._hands).finish(lambda *_: None)

    def _opened(self, index: int, error: int, descriptor: int) -> bool:
        message = EVENT.pack(OPENED, index, error)
        if error == errno.ETIMEDOUT and self._inquest is not None and self._openers is not None:
            message += self._inquest.place(self._openers.hung).encode()[:WORDS]
        try:
            if error:
                self._control.send(message)
            else:
                self._mounts[index] = descriptor
                socket.send_fds(self._control, [message], [descriptor])
        except OSError:
            return False
        return True

    def _freeze(self, freeze_timeout: float, deadline: float) -> FreezingChild | None:
        """Returns when it is time to thaw; ``_frozen`` holds what may be frozen then.

        The child that watches meanwhile; None: it is gone."""
        until = time.monotonic() + freeze_timeout
        child = FreezingChild(self._mounts, self._service, self._lifeline, deadline, self._libc)
        self._to_write, self._to_freeze = list(self._mounts), list(self._mounts)
        self._hands = start_hands(self._lifeline)
        held_until = float("inf")
        while True:
            if not self._to_write and held_until == float("inf"):
                held_until = time.monotonic() + deadline
                until = min(until, held_until)
                # The fork has made all pages of this process such as are copied when they are written to.
                self._libc.mlockall(_MCL_CURRENT_FUTURE)
                self._tell(FREEZING)
            if not self._to_write and not self._to_freeze:
                break
            why = self._wait(until, child.steps)
            step = child.step() if why == _STEPPED else None
            if step is None:
                return self._break_off(child, why)
            self._heard(*step)
            kind, index, error = step
            if kind == _FROZEN and is_obstacle(error):
                self._tell(FAILED, index, error)
                return child
        self._tell(FROZEN)
        why = self._wait(held_until)
        if why != _TOLD:
            self._tell(why)
        return child

    def _heard(self, kind: bytes, index: int, error: int) -> None:
        """Of a step of the child, which may be ahead of what was read."""
        if kind == _WRITTEN:
            self._to_write.remove(index)
            return
        self._to_freeze.remove(index)
        if not error:
            self._frozen[index] = self._mounts[index]
        elif not is_obstacle(error):
            self._tell(FOREIGN if error == errno.EBUSY else LEFT_OUT, index, error)

    def _break_off(self, child: FreezingChild, why: bytes) -> FreezingChild | None:
        """A freeze that was stopped, took too long, or whose child was killed."""
        if why != _STEPPED and child.halt(self._heard):
            self._tell_why(why, errno.ETIMEDOUT)
            return child
        is_gone = child.end(self._heard, _GRACE)
        words = b"" if is_gone else self._why_stuck(child)
        self._tell_why(why if is_gone else STUCK, errno.ECHILD if why == _STEPPED else errno.ETIMEDOUT, words)
        # While a freeze goes on, a thaw of the same mount would wait for it, and the freeze may itself
        # wait for one of the others (an image on a frozen file system): those come first.
        thawing = Thawing(self._frozen, self._hands)
        while not is_gone:
            thawing.attempt()
            is_gone = child.end(self._heard, _RETRY)
        if not self._to_write:
            # The next one may be frozen all the same: the child died before it could say so.
            for index in self._to_freeze[:1]:
                self._frozen[index] = self._mounts[index]
        return None

    def _tell_why(self, why: bytes, error: int, words: bytes = b"") -> None:
        at = self._at()
        if why in (_STEPPED, EXPIRED):
            self._tell(FAILED, at, error)
        elif why != _TOLD:
            self._tell(why, at, error, words)

    def _at(self) -> int:
        """Which mount the child is at."""
        return (self._to_write or self._to_freeze or [-1])[0]

    def _why_stuck(self, child: FreezingChild) -> bytes:
        """While it is as it is: once the others are thawed, some of that may be gone."""
        mount = self._mounts.get(self._at())
        if self._inquest is None or mount is None:
            return b""
        tables = [os.getpid(), pid_of(self._service), *self._namespaces]
        found: str = self._inquest.why(child.pid, mount, tables)
        return found.encode("utf-8", "replace")[:WORDS]

    def _wait(self, until: float | None, steps: int = -1) -> bytes:
        """What comes first: _TOLD (or the service is gone), TERMINATED, EXPIRED or _STEPPED."""
        watched = [self._control.fileno(), self._signalled, self._service]
        ready = _readable(
            watched if steps < 0 else [*watched, steps], None if until is None else until - time.monotonic()
        )
        if self._signalled in ready:
            return TERMINATED
        if self._control.fileno() in ready or self._service in ready:
            return _TOLD
        return _STEPPED if ready else EXPIRED

    def _order(self) -> bytes:
        try:
            return self._control.recv(16, socket.MSG_DONTWAIT)
        except OSError:
            return b""

    def _tell(self, what: bytes, index: int = -1, error: int = 0, words: bytes = b"") -> None:
        try:
            self._control.send(EVENT.pack(what, index, error) + words, socket.MSG_DONTWAIT)
        except OSError:
            pass  # nobody is there to be told; what was to be done is done

    def _lock_memory(self) -> int:
        """Keep every page in memory and out of the OOM killer's sight; errno if the first is refused."""
        try:
            with open("/proc/self/oom_score_adj", "w", encoding="utf-8") as score:
                score.write("-1000")
        except OSError:
            pass
        self._libc.prctl(_PR_SET_NAME, b"hvring-guardian", 0, 0, 0)
        import ctypes

        return ctypes.get_errno() if self._libc.mlockall(_MCL_CURRENT_FUTURE) else 0


def is_apart(other: int, proc: str = "/proc") -> bool:
    """Whether killing the control group of process ``other`` does not kill this process, too."""
    try:
        ours, theirs = _control_groups(f"{proc}/self/cgroup"), _control_groups(f"{proc}/{other}/cgroup")
    except OSError:
        return False
    # A manager kills by its own hierarchy: the unified one, or in older set-ups the one named after it.
    known = [name for name in ("", "name=systemd") if name in ours and name in theirs]
    return any(theirs[name] != "/" for name in known) and all(
        theirs[name] == "/" or not f"{ours[name]}/".startswith(f"{theirs[name]}/") for name in known
    )


def pid_of(pidfd: int) -> int:
    """The process, as this one's /proc names it; 0: it is gone, or not to be seen."""
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as facts:
        found = [int(line.split()[1]) for line in facts if line.startswith("Pid:")]
    return max(0, *found, 0)


def _control_groups(path: str) -> dict[str, str]:
    with open(path, encoding="utf-8", errors="surrogateescape") as lines:
        fields = [line.rstrip("\n").split(":", 2) for line in lines]
    return {controllers: group for _, controllers, group in fields}


def _inquest() -> ModuleType | None:
    """What stands beside this file; without it there are fewer words, and all else works."""
    sys.path.append(os.path.dirname(os.path.abspath(__file__)))
    try:
        import inquest  # type: ignore[import-not-found]
    except ImportError:
        return None
    finally:
        sys.path.pop()
    found: ModuleType = inquest
    return found


def main(arguments: Sequence[str]) -> None:
    """See the top of this file."""
    if arguments:
        control, lifeline, service, plan_file = map(int, arguments[:4])
        connection = socket.socket(fileno=control)
    else:
        connection = socket.socket(fileno=os.dup(0))
        try:
            raw, descriptors, _, _ = socket.recv_fds(connection, 256, 3)
            lifeline, service, plan_file = descriptors
            own = os.pidfd_open(os.getpid())
            socket.send_fds(connection, [EVENT.pack(HERE, -1, 0)], [own])
        except (OSError, ValueError):  # whoever asked is gone, or has no room
            return
        os.close(own)
        arguments = ["", "", "", "", *raw.decode().split()]
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)  # the connection ends with this process's last hold of it
    open_timeout, freeze_timeout, deadline = map(float, arguments[4:])
    plan = json.loads(os.pread(plan_file, os.fstat(plan_file).st_size, 0))
    threading.stack_size(_THREAD_STACK)  # the stacks are locked in memory, too
    guardian = Guardian(connection, lifeline, service, _inquest())
    try:
        guardian.run(plan, open_timeout, freeze_timeout, deadline)
    except BaseException:
        guardian.thaw()
        raise


if __name__ == "__main__":
    main(sys.argv[1:])
    os._exit(0)  # nothing is left to be done, and an interpreter takes its time to end
