/* The parent's end of a channel: units that are on their way to one worker, and the answers that come back. */
#include "parent.h"

#include <errno.h>

#include "plain.h"
#include "unit.h"

PyTypeObject *AnswerType;
PyObject *no_buffers;

bool parent_is_open(parent_t *p) {
    if (p->page) return true;
    PyErr_SetString(PyExc_ValueError, "the channel is closed");
    return false;
}

static PyObject *parent_new(PyTypeObject *type, PyObject *args, PyObject *kwds) {
    int fd, page_fd;
    static char *names[] = {"fd", "page_fd", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwds, "ii", names, &fd, &page_fd)) return NULL;
    parent_t *p = (parent_t *)type->tp_alloc(type, 0);
    if (!p) return NULL;
    p->out.fd = fd;
    p->pidfd = -1;
    if (!receiver_init(&p->in, fd) || !(p->page = page_map(page_fd))) {
        Py_DECREF(p);
        return NULL;
    }
    return (PyObject *)p;
}

static void drop(parent_t *p, uint64_t seq) {
    PyObject *unit = p->unit[seq % WINDOW];
    if (!unit) return;
    p->unit[seq % WINDOW] = NULL;
    p->inflight--;
    p->waiting -= p->size[seq % WINDOW];
    Py_DECREF(unit);
}

static int parent_clear(parent_t *p) {
    for (uint64_t i = 0; i < WINDOW; i++) drop(p, i);
    return 0;
}

/* Somebody else has it; he is told to say when it is back. */
bool parent_is_lent(parent_t *p) {
    p->wanted |= p->lent;
    return p->lent;
}

static PyObject *parent_retire(parent_t *p, PyObject *unused) {
    (void)unused;
    p->retired = true;
    return PyBool_FromLong(!parent_is_lent(p));
}

static PyObject *parent_close(parent_t *p, PyObject *unused) {
    (void)unused;
    p->retired = true;
    if (p->lent) return PyErr_Format(PyExc_RuntimeError, "the channel is in use");
    page_unmap(p->page);
    p->page = NULL;
    sender_clear(&p->out);
    receiver_free(&p->in);
    parent_clear(p);
    Py_RETURN_NONE;
}

static int parent_traverse(parent_t *p, visitproc visit, void *arg) {
    for (int i = 0; i < (int)WINDOW; i++) Py_VISIT(p->unit[i]);
    return 0;
}

static void parent_dealloc(parent_t *p) {
    PyObject_GC_UnTrack(p);
    p->lent = false; /* by a thread that is not in this process: of a fork */
    Py_XDECREF(parent_close(p, NULL));
    Py_TYPE(p)->tp_free(p);
}

/* ---- to the worker ---- */
bool parent_send_stop(parent_t *p) {
    struct frame_head head = {.kind = FRAME_STOP};
    p->stop_due = false;
    return sender_add(&p->out, &head, NULL, NULL, NULL);
}

static PyObject *parent_stop(parent_t *p, PyObject *unused) {
    (void)unused;
    if (!parent_is_open(p)) return NULL;
    p->stopping = true;
    if (parent_is_lent(p)) p->stop_due = true; /* a call may be sending what we would add to */
    else if (!parent_send_stop(p)) return NULL;
    Py_RETURN_NONE;
}

static PyObject *parent_flush(parent_t *p, PyObject *unused) {
    (void)unused;
    if (!parent_is_open(p)) return NULL;
    if (parent_is_lent(p)) Py_RETURN_TRUE;
    int all = sender_flush(&p->out, false);
    return all < 0 ? NULL : PyBool_FromLong(all);
}

static PyObject *parent_drop_unsent(parent_t *p, PyObject *unused) {
    (void)unused;
    if (!parent_is_lent(p)) sender_clear(&p->out);
    Py_RETURN_NONE;
}

/* ---- from the worker ---- */
static int nonsense(void) {
    errno = EPROTO;
    PyErr_SetFromErrno(PyExc_OSError);
    return -1;
}

/* What came as an answer.  `value`: of a plain one, which then has neither payload nor buffers. */
struct said {
    int kind, flags;
    PyObject *payload, *buffers, *value; /* owned, NULL: none */
};

