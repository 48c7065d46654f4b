# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, autotestdict=False
# cython: embedsignature=True, embedsignature.format=clinic, always_allow_keywords=False, binding=False
# cython: freethreading_compatible=True
# SPDX-License-Identifier: Apache-2.0
"""Sleeper: the descriptors that a channel sleeps on, its doorbell's and its lifeline (PROTOCOL 2.8)."""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint64_t
from posix.unistd cimport close as c_close, write as c_write

from hvring.channel._doorbell cimport Doorbell, UioDoorbell
from hvring.channel.system cimport (EFD_CLOEXEC, EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLLIN, EPOLLRDHUP, POLLERR, POLLHUP,
                                    POLLIN, POLLNVAL, SHUT_RDWR, SO_TYPE, SOL_SOCKET, epoll_create1, epoll_ctl,
                                    epoll_event, eventfd, getsockopt, now, poll, pollfd, shutdown, socklen_t)


@cython.final
cdef class Sleeper:
    """Owns ``lifeline``, a descriptor that becomes readable when the other side is gone, and, for its channel, the
    doorbell.

    While a thread sleeps, others run, and one of them may close the channel.  What is closed then is the sleep: the
    descriptors stay open until the last thread that was given their numbers has left.  A signal handler may close it,
    too; so ``closed`` is looked at after everything that may have run one.
    """

    def __cinit__(self, Doorbell doorbell not None, int lifeline):
        cdef int kind = 0
        cdef socklen_t length = sizeof(kind)
        self.lifeline = lifeline
        self.epoll = self.ended = -1
        self.is_socket = lifeline >= 0 and getsockopt(lifeline, SOL_SOCKET, SO_TYPE, &kind, &length) == 0
        if doorbell.fd < 0 or doorbell.taken:
            raise ValueError("a channel needs a doorbell of its own that is open")
        doorbell.taken = True
        self.doorbell = doorbell

    def __dealloc__(self):
        self.drop()

    cdef void drop(self) noexcept:
        if self.doorbell is not None:
            self.doorbell.silence()
        if self.epoll >= 0:
            c_close(self.epoll)
        if self.lifeline >= 0:
            c_close(self.lifeline)
        if self.ended >= 0:
            c_close(self.ended)
        self.epoll = self.lifeline = self.ended = -1

    @cython.critical_section
    cdef void close(self) noexcept:
        """End all sleeps; close the lifeline and silence the doorbell, once nobody uses them any more."""
        cdef uint64_t one = 1
        self.closed = True
        if self.users == 0:
            self.drop()
        elif self.ended >= 0:
            c_write(self.ended, &one, 8)
        else:
            shutdown(self.lifeline, SHUT_RDWR)

    @cython.critical_section
    cdef int enter(self) except -1:
        """Before others may run while this thread uses descriptors."""
        if self.closed:
            return CLOSED
        # A lifeline that is a socket can be ended by ourselves; all else needs one descriptor more in each sleep.
        if self.ended < 0 and not self.is_socket:
            self.ended = eventfd(0, EFD_CLOEXEC)
            if self.ended < 0:
                raise OSError(errno, "no descriptor to be woken by")
        self.users += 1
        return 0

    @cython.critical_section
    cdef int leave(self) except -1:
        """After ``enter``: CLOSED when it happened meanwhile."""
        self.users -= 1
        if not self.closed:
            return 0
        if self.users == 0:
            self.drop()
        return CLOSED

    cdef bint gone(self) noexcept nogil:
        """Is the other side gone?"""
        cdef pollfd p
        p.fd = self.doorbell.fd
        # errors and hang-ups come unasked
        p.events = 0
        if self.lifeline >= 0:
            p.fd = self.lifeline
            p.events = POLLIN | EPOLLRDHUP
        p.revents = 0
        return poll(&p, 1, 0) > 0

    cdef int sleep(self, double deadline) except -1:
        """Until the doorbell rings, the other side is gone, we are closed, or time is over; deadline < 0: never."""
        cdef pollfd p[3]
        cdef int n, error, milliseconds
        cdef double left
        while True:
            if self.enter() == CLOSED:
                return CLOSED
            p[0].fd = self.doorbell.fd
            p[0].events = p[2].events = POLLIN
            p[1].fd = self.lifeline
            p[1].events = POLLIN | EPOLLRDHUP
            p[2].fd = self.ended
            milliseconds = -1
            if deadline >= 0:
                left = deadline - now()
                milliseconds = 0 if left <= 0 else <int>min(left * 1000 + 0.999, 1e9)
            p[0].revents = p[1].revents = p[2].revents = 0
            with nogil:
                n = poll(p, 3 if p[2].fd >= 0 else 2, milliseconds)
                error = errno
            if self.leave() == CLOSED:
                return CLOSED
            self.alive = p[1].revents == 0
            if n < 0:
                if error != EINTR:
                    raise OSError(error, "poll on a channel failed")
                PyErr_CheckSignals()
                continue
            if n == 0:
                if deadline >= 0 and now() >= deadline:
                    return TIME_OVER
                continue
            if p[0].revents & (POLLERR | POLLHUP | POLLNVAL):
                return GONE
            return RUNG if p[0].revents else GONE

    cdef int ring(self) except? -1:
        """Signal the other side: 0, -errno, or CLOSED, where that took its time."""
        cdef int result = self.doorbell.ring()
        # It did not wait, so that no other thread ran and nothing has changed.
        if result != -EAGAIN:
            return result
        while True:
            if self.enter() == CLOSED:
                return CLOSED
            with nogil:
                result = self.doorbell.ring_or_wait()
            if self.leave() == CLOSED:
                return CLOSED
            if result != -EINTR:
                return result
            PyErr_CheckSignals()

    cdef int descriptor(self) except -1:
        """One that is readable when ``sleep`` would end."""
        cdef epoll_event event
        cdef int failed
        if self.lifeline < 0 and isinstance(self.doorbell, UioDoorbell):
            return self.doorbell.fd
        # An eventfd that the other side holds, too, would stay in the caller's epoll when ours is closed.
        if self.epoll < 0:
            self.epoll = epoll_create1(EPOLL_CLOEXEC)
            if self.epoll < 0:
                raise OSError(errno, "epoll_create1 failed")
            event.events = EPOLLIN
            failed = epoll_ctl(self.epoll, EPOLL_CTL_ADD, self.doorbell.fd, &event)
            event.events = EPOLLIN | EPOLLRDHUP
            if not failed and self.lifeline >= 0:
                failed = epoll_ctl(self.epoll, EPOLL_CTL_ADD, self.lifeline, &event)
            if failed:
                failed = errno
                c_close(self.epoll)
                self.epoll = -1
                raise OSError(failed, "epoll_ctl failed")
        return self.epoll
