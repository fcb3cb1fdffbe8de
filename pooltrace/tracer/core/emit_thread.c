/* Emit functions for threads: coming in, waiting, and, of the parent only, submitting and jobs.
 *
 * Each is cheap when no trace is on (a load and a branch), and never raises for what the tracer could not do: only a
 * wrong argument is an error.  An emit may be nested in another one (a collector callback while a stack is taken).
 */
#include "emit.h"

/* ---- ids and handles ---- */
static PyObject *new_g(PyObject *m, PyObject *const *args, Py_ssize_t n) {
    (void)m;
    uint64_t count = 1;
    if (n > 1) return arg_count(n, 1, "new_g"), NULL;
    if (n == 1 && arg_uint(args[0], &count) < 0) return NULL;
    return PyLong_FromUnsignedLongLong(atomic_fetch_add(&counters->g, count));
}
static PyObject *new_task(PyObject *m, PyObject *unused) {
    (void)m, (void)unused;
    struct head *home = home_head(); /* a pool inside a worker: what is said of its jobs is in the parent's trace */
    return PyLong_FromUnsignedLongLong(atomic_fetch_add(home ? &home->next.task : &counters->task, 1));
}
static PyObject *new_p(PyObject *m, PyObject *unused) {
    (void)m, (void)unused;
    return PyLong_FromUnsignedLongLong(p_alloc());
}
static PyObject *free_p(PyObject *m, PyObject *arg) {
    (void)m;
    uint64_t p;
    if (arg_uint(arg, &p) < 0) return NULL;
    p_free(p);
    Py_RETURN_NONE;
}
static PyObject *enabled(PyObject *m, PyObject *unused) {
    (void)m, (void)unused;
    return PyBool_FromLong(any_trace());
}
static PyObject *take_stack(PyObject *m, PyObject *const *args, Py_ssize_t n) {
    (void)m;
    uint64_t skip = 0;
    if (n > 1) return arg_count(n, 1, "stack"), NULL;
    if (n == 1 && arg_uint(args[0], &skip) < 0) return NULL;
    emit_begin();
    PyObject *s = (PyObject *)stack_here(skip > 1000 ? 1000 : (int)skip);
    emit_end();
    return s;
}
static PyObject *make_frame(PyObject *m, PyObject *const *args, Py_ssize_t n) {
    (void)m;
    if (arg_count(n, 3, "frame") < 0) return NULL;
    long line = PyLong_AsLong(args[2]);
    if (line == -1 && PyErr_Occurred()) return NULL;
    emit_begin();
    PyObject *s = (PyObject *)stack_made(args[0], args[1], line);
    emit_end();
    return s;
}

/* ---- coming in ---- */
/* It has an entry in an arena in which a trace is on, or gets one. */
static bool has_entry(struct writer *w) {
    if (w->kind == KIND_GUEST) return head_on(w->head);
    if (!writer_valid(w)) w->entry = NULL; /* of an arena that went away */
    if (head_on(registry.head)) return writer_valid(w) || writer_register(w, false);
    return head_on(home_head()) && guest_register(w);
}

static PyObject *enter(PyObject *m, PyObject *unused) {
    (void)m, (void)unused;
    struct writer *w = tls_writer;
    if (is_worker(w)) Py_RETURN_FALSE;
    if (!w && !(w = writer_get())) return PyErr_NoMemory();
    w->depth++;
    if (!has_entry(w)) Py_RETURN_FALSE;
    if (is_in(w)) Py_RETURN_TRUE;
    if (sample_due(w)) sampler_enter(w);
    uint64_t g = atomic_fetch_add(&w->head->next.g, 1), first;
    struct event ev;
    do {
        if (!writer_open(w, &ev, 32)) Py_RETURN_FALSE;
        first = LOAD(&w->head->first_gen);
        *ev.p++ = OP_ENTER;
        ev.p = put_varint(ev.p, ev.dt);
        ev.p = put_varint(ev.p, g);
    } while (!writer_publish(w, &ev));
    w->in_first = first;
    w->starter = false; /* of an older trace, if at all */
    w->blocked = 0;
    w->g = g;
    w->seq = 1;
    w->seq_gen = ev.gen;
    Py_RETURN_TRUE;
}

