/* Emit functions for whoever runs a G: regions and logs; and a worker's units, items and idle times. */
#include "emit.h"

/* ---- any M that runs a G ---- */
/* `what`: the kind of one of ours, the serial of a user's.  `again`: it begins when the last event was. */
static inline void emit_region(struct writer *w, enum op op, uint64_t what, uint64_t task, const struct refs *r, bool again) {
    struct event ev;
    bool open = again && w->kind == KIND_WORKER && writer_open_at(w, &ev, 56, true) && is_defined(w, r, ev.gen);
    while (open || open_with(w, &ev, 56, r, w->kind != KIND_WORKER)) {
        *ev.p++ = (uint8_t)op;
        ev.p = put_varint(ev.p, ev.dt);
        ev.p = put_varint(ev.p, what);
        ev.p = put_varint(ev.p, task);
        ev.p = put_varint(ev.p, string_id(r->name));
        ev.p = put_varint(ev.p, id_of(r->stack));
        if (writer_publish(w, &ev)) break;
        open = false;
    }
}

static inline void emit_region_end(struct writer *w) {
    struct event ev;
    do {
        if (!writer_open(w, &ev, 32)) return;
        *ev.p++ = OP_REGION_END;
        ev.p = put_varint(ev.p, ev.dt);
    } while (!writer_publish(w, &ev));
}

static void emit_span_end(struct writer *w, uint64_t serial) {
    struct event ev;
    do {
        if (!writer_open(w, &ev, 32)) return;
        *ev.p++ = OP_SPAN_END;
        ev.p = put_varint(ev.p, ev.dt);
        ev.p = put_varint(ev.p, serial);
    } while (!writer_publish(w, &ev));
}

/* A user's region gets a number, since it may end after one that began before it (coroutines). */
static PyObject *region_begin(PyObject *m, PyObject *const *args, Py_ssize_t n) {
    (void)m;
    static uint64_t serials; /* GIL */
    if (arg_count(n, 4, "region_begin") < 0) return NULL;
    struct writer *w = ready_any();
    if (!w) return PyLong_FromLong(0);
    struct refs r = {0};
    uint64_t kind, task, serial = 0;
    emit_begin();
    bool failed = arg_uint(args[0], &kind) < 0 || arg_uint(args[1], &task) < 0 || !(r.name = string_of_cached(args[2])) ||
                  arg_stack(args[3], true, &r.stack) < 0;
    if (!failed && kind > REGION_ITEM) {
        PyErr_SetString(PyExc_ValueError, "region_begin(): kind must be REGION, PHASE or ITEM");
        failed = true;
    }
    if (!failed && kind == REGION_USER) emit_region(w, OP_SPAN, serial = ++serials, task, &r, false);
    else if (!failed) emit_region(w, OP_REGION, kind, task, &r, false);
    emit_end();
    refs_free(&r);
    return failed ? NULL : PyLong_FromUnsignedLongLong(serial);
}

static PyObject *region_end(PyObject *m, PyObject *const *args, Py_ssize_t n) {
    (void)m;
    uint64_t serial = 0;
    if (n > 1) return arg_count(n, 1, "region_end"), NULL;
    if (n == 1 && arg_uint(args[0], &serial) < 0) return NULL;
    struct writer *w = ready_any();
    if (w && n == 0) emit_region_end(w);
    else if (w && serial) emit_span_end(w, serial);
    Py_RETURN_NONE;
}

static void emit_log(struct writer *w, uint64_t task, const struct refs *r, const void *bytes, uint32_t len) {
    struct event ev;
    while (open_with(w, &ev, 64 + len, r, w->kind != KIND_WORKER)) {
        *ev.p++ = OP_LOG;
        ev.p = put_varint(ev.p, ev.dt);
        ev.p = put_varint(ev.p, task);
        ev.p = put_varint(ev.p, string_id(r->name));
        ev.p = put_varint(ev.p, len);
        memcpy(ev.p, bytes, len);
        ev.p += len;
        if (writer_publish(w, &ev)) break;
    }
}

void emit_text(struct writer *w, uint64_t task, struct string *key, const char *bytes, uint32_t len) {
    struct refs r = {.name = key};
    emit_log(w, task, &r, bytes, len);
}

static PyObject *log_event(PyObject *m, PyObject *const *args, Py_ssize_t n) {
    (void)m;
    if (arg_count(n, 3, "log") < 0) return NULL;
    struct writer *w = ready_any();
    if (!w) Py_RETURN_NONE;
    struct refs r = {0};
    struct string *made = NULL; /* only for a text that is to be cut or escaped */
    const void *bytes = NULL;
    uint32_t len = 0;
    uint64_t task;
    emit_begin();
    bool failed = arg_uint(args[0], &task) < 0 || !(r.name = string_of_cached(args[1]));
    if (!failed && PyUnicode_CheckExact(args[2]) && PyUnicode_IS_COMPACT_ASCII(args[2]) &&
        PyUnicode_GET_LENGTH(args[2]) <= (Py_ssize_t)PT_STRING_MAX) {
        bytes = PyUnicode_1BYTE_DATA(args[2]);
        len = (uint32_t)PyUnicode_GET_LENGTH(args[2]);
    } else if (!failed && !(failed = !(made = string_once(args[2])))) {
        bytes = made->bytes;
        len = made->len;
    }
    if (!failed) emit_log(w, task, &r, bytes, len);
    string_unref(made);
    return emit_done(&r, failed);
}

