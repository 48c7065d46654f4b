# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
# cython: freethreading_compatible=True, always_allow_keywords=False, binding=False
# SPDX-License-Identifier: Apache-2.0
"""RingProducer and RingConsumer: the two ends of a VMBus ring as Python types (PROTOCOL 2)."""

cimport cython
from cpython.buffer cimport (PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release,
                             PyObject_GetBuffer)
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.list cimport PyList_GET_SIZE
from cpython.memoryview cimport PyMemoryView_FromObject
from cpython.object cimport PyObject, PyTypeObject
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t

from hvring.ring.core cimport *

from hvring.errors import (BufferTooSmallError, PacketTooLargeError, RingCorruptError, RingError, RingFullError)

CONTROL_SIZE = 4096
IN_BAND = 6
COMPLETION = 11

# What a peer can lie about, in one place: code -> (stable name, words).  tests/ring/test_corruption.py tells each lie.
LIES = {
    HV_BAD_WRITE_RANGE: ("write-range", "write_index points outside the data area"),
    HV_BAD_WRITE_ALIGN: ("write-align", "write_index is not a multiple of 8"),
    HV_BAD_WRITE_BACK: ("write-back", "write_index moved backwards: published packets were withdrawn"),
    HV_BAD_READ_RANGE: ("read-range", "read_index points outside the data area"),
    HV_BAD_READ_ALIGN: ("read-align", "read_index is not a multiple of 8"),
    HV_BAD_READ_BACK: ("read-back", "read_index moved backwards or past what was written"),
    HV_BAD_OWN_READ: ("own-read", "our own read_index was overwritten"),
    HV_BAD_OWN_WRITE: ("own-write", "our own write_index was overwritten"),
    HV_BAD_FRAGMENT: ("fragment", "fewer bytes are published than the smallest packet has"),
    HV_BAD_OFFSET8: ("offset8", "a packet's payload begins inside its descriptor (offset8 < 2)"),
    HV_BAD_LEN8: ("len8", "a packet ends before its payload begins (len8 < offset8)"),
    HV_BAD_LENGTH: ("length", "a packet is longer than what is published"),
}


cdef int corrupt(int code) except -100:
    name, words = LIES[code]
    error = RingCorruptError(f"{words}; close the channel and open it again")
    error.lie = name
    raise error


cdef int need_rows(const Py_buffer *table) except -1:
    if table.len % sizeof(hv_row) or (table.len and <uintptr_t>table.buf & 7):   # an empty one may lie anywhere
        raise ValueError("descriptors must be an array of hvring.vmbus.arrays.descriptor_dtype()")
    return 0


cdef int need_open(bint held) except -1:
    if not held:
        raise RingError("this ring was closed")
    return 0


cdef int attach(hv_ring *ring, Py_buffer *view, object memory, Py_ssize_t offset, object size,
                Py_ssize_t control_size, bint producer) except -1:
    """Hold `memory` and take up one end of the ring at `offset` in it."""
    cdef Py_ssize_t length
    cdef uint8_t *start
    cdef int result
    PyObject_GetBuffer(memory, view, PyBUF_SIMPLE | PyBUF_WRITABLE)
    try:
        if offset < 0 or offset > view.len:
            raise ValueError(f"offset {offset} is outside the memory of {view.len} bytes")
        length = view.len - offset if size is None else size
        if length > view.len - offset:
            raise ValueError(f"a ring of {length} bytes at {offset} does not fit into {view.len} bytes")
        if control_size < 4096 or control_size & 7:
            raise ValueError(f"a control page of {control_size} bytes is not possible")
        if length < control_size + 64 or length & 7 or length > 0x40000000:
            raise ValueError(f"a ring cannot have {length} bytes: a control page of {control_size}, at least 64 bytes "
                             "of data, a multiple of 8, at most 1 GiB")
        start = <uint8_t *>view.buf + offset
        if <uintptr_t>start & 7:
            raise ValueError("the ring does not begin at a multiple of 8 in memory")
        result = hv_attach(ring, start, <uint32_t>control_size, <uint32_t>length, producer)
        if result != HV_OK:
            corrupt(result)
    except BaseException:
        PyBuffer_Release(view)
        raise
    return 0


