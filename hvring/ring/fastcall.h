/* SPDX-License-Identifier: Apache-2.0 */
/* A way round keyword parsing: a method that is called with one positional argument and nothing else, as most calls
 * are, need not look for the keywords that it would also take.  (A sixth of what a small send() costs.) */
#ifndef HVRING_FASTCALL_H
#define HVRING_FASTCALL_H

#include <Python.h>
#include <string.h>

typedef PyObject *(*hv_method)(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names);

/* Puts `quick` before the method `name` of `type` and returns the method that it stands before, which must be called
 * for everything else; NULL, and nothing changes, where methods are called in another way. */
__attribute__((unused)) static hv_method hv_stand_before(PyTypeObject *type, const char *name, hv_method quick)
{
#ifndef Py_GIL_DISABLED /* there the method takes a lock of the object first */
    for (PyMethodDef *m = type->tp_methods; m != NULL && m->ml_name != NULL; m++) {
        if (strcmp(m->ml_name, name) == 0 && m->ml_flags == (METH_FASTCALL | METH_KEYWORDS)) {
            hv_method full = (hv_method)(void (*)(void))m->ml_meth;
            m->ml_meth = (PyCFunction)(void (*)(void))quick;
            return full;
        }
    }
#endif
    (void)type, (void)name, (void)quick;
    return NULL;
}

/* Makes `type` one of which only compiled code here makes instances: to call it, or its __new__, is a TypeError. */
__attribute__((unused)) static int hv_made_here_only(PyTypeObject *type)
{
    if (PyDict_DelItemString(type->tp_dict, "__new__") < 0)
        return -1;
    type->tp_new = NULL;
    type->tp_vectorcall = NULL;
    PyType_Modified(type);
    return 0;
}

#endif
