# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
# cython: freethreading_compatible=True, always_allow_keywords=False, binding=False
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

from hvring.ring.core cimport *

from hvring.errors import (BufferTooSmallError, PacketTooLargeError, RingCorruptError, RingError, RingFullError)

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
