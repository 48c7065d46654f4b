/* SPDX-License-Identifier: Apache-2.0 */
/* A host as Hyper-V is to a guest's services: it answers within microseconds, keeps the signal rule (PROTOCOL 2.6 to 2.8)
 * and sleeps on nothing but its doorbell.  The same loop drives a guest over two rings, and a daemon over the socket that
 * stands for its kernel device, so that both pay the same host.  What is asked for are whole messages of the caller's;
 * only the chunks of a file are made here.  The functions return a number, or -errno. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { WRITE_INDEX = 0, READ_INDEX = 4, MASK = 8, PENDING = 12, CONTROL = 4096 };
enum { IN_BAND = 6, DESCRIPTOR = 16, TRAILER = 8, HEADER = 28, FLAGS = 25, RESPONSE = 5, TYPE = 12, FCOPY = 7 };
enum { START = 0, WRITE = 1, OFFSET = 40, SIZE = 48, DATA = 52, CHUNK = 6144, LARGEST = 16384 };
#define PATIENCE 30000 /* ms after which a peer counts as stuck */

struct way {
    uint8_t *in, *out;   /* two rings: what the peer writes, what it reads; both NULL: a device */
    uint32_t size;       /* bytes of one ring's data */
    int32_t wake, bell;  /* eventfds: the peer's and ours; of a device the socket, twice */
    int32_t lifeline;    /* readable once the peer is gone */
    uint32_t status_at;  /* where an answer has its status */
    uint32_t reserved;
    uint64_t spin;       /* ns to look before going to sleep */
    uint64_t sleeps, for_nothing, rung; /* counted: waits, those that an unneeded signal ended, own signals */
};

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static uint32_t *field(uint8_t *ring, int at) { return (uint32_t *)(void *)(ring + at); }
static uint32_t load(uint8_t *ring, int at) { return __atomic_load_n(field(ring, at), __ATOMIC_ACQUIRE); }
static void store(uint8_t *ring, int at, uint32_t value) { __atomic_store_n(field(ring, at), value, __ATOMIC_RELEASE); }
static void fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static uint32_t round8(uint32_t n) { return (n + 7) & ~7u; }

static int ring_bell(struct way *w)
{
    uint64_t one = 1;
    w->rung++;
    return write(w->bell, &one, 8) == 8 ? 0 : -errno;
}

/* the data of a ring from or to `at`, around its end; where that leads */
static uint32_t copied(struct way *w, uint8_t *ring, uint32_t at, void *bytes, uint32_t n, bool inward)
{
    uint32_t first = n < w->size - at ? n : w->size - at;
    uint8_t *data = ring + CONTROL, *ours = bytes;
    if (inward) {
        memcpy(data + at, ours, first);
        memcpy(data, ours + first, n - first);
    } else {
        memcpy(ours, data + at, first);
        memcpy(ours + first, data, n - first);
    }
    return at + n < w->size ? at + n : at + n - w->size;
}

/* One packet; rings when the peer may be asleep.  There is one request at a time: it fits, or the peer lied. */
static int put(struct way *w, const uint8_t *message, uint32_t n)
{
    static const uint8_t zeros[8];
    uint32_t padded = DESCRIPTOR + round8(n), at = load(w->out, WRITE_INDEX), read = load(w->out, READ_INDEX);
    uint16_t descriptor[8] = {IN_BAND, DESCRIPTOR / 8, (uint16_t)(padded / 8)};
    uint64_t trailer = (uint64_t)at << 32;
    if (at >= w->size || read >= w->size)
        return -EIO;
    if ((at >= read ? w->size - (at - read) : read - at) <= padded + TRAILER)
        return -ENOSPC;
    uint32_t next = copied(w, w->out, at, descriptor, DESCRIPTOR, true);
    next = copied(w, w->out, next, (void *)message, n, true);
    next = copied(w, w->out, next, (void *)zeros, round8(n) - n, true);
    next = copied(w, w->out, next, &trailer, TRAILER, true);
    store(w->out, WRITE_INDEX, next);
    fence();
    return load(w->out, MASK) == 0 && load(w->out, READ_INDEX) == at ? ring_bell(w) : 0;
}

/* the payload of the next packet; 0: there is none */
static int take(struct way *w, uint8_t *message, uint32_t room)
{
    uint16_t descriptor[8];
    uint32_t at = load(w->in, READ_INDEX), end = load(w->in, WRITE_INDEX);
    if (at == end)
        return 0;
    if (at >= w->size || end >= w->size)
        return -EIO;
    uint32_t there = end > at ? end - at : w->size - at + end;
    uint32_t next = copied(w, w->in, at, descriptor, DESCRIPTOR, false);
    uint32_t head = descriptor[1] * 8u, all = descriptor[2] * 8u;
    if (descriptor[0] != IN_BAND || head != DESCRIPTOR || all <= head || all + TRAILER > there || all - head > room)
        return -EIO;
    next = copied(w, w->in, next, message, all - head, false);
    next = next + TRAILER < w->size ? next + TRAILER : next + TRAILER - w->size;
    store(w->in, READ_INDEX, next);
    fence();
    uint32_t wanted = load(w->in, PENDING), room_before = w->size - there;
    if (wanted && room_before <= wanted && room_before + all + TRAILER > wanted) {
        int error = ring_bell(w);
        if (error)
            return error;
    }
    return (int)(all - head);
}

