# SPDX-License-Identifier: Apache-2.0
"""What the three services of hv_utils have in common: file, states, ring, answers, lies (PROTOCOL §10.2, §10.3)."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Sequence
from typing import ClassVar

from hv_utils_model.file import File, error
from hv_utils_model.kernels import Kernel
from hv_utils_model.negotiation import negotiate
from hv_utils_model.states import FAIL, HEADER, LIMIT, PAGE, Clock, Mode, State

Version = tuple[int, int]


class Device:
    """One service.  ``answers``: what the host got, in order; ``taken``: the answers that the kernel took.

    The kernel's work runs at once in the call that causes it.  As on a real ring the host interrupts only when it
    wrote into an empty one, and the kernel reads one packet per interrupt.
    """

    name: ClassVar[str]
    kind: ClassVar[int]
    buffer_size: ClassVar[int] = 2 * PAGE
    least: ClassVar[int] = HEADER  # bytes of a request below which it is dropped
    frameworks: ClassVar[Sequence[Version]]
    versions: ClassVar[Sequence[Version]]
    goes_on_after_negotiating: ClassVar[bool] = False

    def __init__(self, kernel: Kernel, clock: Clock) -> None:
        self.kernel = kernel
        self.clock = clock
        self.answers: list[bytes] = []
        self.on_change: Callable[[], None] | None = None  # an answer, an opening or a close
        self.taken: list[bytes] = []
        self.bugs = 0
        self.blocked_reads = 0
        self._start()

    def _start(self) -> None:
        self.state = State.INIT
        self.mode = Mode.INIT
        self.node = True
        self.channel_open = True
        self.deadline: float | None = None
        self.file: File | None = None
        self.ring: deque[bytes] = deque()
        self.buffer = bytearray(self.buffer_size)
        self.length = 0
        self._when_read: Callable[[], None] | None = None
        self._is_lie = False

    # ------------------------------------------------------------------------- of each service

    def _ready(self) -> bool:
        """Whether the callback reads packets now."""
        return self.state <= State.READY

    def _handle(self) -> bool:
        """A request of this service is in the buffer.  True: it is answered, and the driver looks for the next."""
        raise NotImplementedError

    def _on_message(self, data: bytes) -> None:
        """User space wrote: raises OSError, or takes it."""
        raise NotImplementedError

    def _made_up(self) -> bytes | None:
        """What user space is told when the machine is suspended."""
        raise NotImplementedError

    # ------------------------------------------------------------------------- the host

    def host_sends(self, payload: bytes) -> None:
        """One packet; its length is rounded up to 8 as on a ring."""
        assert self.channel_open, "a host that writes to a closed channel"
        was_empty = not self.ring
        self.ring.append(payload + bytes(-len(payload) % 8))
        if was_empty:
            self.interrupt()

    def interrupt(self) -> None:
        """The host rings without need, too."""
        if self._callback():
            self._go_on()

    # ------------------------------------------------------------------------- the driver

    @property
    def is_leaving(self) -> bool:
        return self.mode == Mode.DESTROY

    def unbind(self) -> bool:
        """Also rescind, or a failed resume.  False: the remover waits until the file is closed."""
        self.state = State.DYING
        self.deadline = None
        held, self.mode = self.file, Mode.DESTROY
        if held is None:
            self._gone()
            return True
        held.hang_up()
        return False

    def bind(self) -> None:
        """All anew; what the host got stays on record."""
        assert not self.node, "bound already"
        self._start()

    def hibernate(self) -> None:
        """Suspend and resume: the channel was closed and is open again, the file stays (since 5.6)."""
        assert self.kernel.suspends, "this kernel's hv_utils does not suspend"
        self.deadline = None
        self._is_lie = False
        self.ring.clear()
        made_up = self._made_up()
        if made_up is not None:
            self._send_up(made_up)
        self.state = State.READY

    def time_out(self) -> None:
        self.deadline = None
        self._respond(FAIL)
        self._go_on()

    # ------------------------------------------------------------------------- lies

    def tells(self, message: bytes, *, asks: bool = True) -> None:
        """Any bytes as the next message, in place of one that waits.

        ``asks``: an answer is taken, as to a request, and the host hears nothing of it.
        """
        assert self.file is not None, "nobody listens"
        if self.file.unread is not None:
            self.file.take()
        self._when_read = None
        self.file.put(message)
        if asks:
            self.state = State.USERSPACE_REQ
            self._is_lie = True

    def fails(self, call: str, *errnos: int) -> None:
        """The next calls of "read", "write" or "poll" end with these."""
        assert self.file is not None, "nobody calls"
        self.file.failures[call].extend(errnos)

    def pretends(self, *bits: int) -> None:
        """What the next polls give."""
        assert self.file is not None, "nobody polls"
        self.file.pretended.extend(bits)

    def repents(self) -> None:
        """No more failures than were told."""
        if self.file is not None:
            self.file.pretended.clear()
            for failures in self.file.failures.values():
                failures.clear()

    # ------------------------------------------------------------------------- the file

    def open(self) -> File:
        if not self.node:
            raise error(errno.ENOENT)
        if self.mode == Mode.DESTROY:
            raise error(errno.EBADF)
        if self.mode == Mode.CHARDEV:
            raise error(errno.EBUSY)
        self.mode = Mode.CHARDEV
        self.file = File(self)
        self._changed()
        return self.file

    def was_read(self) -> None:
        when_read, self._when_read = self._when_read, None
        if when_read is not None:
            when_read()

    def written(self, data: bytes) -> None:
        self._on_message(data)

    def released(self) -> None:
        self.file = None
        self._when_read = None
        if self.mode == Mode.DESTROY:
            self._gone()
            self._changed()
            return
        self.mode = Mode.INIT
        # Nobody looks for packets that wait in the ring, until the next interrupt or registration.
        if self.deadline is not None or self._is_lie:
            self.deadline = None
            self._respond(FAIL)
        self.state = State.INIT
        self._changed()

    # ------------------------------------------------------------------------- inside

    def _changed(self) -> None:
        if self.on_change is not None:
            self.on_change()

    def _gone(self) -> None:
        self.node = False
        self.channel_open = False

    def _send_up(self, message: bytes, when_read: Callable[[], None] | None = None) -> int:
        """An errno: EFAULT while the previous message is unread, EINVAL without a daemon."""
        if self.file is None or self.mode != Mode.CHARDEV:
            return errno.EINVAL
        if self.file.unread is not None:
            return errno.EFAULT
        self._when_read = when_read
        self.file.put(message)
        return 0

    def _hand_out(self, message: bytes, limit: float = LIMIT) -> None:
        """A request for user space, with its time limit; the host is told at once when nobody can have it."""
        self.state = State.USERSPACE_REQ
        self.deadline = self.clock.now + limit
        if self._send_up(message):
            self.deadline = None
            self._respond(FAIL)
            self.state = State.READY

    def _answered(self, data: bytes, respond: Callable[[], None]) -> None:
        """User space's answer: in time, or nobody waits any more."""
        self.taken.append(data)
        self._changed()
        self.state = State.USERSPACE_RECV
        if self.deadline is None and not self._is_lie:
            return
        self.deadline = None
        if self._is_lie:
            self._is_lie = False
        else:
            respond()
        self._go_on()

    def _go_on(self) -> None:
        """The transaction is over: look for the next."""
        while True:
            self.state = State.READY
            if not self._callback():
                return

    def _callback(self) -> bool:
        """Reads one packet; true when it was one after which the driver looks again by itself."""
        if not self._ready() or not self.ring:
            return False
        packet = self.ring.popleft()
        if len(packet) > self.buffer_size or len(packet) < HEADER:
            return False
        self.buffer[: len(packet)] = packet
        self.length = len(packet)
        kind = int.from_bytes(packet[12:14], "little")
        if kind == 0:
            negotiate(self.buffer, self.length, self.frameworks, self.versions)
            self._answer()
            return self.goes_on_after_negotiating
        if kind != self.kind and self.kernel.drops_unknown_types:
            return False
        return len(packet) >= self.least and self._handle()

    def _respond(self, status: int) -> None:
        """The request in the buffer is the answer, with this status."""
        if self._is_lie:
            self._is_lie = False
            return
        self.buffer[20:24] = status.to_bytes(4, "little")
        self._answer()

    def _answer(self) -> None:
        self.buffer[25] = 5
        self.answers.append(bytes(self.buffer[: self.length]))
        self._changed()
