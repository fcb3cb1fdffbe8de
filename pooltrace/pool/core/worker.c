/* The worker's end of a channel: takes units that it could claim, answers them. */
#include "channel.h"
#include "spin.h"

#include <errno.h>

typedef struct {
    PyObject_HEAD
    struct receiver in;
    struct sender out;
    struct page *page;   /* owned mapping; NULL once closed */
    uint64_t hold;       /* ns that a result may wait for those of further units */
    uint64_t seq, began; /* of the unit that runs */
    uint64_t rang;       /* when the bell was last due */
    bool running;        /* there is one */
    bool silent;         /* something happened since, which the parent has not been told, */
    bool skipped;        /* and that was not only a result */
    struct spin spin;
    bool broken;         /* half a frame was sent: nothing more can be */
} worker_t;

PyTypeObject *FrameType;

static bool is_open(worker_t *w) {
    if (w->page) return true;
    PyErr_SetString(PyExc_ValueError, "the channel is closed");
    return false;
}

static PyObject *worker_new(PyTypeObject *type, PyObject *args, PyObject *kwds) {
    int fd, page_fd;
    unsigned long long hold;
    static char *names[] = {"fd", "page_fd", "hold", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwds, "iiK", names, &fd, &page_fd, &hold)) return NULL;
    worker_t *w = (worker_t *)type->tp_alloc(type, 0);
    if (!w) return NULL;
    w->out.fd = fd;
    w->hold = hold;
    if (!receiver_init(&w->in, fd) || !(w->page = page_map(page_fd))) {
        Py_DECREF(w);
        return NULL;
    }
    return (PyObject *)w;
}

static PyObject *worker_close(worker_t *w, PyObject *unused) {
    (void)unused;
    page_unmap(w->page);
    w->page = NULL;
    sender_clear(&w->out);
    receiver_free(&w->in);
    Py_RETURN_NONE;
}

static void worker_dealloc(worker_t *w) {
    Py_XDECREF(worker_close(w, NULL));
    Py_TYPE(w)->tp_free(w);
}

/* Sends a frame, and waits until it is sent.  What a signal's handler raises meanwhile ends that: if a part was sent,
 * nothing can follow it, and the parent takes the worker's end for what it is. */
