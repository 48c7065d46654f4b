/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * hv-ic: one VMBus message channel (an integration service, for example) whose packets are relayed to a host process
 * through a character device.  Loaded into an unmodified QEMU 10 with LD_PRELOAD.
 *
 *   -chardev socket,id=c0,path=/tmp/ic.sock,reconnect-ms=500
 *   -device hv-ic,classid=CLASS-GUID,instanceid=INSTANCE-GUID,chardev=c0[,offer-flags=0x10][,subchannels=1]
 *
 * Frames, both ways, little-endian: u32 n (bytes that follow this word), u8 kind, u8 flags, u16 packet type,
 * u16 descriptor bytes, u16 channel (0: the primary), u64 transaction id, then (n - 16) bytes: the extra descriptor
 * bytes, then the payload.
 * Kinds, device to host: H hello (text "classid instanceid"), O channel opened, C closed, R reset, P packet from the
 * guest (flags bit 0: completion wanted), W ring full (tid: frames waiting), G all waiting frames went out,
 * D frame dropped (text: why), S statistics (text).  Host to device: P packet for the guest (flags bit 0: ask for a
 * completion), Q ask for statistics, X drop the frames that wait for room (a packet larger than the ring waits forever),
 * N offer the sub-channels, which are not offered when the guest starts.  QEMU sends the offers before it takes the
 * guest's next message to VMBus.  Packets for a sub-channel do not wait for room.
 */
#include "qemu/osdep.h"
#include "qapi/error.h"
#include "block/aio.h"
#include "qemu/error-report.h"
#include "qemu/module.h"
#include "qemu/bswap.h"
#include "hw/qdev-properties.h"
#include "hw/qdev-properties-system.h"
#include "hw/hyperv/vmbus.h"
#include "chardev/char-fe.h"

#define TYPE_HV_IC "hv-ic"
OBJECT_DECLARE_SIMPLE_TYPE(HvIc, HV_IC)

#define HEAD 20u                   /* the length word and the fixed part */
#define FRAME_MAX (1u << 20)
#define QUEUE_MAX 4096
#define OUT_MAX (1u << 20)         /* bytes for the host that may wait before the guest's ring is left alone */

struct HvIc {
    VMBusDevice parent;
    QemuUUID classid;
    uint16_t offer_flags;
    uint16_t subchannels;
    CharBackend chr;
    ObjectClass *shared_class;     /* the class of all hv-ic devices; ours is a copy with its own class GUID */
    VMBusChannel *chan;
    GByteArray *in;                /* bytes from the host that are not a whole frame yet */
    GQueue wait;                   /* whole frames (GBytes) that wait for room in the ring */
    GByteArray *out;               /* bytes that the host's socket has not taken yet */
    guint watch;
    bool told_full;
    uint64_t to_guest, from_guest, full, dropped, opens, closes;
};

static gboolean hv_ic_push(void *do_not_use, GIOCondition cond, void *opaque)
{
    HvIc *s = opaque;
    bool was_full = s->out->len >= OUT_MAX;
    int n;

    s->watch = 0;
    while (s->out->len && (n = qemu_chr_fe_write(&s->chr, s->out->data, s->out->len)) > 0) {
        g_byte_array_remove_range(s->out, 0, n);
    }
    if (s->out->len && qemu_chr_fe_backend_open(&s->chr)) {
        s->watch = qemu_chr_fe_add_watch(&s->chr, G_IO_OUT | G_IO_HUP, hv_ic_push, s);
    }
    if (was_full && s->out->len < OUT_MAX && vmbus_channel_is_open(s->chan)) {
        vmbus_channel_notify_host(s->chan);    /* go on with the guest's ring */
    }
    return G_SOURCE_REMOVE;
}

static void hv_ic_tell_of(HvIc *s, unsigned channel, char kind, unsigned flags, unsigned type, uint64_t tid,
                          const void *data, uint32_t n)
{
    uint8_t h[HEAD] = {0};

    if (!qemu_chr_fe_backend_open(&s->chr)) {
        return;
    }
    stl_le_p(h, HEAD - 4 + n);
    h[4] = kind;
    h[5] = flags;
    stw_le_p(h + 6, type);
    stw_le_p(h + 10, channel);
    stq_le_p(h + 12, tid);
    g_byte_array_append(s->out, h, HEAD);
    if (n) {
        g_byte_array_append(s->out, data, n);
    }
    if (!s->watch) {
        hv_ic_push(NULL, 0, s);
    }
}

