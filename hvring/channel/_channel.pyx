# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
# cython: freethreading_compatible=True, always_allow_keywords=False, binding=False
# SPDX-License-Identifier: Apache-2.0
"""Channel: a producer, a consumer and a doorbell, in the order that loses no wake-up (PROTOCOL 1.8, 2.6-2.8)."""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from cpython.object cimport PyObject, PyTypeObject
from libc.errno cimport EAGAIN, EBADF, EINTR, EIO, EOPNOTSUPP, errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from hvring.ring._ring cimport (Packet, RingConsumer, RingProducer, copy_next, corrupt, find, hv_method,
                                hv_stand_before, length_of, write)
from hvring.ring.core cimport *

from hvring.errors import (ChannelClosedError, ChannelError, ChannelRescindedError,
                           RingFullError)


cdef extern from "poll.h" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int c_poll "poll"(pollfd *fds, unsigned long n, int timeout)
    enum:
        POLLIN
        POLLOUT
        POLLERR
        POLLHUP
        POLLNVAL

cdef extern from "unistd.h" nogil:
    ssize_t c_read "read"(int fd, void *buffer, size_t n)
    ssize_t c_write "write"(int fd, const void *buffer, size_t n)
    int c_close "close"(int fd)

cdef extern from "sys/uio.h" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t preadv2(int fd, const iovec *parts, int n, long offset, int flags)
    enum:
        RWF_NOWAIT

cdef extern from "fcntl.h" nogil:
    int fcntl(int fd, int command, ...)
    enum:
        F_GETFL
        F_SETFL
        O_NONBLOCK

cdef extern from "time.h" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *t)
    enum:
        CLOCK_MONOTONIC

cdef extern from "sys/epoll.h" nogil:
    enum:
        EPOLL_CLOEXEC
        EPOLL_CTL_ADD
        EPOLLIN
        EPOLLRDHUP
    struct epoll_event:
        uint32_t events
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int op, int fd, epoll_event *event)

# A host may forget to wake a writer that waits for room (QEMU does once it drained everything, PROTOCOL 8), so a
# blocked send looks again this often, in seconds.
cdef double ROOM_RECHECK = 0.05
# A peer that died with its mask set needs no signal; look for it every so many sends.
cdef unsigned int LIFELINE_EVERY = 64


cdef inline double now() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return t.tv_sec + t.tv_nsec * 1e-9


cdef class Doorbell:
    """How one side of a channel wakes the other; made by transports."""

    cdef int ring(self) noexcept nogil:
        return 0

    cdef int64_t clear(self) noexcept nogil:
        return 0

    cdef bint unmasks(self) noexcept nogil:
        return False

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
        room.fd = self.signal_fd   # a counter that the other side has filled up must not hold us
        room.events = POLLOUT
        if c_poll(&room, 1, 0) == 0:
            return 0
        while c_write(self.signal_fd, &one, 8) < 0:
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
        if c_poll(&rung, 1, 0) <= 0 or c_read(self.fd, &count, 8) < 0:
            return 0
        return <int64_t>(count & <uint64_t>0x3FFFFFFF)

    cdef void silence(self) noexcept:
        if self.fd >= 0:
            c_close(self.fd)
            c_close(self.signal_fd)
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
        while c_write(self.fd, &one, 4) < 0:
            if errno != EINTR:
                return -errno         # EIO: rescinded; EINVAL: taken from the driver
        return 0

    cdef int64_t clear(self) noexcept nogil:
        cdef uint32_t count = 0       # another length is EINVAL
        cdef int64_t rung
        cdef ssize_t n = c_read(self.fd, &count, 4)
        while n < 0 and errno == EINTR:
            n = c_read(self.fd, &count, 4)
        if n != 4:
            return -EIO if n >= 0 else 0 if errno == EAGAIN else -errno
        rung = 1 if self.seen < 0 else <int64_t>count - self.seen
        self.seen = count
        return rung & <int64_t>0xFFFFFFFF

    cdef bint unmasks(self) noexcept nogil:
        return True                   # the kernel clears the mask at every write of 1

    cdef void silence(self) noexcept:
        if self.fd >= 0:
            c_close(self.fd)
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


cdef inline int give_back(Channel self) except -1:
    """Give the room of received packets back; wake a writer that waits for it."""
    if hv_rare(hv_rx_release(&self.rx.ring) or self.rx.room_signal):
        return self.room_made()
    return 0