static PyObject *go_create(PyObject *m, PyObject *const *args, Py_ssize_t n) {
    (void)m;
    if (arg_count(n, 3, "go_create") < 0) return NULL;
    struct writer *w = ready_in();
    if (!w) return PyLong_FromLong(0);
    struct refs r = {0};
    struct event ev;
    uint64_t g;
    uint32_t gen = 0;
    emit_begin();
    bool failed = arg_uint(args[0], &g) < 0 || arg_stack(args[1], false, &r.start) < 0 ||
                  arg_stack(args[2], true, &r.stack) < 0;
    if (!failed) {
        do {
            gen = 0;
            if (!open_with(w, &ev, 64, &r, true)) break;
            *ev.p++ = OP_CREATE;
            ev.p = put_varint(ev.p, ev.dt);
            ev.p = put_varint(ev.p, g);
            ev.p = put_varint(ev.p, id_of(r.start));
            ev.p = put_varint(ev.p, id_of(r.stack));
            gen = ev.gen;
        } while (!writer_publish(w, &ev));
    }
    emit_end();
    refs_free(&r);
    return failed ? NULL : PyLong_FromUnsignedLong(gen);
}

/* The first of `count` Gs in a row, as many as come into one generation. */
static PyObject *go_create_row(PyObject *m, PyObject *const *args, Py_ssize_t n) {
    (void)m;
    if (arg_count(n, 4, "go_create_row") < 0) return NULL;
    struct writer *w = ready_in();
    struct refs r = {0};
    struct event ev;
    uint64_t g, count, made = 0;
    uint32_t gen = 0;
    emit_begin();
    bool failed = arg_uint(args[0], &g) < 0 || arg_uint(args[1], &count) < 0 || arg_stack(args[2], false, &r.start) < 0 ||
                  arg_stack(args[3], true, &r.stack) < 0;
    while (!failed && w && made < count) {
        if (!open_with(w, &ev, 64, &r, true) || (made > 0 && ev.gen != gen)) break;
        *ev.p++ = OP_CREATE;
        ev.p = put_varint(ev.p, ev.dt);
        ev.p = put_varint(ev.p, g + made);
        ev.p = put_varint(ev.p, id_of(r.start));
        ev.p = put_varint(ev.p, id_of(r.stack));
        if (!writer_publish(w, &ev)) continue;
        gen = ev.gen;
        made++;
    }
    emit_end();
    refs_free(&r);
    return failed ? NULL : Py_BuildValue("kK", (unsigned long)gen, (unsigned long long)(made ? made : count));
}

/* The unit will never run.  `generation` is what go_create returned. */
static PyObject *go_cancel(PyObject *m, PyObject *const *args, Py_ssize_t n) {
    (void)m;
    if (arg_count(n, 3, "go_cancel") < 0) return NULL;
    struct writer *w = ready_in();
    if (!w) Py_RETURN_NONE;
    struct refs r = {0};
    struct event ev;
    uint64_t g, created;
    emit_begin();
    bool failed = arg_uint(args[0], &g) < 0 || arg_uint(args[1], &created) < 0 || arg_stack(args[2], false, &r.start) < 0;
    while (!failed && open_with(w, &ev, 64, &r, true)) {
        *ev.p++ = OP_CANCEL;
        ev.p = put_varint(ev.p, ev.dt);
        ev.p = put_varint(ev.p, g);
        ev.p = put_varint(ev.p, created);
        ev.p = put_varint(ev.p, id_of(r.start));
        if (writer_publish(w, &ev)) break;
    }
    return emit_done(&r, failed);
}

/* A wait under way.  Exactly one of waker and waiter sets `done`; the GIL makes that a plain exchange. */
typedef struct {
    PyObject_HEAD
    uint64_t first, g;          /* the trace and its G there */
    const struct head *head;    /* the arena, borrowed: only compared */
    uint32_t block_gen, seq;    /* generation of the block; sequenced events of G before it in that generation */
    uint32_t unblock_gen, unblock_seq;
    bool done;                  /* GoUnblock was written, or is the waiter's own business */
} ticket_t;

PyTypeObject TicketType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "pooltrace.tracer.Ticket",
    .tp_basicsize = sizeof(ticket_t),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "A wait that is under way, from go_block to go_resume.",
};

static void drop_ticket(struct writer *w) {
    PyObject *ticket = w->ticket;
    w->ticket = NULL;
    Py_XDECREF(ticket);
}

