/* Units and rows of them, as they wait and as they are on their way.
 *
 * What they mean is in jobs.py, whose classes derive from these: here are their fields, and the way from a row to its
 * units, since there may be hundreds of thousands of them in a second.
 */
#include "unit.h"

#include <structmember.h>

#include "channel.h"
#include "plain.h"

#define LONG 100 /* items of a range from which it is smaller, as a pickle, than they are */

/* ---- a unit ---- */
static void unit_defaults(unit_t *u) {
    u->end = -1;
    u->items = u->weight = 1;
}

static PyObject *unit_new(PyTypeObject *type, PyObject *args, PyObject *kwds) {
    PyObject *job, *what;
    Py_ssize_t index;
    unsigned long long g;
    static char *names[] = {"job", "index", "what", "g", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwds, "OnOK", names, &job, &index, &what, &g)) return NULL;
    unit_t *u = (unit_t *)type->tp_alloc(type, 0);
    if (!u) return NULL;
    unit_defaults(u);
    u->job = Py_NewRef(job);
    u->what = Py_NewRef(what);
    u->index = index;
    u->g = g;
    return (PyObject *)u;
}

static int unit_traverse(unit_t *u, visitproc visit, void *arg) {
    Py_VISIT(u->job);
    Py_VISIT(u->what);
    Py_VISIT(u->packed);
    Py_VISIT(u->error);
    Py_VISIT(u->first);
    return 0;
}

static int unit_clear(unit_t *u) {
    Py_CLEAR(u->job);
    Py_CLEAR(u->what);
    Py_CLEAR(u->packed);
    Py_CLEAR(u->error);
    Py_CLEAR(u->first);
    return 0;
}

static void unit_dealloc(unit_t *u) {
    PyObject_GC_UnTrack(u);
    unit_clear(u);
    Py_TYPE(u)->tp_free(u);
}

static PyObject *unit_span(unit_t *u, void *unused) {
    (void)unused;
    if (u->end < 0) Py_RETURN_NONE;
    return Py_BuildValue("(nn)", u->begin, u->end);
}

/* A long range is not written out; a slice of anything else is a tuple. */
static PyObject *part_of(PyObject *items, Py_ssize_t begin, Py_ssize_t end) {
    PyObject *part = PySequence_GetSlice(items, begin, end);
    if (!part || PyTuple_CheckExact(part) || end - begin >= LONG) return part;
    PyObject *row = PySequence_Tuple(part);
    Py_DECREF(part);
    return row;
}

static PyObject *unit_payload(unit_t *u, PyObject *unused) {
    (void)unused;
    if (!u->what) Py_RETURN_NONE;
    return u->end < 0 ? Py_NewRef(u->what) : part_of(u->what, u->begin, u->end);
}

static PyObject *plain_part(const unit_t *u) {
    if (u->end - u->begin >= LONG || (!PyTuple_CheckExact(u->what) && !PyRange_Check(u->what))) return NULL;
    PyObject *part = NULL;
    if (u->end - u->begin == 1) {
        PyObject *item = PySequence_GetItem(u->what, u->begin);
        if (item && (part = PyTuple_New(1))) PyTuple_SET_ITEM(part, 0, item);
        else Py_XDECREF(item);
    } else part = part_of(u->what, u->begin, u->end);
    PyObject *bytes = part ? plain_dumps(part) : NULL;
    Py_XDECREF(part);
    return bytes;
}

PyObject *unit_bytes(const unit_t *u) {
    PyObject *bytes = NULL;
    if (u->error) return NULL;
    if (u->packed && u->packed != Py_None) {
        if (!PyTuple_CheckExact(u->packed) || PyTuple_GET_SIZE(u->packed) != 2) return NULL;
        PyObject *buffers = PyTuple_GET_ITEM(u->packed, 1);
        bytes = PyTuple_GET_ITEM(u->packed, 0);
        bool small = PyBytes_CheckExact(bytes) && PyBytes_GET_SIZE(bytes) <= SMALL && PyList_CheckExact(buffers) && PyList_GET_SIZE(buffers) == 0;
        return small ? Py_NewRef(bytes) : NULL;
    }
    if (u->what) bytes = u->end < 0 ? plain_dumps(u->what) : plain_part(u);
    if (!bytes) PyErr_Clear(); /* of whoever does it then */
    return bytes;
}

