# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, autotestdict=False
# cython: embedsignature=True, embedsignature.format=clinic, always_allow_keywords=False, binding=False
# cython: freethreading_compatible=True
# SPDX-License-Identifier: Apache-2.0
"""Doorbells: how one side of a channel wakes the other (PROTOCOL 1.8, 2.9)."""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, EBADF, EINTR, EIO, EOPNOTSUPP, errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from posix.fcntl cimport F_GETFL, F_SETFL, O_NONBLOCK, fcntl
from posix.unistd cimport close, read, write

from hvring.channel.system cimport POLLIN, POLLOUT, RWF_NOWAIT, iovec, poll, pollfd, preadv2
from hvring.ring.core cimport hv_or32


cdef extern from "eventfd_signal.h" nogil:
    int hv_eventfd_signal(int fd) noexcept


cdef class Doorbell:
    """How one side of a channel wakes the other; made by transports.  One belongs to one channel."""

    def __cinit__(self, *args, **named):
        self.fd = -1

    cdef int ring(self) noexcept nogil:
        return -EBADF

    cdef int ring_or_wait(self) noexcept nogil:
        return self.ring()

    cdef int64_t clear(self) noexcept nogil:
        return -EBADF

    cdef bint unmasks(self) noexcept nogil:
        return False

    cdef void silence(self) noexcept:
        pass


@cython.final
cdef class EventfdDoorbell(Doorbell):
    """Two eventfds: one to wake the other side, one to be woken by.

    Takes both over and closes them, unless ``closefd`` is False.  ``signal`` and ``take`` are for whoever has an event
    loop and no Channel, as the host's side has; neither ever waits for the other side, whatever it does to the
    counters and to O_NONBLOCK, which is one flag for both sides.
    """

    def __cinit__(self, int signal_fd, int wait_fd, *, bint closefd=True):
        self.signal_fd = -1
        if fcntl(wait_fd, F_GETFL) < 0 or fcntl(signal_fd, F_GETFL) < 0:
            raise OSError(errno, "not an open descriptor")
        self.signal_fd = signal_fd
        self.fd = wait_fd
        self.owns = closefd

    cdef int ring(self) noexcept nogil:
        return hv_eventfd_signal(self.signal_fd)

    cdef int ring_or_wait(self) noexcept nogil:
        """For kernels that do not let us signal as ring() does: waits while the other side keeps the counter full."""
        cdef uint64_t one = 1
        cdef pollfd room
        room.fd = self.signal_fd
        room.events = POLLOUT
        # A counter that is full already holds nobody: the other side has been woken.  One that it fills between this
        # look and the write does, until a signal comes, for which the caller looks after each -EINTR.
        if poll(&room, 1, 0) == 0:
            return 0
        if write(self.signal_fd, &one, 8) < 0 and errno != EAGAIN:
            return -errno
        return 0

    cdef int64_t clear(self) noexcept nogil:
        cdef uint64_t count = 0
        cdef iovec whole
        whole.iov_base = &count
        whole.iov_len = 8
        while preadv2(self.fd, &whole, 1, -1, RWF_NOWAIT) < 0:
            if errno == EAGAIN:
                return 0
            if errno == EOPNOTSUPP:
                return self.clear_old()
            if errno != EINTR:
                return -errno
        return <int64_t>(count if count < <uint64_t>1 << 62 else <uint64_t>1 << 62)

    cdef int64_t clear_old(self) noexcept nogil:
        """For kernels before 5.8."""
        cdef pollfd rung
        cdef uint64_t count = 0
        # Nobody but us reads this counter, so that O_NONBLOCK changes nothing for another side that follows the rules.
        # One that takes the flag away and the count, too, holds us until a signal comes: then nothing was rung.
        fcntl(self.fd, F_SETFL, fcntl(self.fd, F_GETFL) | O_NONBLOCK)
        rung.fd = self.fd
        rung.events = POLLIN
        if poll(&rung, 1, 0) <= 0 or read(self.fd, &count, 8) < 0:
            return 0
        return <int64_t>(count if count < <uint64_t>1 << 62 else <uint64_t>1 << 62)

    def signal(self) -> None:
        """Wake the other side.  OSError when that is not possible, as after the end."""
        cdef int result = self.ring()
        while result == -EAGAIN or result == -EINTR:
            with nogil:
                result = self.ring_or_wait()
            PyErr_CheckSignals()
        if result < 0:
            raise OSError(-result, "cannot signal the other side")

    def take(self) -> int:
        """How often the other side signalled since the last time; 0: it did not.  OSError as for ``signal``."""
        cdef int64_t rung = self.clear()
        if rung < 0:
            raise OSError(-rung, "cannot look for signals of the other side")
        return rung

    cdef void silence(self) noexcept:
        if self.fd >= 0 and self.owns:
            close(self.fd)
            close(self.signal_fd)
        self.fd = self.signal_fd = -1

    def __dealloc__(self):
        self.silence()


