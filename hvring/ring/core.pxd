# cython: language_level=3
# SPDX-License-Identifier: Apache-2.0
"""The ring at C level: no Python objects, no GIL.  `cimport hvring.ring.core` from any extension.

An `hv_ring` is ONE end of ONE ring and belongs to one thread.  A writer does

    hv_tx_write(&tx, ...)  any number of times, then  hv_tx_publish(&tx)  -> 1: signal the other side

and a reader

    hv_rx_next(&rx, &pkt), hv_rx_copy(...), hv_rx_consume(&rx, &pkt), ... then  hv_rx_release(&rx)  -> 1: signal

Every function that looks at a field of the other side loads it once, checks it, and returns one of the negative
HV_BAD_* codes if it is a lie; nothing outside the ring is ever touched (PROTOCOL 2).
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from hvring.ring.layout cimport (HV_BAD_FRAGMENT, HV_BAD_LEN8, HV_BAD_LENGTH, HV_BAD_OFFSET8, HV_BAD_OWN_READ,
                                 HV_BAD_OWN_WRITE, HV_BAD_READ_ALIGN, HV_BAD_READ_BACK, HV_BAD_READ_RANGE,
                                 HV_BAD_WRITE_ALIGN, HV_BAD_WRITE_BACK, HV_BAD_WRITE_RANGE, HV_CANCEL, HV_COMPLETION,
                                 HV_DESCRIPTOR, HV_EMPTY, HV_FEATURE_BITS, HV_FEATURE_PENDING_SEND_SZ, HV_FULL,
                                 HV_INTERRUPT_MASK, HV_IN_BAND, HV_MAX_LEN, HV_OK, HV_PENDING_SEND_SZ, HV_READ_INDEX,
                                 HV_SMALLEST, HV_TOO_LARGE, HV_TRAILER, HV_WRITE_INDEX, hv_advance, hv_attach,
                                 hv_check_read, hv_check_write, hv_copy, hv_copy_in, hv_copy_out, hv_distance,
                                 hv_fence, hv_has_short_header, hv_load64, hv_load_acquire32, hv_load_acquire64,
                                 hv_load_relaxed32, hv_load_relaxed64, hv_nearer, hv_or32, hv_packet, hv_ring, hv_row,
                                 hv_store64, hv_store_relaxed32, hv_store_release32, hv_unlikely)


# ---------------------------------------------------------------------------------------------- the writing end

cdef inline uint32_t hv_tx_total(uint32_t payload) noexcept nogil:
    """Ring bytes of a packet with `payload` bytes: rounded up to 8, descriptor and trailer included."""
    return ((payload + HV_DESCRIPTOR + 7) & ~<uint32_t>7) + HV_TRAILER


cdef inline uint32_t hv_tx_free(const hv_ring *r) noexcept nogil:
    """Bytes not used as of the last look; a packet needs strictly more than its total (PROTOCOL 2.1)."""
    return r.size - hv_distance(r.own, r.peer, r.size)


cdef inline int hv_tx_look(hv_ring *r) noexcept nogil:
    """Look at the reader's index anew.  Acquire: partner of the release in hv_rx_release."""
    cdef uint32_t read = hv_load_acquire32(r.control + HV_READ_INDEX)
    cdef int bad = hv_check_read(read, r.size)
    if bad != HV_OK:
        return bad
    if hv_load_relaxed32(r.control + HV_WRITE_INDEX) != r.published:
        return HV_BAD_OWN_WRITE
    if hv_distance(r.published, read, r.size) > hv_distance(r.published, r.peer, r.size):
        return HV_BAD_READ_BACK
    r.peer = read
    return HV_OK


cdef inline int hv_tx_reserve(hv_ring *r, uint32_t total) noexcept nogil:
    """Is there room for `total` bytes?  HV_OK, HV_FULL, HV_TOO_LARGE or a lie."""
    cdef int bad
    if hv_unlikely(hv_tx_free(r) <= total):
        if total > r.size - 8:
            return HV_TOO_LARGE
        bad = hv_tx_look(r)
        if bad != HV_OK:
            return bad
        if hv_tx_free(r) <= total:
            return HV_FULL
    return HV_OK


cdef inline uint64_t hv_descriptor(uint32_t length, uint16_t packet_type, uint16_t flags) noexcept nogil:
    """The first 8 bytes of a packet whose descriptor and padded payload have `length` bytes (PROTOCOL 2.2)."""
    return packet_type | (2 << 16) | (<uint64_t>length << 29) | (<uint64_t>flags << 48)


