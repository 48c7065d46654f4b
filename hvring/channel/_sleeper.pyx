# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
# cython: freethreading_compatible=True, always_allow_keywords=False, binding=False
# SPDX-License-Identifier: Apache-2.0
"""Sleeper: the descriptors that a channel sleeps on, its doorbell's and its lifeline (PROTOCOL 2.8)."""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EINTR, errno
from posix.unistd cimport close as c_close

from hvring.channel._doorbell cimport Doorbell
from hvring.channel.system cimport (EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLLIN, EPOLLRDHUP, POLLERR, POLLHUP, POLLIN,
                                    POLLNVAL, epoll_create1, epoll_ctl, epoll_event, now, poll, pollfd)


@cython.final
cdef class Sleeper:
    """Owns ``lifeline``, a descriptor that becomes readable when the other side is gone; the doorbell owns its own."""

    def __cinit__(self, Doorbell doorbell not None, int lifeline):
        self.doorbell = doorbell
        self.lifeline = lifeline
        self.epoll = -1

    def __dealloc__(self):
        self.close()

    cdef void close(self) noexcept:
        """Close the lifeline; the doorbell is silenced by its channel."""
        if self.epoll >= 0:
            c_close(self.epoll)
        if self.lifeline >= 0:
            c_close(self.lifeline)
        self.epoll = self.lifeline = -1

    cdef bint gone(self) noexcept nogil:
        """Is the other side gone?"""
        cdef pollfd p
        p.fd = self.doorbell.fd
        p.events = 0                  # errors and hang-ups come unasked
        if self.lifeline >= 0:
            p.fd = self.lifeline
            p.events = POLLIN | EPOLLRDHUP
        p.revents = 0
        return poll(&p, 1, 0) > 0

    cdef int sleep(self, double deadline) except -1:
        """Until the doorbell rings, the other side is gone, or time is over; deadline < 0: never."""
        cdef pollfd p[2]
        cdef int n, milliseconds
        cdef double left
        p[0].fd = self.doorbell.fd
        p[0].events = POLLIN
        p[1].fd = self.lifeline
        p[1].events = POLLIN | EPOLLRDHUP
        while True:
            milliseconds = -1
            if deadline >= 0:
                left = deadline - now()
                milliseconds = 0 if left <= 0 else <int>min(left * 1000 + 0.999, 1e9)
            p[0].revents = p[1].revents = 0
            self.asleep = True
            with nogil:
                n = poll(p, 2, milliseconds)
            self.asleep = False
            self.alive = p[1].revents == 0
            if self.doorbell.fd < 0:      # another thread closed the channel: its descriptors may be others' by now
                return CLOSED
            if n < 0:
                if errno != EINTR:
                    raise OSError(errno, "poll on a channel failed")
                PyErr_CheckSignals()
                continue
            if n == 0:
                if deadline >= 0 and now() >= deadline:
                    return TIME_OVER
                continue
            if p[0].revents & (POLLERR | POLLHUP | POLLNVAL):
                return GONE
            return RUNG if p[0].revents else GONE

    cdef int descriptor(self) except -1:
        """One that is readable when ``sleep`` would end."""
        cdef epoll_event event
        cdef int failed
        if self.lifeline < 0:
            return self.doorbell.fd
        if self.epoll < 0:
            self.epoll = epoll_create1(EPOLL_CLOEXEC)
            if self.epoll < 0:
                raise OSError(errno, "epoll_create1 failed")
            event.events = EPOLLIN
            failed = epoll_ctl(self.epoll, EPOLL_CTL_ADD, self.doorbell.fd, &event)
            event.events = EPOLLIN | EPOLLRDHUP
            if failed or epoll_ctl(self.epoll, EPOLL_CTL_ADD, self.lifeline, &event):
                failed = errno
                c_close(self.epoll)
                self.epoll = -1
                raise OSError(failed, "epoll_ctl failed")
        return self.epoll