static int tell(worker_t *w, struct frame_head *head, PyObject *payload, PyObject *buffers) {
    if (w->broken) {
        errno = EPIPE;
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    if (!sender_add(&w->out, head, NULL, payload, buffers)) return -1;
    size_t first = w->out.first;
    if (sender_flush(&w->out, true) == 1) return 0;
    w->broken = w->out.first != first || sender_begun(&w->out);
    sender_clear(&w->out);
    return -1;
}

/* The parent is to look at the page. */
static int ring(worker_t *w, uint64_t at) {
    w->rang = at;
    w->silent = w->skipped = false;
    struct frame_head head = {.kind = FRAME_BELL};
    if (!bell_due(w->page) || tell(w, &head, NULL, NULL) == 0) return 0;
    atomic_store(&w->page->rung, 0); /* it is not under way */
    w->silent = w->skipped = true;
    return -1;
}

static PyObject *worker_ring(worker_t *w, PyObject *unused) {
    (void)unused;
    if (!is_open(w) || (w->silent && ring(w, channel_now()) < 0)) return NULL;
    Py_RETURN_NONE;
}

static PyObject *frame_object(struct frame *f, bool claimed) {
    PyObject *o = PyStructSequence_New(FrameType);
    PyObject *parts[9] = {
        PyLong_FromLong(f->head.kind), PyLong_FromLong(f->head.flags), PyLong_FromUnsignedLong(f->head.generation),
        PyLong_FromUnsignedLongLong(f->head.unit), PyLong_FromUnsignedLongLong(f->head.job), Py_NewRef(f->function),
        Py_NewRef(f->payload), Py_NewRef(f->buffers ? f->buffers : no_buffers), PyBool_FromLong(claimed)};
    bool whole = o != NULL;
    for (int i = 0; i < 9; i++) {
        whole = whole && parts[i];
        if (o) PyStructSequence_SET_ITEM(o, i, parts[i]);
        else Py_XDECREF(parts[i]);
    }
    if (!whole) Py_CLEAR(o);
    return o;
}

static PyObject *worker_take(worker_t *w, PyObject *unused) {
    (void)unused;
    if (!is_open(w)) return NULL;
    struct frame f;
    int some;
    while ((some = receiver_take(&w->in, &f)) > 0) {
        bool unit = f.head.kind >= FRAME_APPLY && f.head.kind <= FRAME_STARMAP;
        bool claimed = unit && claim_move(w->page, f.head.seq, CLAIM_CLAIMED);
        if (unit) {
            atomic_store_explicit(&w->page->passed, f.head.seq + 1, memory_order_release);
            w->silent = true;
            w->skipped |= !claimed;
        }
        if (claimed) {
            w->seq = f.head.seq;
            w->began = channel_now();
            w->running = true;
            atomic_store_explicit(&w->page->begun, w->began << 8 | w->seq % WINDOW, memory_order_release);
        }
        if (claimed || !unit || f.head.flags & FLAG_FRESH) {
            PyObject *o = frame_object(&f, claimed);
            frame_free(&f);
            return o;
        }
        frame_free(&f); /* it was taken back */
    }
    if (some < 0) return NULL;
    Py_RETURN_NONE;
}

static PyObject *worker_wait(worker_t *w, PyObject *unused) {
    (void)unused;
    if (!is_open(w)) return NULL;
    if (w->silent && !w->skipped && results_are_taken(w->page)) w->silent = false; /* it has looked by itself */
    if (w->silent && ring(w, channel_now()) < 0) return NULL;
    uint64_t next = atomic_load_explicit(&w->page->passed, memory_order_relaxed);
    Py_BEGIN_ALLOW_THREADS
    spin_until(&w->spin, &w->page->claim[next % WINDOW], true, claim_word(next, CLAIM_OFFERED));
    Py_END_ALLOW_THREADS
    if (PyErr_CheckSignals() < 0) return NULL; /* of one that came while we looked */
    int some = receiver_fill(&w->in, true);
    return some < 0 ? NULL : PyBool_FromLong(some);
}

static PyObject *worker_answer(worker_t *w, PyObject *const *args, Py_ssize_t n) {
    if (n != 3 || !PyList_Check(args[2])) return PyErr_Format(PyExc_TypeError, "answer() takes flags, payload and a list of buffers");
    long flags = PyLong_AsLong(args[0]);
    if ((flags == -1 && PyErr_Occurred()) || !is_open(w)) return NULL;
    if (!w->running) return PyErr_Format(PyExc_ValueError, "no unit runs here");
    atomic_store_explicit(&w->page->begun, 0, memory_order_release); /* it has ended, however long its answer takes */
    uint64_t at = channel_now(), took = at - w->began;
    if (PyBytes_CheckExact(args[1]) && PyList_GET_SIZE(args[2]) == 0 && PyBytes_GET_SIZE(args[1]) <= (Py_ssize_t)RESULT_MOST) {
        struct record r = {.len = (uint32_t)PyBytes_GET_SIZE(args[1]), .flags = (uint32_t)flags, .seq = w->seq, .ns = took};
        if (result_put(w->page, &r, PyBytes_AS_STRING(args[1]))) {
            w->running = false;
            w->silent = true;
            if (at - w->rang >= w->hold && ring(w, at) < 0) return NULL;
            Py_RETURN_NONE;
        }
    }
    struct frame_head head = {.kind = FRAME_RESULT, .flags = (uint8_t)flags, .seq = w->seq, .job = took};
    if (tell(w, &head, args[1], args[2]) < 0) return NULL;
    w->running = false;
    w->rang = at;
    Py_RETURN_NONE;
}

static PyObject *worker_tell(worker_t *w, PyObject *const *args, Py_ssize_t n) {
    if (n != 4 || !PyList_Check(args[3])) return PyErr_Format(PyExc_TypeError, "tell() takes kind, flags, payload and a list of buffers");
    struct frame_head head = {.kind = (uint8_t)PyLong_AsLong(args[0]), .flags = (uint8_t)PyLong_AsLong(args[1])};
    if (PyErr_Occurred() || !is_open(w) || tell(w, &head, args[2], args[3]) < 0) return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"take", (PyCFunction)worker_take, METH_NOARGS, "take() -> Frame | None: the next frame, a unit claimed if it still could be."},
    {"wait", (PyCFunction)worker_wait, METH_NOARGS, "wait() -> bool: until more has come; False at the end."},
    {"ring", (PyCFunction)worker_ring, METH_NOARGS, "ring(): the parent is told of all that was held back."},
    {"answer", (PyCFunction)(void (*)(void))worker_answer, METH_FASTCALL, "answer(flags, payload, buffers): of the unit that runs."},
    {"tell", (PyCFunction)(void (*)(void))worker_tell, METH_FASTCALL, "tell(kind, flags, payload, buffers): a frame of no unit."},
    {"close", (PyCFunction)worker_close, METH_NOARGS, "close(): gives memory back; not the descriptor."},
    {NULL, NULL, 0, NULL},
};
PyTypeObject WorkerEndType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "pooltrace.pool._channel.WorkerEnd",
    .tp_basicsize = sizeof(worker_t),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "WorkerEnd(fd, page_fd, hold): the worker's end of a channel; both are borrowed. hold: see answer (ns).",
    .tp_new = worker_new,
    .tp_dealloc = (destructor)worker_dealloc,
    .tp_methods = methods,
};
