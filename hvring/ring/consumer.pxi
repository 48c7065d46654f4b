# SPDX-License-Identifier: Apache-2.0
"""The reading end: RingConsumer, and Packet for what it copies out.  Part of _ring.pyx."""


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


cdef int search(RingConsumer self, hv_packet *packet) except -100:
    """find() when the next packet is none to deliver at once."""
    cdef int result
    if not self.held:
        was_closed(self.owned)
    if self.viewing:
        raise RingError("views of this ring are being read: finish or close that iterator first")
    while True:
        result = hv_rx_next(&self.ring, packet)
        if result != HV_OK:
            break
        if self.accepted >> min(packet.type, 63) & 1:
            return HV_OK
        hv_rx_consume(&self.ring, packet)
        self.skipped += 1
        # A writer that never stops cannot keep us here.
        if hv_rx_available(&self.ring) == 0:
            result = HV_EMPTY
            break
    release(self)
    if result < 0:
        corrupt(result)
    return result


cdef inline void release_quarter(RingConsumer self) noexcept:
    """Give room back early, so that a long batch does not keep the writer waiting."""
    if hv_unlikely(hv_distance(self.ring.own, self.ring.published, self.ring.size) > self.ring.size // 4):
        release(self)


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
            if hv_unlikely(size - used < packet.length):
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
        # what came before the lie is good; the next call meets it again
        if count == 0:
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


@cython.final
# the buffer is released in __dealloc__, not dropped before it
@cython.no_gc_clear
cdef class RingConsumer:
    """The reading end of one ring in ``memory[offset:offset + size]``; arguments as for RingProducer.

    ``types`` are the packet types that are delivered, by default in-band data (6) and completions (11); others are
    stepped over and counted in ``skipped``.  None delivers every type.
    """

    def __cinit__(self, memory, Py_ssize_t offset=0, size=None, *, Py_ssize_t control_size=4096, types=(6, 11),
                  bint mirrored=False):
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
        attach(&self.ring, &self.memory, memory, offset, size, control_size, mirrored, False)
        self.mirrored = mirrored
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
    def recv_bytes(self):
        """The next payload alone, as bytes, or None."""
        cdef hv_packet packet
        cdef bytes payload
        if find(self, &packet) == HV_EMPTY:
            return None
        payload = payload_bytes(self, &packet)
        hv_rx_consume(&self.ring, &packet)
        release(self)
        return payload

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
            # what came before the lie is good; the next call meets it again
            if not packets:
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

        Each step ends the view before it.  A payload that wraps is copied, unless the ring is mirrored.
        """
        cdef ViewIterator i = ViewIterator.__new__(ViewIterator)
        if not self.held:
            was_closed(self.owned)
        if self.viewing:
            raise RingError("only one iterator of views at a time")
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
        if not self.held:
            was_closed(self.owned)
        result = hv_rx_unmask(&self.ring)
        if result < 0:
            corrupt(result)
        return hv_rx_available(&self.ring)

    def mask(self) -> None:
        """Ask the writer not to signal new packets until the next ``arm()``."""
        if not self.held:
            was_closed(self.owned)
        hv_rx_mask(&self.ring)

    def take_signal(self) -> bool:
        """True, once, if a writer that waits for room must be signalled after what was received (PROTOCOL §2.7)."""
        cdef bint due = self.room_signal
        self.room_signal = False
        return due

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
            # As in RingProducer.
            self.held = False
            self.ring.own = self.ring.published
            PyBuffer_Release(&self.memory)

    @property
    def available(self) -> int:
        """Published bytes that are not read yet."""
        cdef int result
        if not self.held:
            was_closed(self.owned)
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
