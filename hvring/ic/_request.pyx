# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, autotestdict=False
# cython: embedsignature=True, embedsignature.format=clinic, always_allow_keywords=False, binding=False
# cython: freethreading_compatible=True
# SPDX-License-Identifier: Apache-2.0
"""Request and Inbox: a message as a guest received it, and the one place in which it is answered (PROTOCOL 3.1)."""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.memoryview cimport PyMemoryView_FromObject
from cpython.object cimport PyTypeObject
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memmove, memset

from hvring.errors import ShortMessageError
from hvring.ic.version import Version

cdef extern from *:
    """
    #include <string.h>
    /* What the host wrote is read once, and nothing says that it is aligned; x86 and arm64 both have its byte order. */
    static inline uint16_t hv_u16(const uint8_t *p) { uint16_t v; memcpy(&v, p, 2); return v; }
    static inline uint32_t hv_u32(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return v; }
    static inline int64_t hv_i64(const uint8_t *p) { int64_t v; memcpy(&v, p, 8); return v; }
    #if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    #error "VMBus is little-endian, and so are the machines that have it"
    #endif
    """
    uint16_t hv_u16(const uint8_t *p) noexcept nogil
    uint32_t hv_u32(const uint8_t *p) noexcept nogil
    int64_t hv_i64(const uint8_t *p) noexcept nogil

cdef extern from "fastcall.h":
    int hv_made_here_only(PyTypeObject *type) except -1

cdef enum:
    PIPE_HEADER = 8
    # pipe header and IC header
    HEADER = 28
    DATA = 1
    REQUEST_FLAGS = 3
    RESPONSE_FLAGS = 5
    # more than the largest message has
    INBOX = 16384

# of file copy
cdef enum:
    FCOPY = 7
    WRITE = 1
    WRITE_HEADER = 52
    CHUNK = 6144

cdef enum:
    # what is odd about the headers
    ODD_PIPE_TYPE = 1
    ODD_PIPE_SIZE = 2
    ODD_BODY_SIZE = 4
    ODD_FLAGS = 8


@cython.final
@cython.no_gc
cdef class Inbox:
    """Memory for one packet after the other: ``channel.recv_into(inbox)``, then :meth:`request`, and its answer.

    Nothing that looks into it ever sees another packet: while there is a request or a view of one, ``is_held`` is
    true, and whoever receives takes a new inbox.
    """

    cdef uint8_t *data
    cdef Py_ssize_t size
    # requests and buffers that look into it
    cdef int users

    def __cinit__(self, Py_ssize_t size=INBOX):
        if size < HEADER:
            raise ValueError(f"{size} bytes hold no message")
        self.data = <uint8_t *>PyMem_Malloc(size)
        if self.data == NULL:
            raise MemoryError
        self.size = size

    def __dealloc__(self):
        PyMem_Free(self.data)

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.data, self.size, False, flags)
        self.users += 1

    def __releasebuffer__(self, Py_buffer *buffer):
        self.users -= 1

    def __len__(self):
        return self.size

    @property
    def is_held(self) -> bool:
        """Whether something still looks into it."""
        return self.users != 0

    def request(self, Py_ssize_t length) -> Request:
        """The message in its first ``length`` bytes, to be answered there.  ShortMessageError, ValueError."""
        cdef Request made
        if not 0 <= length <= self.size:
            raise ValueError(f"{length} bytes in an inbox of {self.size}")
        made = Request.__new__(Request)
        made.inbox = self
        self.users += 1
        made.data = self.data
        made.read(length)
        if made.claimed < length:
            # The writer's rounding bytes may be anything; sent back, they would be somebody's old memory.
            memset(self.data + made.claimed, 0, length - made.claimed)
        return made


@cython.final
@cython.freelist(16)
@cython.no_gc
cdef class _View:
    """A part of a request as a buffer."""

    cdef Request request
    cdef const uint8_t *start
    cdef Py_ssize_t length

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, <void *>self.start, self.length, True, flags)


