/* SPDX-License-Identifier: Apache-2.0 */
/* The loops that every C peer is measured with.  A peer's file defines before it includes this one:
 *   struct end                               what the peer keeps for a channel's two rings
 *   set_up(end, out, in, size)               both rings lie in the caller's memory; `size` with the control page
 *   send_one(end, data, length, &signal)     false: full
 *   recv_one(end, data, &room)               false: nothing there; `room` becomes the packet's bytes
 *   EXTRA                                    bytes of room that it wants behind the payload */
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* `count` packets written and read in one thread; nanoseconds, 0 when the ring refused one */
uint64_t bench_pairs(void *ring, uint32_t size, void *source, void *target, uint32_t length, uint64_t count)
{
    struct end c;
    bool need = false;
    set_up(&c, ring, ring, size);
    uint64_t start = now();
    for (uint64_t i = 0; i < count; i++) {
        uint32_t room = length + EXTRA;
        if (!send_one(&c, source, length, &need) || !recv_one(&c, target, &room))
            return 0;
    }
    return now() - start;
}

/* one call from Python each, as a binding over the C library would be used */
void *bench_open(void *out, void *in, uint32_t size)
{
    struct end *c = malloc(sizeof *c);
    set_up(c, out, in, size);
    return c;
}
int bench_send(void *c, void *data, uint32_t length)
{
    bool need = false;
    return send_one(c, data, length, &need) ? need : -1;
}
/* the buffer has EXTRA bytes behind `room` */
int bench_recv(void *c, void *data, uint32_t room)
{
    room += EXTRA;
    return recv_one(c, data, &room) ? (int)room : -1;
}
void bench_close(void *c) { free(c); }

/* two processes, one in each; spins where there is nothing to do */
void bench_produce(void *ring, uint32_t size, void *source, uint32_t length, uint64_t count)
{
    struct end c;
    bool need = false;
    set_up(&c, ring, ring, size);
    while (count)
        if (send_one(&c, source, length, &need))
            count--;
}
void bench_consume(void *ring, uint32_t size, void *target, uint32_t length, uint64_t count)
{
    struct end c;
    set_up(&c, ring, ring, size);
    while (count) {
        uint32_t room = length + EXTRA;
        if (recv_one(&c, target, &room))
            count--;
    }
}

/* a packet there and one back, `count` times; wait < 0: spins, else blocks in reads of that eventfd; bell < 0: rings
 * none; before each question there is a `pause`, before each answer `work`, of so many ns without sleep */
static void wait_for(struct end *c, void *data, uint32_t length, int wait)
{
    uint64_t rung;
    for (;;) {
        uint32_t room = length + EXTRA;
        if (recv_one(c, data, &room))
            return;
        if (wait >= 0 && read(wait, &rung, 8) != 8)
            abort();
    }
}
static void ring_bell(int bell)
{
    uint64_t one = 1;
    if (bell >= 0 && write(bell, &one, 8) != 8)
        abort();
}
static void spend(uint64_t time)
{
    for (uint64_t until = time ? now() + time : 0; time && now() < until;)
        ;
}
void bench_ping(void *out, void *in, uint32_t size, uint32_t length, uint64_t count, int bell, int wait, uint64_t pause,
                uint64_t *took)
{
    struct end c;
    bool need = false;
    uint8_t data[4096 + EXTRA] = {0};
    set_up(&c, out, in, size);
    for (uint64_t i = 0; i < count; i++) {
        spend(pause);
        uint64_t start = now();
        send_one(&c, data, length, &need);
        ring_bell(bell);
        wait_for(&c, data, length, wait);
        took[i] = now() - start;
    }
}
void bench_pong(void *out, void *in, uint32_t size, uint32_t length, uint64_t count, int bell, int wait, uint64_t work)
{
    struct end c;
    bool need = false;
    uint8_t data[4096 + EXTRA];
    set_up(&c, out, in, size);
    for (uint64_t i = 0; i < count; i++) {
        wait_for(&c, data, length, wait);
        spend(work);
        send_one(&c, data, length, &need);
        ring_bell(bell);
    }
}
