/* SPDX-License-Identifier: Apache-2.0 */
/* The ring of Linux's tools/hv, to measure against: compiled at run time with the unmodified vmbus_bufring.c and .h out of
 * Debian's linux-source package.  It knows no signal rule: none is applied.  Payloads are multiples of 8 (it goes wrong
 * with others), and a packet is received with its header in front. */
#define _GNU_SOURCE
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include "vmbus_bufring.h"

struct end {
    struct vmbus_br rx, tx;
};

#define HEADER sizeof(struct vmbus_chanpkt_hdr)
#define EXTRA HEADER

static void set_up(struct end *c, void *out, void *in, uint32_t size)
{
    vmbus_br_setup(&c->tx, out, size);
    vmbus_br_setup(&c->rx, in, size);
}

static bool send_one(struct end *c, void *data, uint32_t length, bool *need)
{
    *need = false;
    return rte_vmbus_chan_send(&c->tx, VMBUS_CHANPKT_TYPE_INBAND, data, length, 0) == 0;
}

static bool recv_one(struct end *c, void *data, uint32_t *length)
{
    if (rte_vmbus_chan_recv_raw(&c->rx, data, length) <= 0)
        return false;
    *length -= HEADER;
    return true;
}

#include "peer_loops.h"