/* ---- a worker's main thread ---- */
static PyObject *unit_begin(PyObject *m, PyObject *const *args, Py_ssize_t n) {
    (void)m;
    if (arg_count(n, 3, "unit_begin") < 0) return NULL;
    struct writer *w = tls_writer;
    if (!is_worker(w)) Py_RETURN_NONE;
    struct refs r = {0};
    struct event ev;
    uint64_t g, created;
    if (arg_uint(args[0], &g) < 0 || arg_uint(args[1], &created) < 0 || arg_stack(args[2], false, &r.start) < 0) {
        refs_free(&r);
        return NULL;
    }
    STORE(&w->entry->unit, g);
    STORE(&w->entry->since, now_ns());
    emit_begin();
    while (!writer_off_state(w, PT_STATE_RUN | ((uint32_t)g & PT_UNIT_MASK))) {
        if (!open_with(w, &ev, 48, &r, false)) {
            if (w->detached) break;
            continue; /* the trace ended meanwhile: the state then */
        }
        *ev.p++ = OP_BEGIN;
        ev.p = put_varint(ev.p, ev.dt);
        ev.p = put_varint(ev.p, g);
        ev.p = put_varint(ev.p, created);
        ev.p = put_varint(ev.p, id_of(r.start));
        if (writer_publish(w, &ev)) break;
    }
    emit_done(&r, false);
    if (ready()) {
        collector_watch(true);
        if (w->unsampled) ticks_arm(w); /* of the last unit, perhaps */
        figures_begin(w);
    } else collector_watch(false);
    Py_RETURN_NONE;
}

/* Bytes of a payload and its buffers, whatever they are; nothing is of no bytes. */
static uint64_t bytes_of(PyObject *payload, PyObject *buffers) {
    Py_ssize_t size = 0, count = PyList_CheckExact(buffers) ? PyList_GET_SIZE(buffers) : 0;
    if (PyBytes_CheckExact(payload)) size = PyBytes_GET_SIZE(payload);
    else if (PyByteArray_Check(payload)) size = PyByteArray_GET_SIZE(payload);
    else if (PyMemoryView_Check(payload)) size = PyMemoryView_GET_BUFFER(payload)->len;
    for (Py_ssize_t i = 0; i < count; i++) size += (Py_ssize_t)bytes_of(PyList_GET_ITEM(buffers, i), Py_None);
    return (uint64_t)size;
}

static PyObject *unit_end(PyObject *m, PyObject *const *args, Py_ssize_t n) {
    (void)m;
    struct writer *w = tls_writer;
    if (n != 0 && n != 4) return arg_count(n, 4, "unit_end"), NULL;
    if (!is_worker(w)) Py_RETURN_NONE;
    if (ready()) figures_end(w, n ? bytes_of(args[0], args[1]) : 0, n ? bytes_of(args[2], args[3]) : 0);
    struct event ev;
    STORE(&w->entry->unit, 0);
    STORE(&w->entry->done, atomic_load_explicit(&w->entry->done, memory_order_relaxed) + 1);
    while (!writer_off_state(w, PT_STATE_IDLE)) {
        if (!writer_open(w, &ev, 32)) {
            if (w->detached) break;
            continue;
        }
        *ev.p++ = OP_END;
        ev.p = put_varint(ev.p, ev.dt);
        if (writer_publish(w, &ev)) break;
    }
    Py_RETURN_NONE;
}

static PyObject *idle(PyObject *m, PyObject *unused) {
    (void)m, (void)unused;
    struct writer *w = ready();
    if (!is_worker(w)) Py_RETURN_NONE;
    struct event ev;
    do {
        if (!writer_open(w, &ev, 32)) Py_RETURN_NONE;
        *ev.p++ = OP_IDLE;
        ev.p = put_varint(ev.p, ev.dt);
    } while (!writer_publish(w, &ev));
    Py_RETURN_NONE;
}

stack_t_ *item_called;

/* Returns what item_end takes. */
static uint64_t item_begin(uint64_t task, const struct refs *r, bool again) {
    struct writer *w = ready_any();
    if (!w) return 0;
    in_emit++; /* the ids stay, though a full pipe is waited for without the GIL */
    emit_region(w, OP_REGION, REGION_ITEM, task, r, again);
    emit_end();
    return figures_of_items() ? figures_item_begin() : 0;
}

