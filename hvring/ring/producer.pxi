# SPDX-License-Identifier: Apache-2.0
"""The writing end: RingProducer, and Claim for packets that are filled in place.  Part of _ring.pyx."""


@cython.final
# __dealloc__ needs the producer
@cython.no_gc_clear
cdef class Claim:
    """Room in the ring to be filled in place: write into ``buffer``, then ``commit()`` or ``abort()``.

    As a context manager it commits at the end, aborts on an exception.  ``signal`` is the result of the commit.
    A claim that is dropped is aborted.
    """

    def __dealloc__(self):
        if self.open:
            self.producer.claimed = False

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
        if not self.producer.held:
            was_closed(self.producer.owned)
        self.buffer.release()
        if self.producer.spans:
            raise BufferError("slices of this claim's buffer are still held; release them, then commit or abort again")
        self.open = False
        self.producer.claimed = False
        if self.span is not None:
            self.span.end()
        return 0

    def commit(self, length=None) -> bool:
        """Publish the packet, cut to ``length`` bytes if given.  True: the other side must be signalled; of a channel's
        claim: it was signalled.

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
        if self.told != NULL:
            self.told(self.holder, hv_tx_total(n), self.signal)
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
    if not self.held:
        unusable(self)
    return result


cdef inline Py_ssize_t most(RingProducer self) noexcept:
    """The largest payload that fits into the empty ring."""
    return min(<Py_ssize_t>self.ring.size - 8 - HV_SMALLEST, HV_MAX_LEN - HV_DESCRIPTOR)


cdef int unusable(RingProducer self) except -100:
    if not self.held:
        was_closed(self.owned)
    raise RingError("a claim is open on this ring: commit or abort it first")


@cython.final
# the buffer is released in __dealloc__, not dropped before it
@cython.no_gc_clear
cdef class RingProducer:
    """The writing end of one ring in ``memory[offset:offset + size]``: control page, then data.

    ``memory`` is any writable buffer that both sides share; ``size`` defaults to the rest of it; ``control_size`` is
    the page size of the system that laid the ring out (PROTOCOL §1.6); ``mirrored``: behind the ring its data area is
    mapped once more (DoubleMapping).  Raises ValueError for impossible sizes and
    RingCorruptError when the indices found there are impossible.  One thread at a time.
    """

    def __cinit__(self, memory, Py_ssize_t offset=0, size=None, *, Py_ssize_t control_size=4096,
                  bint mirrored=False):
        attach(&self.ring, &self.memory, memory, offset, size, control_size, mirrored, True)
        self.mirrored = mirrored
        self.held = True
        # The reader may only wake a blocked writer that says it knows how to wait (PROTOCOL 2.1).
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
            # Closed, or claimed, by what made the payloads.
            if not self.held or self.claimed:
                unusable(self)
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

    # send_quick() stands before it.
    @cython.critical_section
    def send(self, payload, *, uint64_t transaction_id=0, uint16_t packet_type=6, uint16_t flags=0):
        """Publish one packet.  True: the other side must be signalled (PROTOCOL §2.6).

        RingFullError: no room, nothing written.  RingCorruptError: the reader broke the rules.  ValueError: a packet
        type whose header is not the one of 6 (data), 10 and 11 (completion).
        """
        check_type(packet_type)
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
        cdef Py_ssize_t sent
        check_type(packet_type)
        sent = self.put_many(payloads, transaction_id, packet_type, flags)
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
        # Closed by what held the buffers.
        if not self.held:
            unusable(self)
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
        if length < 0:
            raise ValueError("a packet cannot have a negative length")
        check_type(packet_type)
        # Before anything is looked at, because to make an object may collect others, and run what they do then.
        c = Claim.__new__(Claim)
        if not self.held or self.claimed:
            unusable(self)
        if self.ring.own != self.ring.published:
            raise RingError("packets are being written: claim before or after them")
        result = HV_TOO_LARGE
        if length <= HV_MAX_LEN - HV_DESCRIPTOR:
            result = hv_tx_reserve(&self.ring, hv_tx_total(<uint32_t>length))
        if result < 0:
            corrupt(result)
        if result != HV_OK:
            self.refuse(result)
        self.claimed = c.open = True
        c.producer = self
        c.length = <uint32_t>length
        c.transaction_id = transaction_id
        c.packet_type = packet_type
        c.flags = flags
        start = hv_advance(self.ring.own, HV_DESCRIPTOR, self.ring.size)
        if start + length <= self.ring.size or self.mirrored:
            c.span = span(self, &self.spans, &self.held, self.ring.data + start, length, False)
            c.buffer = PyMemoryView_FromObject(c.span)
        else:
            # It wraps: a copy is filled, which commit() puts there in two parts.
            c.staging = bytearray(length)
            c.buffer = PyMemoryView_FromObject(c.staging)
        return c

    @cython.critical_section
    def want_room(self, Py_ssize_t length) -> bool:
        """Ask the reader for a signal once ``length`` payload bytes fit.  True: they fit already (PROTOCOL §2.7).

        PacketTooLargeError when they never will.
        """
        cdef uint32_t total
        cdef int result
        if not self.held:
            was_closed(self.owned)
        if length < 0:
            raise ValueError("a packet cannot have a negative length")
        if length > most(self):
            self.refuse(HV_TOO_LARGE)
        total = hv_tx_total(<uint32_t>length)
        hv_tx_want_room(&self.ring, total)
        result = hv_tx_reserve(&self.ring, total)
        if result < 0:
            corrupt(result)
        if result == HV_OK:
            hv_tx_room_found(&self.ring)
        return result == HV_OK

    @cython.critical_section
    def unwant_room(self) -> None:
        """Ask for no signal any more: takes back what ``want_room`` said."""
        if not self.held:
            was_closed(self.owned)
        hv_tx_room_found(&self.ring)

    @cython.critical_section
    def state(self) -> dict:
        """The fields of the control page as they are now, for people: indices, mask, pending size, feature bits."""
        if not self.held:
            was_closed(self.owned)
        return control_page(&self.ring)

    @cython.critical_section
    def close(self) -> None:
        """Let go of the memory.  BufferError while memoryviews into it are held, RingError for one of a channel's."""
        no_owner(self.owned)
        if self.spans:
            raise BufferError("memoryviews into this ring are still held; release them first")
        self.let_go()

    cdef void let_go(self) noexcept:
        if self.held:
            # First, because to release a buffer may run Python code; and nothing is left to publish into memory that
            # may be gone.
            self.held = False
            self.ring.own = self.ring.published
            PyBuffer_Release(&self.memory)

    @property
    def free(self) -> int:
        """Bytes of the data area that are free now; a packet needs strictly more than its 8-rounded total."""
        cdef int result
        if not self.held:
            was_closed(self.owned)
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
        return most(self)

    def __repr__(self):
        return f"RingProducer(size={self.ring.size}, write_index={self.ring.own})"


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
        if hv_unlikely(<size_t>offset + length > size):
            if count == 0:
                raise ValueError(f"the first payload ends at {<size_t>offset + length}, the buffer at {size}")
            break
        if hv_unlikely(rows[count].type != 0 and not hv_has_short_header(rows[count].type)):
            if count == 0:
                wrong_type(rows[count].type)
            break
        before = self.ring.own
        result = hv_tx_write(&self.ring, data + offset, length, rows[count].transaction_id,
                             rows[count].type if rows[count].type else HV_IN_BAND, rows[count].flags)
        if hv_unlikely(result != HV_OK):
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
    if hv_unlikely(result != HV_OK):
        self.refuse(result)
    return hv_tx_publish(&self.ring)


send_full = hv_stand_before(<PyTypeObject *>RingProducer, "send", <hv_method>send_quick)