static PyObject *go_block(PyObject *m, PyObject *const *args, Py_ssize_t n) {
    (void)m;
    if (arg_count(n, 2, "go_block") < 0) return NULL;
    struct writer *w = ready();
    if (!w || w->kind == KIND_WORKER || !may_write(w)) Py_RETURN_NONE;
    struct refs r = {0};
    struct event ev;
    emit_begin();
    ticket_t *ticket = NULL;
    if ((r.name = string_of_cached(args[0])) && arg_stack(args[1], true, &r.stack) == 0) ticket = PyObject_New(ticket_t, &TicketType);
    bool failed = !ticket, written = false;
    while (ticket && open_with(w, &ev, 48, &r, true)) {
        *ev.p++ = OP_BLOCK;
        ev.p = put_varint(ev.p, ev.dt);
        ev.p = put_varint(ev.p, string_id(r.name));
        ev.p = put_varint(ev.p, id_of(r.stack));
        if ((written = writer_publish(w, &ev))) break;
    }
    emit_end();
    refs_free(&r);
    if (failed) return NULL;
    if (!written) {
        Py_DECREF(ticket);
        Py_RETURN_NONE;
    }
    w->blocked = w->in_first;
    drop_ticket(w);
    Py_INCREF(ticket);
    w->ticket = ticket;
    ticket->first = w->in_first;
    ticket->head = w->head;
    ticket->g = w->g;
    ticket->block_gen = ev.gen;
    ticket->seq = w->seq_gen == ev.gen ? w->seq : 0; /* a new generation's status begins the count anew */
    ticket->unblock_gen = ticket->unblock_seq = 0;
    ticket->done = false;
    return (PyObject *)ticket;
}

static PyObject *go_unblock(PyObject *m, PyObject *const *args, Py_ssize_t n) {
    (void)m;
    if (arg_count(n, 2, "go_unblock") < 0) return NULL;
    if (args[0] == Py_None) Py_RETURN_NONE;
    if (!Py_IS_TYPE(args[0], &TicketType)) {
        PyErr_SetString(PyExc_TypeError, "go_unblock() takes a Ticket or None");
        return NULL;
    }
    ticket_t *ticket = (ticket_t *)args[0];
    struct writer *w = writer_get();
    if (!w) return PyErr_NoMemory();
    if (ticket->done || w->kind != KIND_THREAD || !head_on(registry.head)) Py_RETURN_NONE; /* a guest's waiter does it itself */
    if (!writer_valid(w) && !writer_register(w, false)) Py_RETURN_NONE;
    struct refs r = {0};
    struct event ev;
    emit_begin();
    bool failed = arg_stack(args[1], true, &r.stack) < 0;
    while (!failed && !ticket->done && open_with(w, &ev, 64, &r, false)) {
        if (w->head != ticket->head || LOAD(&w->head->first_gen) != ticket->first) break; /* it began in another trace */
        bool same = ticket->block_gen == ev.gen;
        uint32_t seq = same ? ticket->seq + 1 : 1;
        *ev.p++ = OP_UNBLOCK;
        ev.p = put_varint(ev.p, ev.dt);
        ev.p = put_varint(ev.p, ticket->g);
        ev.p = put_varint(ev.p, seq);
        ev.p = put_varint(ev.p, same ? 0 : 1);
        ev.p = put_varint(ev.p, id_of(r.stack));
        if (!writer_publish(w, &ev)) continue;
        ticket->done = true;
        ticket->unblock_gen = ev.gen;
        ticket->unblock_seq = seq;
    }
    return emit_done(&r, failed);
}

/* The wait is over: the thread runs again. */
static void resume(struct writer *w, ticket_t *ticket) {
    if (!ready() || w->kind == KIND_WORKER || !is_in(w) || w->head != ticket->head || w->in_first != ticket->first) return;
    struct event ev;
    bool self = !ticket->done;
    ticket->done = true; /* we won: nobody else writes it now */
    uint32_t seq;
    do {
        if (!writer_open(w, &ev, 32) || !is_in(w)) return;
        bool same = !self && ticket->unblock_gen == ev.gen;
        if (self) seq = (ticket->block_gen == ev.gen ? ticket->seq : 0) + 2;
        else seq = same ? ticket->unblock_seq + 1 : 1;
        *ev.p++ = OP_RESUME;
        ev.p = put_varint(ev.p, ev.dt);
        *ev.p++ = (uint8_t)((self ? RESUME_SELF : 0) | (same ? RESUME_SAME : 0));
    } while (!writer_publish(w, &ev));
    w->blocked = 0;
    w->seq = seq;
    w->seq_gen = ev.gen;
}

