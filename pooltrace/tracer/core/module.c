/* The extension module: what Python's side of the tracer calls.  Policy (errors, defaults, files) is Python's. */
#include "coord.h"
#include "emit.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static PyObject *os_error(int err) {
    errno = err;
    return PyErr_SetFromErrno(PyExc_OSError);
}

/* ---- the arena ---- */
static PyObject *py_arena_create(PyObject *m, PyObject *arg) {
    (void)m;
    PyObject *path;
    if (!PyUnicode_FSConverter(arg, &path)) return NULL;
    int err = registry.head ? EEXIST : arena_create(PyBytes_AS_STRING(path));
    Py_DECREF(path);
    if (err) return os_error(err);
    Py_RETURN_NONE;
}

static PyObject *py_arena_destroy(PyObject *m, PyObject *unused) {
    (void)m, (void)unused;
    arena_destroy();
    Py_RETURN_NONE;
}

static PyObject *py_worker_open(PyObject *m, PyObject *args) {
    (void)m;
    unsigned long long p;
    int fd, index, err;
    if (!PyArg_ParseTuple(args, "Ki", &p, &fd)) return NULL;
    int own = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (own < 0 || fcntl(own, F_SETFL, O_NONBLOCK) < 0) {
        err = errno;
        if (own >= 0) close(own);
        return os_error(err);
    }
    (void)fcntl(own, F_SETPIPE_SZ, PT_PIPE); /* refused beyond the user's limit: a smaller pipe serves too */
    if (!slot_open(KIND_WORKER, p, own, &index, &err)) {
        close(own);
        return os_error(err);
    }
    coord_look();
    return PyLong_FromLong(index);
}

static struct slot *slot_at(int index) {
    pthread_mutex_lock(&registry.lock);
    struct slot *s = index >= 0 && (uint32_t)index < registry.n ? registry.slots[index] : NULL;
    if (s && (s->state != SLOT_USED || s->kind != KIND_WORKER)) s = NULL;
    pthread_mutex_unlock(&registry.lock);
    return s;
}

/* In the worker: maps the arena's header and the worker's own entry. */
static PyObject *py_attach(PyObject *m, PyObject *args) {
    (void)m;
    PyObject *path;
    int index, fd;
    if (!PyArg_ParseTuple(args, "O&ii", PyUnicode_FSConverter, &path, &index, &fd)) return NULL;
    struct head *head = NULL;
    struct entry *entry = NULL;
    int err = 0, file = open(PyBytes_AS_STRING(path), O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    Py_DECREF(path);
    if (file < 0) return os_error(errno);
    struct writer *w = writer_get();
    if (!w) err = ENOMEM;
    else if (home_head()) err = EALREADY;
    else if (!(head = head_map(file)) || !(entry = entry_map(file, (uint32_t)index))) err = errno;
    else if (head->magic != PT_MAGIC || entry->kind != KIND_WORKER) err = EINVAL;
    else err = home_open(w, head, file, entry, (uint32_t)index, fd);
    if (err) {
        if (entry) munmap(entry, PT_STRIDE);
        if (head) munmap(head, PT_HEAD);
        close(file);
        return os_error(err);
    }
    Py_RETURN_NONE;
}

/* ---- the trace ---- */
static int named_unit(struct named_unit *u, stack_t_ *s) {
    if (s->n == 0) return -1;
    *u = (struct named_unit){.g = u->g, .function = s->frames[0].function->bytes, .function_len = s->frames[0].function->len,
                             .file = s->frames[0].file->bytes, .file_len = s->frames[0].file->len, .line = s->frames[0].line};
    return 0;
}

static PyObject *py_worker_gone(PyObject *m, PyObject *args) {
    (void)m;
    int index;
    const char *lost;
    unsigned long long g = 0, created = 0;
    PyObject *start = NULL;
    if (!PyArg_ParseTuple(args, "iz|KKO!", &index, &lost, &g, &created, &StackType, &start)) return NULL;
    struct slot *s = slot_at(index);
    if (!s) {
        PyErr_Format(PyExc_ValueError, "no worker has entry %d", index);
        return NULL;
    }
    struct named_unit claimed = {0};
    bool has = start && named_unit(&claimed, (stack_t_ *)start) == 0;
    claimed.g = g;
    Py_BEGIN_ALLOW_THREADS
    coord_gone(s, lost, has ? &claimed : NULL, created);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* [(g, Stack), ...] to named_unit[]; NULL with an exception set. */
static struct named_unit *named_units(PyObject *list, uint32_t *n) {
    struct named_unit *units = PyMem_Calloc((size_t)PyList_GET_SIZE(list) + 1, sizeof *units);
    if (!units) {
        PyErr_NoMemory();
        return NULL;
    }
    *n = 0;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); i++) {
        PyObject *stack;
        unsigned long long g;
        if (!PyArg_ParseTuple(PyList_GET_ITEM(list, i), "KO!", &g, &StackType, &stack)) {
            PyMem_Free(units);
            return NULL;
        }
        units[*n].g = g;
        if (named_unit(&units[*n], (stack_t_ *)stack) == 0) ++*n;
    }
    return units;
}

