/* The parent's end of a channel, as far as units are put into it: one, or as many of those that wait as need no more than
 * to be packed.  They are in flight from then on, and go with the next flush. */
#include "parent.h"

#include "unit.h"

/* A unit's word and place are used again only when the worker is past them. */
Py_ssize_t parent_room(parent_t *p, Py_ssize_t most) {
    uint64_t passed = atomic_load_explicit(&p->page->passed, memory_order_acquire), on_way = p->next - passed;
    if (on_way >= WINDOW - 1) return 0; /* or the page makes no sense */
    if (most > (Py_ssize_t)(WINDOW - 1 - on_way)) most = (Py_ssize_t)(WINDOW - 1 - on_way);
    Py_ssize_t n = 0;
    while (n < most && !p->unit[(p->next + (uint64_t)n) % WINDOW]) n++;
    return n;
}

bool parent_has_room(parent_t *p) { return parent_room(p, 1) > 0; }

/* false with an exception set: it is not in flight. */
static bool send_unit(parent_t *p, PyObject *unit, struct frame_head *head, PyObject *function, PyObject *payload, PyObject *buffers) {
    head->seq = p->next;
    if (!sender_add(&p->out, head, function, payload, buffers)) return false;
    uint64_t at = p->next % WINDOW;
    p->unit[at] = Py_NewRef(unit);
    p->seq[at] = p->next;
    p->size[at] = head->total;
    p->waiting += head->total;
    p->inflight++;
    claim_offer(p->page, p->next++);
    return true;
}

bool parent_post_args(parent_t *p, PyObject *const *args) {
    struct frame_head head = {0};
    long kind = PyLong_AsLong(args[1]), flags = PyLong_AsLong(args[2]);
    head.generation = (uint32_t)PyLong_AsUnsignedLong(args[3]);
    head.unit = PyLong_AsUnsignedLongLong(args[4]);
    head.job = PyLong_AsUnsignedLongLong(args[5]);
    if (PyErr_Occurred() || !parent_is_open(p)) return false;
    if (!PyList_Check(args[8]) || kind < FRAME_APPLY || kind > FRAME_STARMAP || flags & ~0xff) {
        PyErr_SetString(PyExc_ValueError, "a frame has a kind of unit, flags, and a list of buffers");
        return false;
    }
    if (!parent_has_room(p)) {
        PyErr_SetString(PyExc_BlockingIOError, "as many units are on their way as can be");
        return false;
    }
    head.kind = (uint8_t)kind;
    head.flags = (uint8_t)flags;
    return send_unit(p, args[0], &head, args[6], args[7], args[8]);
}

PyObject *parent_post(parent_t *p, PyObject *const *args, Py_ssize_t n) {
    if (n != 9) return PyErr_Format(PyExc_TypeError, "post() takes 9 arguments, not %zd", n);
    if (parent_is_lent(p)) {
        PyErr_SetString(PyExc_BlockingIOError, "a call has the worker");
        return NULL;
    }
    if (!parent_post_args(p, args)) return NULL;
    Py_RETURN_NONE;
}

/* The arguments of the two below. */
static bool post_many(parent_t *p, PyObject *const *args, Py_ssize_t *most, struct frame_head *head) {
    *most = PyLong_AsSsize_t(args[1]);
    if (*most == -1 && PyErr_Occurred()) return false;
    long kind = PyLong_AsLong(args[2]);
    if (kind == -1 && PyErr_Occurred()) return false;
    head->job = PyLong_AsUnsignedLongLong(args[3]);
    if (PyErr_Occurred() || !parent_is_open(p)) return false;
    if (kind < FRAME_APPLY || kind > FRAME_STARMAP) {
        PyErr_SetString(PyExc_ValueError, "these are no units");
        return false;
    }
    head->kind = (uint8_t)kind;
    return true;
}

/* Asked after all that may run Python code (a finalizer, an audit hook), by which a call may have taken the end. */
static bool may_send(parent_t *p) { return p->page && !parent_is_lent(p) && parent_has_room(p); }

PyObject *parent_post_row(parent_t *p, PyObject *const *args, Py_ssize_t n) {
    struct frame_head head = {0};
    Py_ssize_t given = 0, most;
    if (n != 4 || !PyObject_TypeCheck(args[0], &RowType)) return PyErr_Format(PyExc_TypeError, "post_row() takes a row, most, kind, job");
    if (!post_many(p, args, &most, &head)) return NULL;
    row_t *row = (row_t *)args[0];
    for (bool sent = true; sent && given < most && row->left > 0 && may_send(p); given += sent) {
        unit_t *unit = row_next(row);
        PyObject *payload = unit ? unit_bytes(unit) : NULL;
        head.generation = row->generation;
        head.unit = row->g;
        sent = payload && may_send(p) && send_unit(p, (PyObject *)unit, &head, NULL, payload, NULL);
        if (sent) row_advance(row);
        Py_XDECREF(payload);
        Py_XDECREF(unit);
    }
    PyErr_Clear(); /* whoever takes the next one sees it, too */
    return PyLong_FromSsize_t(given);
}

PyObject *parent_post_units(parent_t *p, PyObject *const *args, Py_ssize_t n) {
    struct frame_head head = {0};
    Py_ssize_t given = 0, most, length;
    if (n != 4) return PyErr_Format(PyExc_TypeError, "post_units() takes units, most, kind, job");
    if (!post_many(p, args, &most, &head) || (length = PySequence_Size(args[0])) < 0) return NULL;
    PyObject *job = NULL; /* of the first one, and borrowed from it: it stays */
    for (bool sent = true; sent && given < most && given < length && may_send(p); given += sent) {
        PyObject *o = PySequence_GetItem(args[0], given), *payload = NULL;
        unit_t *unit = o && PyObject_TypeCheck(o, &UnitType) ? (unit_t *)o : NULL;
        if (unit && !job) job = unit->job;
        if (unit && unit->job == job) payload = unit_bytes(unit);
        if (payload) {
            head.generation = unit->generation;
            head.unit = unit->g;
        }
        sent = payload && may_send(p) && send_unit(p, o, &head, NULL, payload, NULL);
        Py_XDECREF(payload);
        Py_XDECREF(o);
    }
    PyErr_Clear(); /* whoever posts the next one sees it, too */
    return PyLong_FromSsize_t(given);
}