static void hv_ic_tell(HvIc *s, char kind, unsigned flags, unsigned type, uint64_t tid, const void *data, uint32_t n)
{
    hv_ic_tell_of(s, 0, kind, flags, type, tid, data, n);
}

static void hv_ic_tell_text(HvIc *s, char kind, uint64_t tid, const char *text)
{
    hv_ic_tell(s, kind, 0, 0, tid, text, strlen(text));
}

static void hv_ic_drop(HvIc *s, uint64_t tid, const char *why)
{
    s->dropped++;
    hv_ic_tell_text(s, 'D', tid, why);
}

/* Put a frame into its channel's ring: 0, or a negative error number. */
static ssize_t hv_ic_put(VMBusChannel *chan, const uint8_t *p, uint32_t n)
{
    uint32_t desc = lduw_le_p(p + 8), msg = n - HEAD - desc;
    ssize_t r = vmbus_channel_reserve(chan, desc, msg);

    if (r == 0) {
        r = vmbus_channel_send(chan, lduw_le_p(p + 6), (void *)(p + HEAD), desc, (void *)(p + HEAD + desc), msg, p[5] & 1,
                               ldq_le_p(p + 12));
    }
    return r < 0 ? r : 0;
}

/* Put waiting frames into the ring, in order, until one does not fit. */
static void hv_ic_flush(HvIc *s)
{
    GBytes *f;

    while ((f = g_queue_peek_head(&s->wait)) && vmbus_channel_is_open(s->chan)) {
        gsize n;
        const uint8_t *p = g_bytes_get_data(f, &n);
        ssize_t r = hv_ic_put(s->chan, p, n);

        if (r == -ENOSPC) {
            /* QEMU has put the size that we need into the ring header: the guest signals us when there is room */
            s->full++;
            if (!s->told_full) {
                s->told_full = true;
                hv_ic_tell(s, 'W', 0, 0, g_queue_get_length(&s->wait), NULL, 0);
            }
            return;
        }
        if (r < 0) {
            hv_ic_drop(s, ldq_le_p(p + 12), g_strerror(-r));
        } else {
            s->to_guest++;
        }
        g_bytes_unref(g_queue_pop_head(&s->wait));
    }
    if (s->told_full && g_queue_is_empty(&s->wait)) {
        s->told_full = false;
        hv_ic_tell(s, 'G', 0, 0, 0, NULL, 0);
    }
}

static void hv_ic_forget(HvIc *s, const char *why)
{
    GBytes *f;

    s->told_full = false;
    while ((f = g_queue_pop_head(&s->wait))) {
        hv_ic_drop(s, ldq_le_p((const uint8_t *)g_bytes_get_data(f, NULL) + 12), why);
        g_bytes_unref(f);
    }
}

/* The guest (or QEMU itself, after a send) signalled the channel. */
static void hv_ic_notify(VMBusChannel *chan)
{
    HvIc *s = HV_IC(vmbus_channel_device(chan));
    VMBusChanReq *q;

    do {
        if (vmbus_channel_recv_start(chan)) {
            return;
        }
        while (s->out->len < OUT_MAX && (q = vmbus_channel_recv_peek(chan, sizeof(*q)))) {
            assert(q->chan == chan && (char *)q->msg >= (char *)(q + 1));
            s->from_guest++;
            hv_ic_tell_of(s, vmbus_channel_idx(chan), 'P', q->need_comp, q->pkt_type, q->transaction_id, q->msg,
                          q->msglen);
            vmbus_channel_recv_pop(chan);
            vmbus_free_req(q);
        }
        /* look again once the read index is published: the guest signals only an empty ring */
    } while (vmbus_channel_recv_done(chan) > 0);
    hv_ic_flush(s);
}

