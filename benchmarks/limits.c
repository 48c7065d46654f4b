/* SPDX-License-Identifier: Apache-2.0 */
/* What no ring can be faster than: the copies alone, a cache line there and back, and copies handed to another processor
 * with one index each way. */
#define _GNU_SOURCE
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#define KEEP() __asm__ __volatile__("" ::: "memory")

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* into a ring and out again, without the ring; nanoseconds */
uint64_t bench_copies(void *middle, void *source, void *target, uint32_t length, uint64_t count)
{
    uint64_t start = now();
    for (uint64_t i = 0; i < count; i++) {
        memcpy(middle, source, length);
        KEEP();
        memcpy(target, middle, length);
        KEEP();
    }
    return now() - start;
}

/* one line of memory to another processor and back: `line` counts up, even for the one, odd for the other */
void bench_line_ping(_Atomic uint64_t *line, uint64_t count, uint64_t *took)
{
    for (uint64_t i = 0; i < count; i++) {
        uint64_t start = now();
        atomic_store_explicit(line, 2 * i + 1, memory_order_release);
        while (atomic_load_explicit(line, memory_order_acquire) != 2 * i + 2)
            ;
        took[i] = now() - start;
    }
}
void bench_line_pong(_Atomic uint64_t *line, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        while (atomic_load_explicit(line, memory_order_acquire) != 2 * i + 1)
            ;
        atomic_store_explicit(line, 2 * i + 2, memory_order_release);
    }
}

/* A packet's bytes (`length` and 24 of header and trailer) copied in by one, out by the other; both indices in one line,
 * as a VMBus ring has them, written once for `batch` packets; no header is looked at and nothing is checked. */
struct hand {
    _Atomic uint32_t head, tail;
    uint8_t rest[4088];
    uint8_t data[];
};
void bench_hand_over(struct hand *h, uint32_t size, void *source, uint32_t length, uint64_t count, uint32_t batch)
{
    uint32_t stride = length + 24, slots = (size - 4096) / stride, head = 0, tail = 0, at = 0;
    while (head < count) {
        while (head - tail >= slots)
            tail = atomic_load_explicit(&h->tail, memory_order_acquire);
        memcpy(h->data + (uint64_t)at * stride, source, stride);
        at = at + 1 == slots ? 0 : at + 1;
        if (++head % batch == 0 || head == count || head - tail == slots)
            atomic_store_explicit(&h->head, head, memory_order_release);
    }
}
void bench_take_over(struct hand *h, uint32_t size, void *target, uint32_t length, uint64_t count)
{
    uint32_t stride = length + 24, slots = (size - 4096) / stride, head = 0, tail = 0, at = 0;
    while (tail < count) {
        head = atomic_load_explicit(&h->head, memory_order_acquire);
        if (head == tail)
            continue;
        for (; tail != head; tail++) {
            memcpy(target, h->data + (uint64_t)at * stride, stride);
            KEEP();
            at = at + 1 == slots ? 0 : at + 1;
        }
        atomic_store_explicit(&h->tail, tail, memory_order_release);
    }
}