/* Appends an answer; what is in `s` goes into it. */
static int append(PyObject *list, PyObject *unit, uint64_t ns, struct said *s) {
    PyObject *answer = PyStructSequence_New(AnswerType);
    PyObject *outcome = s->value ? PyTuple_Pack(2, Py_True, s->value) : Py_NewRef(Py_None);
    PyObject *parts[7] = {PyLong_FromLong(s->kind), PyLong_FromLong(s->flags), Py_NewRef(unit), PyLong_FromUnsignedLongLong(ns),
                          s->payload ? s->payload : Py_NewRef(Py_None), s->buffers ? s->buffers : Py_NewRef(no_buffers), outcome};
    Py_XDECREF(s->value);
    bool whole = answer != NULL;
    for (int i = 0; i < 7; i++) {
        whole = whole && parts[i];
        if (answer) PyStructSequence_SET_ITEM(answer, i, parts[i]);
        else Py_XDECREF(parts[i]);
    }
    int failed = whole ? PyList_Append(list, answer) : -1;
    Py_XDECREF(answer);
    return failed;
}

/* An answer that stands for those of several units of one job, one after the other: while it grows. */
struct batch {
    PyObject *answer; /* borrowed from the list, where it is the last; NULL: there is none */
    uint64_t ns;      /* of all of them */
};

/* Its ns are their mean. */
static void batch_end(struct batch *b) {
    if (!b->answer) return;
    PyObject *mean = PyLong_FromUnsignedLongLong(b->ns / (uint64_t)PyList_GET_SIZE(PyStructSequence_GET_ITEM(b->answer, 6)));
    if (mean) {
        Py_DECREF(PyStructSequence_GET_ITEM(b->answer, 3));
        PyStructSequence_SET_ITEM(b->answer, 3, mean);
    } else PyErr_Clear(); /* then those of the first */
    b->answer = NULL;
}

/* Adds a plain value, which is stolen, and is that of a Unit. */
static int batch_add(struct batch *b, PyObject *list, PyObject *unit, uint64_t ns, PyObject *value) {
    unit_t *u = (unit_t *)unit;
    PyObject *pair = Py_BuildValue("(n(ON))", u->index, Py_True, value);
    if (!pair) return -1;
    PyObject *last = b->answer ? PyStructSequence_GET_ITEM(b->answer, 2) : NULL;
    if (last && ((unit_t *)last)->job == u->job) {
        int failed = PyList_Append(PyStructSequence_GET_ITEM(b->answer, 6), pair);
        Py_DECREF(pair);
        if (failed) return -1;
        PyStructSequence_SET_ITEM(b->answer, 2, Py_NewRef(unit));
        Py_DECREF(last);
        b->ns += ns;
        return 0;
    }
    batch_end(b);
    PyObject *pairs = PyList_New(1);
    if (!pairs) {
        Py_DECREF(pair);
        return -1;
    }
    PyList_SET_ITEM(pairs, 0, pair);
    struct said s = {.kind = FRAME_RESULTS};
    if (append(list, unit, ns, &s) < 0) {
        Py_DECREF(pairs);
        return -1;
    }
    b->answer = PyList_GET_ITEM(list, PyList_GET_SIZE(list) - 1);
    Py_DECREF(PyStructSequence_GET_ITEM(b->answer, 6));
    PyStructSequence_SET_ITEM(b->answer, 6, pairs);
    b->ns = ns;
    return 0;
}

/* Appends the answer to the unit of that number, which is in flight no more. */
static int answered(parent_t *p, PyObject *list, struct batch *b, uint64_t seq, uint64_t ns, struct said *s) {
    PyObject *unit = p->unit[seq % WINDOW];
    if (!unit || p->seq[seq % WINDOW] != seq || !claim_is(p->page, seq, CLAIM_CLAIMED)) {
        Py_XDECREF(s->payload);
        Py_XDECREF(s->buffers);
        Py_XDECREF(s->value);
        return nonsense();
    }
    bool joins = s->value && !p->lent && PyObject_TypeCheck(unit, &UnitType); /* a call looks for its own */
    if (!joins) batch_end(b);
    if ((joins ? batch_add(b, list, unit, ns, s->value) : append(list, unit, ns, s)) < 0) return -1;
    p->answers++;
    drop(p, seq);
    return 0;
}

