# SPDX-License-Identifier: Apache-2.0
"""What a channel does to send, and to wait for room (PROTOCOL 2.6, 2.7).  Part of _channel.pyx."""


cdef int no_room(Channel self, int result, object payload, uint64_t transaction_id, uint16_t packet_type,
                 uint16_t flags, object timeout) except -1:
    """The packet did not fit: wait until it is written, or raise."""
    cdef double seconds = -1 if timeout is None else max(<double>timeout, 0.0)
    self.full += 1
    if self.closed:
        usable(self)
    if seconds == 0 or result == HV_TOO_LARGE:
        check_lifeline(self)
        self.tx.refuse(result)
    return wait_room(self, payload, transaction_id, packet_type, flags, seconds)


cdef int wait_room(Channel self, object payload, uint64_t transaction_id, uint16_t packet_type, uint16_t flags,
                   double seconds) except -1:
    """The ring is full: say so in pending_send_sz, look again, sleep, until the packet is in; seconds < 0: for ever."""
    cdef double deadline = -1 if seconds < 0 else now() + seconds
    cdef Py_ssize_t n
    cdef int result
    try:
        while True:
            n = memoryview(payload).nbytes
            if self.closed:
                usable(self)
            hv_tx_want_room(&self.tx.ring, hv_tx_total(<uint32_t>min(n, <Py_ssize_t>HV_MAX_LEN)))
            result = self.tx.put(payload, transaction_id, packet_type, flags)
            if result == HV_OK:
                return 0
            if result == HV_TOO_LARGE:
                self.tx.refuse(result)
            check_lifeline(self)
            if deadline >= 0 and now() >= deadline:
                raise RingFullError(f"no room for {n} bytes within {seconds} s; nothing was sent")
            if sleep(self, earlier(deadline, now() + ROOM_RECHECK_SECONDS)) == GONE:
                usable(self)
            handle_signals(self)
    finally:
        # This packet's wish is over, and an earlier one of want_room() stands again.
        if not self.closed:
            if self.wanted:
                hv_tx_want_room(&self.tx.ring, self.wanted)
            else:
                hv_tx_room_found(&self.tx.ring)


cdef int room_came(Channel self) except -1:
    """Is there the room now that want_room asked for?  If not, the other side is asked to say so when it is."""
    cdef int result
    if self.wanted == 0:
        return False
    result = hv_tx_reserve(&self.tx.ring, self.wanted)
    if result == HV_FULL:
        # What was sent meanwhile may have used up room that was there when it was asked for.
        hv_tx_want_room(&self.tx.ring, self.wanted)
        result = hv_tx_reserve(&self.tx.ring, self.wanted)
    if result < 0:
        corrupt(result)
    if result != HV_OK:
        return False
    room_found(self)
    return True


cdef void room_found(Channel self) noexcept:
    self.wanted = 0
    hv_tx_room_found(&self.tx.ring)


cdef inline int published(Channel self, uint32_t total, bint due) except -1:
    """What follows one packet of `total` ring bytes that the other side can see."""
    # Whoever sends as much as was asked for has found the room.
    if hv_unlikely(self.wanted) and total >= self.wanted:
        room_found(self)
    self.bytes_sent += total
    self.packets_sent += 1
    self.unchecked += 1
    if due:
        signal(self)
    elif hv_unlikely(self.unchecked >= LIFELINE_EVERY):
        check_lifeline(self)
    return 0


cdef int sent_many(Channel self, Py_ssize_t sent, uint64_t total, bint due) except -1:
    """What follows a batch that was published."""
    self.packets_sent += sent
    self.bytes_sent += total
    if self.wanted and total >= self.wanted:
        room_found(self)
    if due:
        return signal(self)
    return check_lifeline(self)


cdef inline bint send_one(Channel self, object payload, uint64_t transaction_id, uint16_t packet_type, uint16_t flags,
                          object timeout) except -1:
    cdef bint due
    cdef int result
    cdef uint32_t total
    if hv_unlikely(self.closed or self.rescinded):
        usable(self)
    result = write(self.tx, payload, transaction_id, packet_type, flags)
    if hv_unlikely(result != HV_OK):
        no_room(self, result, payload, transaction_id, packet_type, flags, timeout)
    total = hv_distance(self.tx.ring.own, self.tx.ring.published, self.tx.ring.size)
    due = hv_tx_publish(&self.tx.ring)
    published(self, total, due)
    return due


cdef int claim_committed(object holder, uint32_t total, bint due) except -1:
    return published(<Channel>holder, total, due)


cdef hv_method send_full


cdef object send_quick(Channel self, PyObject *const *args, Py_ssize_t count, PyObject *names):
    """send(payload) without keywords."""
    if count != 1 or names != NULL:
        return send_full(self, args, count, names)
    return send_one(self, <object>args[0], 0, 6, 0, 0.0)


send_full = hv_stand_before(<PyTypeObject *>Channel, "send", <hv_method>send_quick)
