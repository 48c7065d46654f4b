# cython: language_level=3
# SPDX-License-Identifier: Apache-2.0
"""The Python types of a ring, for cimport, and what their methods have in common with Channel's, to be inlined there.

The fast functions that need no GIL are in core.pxd.
"""

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject, PyTypeObject
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from hvring.ring.core cimport (HV_EMPTY, HV_OK, hv_has_short_header, hv_packet, hv_ring, hv_rx_consume, hv_rx_copy,
                               hv_rx_next, hv_rx_release, hv_tx_write, hv_unlikely)

cdef extern from *:
    """
    #ifdef Py_GIL_DISABLED  /* another thread may resize a bytearray while we copy: hold it by the buffer protocol */
    #define hv_is_bytearray(o) 0
    #else
    #define hv_is_bytearray(o) PyByteArray_CheckExact(o)
    #endif
    """
    bint is_bytearray "hv_is_bytearray"(object o)


cdef extern from "fastcall.h":
    ctypedef object (*hv_method)(object self, PyObject *const *args, Py_ssize_t count, PyObject *names)
    hv_method hv_stand_before(PyTypeObject *type, const char *name, hv_method quick)
    int hv_made_here_only(PyTypeObject *type) except -1


# told to whoever holds the ring, to count and to signal: the ring bytes of a packet that was committed, or stepped over
# (0 at the end of an iteration), and whether the reader must be signalled
ctypedef int (*hv_told)(object holder, uint32_t total, bint due) except -1


cdef class Packet:
    cdef readonly unsigned int type
    cdef readonly unsigned int flags
    cdef readonly uint64_t transaction_id
    cdef readonly bytes payload


cdef class Span:
    """Bytes of a ring as a buffer; counted, so that the memory cannot go away under a memoryview."""
    cdef object owner
    cdef uint8_t *start
    cdef Py_ssize_t length
    cdef bint readonly
    # the owner's count of exported buffers
    cdef int *spans
    # whether the owner still holds the memory
    cdef bint *held
    cdef void end(self) noexcept


cdef class PacketView:
    cdef readonly unsigned int type
    cdef readonly unsigned int flags
    cdef readonly uint64_t transaction_id
    # None once the view has ended
    cdef RingConsumer consumer
    cdef uint8_t *start
    cdef Py_ssize_t length
    # of a payload that wraps
    cdef bytes copy
    # the memoryview that `payload` gave out, and what it looks into
    cdef object memory
    cdef Span span
    cdef int end(self) except -1


cdef class DoubleMapping:
    cdef uint8_t *start
    cdef Py_ssize_t length
    # bytes from one ring to the next
    cdef readonly Py_ssize_t stride


cdef class Claim:
    cdef RingProducer producer
    cdef readonly object buffer
    cdef bytearray staging
    cdef Span span
    cdef uint32_t length
    cdef uint64_t transaction_id
    cdef uint16_t packet_type
    cdef uint16_t flags
    cdef bint open
    cdef readonly bint signal
    cdef object holder
    # NULL: nobody
    cdef hv_told told
    cdef int finish(self) except -1


cdef class RingProducer:
    cdef hv_ring ring
    cdef Py_buffer memory
    cdef bint held
    cdef int spans
    cdef bint claimed
    # the data area is mapped once more behind the ring
    cdef bint mirrored
    # by a channel, which alone may close it
    cdef bint owned
    cdef void let_go(self) noexcept
    cdef int put(self, object payload, uint64_t transaction_id, uint16_t packet_type, uint16_t flags) except -100
    cdef Py_ssize_t put_many(self, object payloads, uint64_t transaction_id, uint16_t packet_type,
                             uint16_t flags) except -1
    cdef Py_ssize_t put_batch(self, object buffer, object descriptors, bint *due, uint64_t *total) except -1
    cdef int refuse(self, int result) except -1


cdef class RingConsumer:
    cdef hv_ring ring
    cdef Py_buffer memory
    cdef bint held
    cdef int spans
    cdef bint viewing
    cdef bint mirrored
    cdef bint owned
    cdef void let_go(self) noexcept
    # bit t: packets of type t are delivered
    cdef uint64_t accepted
    cdef readonly uint64_t skipped
    cdef bint room_signal
    # of the last packet that recv_into() copied,
    cdef uint32_t length
    # and the int made for it: the next one often has the same
    cdef object length_object
    cdef int next(self, hv_packet *packet) except -100
    cdef Packet take(self, hv_packet *packet)
    cdef Py_ssize_t drain(self, object buffer, object descriptors, uint64_t *total) except -1


