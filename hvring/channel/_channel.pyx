# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, autotestdict=False
# cython: embedsignature=True, embedsignature.format=clinic, always_allow_keywords=False, binding=False
# cython: freethreading_compatible=True
# SPDX-License-Identifier: Apache-2.0
"""Channel: a producer, a consumer and a doorbell, in the order that loses no wake-up (PROTOCOL 1.8, 2.6-2.8)."""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.object cimport PyObject, PyTypeObject
from libc.errno cimport EAGAIN
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

from hvring.channel._doorbell cimport Doorbell
from hvring.channel._sleeper cimport GONE, RUNG, TIME_OVER, Sleeper
from hvring.channel._spinner cimport Spinner
from hvring.channel.system cimport now, now_ns
from hvring.ring._ring cimport (Claim, Packet, RingConsumer, RingProducer, ViewIterator, check_type, copy_next, corrupt,
                                find, hv_method, hv_stand_before, length_of, payload_bytes, write)
from hvring.ring.core cimport (HV_EMPTY, HV_FULL, HV_INTERRUPT_MASK, HV_MAX_LEN, HV_OK, HV_TOO_LARGE, hv_distance,
                               hv_packet, hv_rx_available, hv_rx_consume, hv_rx_look, hv_rx_mask, hv_rx_release,
                               hv_rx_unmask, hv_store_relaxed32, hv_tx_free, hv_tx_publish, hv_tx_reserve,
                               hv_tx_room_found, hv_tx_total, hv_tx_want_room, hv_unlikely)

from hvring.errors import ChannelClosedError, ChannelRescindedError, RingFullError

# A host may forget to wake a writer that waits for room (QEMU does once it drained everything, PROTOCOL 8), so
# whoever waits for room looks again this often, in seconds.
cdef double ROOM_RECHECK_SECONDS = 0.05
ROOM_RECHECK = ROOM_RECHECK_SECONDS

# A peer that died with its mask set needs no signal; look for it every so many sends.
cdef enum:
    LIFELINE_EVERY = 64

include "waiting.pxi"
include "sending.pxi"


