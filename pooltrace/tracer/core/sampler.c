/* CPU samples: where a thread computes, told at the next moment at which its stack can be had.
 *
 *   the handler   in that thread, when its timer expires (ticks.c): notes that a sample is due, and has the main thread
 *                 call sample_tick
 *   sampler_take  with the GIL, in that thread: the stack of now, as heavy as the CPU time since the last one; then the
 *                 timer is set anew.  By sample_tick in a main thread, else by the thread's next emit
 *
 * So nothing is looked at while Python is in the middle of something, and time is not lost by a delay: a long call in C
 * has one sample of its whole weight, at its end, in the function that called it.
 */
#include "emit.h"

#include <errno.h>
#include <frameobject.h>
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

/* What a thread has computed before it came in is not of the trace; but a main thread is always looked at. */
void sampler_enter(struct writer *w) {
    if (LOAD(&ticks[w->tick].is_main)) return;
    STORE(&ticks[w->tick].due, false);
    w->cpu = ticks_cpu();
    w->cpu_left = 0;
    ticks_set(w);
}

static void emit_sample(struct writer *w, uint64_t weight, const struct refs *r) {
    struct event ev;
    while (open_with(w, &ev, 48, r, false)) {
        *ev.p++ = OP_SAMPLE;
        ev.p = put_varint(ev.p, ev.dt);
        ev.p = put_varint(ev.p, weight);
        ev.p = put_varint(ev.p, id_of(r->stack));
        if (writer_publish(w, &ev)) break;
    }
}

/* Python looks for signals within some functions in C: there the innermost frame is that of the worker's own loop. */
static bool is_in_call(const stack_t_ *s) {
#if PY_VERSION_HEX >= 0x030B0000
    static const char loop[] = "pooltrace.pool.worker._Worker._call";
#else
    static const char loop[] = "pooltrace.pool.worker._call"; /* there are no qualified names */
#endif
    const struct string *name = s->n ? s->frames[0].function : NULL;
    return item_called && name && name->len == sizeof loop - 1 && !memcmp(name->bytes, loop, name->len);
}

static PyObject *skipped; /* GIL: owned list of file names: what stands innermost there is ours, and not what computes */

static stack_t_ *stack_of_caller(void) {
    int skip = 0;
    PyFrameObject *frame = PyThreadState_GetFrame(PyThreadState_Get());
    for (bool is_ours = skipped != NULL; frame && is_ours;) {
        PyCodeObject *code = PyFrame_GetCode(frame);
        int found = PySequence_Contains(skipped, code->co_filename);
        Py_DECREF(code);
        if ((is_ours = found > 0)) {
            PyFrameObject *back = PyFrame_GetBack(frame);
            Py_SETREF(frame, back);
            skip++;
        } else if (found < 0) PyErr_Clear();
    }
    Py_XDECREF(frame);
    return stack_here(skip);
}

static PyObject *sample_skip(PyObject *m, PyObject *file) {
    (void)m;
    if (!skipped && !(skipped = PyList_New(0))) return NULL;
    if (PyList_Append(skipped, file) < 0) return NULL;
    Py_RETURN_NONE;
}

void sampler_take(struct writer *w, stack_t_ *instead) {
    STORE(&ticks[w->tick].due, false);
    uint64_t period = LOAD(&w->head->cpu_period), now = ticks_cpu();
    /* No trace is on, or one in which it has written nothing yet: then it was due in an older one.  The timer is set when
     * it writes. */
    if (!period || !head_on(w->head) || w->trace != LOAD(&w->head->first_gen)) return;
    int64_t ns = (int64_t)(now - w->cpu) + w->cpu_left;
    int64_t weight = ns > 0 ? (ns + (int64_t)period / 2) / (int64_t)period : 0;
    w->cpu = now;
    w->cpu_left = ns - weight * (int64_t)period;
    if (weight > 0) {
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback); /* an item may have raised */
        struct refs r = {0};
        emit_begin();
        Py_XINCREF(instead);
        r.stack = instead ? instead : stack_of_caller();
        if (r.stack && w->kind == KIND_WORKER && is_in_call(r.stack)) Py_SETREF(r.stack, (stack_t_ *)Py_NewRef(item_called));
        if (r.stack) emit_sample(w, (uint64_t)weight, &r);
        else PyErr_Clear(); /* no memory */
        emit_end();
        refs_free(&r);
        PyErr_Restore(type, value, traceback);
    }
    if (w->entry && head_on(w->head)) ticks_set(w);
}

/* sample_tick(signum, frame): the Python-level handler. */
static PyObject *sample_tick(PyObject *m, PyObject *const *args, Py_ssize_t n) {
    (void)m, (void)args, (void)n;
    struct writer *w = ready();
    if (w && LOAD(&ticks[w->tick].due)) sampler_take(w, NULL);
    Py_RETURN_NONE;
}