cdef inline void hv_tx_frame(hv_ring *r, uint32_t payload, uint64_t transaction_id, uint16_t packet_type,
                             uint16_t flags) noexcept nogil:
    """Everything of a packet but its payload, for which there is room; moves our index past it."""
    cdef uint32_t start = r.own
    cdef uint32_t length = hv_tx_total(payload) - HV_TRAILER
    cdef uint32_t at = hv_advance(start, 8, r.size)
    cdef uint32_t pad = length - HV_DESCRIPTOR - payload
    hv_store64(r.data + start, hv_descriptor(length, packet_type, flags))
    hv_store64(r.data + at, transaction_id)
    at = hv_advance(start, length, r.size)
    # the padding lies in the last 8 bytes before `at`, which never wrap
    if pad:
        memset(r.data + (at if at else r.size) - pad, 0, pad)
    hv_store64(r.data + at, <uint64_t>start << 32)
    r.own = hv_advance(at, HV_TRAILER, r.size)


cdef inline int hv_tx_write_anywhere(hv_ring *r, const uint8_t *payload, uint64_t n, uint64_t transaction_id,
                                     uint16_t packet_type, uint16_t flags) noexcept nogil:
    """hv_tx_write for a packet that needs a look at the reader's index, wraps or ends where the ring does."""
    cdef int result
    if n > HV_MAX_LEN - HV_DESCRIPTOR:
        return HV_TOO_LARGE
    result = hv_tx_reserve(r, hv_tx_total(<uint32_t>n))
    if result != HV_OK:
        return result
    hv_copy_in(r, hv_advance(r.own, HV_DESCRIPTOR, r.size), payload, <uint32_t>n)
    hv_tx_frame(r, <uint32_t>n, transaction_id, packet_type, flags)
    return HV_OK


cdef inline int hv_tx_write(hv_ring *r, const uint8_t *payload, uint64_t n, uint64_t transaction_id,
                            uint16_t packet_type, uint16_t flags) noexcept nogil:
    """Put one packet behind the others; the reader does not see it before hv_tx_publish.

    The type must have a short header (hv_has_short_header): others would be taken for what they are not.
    """
    cdef uint32_t start = r.own
    # up to here there is room in one piece
    cdef uint32_t limit = r.peer if r.peer > start else r.size
    cdef uint32_t total = hv_tx_total(<uint32_t>n)
    cdef uint8_t *packet = r.data + start
    if hv_unlikely(n > HV_MAX_LEN - HV_DESCRIPTOR) or hv_unlikely(start + total >= limit):
        return hv_tx_write_anywhere(r, payload, n, transaction_id, packet_type, flags)
    r.own = start + total
    # the padding; what else is there is written over
    hv_store64(packet + total - HV_TRAILER - 8, 0)
    hv_store64(packet, hv_descriptor(total - HV_TRAILER, packet_type, flags))
    hv_store64(packet + 8, transaction_id)
    hv_store64(packet + total - HV_TRAILER, <uint64_t>start << 32)
    hv_copy(packet + HV_DESCRIPTOR, payload, n)
    return HV_OK


cdef inline size_t hv_tx_run(hv_ring *r, const hv_row *rows, size_t limit, const uint8_t *buffer,
                             size_t size) noexcept nogil:
    """Put the first packets of a table behind the others: those of data that fit in one piece.

    Returns how many; what stops it is for hv_tx_write to see, or that a quarter of the ring is not published.  The
    indices stay in registers, which is what makes this cheaper than hv_tx_write.
    """
    cdef uint32_t own = r.own
    cdef uint32_t bound = r.peer if r.peer > own else r.size
    cdef int64_t quarter = <int64_t>own - hv_distance(own, r.published, r.size) + r.size // 4
    cdef uint8_t *data = r.data
    cdef uint8_t *packet
    cdef const hv_row *row = rows
    cdef const hv_row *end = rows + limit
    cdef uint32_t at, n, need
    while row < end and own <= quarter:
        at = row.offset
        n = row.length
        need = hv_tx_total(n)
        if hv_unlikely(n > HV_MAX_LEN - HV_DESCRIPTOR) or hv_unlikely(own + need >= bound):
            break
        if hv_unlikely(<size_t>at + n > size) or hv_unlikely(row.type != HV_IN_BAND and row.type != 0):
            break
        packet = data + own
        hv_store64(packet + need - HV_TRAILER - 8, 0)
        hv_store64(packet, hv_descriptor(need - HV_TRAILER, HV_IN_BAND, row.flags))
        hv_store64(packet + 8, row.transaction_id)
        hv_store64(packet + need - HV_TRAILER, <uint64_t>own << 32)
        hv_copy(packet + HV_DESCRIPTOR, buffer + at, n)
        own += need
        row += 1
    r.own = own
    return row - rows


