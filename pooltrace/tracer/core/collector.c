/* Pauses of Python's collector: ranges of the G that runs, and what they were in all, for the figures of units.
 *
 * One runs at a time in a process, in whichever thread has made the object that was one too many.
 */
#include "emit.h"

static struct {
    bool open;            /* GIL: its begin was recorded, by */
    struct writer *by;    /* this thread, borrowed */
    uint64_t began;       /* GIL: when, ns; 0: not while a trace was on */
} collector;
struct pauses pauses;

static void emit_pause(struct writer *w) {
    struct event ev;
    struct refs r = {0};
    emit_begin();
    if ((r.stack = stack_here(0)))
        while (open_with(w, &ev, 48, &r, w->kind != KIND_WORKER)) {
            *ev.p++ = OP_PAUSE;
            ev.p = put_varint(ev.p, ev.dt);
            ev.p = put_varint(ev.p, id_of(r.stack));
            if (!writer_publish(w, &ev)) continue;
            collector.open = true;
            collector.by = w;
            break;
        }
    else PyErr_Clear();
    emit_end();
    refs_free(&r);
}

static void emit_pause_end(struct writer *w) {
    struct event ev;
    do {
        if (!writer_open(w, &ev, 32)) return;
        *ev.p++ = OP_PAUSE_END;
        ev.p = put_varint(ev.p, ev.dt);
    } while (!writer_publish(w, &ev));
}

static uint64_t entry_of(PyObject *info, const char *key) {
    PyObject *value = PyDict_Check(info) ? PyDict_GetItemString(info, key) : NULL; /* borrowed */
    unsigned long long number = value && PyLong_Check(value) ? PyLong_AsUnsignedLongLong(value) : 0;
    if (PyErr_Occurred()) PyErr_Clear();
    return number == (unsigned long long)-1 ? 0 : number;
}

/* For gc.callbacks.  The youngest objects are collected every few hundred allocations, in some microseconds: that is counted only. */
static PyObject *collecting(PyObject *m, PyObject *const *args, Py_ssize_t n) {
    (void)m;
    if (arg_count(n, 2, "collecting") < 0) return NULL;
    struct writer *w = ready_any();
    bool starts = PyUnicode_Check(args[0]) && PyUnicode_CompareWithASCIIString(args[0], "start") == 0;
    if (starts) {
        collector.open = false;
        collector.began = w ? now_ns() : 0;
        if (w && entry_of(args[1], "generation") > 0) emit_pause(w);
        Py_RETURN_NONE;
    }
    if (collector.open && w == collector.by) emit_pause_end(w); /* the merge drops it when its begin was not in this trace */
    collector.open = false;
    if (collector.began && w) {
        pauses.count++;
        pauses.ns += now_ns() - collector.began;
        pauses.freed += entry_of(args[1], "collected");
    }
    Py_RETURN_NONE;
}

static PyMethodDef collecting_method = FAST("collecting", collecting, "collecting(phase, info): for gc.callbacks.");
static PyObject *watched; /* GIL: owned: the list of callbacks that has ours; NULL: none */

static bool is_ours(PyObject *callback) {
    return PyCFunction_Check(callback) && PyCFunction_GetFunction(callback) == (PyCFunction)(void (*)(void))collecting;
}

/* CPython makes a dict for each callback: half a microsecond, every few hundred allocations. */
void collector_watch(bool on) {
    if (on == (watched != NULL)) return;
    if (!on) {
        for (Py_ssize_t i = PyList_GET_SIZE(watched); i-- > 0;)
            if (is_ours(PyList_GET_ITEM(watched, i)) && PyList_SetSlice(watched, i, i + 1, NULL) < 0) break;
        Py_CLEAR(watched);
    } else {
        PyObject *module = PyImport_ImportModule("gc"), *list = module ? PyObject_GetAttrString(module, "callbacks") : NULL;
        PyObject *callback = list && PyList_Check(list) ? PyCFunction_New(&collecting_method, NULL) : NULL;
        if (callback && PyList_Append(list, callback) == 0) watched = Py_NewRef(list);
        Py_XDECREF(callback);
        Py_XDECREF(list);
        Py_XDECREF(module);
    }
    if (PyErr_Occurred()) PyErr_Clear(); /* no memory: pauses are not told of */
}

static PyObject *watch_collector(PyObject *m, PyObject *arg) {
    (void)m;
    collector_watch(arg == Py_True);
    Py_RETURN_NONE;
}

PyMethodDef collector_methods[] = {
    {"watch_collector", watch_collector, METH_O, "watch_collector(on): whether it tells us of its pauses."},
    {NULL, NULL, 0, NULL},
};