static int hv_ic_open(VMBusChannel *chan)
{
    HvIc *s = HV_IC(vmbus_channel_device(chan));

    if (chan != s->chan) {
        hv_ic_tell_of(s, vmbus_channel_idx(chan), 'O', 0, 0, 0, NULL, 0);
        return 0;
    }
    s->opens++;
    hv_ic_tell(s, 'O', 0, 0, s->opens, NULL, 0);
    return 0;
}

static void hv_ic_close(VMBusChannel *chan)
{
    HvIc *s = HV_IC(vmbus_channel_device(chan));

    if (chan != s->chan) {
        hv_ic_tell_of(s, vmbus_channel_idx(chan), 'C', 0, 0, 0, NULL, 0);
        return;
    }
    s->closes++;
    hv_ic_forget(s, "channel closed");
    hv_ic_tell(s, 'C', 0, 0, s->closes, NULL, 0);
}

/* A field of QEMU's own structures, which it describes for migration. */
static uint8_t *hv_ic_field(void *base, const VMStateDescription *d, const char *name)
{
    const VMStateField *f = d->fields;

    while (f->name && strcmp(f->name, name)) {
        f++;
    }
    if (!f->name) {
        error_report("hv-ic: built for another QEMU: %s has no %s", d->name, name);
        exit(1);
    }
    return (uint8_t *)base + f->offset;
}

static uint8_t *hv_ic_offer_state(HvIc *s, unsigned channel)
{
    return hv_ic_field(vmbus_device_channel(&s->parent, channel), vmstate_vmbus_dev.fields[2].vmsd, "offer_state");
}

/* After a reset, which forgets what was offered, and before the guest asks for offers. */
static void hv_ic_hide(void *opaque)
{
    HvIc *s = opaque;
    unsigned i;

    for (i = 1; i <= s->subchannels; i++) {
        *hv_ic_offer_state(s, i) = 2;          /* VMOFFER_SENT */
    }
}

static const char *hv_ic_offer(HvIc *s)
{
    BusState *bus = qdev_get_parent_bus(DEVICE(s));
    uint8_t *state = hv_ic_field(bus, DEVICE_GET_CLASS(bus->parent)->vmsd->fields[0].vmsd, "state");
    unsigned i;

    if (*state != 0) {                         /* VMBUS_LISTEN */
        return "VMBus is busy";
    }
    for (i = 1; i <= s->subchannels; i++) {
        *hv_ic_offer_state(s, i) = i == 1;     /* VMOFFER_SENDING, the others VMOFFER_INIT */
    }
    *state = 2;                                /* VMBUS_OFFER */
    return NULL;
}

static void hv_ic_frame(HvIc *s, const uint8_t *p, uint32_t n)
{
    uint32_t desc = lduw_le_p(p + 8);
    uint64_t tid = ldq_le_p(p + 12);
    VMBusChannel *chan = vmbus_device_channel(&s->parent, lduw_le_p(p + 10));
    g_autofree char *t = NULL;
    const char *why;
    ssize_t r;

    switch (p[4]) {
    case 'P':
        if (desc % 8 || desc > n - HEAD) {
            hv_ic_drop(s, tid, "bad descriptor length");
        } else if (!chan || !vmbus_channel_is_open(chan)) {
            hv_ic_drop(s, tid, "channel not open");
        } else if (chan != s->chan) {
            if ((r = hv_ic_put(chan, p, n)) < 0) {
                hv_ic_drop(s, tid, g_strerror(-r));
            }
        } else if (g_queue_get_length(&s->wait) >= QUEUE_MAX) {
            hv_ic_drop(s, tid, "too many frames waiting");
        } else {
            g_queue_push_tail(&s->wait, g_bytes_new(p, n));
            hv_ic_flush(s);
        }
        break;
    case 'Q':
        t = g_strdup_printf("open %d opens %" PRIu64 " closes %" PRIu64 " to_guest %" PRIu64 " from_guest %" PRIu64
                            " full %" PRIu64 " dropped %" PRIu64 " waiting %u", vmbus_channel_is_open(s->chan), s->opens,
                            s->closes, s->to_guest, s->from_guest, s->full, s->dropped, g_queue_get_length(&s->wait));
        hv_ic_tell_text(s, 'S', tid, t);
        break;
    case 'N':
        if ((why = hv_ic_offer(s))) {
            hv_ic_drop(s, tid, why);
        }
        break;
    case 'X':
        hv_ic_forget(s, "dropped on request");
        break;
    default:
        hv_ic_drop(s, tid, "unknown kind");
    }
}