cdef int no_room(Channel self, int result, object payload, uint64_t transaction_id, uint16_t packet_type,
                 uint16_t flags, object timeout) except -1:
    """The packet did not fit: wait until it is written, or raise."""
    self.full += 1
    if timeout == 0 or result == HV_TOO_LARGE:
        self.check_lifeline()
        self.tx.refuse(result)
    return self.wait_room(payload, transaction_id, packet_type, flags, timeout)


cdef inline bint send_one(Channel self, object payload, uint64_t transaction_id, uint16_t packet_type, uint16_t flags,
                          object timeout) except -1:
    cdef bint due
    cdef int result
    if hv_rare(self.closed or self.rescinded):
        self.usable()
    result = write(self.tx, payload, transaction_id, packet_type, flags)
    if hv_rare(result != HV_OK):
        no_room(self, result, payload, transaction_id, packet_type, flags, timeout)
    self.bytes_sent += hv_distance(self.tx.ring.own, self.tx.ring.published, self.tx.ring.size)
    due = hv_tx_publish(&self.tx.ring)
    if hv_rare(self.wanted):
        self.room_found()
    self.packets_sent += 1
    self.unchecked += 1
    if due:
        self.signal()
    elif hv_rare(self.unchecked >= LIFELINE_EVERY):
        self.check_lifeline()
    return due


cdef hv_method send_full


cdef object send_quick(Channel self, PyObject *const *args, Py_ssize_t count, PyObject *names):
    """send(payload) without keywords."""
    if count != 1 or names != NULL:
        return send_full(self, args, count, names)
    return send_one(self, <object>args[0], 0, 6, 0, 0.0)


send_full = hv_stand_before(<PyTypeObject *>Channel, "send", <hv_method>send_quick)


