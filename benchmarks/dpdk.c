/* SPDX-License-Identifier: Apache-2.0 */
/* The ring of DPDK's vmbus bus driver, to measure against: linked at run time with the unmodified objects out of Debian's
 * librte_bus_vmbus.a.  The channel is laid out as that driver's struct vmbus_channel: 32 bytes that these functions do not
 * use, then the two ring ends. */
#define _GNU_SOURCE
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct vmbus_br {
    uint8_t *ring;
    uint32_t dsize, windex;
};
struct end {
    void *unused[4];
    struct vmbus_br rx, tx;
    uint8_t rest[64];
};

void vmbus_br_setup(struct vmbus_br *br, void *memory, unsigned int length);
int rte_vmbus_chan_send(struct end *c, uint16_t type, void *data, uint32_t length, uint64_t id, uint32_t flags,
                        bool *need_signal);
int rte_vmbus_chan_recv(struct end *c, void *data, uint32_t *length, uint64_t *id);
void rte_vmbus_chan_signal_read(struct end *c, uint32_t bytes);

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

#define EXTRA 8

static void set_up(struct end *c, void *out, void *in, uint32_t size)
{
    memset(c, 0, sizeof *c);
    vmbus_br_setup(&c->tx, out, size);
    vmbus_br_setup(&c->rx, in, size);
    c->tx.windex = *(uint32_t *)out;
}

static bool send_one(struct end *c, void *data, uint32_t length, bool *need)
{
    return rte_vmbus_chan_send(c, 6, data, length, 0, 0, need) == 0;
}

static bool recv_one(struct end *c, void *data, uint32_t *length)
{
    uint64_t id;
    if (rte_vmbus_chan_recv(c, data, length, &id) != 0)
        return false;
    rte_vmbus_chan_signal_read(c, *length + 24);
    return true;
}

#include "peer_loops.h"