@cython.final
@cython.freelist(64)
@cython.no_gc
cdef class Packet:
    """One packet, copied out of the ring.  ``payload`` is bytes, its length a multiple of 8 (PROTOCOL §2.2)."""

    def __repr__(self):
        return (f"Packet(type={self.type}, flags={self.flags}, transaction_id={self.transaction_id:#x}, "
                f"payload=<{len(self.payload)} bytes>)")

    def __eq__(self, other):
        cdef Packet o
        if not isinstance(other, Packet):
            return NotImplemented
        o = <Packet>other
        return (self.type == o.type and self.flags == o.flags and self.transaction_id == o.transaction_id
                and self.payload == o.payload)

    __hash__ = None


@cython.final
@cython.freelist(8)
cdef class Span:
    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.start, self.length, self.readonly, flags)
        self.spans[0] += 1

    def __releasebuffer__(self, Py_buffer *buffer):
        self.spans[0] -= 1


cdef Span span(object owner, int *spans, uint8_t *start, Py_ssize_t length, bint readonly):
    cdef Span s = Span.__new__(Span)
    s.owner = owner
    s.spans = spans
    s.start = start
    s.length = length
    s.readonly = readonly
    return s


@cython.final
@cython.freelist(8)
@cython.no_gc
cdef class PacketView:
    """One packet seen in place, until the iterator's next step.

    It is a read-only buffer: ``memoryview(view)``, ``file.write(view)``, ``numpy.frombuffer(view, ...)``, all of which
    must be over by the next step.  ``payload``, a memoryview, ends with that step by itself; it costs as much as the
    rest of the step, so take the view itself where a buffer will do.
    """

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        if self.consumer is None:
            raise BufferError("this view was released by the iterator's next step")
        PyBuffer_FillInfo(buffer, self, self.start, self.length, True, flags)
        self.consumer.spans += 1

    def __releasebuffer__(self, Py_buffer *buffer):
        self.consumer.spans -= 1

    def __len__(self):
        return self.length

    @property
    def payload(self):
        """A read-only memoryview; ValueError once the iterator went on."""
        if self.memory is None:
            if self.consumer is None:
                raise ValueError("this view was released by the iterator's next step")
            self.memory = PyMemoryView_FromObject(span(self.consumer, &self.consumer.spans, self.start, self.length,
                                                       True))
        return self.memory

    cdef int end(self) except -1:
        if self.memory is not None:
            self.memory.release()
        if hv_rare(self.consumer.spans):
            raise BufferError("slices of the last view are still held; release them before the next step")
        self.consumer = None
        self.copy = None
        return 0

    def __repr__(self):
        return f"PacketView(type={self.type}, flags={self.flags}, transaction_id={self.transaction_id:#x})"


@cython.final
cdef class Claim:
    """Room in the ring to be filled in place: write into ``buffer``, then ``commit()`` or ``abort()``.

    As a context manager it commits at the end, aborts on an exception.  ``signal`` is the result of the commit.
    """

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if self.open:
            if kind is None:
                self.commit()
            else:
                self.abort()

    cdef int finish(self) except -1:
        if not self.open:
            raise RingError("this claim was already committed or aborted")
        need_open(self.producer.held)
        self.buffer.release()
        if self.producer.spans:
            raise BufferError("slices of this claim's buffer are still held; release them, then commit or abort again")
        self.open = False
        self.producer.claimed = False
        return 0

    def commit(self, length=None) -> bool:
        """Publish the packet, cut to ``length`` bytes if given.  True: the other side must be signalled.

        Raises BufferError while slices of ``buffer`` are held, RingError when the claim is over.
        """
        cdef uint32_t n = self.length
        cdef hv_ring *ring = &self.producer.ring
        if length is not None:
            if not 0 <= length <= self.length:
                raise ValueError(f"cannot commit {length} of {self.length} claimed bytes")
            n = length
        self.finish()
        if self.staging is not None:
            hv_copy_in(ring, hv_advance(ring.own, HV_DESCRIPTOR, ring.size),
                       <const uint8_t *>PyByteArray_AS_STRING(self.staging), n)
        hv_tx_frame(ring, n, self.transaction_id, self.packet_type, self.flags)
        self.signal = hv_tx_publish(ring)
        return self.signal

    def abort(self) -> None:
        """Give the room back; nothing becomes visible."""
        self.finish()