@cython.final
cdef class Channel:
    """One open VMBus channel: send, receive, wait.  Transports make them (``hvring.transport``).

    ``memory``: the writable buffer that holds both rings of ``ring_size`` bytes at ``tx_offset`` (this side writes)
    and ``rx_offset``.  ``lifeline``: a file descriptor that becomes readable when the other side is gone; taken over.
    Without one the doorbell's own descriptor says so, by an error or hang-up.  ``on_close``: called once at the end.
    ``recheck_every``: seconds after which a sleeper looks again unasked, where the kernel may lose a wake-up by
    changing the mask itself (PROTOCOL 1.4); 0: never.  One thread (or one event loop) at a time; a blocked ``wait``
    lets others run.  ``mirrored``: behind each ring its data area is mapped once more (``hvring.ring.DoubleMapping``),
    so that what ``claim`` and ``views`` show is never a copy.  ``spin`` and ``spin_share``: what ``wait`` and ``stay``
    may spend on looking before there is a sleep.
    """

    def __cinit__(self, memory, *, Py_ssize_t ring_size, Py_ssize_t tx_offset, Py_ssize_t rx_offset,
                  Doorbell doorbell not None, int lifeline=-1, Py_ssize_t control_size=4096, types=(6, 11),
                  str name="", on_close=None, double recheck_every=0.0, bint mirrored=False):
        self.share = 0.05
        # First, because doorbell and lifeline are ours to close even if the ring is refused.
        self.sleeper = Sleeper(doorbell, lifeline)
        self.tx = RingProducer(memory, tx_offset, ring_size, control_size=control_size, mirrored=mirrored)
        self.rx = RingConsumer(memory, rx_offset, ring_size, control_size=control_size, types=types,
                               mirrored=mirrored)
        self.tx.owned = self.rx.owned = True
        self.memory = memory
        self.doorbell = doorbell
        self.name = name
        self.on_close = on_close
        self.recheck_every = recheck_every
        # The memory may be left over from an earlier opener, so we say what we want (PROTOCOL 1.7).
        hv_tx_room_found(&self.tx.ring)
        hv_store_relaxed32(self.rx.ring.control + HV_INTERRUPT_MASK, 0)

    # ------------------------------------------------------------------------------------------ sending

    # send_quick() stands before it.
    @cython.critical_section
    def send(self, payload, *, uint64_t transaction_id=0, uint16_t packet_type=6, uint16_t flags=0, timeout=0.0):
        """Send one packet.  True: the other side was signalled.

        ``timeout``: seconds to wait for room; 0: RingFullError at once, None: for as long as it takes.  A sender that
        waited may have taken the wake-up of an arriving packet: ``wait`` or ``arm`` looks before sleeping.
        Raises ChannelRescindedError, ChannelClosedError, RingFullError, PacketTooLargeError, RingCorruptError, and
        ValueError for a packet type whose header is not the one of 6 (data), 10 and 11 (completion).
        """
        check_type(packet_type)
        return send_one(self, payload, transaction_id, packet_type, flags, timeout)

    @cython.critical_section
    def send_many(self, payloads, *, uint64_t transaction_id=0, uint16_t packet_type=6, uint16_t flags=0):
        """Send as many of a sequence of packets as fit, with at most one signal; returns how many.

        The n-th packet of the call gets the transaction id ``transaction_id + n``.  PacketTooLargeError only if the
        first one can never fit; on any error nothing is sent.
        """
        cdef Py_ssize_t sent
        cdef uint64_t total
        usable(self)
        check_type(packet_type)
        sent = self.tx.put_many(payloads, transaction_id, packet_type, flags)
        total = hv_distance(self.tx.ring.own, self.tx.ring.published, self.tx.ring.size)
        sent_many(self, sent, total, hv_tx_publish(&self.tx.ring))
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
        cdef uint64_t total = 0
        cdef bint due = False
        usable(self)
        sent = self.tx.put_batch(buffer, descriptors, &due, &total)
        sent_many(self, sent, total, due | hv_tx_publish(&self.tx.ring))
        return sent

    def claim(self, Py_ssize_t length, *, uint64_t transaction_id=0, uint16_t packet_type=6, uint16_t flags=0):
        """Room for one packet, to be filled in place: write into its ``buffer``, then ``commit()``, which signals.

        Pays from about a KiB.  RingFullError when there is no room now (``want_room``).  As a context manager it
        commits at the end and aborts on an exception; nothing else can be sent meanwhile.
        """
        cdef Claim made
        usable(self)
        made = self.tx.claim(length, transaction_id=transaction_id, packet_type=packet_type, flags=flags)
        made.holder = self
        made.told = claim_committed
        return made

    def want_room(self, Py_ssize_t length) -> bool:
        """Ask to be woken once ``length`` payload bytes fit: ``wait()`` ends and ``fileno()`` gets readable then.

        True: they fit already.  There is one wish, the last one; it is over when ``wait`` or ``arm`` found the room,
        when that many bytes were sent, or by ``unwant_room``.  PacketTooLargeError when they never will fit.
        """
        cdef bint fits
        usable(self)
        fits = self.tx.want_room(length)
        self.wanted = hv_tx_total(<uint32_t>length)
        return fits

    @cython.critical_section
    def unwant_room(self) -> None:
        """Take the wish of ``want_room`` back, if there is one."""
        if self.closed:
            usable(self)
        room_found(self)

    @property
    def wants_room(self) -> bool:
        """Has the room that ``want_room`` asked for not been found yet?

        A host can forget to wake a writer (PROTOCOL §8): an event loop is to call ``arm`` again after ``ROOM_RECHECK``
        seconds while this is so, as ``wait`` does.
        """
        return self.wanted != 0

    # ------------------------------------------------------------------------------------------ receiving

    @cython.critical_section
    def recv(self):
        """The next packet, copied out, or None when there is none now.  Never blocks.

        What arrived before the other side went away can still be read.
        """
        cdef hv_packet packet
        cdef Packet p
        if self.closed:
            usable(self)
        if find(self.rx, &packet) == HV_EMPTY:
            if self.rx.room_signal:
                give_back(self)
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
        if hv_unlikely(self.closed):
            usable(self)
        if find(self.rx, &packet) == HV_EMPTY:
            if self.rx.room_signal:
                give_back(self)
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
            usable(self)
        made = self.rx.views()
        made.holder = self
        made.told = view_ended
        return made

    @cython.critical_section
    def recv_into(self, buffer):
        """Copy the next payload into ``buffer``: its length (a multiple of 8), or None when there is none now.

        ``transaction_id`` is that of this packet then.  BufferTooSmallError leaves the packet where it is.
        """
        cdef hv_packet packet
        if hv_unlikely(self.closed):
            usable(self)
        if copy_next(self.rx, buffer, &packet) == HV_EMPTY:
            if self.rx.room_signal:
                give_back(self)
            return None
        self.transaction_id = packet.transaction_id
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
            usable(self)
        try:
            count = self.rx.drain(buffer, descriptors, &self.bytes_received)
        finally:
            self.packets_received += count
            give_back(self)
        return count

    def __iter__(self):
        return self

    def __next__(self):
        packet = self.recv()
        if packet is None:
            raise StopIteration
        return packet

    # ------------------------------------------------------------------------------------------ waiting

    @cython.critical_section
    def wait(self, timeout=None) -> bool:
        """Sleep until there is something to receive: True; False when ``timeout`` seconds passed.

        After ``want_room`` it also ends, with True, when that room is there.  Raises ChannelRescindedError when the
        other side is gone and everything it sent was read, ChannelClosedError also when another thread or a signal
        handler closes this channel meanwhile.  With ``spin`` it may look for a while before it sleeps.
        """
        cdef double deadline = deadline_of(timeout)
        cdef bint came
        if self.spinner is None or self.spinner.limit == 0 or self.wanted:
            return wait_asleep(self, deadline)
        if look(self, deadline):
            return True
        came = wait_asleep(self, deadline)
        self.spinner.slept(now_ns(), came)
        return came

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
        set_spin(self, seconds, self.share)

    @property
    def spin_share(self) -> float:
        """The share of the time, above 0 and at most 1, that looks may use up in all; 0.05 at first, and up to 1 ms
        that was saved up.  Holds whatever the other side does.  ValueError."""
        return self.share

    @spin_share.setter
    def spin_share(self, double share):
        set_spin(self, self.spin, share)

    @cython.critical_section
    def stay(self, double seconds=0.001) -> bool:
        """For event loops, after draining and before ``arm``: is there something to receive, now or in a moment?

        As ``wait`` does, it looks for as long as ``spin`` and ``spin_share`` allow, for ``seconds`` at most, and never
        sleeps: others of the loop wait meanwhile.  False: go on with ``arm``; the time until the next ``mask`` counts
        as a sleep.
        """
        if self.closed:
            usable(self)
        if self.spinner is None or self.spinner.limit == 0:
            return False
        self.asleep = not look(self, now() + seconds)
        return not self.asleep

    @cython.critical_section
    def recheck(self) -> None:
        """For event loops: to be called when ``recheck_every`` seconds passed in silence, then drain and arm.

        Only counts: ``rechecks`` and ``rechecks_needed``, packets that nobody had announced, in ``stats()``.
        """
        if self.closed:
            usable(self)
        self.rechecks += 1
        if take_signals(self) == 0 and has_arrived(self):
            self.rechecks_needed += 1

    @cython.critical_section
    def arm(self) -> int:
        """For event loops, after draining and before sleeping on ``fileno()``: how many bytes there are to read.

        Where there are none, but the room that ``want_room`` asked for is there: the bytes of that room.  0: it is safe
        to sleep.  ``wants_room`` says whether the room is still to come.  Takes the wake-up that was pending, so that
        ``fileno()`` is quiet until there is something new, clears the interrupt mask, and looks again.  Raises
        ChannelRescindedError when the other side is gone.
        """
        cdef int64_t rung
        cdef bint readable, roomy
        if self.closed:
            usable(self)
        rung = take_signals(self)
        if rung < 0:
            self.rescinded = True
            usable(self)
        self.wakeups += rung > 0
        readable = arm_once(self)
        roomy = room_came(self)
        if not readable and not roomy and rung == 0:
            check_lifeline(self)
        if readable:
            return hv_rx_available(&self.rx.ring)
        return hv_tx_free(&self.tx.ring) if roomy else 0

    @cython.critical_section
    def mask(self) -> None:
        """Ask the other side not to signal new packets until the next ``arm()`` or ``wait()``."""
        if self.closed:
            usable(self)
        hv_rx_mask(&self.rx.ring)
        self.masked = True
        if self.asleep:
            self.asleep = False
            self.spinner.slept(now_ns(), hv_rx_look(&self.rx.ring) >= 0 and hv_rx_available(&self.rx.ring) != 0)

    def fileno(self) -> int:
        """A descriptor for select, poll, epoll, asyncio: readable when there may be packets, room, or an end.

        The channel's own: take it out of the selector or the loop before ``close``, after which another file may get
        the same number.
        """
        if self.closed:
            usable(self)
        return self.sleeper.descriptor()

    # ------------------------------------------------------------------------------------------ the end

    @cython.critical_section
    def close(self) -> None:
        """Close this side; the other side sees it.  Harmless when done before.

        May be called by another thread or a signal handler at any time: what waits then ends with ChannelClosedError.
        BufferError while memoryviews of claims or views are still held.
        """
        if self.closed:
            return
        # Another thread may be looking at the memory, without the GIL; what it does until its look is over comes first.
        if self.spinner is not None:
            self.spinner.stop()
        if self.closed:
            return
        if self.tx.spans or self.rx.spans:
            if self.spinner is not None:
                self.spinner.stopped = False
            raise BufferError("memoryviews into this channel's rings are still held; release them first")
        self.closed = True
        self.tx.let_go()
        self.rx.let_go()
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