/* signal.set_wakeup_fd, which runs no code in Python: the one that was there before, -1 for none. */
static long swap_wakeup(long fd) {
    static PyObject *set; /* GIL: owned */
    if (!set) {
        PyObject *module = PyImport_ImportModule("signal");
        set = module ? PyObject_GetAttrString(module, "set_wakeup_fd") : NULL;
        Py_XDECREF(module);
    }
    PyObject *args = set ? Py_BuildValue("(l)", fd) : NULL, *kwds = args ? Py_BuildValue("{s:O}", "warn_on_full_buffer", Py_False) : NULL;
    PyObject *old = kwds ? PyObject_Call(set, args, kwds) : NULL;
    long found = old ? PyLong_AsLong(old) : -1;
    Py_XDECREF(old);
    Py_XDECREF(kwds);
    Py_XDECREF(args);
    return found;
}

/* Python writes a byte to this descriptor for each signal: asyncio's signals would find it full after some seconds of
 * computing.  It can only be asked for by putting another in its place for a moment: what is written there meanwhile is
 * passed on.  That Python complains of a full one, as asyncio never wants, goes.  A pipe that was kept might be closed by
 * the program, and be a file of its own by now. */
static bool has_wakeup(void) {
    int ours[2];
    if (pipe2(ours, O_CLOEXEC | O_NONBLOCK) != 0) return false; /* it cannot be asked */
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    long fd = swap_wakeup(ours[1]);
    if (!PyErr_Occurred()) swap_wakeup(fd);
    if (PyErr_Occurred()) { /* it is closed: what Python has then must not be ours, which will be another file's number */
        PyErr_Clear();
        swap_wakeup(-1);
    }
    PyErr_Restore(type, value, traceback);
    uint8_t bytes[64];
    ssize_t n = read(ours[0], bytes, sizeof bytes);
    if (n > 0 && fd >= 0 && write((int)fd, bytes, (size_t)n) < 0) n = 0; /* full: it is awake */
    close(ours[0]);
    close(ours[1]);
    return fd >= 0;
}

/* Python calls ours, but the program has had another in the meantime: the C handler is Python's own now. */
static bool is_back(int signum) {
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyObject *module = PyImport_ImportModule("signal"), *found = module ? PyObject_CallMethod(module, "getsignal", "i", signum) : NULL;
    bool back = found && PyCFunction_Check(found) && PyCFunction_GetFunction(found) == (PyCFunction)(void (*)(void))sample_tick;
    Py_XDECREF(found);
    Py_XDECREF(module);
    PyErr_Restore(type, value, traceback);
    return back;
}

static PyObject *sample_misses(PyObject *m, PyObject *unused) {
    (void)m, (void)unused;
    return PyLong_FromUnsignedLong(registry.head ? LOAD(&registry.head->unsampled) : 0);
}

static PyObject *sample_install(PyObject *m, PyObject *const *args, Py_ssize_t n) {
    (void)m;
    uint64_t signum, has_main;
    if (arg_count(n, 2, "sample_install") < 0 || arg_uint(args[0], &signum) < 0 || arg_uint(args[1], &has_main) < 0) return NULL;
    ticks_ask = (struct ticks_ask){has_wakeup, is_back};
    errno = ticks_install((int)signum, has_main != 0);
    if (errno) return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

/* In the main thread.  What fails there is nobody's business: it has no samples then. */
static int install_now(void *prepare) {
    PyObject *done = PyObject_CallNoArgs((PyObject *)prepare);
    if (!done) PyErr_Clear();
    Py_XDECREF(done);
    Py_DECREF((PyObject *)prepare);
    struct writer *w = ready();
    if (w) ticks_arm(w);
    return 0;
}

static int look_again(void *unused) {
    (void)unused;
    struct writer *w = ready();
    if (w && w->unsampled) ticks_again(w);
    else if (w) ticks_check(w, ticks_cpu());
    return 0;
}

static PyObject *sample_again(PyObject *m, PyObject *unused) {
    (void)m, (void)unused;
    (void)Py_AddPendingCall(look_again, NULL); /* its queue is full: next time */
    Py_RETURN_NONE;
}

static PyObject *sample_later(PyObject *m, PyObject *prepare) {
    (void)m;
    Py_INCREF(prepare);
    if (Py_AddPendingCall(install_now, prepare) != 0) Py_DECREF(prepare); /* its queue is full: there are no samples */
    Py_RETURN_NONE;
}

static PyObject *sample_is_ours(PyObject *m, PyObject *arg) {
    (void)m;
    uint64_t signum;
    if (arg_uint(arg, &signum) < 0) return NULL;
    return PyBool_FromLong(ticks_are_ours((int)signum));
}

PyMethodDef sampler_methods[] = {
    FAST("sample_tick", sample_tick, "sample_tick(signum, frame): the Python-level handler: takes the sample that is due."),
    FAST("sample_install", sample_install, "sample_install(signum, has_main): the C handler; has_main: Python calls sample_tick. OSError."),
    {"sample_skip", sample_skip, METH_O, "sample_skip(file): what stands innermost in it is no sample's business."},
    {"sample_misses", sample_misses, METH_NOARGS, "sample_misses() -> int: MISS_..., why threads have no samples in the trace that is on."},
    {"sample_again", sample_again, METH_NOARGS, "sample_again(): has the main thread see whether it still has samples, or could have some again."},
    {"sample_later", sample_later, METH_O, "sample_later(prepare): has the main thread call it, when it next looks for signals."},
    {"sample_is_ours", sample_is_ours, METH_O, "sample_is_ours(signum) -> bool: the C handler is the one of that signal."},
    {NULL, NULL, 0, NULL},
};