@cython.final
cdef class Channel:
    """One open VMBus channel: send, receive, wait.  Transports make them (``hvring.transport``).

    ``memory``: the writable buffer that holds both rings of ``ring_size`` bytes at ``tx_offset`` (this side writes)
    and ``rx_offset``.  ``lifeline``: a file descriptor that becomes readable when the other side is gone; taken over.
    Without one the doorbell's own descriptor says so, by an error or hang-up.  ``on_close``: called once at the end.
    ``recheck_every``: seconds after which a sleeper looks again unasked, where the kernel may lose a wake-up by
    changing the mask itself (PROTOCOL 1.4); 0: never.  One thread (or one event loop) at a time; a blocked ``wait``
    lets others run.
    """

    def __init__(self, memory, *, Py_ssize_t ring_size, Py_ssize_t tx_offset, Py_ssize_t rx_offset,
                 Doorbell doorbell not None, int lifeline=-1, Py_ssize_t control_size=4096, types=(6, 11),
                 str name="", on_close=None, double recheck_every=0.0):
        if self.doorbell is not None:
            raise ChannelError("a channel cannot be initialised twice")
        self.lifeline = lifeline   # first: it is ours to close even if the ring is refused
        self.tx = RingProducer(memory, tx_offset, ring_size, control_size=control_size)
        self.rx = RingConsumer(memory, rx_offset, ring_size, control_size=control_size, types=types)
        self.memory = memory
        self.doorbell = doorbell
        self.name = name
        self.on_close = on_close
        self.recheck_every = recheck_every
        # memory may be left over from an earlier opener: say what we want (PROTOCOL 1.7)
        hv_tx_room_found(&self.tx.ring)
        hv_store_relaxed32(self.rx.ring.control + HV_INTERRUPT_MASK, 0)

    def __cinit__(self):
        self.epoll = -1
        self.lifeline = -1

    def __dealloc__(self):
        if self.epoll >= 0:
            c_close(self.epoll)
        if self.lifeline >= 0:
            c_close(self.lifeline)

    # ------------------------------------------------------------------------------------------ inside

    cdef int usable(self) except -1:
        if self.closed:
            raise ChannelClosedError(f"channel {self.name or '?'} was closed on this side")
        if self.rescinded:
            raise ChannelRescindedError(f"the host took channel {self.name or '?'} back, or died; "
                                        "wait for a new offer and open it again")
        return 0

    cdef int check_lifeline(self) except -1:
        """Raise when the other side is gone."""
        cdef pollfd p
        self.unchecked = 0
        p.fd = self.doorbell.fd
        p.events = 0                  # errors and hang-ups come unasked
        if self.lifeline >= 0:
            p.fd = self.lifeline
            p.events = POLLIN | EPOLLRDHUP
        p.revents = 0
        if c_poll(&p, 1, 0) > 0:
            self.rescinded = True
            self.usable()
        return 0

    cdef int signal(self) except -1:
        cdef int result
        with nogil:
            result = self.doorbell.ring()
        self.signals_sent += 1
        if self.masked and self.doorbell.unmasks():
            hv_rx_mask(&self.rx.ring)
        if result < 0:
            self.rescinded = True
            self.usable()
        if self.lifeline < 0 and self.unchecked < LIFELINE_EVERY:
            self.unchecked += 1       # uio's write would have failed; the monitor page's point is to cost no call
            return 0
        return self.check_lifeline()

    cdef int release(self) except -1:
        return give_back(self)

    cdef int room_made(self) except -1:
        """Wake a writer that waits for the room that was just given back."""
        self.rx.room_signal = False
        self.room_signals_sent += 1
        return self.signal()

    cdef int poll(self, double deadline) except -1:
        """Sleep until the doorbell rings (1), the other side is gone (2), time is over (0); deadline < 0: never."""
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
            with nogil:
                n = c_poll(p, 2, milliseconds)
            if self.closed:
                self.usable()
            if n < 0:
                if errno != EINTR:
                    raise OSError(errno, "poll on a channel failed")
                PyErr_CheckSignals()
                continue
            if n == 0:
                if deadline >= 0 and now() >= deadline:
                    return 0
                continue
            if p[0].revents & (POLLERR | POLLHUP | POLLNVAL):
                return 2
            if p[0].revents:
                return 1
            return 2

    cdef int wait_room(self, object payload, uint64_t tid, uint16_t kind, uint16_t flags, object timeout) except -1:
        """The ring is full: say so in pending_send_sz, look again, sleep, until the packet is in (PROTOCOL 2.7)."""
        cdef double deadline = -1 if timeout is None else now() + <double>timeout
        cdef double until
        cdef Py_ssize_t n = memoryview(payload).nbytes
        cdef int64_t rung
        try:
            while True:
                hv_tx_want_room(&self.tx.ring, hv_tx_total(<uint32_t>n))
                if self.tx.put(payload, tid, kind, flags) == HV_OK:
                    return 0
                self.check_lifeline()
                if deadline >= 0 and now() >= deadline:
                    raise RingFullError(f"no room for {n} bytes within {timeout} s; nothing was sent")
                until = now() + ROOM_RECHECK
                if deadline >= 0:
                    until = min(until, deadline)
                if self.poll(until) == 1:
                    rung = self.doorbell.clear()
                    if rung < 0:
                        self.rescinded = True
                        self.usable()
                    self.events += rung
        finally:
            hv_tx_room_found(&self.tx.ring)

    # ------------------------------------------------------------------------------------------ sending

    @cython.critical_section   # send_quick() stands before it
    def send(self, payload, *, uint64_t transaction_id=0, uint16_t packet_type=6, uint16_t flags=0, timeout=0.0):
        """Send one packet.  True: the other side was signalled.

        ``timeout``: seconds to wait for room; 0: RingFullError at once, None: for as long as it takes.  A sender that
        waited may have taken the wake-up of an arriving packet: look with ``recv`` or ``wait`` before sleeping.
        Raises ChannelRescindedError, ChannelClosedError, RingFullError, PacketTooLargeError, RingCorruptError.
        """
        return send_one(self, payload, transaction_id, packet_type, flags, timeout)

    @cython.critical_section
    def send_many(self, payloads, *, uint64_t transaction_id=0, uint16_t packet_type=6, uint16_t flags=0):
        """Send as many of a sequence of packets as fit, with at most one signal; returns how many.

        The n-th packet of the call gets the transaction id ``transaction_id + n``.  PacketTooLargeError only if the
        first one can never fit; on any error nothing is sent.
        """
        cdef Py_ssize_t sent
        self.usable()
        sent = self.tx.put_many(payloads, transaction_id, packet_type, flags)
        self.bytes_sent += hv_distance(self.tx.ring.own, self.tx.ring.published, self.tx.ring.size)
        self.sent_many(sent, hv_tx_publish(&self.tx.ring))
        return sent

    @cython.critical_section
    def send_batch(self, buffer, descriptors):
        """Send the packets whose payloads lie in ``buffer`` where ``descriptors`` say, with at most one signal.

        Returns how many.  ``descriptors`` as ``recv_batch`` fills it: offset, length, type (0 stands for 6), flags,
        transaction id.  As many as fit are sent; the other side sees them all at once, or a quarter of the ring after
        the other.  ValueError and PacketTooLargeError only for the first row; a later one that is wrong ends the batch
        before it.
        """
        cdef Py_ssize_t sent
        cdef bint due = False
        self.usable()
        sent = self.tx.put_batch(buffer, descriptors, &due, &self.bytes_sent)
        self.sent_many(sent, due | hv_tx_publish(&self.tx.ring))
        return sent

    cdef int sent_many(self, Py_ssize_t sent, bint due) except -1:
        """What follows a batch that was published."""
        self.packets_sent += sent
        if sent and self.wanted:
            self.room_found()
        if due:
            return self.signal()
        return self.check_lifeline()

    def want_room(self, Py_ssize_t length) -> bool:
        """Ask to be woken once ``length`` payload bytes fit: ``wait()`` ends and ``fileno()`` gets readable then.

        True: they fit already.  The next packet sent takes the wish back.
        """
        cdef bint fits
        self.usable()
        fits = self.tx.want_room(length)
        self.wanted = hv_tx_total(<uint32_t>length)
        return fits

    cdef int room_came(self) except -1:
        """Is there the room now that want_room asked for?"""
        cdef int result
        if self.wanted == 0:
            return False
        result = hv_tx_reserve(&self.tx.ring, self.wanted)
        if result < 0:
            corrupt(result)
        if result != HV_OK:
            return False
        self.room_found()
        return True

    cdef void room_found(self) noexcept:
        self.wanted = 0
        hv_tx_room_found(&self.tx.ring)

    # ------------------------------------------------------------------------------------------ receiving

    @cython.critical_section
    def recv(self):
        """The next packet, copied out, or None when there is none now.  Never blocks.

        What arrived before the other side went away can still be read.
        """
        cdef hv_packet packet
        cdef Packet p
        if self.closed:
            self.usable()
        if find(self.rx, &packet) == HV_EMPTY:
            if self.rx.room_signal:
                self.release()
            return None
        p = self.rx.take(&packet)
        self.packets_received += 1
        self.bytes_received += packet.total
        give_back(self)
        return p

    @cython.critical_section
    def recv_into(self, buffer):
        """Copy the next payload into ``buffer``: its length (a multiple of 8), or None when there is none now.

        BufferTooSmallError leaves the packet where it is.
        """
        cdef hv_packet packet
        if hv_rare(self.closed):
            self.usable()
        if copy_next(self.rx, buffer, &packet) == HV_EMPTY:
            if self.rx.room_signal:
                self.release()
            return None
        self.packets_received += 1
        self.bytes_received += packet.total
        give_back(self)
        return length_of(self.rx, &packet)

    @cython.critical_section
    def recv_batch(self, buffer, descriptors):
        """Drain packets into ``buffer`` (uint8) and say in ``descriptors`` what is where; returns how many.

        ``descriptors`` is a C-contiguous array of ``hvring.vmbus.arrays.descriptor_dtype()`` (24 bytes each: offset u4,
        length u4, type u2, flags u2, reserved u4, transaction_id u8).  Payloads follow one another in ``buffer``.  Ends
        when the ring is empty, the descriptors are used up or the next payload does not fit behind the others;
        BufferTooSmallError if not even the first fits.  The room is given back once, or per quarter of the ring.
        """
        cdef Py_ssize_t count = 0
        if self.closed:
            self.usable()
        try:
            count = self.rx.drain(buffer, descriptors, &self.bytes_received)
        finally:
            self.packets_received += count
            self.release()
        return count

    def __iter__(self):
        return self

    def __next__(self):
        packet = self.recv()
        if packet is None:
            raise StopIteration
        return packet

    # ------------------------------------------------------------------------------------------ waiting

    def wait(self, timeout=None) -> bool:
        """Sleep until there is something to receive: True; False when ``timeout`` seconds passed.

        After ``want_room`` it also ends, with True, when that room is there.  Raises ChannelRescindedError when the
        other side is gone and everything it sent was read.
        """
        cdef double deadline = -1 if timeout is None else now() + <double>timeout
        cdef double until
        cdef int64_t rung
        cdef int why
        while True:
            if self.arm_once():
                hv_rx_mask(&self.rx.ring)
                self.masked = True
                return True
            if self.room_came():
                return True
            self.waits += 1
            until = deadline
            if self.recheck_every > 0:
                until = now() + self.recheck_every
                if deadline >= 0:
                    until = min(until, deadline)
            why = self.poll(until)
            if why == 0:
                if until == deadline:
                    return False
                self.recheck()
                continue
            rung = -1 if why == 2 else self.doorbell.clear()
            if rung < 0:
                self.rescinded = True     # once everything is read, the next look raises
                continue
            self.events += rung
            self.wakeups += 1

    def recheck(self) -> None:
        """For event loops: to be called when ``recheck_every`` seconds passed in silence, then drain and arm.

        Only counts: ``rechecks`` and ``rechecks_needed``, packets that nobody had announced, in ``stats()``.
        """
        cdef int64_t rung
        if self.closed:
            self.usable()
        self.rechecks += 1
        rung = self.doorbell.clear()
        if rung > 0:
            self.events += rung
        elif rung == 0 and self.rx.available:
            self.rechecks_needed += 1

    cdef int arm_once(self) except -1:
        """Unmask, fence, look again: is there something to read?"""
        cdef int result
        self.masked = False
        if self.closed:
            self.usable()
        if self.rescinded and not self.rx.available:
            self.usable()
        self.armed += 1
        result = hv_rx_unmask(&self.rx.ring)
        if result < 0:
            corrupt(result)
        return result == HV_OK

    @cython.critical_section
    def arm(self) -> int:
        """For event loops, after draining and before sleeping on ``fileno()``: bytes readable now; 0: safe to sleep.

        Takes the wake-up that was pending, so that ``fileno()`` is quiet until there is something new, clears the
        interrupt mask, and looks again.  Raises ChannelRescindedError when the other side is gone.
        """
        cdef int64_t rung = self.doorbell.clear()
        if rung < 0:
            self.rescinded = True
            self.usable()
        self.events += rung
        self.wakeups += rung > 0
        if self.arm_once():
            return hv_rx_available(&self.rx.ring)
        if rung == 0:
            self.check_lifeline()
        return 0

    def mask(self) -> None:
        """Ask the other side not to signal new packets until the next ``arm()`` or ``wait()``."""
        if self.closed:
            self.usable()
        hv_rx_mask(&self.rx.ring)
        self.masked = True

    def fileno(self) -> int:
        """A descriptor for select, poll, epoll, asyncio: readable when there may be packets, room, or an end."""
        cdef epoll_event event
        if self.closed:
            self.usable()
        if self.lifeline < 0:
            return self.doorbell.fd
        if self.epoll < 0:
            self.epoll = epoll_create1(EPOLL_CLOEXEC)
            if self.epoll < 0:
                raise OSError(errno, "epoll_create1 failed")
            event.events = EPOLLIN
            epoll_ctl(self.epoll, EPOLL_CTL_ADD, self.doorbell.fd, &event)
            event.events = EPOLLIN | EPOLLRDHUP
            epoll_ctl(self.epoll, EPOLL_CTL_ADD, self.lifeline, &event)
        return self.epoll

    # ------------------------------------------------------------------------------------------ the end

    def close(self) -> None:
        """Close this side; the other side sees it.  Harmless when done before.

        BufferError while memoryviews of claims or views are still held.
        """
        if self.closed or self.doorbell is None:
            return
        self.tx.close()
        self.rx.close()
        self.closed = True
        if self.epoll >= 0:
            c_close(self.epoll)
            self.epoll = -1
        self.doorbell.silence()
        if self.lifeline >= 0:
            c_close(self.lifeline)
            self.lifeline = -1
        self.memory = None
        if self.on_close is not None:
            done, self.on_close = self.on_close, None
            done()

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        self.close()

    def stats(self) -> dict:
        """Counters since the channel was opened; bytes are ring bytes, descriptors and trailers included."""
        return {
            "packets_sent": self.packets_sent,
            "packets_received": self.packets_received,
            "bytes_sent": self.bytes_sent,
            "bytes_received": self.bytes_received,
            "packets_skipped": self.rx.skipped,
            "signals_sent": self.signals_sent,
            "room_signals_sent": self.room_signals_sent,
            "signals_received": self.events,
            "wakeups": self.wakeups,
            "waits": self.waits,
            "armed": self.armed,
            "ring_full": self.full,
            "rechecks": self.rechecks,
            "rechecks_needed": self.rechecks_needed,
        }

    def __repr__(self):
        state = "closed" if self.closed else "rescinded" if self.rescinded else "open"
        return f"<Channel {self.name or '?'} {state}>"
