/* The gate through which everything passes that begins in a worker: a process, a unit.
 *
 * Many pass at a time, and may take their time (a launch pickles what the user gave it).  A start of a trace closes the
 * gate from its question what runs to its switch, so that it knows the name of each G that runs then; it waits for those
 * who are inside, but not for ever.
 *
 * In C, since a signal's handler may raise anywhere in Python code: whoever entered is inside, and whoever did not is
 * not.  All fields are the GIL's, but for `changes`, of which those who wait are told.
 */
#include <Python.h>

#include <pthread.h>
#include <structmember.h>
#include <time.h>

#include "emit.h"

#define SLICE 50000000u /* ns after which one who waits looks for signals */

typedef struct {
    PyObject_HEAD
    PyObject *on_wait;       /* owned; called when somebody has to wait, NULL: nothing is */
    Py_ssize_t inside;       /* how many are, */
    unsigned long closed_by; /* and the thread that has closed it; 0: nobody has */
    pthread_mutex_t lock;
    pthread_cond_t cond;
    uint64_t changes;        /* written with the GIL and the lock */
} gate_t;

static PyObject *gate_new(PyTypeObject *type, PyObject *args, PyObject *kwds) {
    (void)args, (void)kwds;
    gate_t *g = (gate_t *)type->tp_alloc(type, 0);
    if (!g) return NULL;
    pthread_condattr_t attr;
    int err = pthread_condattr_init(&attr);
    if (!err && !(err = pthread_condattr_setclock(&attr, CLOCK_MONOTONIC)) && !(err = pthread_mutex_init(&g->lock, NULL)))
        err = pthread_cond_init(&g->cond, &attr);
    if (!err) return (PyObject *)g;
    Py_DECREF(g);
    errno = err;
    return PyErr_SetFromErrno(PyExc_OSError);
}

static void gate_dealloc(gate_t *g) { /* its lock and condition have nothing to give back */
    Py_XDECREF(g->on_wait);
    Py_TYPE(g)->tp_free(g);
}

static void changed(gate_t *g) {
    pthread_mutex_lock(&g->lock); /* nobody has it who waits for the GIL */
    g->changes++;
    pthread_cond_broadcast(&g->cond);
    pthread_mutex_unlock(&g->lock);
}

/* Until something has changed, or that time; -1: a signal's handler has raised. */
static int wait_for_change(gate_t *g, uint64_t deadline) {
    uint64_t seen = g->changes;
    PyObject *done = g->on_wait && g->on_wait != Py_None ? PyObject_CallNoArgs(g->on_wait) : Py_NewRef(Py_None);
    if (!done) return -1;
    Py_DECREF(done);
    uint64_t until = now_ns() + SLICE;
    if (until > deadline) until = deadline;
    struct timespec at = {.tv_sec = (time_t)(until / 1000000000u), .tv_nsec = (long)(until % 1000000000u)};
    Py_BEGIN_ALLOW_THREADS
    pthread_mutex_lock(&g->lock);
    if (g->changes == seen) pthread_cond_timedwait(&g->cond, &g->lock, &at);
    pthread_mutex_unlock(&g->lock);
    Py_END_ALLOW_THREADS
    return PyErr_CheckSignals();
}

static PyObject *gate_enter(gate_t *g, PyObject *unused) {
    (void)unused;
    while (g->closed_by && g->closed_by != PyThread_get_thread_ident())
        if (wait_for_change(g, UINT64_MAX) < 0) return NULL;
    g->inside++;
    Py_RETURN_NONE;
}

static PyObject *gate_exit(gate_t *g, PyObject *const *unused, Py_ssize_t n) {
    (void)unused, (void)n;
    g->inside--;
    if (g->closed_by) changed(g);
    Py_RETURN_NONE;
}

static PyObject *gate_open(gate_t *g, PyObject *unused) {
    (void)unused;
    if (g->closed_by == PyThread_get_thread_ident()) {
        g->closed_by = 0;
        changed(g);
    }
    Py_RETURN_NONE;
}

static PyObject *gate_close(gate_t *g, PyObject *patience) {
    double seconds = PyFloat_AsDouble(patience);
    if (seconds == -1.0 && PyErr_Occurred()) return NULL;
    if (!(seconds >= 0 && seconds <= 1e6)) return PyErr_Format(PyExc_ValueError, "close() takes seconds");
    unsigned long me = PyThread_get_thread_ident();
    while (g->closed_by && g->closed_by != me)
        if (wait_for_change(g, UINT64_MAX) < 0) return NULL;
    if (g->closed_by == me) Py_RETURN_NONE;
    g->closed_by = me;
    uint64_t deadline = now_ns() + (uint64_t)(seconds * 1e9);
    while (g->inside > 0 && now_ns() < deadline)
        if (wait_for_change(g, deadline) < 0) {
            PyObject *type, *value, *traceback;
            PyErr_Fetch(&type, &value, &traceback);
            Py_XDECREF(gate_open(g, NULL));
            PyErr_Restore(type, value, traceback);
            return NULL;
        }
    Py_RETURN_NONE;
}

static PyObject *gate_is_mine(gate_t *g, void *unused) {
    (void)unused;
    return PyBool_FromLong(g->closed_by == PyThread_get_thread_ident());
}

static PyMemberDef members[] = {
    {"on_wait", T_OBJECT, offsetof(gate_t, on_wait), 0, "called, if there is one, when somebody has to wait"},
    {"inside", T_PYSSIZET, offsetof(gate_t, inside), READONLY, "how many are"},
    {NULL, 0, 0, 0, NULL},
};
static PyGetSetDef getset[] = {
    {"is_mine", (getter)gate_is_mine, NULL, "this thread has closed it", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyMethodDef methods[] = {
    {"__enter__", (PyCFunction)gate_enter, METH_NOARGS, "Passes, when it is open."},
    {"__exit__", (PyCFunction)(void (*)(void))gate_exit, METH_FASTCALL, "Is out."},
    {"close", (PyCFunction)gate_close, METH_O,
     "close(seconds): holds up all other threads that want to pass, and waits at most so long until nobody is inside. When this\n"
     "thread has closed it already, nothing is done. If a signal's handler raises meanwhile it is open again."},
    {"open", (PyCFunction)gate_open, METH_NOARGS, "open(): again, if this thread has closed it."},
    {NULL, NULL, 0, NULL},
};
PyTypeObject GateType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "pooltrace.tracer._core.Gate",
    .tp_basicsize = sizeof(gate_t),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .tp_doc = "A gate for what begins in workers, see core/gate.c.",
    .tp_new = gate_new,
    .tp_dealloc = (destructor)gate_dealloc,
    .tp_members = members,
    .tp_getset = getset,
    .tp_methods = methods,
};
