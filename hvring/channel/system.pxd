# cython: language_level=3
# SPDX-License-Identifier: Apache-2.0
"""What a channel needs of the C library that Cython does not declare itself."""

from libc.stdint cimport int64_t, uint32_t


cdef extern from "poll.h" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long n, int timeout)
    enum:
        POLLIN
        POLLOUT
        POLLERR
        POLLHUP
        POLLNVAL

cdef extern from "sys/uio.h" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t preadv2(int fd, const iovec *parts, int n, long offset, int flags)
    enum:
        RWF_NOWAIT

cdef extern from "sys/socket.h" nogil:
    ctypedef unsigned int socklen_t
    int getsockopt(int fd, int level, int name, void *value, socklen_t *length)
    int shutdown(int fd, int how)
    enum:
        SHUT_RDWR
        SOL_SOCKET
        SO_TYPE

cdef extern from "sys/eventfd.h" nogil:
    int eventfd(unsigned int count, int flags)
    enum:
        EFD_CLOEXEC

cdef extern from "sys/epoll.h" nogil:
    enum:
        EPOLL_CLOEXEC
        EPOLL_CTL_ADD
        EPOLLIN
        EPOLLRDHUP
    struct epoll_event:
        uint32_t events
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int op, int fd, epoll_event *event)

cdef extern from "time.h" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *t)
    enum:
        CLOCK_MONOTONIC


cdef inline int64_t now_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t>t.tv_sec * 1000000000 + t.tv_nsec


cdef inline double now() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return t.tv_sec + t.tv_nsec * 1e-9