cdef int write_buffer(RingProducer self, object payload, uint64_t transaction_id, uint16_t packet_type,
                      uint16_t flags) except -100:
    """write() for what is neither bytes nor bytearray; the buffer protocol may run Python code, so look after it."""
    cdef Py_buffer view
    cdef int result
    PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
    try:
        if not self.held or self.claimed:
            unusable(self)
        result = hv_tx_write(&self.ring, <const uint8_t *>view.buf, view.len, transaction_id, packet_type, flags)
    finally:
        PyBuffer_Release(&view)
    return result


cdef int unusable(RingProducer self) except -100:
    raise RingError("a claim is open on this ring: commit or abort it first" if self.claimed
                    else "this ring was closed")


@cython.final
@cython.no_gc_clear   # the buffer is released in __dealloc__, not dropped before it
cdef class RingProducer:
    """The writing end of one ring in ``memory[offset:offset + size]``: control page, then data.

    ``memory`` is any writable buffer that both sides share; ``size`` defaults to the rest of it; ``control_size`` is
    the page size of the system that laid the ring out (PROTOCOL §1.6).  Raises ValueError for impossible sizes and
    RingCorruptError when the indices found there are impossible.  One thread at a time.
    """

    def __cinit__(self, memory, Py_ssize_t offset=0, size=None, *, Py_ssize_t control_size=4096):
        attach(&self.ring, &self.memory, memory, offset, size, control_size, True)
        self.held = True
        # the reader may only wake a blocked writer that says it knows how to wait (PROTOCOL 2.1)
        hv_store_relaxed32(self.ring.control + HV_FEATURE_BITS,
                           hv_load_relaxed32(self.ring.control + HV_FEATURE_BITS) | HV_FEATURE_PENDING_SEND_SZ)

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.memory)

    cdef int put(self, object payload, uint64_t transaction_id, uint16_t packet_type, uint16_t flags) except -100:
        return write(self, payload, transaction_id, packet_type, flags)

    cdef Py_ssize_t put_many(self, object payloads, uint64_t transaction_id, uint16_t packet_type,
                             uint16_t flags) except -1:
        """Write as many as fit; an error, or a first one that does not fit, takes all of them back."""
        cdef Py_ssize_t sent = 0
        cdef int result = HV_OK
        try:
            for payload in payloads:
                result = write(self, payload, transaction_id + <uint64_t>sent, packet_type, flags)
                if result != HV_OK:
                    break
                sent += 1
            if result == HV_TOO_LARGE and sent == 0:
                self.refuse(result)
        except BaseException:
            self.ring.own = self.ring.published
            raise
        return sent

    cdef int refuse(self, int result) except -1:
        if result == HV_TOO_LARGE:
            raise PacketTooLargeError(f"the packet can never fit into this ring: at most {self.max_payload} bytes do")
        raise RingFullError("no room in the ring; nothing was written")

    @cython.critical_section   # send_quick() stands before it
    def send(self, payload, *, uint64_t transaction_id=0, uint16_t packet_type=6, uint16_t flags=0):
        """Publish one packet.  True: the other side must be signalled (PROTOCOL §2.6).

        RingFullError: no room, nothing written.  RingCorruptError: the reader broke the rules.
        """
        cdef int result = self.put(payload, transaction_id, packet_type, flags)
        if result != HV_OK:
            self.refuse(result)
        return hv_tx_publish(&self.ring)

    @cython.critical_section
    def send_many(self, payloads, *, uint64_t transaction_id=0, uint16_t packet_type=6, uint16_t flags=0):
        """Publish a sequence of packets as one: as many as fit.  (how many, must signal).

        The n-th packet of the call gets the transaction id ``transaction_id + n``.  PacketTooLargeError only if the
        first one can never fit; on any error nothing is sent.
        """
        cdef Py_ssize_t sent = self.put_many(payloads, transaction_id, packet_type, flags)
        return sent, hv_tx_publish(&self.ring)

    cdef Py_ssize_t put_batch(self, object buffer, object descriptors, bint *due, uint64_t *total) except -1:
        """send_batch() but for the last publication; `due`: an earlier one must be signalled; `total`: ring bytes."""
        cdef Py_buffer data, table
        cdef Py_ssize_t count
        PyObject_GetBuffer(buffer, &data, PyBUF_SIMPLE)
        try:
            PyObject_GetBuffer(descriptors, &table, PyBUF_SIMPLE)
            try:
                count = write_rows(self, <const uint8_t *>data.buf, data.len, &table, due, total)
            finally:
                PyBuffer_Release(&table)
        finally:
            PyBuffer_Release(&data)
        return count

    @cython.critical_section
    def send_batch(self, buffer, descriptors):
        """Publish the packets whose payloads lie in ``buffer`` where ``descriptors`` say.  (how many, must signal).

        ``descriptors`` is a C-contiguous array of ``hvring.vmbus.arrays.descriptor_dtype()``, as ``recv_batch`` fills
        it; type 0 stands for in-band data (6).  As many as fit are sent; the reader sees them all at once, or a quarter
        of the ring after the other, so that it can read while we still write.  ValueError and PacketTooLargeError only
        for the first row; a later one that is wrong ends the batch before it.
        """
        cdef bint due = False
        cdef uint64_t total = 0
        cdef Py_ssize_t count = self.put_batch(buffer, descriptors, &due, &total)
        return count, due | hv_tx_publish(&self.ring)

    @cython.critical_section
    def claim(self, Py_ssize_t length, *, uint64_t transaction_id=0, uint16_t packet_type=6, uint16_t flags=0):
        """Reserve a packet of ``length`` payload bytes to be filled in place.  RingFullError when there is no room."""
        cdef Claim c
        cdef int result
        cdef uint32_t start
        if not self.held or self.claimed:
            raise RingError("only one claim can be open at a time" if self.claimed else "this ring was closed")
        if length < 0:
            raise ValueError("a packet cannot have a negative length")
        result = HV_TOO_LARGE
        if length <= HV_MAX_LEN - HV_DESCRIPTOR:
            result = hv_tx_reserve(&self.ring, hv_tx_total(<uint32_t>length))
        if result < 0:
            corrupt(result)
        if result != HV_OK:
            self.refuse(result)
        c = Claim.__new__(Claim)
        c.producer = self
        c.length = <uint32_t>length
        c.transaction_id = transaction_id
        c.packet_type = packet_type
        c.flags = flags
        start = hv_advance(self.ring.own, HV_DESCRIPTOR, self.ring.size)
        if start + length <= self.ring.size:
            c.span = span(self, &self.spans, self.ring.data + start, length, False)
            c.buffer = PyMemoryView_FromObject(c.span)
        else:   # it wraps: fill a copy, which commit() puts in two parts
            c.staging = bytearray(length)
            c.buffer = PyMemoryView_FromObject(c.staging)
        c.open = True
        self.claimed = True
        return c

    @cython.critical_section
    def want_room(self, Py_ssize_t length) -> bool:
        """Ask the reader for a signal once ``length`` payload bytes fit.  True: they fit already (PROTOCOL §2.7)."""
        cdef uint32_t total = hv_tx_total(<uint32_t>min(max(length, 0), HV_MAX_LEN - HV_DESCRIPTOR))
        cdef int result
        need_open(self.held)
        hv_tx_want_room(&self.ring, min(total, self.ring.size - 8))
        result = hv_tx_reserve(&self.ring, total)
        if result < 0:
            corrupt(result)
        if result == HV_OK:
            hv_tx_room_found(&self.ring)
        return result == HV_OK

    def close(self) -> None:
        """Let go of the memory.  BufferError while memoryviews into it are held."""
        if self.held:
            if self.spans:
                raise BufferError("memoryviews into this ring are still held; release them first")
            PyBuffer_Release(&self.memory)
            self.held = False

    @property
    def free(self) -> int:
        """Bytes of the data area that are free now; a packet needs strictly more than its 8-rounded total."""
        cdef int result
        need_open(self.held)
        result = hv_tx_look(&self.ring)
        if result < 0:
            corrupt(result)
        return hv_tx_free(&self.ring)

    @property
    def size(self) -> int:
        """Bytes of the data area."""
        return self.ring.size

    @property
    def max_payload(self) -> int:
        """The largest payload that fits into the empty ring."""
        return min(<Py_ssize_t>self.ring.size - 8 - HV_SMALLEST, HV_MAX_LEN - HV_DESCRIPTOR)

    def __repr__(self):
        return f"RingProducer(size={self.ring.size}, write_index={self.ring.own})"


