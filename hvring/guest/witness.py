# SPDX-License-Identifier: Apache-2.0
"""The processes of one freeze, and what is heard of them: words of the guardian, and everybody's end."""

from __future__ import annotations

import array
import errno
import os
import select
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from hvring.events import printable
from hvring.guest import guardian, launch
from hvring.guest.mounts import Filesystem
from hvring.guest.rescue import Rescue


class Event(Enum):
    """What is heard of a guardian, in its own words or by its end."""

    READY = guardian.READY
    OPENED = guardian.OPENED
    FREEZING = guardian.FREEZING
    FOREIGN = guardian.FOREIGN
    LEFT_OUT = guardian.LEFT_OUT
    FROZEN = guardian.FROZEN
    FAILED = guardian.FAILED
    STUCK = guardian.STUCK
    EXPIRED = guardian.EXPIRED
    TERMINATED = guardian.TERMINATED
    HELD = guardian.HELD
    CLEAR = guardian.CLEAR
    THAW = "order"  # by the owner, who may have lost interest
    DEAD = "dead"  # the guardian, which has said all that it had to say
    GONE = "gone"  # and its child, too
    RESCUED = "rescued"  # the rescue has thawed all
    FELL = "fell"  # the rescue was killed
    TIME = "time"  # of the state is over


@dataclass(frozen=True, slots=True)
class Heard:
    """An event, the file system that it is about or another number, an errno; a descriptor and words that came too."""

    event: Event
    index: int = -1
    error: int = 0
    descriptor: int = -1
    words: str = ""


class Witness:
    """Of a guardian with its child (the family), and of a rescue.  Waits for nothing."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._family: launch.Family | None = None
        self._over: set[int] = set()  # the family's lifeline, the guardian's pidfd
        self._is_lost = False  # a family that never came, which was not told yet
        self._rescue: Rescue | None = None
        self.is_closed = False
        self.lease = -1  #: somebody else's descriptor, which a rescue keeps open

    @property
    def lifeline(self) -> int:
        """Ends when nobody of the family is left; -1 where there is none."""
        return -1 if self._family is None else self._family.lifeline

    def start(
        self, way: launch.Way, filesystems: Sequence[Filesystem], timeouts: tuple[float, float, float]
    ) -> None:
        """Start a guardian.  Raises EffectError."""
        family = self._family = launch.start(way, filesystems, timeouts)
        for descriptor in (family.control.fileno(), family.lifeline, family.guardian):
            if descriptor >= 0:
                self._epoll.register(descriptor, select.EPOLLIN)

    def rescue(self, mounts: Mapping[int, int]) -> None:
        """Thaw by a process of this side.  Raises OSError when there is no room for one."""
        self._rescue = Rescue(mounts, self.lease)
        self._epoll.register(self._rescue.descriptor, select.EPOLLIN)

    def order(self, order: bytes) -> None:
        """Tell the guardian, if there is one."""
        if self._family is not None:
            self._family.order(order)

    def kill(self) -> None:
        """All of them."""
        family = self._family
        if family is not None and family.guardian < 0:
            # Nobody has begun.  Who does so later finds the other end closed, and ends without an order to freeze.
            self._forget(family)
            family.abandon()
            self._is_lost = True
        elif family is not None:
            family.kill()
        if self._rescue is not None:
            self._rescue.kill()

    def kill_rescue(self) -> None:
        """Its end is heard as FELL."""
        if self._rescue is not None:
            self._rescue.kill()

    @property
    def has_family(self) -> bool:
        """Whether a guardian or its child may be alive."""
        return self._family is not None

    @property
    def has_rescue(self) -> bool:
        """Whether this side thaws, too."""
        return self._rescue is not None

    def fileno(self) -> int:
        """Gets readable when :meth:`hear` has something to tell."""
        return self._epoll.fileno()

    def hear(self) -> Heard | None:
        """What has happened next; None: nothing more."""
        if self._is_lost:
            self._is_lost = False
            return Heard(Event.GONE)
        ready = {descriptor for descriptor, _ in self._epoll.poll(0)}
        family = self._family
        if family is not None and family.control.fileno() in ready:
            return self._read(family)
        if self._rescue is not None and self._rescue.descriptor in ready:
            heard = self._look_at(self._rescue)
            if heard is not None:
                return heard
        if family is not None:
            for descriptor in ready & {family.lifeline, family.guardian}:
                self._epoll.unregister(descriptor)
                self._over.add(descriptor)
            if self._over == {family.lifeline, family.guardian} - {-1}:
                self._forget(family)
                family.close()
                return Heard(Event.GONE)
        return None

    def close(self) -> None:
        """Whoever is left thaws what is frozen, and ends."""
        if self._family is not None:
            self._family.abandon()
        if self._rescue is not None:
            self._rescue.close()
        self._family = self._rescue = None
        self.is_closed = True
        self._epoll.close()

    def _look_at(self, rescue: Rescue) -> Heard | None:
        trouble = rescue.look()
        if not rescue.is_over:
            return None if trouble is None else Heard(Event.HELD, *trouble)
        self._epoll.unregister(rescue.descriptor)
        rescue.close()
        self._rescue = None
        return Heard(Event.RESCUED if rescue.is_clear else Event.FELL)

    def _read(self, family: launch.Family) -> Heard | None:
        descriptors = array.array("i")
        try:
            raw, more, _, _ = family.control.recvmsg(
                guardian.EVENT.size + guardian.WORDS,
                socket.CMSG_LEN(descriptors.itemsize),
                socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC,
            )
        except OSError:
            raw, more = b"", []
        for _, _, data in more:
            descriptors.frombytes(data[: descriptors.itemsize])
        if len(raw) < guardian.EVENT.size:
            self._forget_control(family)
            return Heard(Event.DEAD)
        what, index, error = guardian.EVENT.unpack_from(raw)
        words = printable(raw[guardian.EVENT.size :].decode("utf-8", "replace"))
        if what == guardian.HERE and descriptors and family.guardian < 0:
            family.meet(descriptors[0])
            self._epoll.register(family.guardian, select.EPOLLIN)
            return self.hear()
        if what == guardian.OPENED and not error and not descriptors:
            error = errno.EMFILE  # it came, and there was no room for it
        return Heard(Event(what), index, error, descriptors[0] if descriptors else -1, words)

    def _forget(self, family: launch.Family) -> None:
        """Before it is closed."""
        self._forget_control(family)
        for descriptor in {family.lifeline, family.guardian} - {-1} - self._over:
            self._epoll.unregister(descriptor)
        self._family = None
        self._over.clear()

    def _forget_control(self, family: launch.Family) -> None:
        try:
            self._epoll.unregister(family.control.fileno())
        except OSError:
            pass  # it was done before


def close_all(mounts: dict[int, int]) -> None:
    """Descriptors of mounts, once nobody needs them any more."""
    for descriptor in mounts.values():
        os.close(descriptor)
    mounts.clear()
