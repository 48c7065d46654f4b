# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, autotestdict=False
# cython: embedsignature=True, embedsignature.format=clinic, always_allow_keywords=False, binding=False
# cython: freethreading_compatible=True
# SPDX-License-Identifier: Apache-2.0
"""RingProducer and RingConsumer: the two ends of a VMBus ring as Python types (PROTOCOL 2)."""

cimport cython
from cpython.buffer cimport (PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release,
                             PyObject_GetBuffer)
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.list cimport PyList_GET_SIZE
from cpython.memoryview cimport PyMemoryView_FromObject
from cpython.object cimport PyObject, PyTypeObject
from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t

from hvring.ring.core cimport (HV_BAD_FRAGMENT, HV_BAD_LEN8, HV_BAD_LENGTH, HV_BAD_OFFSET8, HV_BAD_OWN_READ,
                               HV_BAD_OWN_WRITE, HV_BAD_READ_ALIGN, HV_BAD_READ_BACK, HV_BAD_READ_RANGE,
                               HV_BAD_WRITE_ALIGN, HV_BAD_WRITE_BACK, HV_BAD_WRITE_RANGE, HV_COMPLETION, HV_DESCRIPTOR,
                               HV_EMPTY, HV_FEATURE_BITS, HV_FEATURE_PENDING_SEND_SZ, HV_INTERRUPT_MASK, HV_IN_BAND,
                               HV_MAX_LEN, HV_OK, HV_PENDING_SEND_SZ, HV_READ_INDEX, HV_SMALLEST, HV_TOO_LARGE,
                               HV_WRITE_INDEX, hv_advance, hv_attach, hv_copy_in, hv_distance, hv_has_short_header,
                               hv_load_relaxed32, hv_packet, hv_ring, hv_row, hv_rx_available, hv_rx_consume,
                               hv_rx_copy, hv_rx_look, hv_rx_mask, hv_rx_next, hv_rx_run, hv_rx_unmask,
                               hv_store_relaxed32, hv_tx_frame, hv_tx_free, hv_tx_look, hv_tx_publish, hv_tx_reserve,
                               hv_tx_room_found, hv_tx_run, hv_tx_total, hv_tx_want_room, hv_tx_write, hv_unlikely)

from hvring.errors import (BufferTooSmallError, ChannelRingClosedError, PacketTooLargeError, RingCorruptError,
                           RingError, RingFullError)

cdef extern from "unistd.h" nogil:
    long sysconf(int name)
    enum:
        _SC_PAGESIZE

cdef extern from "sys/mman.h" nogil:
    void *mmap(void *address, size_t length, int protection, int flags, int fd, long offset)
    int munmap(void *address, size_t length)
    void *MAP_FAILED
    enum:
        PROT_NONE
        PROT_READ
        PROT_WRITE
        MAP_SHARED
        MAP_PRIVATE
        MAP_ANONYMOUS
        MAP_FIXED
        MAP_NORESERVE

CONTROL_SIZE = 4096
IN_BAND = HV_IN_BAND
COMPLETION = HV_COMPLETION

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
    # An empty one may lie anywhere.
    if table.len % sizeof(hv_row) or (table.len and <uintptr_t>table.buf & 7):
        raise ValueError("descriptors must be an array of hvring.vmbus.arrays.descriptor_dtype()")
    return 0


cdef int was_closed(bint owned) except -1:
    if owned:
        raise ChannelRingClosedError("this channel was closed on this side")
    raise RingError("this ring was closed")


cdef int no_owner(bint owned) except -1:
    if owned:
        raise RingError("this ring belongs to a channel: close that")
    return 0


cdef int wrong_type(unsigned int packet_type) except -1:
    raise ValueError(f"packets of type {packet_type} cannot be sent: only those of the types 6, 10 and 11 have a "
                     "header of 16 bytes and no ranges or page-set ids behind it")


cdef dict control_page(const hv_ring *ring):
    """What both sides have written there, unchecked."""
    return {
        "write_index": hv_load_relaxed32(ring.control + HV_WRITE_INDEX),
        "read_index": hv_load_relaxed32(ring.control + HV_READ_INDEX),
        "interrupt_mask": hv_load_relaxed32(ring.control + HV_INTERRUPT_MASK),
        "pending_send_sz": hv_load_relaxed32(ring.control + HV_PENDING_SEND_SZ),
        "feature_bits": hv_load_relaxed32(ring.control + HV_FEATURE_BITS),
        "size": ring.size,
    }


cdef int attach(hv_ring *ring, Py_buffer *view, object memory, Py_ssize_t offset, object size,
                Py_ssize_t control_size, bint mirrored, bint producer) except -1:
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
        if mirrored and (size is None or length - control_size > view.len - offset - length):
            raise ValueError("a mirrored ring needs a size, and behind it its data area once more")
        if not 4096 <= control_size <= 0x40000000 or control_size & 7:
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
@cython.freelist(8)
cdef class Span:
    def __getbuffer__(self, Py_buffer *buffer, int flags):
        if self.spans == NULL or not self.held[0]:
            raise BufferError("this part of the ring was given back")
        PyBuffer_FillInfo(buffer, self, self.start, self.length, self.readonly, flags)
        self.spans[0] += 1

    def __releasebuffer__(self, Py_buffer *buffer):
        self.spans[0] -= 1

    cdef void end(self) noexcept:
        """Who kept it cannot get at the memory by it any more; nobody looks into it now."""
        self.spans = NULL


cdef Span span(object owner, int *spans, bint *held, uint8_t *start, Py_ssize_t length, bint readonly):
    cdef Span s = Span.__new__(Span)
    s.owner = owner
    s.spans = spans
    s.held = held
    s.start = start
    s.length = length
    s.readonly = readonly
    return s


include "mapping.pxi"
include "producer.pxi"
include "consumer.pxi"
include "views.pxi"


# What methods here return, and nobody makes otherwise: without what they need, their methods would find nothing.
hv_made_here_only(<PyTypeObject *>Claim)
hv_made_here_only(<PyTypeObject *>PacketView)
hv_made_here_only(<PyTypeObject *>ViewIterator)
