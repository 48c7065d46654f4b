# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
# cython: freethreading_compatible=True, always_allow_keywords=False, binding=False
# SPDX-License-Identifier: Apache-2.0
"""Doorbells: how one side of a channel wakes the other (PROTOCOL 1.8, 2.9)."""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.errno cimport EAGAIN, EBADF, EINTR, EIO, EOPNOTSUPP, errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from posix.fcntl cimport F_GETFL, F_SETFL, O_NONBLOCK, fcntl
from posix.unistd cimport close, read, write

from hvring.channel.system cimport POLLIN, POLLOUT, RWF_NOWAIT, iovec, poll, pollfd, preadv2
from hvring.ring.core cimport hv_or32


cdef class Doorbell:
    """How one side of a channel wakes the other; made by transports."""

    cdef int ring(self) noexcept nogil:
        return 0

    cdef int64_t clear(self) noexcept nogil:
        return 0

    cdef bint unmasks(self) noexcept nogil:
        return False

    cdef void stir(self) noexcept:
        pass

    cdef void silence(self) noexcept:
        pass


@cython.final
cdef class EventfdDoorbell(Doorbell):
    """Two eventfds: one to wake the other side, one to be woken by.  Takes both over and closes them."""

    def __cinit__(self, int signal_fd, int wait_fd):
        self.fd = self.signal_fd = -1
        if fcntl(wait_fd, F_GETFL) < 0 or fcntl(signal_fd, F_GETFL) < 0:
            raise OSError(errno, "not an open descriptor")
        # O_NONBLOCK belongs to both sides: it is neither set, for a host that reads its eventfd with blocking reads,
        # nor relied on, for a host that takes it away.
        self.signal_fd = signal_fd
        self.fd = wait_fd

    cdef int ring(self) noexcept nogil:
        cdef uint64_t one = 1
        cdef pollfd room
        # A counter that the other side has filled up must not hold us.  One that it fills between this look and the
        # write still does, until it reads: eventfd knows no write with RWF_NOWAIT (EOPNOTSUPP), nor a second opening
        # with flags of its own, and O_NONBLOCK is the other side's to clear.
        room.fd = self.signal_fd
        room.events = POLLOUT
        if poll(&room, 1, 0) == 0:
            return 0
        while write(self.signal_fd, &one, 8) < 0:
            if errno == EAGAIN:
                return 0      # the counter is full: the other side has been woken 2^64 - 2 times already
            if errno != EINTR:
                return -errno
        return 0

    cdef int64_t clear(self) noexcept nogil:
        cdef uint64_t count = 0
        cdef iovec whole
        whole.iov_base = &count
        whole.iov_len = 8
        while preadv2(self.fd, &whole, 1, -1, RWF_NOWAIT) < 0:   # O_NONBLOCK is shared: the other side can clear it
            if errno == EAGAIN:
                return 0
            if errno == EOPNOTSUPP:      # a kernel before 5.8
                return self.clear_old()
            if errno != EINTR:
                return -errno
        return <int64_t>(count if count < <uint64_t>1 << 62 else <uint64_t>1 << 62)

    cdef int64_t clear_old(self) noexcept nogil:
        cdef pollfd rung
        cdef uint64_t count = 0
        rung.fd = self.fd
        rung.events = POLLIN
        if poll(&rung, 1, 0) <= 0 or read(self.fd, &count, 8) < 0:
            return 0
        return <int64_t>(count & <uint64_t>0x3FFFFFFF)

    cdef void stir(self) noexcept:
        cdef uint64_t one = 1
        cdef pollfd room
        room.fd = self.fd
        room.events = POLLOUT
        if poll(&room, 1, 0) > 0:     # else it is full, and readable
            write(self.fd, &one, 8)

    cdef void silence(self) noexcept:
        if self.fd >= 0:
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
        self.fd = -1
        if flags < 0:
            raise OSError(errno, "not an open descriptor")
        fcntl(fd, F_SETFL, flags | O_NONBLOCK)
        self.fd = fd
        self.seen = -1

    cdef int ring(self) noexcept nogil:
        cdef int32_t one = 1          # 0 would mask our interrupts instead
        while write(self.fd, &one, 4) < 0:
            if errno != EINTR:
                return -errno         # EIO: rescinded; EINVAL: taken from the driver
        return 0

    cdef int64_t clear(self) noexcept nogil:
        cdef uint32_t count = 0       # another length is EINVAL
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
        return True                   # the kernel clears the mask at every write of 1

    cdef void silence(self) noexcept:
        if self.fd >= 0:
            close(self.fd)
            self.fd = -1

    def __dealloc__(self):
        self.silence()


@cython.final
@cython.no_gc_clear   # the buffers are released in __dealloc__, not dropped before it
cdef class MonitorDoorbell(UioDoorbell):
    """Signals through the monitor page, without a system call (PROTOCOL 2.9 b); is woken as a UioDoorbell is.

    ``interrupts`` and ``monitor`` are uio maps 1 and 2; their buffers are held until the channel is closed.
    ValueError for a ``relid`` or ``monitor_id`` that has no bit there.
    """

    def __cinit__(self, int fd, interrupts, monitor, int relid, int monitor_id):
        if not 0 <= relid < 2048 * 8 or not 0 <= monitor_id < 128:
            self.fd = -1              # not taken over
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
        hv_or32(self.trigger, self.trigger_bit)      # after the other: the hypervisor looks here first
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