static int sleep_on(struct way *w)
{
    struct pollfd fds[2] = {{w->wake, POLLIN, 0}, {w->lifeline, POLLIN, 0}};
    w->sleeps++;
    int ready = poll(fds, w->lifeline < 0 ? 1 : 2, PATIENCE);
    if (ready <= 0)
        return ready ? -errno : -ETIMEDOUT;
    return fds[0].revents & POLLIN ? 0 : -EPIPE;
}

static int await_packet(struct way *w, uint8_t *message, uint32_t room)
{
    uint64_t rung, until = w->spin ? now() + w->spin : 0;
    for (bool slept = false;; slept = true) {
        int n = take(w, message, room);
        while (!n && until && now() < until)
            n = take(w, message, room);
        if (n)
            return n;
        w->for_nothing += slept;
        store(w->in, MASK, 0);
        fence();
        if (load(w->in, WRITE_INDEX) == load(w->in, READ_INDEX)) {
            int error = sleep_on(w);
            if (error)
                return error;
            if (read(w->wake, &rung, 8) != 8)
                return -errno;
        }
        store(w->in, MASK, 1);
    }
}

static int await_message(struct way *w, uint8_t *message, uint32_t room)
{
    uint64_t until = w->spin ? now() + w->spin : 0;
    for (;;) {
        ssize_t n = recv(w->wake, message, room, MSG_DONTWAIT);
        while (n < 0 && errno == EAGAIN && until && now() < until)
            n = recv(w->wake, message, room, MSG_DONTWAIT);
        if (n > 0)
            return (int)n;
        if (n == 0 || errno != EAGAIN)
            return n ? -errno : -EPIPE;
        int error = sleep_on(w);
        if (error)
            return error;
    }
}

/* one request and its answer, of `room` bytes at most; how many it has */
int host_ask(struct way *w, const uint8_t *message, uint32_t n, uint8_t *answer, uint32_t room)
{
    if (w->in == NULL) {
        if (send(w->bell, message, n, MSG_NOSIGNAL) != (ssize_t)n)
            return -errno;
        return await_message(w, answer, room);
    }
    store(w->in, MASK, 1);
    int error = put(w, message, n);
    return error ? error : await_packet(w, answer, room);
}

/* Asks in turn for `kinds` messages, `count` times or until *over, with `gap` ns from one answer to the next request;
 * took[] has room for `count`.  How many were answered; -EPROTO: not with OK. */
int64_t host_converse(struct way *w, const uint8_t *const *messages, const uint32_t *lengths, uint32_t kinds, uint64_t count,
                      uint64_t gap, const volatile int32_t *over, uint64_t *took)
{
    uint8_t answer[LARGEST];
    uint64_t i;
    for (i = 0; i < count && !(over && *over); i++) {
        if (gap) {
            struct timespec pause = {(time_t)(gap / 1000000000), (long)(gap % 1000000000)};
            clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
        }
        uint64_t start = now();
        int n = host_ask(w, messages[i % kinds], lengths[i % kinds], answer, sizeof answer);
        took[i] = now() - start;
        uint32_t status = 1;
        if (n >= (int)w->status_at + 4)
            memcpy(&status, answer + w->status_at, 4);
        if (n < 0 || status)
            return n < 0 ? n : -EPROTO;
    }
    return (int64_t)i;
}

/* The chunks of a file, each a WRITE like `message`, whose body begins at `body`; `source` has `have` bytes, a multiple
 * of CHUNK, and is given again and again.  The rest is as above. */
int64_t host_copy(struct way *w, uint8_t *message, uint32_t n, uint32_t body, const uint8_t *source, uint64_t have,
                  uint64_t count, const volatile int32_t *over, uint64_t *took)
{
    const uint8_t *const messages[1] = {message};
    uint64_t i;
    for (i = 0; i < count && !(over && *over); i++) {
        uint64_t at = i * CHUNK;
        uint32_t length = CHUNK;
        memcpy(message + body + OFFSET, &at, 8);
        memcpy(message + body + SIZE, &length, 4);
        memcpy(message + body + DATA, source + at % have, CHUNK);
        int64_t done = host_converse(w, messages, &n, 1, 1, 0, NULL, took + i);
        if (done != 1)
            return done;
    }
    return (int64_t)i;
}

static int written(int file, const uint8_t *body, int n)
{
    uint64_t at;
    if (body[0] == START)
        return ftruncate(file, 0) ? -errno : 0;
    if (body[0] != WRITE || n < DATA + CHUNK)
        return 0;
    memcpy(&at, body + OFFSET, 8);
    return pwrite(file, body + DATA, CHUNK, (off_t)at) == CHUNK ? 0 : -EIO;
}

/* The other side, and the limit of what a guest can be: every request comes back as a response until the host is gone,
 * and what is a file's goes into `file` before, unless that is negative. */
int host_echo(struct way *w, int file)
{
    uint8_t message[LARGEST];
    store(w->in, MASK, 1);
    for (;;) {
        int n = await_packet(w, message, sizeof message);
        if (n < HEADER)
            return n == -EPIPE ? 0 : n < 0 ? n : -EPROTO;
        message[FLAGS] = RESPONSE;
        int error = 0;
        if (file >= 0 && message[TYPE] == FCOPY && (error = written(file, message + HEADER, n - HEADER)) != 0)
            return error;
        if ((error = put(w, message, (uint32_t)n)) != 0)
            return error;
    }
}