/* All results that are in the ring. */
static int collect(parent_t *p, PyObject *list) {
    uint64_t head = bell_heard(p->page);
    if (atomic_load_explicit(&p->page->passed, memory_order_acquire) > p->next) return nonsense(); /* more than were sent */
    struct record r;
    struct batch b = {NULL, 0};
    int some;
    while ((some = result_peek(p->page, p->tail, head, &r)) > 0) {
        uint8_t bytes[RESULT_MOST];
        ring_get(p->page, p->tail + sizeof r, bytes, r.len);
        struct said s = {.kind = FRAME_RESULT, .flags = (int)(r.flags & 0xff)};
        if (r.len > 0 && bytes[0] != PICKLE && !(s.flags & FLAG_FAILED) && !(s.value = plain_loads(bytes, r.len))) PyErr_Clear();
        if (!s.value && !(s.payload = PyBytes_FromStringAndSize((char *)bytes, (Py_ssize_t)r.len))) return -1;
        if (answered(p, list, &b, r.seq, r.ns, &s) < 0) return -1;
        p->tail += record_bytes(r.len);
    }
    batch_end(&b);
    results_taken(p->page, p->tail);
    return some < 0 ? nonsense() : 0;
}

/* All frames that are there. */
static int take(parent_t *p, PyObject *list) {
    struct frame f;
    int some;
    while ((some = receiver_take(&p->in, &f)) > 0) {
        int failed = 0;
        struct said s = {f.head.kind, f.head.flags, NULL, NULL, NULL};
        if (f.head.kind != FRAME_BELL) s.payload = Py_NewRef(f.payload), s.buffers = Py_XNewRef(f.buffers);
        if (f.head.kind == FRAME_RESULT) failed = answered(p, list, &(struct batch){NULL, 0}, f.head.seq, f.head.job, &s);
        else if (f.head.kind != FRAME_BELL) failed = append(list, Py_None, 0, &s);
        frame_free(&f);
        if (failed) return -1;
    }
    return some;
}

/* Into the list; -1 with an exception, what could be had stays in the list. */
int parent_take_in(parent_t *p, PyObject *list, int rounds) {
    int failed = 0;
    for (int i = 0; i != rounds && !p->ended && !p->broken && !failed; i++) {
        int some = receiver_fill(&p->in, false);
        if (some == -2) break;
        if (some == 0) p->ended = true;
        failed = some < 0 || (some > 0 && take(p, list) < 0);
    }
    if (!failed) {
        failed = collect(p, list) < 0;
    } else { /* results in the page count, whatever the frames are */
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback);
        if (collect(p, list) < 0) PyErr_Clear();
        PyErr_Restore(type, value, traceback);
    }
    if (failed) p->broken |= PyErr_ExceptionMatches(PyExc_OSError);
    else if (p->broken) return nonsense(); /* whoever asks */
    return failed ? -1 : 0;
}

static PyObject *parent_receive(parent_t *p, PyObject *arg) {
    if (!parent_is_open(p)) return NULL;
    if (!PyList_Check(arg)) return PyErr_Format(PyExc_TypeError, "receive() takes a list to append to");
    if (p->lent) Py_RETURN_NONE;
    if (parent_take_in(p, arg, ROUNDS) < 0) return NULL;
    Py_RETURN_NONE;
}

static PyObject *parent_receive_rest(parent_t *p, PyObject *arg) {
    if (!parent_is_open(p)) return NULL;
    if (!PyList_Check(arg)) return PyErr_Format(PyExc_TypeError, "receive_rest() takes a list to append to");
    if (parent_take_in(p, arg, -1) < 0) return NULL;
    Py_RETURN_NONE;
}

/* ---- who has what ---- */
static PyObject *parent_take_back(parent_t *p, PyObject *arg) {
    Py_ssize_t most = PyLong_AsSsize_t(arg);
    if ((most == -1 && PyErr_Occurred()) || !parent_is_open(p)) return NULL;
    PyObject *list = PyList_New(0);
    if (parent_is_lent(p)) return list;
    uint64_t last = p->next > WINDOW ? p->next - WINDOW : 0;
    for (uint64_t seq = p->next; list && seq-- > last && PyList_GET_SIZE(list) < most;) {
        PyObject *unit = p->unit[seq % WINDOW];
        if (!unit || p->seq[seq % WINDOW] != seq) continue; /* taken back before, or answered */
        if (PyList_Append(list, unit) < 0) Py_CLEAR(list); /* first: once it is taken it must not be lost */
        else if (!claim_move(p->page, seq, CLAIM_TAKEN)) { /* it has begun, and all before it */
            if (PyList_SetSlice(list, PyList_GET_SIZE(list) - 1, PyList_GET_SIZE(list), NULL) < 0) Py_CLEAR(list);
            break;
        } else {
            p->taken++;
            drop(p, seq);
        }
    }
    return list;
}