static int hv_ic_can_read(void *opaque)
{
    HvIc *s = opaque;

    return FRAME_MAX + HEAD - s->in->len;
}

static void hv_ic_read(void *opaque, const uint8_t *buf, int n)
{
    HvIc *s = opaque;
    uint32_t at = 0, len;

    g_byte_array_append(s->in, buf, n);
    while (s->in->len - at >= 4) {
        len = ldl_le_p(s->in->data + at);
        if (len < HEAD - 4 || len > FRAME_MAX - 4) {
            error_report("hv-ic: frame length %u", len);
            at = s->in->len;
            break;
        }
        if (s->in->len - at < len + 4) {
            break;
        }
        hv_ic_frame(s, s->in->data + at, len + 4);
        at += len + 4;
    }
    g_byte_array_remove_range(s->in, 0, at);
}

/* The connection ended or a new one began: forget the bytes of the old one. */
static void hv_ic_unplug(HvIc *s)
{
    bool was_full = s->out->len >= OUT_MAX;

    g_clear_handle_id(&s->watch, g_source_remove);
    g_byte_array_set_size(s->in, 0);
    g_byte_array_set_size(s->out, 0);
    if (was_full && vmbus_channel_is_open(s->chan)) {
        vmbus_channel_notify_host(s->chan);
    }
}

static void hv_ic_event(void *opaque, QEMUChrEvent event)
{
    HvIc *s = opaque;
    char c[UUID_STR_LEN], i[UUID_STR_LEN];
    g_autofree char *t = NULL;

    if (event == CHR_EVENT_OPENED) {
        qemu_uuid_unparse(&s->classid, c);
        qemu_uuid_unparse(&s->parent.instanceid, i);
        t = g_strdup_printf("%s %s", c, i);
        hv_ic_unplug(s);
        hv_ic_tell_text(s, 'H', 1, t);
        if (vmbus_channel_is_open(s->chan)) {
            hv_ic_tell(s, 'O', 1, 0, s->opens, NULL, 0);
        }
    } else if (event == CHR_EVENT_CLOSED) {
        hv_ic_unplug(s);
    }
}

static void hv_ic_realize(VMBusDevice *vdev, Error **errp)
{
    HvIc *s = HV_IC(vdev);
    VMBusDeviceClass *own;

    if (qemu_uuid_is_null(&s->classid)) {
        error_setg(errp, "hv-ic: classid is not set");
        return;
    }
    if (!qemu_chr_fe_backend_connected(&s->chr)) {
        error_setg(errp, "hv-ic: chardev is not set");
        return;
    }
    /* QEMU's VMBus keeps the class GUID and the offer's flags in the class, so each device gets a class of its own */
    s->shared_class = OBJECT(s)->class;
    own = g_memdup2(s->shared_class, sizeof(*own));
    own->classid = s->classid;
    own->channel_flags = s->offer_flags;
    OBJECT(s)->class = OBJECT_CLASS(own);
    s->chan = vmbus_device_channel(vdev, 0);
    s->in = g_byte_array_new();
    s->out = g_byte_array_new();
    g_queue_init(&s->wait);
    qemu_chr_fe_set_handlers(&s->chr, hv_ic_can_read, hv_ic_read, hv_ic_event, NULL, s, NULL, true);
}

static void hv_ic_unrealize(VMBusDevice *vdev)
{
    HvIc *s = HV_IC(vdev);
    void *own = OBJECT(s)->class;

    hv_ic_forget(s, "device removed");
    g_clear_handle_id(&s->watch, g_source_remove);
    qemu_chr_fe_deinit(&s->chr, false);
    g_byte_array_unref(s->in);
    g_byte_array_unref(s->out);
    OBJECT(s)->class = s->shared_class;
    g_free(own);
}

