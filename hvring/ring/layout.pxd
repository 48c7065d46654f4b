# cython: language_level=3
# SPDX-License-Identifier: Apache-2.0
"""What a ring looks like in memory (PROTOCOL 2.1-2.3): offsets, sizes, types, and the arithmetic on indices.

core.pxd, which has the two ends, gives all of this, too.
"""


from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "atomics.h" nogil:
    uint32_t hv_load_relaxed32(const void *p) noexcept
    uint32_t hv_load_acquire32(const void *p) noexcept
    uint64_t hv_load_relaxed64(const void *p) noexcept
    uint64_t hv_load64(const void *p) noexcept
    uint64_t hv_load_acquire64(const void *p) noexcept
    void hv_store_relaxed32(void *p, uint32_t v) noexcept
    void hv_store_release32(void *p, uint32_t v) noexcept
    void hv_store64(void *p, uint64_t v) noexcept
    void hv_fence() noexcept
    uint32_t hv_or32(void *p, uint32_t bits) noexcept
    bint hv_nearer(uint32_t index, uint32_t other, uint32_t behind, uint32_t size) noexcept
    # the condition, and a word to the compiler that it seldom holds
    bint hv_unlikely(bint condition) noexcept

cdef extern from "copy.h" nogil:
    void hv_copy(void *to, const void *source, size_t n) noexcept


cdef enum:
    # offsets in the control page (PROTOCOL 2.1)
    HV_WRITE_INDEX = 0
    HV_READ_INDEX = 4
    HV_INTERRUPT_MASK = 8
    HV_PENDING_SEND_SZ = 12
    HV_FEATURE_BITS = 64

    HV_FEATURE_PENDING_SEND_SZ = 1

    # packet types (PROTOCOL 2.3)
    HV_IN_BAND = 6
    HV_CANCEL = 10
    HV_COMPLETION = 11
    # bytes before the payload of an in-band packet (PROTOCOL 2.2)
    HV_DESCRIPTOR = 16
    HV_TRAILER = 8
    # descriptor and trailer
    HV_SMALLEST = 24
    # len8 has 16 bits
    HV_MAX_LEN = 0xFFFF * 8

    # results
    HV_OK = 0
    HV_EMPTY = 1
    HV_FULL = 2
    HV_TOO_LARGE = 3
    # lies of the other side; their words are in _ring.pyx
    HV_BAD_WRITE_RANGE = -1
    HV_BAD_WRITE_ALIGN = -2
    HV_BAD_WRITE_BACK = -3
    HV_BAD_READ_RANGE = -4
    HV_BAD_READ_ALIGN = -5
    HV_BAD_READ_BACK = -6
    HV_BAD_OWN_READ = -7
    HV_BAD_OWN_WRITE = -8
    HV_BAD_FRAGMENT = -9
    HV_BAD_OFFSET8 = -10
    HV_BAD_LEN8 = -11
    HV_BAD_LENGTH = -12


cdef struct hv_ring:
    # the control page
    uint8_t *control
    uint8_t *data
    # of the data area, a multiple of 8
    uint32_t size
    # our index: write (producer) or read (consumer), perhaps not yet published
    uint32_t own
    # our index as the other side can see it
    uint32_t published
    # the other side's index when we last looked; always checked
    uint32_t peer


cdef struct hv_packet:
    uint16_t type
    uint16_t flags
    # offset in the data area of the payload's first byte
    uint32_t start
    # of the payload: a multiple of 8
    uint32_t length
    # bytes to consume: descriptor, payload, trailer
    uint32_t total
    # offset of what follows it
    uint32_t next
    # it wraps: part of it is at the end of the data area, the rest at its beginning
    bint split
    uint64_t transaction_id


# A row of the table that describes a batch: hvring.vmbus.arrays.descriptor_dtype().
cdef struct hv_row:
    # of the payload in the buffer beside the table
    uint32_t offset
    uint32_t length
    uint16_t type
    uint16_t flags
    uint32_t reserved
    uint64_t transaction_id


cdef inline uint32_t hv_distance(uint32_t ahead, uint32_t behind, uint32_t size) noexcept nogil:
    """Bytes from `behind` forward to `ahead`; both below `size`."""
    return ahead - behind if ahead >= behind else ahead + size - behind


cdef inline uint32_t hv_advance(uint32_t index, uint32_t by, uint32_t size) noexcept nogil:
    index += by
    return index - size if index >= size else index


cdef inline bint hv_has_short_header(uint16_t packet_type) noexcept nogil:
    """Does this type's header end with the descriptor's 16 bytes, so that hv_tx_write makes a whole packet of it?"""
    return packet_type <= HV_COMPLETION and \
        (1 << HV_IN_BAND | 1 << HV_CANCEL | 1 << HV_COMPLETION) >> packet_type & 1


cdef inline int hv_check_write(uint32_t index, uint32_t size) noexcept nogil:
    if index >= size:
        return HV_BAD_WRITE_RANGE
    return HV_BAD_WRITE_ALIGN if index & 7 else HV_OK


cdef inline int hv_check_read(uint32_t index, uint32_t size) noexcept nogil:
    if index >= size:
        return HV_BAD_READ_RANGE
    return HV_BAD_READ_ALIGN if index & 7 else HV_OK


cdef inline int hv_attach(hv_ring *r, uint8_t *control, uint32_t control_size, uint32_t ring_size,
                          bint producer) noexcept nogil:
    """Take up one end where the control page says it is."""
    cdef uint64_t both = hv_load_acquire64(control + HV_WRITE_INDEX)
    cdef uint32_t write = <uint32_t>both
    cdef uint32_t read = <uint32_t>(both >> 32)
    cdef int bad
    r.control = control
    r.data = control + control_size
    r.size = ring_size - control_size
    bad = hv_check_write(write, r.size)
    if bad == HV_OK:
        bad = hv_check_read(read, r.size)
    if bad != HV_OK:
        return bad
    r.own = r.published = write if producer else read
    r.peer = read if producer else write
    return HV_OK


cdef inline void hv_copy_in(hv_ring *r, uint32_t at, const uint8_t *source, uint32_t n) noexcept nogil:
    """Bytes into the data area at offset `at`, in two parts where it wraps."""
    cdef uint32_t first = r.size - at
    if n <= first:
        hv_copy(r.data + at, source, n)
    else:
        hv_copy(r.data + at, source, first)
        hv_copy(r.data, source + first, n - first)


cdef inline void hv_copy_out(const hv_ring *r, uint32_t at, uint8_t *target, uint32_t n) noexcept nogil:
    cdef uint32_t first = r.size - at
    if n <= first:
        hv_copy(target, r.data + at, n)
    else:
        hv_copy(target, r.data + at, first)
        hv_copy(target + first, r.data, n - first)
