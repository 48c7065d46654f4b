# SPDX-License-Identifier: Apache-2.0
"""What a channel does to be woken, and to wake the other side.  Part of _channel.pyx.

Whatever may run Python code or let another thread run may close the channel, after which its memory must not be
touched: buffers, iterators and numbers of the caller; signal handlers; sleeps.  Of the functions here these are
``sleep`` and ``handle_signals``, which raise ChannelClosedError then, and ``signal``, which has no more to do.
"""


cdef int usable(Channel self) except -1:
    if self.closed:
        raise ChannelClosedError(f"channel {self.name or '?'} was closed on this side")
    if self.rescinded:
        raise ChannelRescindedError(f"the host took channel {self.name or '?'} back, or died; "
                                    "wait for a new offer and open it again")
    return 0


cdef int check_lifeline(Channel self) except -1:
    """Raise when the other side is gone."""
    self.unchecked = 0
    if self.sleeper.gone():
        self.rescinded = True
        usable(self)
    return 0


cdef int handle_signals(Channel self) except -1:
    """Run the handlers of signals that came, for poll is not interrupted while the doorbell rings and rings."""
    PyErr_CheckSignals()
    if self.closed:
        usable(self)
    return 0


cdef inline double deadline_of(object timeout) except? -2:
    """When a wait of so many seconds is over, on the clock of now(); -1: never."""
    return -1 if timeout is None else now() + max(<double>timeout, 0.0)


cdef inline double earlier(double deadline, double until) noexcept:
    return min(deadline, until) if deadline >= 0 else until


cdef inline void quiet(Channel self) noexcept nogil:
    """Mask interrupts if they are not: a store takes the line from the other side."""
    if not self.masked:
        hv_rx_mask(&self.rx.ring)
        self.masked = True


cdef int signal(Channel self) except -1:
    """Wake the other side."""
    cdef int result = self.doorbell.ring()
    self.signals_sent += 1
    if result == -EAGAIN:
        result = self.sleeper.ring()
        if self.closed:
            usable(self)
    if self.masked and self.doorbell.unmasks():
        hv_rx_mask(&self.rx.ring)
    if result < 0:
        self.rescinded = True
        usable(self)
    # The sleep before this signal would have said so: an answer costs one call less.
    if self.seen_alive:
        self.seen_alive = False
        return 0
    # uio's write would have failed, and the monitor page's point is to cost no call.
    if self.sleeper.lifeline < 0 and self.unchecked < LIFELINE_EVERY:
        self.unchecked += 1
        return 0
    return check_lifeline(self)


cdef int room_made(Channel self) except -1:
    """Wake a writer that waits for the room that was just given back, if there still is one."""
    self.rx.room_signal = False
    self.room_signals_sent += 1
    try:
        return signal(self)
    except (ChannelClosedError, ChannelRescindedError):
        # What was received with this room is not to be lost; who waits for more is told.
        return 0


cdef inline int give_back(Channel self) except -1:
    """Give the room of received packets back; wake a writer that waits for it."""
    if hv_unlikely(hv_rx_release(&self.rx.ring) or self.rx.room_signal):
        return room_made(self)
    return 0


cdef int view_ended(object holder, uint32_t total, bint due) except -1:
    cdef Channel self = <Channel>holder
    self.bytes_received += total
    self.packets_received += total != 0
    return room_made(self) if self.rx.room_signal else 0


cdef int sleep(Channel self, double deadline) except -1:
    """Sleep, and take what was rung: RUNG, GONE or TIME_OVER."""
    cdef int why = self.sleeper.sleep(deadline)
    self.seen_alive = why == RUNG and self.sleeper.alive
    if self.closed:
        usable(self)
    if why == RUNG and take_signals(self) < 0 or why == GONE:
        self.rescinded = True
        return GONE
    return why


cdef int64_t take_signals(Channel self) noexcept:
    """How often the other side rang, or -errno."""
    cdef int64_t rung = self.doorbell.clear()
    # The other side may have written any number into its eventfd.
    if rung > 0:
        self.events = min(self.events + <uint64_t>rung, <uint64_t>1 << 62)
    return rung


cdef int arm_once(Channel self) except -1:
    """Unmask, fence, look again: is there something to read?"""
    cdef int result
    self.masked = False
    if self.closed:
        usable(self)
    if self.rescinded and not has_arrived(self):
        usable(self)
    self.armed += 1
    result = hv_rx_unmask(&self.rx.ring)
    if result < 0:
        corrupt(result)
    return result == HV_OK


cdef bint has_arrived(Channel self) except -1:
    """Is there something to read?  Does not ask for signals as arm_once does."""
    cdef int result = hv_rx_look(&self.rx.ring)
    if result < 0:
        corrupt(result)
    return hv_rx_available(&self.rx.ring) != 0


cdef bint arrived(Channel self) except -1:
    """The same, with interrupts masked when there is."""
    if not has_arrived(self):
        return False
    quiet(self)
    return True


cdef bint look(Channel self, double deadline) except -1:
    """Look for a packet for as long as it may pay, with interrupts masked: the other side need not signal it."""
    cdef int64_t budget
    if self.closed:
        usable(self)
    if arrived(self):
        return True
    budget = self.spinner.budget(now_ns())
    # A late deadline is no integer.
    if deadline >= 0:
        budget = <int64_t>min(<double>budget, (deadline - now()) * 1e9)
    if budget <= 0 or self.rescinded:
        return False
    quiet(self)
    with nogil:
        self.spinner.look(&self.rx.ring, budget)
    if not self.closed and arrived(self):
        return True
    handle_signals(self)
    return False


cdef bint wait_asleep(Channel self, double deadline) except -1:
    """Ask for signals, look, sleep, until something came or time is over."""
    cdef double until
    cdef int why = TIME_OVER
    while True:
        if arm_once(self):
            quiet(self)
            return True
        if room_came(self):
            return True
        # For nothing; a doorbell that never stops cannot keep us here.
        if why == RUNG:
            handle_signals(self)
            if deadline >= 0 and now() >= deadline:
                return False
        self.waits += 1
        until = deadline
        if self.recheck_every > 0:
            until = earlier(until, now() + self.recheck_every)
        if self.wanted:
            until = earlier(until, now() + ROOM_RECHECK_SECONDS)
        why = sleep(self, until)
        if why == RUNG:
            self.wakeups += 1
            if arrived(self):
                return True
        elif why == TIME_OVER:
            if until == deadline:
                return False
            if self.recheck_every > 0:
                self.recheck()


cdef int set_spin(Channel self, double seconds, double share) except -1:
    cdef Spinner spinner = Spinner() if self.spinner is None else self.spinner
    spinner.set(<int64_t>(seconds * 1e9 + 0.5) if 0 <= seconds <= 1 else -1, share, now_ns())
    self.spinner = spinner
    self.share = share
    return 0
