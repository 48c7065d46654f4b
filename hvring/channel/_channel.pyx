# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
# cython: freethreading_compatible=True, always_allow_keywords=False, binding=False
# SPDX-License-Identifier: Apache-2.0
"""Channel: a producer, a consumer and a doorbell, in the order that loses no wake-up (PROTOCOL 1.8, 2.6-2.8)."""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.object cimport PyObject, PyTypeObject
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

from hvring.channel._doorbell cimport Doorbell
from hvring.channel._sleeper cimport CLOSED, GONE, RUNG, TIME_OVER, Sleeper
from hvring.channel._spinner cimport Spinner
from hvring.channel.system cimport now, now_ns
from hvring.ring._ring cimport (Claim, Packet, RingConsumer, RingProducer, copy_next, corrupt, find, hv_method,
                                hv_stand_before, length_of, payload_bytes, write, ViewIterator)
from hvring.ring.core cimport *

from hvring.errors import (ChannelClosedError, ChannelError, ChannelRescindedError,
                           RingFullError)


# A host may forget to wake a writer that waits for room (QEMU does once it drained everything, PROTOCOL 8), so a
# blocked send looks again this often, in seconds.
cdef double ROOM_RECHECK = 0.05
# A peer that died with its mask set needs no signal; look for it every so many sends.
cdef unsigned int LIFELINE_EVERY = 64


cdef inline double deadline_of(object timeout) except? -2:
    """When a wait of so many seconds is over, on the clock of now(); -1: never."""
    return -1 if timeout is None else now() + max(<double>timeout, 0.0)


cdef inline int give_back(Channel self) except -1:
    """Give the room of received packets back; wake a writer that waits for it."""
    if hv_rare(hv_rx_release(&self.rx.ring) or self.rx.room_signal):
        return self.room_made()
    return 0


cdef inline void quiet(Channel self) noexcept nogil:
    """Mask interrupts if they are not: a store takes the line from the other side."""
    if not self.masked:
        hv_rx_mask(&self.rx.ring)
        self.masked = True


cdef int no_room(Channel self, int result, object payload, uint64_t transaction_id, uint16_t packet_type,
                 uint16_t flags, object timeout) except -1:
    """The packet did not fit: wait until it is written, or raise."""
    self.full += 1
    if timeout == 0 or result == HV_TOO_LARGE:
        self.check_lifeline()
        self.tx.refuse(result)
    return self.wait_room(payload, transaction_id, packet_type, flags, timeout)


cdef inline int published(Channel self, bint due) except -1:
    """What follows one packet that the other side can see."""
    if hv_rare(self.wanted):
        self.room_found()
    self.packets_sent += 1
    self.unchecked += 1
    if due:
        self.signal()
    elif hv_rare(self.unchecked >= LIFELINE_EVERY):
        self.check_lifeline()
    return 0


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
    published(self, due)
    return due


cdef int claim_committed(object holder, uint32_t total, bint due) except -1:
    cdef Channel self = <Channel>holder
    self.bytes_sent += total
    return published(self, due)


