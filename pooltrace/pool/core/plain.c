/* Plain values as bytes: constants, and those in a short tuple or list, by marshal, which takes a third of pickle's time.
 *
 * No reducer has a say in them.  They are written as marshal's version 2 does: it remembers no object that it has
 * written, so what can be changed is only the whole itself (and the empty dict of a call's keywords).  The first byte is
 * never 0x80, with which every pickle of protocol 2 or later begins.
 */
#include "plain.h"

#include <marshal.h>

#define PARTS 64   /* of a tuple or list */
#define CHARS 1024 /* of a string */
enum { VERSION = 2 };

static bool is_constant(PyObject *o) {
    if (o == Py_None || PyLong_CheckExact(o) || PyFloat_CheckExact(o) || PyBool_Check(o)) return true;
    if (PyUnicode_CheckExact(o)) return PyUnicode_GET_LENGTH(o) <= CHARS;
    return PyBytes_CheckExact(o) && PyBytes_GET_SIZE(o) <= CHARS;
}

/* All parts are constants, or, if they may be `deep`, tuples of constants. */
static bool are_plain(PyObject *const *parts, Py_ssize_t n, bool deep) {
    if (n > PARTS) return false;
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *o = parts[i];
        if (is_constant(o)) continue;
        if (!deep || !PyTuple_CheckExact(o) || !are_plain(((PyTupleObject *)o)->ob_item, PyTuple_GET_SIZE(o), false)) return false;
    }
    return true;
}

static bool is_plain(PyObject *o) {
    if (PyList_CheckExact(o)) return are_plain(((PyListObject *)o)->ob_item, PyList_GET_SIZE(o), true);
    if (!PyTuple_CheckExact(o)) return is_constant(o);
    PyObject **parts = ((PyTupleObject *)o)->ob_item;
    Py_ssize_t n = PyTuple_GET_SIZE(o);
    bool call = n == 2 && PyTuple_CheckExact(parts[0]) && PyDict_CheckExact(parts[1]) && PyDict_GET_SIZE(parts[1]) == 0;
    return call ? are_plain(((PyTupleObject *)parts[0])->ob_item, PyTuple_GET_SIZE(parts[0]), true) : are_plain(parts, n, true);
}

PyObject *plain_dumps(PyObject *o) {
    if (!is_plain(o)) return NULL;
    PyObject *bytes = PyMarshal_WriteObjectToString(o, VERSION);
    if (!bytes) PyErr_Clear(); /* a number beyond its measure, or no memory: pickle says which */
    return bytes;
}

PyObject *plain_loads(const void *bytes, size_t n) {
    return PyMarshal_ReadObjectFromString(bytes, (Py_ssize_t)n);
}

PyObject *plain_function(PyObject *m, PyObject *o) {
    (void)m;
    PyObject *bytes = plain_dumps(o);
    if (bytes) return bytes;
    Py_RETURN_NONE;
}