cdef class UioDoorbell(Doorbell):
    """A uio descriptor (PROTOCOL 1.8): write 1 to signal, read to take the count of interrupts.  Takes it over.

    The kernel's count goes on over opens, so the first look counts as one interrupt.
    """

    def __cinit__(self, int fd, *args):
        cdef int flags = fcntl(fd, F_GETFL)
        if flags < 0:
            raise OSError(errno, "not an open descriptor")
        fcntl(fd, F_SETFL, flags | O_NONBLOCK)
        self.fd = fd
        self.seen = -1

    cdef int ring(self) noexcept nogil:
        # 0 would mask our interrupts instead
        cdef int32_t one = 1
        while write(self.fd, &one, 4) < 0:
            if errno != EINTR:
                # EIO: rescinded; EINVAL: taken from the driver
                return -errno
        return 0

    cdef int64_t clear(self) noexcept nogil:
        # another length is EINVAL
        cdef uint32_t count = 0
        cdef int64_t rung
        cdef ssize_t n = read(self.fd, &count, 4)
        while n < 0 and errno == EINTR:
            n = read(self.fd, &count, 4)
        if n != 4:
            return -EIO if n >= 0 else 0 if errno == EAGAIN else -errno
        rung = 1 if self.seen < 0 else <int64_t>count - self.seen
        self.seen = count
        return rung & <int64_t>0xFFFFFFFF

    cdef bint unmasks(self) noexcept nogil:
        # the kernel clears the mask at every write of 1
        return True

    cdef void silence(self) noexcept:
        if self.fd >= 0:
            close(self.fd)
            self.fd = -1

    def __dealloc__(self):
        self.silence()


@cython.final
# the buffers are released in __dealloc__, not dropped before it
@cython.no_gc_clear
cdef class MonitorDoorbell(UioDoorbell):
    """Signals through the monitor page, without a system call (PROTOCOL 2.9 b); is woken as a UioDoorbell is.

    ``interrupts`` and ``monitor`` are uio maps 1 and 2; their buffers are held until the channel is closed.
    ValueError for a ``relid`` or ``monitor_id`` that has no bit there.
    """

    def __cinit__(self, int fd, interrupts, monitor, int relid, int monitor_id):
        if not 0 <= relid < 2048 * 8 or not 0 <= monitor_id < 128:
            # not taken over
            self.fd = -1
            raise ValueError(f"channel {relid} with monitor id {monitor_id} has no bit in the pages")
        try:
            PyObject_GetBuffer(interrupts, &self.interrupt_page, PyBUF_SIMPLE | PyBUF_WRITABLE)
            PyObject_GetBuffer(monitor, &self.monitor_page, PyBUF_SIMPLE | PyBUF_WRITABLE)
            if self.interrupt_page.len < 4096 or self.monitor_page.len < 4096:
                raise ValueError("the interrupt page and the monitor page have 4096 bytes each")
        except BaseException:
            self.fd = -1
            raise
        self.interrupt = <uint8_t *>self.interrupt_page.buf + 2048 + relid // 32 * 4
        self.interrupt_bit = <uint32_t>1 << (relid % 32)
        self.trigger = <uint8_t *>self.monitor_page.buf + 8 + monitor_id // 32 * 8
        self.trigger_bit = <uint32_t>1 << (monitor_id % 32)

    cdef int ring(self) noexcept nogil:
        if self.trigger == NULL:
            return -EBADF
        hv_or32(self.interrupt, self.interrupt_bit)
        # after the other: the hypervisor looks here first
        hv_or32(self.trigger, self.trigger_bit)
        return 0

    cdef bint unmasks(self) noexcept nogil:
        return False

    cdef void silence(self) noexcept:
        self.interrupt = self.trigger = NULL
        PyBuffer_Release(&self.interrupt_page)
        PyBuffer_Release(&self.monitor_page)
        UioDoorbell.silence(self)

    def __dealloc__(self):
        self.silence()
