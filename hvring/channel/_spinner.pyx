# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, autotestdict=False
# cython: embedsignature=True, embedsignature.format=clinic, always_allow_keywords=False, binding=False
# cython: freethreading_compatible=True
# SPDX-License-Identifier: Apache-2.0
"""Spinner: how long a channel may look for a packet before it sleeps (docs/decisions/0005)."""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t

from hvring.channel.system cimport now_ns
from hvring.ring.core cimport (HV_WRITE_INDEX, hv_fence, hv_load_acquire32, hv_load_relaxed32, hv_ring,
                               hv_store_relaxed32, hv_store_release32)


cdef extern from *:
    """
    #include <sched.h>
    #if defined(__x86_64__)
    #define hv_pause() __builtin_ia32_pause()
    #elif defined(__aarch64__)
    #define hv_pause() __asm__ __volatile__("yield" ::: "memory")
    #else
    #define hv_pause() ((void)0)
    #endif
    /* May this thread run on one processor only?  A set that does not fit here has more. */
    static int hv_alone(void)
    {
        cpu_set_t set;
        return sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) == 1;
    }
    """
    void hv_pause() noexcept nogil
    bint hv_alone() noexcept nogil
    int sched_yield() noexcept nogil


cdef enum:
    # ns: of one look, and of all looks that nothing was saved up for
    LONGEST = 1000000
    # ns: shorter looks are none
    SHORTEST = 2000
    # ns: what a sleep may add to a delay; a delay that is longer than this and a look is long
    WAKE = 200000
    # ns: after this the channel was idle
    IDLE = 10000000
    # at first without a pause, which takes as long as ten of them
    TRIES = 64
    # looks of full length that see nothing before they are given up
    LOST = 4
    # quick waits until the next try then; doubled each time
    REST = 16
    LONGEST_REST = 1024


@cython.final
cdef class Spinner:
    """Bounds of ``limit`` ns per look and of ``share`` of the time that passes, for all looks together.

    What is spun away comes out of a bucket that holds up to 1 ms and fills at ``share``; so nothing that the other
    side does makes looks cost more.  Once empty it is left alone until it is half full.

    Within that, ``bound`` follows the delays: it doubles when a packet came late in a look or soon after it, shrinks
    when packets come early, and is 0 after an idle time or a few looks in vain.  Sleeps are timed too: once packets
    come quickly again, a quarter of the limit is tried.
    """

    cpdef int set(self, int64_t limit, double share, int64_t now) except -1:
        """ValueError for a limit above 1 ms or a share that is not in (0, 1].  Off where there is one processor."""
        if not 0 <= limit <= LONGEST:
            raise ValueError("a spin takes from 0 to 0.001 seconds")
        if not 0 < share <= 1:
            raise ValueError("a share of one processor's time is above 0 and at most 1")
        if self.saved_at == 0:
            self.saved = LONGEST
        else:
            self.save(now)
        self.saved_at = now
        if limit != self.limit:
            self.limit = 0 if hv_alone() else limit
        self.bound = self.resting = self.rest = self.lost = 0
        self.drained = False
        self.share = share
        return 0

    cdef void save(self, int64_t now) noexcept nogil:
        self.saved = min(self.saved + (now - self.saved_at) * self.share, <double>LONGEST)
        self.saved_at = now

    cpdef int64_t budget(self, int64_t now) noexcept nogil:
        """A wait begins: for how many ns it may look; 0: it is to sleep at once."""
        self.began = now
        self.tried = False
        if self.bound == 0:
            return 0
        self.save(now)
        # When both sides look, a trip takes a hundredth of one with two sleeps: many in a row for what was saved up
        # are worth more than one now and then, which would find the other side asleep.
        if self.saved < self.bound:
            self.drained = True
        elif self.saved >= LONGEST / 2:
            self.drained = False
        return 0 if self.drained else self.bound

    cpdef void seen(self, bint won, int64_t now, int64_t budget) noexcept nogil:
        """A look of up to ``budget`` ns ended.  What the clock says above that was spent by others."""
        cdef int64_t took = min(now - self.began, budget)
        self.saved -= took
        self.spun += took
        self.spins += 1
        self.tried = True
        if not won:
            return
        self.won += 1
        self.lost = self.rest = 0
        if took > self.bound // 2:
            self.bound = min(self.bound * 2, self.limit)
        elif took < self.bound // 8:
            self.bound = max(self.bound - self.bound // 8, min(<int64_t>SHORTEST, self.limit))

    cpdef void slept(self, int64_t now, bint came) noexcept nogil:
        """A wait ends that slept, with or without a packet."""
        cdef int64_t delay = now - self.began
        if delay > self.limit + WAKE:
            self.bound = 0 if delay > IDLE or self.bound < 4 * SHORTEST else self.bound // 4
        elif came and self.tried:
            self.lost += self.bound == self.limit
            self.bound = min(self.bound * 2, self.limit)
            if self.lost == LOST:
                self.bound = self.lost = 0
                self.resting = self.rest = min(max(2 * self.rest, <int>REST), <int>LONGEST_REST)
        elif came and self.bound == 0:
            if self.resting:
                self.resting -= 1
            else:
                self.bound = self.limit // 4 if self.limit >= 4 * SHORTEST else self.limit

    cdef void look(self, const hv_ring *ring, int64_t budget) noexcept nogil:
        """For up to ``budget`` ns, until the writer's index of an empty ring is another one or ``stop`` says so.

        The memory is not touched any more when this returns.  The caller then looks properly.
        """
        cdef const uint8_t *index = ring.control + HV_WRITE_INDEX
        cdef uint32_t before = ring.peer
        cdef int64_t now = self.began
        cdef bint changed = False
        cdef int _, n = 0
        hv_store_relaxed32(&self.looking, 1)
        # partner: the fence in stop()
        hv_fence()
        while n < TRIES and not changed and not hv_load_relaxed32(&self.stopped):
            changed = hv_load_relaxed32(index) != before
            n += 1
        while not changed and not hv_load_relaxed32(&self.stopped) and now - self.began < budget:
            for _ in range(8):
                hv_pause()
                changed = hv_load_relaxed32(index) != before
                if changed:
                    break
            now = now_ns()
        # partner: the acquire in stop()
        hv_store_release32(&self.looking, 0)
        self.seen(changed, now_ns(), budget)

    cdef void stop(self) noexcept:
        """End the look that another thread is in; there will be no other until ``stopped`` is cleared."""
        hv_store_relaxed32(&self.stopped, 1)
        # partner: the fence in look()
        hv_fence()
        while hv_load_acquire32(&self.looking):
            with nogil:
                sched_yield()