static PyObject *py_start(PyObject *m, PyObject *args) {
    (void)m;
    int header;
    unsigned long long period, patience, cpu_period, limit;
    PyObject *here, *list;
    if (!PyArg_ParseTuple(args, "iKKKKO!O!", &header, &period, &patience, &cpu_period, &limit, &StackType, &here, &PyList_Type, &list))
        return NULL;
    struct writer *w = writer_get();
    if (!w) return PyErr_NoMemory();
    if (!registry.head || home_head()) return os_error(EINVAL);
    struct coord_options o = {.header = header, .period = period, .patience = patience, .cpu_period = cpu_period, .limit = limit, .starter_g = atomic_fetch_add(&counters->g, 1)};
    struct named_unit *units = named_units(list, &o.n_units);
    if (!units) return NULL;
    if (writer_valid(w)) { /* it takes P 0 now: a fresh entry */
        slot_free(w->slot);
        w->entry = NULL;
    }
    p0_take_back();
    if (!writer_register(w, true)) {
        PyMem_Free(units);
        return os_error(ENOSPC);
    }
    o.starter = w->slot;
    o.units = units;
    int err = named_unit(&o.start, (stack_t_ *)here) < 0 ? EINVAL : coord_start(&o);
    PyMem_Free(units);
    if (err) {
        w->starter = false;
        return os_error(err);
    }
    w->in_first = LOAD(&registry.head->first_gen);
    w->blocked = 0;
    w->g = o.starter_g;
    w->seq = 0;
    w->seq_gen = 0;
    w->trace = w->in_first;
    ticks_arm(w);
    Py_RETURN_NONE;
}

static PyObject *py_is_worker(PyObject *m, PyObject *unused) {
    (void)m, (void)unused;
    return PyBool_FromLong(home_head() != NULL);
}

static PyObject *py_stop(PyObject *m, PyObject *unused) {
    (void)m, (void)unused;
    struct writer *w = tls_writer;
    coord_stop_request();
    Py_BEGIN_ALLOW_THREADS
    while (!coord_stopped(1000000000u)) {}
    Py_END_ALLOW_THREADS
    if (w) w->starter = false;
    ticks_disarm();
    Py_RETURN_NONE;
}

