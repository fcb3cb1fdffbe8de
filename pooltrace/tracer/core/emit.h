/* What the emit functions share: who may write, what an event refers to, and its definitions. */
#ifndef POOLTRACE_EMIT_H
#define POOLTRACE_EMIT_H

#include <Python.h>

#include "intern.h"
#include "writer.h"

extern PyTypeObject TicketType;
extern PyTypeObject GateType; /* gate.c */
extern PyMethodDef thread_methods[], unit_methods[], sampler_methods[], figures_methods[], collector_methods[];

extern struct pauses {     /* GIL: of Python's collector, while a trace was on */
    uint64_t count, ns, freed;
} pauses;
int annotation_init(PyObject *m); /* annotation.c: adds what users' annotations are made of; 0, or -1 with an exception */

void collector_watch(bool on); /* collector.c: while a trace is on.  No exception */

extern int in_emit; /* GIL: tables are emptied only between emits */

static inline bool head_on(const struct head *h) { return h && word_on(LOAD((au64 *)&h->gen)); }

/* A trace is on, this process's own or that in which it is a worker. */
static inline bool any_trace(void) { return head_on(registry.head) || head_on(home_head()); }

static inline bool is_worker(const struct writer *w) { return w && w->kind == KIND_WORKER && w->entry; }

/* The writer of this thread if it can write now, NULL otherwise. */
static inline struct writer *ready(void) {
    struct writer *w = tls_writer;
    if (!w || !w->entry) return NULL;
    if (w->kind == KIND_THREAD && w->epoch != registry.epoch) return NULL;
    return head_on(w->head) ? w : NULL;
}

static inline bool is_in(const struct writer *w) {
    return w->in_first != 0 && w->in_first == LOAD(&w->head->first_gen);
}

/* A thread, of the parent or a guest, that is in the trace and runs. */
static inline bool may_write(const struct writer *w) { return is_in(w) && w->blocked != w->in_first; }

/* sampler.c: a sample is due; it is of the stack of now, or of `instead`.  No exception. */
static inline bool sample_due(const struct writer *w) { return atomic_load_explicit(&ticks[w->tick].due, memory_order_relaxed); }
void sampler_take(struct writer *w, stack_t_ *instead);
void sampler_enter(struct writer *w); /* and the thread comes in */
/* emit_unit.c: a log whose text is UTF-8 already.  No exception. */
void emit_text(struct writer *w, uint64_t task, struct string *key, const char *bytes, uint32_t len);

/* figures.c: of a worker's main thread, while a trace is on */
void figures_begin(struct writer *w);
void figures_end(struct writer *w, uint64_t arguments, uint64_t result); /* bytes */
bool figures_of_items(void);
uint64_t figures_item_begin(void);
void figures_item_end(struct writer *w, uint64_t begun); /* no exception is set */
void figures_after_fork(void);

extern stack_t_ *item_called; /* GIL: of the item that a worker's main thread calls, borrowed */

/* A parent thread that is in the trace and runs, NULL otherwise.  A signal handler that interrupts a wait of its thread
 * finds it blocked: what it does there is not recorded (a unit that it submits is then created where it starts). */
static inline struct writer *ready_in(void) {
    struct writer *w = ready();
    if (!w || w->kind != KIND_THREAD || !may_write(w)) return NULL;
    if (sample_due(w)) sampler_take(w, NULL);
    if (w->unsampled) ticks_again(w);
    return w;
}

/* Any M that runs a G, NULL otherwise. */
static inline struct writer *ready_any(void) {
    struct writer *w = ready();
    if (!w || (w->kind != KIND_WORKER && !may_write(w))) return NULL;
    if (sample_due(w)) sampler_take(w, NULL);
    return w;
}

/* What an event refers to. */
struct refs {
    struct string *name;  /* owned or NULL */
    stack_t_ *stack;      /* owned or NULL */
    stack_t_ *start;      /* owned or NULL */
};

/* define.c.  Arguments: 0, or -1 with an exception set. */
int arg_count(Py_ssize_t given, Py_ssize_t wanted, const char *name);
int arg_uint(PyObject *o, uint64_t *out);
int arg_stack(PyObject *o, bool take, stack_t_ **out); /* new reference in *out: a Stack; None: NULL, or the stack of now */
int open_defining(struct writer *w, struct event *ev, size_t need, const struct refs *r, bool in);

/* Is it defined in that generation of this writer's stream? */
static inline bool has_string(const struct writer *w, const struct string *s, uint32_t gen) {
    return !s || (s->epoch == intern_epoch && s->id < w->strings && w->string_mark[s->id] == gen);
}
static inline bool has_stack(const struct writer *w, const stack_t_ *s, uint32_t gen) {
    return !s || (s->epoch == intern_epoch && s->id < w->stacks && w->stack_mark[s->id] == gen);
}

static inline bool is_defined(struct writer *w, const struct refs *r, uint32_t gen) {
    return w->marks_epoch == intern_epoch && has_string(w, r->name, gen) && has_stack(w, r->stack, gen) && has_stack(w, r->start, gen);
}

/* Opens an event whose names and stacks are defined in its generation; `in`: only for a thread that is in the trace. */
static inline int open_with(struct writer *w, struct event *ev, size_t need, const struct refs *r, bool in) {
    if (!writer_open(w, ev, need) || (in && !is_in(w))) return 0;
    if (is_defined(w, r, ev->gen)) return 1;
    return open_defining(w, ev, need, r, in);
}

static inline uint64_t id_of(stack_t_ *s) { return s ? stack_id(s) : 0; }

/* The job's or the user's, which end alike. */
static inline void put_task(struct event *ev, enum op op, uint64_t task, uint64_t parent, const struct refs *r) {
    *ev->p++ = (uint8_t)op;
    ev->p = put_varint(ev->p, ev->dt);
    ev->p = put_varint(ev->p, task);
    ev->p = put_varint(ev->p, parent);
    ev->p = put_varint(ev->p, string_id(r->name));
    ev->p = put_varint(ev->p, id_of(r->stack));
}
static inline void put_task_end(struct event *ev, uint64_t task, const struct refs *r) {
    *ev->p++ = OP_TASK_END;
    ev->p = put_varint(ev->p, ev->dt);
    ev->p = put_varint(ev->p, task);
    ev->p = put_varint(ev->p, id_of(r->stack));
}

static inline void refs_free(struct refs *r) {
    string_unref(r->name);
    Py_XDECREF(r->stack);
    Py_XDECREF(r->start);
}

static inline void emit_begin(void) {
    if (in_emit++ == 0 && intern_full) intern_trim();
}
static inline void emit_end(void) {
    if (in_emit > 0) in_emit--; /* 0: the child of a fork inside the emit */
}
static inline PyObject *emit_done(struct refs *r, bool failed) {
    emit_end();
    refs_free(r);
    if (failed) return NULL;
    Py_RETURN_NONE;
}

#define FAST(name, function, doc) {name, (PyCFunction)(void (*)(void))function, METH_FASTCALL, doc}

#endif