cdef inline bint hv_tx_publish(hv_ring *r) noexcept nogil:
    """Show the reader all that was written.  True: it must be signalled (PROTOCOL 2.6).

    The index before the whole batch is what is compared, so any number of packets may be published at once.
    """
    cdef uint32_t old = r.published, own = r.own
    if own == old:
        return False
    # partner: acquire in hv_rx_look
    hv_store_release32(r.control + HV_WRITE_INDEX, own)
    r.published = own
    # partner: fence in hv_rx_unmask, hv_rx_release
    hv_fence()
    if hv_load_acquire32(r.control + HV_INTERRUPT_MASK):
        return False
    return hv_load_acquire32(r.control + HV_READ_INDEX) == old


cdef inline void hv_tx_want_room(hv_ring *r, uint32_t total) noexcept nogil:
    """Ask the reader for a signal once `total` bytes fit (PROTOCOL 2.7); look again with hv_tx_reserve after it."""
    hv_store_relaxed32(r.control + HV_PENDING_SEND_SZ, total)
    # partner: fence in hv_rx_release
    hv_fence()


cdef inline void hv_tx_room_found(hv_ring *r) noexcept nogil:
    hv_store_relaxed32(r.control + HV_PENDING_SEND_SZ, 0)


# ---------------------------------------------------------------------------------------------- the reading end

cdef inline uint32_t hv_rx_available(const hv_ring *r) noexcept nogil:
    """Bytes to read as of the last look."""
    return hv_distance(r.peer, r.own, r.size)


cdef inline int hv_rx_look(hv_ring *r) noexcept nogil:
    """Look at the writer's index anew.  Acquire: partner of the release in hv_tx_publish."""
    cdef uint32_t write = hv_load_acquire32(r.control + HV_WRITE_INDEX)
    cdef int bad = hv_check_write(write, r.size)
    if hv_unlikely(bad != HV_OK):
        return bad
    if hv_unlikely(hv_load_relaxed32(r.control + HV_READ_INDEX) != r.published):
        return HV_BAD_OWN_READ
    # equal: everything that was seen is read and released, so nothing can be withdrawn
    if hv_unlikely(r.peer != r.published) and hv_nearer(write, r.peer, r.published, r.size):
        return HV_BAD_WRITE_BACK
    r.peer = write
    return HV_OK


cdef inline int hv_rx_next(hv_ring *r, hv_packet *p) noexcept nogil:
    """The next packet's descriptor, read once and checked.  HV_OK, HV_EMPTY or a lie; nothing is consumed."""
    cdef uint32_t own = r.own, peer = r.peer, size = r.size
    cdef uint32_t limit, end, header, length
    cdef uint64_t word
    cdef int bad
    if own == peer:
        bad = hv_rx_look(r)
        if hv_unlikely(bad != HV_OK):
            return bad
        peer = r.peer
        if hv_unlikely(own == peer):
            return HV_EMPTY
    # up to here the packets are in one piece
    limit = peer if peer > own else size
    if hv_unlikely(limit - own < HV_SMALLEST) and hv_distance(peer, own, size) < HV_SMALLEST:
        # so that the next call looks again
        r.peer = own
        return HV_BAD_FRAGMENT
    word = hv_load_relaxed64(r.data + own)
    # offset8, len8 in bytes
    header = <uint32_t>(word >> 13) & 0x7FFF8
    length = <uint32_t>(word >> 29) & 0x7FFF8
    if hv_unlikely(header < HV_DESCRIPTOR):
        return HV_BAD_OFFSET8
    if hv_unlikely(length < header):
        return HV_BAD_LEN8
    end = own + length + HV_TRAILER
    p.type = <uint16_t>word
    p.flags = <uint16_t>(word >> 48)
    p.length = length - header
    p.total = length + HV_TRAILER
    if not hv_unlikely(end >= limit and end != peer):
        p.transaction_id = hv_load64(r.data + own + 8)
        p.start = own + header
        p.next = end
        p.split = False
    else:
        if length + HV_TRAILER > hv_distance(peer, own, size):
            return HV_BAD_LENGTH
        p.transaction_id = hv_load64(r.data + hv_advance(own, 8, size))
        p.start = hv_advance(own, header, size)
        p.next = hv_advance(own, length + HV_TRAILER, size)
        p.split = True
    return HV_OK


cdef inline void hv_rx_copy(const hv_ring *r, const hv_packet *p, uint8_t *target) noexcept nogil:
    """The payload out of the ring: p.length bytes."""
    if hv_unlikely(p.split):
        hv_copy_out(r, p.start, target, p.length)
    else:
        hv_copy(target, r.data + p.start, p.length)