static PyObject *parent_unanswered(parent_t *p, PyObject *unused) {
    (void)unused;
    if (!parent_is_open(p)) return NULL;
    PyObject *begun = PyList_New(0), *waiting = PyList_New(0);
    uint64_t seq = p->next > WINDOW ? p->next - WINDOW : 0;
    for (; begun && waiting && seq < p->next; seq++) {
        PyObject *unit = p->unit[seq % WINDOW];
        if (!unit || p->seq[seq % WINDOW] != seq) continue;
        if (PyList_Append(claim_is(p->page, seq, CLAIM_OFFERED) ? waiting : begun, unit) < 0) Py_CLEAR(begun);
    }
    PyObject *both = begun && waiting ? PyTuple_Pack(2, begun, waiting) : NULL;
    Py_XDECREF(begun);
    Py_XDECREF(waiting);
    return both;
}

static PyObject *parent_running(parent_t *p, PyObject *unused) {
    (void)unused;
    if (!parent_is_open(p)) return NULL;
    uint64_t begun = atomic_load_explicit(&p->page->begun, memory_order_acquire), at = begun & 0xff;
    _Static_assert(WINDOW == 256, "its numbers have 8 bits");
    if (begun <= 0xff || !p->unit[at] || !claim_is(p->page, p->seq[at], CLAIM_CLAIMED)) Py_RETURN_NONE;
    uint64_t ns = ((channel_now() << 8) - (begun & ~(uint64_t)0xff)) >> 8;
    return Py_BuildValue("(OK)", p->unit[at], (unsigned long long)ns);
}

static PyObject *parent_units(parent_t *p, PyObject *unused) {
    (void)unused;
    PyObject *list = PyList_New(0);
    for (uint64_t seq = p->next > WINDOW ? p->next - WINDOW : 0; list && seq < p->next; seq++) {
        PyObject *unit = p->unit[seq % WINDOW];
        if (unit && p->seq[seq % WINDOW] == seq && PyList_Append(list, unit) < 0) Py_CLEAR(list);
    }
    return list;
}

static PyObject *parent_ask(parent_t *p, PyObject *unused) {
    (void)unused;
    return PyBool_FromLong(!parent_is_lent(p));
}

static PyObject *parent_watch(parent_t *p, PyObject *arg) {
    long fd = PyLong_AsLong(arg);
    if (fd == -1 && PyErr_Occurred()) return NULL;
    p->pidfd = (int)fd;
    Py_RETURN_NONE;
}

static PyObject *get_idle(parent_t *p, void *unused) {
    (void)unused;
    return PyBool_FromLong(parent_is_idle(p));
}
static PyObject *get_lent(parent_t *p, void *unused) {
    (void)unused;
    return PyBool_FromLong(p->lent);
}
static PyObject *get_waiting(parent_t *p, void *unused) {
    (void)unused;
    return PyLong_FromUnsignedLongLong(p->waiting);
}
static PyObject *get_assigned(parent_t *p, void *unused) {
    (void)unused;
    return PyLong_FromUnsignedLongLong(p->next - p->taken);
}
static PyObject *get_answers(parent_t *p, void *unused) {
    (void)unused;
    return PyLong_FromUnsignedLongLong(p->answers);
}
static PyObject *get_room(parent_t *p, void *unused) {
    (void)unused;
    return parent_is_open(p) ? PyLong_FromSsize_t(parent_room(p, WINDOW)) : NULL;
}
static PyObject *get_inflight(parent_t *p, void *unused) {
    (void)unused;
    return PyLong_FromSsize_t(p->inflight);
}
static PyObject *get_ended(parent_t *p, void *unused) {
    (void)unused;
    return PyBool_FromLong(p->ended);
}
static PyObject *get_passed(parent_t *p, void *unused) {
    (void)unused;
    return parent_is_open(p) ? PyLong_FromUnsignedLongLong(atomic_load_explicit(&p->page->passed, memory_order_acquire)) : NULL;
}