static PyMemberDef unit_members[] = {
    {"job", T_OBJECT, offsetof(unit_t, job), READONLY, NULL},
    {"what", T_OBJECT, offsetof(unit_t, what), 0, "(args, kwds), a chunk's items, or what the span is of"},
    {"packed", T_OBJECT, offsetof(unit_t, packed), 0, "what it applies the function to, pickled beforehand"},
    {"error", T_OBJECT, offsetof(unit_t, error), 0, "known before it runs: the user's iterator raised it"},
    {"first", T_OBJECT, offsetof(unit_t, first), 0, "of its items, if it is packed and was no trouble to keep"},
    {"index", T_PYSSIZET, offsetof(unit_t, index), READONLY, "among its job's units"},
    {"size", T_PYSSIZET, offsetof(unit_t, size), 0, "bytes, if it is packed"},
    {"items", T_PYSSIZET, offsetof(unit_t, items), 0, "how many, if it is packed"},
    {"weight", T_PYSSIZET, offsetof(unit_t, weight), 0, "how many units of the result an error stands for"},
    {"deaths", T_PYSSIZET, offsetof(unit_t, deaths), 0, "of workers that were about to begin it"},
    {"losses", T_PYSSIZET, offsetof(unit_t, losses), 0, "it was running when its worker died, and was sent again"},
    {"g", T_ULONGLONG, offsetof(unit_t, g), 0, NULL},
    {"generation", T_UINT, offsetof(unit_t, generation), 0, "of the trace, in which it was created; 0: none"},
    {"sent", T_BOOL, offsetof(unit_t, sent), 0, "a call has posted it"},
    {NULL, 0, 0, 0, NULL},
};
static PyGetSetDef unit_getset[] = {
    {"span", (getter)unit_span, NULL, "which items of `what` it has; None: `what` is what it has", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyMethodDef unit_methods[] = {
    {"payload", (PyCFunction)unit_payload, METH_NOARGS, "payload(): what the function is applied to."},
    {NULL, NULL, 0, NULL},
};
PyTypeObject UnitType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "pooltrace.pool._channel.Unit",
    .tp_basicsize = sizeof(unit_t),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_doc = "Unit(job, index, what, g)",
    .tp_new = unit_new,
    .tp_dealloc = (destructor)unit_dealloc,
    .tp_traverse = (traverseproc)unit_traverse,
    .tp_clear = (inquiry)unit_clear,
    .tp_members = unit_members,
    .tp_getset = unit_getset,
    .tp_methods = unit_methods,
};

/* ---- a row ---- */
static PyObject *row_new(PyTypeObject *type, PyObject *args, PyObject *kwds) {
    PyObject *unit_type, *job, *items;
    Py_ssize_t size, index, left;
    unsigned long long g;
    if (kwds && PyDict_GET_SIZE(kwds)) return PyErr_Format(PyExc_TypeError, "a row takes no keywords");
    if (!PyArg_ParseTuple(args, "OOOnnnK", &unit_type, &job, &items, &size, &index, &left, &g)) return NULL;
    if (!PyType_Check(unit_type) || !PyType_IsSubtype((PyTypeObject *)unit_type, &UnitType) || size < 1 || index < 0 || left < 0)
        return PyErr_Format(PyExc_ValueError, "a row is of units, with a size of at least 1");
    row_t *r = (row_t *)type->tp_alloc(type, 0);
    if (!r) return NULL;
    r->unit_type = Py_NewRef(unit_type);
    r->job = Py_NewRef(job);
    r->items = Py_NewRef(items);
    r->size = size;
    r->index = index;
    r->left = left;
    r->g = g;
    return (PyObject *)r;
}

static int row_traverse(row_t *r, visitproc visit, void *arg) {
    Py_VISIT(r->unit_type);
    Py_VISIT(r->job);
    Py_VISIT(r->items);
    return 0;
}

static int row_clear(row_t *r) {
    Py_CLEAR(r->unit_type);
    Py_CLEAR(r->job);
    Py_CLEAR(r->items);
    r->left = 0;
    return 0;
}

static void row_dealloc(row_t *r) {
    PyObject_GC_UnTrack(r);
    row_clear(r);
    Py_TYPE(r)->tp_free(r);
}

unit_t *row_next(row_t *r) {
    if (r->left <= 0) return (unit_t *)PyErr_Format(PyExc_IndexError, "the row has no unit left");
    Py_ssize_t length = PyObject_Size(r->items);
    if (length < 0) return NULL;
    Py_ssize_t begin = r->index <= length / r->size ? r->index * r->size : length;
    PyTypeObject *type = (PyTypeObject *)r->unit_type;
    unit_t *u = (unit_t *)type->tp_alloc(type, 0);
    if (!u) return NULL;
    unit_defaults(u);
    u->job = Py_NewRef(r->job);
    u->what = Py_NewRef(r->items);
    u->begin = begin;
    u->end = length - begin < r->size ? length : begin + r->size;
    u->index = r->index;
    u->g = r->g;
    u->generation = r->generation;
    return u;
}

void row_advance(row_t *r) {
    r->index++;
    r->g++;
    r->left--;
}

static PyObject *row_take(row_t *r, PyObject *unused) {
    (void)unused;
    unit_t *u = row_next(r);
    if (u) row_advance(r);
    return (PyObject *)u;
}

static PyMemberDef row_members[] = {
    {"job", T_OBJECT, offsetof(row_t, job), READONLY, NULL},
    {"items", T_OBJECT, offsetof(row_t, items), READONLY, NULL},
    {"size", T_PYSSIZET, offsetof(row_t, size), READONLY, "items of a unit"},
    {"index", T_PYSSIZET, offsetof(row_t, index), READONLY, "of the next unit"},
    {"left", T_PYSSIZET, offsetof(row_t, left), 0, "units"},
    {"g", T_ULONGLONG, offsetof(row_t, g), READONLY, "of the next unit"},
    {"generation", T_UINT, offsetof(row_t, generation), 0, "of the trace, in which its units were created; 0: none"},
    {NULL, 0, 0, 0, NULL},
};
static PyMethodDef row_methods[] = {
    {"take", (PyCFunction)row_take, METH_NOARGS, "take() -> Unit: the first of them."},
    {NULL, NULL, 0, NULL},
};
PyTypeObject RowType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "pooltrace.pool._channel.Row",
    .tp_basicsize = sizeof(row_t),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_doc = "Row(unit_type, job, items, size, index, left, g): `left` units, each of `size` of the items.",
    .tp_new = row_new,
    .tp_dealloc = (destructor)row_dealloc,
    .tp_traverse = (traverseproc)row_traverse,
    .tp_clear = (inquiry)row_clear,
    .tp_members = row_members,
    .tp_methods = row_methods,
};
