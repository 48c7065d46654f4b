/* SPDX-License-Identifier: Apache-2.0 */
/* Loops over the ring of DPDK's vmbus bus driver, to measure against: linked at run time with the unmodified objects out
 * of Debian's librte_bus_vmbus.a.  The rings lie in memory that the caller gives; the channel is laid out as that
 * driver's struct vmbus_channel: 32 bytes that these functions do not use, then the two ring ends. */
#define _GNU_SOURCE
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct vmbus_br {
    uint8_t *ring;
    uint32_t dsize, windex;
};
struct vmbus_channel {
    void *unused[4];
    struct vmbus_br rx, tx;
    uint8_t rest[64];
};

void vmbus_br_setup(struct vmbus_br *br, void *memory, unsigned int length);
int rte_vmbus_chan_send(struct vmbus_channel *c, uint16_t type, void *data, uint32_t length, uint64_t id, uint32_t flags,
                        bool *need_signal);
int rte_vmbus_chan_recv(struct vmbus_channel *c, void *data, uint32_t *length, uint64_t *id);
void rte_vmbus_chan_signal_read(struct vmbus_channel *c, uint32_t bytes);

/* what the objects want of the rest of DPDK and what is never reached here */
int vmbus_logtype_bus;
size_t rte_mem_page_size(void) { return 4096; }
#define NEVER(name) void name(void) { abort(); }
NEVER(__rte_panic)
NEVER(rte_free)
NEVER(rte_log)
NEVER(rte_zmalloc_socket)
NEVER(vmbus_uio_find_resource)
NEVER(vmbus_uio_get_subchan)
NEVER(vmbus_uio_map_rings)
NEVER(vmbus_uio_subchannels_supported)

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void set_up(struct vmbus_channel *c, void *out, void *in, uint32_t size)
{
    memset(c, 0, sizeof *c);
    vmbus_br_setup(&c->tx, out, size);
    vmbus_br_setup(&c->rx, in, size);
    c->tx.windex = *(uint32_t *)out;
}

static bool send_one(struct vmbus_channel *c, void *data, uint32_t length, bool *need)
{
    return rte_vmbus_chan_send(c, 6, data, length, 0, 0, need) == 0;
}

static bool recv_one(struct vmbus_channel *c, void *data, uint32_t *length)
{
    uint64_t id;
    if (rte_vmbus_chan_recv(c, data, length, &id) != 0)
        return false;
    rte_vmbus_chan_signal_read(c, *length + 24);
    return true;
}

/* `count` packets written and read in one thread; nanoseconds */
uint64_t bench_pairs(void *ring, uint32_t size, void *source, void *target, uint32_t length, uint64_t count)
{
    struct vmbus_channel c;
    bool need = false;
    set_up(&c, ring, ring, size);
    uint64_t start = now();
    for (uint64_t i = 0; i < count; i++) {
        uint32_t room = length + 8;
        if (!send_one(&c, source, length, &need) || !recv_one(&c, target, &room))
            return 0;
    }
    return now() - start;
}

/* one call from Python each, as a binding over the C library would be used */
void *bench_open(void *out, void *in, uint32_t size)
{
    struct vmbus_channel *c = malloc(sizeof *c);
    set_up(c, out, in, size);
    return c;
}
int bench_send(void *c, void *data, uint32_t length)
{
    bool need = false;
    return send_one(c, data, length, &need) ? need : -1;
}
int bench_recv(void *c, void *data, uint32_t room)
{
    return recv_one(c, data, &room) ? (int)room : -1;
}
void bench_close(void *c) { free(c); }

/* two processes, one in each; spins where there is nothing to do */
void bench_produce(void *ring, uint32_t size, void *source, uint32_t length, uint64_t count)
{
    struct vmbus_channel c;
    bool need = false;
    set_up(&c, ring, ring, size);
    while (count)
        if (send_one(&c, source, length, &need))
            count--;
}
void bench_consume(void *ring, uint32_t size, void *target, uint32_t length, uint64_t count)
{
    struct vmbus_channel c;
    set_up(&c, ring, ring, size);
    while (count) {
        uint32_t room = length + 8;
        if (recv_one(&c, target, &room))
            count--;
    }
}

/* a packet there and one back, `count` times; wait < 0: spins, else blocks in reads of that eventfd; bell < 0: rings
 * none; before each question there is a `pause`, before each answer `work`, of so many ns without sleep */
static void wait_for(struct vmbus_channel *c, void *data, uint32_t length, int wait)
{
    uint64_t rung;
    for (;;) {
        uint32_t room = length + 8;
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
    struct vmbus_channel c;
    bool need = false;
    uint8_t data[4096 + 8] = {0};
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
    struct vmbus_channel c;
    bool need = false;
    uint8_t data[4096 + 8];
    set_up(&c, out, in, size);
    for (uint64_t i = 0; i < count; i++) {
        wait_for(&c, data, length, wait);
        spend(work);
        send_one(&c, data, length, &need);
        ring_bell(bell);
    }
}

/* the limit: two copies and nothing else */
uint64_t bench_copies(void *middle, void *source, void *target, uint32_t length, uint64_t count)
{
    uint64_t start = now();
    for (uint64_t i = 0; i < count; i++) {
        memcpy(middle, source, length);
        __asm__ __volatile__("" ::: "memory");
        memcpy(target, middle, length);
        __asm__ __volatile__("" ::: "memory");
    }
    return now() - start;
}