static PyObject *py_join(PyObject *m, PyObject *unused) {
    (void)m, (void)unused;
    Py_BEGIN_ALLOW_THREADS
    coord_join();
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* bytes; b"" when nothing came in time; None at the end. */
static PyObject *py_read(PyObject *m, PyObject *arg) {
    (void)m;
    uint64_t wait;
    if (arg_uint(arg, &wait) < 0) return NULL;
    size_t len = 0;
    int what;
    Py_BEGIN_ALLOW_THREADS
    what = coord_wait(&len, wait);
    Py_END_ALLOW_THREADS
    if (what == READ_END) Py_RETURN_NONE;
    PyObject *out = PyBytes_FromStringAndSize(NULL, what == READ_DATA ? (Py_ssize_t)len : 0); /* without memory nothing is taken */
    if (out && what == READ_DATA && !coord_read((uint8_t *)PyBytes_AS_STRING(out), len)) {
        Py_DECREF(out);
        return PyBytes_FromStringAndSize(NULL, 0);
    }
    return out;
}

static PyObject *py_advance(PyObject *m, PyObject *arg) {
    (void)m;
    uint64_t wait;
    if (arg_uint(arg, &wait) < 0) return NULL;
    bool done;
    Py_BEGIN_ALLOW_THREADS
    done = coord_advance(wait);
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(done);
}

static PyObject *py_generation(PyObject *m, PyObject *unused) {
    (void)m, (void)unused;
    uint64_t g = registry.head ? LOAD(&registry.head->gen) : 0;
    return PyLong_FromUnsignedLong(word_on(g) ? word_gen(g) : 0);
}

static PyObject *py_queued(PyObject *m, PyObject *unused) {
    (void)m, (void)unused;
    return PyLong_FromUnsignedLongLong(coord_queued());
}

/* ---- the summary ---- */
static PyObject *functions_list(struct merge *g) {
    PyObject *list = PyList_New(0);
    for (uint32_t i = 0; list && i < g->naggs; i++) {
        struct agg *a = g->aggs[i];
        PyObject *name = PyUnicode_DecodeUTF8((const char *)a->name->bytes, a->name->len, "backslashreplace");
        PyObject *item = name ? Py_BuildValue("{s:N,s:K,s:K,s:K,s:K,s:K}", "name", name, "count", a->count, "total_ns", a->total,
                                              "median_ns", agg_quantile(a, 0.5), "p99_ns", agg_quantile(a, 0.99), "max_ns", a->max)
                              : NULL;
        if (!item || PyList_Append(list, item) < 0) Py_CLEAR(list);
        Py_XDECREF(item);
    }
    return list;
}

static PyObject *slots_list(struct merge *g) {
    PyObject *list = PyList_New(0);
    for (uint32_t i = 0; list && i < g->nps; i++) {
        struct pst *p = &g->ps[i];
        if (!p->is_slot) continue;
        uint64_t used = p->start + p->unit, life = p->life > used ? p->life : used;
        PyObject *item = Py_BuildValue("{s:I,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K}", "p", i, "life_ns", life, "start_ns", p->start,
                                       "items_ns", p->item, "unpickle_ns", p->unpickle, "pickle_ns", p->pickle, "send_ns", p->send,
                                       "unit_ns", p->unit, "idle_ns", life - used);
        if (!item || PyList_Append(list, item) < 0) Py_CLEAR(list);
        Py_XDECREF(item);
    }
    return list;
}

static PyObject *py_summary(PyObject *m, PyObject *unused) {
    (void)m, (void)unused;
    struct merge *g = coord_merge();
    PyObject *functions = functions_list(g), *slots = functions ? slots_list(g) : NULL;
    if (!slots) {
        Py_XDECREF(functions);
        return NULL;
    }
    uint64_t wall = g->end_time > g->begin_time ? g->end_time - g->begin_time : 0;
    return Py_BuildValue("{s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:O,s:N,s:N}", "wall_ns", wall, "units", g->units,
                         "units_cancelled", g->cancelled, "items", g->items,
                         "jobs", g->jobs, "workers_lost", g->lost_workers, "generations", g->generations, "events", g->events,
                         "bytes", g->bytes, "lost_events", g->lost_events, "cpu_samples", g->cpu_samples, "failed", g->failed ? Py_True : Py_False,
                         "functions", functions, "slots", slots);
}

/* ---- the module ---- */
static void before_fork(void) { pthread_mutex_lock(&registry.lock); } /* so that the child's copy is whole */

static void after_fork_in_parent(void) { pthread_mutex_unlock(&registry.lock); }

static void after_fork_in_child(void) {
    pthread_mutex_t fresh = PTHREAD_MUTEX_INITIALIZER;
    registry.lock = fresh;
    for (uint32_t i = 0; i < registry.n; i++)
        if (registry.slots[i]->pipe >= 0) close(registry.slots[i]->pipe);
    if (registry.fd >= 0) close(registry.fd);
    registry.fd = -1;
    counters_after_fork();
    registry.head = NULL; /* the mapping stays, unused: it is the parent's */
    registry.n = registry.cap = 0;
    registry.slots = NULL;
    registry.epoch++;
    coord_after_fork();
    writer_after_fork();
    figures_after_fork();
    in_emit = 0;
}

static PyMethodDef methods[] = {
    {"arena_create", py_arena_create, METH_O, "arena_create(path): makes and maps the arena of this process. OSError."},
    {"arena_destroy", py_arena_destroy, METH_NOARGS, "arena_destroy(): unmaps it; the file is the caller's."},
    {"worker_open", py_worker_open, METH_VARARGS, "worker_open(p, read_fd) -> int: an entry for a worker to be. OSError."},
    {"worker_gone", py_worker_gone, METH_VARARGS, "worker_gone(entry, text | None[, g, generation, start]): its process is dead: closes its stream."},
    {"attach", py_attach, METH_VARARGS, "attach(path, entry, write_fd): this thread is that worker. OSError."},
    {"start", py_start, METH_VARARGS, "start(header, period_ns, patience_ns, cpu_period_ns, limit_bytes, stack, [(g, Stack)]): switches tracing on. OSError."},
    {"is_worker", py_is_worker, METH_NOARGS, "is_worker() -> bool: this process is one, and its arena another's."},
    {"stop", py_stop, METH_NOARGS, "stop(): closes the last generation; the reader gets the rest."},
    {"join", py_join, METH_NOARGS, "join(): of the coordinator's thread, after the reader is done."},
    {"read", py_read, METH_O, "read(wait_ns) -> bytes | None: the file's next piece; b'' when none came in time."},
    {"advance", py_advance, METH_O, "advance(wait_ns) -> bool: asks for one advance and waits for it."},
    {"generation", py_generation, METH_NOARGS, "generation() -> int: the one in force, 0 when no trace is on."},
    {"queued", py_queued, METH_NOARGS, "queued() -> int: bytes that wait for the reader."},
    {"summary", py_summary, METH_NOARGS, "summary() -> dict: figures of the trace that ended last."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, .m_name = "pooltrace.tracer._core", .m_doc = "The C core: emit, gather, merge.", .m_size = -1, .m_methods = methods,
};

static int add_events(PyObject *m) {
    PyObject *events = PyDict_New();
    if (!events) return -1;
#define X(name, number)                                                    \
    {                                                                      \
        PyObject *n = PyLong_FromLong(number);                             \
        if (!n || PyDict_SetItemString(events, #name, n) < 0) {            \
            Py_XDECREF(n);                                                 \
            Py_DECREF(events);                                             \
            return -1;                                                     \
        }                                                                  \
        Py_DECREF(n);                                                      \
    }
    GO_EVENTS(X)
#undef X
    int failed = PyModule_AddObjectRef(m, "EVENTS", events);
    Py_DECREF(events);
    return failed;
}

PyMODINIT_FUNC PyInit__core(void) {
    static bool hooked;
    if (intern_init() < 0 || PyType_Ready(&TicketType) < 0) return NULL;
    PyObject *m = PyModule_Create(&module);
    if (!m) return NULL;
    if (PyModule_AddType(m, &GateType) < 0 || PyModule_AddFunctions(m, thread_methods) < 0 || PyModule_AddFunctions(m, unit_methods) < 0 || PyModule_AddFunctions(m, sampler_methods) < 0 ||
        PyModule_AddFunctions(m, figures_methods) < 0 || PyModule_AddFunctions(m, collector_methods) < 0 || add_events(m) < 0 || annotation_init(m) < 0 ||
        PyModule_AddIntConstant(m, "REGION", REGION_USER) < 0 || PyModule_AddIntConstant(m, "MISS_HANDLED", MISS_HANDLED) < 0 ||
        PyModule_AddIntConstant(m, "MISS_BLOCKED", MISS_BLOCKED) < 0 || PyModule_AddIntConstant(m, "MISS_WAKEUP", MISS_WAKEUP) < 0 ||
        PyModule_AddIntConstant(m, "MISS_TIMERS", MISS_TIMERS) < 0 || PyModule_AddIntConstant(m, "PHASE", REGION_PHASE) < 0 ||
        PyModule_AddIntConstant(m, "ITEM", REGION_ITEM) < 0 || PyModule_AddIntConstant(m, "MAX_STRING", PT_STRING_MAX) < 0 ||
        PyModule_AddIntConstant(m, "MAX_FRAMES", PT_FRAMES_MAX) < 0 || PyModule_AddObjectRef(m, "Stack", (PyObject *)&StackType) < 0 ||
        PyModule_AddObjectRef(m, "Ticket", (PyObject *)&TicketType) < 0) {
        Py_DECREF(m);
        return NULL;
    }
    if (!hooked && pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child) != 0) {
        Py_DECREF(m);
        return PyErr_NoMemory();
    }
    hooked = true;
    return m;
}
