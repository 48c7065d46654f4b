# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, autotestdict=False
# cython: embedsignature=True, embedsignature.format=clinic, auto_pickle=False
# cython: freethreading_compatible=True
# SPDX-License-Identifier: Apache-2.0
"""What programs that keep time share with the kernel and with each other: its NTP state, and NTP's memory segment.

Compiled because the segment's reader runs at the same time: the order of the stores counts, on arm64, too.
"""

cimport cython
from libc.errno cimport errno
from libc.stdint cimport int64_t
from libc.string cimport memset


cdef extern from * nogil:
    """
    #include <errno.h>
    #include <sys/ipc.h>
    #include <sys/shm.h>
    #include <sys/timex.h>
    #include <time.h>

    /* As NTP's reference implementation, chrony and gpsd have it. */
    struct hv_shm_time {
        int mode;
        volatile int count;
        time_t clock_sec;
        int clock_usec;
        time_t receive_sec;
        int receive_usec;
        int leap;
        int precision;
        int samples;
        volatile int valid;
        unsigned clock_nsec;
        unsigned receive_nsec;
        int unused[8];
    };

    static struct hv_shm_time *hv_shm_attach(int key, int mode)
    {
        int id = shmget(key, sizeof(struct hv_shm_time), IPC_CREAT | mode);
        if (id < 0)
            return NULL;
        void *at = shmat(id, NULL, 0);
        return at == (void *)-1 ? NULL : (struct hv_shm_time *)at;
    }

    /* A reader takes what it copied if valid was 1 and count stood still meanwhile: a change is announced by valid = 0
       and an odd step of count before, and ended by another one after it; each fence pairs with the reader's. */
    static void hv_shm_publish(struct hv_shm_time *to, const struct hv_shm_time *from)
    {
        to->valid = 0;
        to->count++;
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        to->mode = 1;
        to->clock_sec = from->clock_sec;
        to->clock_usec = from->clock_usec;
        to->clock_nsec = from->clock_nsec;
        to->receive_sec = from->receive_sec;
        to->receive_usec = from->receive_usec;
        to->receive_nsec = from->receive_nsec;
        to->leap = from->leap;
        to->precision = from->precision;
        to->samples = 0;
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        to->count++;
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        to->valid = 1;
    }

    static int hv_adjtimex(struct timex *into)
    {
        into->modes = 0;
        return adjtimex(into) < 0 ? -errno : 0;
    }
    """
    struct hv_shm_time:
        int64_t clock_sec
        int clock_usec
        int64_t receive_sec
        int receive_usec
        int leap
        int precision
        unsigned clock_nsec
        unsigned receive_nsec

    struct timex:
        int status
        long offset
        long maxerror
        long esterror

    int STA_UNSYNC
    int STA_NANO
    hv_shm_time *hv_shm_attach(int key, int mode)
    int shmdt(const void *address)
    void hv_shm_publish(hv_shm_time *to, const hv_shm_time *of)
    int hv_adjtimex(timex *into)


def kernel_state():
    """Whether the kernel counts its clock as kept by somebody, and the largest error in microseconds that he told it.

    Raises OSError where that may not be asked.
    """
    cdef timex state
    memset(&state, 0, sizeof(state))
    cdef int problem = hv_adjtimex(&state)
    if problem < 0:
        raise OSError(-problem, "adjtimex")
    return not state.status & STA_UNSYNC, state.maxerror


@cython.final
cdef class Segment:
    """The shared memory of NTP's driver 28 with that System V key; made, with ``mode``, if it is not there.

    Raises OSError.
    """

    cdef hv_shm_time *memory

    def __cinit__(self, int key, int mode=0o600):
        self.memory = hv_shm_attach(key, mode)
        if self.memory is NULL:
            raise OSError(errno, "the segment cannot be attached")

    def __dealloc__(self):
        if self.memory is not NULL:
            shmdt(self.memory)

    def publish(self, int64_t clock_ns, int64_t receive_ns, int leap, int precision):
        """At ``receive_ns`` of this machine's clock it was ``clock_ns``; since 1970, neither of them before.

        ``precision``: the binary logarithm of seconds.
        """
        cdef hv_shm_time sample
        if clock_ns < 0 or receive_ns < 0:
            raise ValueError("a time before 1970")
        memset(&sample, 0, sizeof(sample))
        sample.clock_sec = clock_ns // 1_000_000_000
        sample.clock_nsec = <unsigned>(clock_ns % 1_000_000_000)
        sample.clock_usec = <int>(sample.clock_nsec // 1000)
        sample.receive_sec = receive_ns // 1_000_000_000
        sample.receive_nsec = <unsigned>(receive_ns % 1_000_000_000)
        sample.receive_usec = <int>(sample.receive_nsec // 1000)
        sample.leap = leap
        sample.precision = precision
        hv_shm_publish(self.memory, &sample)