/* A function in C has no frame of its own: what is due when it returns was of the item.  It may have raised. */
static struct writer *item_end(const struct refs *r, uint64_t begun) {
    struct writer *w = ready();
    if (w && sample_due(w)) sampler_take(w, r->stack);
    if (begun && (w = ready_any())) {
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback);
        figures_item_end(w, begun);
        PyErr_Restore(type, value, traceback);
    }
    if ((w = ready_any())) emit_region_end(w); /* the merge drops it when its begin was not in this trace */
    return w;
}

/* One item: its region, its call.  *ended: this thread's last event is the end of its region, and that was just now. */
static PyObject *run_item(PyObject *func, PyObject *item, bool star, uint64_t task, const struct refs *r, bool *ended) {
    PyObject *args = NULL, *result = NULL;
    if (star && !(args = PySequence_Tuple(item))) return NULL;
    uint64_t begun = item_begin(task, r, *ended);
    stack_t_ *outer = item_called;
    item_called = r->stack;
    result = star ? PyObject_Call(func, args, NULL) : PyObject_CallOneArg(func, item);
    item_called = outer;
    Py_XDECREF(args);
    struct writer *w = item_end(r, begun);
    *ended = w != NULL && !star; /* the next item's arguments may take their time */
    return result;
}

static PyObject *run_chunk(PyObject *m, PyObject *const *args, Py_ssize_t n) {
    (void)m;
    if (arg_count(n, 6, "run_chunk") < 0) return NULL;
    struct refs r = {0};
    uint64_t star, task;
    if (arg_uint(args[2], &star) < 0 || arg_uint(args[3], &task) < 0) return NULL;
    PyObject *items = PyObject_GetIter(args[1]); /* of a range, no more of it is there at a time than one number */
    if (!items) return NULL;
    in_emit++; /* the names stay while the chunk runs */
    PyObject *results = NULL;
    bool ended = false;
    if ((r.name = string_of_cached(args[4])) && arg_stack(args[5], true, &r.stack) == 0)
        results = PyList_New(0);
    emit_end();
    PyObject *item;
    while (results && (item = PyIter_Next(items))) {
        PyObject *result = run_item(args[0], item, star != 0, task, &r, &ended);
        Py_DECREF(item);
        if (!result || PyList_Append(results, result) < 0) Py_CLEAR(results);
        Py_XDECREF(result);
    }
    if (results && PyErr_Occurred()) Py_CLEAR(results);
    Py_DECREF(items);
    refs_free(&r);
    return results;
}

static PyObject *run_call(PyObject *m, PyObject *const *args, Py_ssize_t n) {
    (void)m;
    if (arg_count(n, 6, "run_call") < 0) return NULL;
    struct refs r = {0};
    uint64_t task;
    if (arg_uint(args[3], &task) < 0) return NULL;
    in_emit++; /* the names stay while it runs */
    bool ok = (r.name = string_of_cached(args[4])) && arg_stack(args[5], true, &r.stack) == 0;
    emit_end();
    PyObject *result = NULL, *row = ok ? PySequence_Tuple(args[1]) : NULL, *named = NULL;
    if (row) named = PyDict_CheckExact(args[2]) ? Py_NewRef(args[2]) : PyDict_New(); /* the pools take any mapping */
    if (named && (named == args[2] || PyDict_Update(named, args[2]) == 0)) {
        uint64_t begun = item_begin(task, &r, false);
        stack_t_ *outer = item_called;
        item_called = r.stack;
        result = PyObject_Call(args[0], row, named);
        item_called = outer;
        item_end(&r, begun);
    }
    else if (named && PyErr_ExceptionMatches(PyExc_AttributeError)) /* as where it is called with ** */
        PyErr_Format(PyExc_TypeError, "argument after ** must be a mapping, not %.200s", Py_TYPE(args[2])->tp_name);
    Py_XDECREF(row);
    Py_XDECREF(named);
    refs_free(&r);
    return result;
}

PyMethodDef unit_methods[] = {
    FAST("region_begin", region_begin,
         "region_begin(kind, task, name, stack) -> int: the handle of a REGION, 0 for the other kinds or when it was not recorded."),
    FAST("region_end", region_end,
         "region_end([handle]): of the innermost PHASE or ITEM; of the REGION with that handle, wherever it is (0: none). What is inside ends first."),
    FAST("log", log_event, "log(task, key, value)."),
    FAST("unit_begin", unit_begin, "unit_begin(g, generation, start): the unit starts to run."),
    FAST("unit_end", unit_end, "unit_end([payload, buffers, answer, buffers]): the unit is over; what came for it, and what it sent."),
    {"idle", idle, METH_NOARGS, "idle(): the worker is about to wait for work."},
    FAST("run_chunk", run_chunk,
         "run_chunk(func, items, star, task, name, start) -> list: calls func for each item, a region around each."),
    FAST("run_call", run_call, "run_call(func, args, kwds, task, name, start): func(*args, **kwds), a region around it."),
    {NULL, NULL, 0, NULL},
};
