/* SPDX-License-Identifier: Apache-2.0 */
/* A signal into an eventfd of which the other side holds a descriptor, too, without ever waiting.
 *
 * write() waits while the counter is full, the other side can fill it at any moment, eventfd knows no write with
 * RWF_NOWAIT, cannot be opened a second time, and O_NONBLOCK is the other side's to clear.  But the kernel itself
 * signals an eventfd by adding to it up to the brim and no further, and does so on request when an asynchronous
 * operation is over: here a poll of the same eventfd, which is over at once, because a counter can always be either
 * read or written. */
#ifndef HVRING_EVENTFD_SIGNAL_H
#define HVRING_EVENTFD_SIGNAL_H

#include <errno.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* The context of asynchronous operations, one for all doorbells of this process: to destroy one takes the kernel
 * 30 ms, which a channel that is closed must not cost.  0: not made yet.  It ends with the process, and a forked
 * child, where it is not valid, makes its own. */
static aio_context_t hv_context;
static long hv_context_process;

/* The context, or 0 with errno. */
__attribute__((noinline, unused)) static aio_context_t hv_make_context(aio_context_t before)
{
    aio_context_t made = 0;
    if (syscall(SYS_io_setup, 1L, &made) < 0)
        return 0;
    if (__atomic_compare_exchange_n(&hv_context, &before, made, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
        __atomic_store_n(&hv_context_process, (long)getpid(), __ATOMIC_SEQ_CST);
        return made;
    }
    syscall(SYS_io_destroy, made);
    return before;
}

/* Take the reports of what is over, of which the kernel keeps about a hundred.  False: that is not allowed. */
__attribute__((noinline, unused)) static int hv_drop_reports(aio_context_t context)
{
    struct io_event reports[64];
    struct timespec at_once = {0, 0};
    long taken;
    do
        taken = syscall(SYS_io_getevents, context, 0L, 64L, reports, &at_once);
    while (taken == 64);
    return taken >= 0;
}

/* 0, or -errno; -EAGAIN: this kernel, or who confines this process, allows no such thing. */
__attribute__((unused)) static int hv_eventfd_signal(int fd)
{
    aio_context_t context = __atomic_load_n(&hv_context, __ATOMIC_ACQUIRE);
    struct iocb poll_itself, *list = &poll_itself;
    if (context == 0)
        context = hv_make_context(0);
    memset(&poll_itself, 0, sizeof poll_itself);
    poll_itself.aio_lio_opcode = IOCB_CMD_POLL;
    poll_itself.aio_fildes = (uint32_t)fd;
    poll_itself.aio_buf = POLLIN | POLLOUT;
    poll_itself.aio_flags = IOCB_FLAG_RESFD;
    poll_itself.aio_resfd = (uint32_t)fd;
    for (int tries = 0; context != 0 && tries < 1000; tries++) {
        if (syscall(SYS_io_submit, context, 1L, &list) == 1)
            return 0;
        if (errno == EAGAIN) {
            if (!hv_drop_reports(context))
                break;
        } else if (errno == EINVAL && __atomic_load_n(&hv_context_process, __ATOMIC_ACQUIRE) != (long)getpid())
            context = hv_make_context(context);
        else if (errno == EBADF)
            return -EBADF;
        else
            break;
    }
    return -EAGAIN;
}

#endif