cdef class ViewIterator:
    cdef RingConsumer consumer
    cdef PacketView current
    cdef hv_packet packet
    cdef object holder
    # NULL: nobody
    cdef hv_told told
    cdef int drop(self) except -1


cdef int corrupt(int code) except -100
cdef int wrong_type(unsigned int packet_type) except -1
cdef int unusable(RingProducer self) except -100
cdef int write_buffer(RingProducer self, object payload, uint64_t transaction_id, uint16_t packet_type,
                      uint16_t flags) except -100
cdef int search(RingConsumer self, hv_packet *packet) except -100
cdef int receive_into(RingConsumer self, object buffer, hv_packet *packet) except -100
cdef int too_small(uint32_t length) except -1


cdef inline int check_type(uint16_t packet_type) except -1:
    """ValueError for a packet type that cannot be sent: its header has more in it than the 16 bytes that we write."""
    if hv_unlikely(not hv_has_short_header(packet_type)):
        wrong_type(packet_type)
    return 0


cdef inline int write(RingProducer self, object payload, uint64_t transaction_id, uint16_t packet_type,
                      uint16_t flags) except -100:
    """Write, do not publish.  HV_OK, HV_FULL or HV_TOO_LARGE; the rest raises."""
    cdef const uint8_t *start
    cdef Py_ssize_t length
    cdef int result
    if hv_unlikely(not self.held or self.claimed):
        unusable(self)
    # No Python code runs between looking at the object and the copy, so its memory stays; the buffer protocol, which
    # would say the same, costs more than the copy of a small packet.
    if PyBytes_CheckExact(payload):
        start = <const uint8_t *>PyBytes_AS_STRING(payload)
        length = PyBytes_GET_SIZE(payload)
    elif is_bytearray(payload):
        start = <const uint8_t *>PyByteArray_AS_STRING(payload)
        length = PyByteArray_GET_SIZE(payload)
    else:
        result = write_buffer(self, payload, transaction_id, packet_type, flags)
        if result < 0:
            corrupt(result)
        return result
    result = hv_tx_write(&self.ring, start, length, transaction_id, packet_type, flags)
    if hv_unlikely(result < 0):
        corrupt(result)
    return result


cdef inline int find(RingConsumer self, hv_packet *packet) except -100:
    """The next packet that is wanted: HV_OK or HV_EMPTY; steps over the others, releases what it stepped over."""
    # its own, so that `packet` stays in registers
    cdef hv_packet other
    cdef int result
    if not hv_unlikely(not self.held or self.viewing) and not hv_unlikely(hv_rx_next(&self.ring, packet) != HV_OK) \
            and not hv_unlikely(self.accepted >> min(packet.type, 63) & 1 == 0):
        return HV_OK
    result = search(self, &other)
    packet[0] = other
    return result


cdef inline void release(RingConsumer self) noexcept:
    if hv_unlikely(hv_rx_release(&self.ring)):
        self.room_signal = True


cdef inline int copy_next(RingConsumer self, object buffer, hv_packet *packet) except -100:
    """The next packet's payload into `buffer`, and a step over it: HV_OK or HV_EMPTY; gives no room back yet."""
    # as in find()
    cdef hv_packet other
    cdef int result
    if hv_unlikely(not is_bytearray(buffer)):
        result = receive_into(self, buffer, &other)
        packet[0] = other
        return result
    result = find(self, packet)
    if result == HV_OK:
        if hv_unlikely(PyByteArray_GET_SIZE(buffer) < <Py_ssize_t>packet.length):
            too_small(packet.length)
        hv_rx_copy(&self.ring, packet, <uint8_t *>PyByteArray_AS_STRING(buffer))
        hv_rx_consume(&self.ring, packet)
    return result


cdef inline bytes payload_bytes(RingConsumer self, const hv_packet *packet):
    cdef bytes payload = PyBytes_FromStringAndSize(NULL, packet.length)
    hv_rx_copy(&self.ring, packet, <uint8_t *>PyBytes_AS_STRING(payload))
    return payload


cdef inline object length_of(RingConsumer self, const hv_packet *packet):
    """The payload's length as an int, mostly the one of the packet before."""
    if hv_unlikely(self.length != packet.length):
        self.length = packet.length
        self.length_object = packet.length
    return self.length_object
