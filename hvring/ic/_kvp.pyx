# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, autotestdict=False
# cython: embedsignature=True, embedsignature.format=clinic, always_allow_keywords=False, binding=False
# cython: freethreading_compatible=True
# SPDX-License-Identifier: Apache-2.0
"""The ordinary messages of data exchange at the speed of C (PROTOCOL 4.4); about all others hvring.ic.kvp has its say.

Nothing is refused here, and no rule of the protocol stands here alone: None means "ask the class itself".
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memchr, memset

from hvring.ic.kvp import KvpDelete, KvpEnumerate, KvpGet, KvpItem, KvpOperation, KvpSet, KvpValue, ValueType

cdef extern from *:
    """
    #include <string.h>
    #if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    #error "VMBus is little-endian, and so are the machines that have it"
    #endif
    static inline uint32_t hv_load32(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return v; }
    static inline void hv_store32(uint8_t *p, uint32_t v) { memcpy(p, &v, 4); }
    /* Fields of a frozen dataclass with slots: as its own __init__ gets at them, without the calls. */
    static inline int hv_set_field(PyObject *field, PyObject *object, PyObject *value)
    {
        return Py_TYPE(field)->tp_descr_set(field, object, value);
    }
    static inline PyObject *hv_get_field(PyObject *field, PyObject *object)
    {
        return Py_TYPE(field)->tp_descr_get(field, object, (PyObject *)Py_TYPE(object));
    }
    static inline PyObject *hv_new(PyObject *type, PyObject *nothing)
    {
        return ((PyTypeObject *)type)->tp_new((PyTypeObject *)type, nothing, NULL);
    }
    """
    uint32_t hv_load32(const uint8_t *p) noexcept nogil
    void hv_store32(uint8_t *p, uint32_t v) noexcept nogil
    int hv_set_field(object field, object object, object value) except -1
    object hv_get_field(object field, object object)
    object hv_new(object type, tuple nothing)

cdef extern from "Python.h":
    bint PyUnicode_IS_COMPACT_ASCII(object text) noexcept
    Py_ssize_t PyUnicode_GET_LENGTH(object text) noexcept
    void *PyUnicode_DATA(object text) noexcept
    object PyUnicode_New(Py_ssize_t length, uint32_t largest)
    object PyUnicode_DecodeUTF16(const char *data, Py_ssize_t size, const char *errors, int *order)
    bint PyLong_CheckExact(object number) noexcept
    bint PyUnicode_CheckExact(object text) noexcept

cdef enum:
    BODY_SIZE = 2580
    VALUE_END = 2576
    DELETE_END = 520
    KEY_FIELD = 512
    VALUE_FIELD = 2048
    # where the sizes and the texts of GET and SET are
    PAIR_SIZES = 4
    PAIR_KEY = 16
    # of DELETE
    DELETE_KEY = 8
    # of ENUMERATE's answer
    ITEM_SIZES = 8
    ITEM_KEY = 20

cdef enum:
    GET = 0
    SET = 1
    DELETE = 2
    ENUMERATE = 3

cdef enum:
    SZ = 1
    EXPAND_SZ = 2
    U32 = 4
    U64_LINUX = 8
    U64 = 11

cdef tuple NOTHING = ()


cdef tuple fields(type, names):
    """How to get at the fields of a dataclass, in the order in which it is made of them."""
    return tuple([vars(type)[name] for name in names.split()])


cdef tuple OF_GET = fields(KvpGet, "pool key")
cdef tuple OF_SET = fields(KvpSet, "pool key value value_type")
cdef tuple OF_DELETE = fields(KvpDelete, "pool key")
cdef tuple OF_ENUMERATE = fields(KvpEnumerate, "pool index")
cdef tuple OF_VALUE = fields(KvpValue, "pool key value value_type")
cdef tuple OF_ITEM = fields(KvpItem, "pool index key value value_type")
cdef object AS_TEXT = ValueType.SZ


cdef make(type, tuple fields, tuple values):
    made = hv_new(type, NOTHING)
    cdef Py_ssize_t i
    for i in range(len(values)):
        hv_set_field(fields[i], made, values[i])
    return made


cdef text(const uint8_t *p, uint32_t size, uint32_t field):
    """What is before the first NUL of the ``size`` bytes in use; None for what is no text."""
    cdef uint32_t n = 0
    cdef uint32_t seen = 0
    cdef uint32_t unit
    cdef int order = -1
    cdef uint8_t *letters
    if size > field or size % 2:
        return None
    while n < size:
        unit = p[n] | <uint32_t>p[n + 1] << 8
        if unit == 0:
            break
        seen |= unit
        n += 2
    if seen < 128:
        made = PyUnicode_New(n // 2, 127)
        letters = <uint8_t *>PyUnicode_DATA(made)
        for unit in range(n // 2):
            letters[unit] = p[2 * unit]
        return made
    try:
        return PyUnicode_DecodeUTF16(<const char *>p, n, NULL, &order)
    except UnicodeDecodeError:
        return None


cdef number(const uint8_t *p, uint32_t size, uint32_t kind):
    """A value that is a number; None for one that is none."""
    if kind == U32 and size == 4:
        return hv_load32(p)
    if kind in (U64_LINUX, U64) and size == 8:
        return hv_load32(p) | <unsigned long long>hv_load32(p + 4) << 32
    return None


cdef read(const uint8_t *body, Py_ssize_t length):
    cdef uint32_t kind, key_size, value_size
    cdef int operation
    if length < DELETE_END:
        return None
    operation = body[0]
    pool = body[1]
    if operation == DELETE:
        key = text(body + DELETE_KEY, hv_load32(body + 4), KEY_FIELD)
        return None if key is None else make(KvpDelete, OF_DELETE, (pool, key))
    if operation == ENUMERATE and length >= BODY_SIZE:
        return make(KvpEnumerate, OF_ENUMERATE, (pool, hv_load32(body + 4)))
    if operation > SET or length < VALUE_END:
        return None
    kind = hv_load32(body + PAIR_SIZES)
    key_size = hv_load32(body + PAIR_SIZES + 4)
    value_size = hv_load32(body + PAIR_SIZES + 8)
    key = text(body + PAIR_KEY, key_size, KEY_FIELD)
    if key is None:
        return None
    if operation == GET:
        return make(KvpGet, OF_GET, (pool, key))
    if kind == SZ or kind == EXPAND_SZ:
        value = text(body + PAIR_KEY + KEY_FIELD, value_size, VALUE_FIELD)
    else:
        value = number(body + PAIR_KEY + KEY_FIELD, value_size, kind)
    return None if value is None else make(KvpSet, OF_SET, (pool, key, value, kind))


def decode(message, Py_ssize_t start, /):
    """The request whose body is in the buffer ``message`` from ``start``, as the decode() of its class has it.

    None, and nothing looked at any further: it is none of the four, or has something that may have to be refused.
    """
    cdef Py_buffer given
    PyObject_GetBuffer(message, &given, PyBUF_SIMPLE)
    try:
        if not 0 <= start <= given.len:
            return None
        return read(<const uint8_t *>given.buf + start, given.len - start)
    finally:
        PyBuffer_Release(&given)


def value(pool, key, found, /):
    """``KvpValue(pool, key, found)``."""
    return make(KvpValue, OF_VALUE, (pool, key, found, AS_TEXT))


def item(pool, index, key, found, /):
    """``KvpItem(pool, index, key, found)``."""
    return make(KvpItem, OF_ITEM, (pool, index, key, found, AS_TEXT))


cdef bint fits(object text, uint32_t field) noexcept:
    """Whether it is plain ASCII without a NUL that leaves room for one."""
    cdef Py_ssize_t length
    if not PyUnicode_CheckExact(text) or not PyUnicode_IS_COMPACT_ASCII(text):
        return False
    length = PyUnicode_GET_LENGTH(text)
    return length < field // 2 and memchr(PyUnicode_DATA(text), 0, length) == NULL


cdef uint32_t put(uint8_t *out, object text) noexcept:
    """A text that fits, into a field of NULs; its bytes with the NUL."""
    cdef const uint8_t *letters = <const uint8_t *>PyUnicode_DATA(text)
    cdef uint32_t length = <uint32_t>PyUnicode_GET_LENGTH(text)
    cdef uint32_t i
    for i in range(length):
        out[2 * i] = letters[i]
    return 2 * length + 2


cdef bint is_number(object number, long long below) except -1:
    return PyLong_CheckExact(number) and 0 <= number < below


def encode(message, /):
    """``message.encode()`` of a KvpValue or a KvpItem with short texts of ASCII; None for anything else."""
    cdef bytes made
    cdef uint8_t *out
    cdef int sizes = PAIR_SIZES
    cdef int key_at = PAIR_KEY
    cdef tuple fields = OF_VALUE
    cdef int i = 1
    cdef bint is_item = type(message) is KvpItem
    if is_item:
        sizes, key_at, fields, i = ITEM_SIZES, ITEM_KEY, OF_ITEM, 2
    elif type(message) is not KvpValue:
        return None
    pool = hv_get_field(fields[0], message)
    index = hv_get_field(fields[1], message)
    key = hv_get_field(fields[i], message)
    found = hv_get_field(fields[i + 1], message)
    value_type = hv_get_field(fields[i + 2], message)
    if not (value_type is AS_TEXT and fits(key, KEY_FIELD) and fits(found, VALUE_FIELD) and is_number(pool, 256)):
        return None
    if is_item and not is_number(index, 1LL << 32):
        return None
    made = PyBytes_FromStringAndSize(NULL, BODY_SIZE)
    out = <uint8_t *>PyBytes_AS_STRING(made)
    memset(out, 0, BODY_SIZE)
    out[0] = GET
    out[1] = pool
    if is_item:
        out[0] = ENUMERATE
        hv_store32(out + 4, index)
    hv_store32(out + sizes, SZ)
    hv_store32(out + sizes + 4, put(out + key_at, key))
    hv_store32(out + sizes + 8, put(out + key_at + KEY_FIELD, found))
    return made


assert tuple(KvpOperation)[:4] == (GET, SET, DELETE, ENUMERATE)