cdef int view_ended(object holder, uint32_t total, bint due) except -1:
    cdef Channel self = <Channel>holder
    self.bytes_received += total
    self.packets_received += total != 0
    return self.room_made() if self.rx.room_signal else 0


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
    lets others run.  ``mirrored``: behind each ring its data area is mapped once more (``hvring.ring.DoubleMapping``),
    so that what ``claim`` and ``views`` show is never a copy.  ``spin`` and ``spin_share``: what ``wait`` may spend on
    looking before it sleeps.
    """

    def __init__(self, memory, *, Py_ssize_t ring_size, Py_ssize_t tx_offset, Py_ssize_t rx_offset,
                 Doorbell doorbell not None, int lifeline=-1, Py_ssize_t control_size=4096, types=(6, 11),
                 str name="", on_close=None, double recheck_every=0.0, bint mirrored=False):
        if self.sleeper is not None:
            raise ChannelError("a channel cannot be initialised twice")
        self.sleeper = Sleeper(doorbell, lifeline)   # first: the lifeline is ours to close even if the ring is refused
        self.tx = RingProducer(memory, tx_offset, ring_size, control_size=control_size, mirrored=mirrored)
        self.rx = RingConsumer(memory, rx_offset, ring_size, control_size=control_size, types=types,
                               mirrored=mirrored)
        self.memory = memory
        self.doorbell = doorbell
        self.name = name
        self.on_close = on_close
        self.recheck_every = recheck_every
        # memory may be left over from an earlier opener: say what we want (PROTOCOL 1.7)
        hv_tx_room_found(&self.tx.ring)
        hv_store_relaxed32(self.rx.ring.control + HV_INTERRUPT_MASK, 0)

    def __cinit__(self):
        self.share = 0.05

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
        self.unchecked = 0
        if self.sleeper.gone():
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
        if self.seen_alive:           # the sleep before this signal would have said so: an answer costs one call less
            self.seen_alive = False
            return 0
        if self.sleeper.lifeline < 0 and self.unchecked < LIFELINE_EVERY:
            self.unchecked += 1       # uio's write would have failed; the monitor page's point is to cost no call
            return 0
        return self.check_lifeline()

    cdef int release(self) except -1:
        return give_back(self)

    cdef int room_made(self) except -1:
        """Wake a writer that waits for the room that was just given back, if there still is one."""
        self.rx.room_signal = False
        self.room_signals_sent += 1
        try:
            return self.signal()
        except ChannelRescindedError:
            return 0    # what was received with this room is not to be lost; who waits for more is told

    cdef int sleep(self, double deadline) except -1:
        """Sleep, and take what was rung: RUNG, GONE or TIME_OVER."""
        cdef int why = self.sleeper.sleep(deadline)
        self.seen_alive = why == RUNG and self.sleeper.alive
        if why == CLOSED:
            self.usable()
        if why == RUNG and self.take_signals() < 0 or why == GONE:
            self.rescinded = True
            return GONE
        return why

    cdef int64_t take_signals(self) noexcept:
        """How often the other side rang, or -errno."""
        cdef int64_t rung = self.doorbell.clear()
        if rung > 0:    # the other side may have written any number into its eventfd
            self.events = min(self.events + <uint64_t>rung, <uint64_t>1 << 62)
        return rung

    cdef int wait_room(self, object payload, uint64_t tid, uint16_t kind, uint16_t flags, object timeout) except -1:
        """The ring is full: say so in pending_send_sz, look again, sleep, until the packet is in (PROTOCOL 2.7)."""
        cdef double deadline = deadline_of(timeout)
        cdef double until
        cdef Py_ssize_t n = memoryview(payload).nbytes
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
                if self.sleep(until) == GONE:
                    self.usable()
                PyErr_CheckSignals()    # poll is not interrupted while the doorbell rings and rings
        finally:
            if not self.closed:   # by another thread, while we slept: the memory may be gone
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

    def claim(self, Py_ssize_t length, *, uint64_t transaction_id=0, uint16_t packet_type=6, uint16_t flags=0):
        """Room for one packet, to be filled in place: write into its ``buffer``, then ``commit()``, which signals.

        Pays from about a KiB.  RingFullError when there is no room now (``want_room``).  As a context manager it
        commits at the end and aborts on an exception; nothing else can be sent meanwhile.
        """
        cdef Claim made
        self.usable()
        made = self.tx.claim(length, transaction_id=transaction_id, packet_type=packet_type, flags=flags)
        made.holder = self
        made.told = claim_committed
        return made

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

        True: they fit already.  The next packet sent takes the wish back.  PacketTooLargeError when they never will.
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
    def recv_bytes(self):
        """The next payload alone, as bytes, or None when there is none now."""
        cdef hv_packet packet
        cdef bytes payload
        if hv_rare(self.closed):
            self.usable()
        if find(self.rx, &packet) == HV_EMPTY:
            if self.rx.room_signal:
                self.release()
            return None
        payload = payload_bytes(self.rx, &packet)
        hv_rx_consume(&self.rx.ring, &packet)
        self.packets_received += 1
        self.bytes_received += packet.total
        give_back(self)
        return payload

    def views(self):
        """Iterate over what arrived without copying it; for another side that is trusted not to change it meanwhile.

        A PacketView is a read-only buffer until the next step.  Pays from about a KiB.
        """
        cdef ViewIterator made
        if self.closed:
            self.usable()
        made = self.rx.views()
        made.holder = self
        made.told = view_ended
        return made

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
        other side is gone and everything it sent was read.  With ``spin`` it may look for a while before it sleeps.
        """
        cdef double deadline = deadline_of(timeout)
        cdef bint came
        if self.spinner is None or self.spinner.limit == 0 or self.wanted:
            return self.wait_asleep(deadline)
        if self.look(deadline):
            return True
        came = self.wait_asleep(deadline)
        self.spinner.slept(now_ns(), came)
        return came

    cdef bint look(self, double deadline) except -1:
        """Look for a packet for as long as it may pay, with interrupts masked: the other side need not signal it."""
        cdef int64_t budget
        if self.closed or self.rescinded:
            return False                       # arm_once says so
        if self.arrived():
            return True
        budget = self.spinner.budget(now_ns())
        if deadline >= 0:
            budget = <int64_t>min(<double>budget, (deadline - now()) * 1e9)     # a late deadline is no integer
        if budget <= 0:
            return False
        quiet(self)
        with nogil:
            self.spinner.look(&self.rx.ring, budget)
        if not self.closed and self.arrived():
            return True
        PyErr_CheckSignals()                   # poll would not be interrupted by one that came meanwhile
        return False

    cdef bint arrived(self) except -1:
        """Is there something to read?  Does not ask for signals as arm_once does."""
        cdef int result = hv_rx_look(&self.rx.ring)
        if result < 0:
            corrupt(result)
        if hv_rx_available(&self.rx.ring) == 0:
            return False
        quiet(self)
        return True

    cdef bint wait_asleep(self, double deadline) except -1:
        """Ask for signals, look, sleep, until something came or time is over."""
        cdef double until
        cdef int why = TIME_OVER
        while True:
            if self.arm_once():
                quiet(self)
                return True
            if self.room_came():
                return True
            if why == RUNG:               # for nothing; a doorbell that never stops cannot keep us here
                PyErr_CheckSignals()
                if deadline >= 0 and now() >= deadline:
                    return False
            self.waits += 1
            until = deadline
            if self.recheck_every > 0:
                until = now() + self.recheck_every
                if deadline >= 0:
                    until = min(until, deadline)
            why = self.sleep(until)
            if why == RUNG:
                self.wakeups += 1
                if self.arrived():
                    return True
            elif why == TIME_OVER:
                if until == deadline:
                    return False
                self.recheck()

    @property
    def spin(self) -> float:
        """Seconds that ``wait`` may look for a packet before it sleeps; at most 0.001; 0.0: not at all, as at first.

        A packet that is seen so costs no signal, no sleep and no wake-up.  How long a look really is follows the recent
        delays: nothing after an idle time.  Stays 0.0 when it is set by a thread that may run on one processor only,
        where the other side may need that one: set it before you tie a thread to a processor of its own.  ValueError.
        """
        return 0.0 if self.spinner is None else self.spinner.limit * 1e-9

    @spin.setter
    def spin(self, double seconds):
        self.set_spin(seconds, self.share)

    @property
    def spin_share(self) -> float:
        """The share of the time, above 0 and at most 1, that looks may use up in all; 0.05 at first, and up to 1 ms
        that was saved up.  Holds whatever the other side does.  ValueError."""
        return self.share

    @spin_share.setter
    def spin_share(self, double share):
        self.set_spin(self.spin, share)

    cdef int set_spin(self, double seconds, double share) except -1:
        cdef Spinner spinner = Spinner() if self.spinner is None else self.spinner
        spinner.set(<int64_t>(seconds * 1e9 + 0.5) if 0 <= seconds <= 1 else -1, share, now_ns())
        self.spinner = spinner
        self.share = share
        return 0

    def recheck(self) -> None:
        """For event loops: to be called when ``recheck_every`` seconds passed in silence, then drain and arm.

        Only counts: ``rechecks`` and ``rechecks_needed``, packets that nobody had announced, in ``stats()``.
        """
        if self.closed:
            self.usable()
        self.rechecks += 1
        if self.take_signals() == 0 and self.rx.available:
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
        cdef int64_t rung = self.take_signals()
        if rung < 0:
            self.rescinded = True
            self.usable()
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
        if self.closed:
            self.usable()
        return self.sleeper.descriptor()

    # ------------------------------------------------------------------------------------------ the end

    def close(self) -> None:
        """Close this side; the other side sees it.  Harmless when done before.

        BufferError while memoryviews of claims or views are still held.
        """
        if self.closed or self.doorbell is None:
            return
        if self.spinner is not None:
            self.spinner.stop()    # another thread may be looking at the memory, without the GIL
        try:
            self.tx.close()
            self.rx.close()
        except BufferError:
            if self.spinner is not None:
                self.spinner.stopped = False
            raise
        self.closed = True
        if self.sleeper.asleep:
            self.doorbell.stir()
        self.doorbell.silence()
        self.sleeper.close()
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
            "spins": 0 if self.spinner is None else self.spinner.spins,
            "spins_won": 0 if self.spinner is None else self.spinner.won,
            "spun_ns": 0 if self.spinner is None else self.spinner.spun,
        }

    def __repr__(self):
        state = "closed" if self.closed else "rescinded" if self.rescinded else "open"
        return f"<Channel {self.name or '?'} {state}>"
