# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False, freethreading_compatible=True
# SPDX-License-Identifier: Apache-2.0
"""Packets in and out of a ring at C level: no Python object, no GIL, one publication for `batch` of them."""

from libc.stdint cimport uint8_t

from hvring.ring._ring cimport RingConsumer, RingProducer
from hvring.ring.core cimport (HV_EMPTY, HV_OK, hv_packet, hv_ring, hv_rx_consume, hv_rx_copy, hv_rx_next, hv_rx_release,
                               hv_tx_publish, hv_tx_write)


def produce(RingProducer ring, const uint8_t[::1] payload, Py_ssize_t count, Py_ssize_t batch=1):
    """Send `payload` `count` times, spinning while the ring is full.  How often the reader had to be signalled."""
    cdef hv_ring *tx = &ring.ring
    cdef const uint8_t *start = &payload[0]
    cdef Py_ssize_t n = payload.shape[0], sent = 0, signals = 0
    cdef int result = HV_OK
    with nogil:
        while sent < count and result >= 0:
            result = hv_tx_write(tx, start, n, sent, 6, 0)
            sent += result == HV_OK
            if result != HV_OK or sent % batch == 0 or sent == count:
                signals += hv_tx_publish(tx)
    if result < 0:
        raise RuntimeError(f"the reader lied ({result})")
    return signals


def consume(RingConsumer ring, uint8_t[::1] target, Py_ssize_t count, bint wait=True):
    """Receive up to `count` packets, spinning while the ring is empty if `wait`.  How many."""
    cdef hv_ring *rx = &ring.ring
    cdef hv_packet packet
    cdef Py_ssize_t received = 0
    cdef int result = HV_OK
    with nogil:
        while received < count and (wait or result == HV_OK) and result >= 0:
            result = hv_rx_next(rx, &packet)
            if result == HV_OK and packet.length <= <size_t>target.shape[0]:
                hv_rx_copy(rx, &packet, &target[0])
            if result == HV_OK:
                hv_rx_consume(rx, &packet)
                received += 1
            elif result == HV_EMPTY:
                hv_rx_release(rx)       # the writer gets the room of all of them at once
        hv_rx_release(rx)
    if result < 0:
        raise RuntimeError(f"the writer lied ({result})")
    return received


def pairs(RingProducer out, RingConsumer into, const uint8_t[::1] payload, uint8_t[::1] target, Py_ssize_t count):
    """One packet in and out again, `count` times; both ends in this thread.  How often it worked."""
    cdef hv_packet packet
    cdef Py_ssize_t done = 0
    with nogil:
        while done < count:
            if hv_tx_write(&out.ring, &payload[0], payload.shape[0], done, 6, 0) != HV_OK:
                break
            hv_tx_publish(&out.ring)
            if hv_rx_next(&into.ring, &packet) != HV_OK or packet.length > <size_t>target.shape[0]:
                break
            hv_rx_copy(&into.ring, &packet, &target[0])
            hv_rx_consume(&into.ring, &packet)
            hv_rx_release(&into.ring)
            done += 1
    return done