cdef inline void hv_rx_consume(hv_ring *r, const hv_packet *p) noexcept nogil:
    """Step over a packet; the writer gets the room at hv_rx_release."""
    r.own = p.next


cdef inline size_t hv_rx_run(hv_ring *r, uint64_t accepted, hv_row *rows, size_t limit, uint8_t *buffer, size_t size,
                             size_t *used) noexcept nogil:
    """Take the next packets that are plain: in one piece, as seen at the last look, of an accepted type.

    Their payloads go into `buffer` from `used` on.  Returns how many; what stops it, lies included, is for hv_rx_next
    to see, or that a quarter of the ring is not given back.
    """
    cdef uint32_t own = r.own, length
    cdef uint32_t bound = r.peer if r.peer >= own else r.size
    cdef int64_t quarter = <int64_t>own - hv_distance(own, r.published, r.size) + r.size // 4
    cdef uint8_t *data = r.data
    cdef hv_row *row = rows
    cdef hv_row *end = rows + limit
    cdef size_t at = used[0]
    cdef uint64_t word
    while row < end and own <= quarter and bound - own >= HV_SMALLEST:
        word = hv_load_relaxed64(data + own)
        length = <uint32_t>(word >> 29) & 0x7FFF8
        if hv_unlikely(<uint32_t>word >> 16 != HV_DESCRIPTOR // 8) or hv_unlikely(length < HV_DESCRIPTOR):
            break
        if hv_unlikely(length + HV_TRAILER > bound - own) or hv_unlikely(length - HV_DESCRIPTOR > size - at):
            break
        if hv_unlikely(accepted >> min(<uint16_t>word, 63) & 1 == 0):
            break
        row.offset = <uint32_t>at
        row.length = length - HV_DESCRIPTOR
        row.type = <uint16_t>word
        row.flags = <uint16_t>(word >> 48)
        row.reserved = 0
        row.transaction_id = hv_load64(data + own + 8)
        hv_copy(buffer + at, data + own + HV_DESCRIPTOR, length - HV_DESCRIPTOR)
        at += length - HV_DESCRIPTOR
        own += length + HV_TRAILER
        row += 1
    r.own = own if own < r.size else 0
    used[0] = at
    return row - rows


cdef inline bint hv_rx_room_wanted(const hv_ring *r, uint32_t before, uint32_t pending) noexcept nogil:
    """Did the step from `before` to our index make the room of `pending` bytes that the writer waits for?"""
    cdef uint32_t free_now, write
    if not hv_load_relaxed32(r.control + HV_FEATURE_BITS) & HV_FEATURE_PENDING_SEND_SZ:
        return False
    # some writers ask for "ring size - 1" and mean "all of it"
    pending &= ~<uint32_t>7
    if pending > r.size - 8:
        pending = r.size - 8
    write = hv_load_acquire32(r.control + HV_WRITE_INDEX)
    if write >= r.size:
        # a lie: the next look says so
        return False
    free_now = r.size - hv_distance(write, r.own, r.size)
    return free_now > pending and free_now - hv_distance(r.own, before, r.size) <= pending


cdef inline bint hv_rx_release(hv_ring *r) noexcept nogil:
    """Give back the room of all consumed packets.  True: the writer waits for it, signal it (PROTOCOL 2.7)."""
    cdef uint32_t own = r.own, before = r.published, pending
    if own == before:
        return False
    # partner: acquire in hv_tx_look
    hv_store_release32(r.control + HV_READ_INDEX, own)
    r.published = own
    # partner: fence in hv_tx_want_room, hv_tx_publish
    hv_fence()
    pending = hv_load_acquire32(r.control + HV_PENDING_SEND_SZ)
    return hv_unlikely(pending != 0) and hv_rx_room_wanted(r, before, pending)


cdef inline void hv_rx_mask(hv_ring *r) noexcept nogil:
    """Ask the writer for silence while we drain; a hint, so no order is needed."""
    hv_store_relaxed32(r.control + HV_INTERRUPT_MASK, 1)


cdef inline int hv_rx_unmask(hv_ring *r) noexcept nogil:
    """Ask for signals again, then look: HV_OK when there is something to read, HV_EMPTY when it is safe to sleep."""
    cdef int bad
    hv_store_relaxed32(r.control + HV_INTERRUPT_MASK, 0)
    # partner: fence in hv_tx_publish
    hv_fence()
    bad = hv_rx_look(r)
    if bad != HV_OK:
        return bad
    return HV_OK if hv_rx_available(r) else HV_EMPTY