static void hv_ic_reset(VMBusDevice *vdev)
{
    hv_ic_tell(HV_IC(vdev), 'R', 0, 0, 0, NULL, 0);
    if (HV_IC(vdev)->subchannels) {
        aio_bh_schedule_oneshot(qemu_get_aio_context(), hv_ic_hide, vdev);
    }
}

static uint16_t hv_ic_channels(VMBusDevice *vdev)
{
    return 1 + HV_IC(vdev)->subchannels;
}

static const Property hv_ic_props[] = {
    DEFINE_PROP_UUID_NODEFAULT("classid", HvIc, classid),
    DEFINE_PROP_UINT16("offer-flags", HvIc, offer_flags, VMBUS_CHANNEL_NAMED_PIPE_MODE),
    DEFINE_PROP_UINT16("subchannels", HvIc, subchannels, 0),
    DEFINE_PROP_CHR("chardev", HvIc, chr),
};

/* Compare this build's idea of QEMU's structures with data of the running program. */
static void hv_ic_check(void)
{
    const VMStateField *f = vmstate_vmbus_dev.fields;
    ObjectClass *b = module_object_class_by_name("hv-balloon");
    static const uint8_t dm[16] = {0x52, 0x50, 0x74, 0xdc, 0x89, 0x85, 0x46, 0xe2,
                                   0x80, 0x57, 0xa3, 0x07, 0xdc, 0x18, 0xa5, 0x02};
    bool ok = f[0].offset == offsetof(VMBusDevice, instanceid) && f[1].offset == offsetof(VMBusDevice, num_channels) &&
              f[2].offset == offsetof(VMBusDevice, channels) && f[3].flags == VMS_END;

    if (ok && b) {
        VMBusDeviceClass *v = VMBUS_DEVICE_CLASS(b);
        ok = !memcmp(v->classid.data, dm, 16) && v->chan_notify_cb && v->open_channel && v->vmdev_realize &&
             DEVICE_CLASS(b)->props_ && DEVICE_CLASS(b)->props_count_ < 32;
    }
    if (!ok) {
        error_report("hv-ic: built for another QEMU: VMBusDevice %zu/%zu/%zu here, %zu/%zu/%zu in QEMU",
                     offsetof(VMBusDevice, instanceid), offsetof(VMBusDevice, num_channels),
                     offsetof(VMBusDevice, channels), f[0].offset, f[1].offset, f[2].offset);
        exit(1);
    }
    if (getenv("HV_IC_DEBUG")) {
        error_report("hv-ic: layout ok: DeviceState %zu VMBusDevice %zu (instanceid %zu, num_channels %zu, channels %zu) "
                     "DeviceClass %zu VMBusDeviceClass %zu, hv-balloon class %s", sizeof(DeviceState), sizeof(VMBusDevice),
                     f[0].offset, f[1].offset, f[2].offset, sizeof(DeviceClass), sizeof(VMBusDeviceClass),
                     b ? "compared" : "absent");
    }
}

static void hv_ic_class_init(ObjectClass *klass, void *data)
{
    DeviceClass *dc = DEVICE_CLASS(klass);
    VMBusDeviceClass *vc = VMBUS_DEVICE_CLASS(klass);

    hv_ic_check();
    dc->desc = "Hyper-V integration service relayed to a host process";
    device_class_set_props(dc, hv_ic_props);
    set_bit(DEVICE_CATEGORY_MISC, dc->categories);
    vc->vmdev_realize = hv_ic_realize;
    vc->vmdev_unrealize = hv_ic_unrealize;
    vc->vmdev_reset = hv_ic_reset;
    vc->num_channels = hv_ic_channels;
    vc->open_channel = hv_ic_open;
    vc->close_channel = hv_ic_close;
    vc->chan_notify_cb = hv_ic_notify;
}

static const TypeInfo hv_ic_type = {
    .name = TYPE_HV_IC,
    .parent = TYPE_VMBUS_DEVICE,
    .instance_size = sizeof(HvIc),
    .class_init = hv_ic_class_init,
};

static void hv_ic_register(void)
{
    type_register_static(&hv_ic_type);
}

type_init(hv_ic_register)