static PyObject *go_resume(PyObject *m, PyObject *arg) {
    (void)m;
    if (arg == Py_None) Py_RETURN_NONE;
    if (!Py_IS_TYPE(arg, &TicketType)) {
        PyErr_SetString(PyExc_TypeError, "go_resume() takes a Ticket or None");
        return NULL;
    }
    struct writer *w = tls_writer;
    if (!w) Py_RETURN_NONE;
    resume(w, (ticket_t *)arg);
    if (w->ticket == arg) drop_ticket(w);
    Py_RETURN_NONE;
}

static PyObject *leave(PyObject *m, PyObject *unused) {
    (void)m, (void)unused;
    struct writer *w = tls_writer;
    if (!w || is_worker(w)) Py_RETURN_NONE;
    if (w->depth > 0) w->depth--;
    if (w->depth > 0) Py_RETURN_NONE;
    if (w->ticket) { /* an exception came between the wait and its handle: it is over all the same */
        resume(w, w->ticket);
        drop_ticket(w);
    }
    if (!ready() || !may_write(w) || w->starter) Py_RETURN_NONE;
    struct event ev;
    do {
        if (!writer_open(w, &ev, 32) || !is_in(w)) Py_RETURN_NONE;
        *ev.p++ = OP_LEAVE;
        ev.p = put_varint(ev.p, ev.dt);
    } while (!writer_publish(w, &ev));
    w->in_first = 0;
    Py_RETURN_NONE;
}

static PyObject *task_begin(PyObject *m, PyObject *const *args, Py_ssize_t n) {
    (void)m;
    if (arg_count(n, 4, "task_begin") < 0) return NULL;
    struct writer *w = ready_in();
    if (!w) Py_RETURN_NONE;
    struct refs r = {0};
    struct event ev;
    uint64_t task, parent;
    emit_begin();
    bool failed = arg_uint(args[0], &task) < 0 || arg_uint(args[1], &parent) < 0 || !(r.name = string_of_cached(args[2])) ||
                  arg_stack(args[3], true, &r.stack) < 0;
    while (!failed && open_with(w, &ev, 64, &r, true)) {
        put_task(&ev, OP_TASK, task, parent, &r);
        if (writer_publish(w, &ev)) break;
    }
    return emit_done(&r, failed);
}

static PyObject *task_end(PyObject *m, PyObject *arg) {
    (void)m;
    struct writer *w = ready_in();
    uint64_t task;
    if (!w) Py_RETURN_NONE;
    if (arg_uint(arg, &task) < 0) return NULL;
    struct refs r = {0};
    struct event ev;
    emit_begin();
    r.stack = stack_here(0);
    bool failed = !r.stack;
    while (!failed && open_with(w, &ev, 48, &r, true)) {
        put_task_end(&ev, task, &r);
        if (writer_publish(w, &ev)) break;
    }
    return emit_done(&r, failed);
}

PyMethodDef thread_methods[] = {
    FAST("new_g", new_g, "new_g(count=1) -> int: a G id that never comes twice in this process; the first of so many."),
    {"new_task", new_task, METH_NOARGS, "new_task() -> int: a task id that never comes twice in this process."},
    {"new_p", new_p, METH_NOARGS, "new_p() -> int: the lowest free P id; P 0 is never given out."},
    {"free_p", free_p, METH_O, "free_p(p): gives a P id back."},
    {"enabled", enabled, METH_NOARGS, "enabled() -> bool: a trace is on."},
    FAST("stack", take_stack, "stack(skip=0) -> Stack: the calling thread's Python stack."),
    FAST("frame", make_frame, "frame(function, file, line) -> Stack: a stack of one frame."),
    {"enter", enter, METH_NOARGS, "enter() -> bool: this thread comes into the trace; nests."},
    {"leave", leave, METH_NOARGS, "leave(): undoes one enter()."},
    FAST("go_create", go_create, "go_create(g, start, stack) -> int: generation in which it was recorded, or 0."),
    FAST("go_create_row", go_create_row,
         "go_create_row(g, count, start, stack) -> (generation, n): the first n of these Gs, all in it; or (0, count)."),
    FAST("go_cancel", go_cancel, "go_cancel(g, generation, start): the unit will never run."),
    FAST("go_block", go_block, "go_block(reason, stack) -> Ticket | None: under the wait's lock, about to wait."),
    FAST("go_unblock", go_unblock, "go_unblock(ticket, stack): by the waker, under the wait's lock."),
    {"go_resume", go_resume, METH_O, "go_resume(ticket): by the waiter, after the wait."},
    FAST("task_begin", task_begin, "task_begin(task, parent, name, stack): a job begins."),
    {"task_end", task_end, METH_O, "task_end(task): its last result is in."},
    {NULL, NULL, 0, NULL},
};
