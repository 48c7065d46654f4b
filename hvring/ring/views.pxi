# SPDX-License-Identifier: Apache-2.0
"""Packets seen in place: PacketView, and the iterator that RingConsumer.views() returns.  Part of _ring.pyx."""


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
        if not self.consumer.held:
            raise BufferError("this ring was closed")
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
            self.span = span((self.consumer, self.copy), &self.consumer.spans, &self.consumer.held, self.start,
                             self.length, True)
            self.memory = PyMemoryView_FromObject(self.span)
        return self.memory

    cdef int end(self) except -1:
        if self.memory is not None:
            self.memory.release()
        if hv_unlikely(self.consumer.spans):
            raise BufferError("slices of the last view are still held; release them before the next step")
        if self.span is not None:
            self.span.end()
        self.consumer = None
        self.copy = None
        return 0

    def __repr__(self):
        return f"PacketView(type={self.type}, flags={self.flags}, transaction_id={self.transaction_id:#x})"


@cython.final
@cython.freelist(8)
@cython.no_gc
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
            if not self.consumer.held:
                was_closed(self.consumer.owned)
            hv_rx_consume(&self.consumer.ring, &self.packet)
            release_quarter(self.consumer)
            if self.told != NULL:
                self.told(self.holder, self.packet.total, False)
        return 0

    def __next__(self):
        cdef PacketView v
        cdef RingConsumer c = self.consumer
        cdef hv_packet p
        if c is None:
            raise StopIteration
        self.drop()
        # at the end of what there is, and after an error
        self.consumer = None
        c.viewing = False
        if find(c, &p) == HV_EMPTY:
            if self.told != NULL:
                self.told(self.holder, 0, False)
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
        if hv_unlikely(p.start + p.length > c.ring.size) and not c.mirrored:
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
            if not c.held:
                was_closed(c.owned)
            release(c)
            if self.told != NULL:
                self.told(self.holder, 0, False)

    def __dealloc__(self):
        # dropped in the middle: the packet in hand stays unread, the ring can be read again
        if self.consumer is not None:
            self.consumer.viewing = False