static PyMethodDef methods[] = {
    {"post", (PyCFunction)(void (*)(void))parent_post, METH_FASTCALL,
     "post(unit, kind, flags, generation, g, job, function, payload, buffers): the unit is in flight."},
    {"post_row", (PyCFunction)(void (*)(void))parent_post_row, METH_FASTCALL,
     "post_row(row, most, kind, job) -> int: so many of the row's first units are in flight, and no longer in it. The rest\n"
     "has to be posted one by one: it is not plain, or the channel takes no more now."},
    {"post_units", (PyCFunction)(void (*)(void))parent_post_units, METH_FASTCALL,
     "post_units(units, most, kind, job) -> int: so many of a sequence's first units, all of one job, are in flight. The rest\n"
     "as with post_row."},
    {"stop", (PyCFunction)parent_stop, METH_NOARGS, "stop(): asks the worker to end after what it has."},
    {"flush", (PyCFunction)parent_flush, METH_NOARGS, "flush() -> bool: sends what the channel takes; is that all?"},
    {"drop_unsent", (PyCFunction)parent_drop_unsent, METH_NOARGS, "drop_unsent(): of a worker that is not sent to any more."},
    {"receive", (PyCFunction)parent_receive, METH_O, "receive(answers): appends what is there now."},
    {"receive_rest", (PyCFunction)parent_receive_rest, METH_O, "receive_rest(answers): all that a dead worker has left."},
    {"take_back", (PyCFunction)parent_take_back, METH_O, "take_back(most) -> list: the newest units that have not begun."},
    {"unanswered", (PyCFunction)parent_unanswered, METH_NOARGS, "unanswered() -> (begun, waiting): oldest first."},
    {"running", (PyCFunction)parent_running, METH_NOARGS,
     "running() -> (unit, ns) | None: which one has begun and is not answered, and how long ago."},
    {"units", (PyCFunction)parent_units, METH_NOARGS, "units() -> list: what is in flight, oldest first."},
    {"call", (PyCFunction)(void (*)(void))parent_call, METH_FASTCALL,
     "call(..., gate, waker): post(...) and flush() inside the gate, then waits for the answer, which it returns. False: it is "
     "not idle. None: the dispatcher has to bring the answer; a byte to `waker` tells it. `sent` of the unit: it was posted."},
    {"ask", (PyCFunction)parent_ask, METH_NOARGS, "ask() -> bool: may it be used? If a call has it, `waker` hears when it is back."},
    {"watch", (PyCFunction)parent_watch, METH_O, "watch(pidfd): it is readable when the worker is dead; -1: nobody is left to be woken."},
    {"retire", (PyCFunction)parent_retire, METH_NOARGS, "retire() -> bool: no call takes it any more; does none have it?"},
    {"close", (PyCFunction)parent_close, METH_NOARGS, "close(): gives memory and units back; not the descriptor."},
    {NULL, NULL, 0, NULL},
};
static PyGetSetDef getset[] = {
    {"room", (getter)get_room, NULL, "How many more units may be posted now.", NULL},
    {"idle", (getter)get_idle, NULL, "A call may take it.", NULL},
    {"lent", (getter)get_lent, NULL, "A call has it.", NULL},
    {"waiting", (getter)get_waiting, NULL, "Bytes of the units in flight.", NULL},
    {"assigned", (getter)get_assigned, NULL, "How many units were posted and not taken back.", NULL},
    {"answers", (getter)get_answers, NULL, "How many units were answered.", NULL},
    {"inflight", (getter)get_inflight, NULL, "How many units are neither answered nor taken back.", NULL},
    {"ended", (getter)get_ended, NULL, "The worker has closed its end.", NULL},
    {"passed", (getter)get_passed, NULL, "How many units the worker has taken off the channel.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
PyTypeObject ParentEndType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "pooltrace.pool._channel.ParentEnd",
    .tp_basicsize = sizeof(parent_t),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_doc = "ParentEnd(fd, page_fd): the parent's end of a channel; both are borrowed.",
    .tp_new = parent_new,
    .tp_dealloc = (destructor)parent_dealloc,
    .tp_traverse = (traverseproc)parent_traverse,
    .tp_clear = (inquiry)parent_clear,
    .tp_methods = methods,
    .tp_getset = getset,
};