cdef int search(RingConsumer self, hv_packet *packet) except -100:
    """find() when the next packet is none to deliver at once."""
    cdef int result
    if not self.held or self.viewing:
        raise RingError("views of this ring are being read: finish or close that iterator first" if self.viewing
                        else "this ring was closed")
    while True:
        result = hv_rx_next(&self.ring, packet)
        if result != HV_OK:
            break
        if self.accepted >> min(packet.type, 63) & 1:
            return HV_OK
        hv_rx_consume(&self.ring, packet)
        self.skipped += 1
        if hv_rx_available(&self.ring) == 0:   # a writer that never stops cannot keep us here
            result = HV_EMPTY
            break
    release(self)
    if result < 0:
        corrupt(result)
    return result


cdef inline void release_quarter(RingConsumer self) noexcept:
    """Give room back early, so that a long batch does not keep the writer waiting."""
    if hv_rare(hv_distance(self.ring.own, self.ring.published, self.ring.size) > self.ring.size // 4):
        release(self)


cdef inline bytes payload_bytes(RingConsumer self, const hv_packet *packet):
    cdef bytes payload = PyBytes_FromStringAndSize(NULL, packet.length)
    hv_rx_copy(&self.ring, packet, <uint8_t *>PyBytes_AS_STRING(payload))
    return payload


cdef inline Packet take_packet(RingConsumer self, const hv_packet *packet):
    cdef Packet p = Packet.__new__(Packet)
    p.type = packet.type
    p.flags = packet.flags
    p.transaction_id = packet.transaction_id
    p.payload = payload_bytes(self, packet)
    hv_rx_consume(&self.ring, packet)
    return p


cdef Py_ssize_t read_rows(RingConsumer self, uint8_t *data, size_t size, Py_buffer *table, uint64_t *total) except -1:
    cdef hv_row *rows = <hv_row *>table.buf
    cdef size_t count = 0, used = 0, limit = table.len // sizeof(hv_row)
    cdef hv_packet packet
    cdef uint32_t before
    need_rows(table)
    try:
        while count < limit and find(self, &packet) == HV_OK:
            if hv_rare(size - used < packet.length):
                if count == 0:
                    too_small(packet.length)
                break
            hv_rx_copy(&self.ring, &packet, data + used)
            rows[count] = hv_row(<uint32_t>used, packet.length, packet.type, packet.flags, 0, packet.transaction_id)
            used += packet.length
            count += 1
            before = self.ring.own
            hv_rx_consume(&self.ring, &packet)
            count += hv_rx_run(&self.ring, self.accepted, rows + count, limit - count, data, size, &used)
            total[0] += hv_distance(self.ring.own, before, self.ring.size)
            release_quarter(self)
    except RingCorruptError:
        if count == 0:      # what came before the lie is good; the next call meets it again
            raise
    return count


cdef int receive_into(RingConsumer self, object buffer, hv_packet *packet) except -100:
    """The next packet into any buffer, and a step over it.  HV_OK or HV_EMPTY."""
    cdef Py_buffer view
    cdef int result
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
    try:
        result = find(self, packet)
        if result == HV_OK:
            if view.len < <Py_ssize_t>packet.length:
                too_small(packet.length)
            hv_rx_copy(&self.ring, packet, <uint8_t *>view.buf)
            hv_rx_consume(&self.ring, packet)
    finally:
        PyBuffer_Release(&view)
    return result


cdef int too_small(uint32_t length) except -1:
    raise BufferTooSmallError(f"the next payload has {length} bytes; the buffer has fewer")


cdef Py_ssize_t write_rows(RingProducer self, const uint8_t *data, size_t size, Py_buffer *table, bint *due,
                           uint64_t *total) except -1:
    cdef const hv_row *rows = <const hv_row *>table.buf
    cdef size_t count = 0, limit = table.len // sizeof(hv_row)
    cdef uint32_t offset, length, before
    cdef int result
    if not self.held or self.claimed:
        unusable(self)
    need_rows(table)
    while count < limit:
        offset = rows[count].offset
        length = rows[count].length
        if hv_rare(<size_t>offset + length > size):
            if count == 0:
                raise ValueError(f"the first payload ends at {<size_t>offset + length}, the buffer at {size}")
            break
        before = self.ring.own
        result = hv_tx_write(&self.ring, data + offset, length, rows[count].transaction_id,
                             rows[count].type if rows[count].type else HV_IN_BAND, rows[count].flags)
        if hv_rare(result != HV_OK):
            if result < 0:
                self.ring.own = self.ring.published
                corrupt(result)
            if result == HV_TOO_LARGE and count == 0:
                self.refuse(result)
            break
        count += 1
        count += hv_tx_run(&self.ring, rows + count, limit - count, data, size)
        total[0] += hv_distance(self.ring.own, before, self.ring.size)
        if hv_distance(self.ring.own, self.ring.published, self.ring.size) > self.ring.size // 4:
            due[0] |= hv_tx_publish(&self.ring)
    return count


cdef hv_method send_full


cdef object send_quick(RingProducer self, PyObject *const *args, Py_ssize_t count, PyObject *names):
    """send(payload) without keywords."""
    cdef int result
    if count != 1 or names != NULL:
        return send_full(self, args, count, names)
    result = write(self, <object>args[0], 0, 6, 0)
    if hv_rare(result != HV_OK):
        self.refuse(result)
    return hv_tx_publish(&self.ring)


send_full = hv_stand_before(<PyTypeObject *>RingProducer, "send", <hv_method>send_quick)


@cython.final
@cython.no_gc_clear   # the buffer is released in __dealloc__, not dropped before it
cdef class RingConsumer:
    """The reading end of one ring in ``memory[offset:offset + size]``; arguments as for RingProducer.

    ``types`` are the packet types that are delivered, by default in-band data (6) and completions (11); others are
    stepped over and counted in ``skipped``.  None delivers every type.
    """

    def __cinit__(self, memory, Py_ssize_t offset=0, size=None, *, Py_ssize_t control_size=4096, types=(6, 11)):
        cdef uint64_t accepted = 0
        if types is None:
            accepted = ~accepted
        else:
            for t in types:
                if not 0 <= t < 63:
                    raise ValueError(f"there is no packet type {t}")
                accepted |= <uint64_t>1 << <int>t
        self.accepted = accepted
        self.length_object = 0
        attach(&self.ring, &self.memory, memory, offset, size, control_size, False)
        self.held = True

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.memory)

    cdef int next(self, hv_packet *packet) except -100:
        return find(self, packet)

    cdef Packet take(self, hv_packet *packet):
        """Copy the packet out and step over it, without giving the room back yet."""
        return take_packet(self, packet)

    @cython.critical_section
    def recv(self):
        """The next packet, copied out, or None.  RingCorruptError: the writer broke the rules (PROTOCOL §2.5)."""
        cdef hv_packet packet
        cdef Packet p
        if find(self, &packet) == HV_EMPTY:
            return None
        p = take_packet(self, &packet)
        release(self)
        return p

    @cython.critical_section
    def recv_many(self, Py_ssize_t limit=64) -> list:
        """Up to ``limit`` packets at once; the room is given back once, or per quarter of the ring."""
        cdef hv_packet packet
        cdef list packets = []
        try:
            while PyList_GET_SIZE(packets) < limit and find(self, &packet) == HV_OK:
                packets.append(take_packet(self, &packet))
                release_quarter(self)
        except RingCorruptError:
            if not packets:     # what came before the lie is good; the next call meets it again
                raise
        release(self)
        return packets

    @cython.critical_section
    def recv_payloads(self, Py_ssize_t limit=64) -> list:
        """``recv_many`` with nothing but the payloads: a list of bytes."""
        cdef hv_packet packet
        cdef list payloads = []
        try:
            while PyList_GET_SIZE(payloads) < limit and find(self, &packet) == HV_OK:
                payloads.append(payload_bytes(self, &packet))
                hv_rx_consume(&self.ring, &packet)
                release_quarter(self)
        except RingCorruptError:
            if not payloads:
                raise
        release(self)
        return payloads

    cdef Py_ssize_t drain(self, object buffer, object descriptors, uint64_t *total) except -1:
        """recv_batch() but for the last release; `total` grows by the ring bytes read, also on an error."""
        cdef Py_buffer data, table
        cdef Py_ssize_t count
        PyObject_GetBuffer(buffer, &data, PyBUF_SIMPLE | PyBUF_WRITABLE)
        try:
            PyObject_GetBuffer(descriptors, &table, PyBUF_SIMPLE | PyBUF_WRITABLE)
            try:
                count = read_rows(self, <uint8_t *>data.buf, data.len, &table, total)
            finally:
                PyBuffer_Release(&table)
        finally:
            PyBuffer_Release(&data)
        return count

    @cython.critical_section
    def recv_batch(self, buffer, descriptors):
        """Copy packets into ``buffer``, say in ``descriptors`` what is where; how many.  As ``Channel.recv_batch``."""
        cdef uint64_t total = 0
        try:
            return self.drain(buffer, descriptors, &total)
        finally:
            release(self)

    @cython.critical_section
    def recv_into(self, buffer):
        """Copy the next payload into ``buffer``: its length, or None when the ring is empty.

        BufferTooSmallError leaves the packet where it is.
        """
        cdef hv_packet packet
        if copy_next(self, buffer, &packet) == HV_EMPTY:
            return None
        release(self)
        return length_of(self, &packet)

    def views(self):
        """Iterate over what is published without copying; for writers that are trusted not to change it meanwhile.

        Each step ends the view before it.  A payload that wraps is copied.
        """
        cdef ViewIterator i
        if not self.held or self.viewing:
            raise RingError("only one iterator of views at a time" if self.viewing else "this ring was closed")
        i = ViewIterator.__new__(ViewIterator)
        i.consumer = self
        self.viewing = True
        return i

    def __iter__(self):
        return self

    def __next__(self):
        packet = self.recv()
        if packet is None:
            raise StopIteration
        return packet

    @cython.critical_section
    def arm(self) -> int:
        """Clear the interrupt mask, then look again: bytes readable now; 0: it is safe to sleep (PROTOCOL §2.8)."""
        cdef int result
        need_open(self.held)
        result = hv_rx_unmask(&self.ring)
        if result < 0:
            corrupt(result)
        return hv_rx_available(&self.ring)

    def mask(self) -> None:
        """Ask the writer not to signal new packets until the next ``arm()``."""
        need_open(self.held)
        hv_rx_mask(&self.ring)

    def take_signal(self) -> bool:
        """True, once, if a writer that waits for room must be signalled after what was received (PROTOCOL §2.7)."""
        cdef bint due = self.room_signal
        self.room_signal = False
        return due

    def close(self) -> None:
        """Let go of the memory.  BufferError while memoryviews into it are held."""
        if self.held:
            if self.spans:
                raise BufferError("memoryviews into this ring are still held; release them first")
            PyBuffer_Release(&self.memory)
            self.held = False

    @property
    def available(self) -> int:
        """Published bytes that are not read yet."""
        cdef int result
        need_open(self.held)
        result = hv_rx_look(&self.ring)
        if result < 0:
            corrupt(result)
        return hv_rx_available(&self.ring)

    @property
    def size(self) -> int:
        """Bytes of the data area."""
        return self.ring.size

    def __repr__(self):
        return f"RingConsumer(size={self.ring.size}, read_index={self.ring.own})"