@cython.final
@cython.freelist(16)
cdef class Request:
    """A message as a guest received it, and how it is answered.

    Like Linux this goes by the bytes that came and not by the sizes in the headers; what is odd about the headers is
    noted in ``anomalies`` ("pipe-type", "pipe-size", "body-size", "flags").  ``overrun`` is true when the headers claim
    bytes that did not come: then nothing in the body deserves trust.
    """

    # one of the two holds the bytes
    cdef Inbox inbox
    cdef bytes own
    cdef const uint8_t *data
    cdef Py_ssize_t came
    # up to which they are the message and not its rounding
    cdef Py_ssize_t claimed
    cdef object cached
    cdef readonly uint32_t pipe_size
    cdef readonly uint32_t status
    cdef readonly uint16_t type
    cdef readonly uint16_t body_size
    cdef readonly uint8_t transaction_id
    cdef readonly uint8_t flags
    cdef uint16_t versions[4]
    cdef int odd
    cdef readonly bint overrun
    # for whoever answers: what to call once the answer is on its way
    cdef public object then

    def __dealloc__(self):
        if self.inbox is not None:
            self.inbox.users -= 1

    @staticmethod
    def parse(payload not None) -> Request:
        """Keeps a copy of what is not bytes.  ShortMessageError below the 28 bytes of headers."""
        cdef Request made = Request.__new__(Request)
        cdef bytes own = payload if type(payload) is bytes else bytes(payload)
        made.own = own
        made.data = <const uint8_t *>PyBytes_AS_STRING(own)
        made.read(PyBytes_GET_SIZE(own))
        if made.claimed < made.came:
            own = own[:made.claimed].ljust(made.came, b"\0")
            made.own = own
            made.data = <const uint8_t *>PyBytes_AS_STRING(own)
        return made

    cdef int read(self, Py_ssize_t came) except -1:
        """The headers, each field once."""
        cdef const uint8_t *p = self.data
        cdef int64_t claimed, rounded
        cdef int i
        cdef bint plausible
        if came < HEADER:
            raise ShortMessageError(f"{came} bytes cannot hold the {HEADER} bytes of headers")
        self.came = came
        self.pipe_size = hv_u32(p + 4)
        for i in range(2):
            self.versions[i] = hv_u16(p + 8 + 2 * i)
            self.versions[2 + i] = hv_u16(p + 14 + 2 * i)
        self.type = hv_u16(p + 12)
        self.body_size = hv_u16(p + 18)
        self.status = hv_u32(p + 20)
        self.transaction_id = p[24]
        self.flags = p[25]
        claimed = <int64_t>PIPE_HEADER + self.pipe_size
        plausible = HEADER <= claimed <= came and came - claimed < 8
        self.claimed = <Py_ssize_t>claimed if plausible else came
        if hv_u32(p) != DATA:
            self.odd |= ODD_PIPE_TYPE
        if not plausible:
            self.odd |= ODD_PIPE_SIZE
        if <int64_t>self.body_size != <int64_t>self.pipe_size - (HEADER - PIPE_HEADER):
            self.odd |= ODD_BODY_SIZE
        if self.flags != REQUEST_FLAGS:
            self.odd |= ODD_FLAGS
        rounded = (came + 7) & ~<int64_t>7
        self.overrun = (claimed + 7) & ~<int64_t>7 > rounded or HEADER + self.body_size > came
        return 0

    @property
    def framework(self):
        """The framework version in the headers."""
        return Version(self.versions[0], self.versions[1])

    @property
    def version(self):
        """The message version in the headers."""
        return Version(self.versions[2], self.versions[3])

    @property
    def is_odd(self) -> bool:
        """Whether there are ``anomalies``."""
        return self.odd != 0

    @property
    def anomalies(self) -> tuple:
        """What is odd about the headers."""
        names = ("pipe-type", "pipe-size", "body-size", "flags")
        return tuple([name for bit, name in enumerate(names) if self.odd >> bit & 1])

    @property
    def payload(self) -> bytes:
        """As received; rounding bytes behind the claimed end are zeroed."""
        return self.own if self.inbox is None else PyBytes_FromStringAndSize(<const char *>self.data, self.came)

    @property
    def body(self) -> bytes:
        """A copy of everything from P+28 to the end of what came, rounding included."""
        if self.cached is None:
            self.cached = PyBytes_FromStringAndSize(<const char *>self.data + HEADER, self.came - HEADER)
        return self.cached

    @property
    def size(self) -> int:
        """Bytes of ``body``."""
        return self.came - HEADER

    @property
    def view(self) -> memoryview:
        """``body`` without a copy, read-only.  The answer may change what it shows; nothing else ever does."""
        return self.part(0, self.came - HEADER)

    cdef object part(self, Py_ssize_t start, Py_ssize_t length):
        """A view of a part of the body, which must be there."""
        cdef _View made = _View.__new__(_View)
        made.request = self
        made.start = self.data + HEADER + start
        made.length = length
        return PyMemoryView_FromObject(made)

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, <void *>self.data, self.came, True, flags)

    def __len__(self):
        return self.came

    def answer(self, uint32_t status=0, body=None, body_size=None):
        """The received bytes as a response: flags 5, ``status``, ``body`` laid over P+28 (decision 0002).

        The length stays what was received: what does not fit is cut off, and where ``body`` is shorter the request's
        own bytes remain, as in Linux.  ``body_size`` replaces the field at P+18.  The answer is bytes, or, of a request
        in an inbox, the request itself, edited.  OverflowError for numbers that do not fit.
        """
        cdef bytes made
        cdef uint8_t *out
        cdef Py_buffer given
        cdef uint16_t size = self.body_size if body_size is None else body_size
        if body is None:
            given.len = 0
        else:
            PyObject_GetBuffer(body, &given, PyBUF_SIMPLE)
        try:
            if self.inbox is None:
                made = PyBytes_FromStringAndSize(<const char *>self.data, self.came)
                out = <uint8_t *>PyBytes_AS_STRING(made)
            else:
                out = self.inbox.data
            if given.len:
                memmove(out + HEADER, given.buf, min(given.len, self.came - HEADER))
        finally:
            if body is not None:
                PyBuffer_Release(&given)
        memcpy(out + 18, &size, 2)
        memcpy(out + 20, &status, 4)
        out[25] = RESPONSE_FLAGS
        return made if self.inbox is None else self

    def __repr__(self):
        return (f"Request(type={self.type}, framework={self.framework}, version={self.version}, "
                f"transaction_id={self.transaction_id}, body=<{self.came - HEADER} bytes>)")


def plain_chunk(Request request not None, int64_t offset, int64_t limit):
    """The data of a WRITE of file copy (PROTOCOL 4.6) as a read-only view of the request; None for all others.

    None, too, for one that is odd in any way, that is not for ``offset``, or that would make the file longer than
    ``limit``: this is the way of the ten thousand chunks of a file, and there is another for what is not like them.
    """
    cdef const uint8_t *p = request.data + HEADER
    cdef uint32_t size
    if request.type != FCOPY or request.odd or request.overrun or request.came < HEADER + WRITE_HEADER:
        return None
    size = hv_u32(p + 48)
    if hv_u32(p) != WRITE or not 0 < size <= CHUNK or WRITE_HEADER + <Py_ssize_t>size > request.came - HEADER:
        return None
    if offset < 0 or hv_i64(p + 40) != offset or size > limit - offset:
        return None
    return request.part(WRITE_HEADER, size)


# Made over memory that is there, never by a call of the type.
hv_made_here_only(<PyTypeObject *>_View)
hv_made_here_only(<PyTypeObject *>Request)
