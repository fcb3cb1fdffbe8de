/* Plain values as bytes: constants, and those in a short tuple or list, by marshal, which takes a third of pickle's time.
 *
 * No reducer has a say in them.  They are written as marshal's version 2 does, which remembers no object that it has
 * written; so where a string or tuple comes twice in a value, and pickle would make one of it again, it is not plain.
 * The first byte is never 0x80, with which every pickle of protocol 2 or later begins.
 */
#include "plain.h"

#include <marshal.h>
#include <string.h>

#define PARTS 64   /* of a tuple or list */
#define CHARS 4096 /* bytes of all strings in a value */
#define SHARED 16  /* strings and tuples in a value that somebody else has, too */
#define DIGITS 5   /* marshal's, of 15 bits: of a number of 64 bits */
enum { VERSION = 2 };

struct looked {
    Py_ssize_t left; /* bytes that strings may still have */
    int n;           /* objects that may come again */
    PyObject *seen[SHARED];
};

/* Whether this string or tuple is there for the first time.  Nobody else has it: then it is. */
static bool is_first(PyObject *o, struct looked *l) {
    if (Py_REFCNT(o) == 1) return true;
    for (int i = 0; i < l->n; i++)
        if (l->seen[i] == o) return false;
    if (l->n == SHARED) return false; /* or it would take too long to find out */
    l->seen[l->n++] = o;
    return true;
}

static bool is_constant(PyObject *o, struct looked *l) {
    if (o == Py_None || PyFloat_CheckExact(o) || PyBool_Check(o)) return true;
    if (PyLong_CheckExact(o)) {
        int overflow;
        (void)PyLong_AsLongLongAndOverflow(o, &overflow);
        return overflow == 0;
    }
    Py_ssize_t length = -1;
    if (PyUnicode_CheckExact(o)) length = PyUnicode_GET_LENGTH(o), l->left -= length * (Py_ssize_t)PyUnicode_KIND(o);
    else if (PyBytes_CheckExact(o)) length = PyBytes_GET_SIZE(o), l->left -= length;
    return length >= 0 && l->left >= 0 && (length == 0 || is_first(o, l));
}

/* All parts are constants, or, if they may be `deep`, tuples of constants. */
static bool are_plain(PyObject *const *parts, Py_ssize_t n, bool deep, struct looked *l) {
    if (n > PARTS) return false;
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *o = parts[i];
        if (is_constant(o, l)) continue;
        if (!deep || !PyTuple_CheckExact(o) || (PyTuple_GET_SIZE(o) > 0 && !is_first(o, l))) return false;
        if (!are_plain(((PyTupleObject *)o)->ob_item, PyTuple_GET_SIZE(o), false, l)) return false;
    }
    return true;
}

static bool is_plain(PyObject *o) {
    struct looked l;
    l.left = CHARS;
    l.n = 0;
    if (PyList_CheckExact(o)) return are_plain(((PyListObject *)o)->ob_item, PyList_GET_SIZE(o), true, &l);
    if (!PyTuple_CheckExact(o)) return is_constant(o, &l);
    PyObject **parts = ((PyTupleObject *)o)->ob_item;
    Py_ssize_t n = PyTuple_GET_SIZE(o);
    if (n == 2 && PyTuple_CheckExact(parts[0]) && PyDict_CheckExact(parts[1]) && PyDict_GET_SIZE(parts[1]) == 0) { /* a call */
        parts = ((PyTupleObject *)parts[0])->ob_item;
        n = PyTuple_GET_SIZE(PyTuple_GET_ITEM(o, 0));
    }
    return are_plain(parts, n, true, &l);
}

PyObject *plain_dumps(PyObject *o) {
    if (!is_plain(o)) return NULL;
    PyObject *bytes = PyMarshal_WriteObjectToString(o, VERSION);
    if (!bytes) PyErr_Clear(); /* no memory: whoever else packs it says so */
    return bytes;
}

/* One value of those that are written here, at *at, which is moved past it: marshal itself would believe any length. */
static bool skip(const uint8_t **at, const uint8_t *end, int depth) {
    if (*at == end) return false;
    uint8_t kind = *(*at)++;
    uint32_t n = 0;
    size_t bytes = strchr("ulis([", kind) ? 4 : kind == 'g' ? 8 : 0;
    if ((size_t)(end - *at) < bytes) return false;
    if (bytes == 4) n = (*at)[0] | (uint32_t)(*at)[1] << 8 | (uint32_t)(*at)[2] << 16 | (uint32_t)(*at)[3] << 24;
    *at += bytes;
    switch (kind) {
    case 'N': case 'T': case 'F': case 'i': case 'g': return true;
    case '{': return *at < end && *(*at)++ == '0';
    case '(': case '[':
        if (n > PARTS || depth == 0) return false;
        while (n > 0 && skip(at, end, depth - 1)) n--;
        return n == 0;
    case 'l':
        n = n >> 31 ? -n : n;
        if (n > DIGITS) return false;
        n *= 2;
        break;
    case 'u': case 's': break;
    default: return false;
    }
    if ((size_t)(end - *at) < n) return false;
    *at += n;
    return true;
}

PyObject *plain_loads(const uint8_t *bytes, size_t n) {
    const uint8_t *at = bytes;
    if (skip(&at, bytes + n, 3) && at == bytes + n) return PyMarshal_ReadObjectFromString((const char *)bytes, (Py_ssize_t)n);
    PyErr_SetString(PyExc_ValueError, "this is no plain value");
    return NULL;
}

PyObject *plain_function(PyObject *m, PyObject *o) {
    (void)m;
    PyObject *bytes = plain_dumps(o);
    if (bytes) return bytes;
    Py_RETURN_NONE;
}
