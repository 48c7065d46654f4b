# SPDX-License-Identifier: Apache-2.0
"""Rings mapped so that no packet wraps: DoubleMapping.  Part of _ring.pyx."""


@cython.final
cdef class DoubleMapping:
    """A channel's rings out of a file, each with its data area mapped once more behind it.

    ``fd`` holds ``rings`` rings of ``ring_size`` bytes, one behind the other, from ``offset`` on; in this buffer the
    n-th begins at ``n * stride``.  Give the ends of a ring in it ``mirrored=True``: a claim or a view that would wrap
    is then in one piece.  Copying gains nothing by it (docs/decisions/0004).

    ValueError when sizes are no multiples of the page size, OSError when the file cannot be mapped so.  The file must
    not shrink: touching what it no longer has ends the process (seal a memfd).
    """

    def __cinit__(self, int fd, Py_ssize_t ring_size, *, Py_ssize_t rings=2, Py_ssize_t offset=0,
                  Py_ssize_t control_size=4096):
        cdef Py_ssize_t page = sysconf(_SC_PAGESIZE)
        cdef Py_ssize_t data = ring_size - control_size
        cdef Py_ssize_t n
        cdef char *start
        if control_size <= 0 or data <= 0 or offset < 0 or control_size % page or data % page or offset % page:
            raise ValueError(f"a double mapping needs sizes and offsets that are multiples of the page's {page} bytes")
        if ring_size > 0x40000000 or not 0 < rings <= 1024:
            raise ValueError(f"{rings} rings of {ring_size} bytes cannot be mapped")
        self.stride = ring_size + data
        self.length = rings * self.stride
        self.start = NULL
        start = <char *>mmap(NULL, self.length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        if start == <char *>MAP_FAILED:
            raise OSError(errno, "no address space for the rings")
        self.start = <uint8_t *>start
        for n in range(rings):
            map_at(start + n * self.stride, ring_size, fd, offset + n * ring_size)
            map_at(start + n * self.stride + ring_size, data, fd, offset + n * ring_size + control_size)

    def __dealloc__(self):
        if self.start != NULL:
            munmap(self.start, self.length)

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.start, self.length, False, flags)

    def __len__(self):
        return self.length


cdef int map_at(char *where, Py_ssize_t length, int fd, Py_ssize_t offset) except -1:
    if mmap(where, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, offset) == MAP_FAILED:
        raise OSError(errno, f"cannot map {length} bytes of the file at {offset}")
    return 0