@cython.final
cdef class ViewIterator:
    """What RingConsumer.views() returns; ``close()`` ends it early."""

    def __iter__(self):
        return self

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        self.close()

    cdef int drop(self) except -1:
        """End the view that was handed out last and step over its packet."""
        if self.current is not None:
            self.current.end()
            self.current = None
            need_open(self.consumer.held)
            hv_rx_consume(&self.consumer.ring, &self.packet)
            release_quarter(self.consumer)
        return 0

    def __next__(self):
        cdef PacketView v
        cdef RingConsumer c = self.consumer
        cdef hv_packet p
        if c is None:
            raise StopIteration
        self.drop()
        self.consumer = None    # at the end of what there is, and after an error
        c.viewing = False
        if find(c, &p) == HV_EMPTY:
            raise StopIteration
        self.consumer = c
        c.viewing = True
        self.packet = p
        v = PacketView.__new__(PacketView)
        v.consumer = c
        v.type = p.type
        v.flags = p.flags
        v.transaction_id = p.transaction_id
        v.length = p.length
        v.start = c.ring.data + p.start
        if hv_rare(p.start + p.length > c.ring.size):
            v.copy = payload_bytes(c, &p)
            v.start = <uint8_t *>PyBytes_AS_STRING(v.copy)
        self.current = v
        return v

    def close(self) -> None:
        """End the iteration; the packet seen last counts as read."""
        cdef RingConsumer c = self.consumer
        if c is not None:
            self.drop()
            c.viewing = False
            self.consumer = None
            need_open(c.held)
            release(c)

    def __dealloc__(self):
        # dropped in the middle: the packet in hand stays unread, the ring can be read again
        if self.consumer is not None:
            self.consumer.viewing = False
