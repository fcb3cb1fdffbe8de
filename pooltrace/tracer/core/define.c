/* Arguments of the emit functions, and the definitions of strings and stacks before their first use. */
#include "emit.h"

#include <stdlib.h>

int in_emit;

/* ---- arguments ---- */
int arg_count(Py_ssize_t given, Py_ssize_t wanted, const char *name) {
    if (given == wanted) return 0;
    PyErr_Format(PyExc_TypeError, "%s() takes %zd positional arguments, %zd were given", name, wanted, given);
    return -1;
}

int arg_uint(PyObject *o, uint64_t *out) {
    *out = PyLong_AsUnsignedLongLong(o);
    return *out == (uint64_t)-1 && PyErr_Occurred() ? -1 : 0;
}

/* New reference in *out: a Stack, or for None NULL (take = false) or the stack of now (take = true). */
int arg_stack(PyObject *o, bool take, stack_t_ **out) {
    *out = NULL;
    if (Py_IS_TYPE(o, &StackType)) {
        Py_INCREF(o);
        *out = (stack_t_ *)o;
        return 0;
    }
    if (o == Py_None) {
        if (!take) return 0;
        *out = stack_here(0);
        return *out ? 0 : -1;
    }
    PyErr_Format(PyExc_TypeError, "a stack must be a Stack or None, not %.100s", Py_TYPE(o)->tp_name);
    return -1;
}

/* ---- definitions ---- */
static bool mark_room(uint32_t **marks, uint32_t *n, uint32_t id) {
    if (id < *n) return true;
    uint32_t size = *n ? *n : 64;
    while (size <= id) size *= 2;
    uint32_t *grown = realloc(*marks, size * sizeof **marks);
    if (!grown) return false;
    memset(grown + *n, 0, (size - *n) * sizeof *grown);
    *marks = grown;
    *n = size;
    return true;
}

static void marks_check(struct writer *w) {
    if (w->marks_epoch == intern_epoch) return;
    if (w->string_mark) memset(w->string_mark, 0, w->strings * sizeof *w->string_mark);
    if (w->stack_mark) memset(w->stack_mark, 0, w->stacks * sizeof *w->stack_mark);
    w->marks_epoch = intern_epoch;
}

/* Defines s unless it is defined in generation gen. 1: defined there before; 0: just done (open anew); -1: cannot. */
static int need_string(struct writer *w, struct string *s, uint32_t gen) {
    uint32_t id = string_id(s);
    marks_check(w);
    if (id < w->strings && w->string_mark[id] == gen) return 1;
    if (!mark_room(&w->string_mark, &w->strings, id)) return w->detached = true, -1; /* no memory */
    struct event ev;
    do {
        if (!writer_open(w, &ev, s->len + 24)) return -1;
        ev.definition = true;
        *ev.p++ = OP_STRING;
        ev.p = put_varint(ev.p, id);
        ev.p = put_varint(ev.p, s->len);
        memcpy(ev.p, s->bytes, s->len);
        ev.p += s->len;
    } while (!writer_publish(w, &ev));
    w->string_mark[id] = ev.gen; /* the mark follows the publication */
    return 0;
}

static int need_stack(struct writer *w, stack_t_ *s, uint32_t gen) {
    uint32_t id = stack_id(s);
    marks_check(w);
    if (id < w->stacks && w->stack_mark[id] == gen) return 1;
    if (!mark_room(&w->stack_mark, &w->stacks, id)) return w->detached = true, -1;
    for (uint32_t i = 0; i < s->n; i++) {
        int a = need_string(w, s->frames[i].function, gen), b = need_string(w, s->frames[i].file, gen);
        if (a < 0 || b < 0) return -1;
    }
    struct event ev;
    if (!writer_open(w, &ev, 24 + s->n * 16)) return -1;
    if (ev.gen != gen) return 0; /* its strings were made in the older one */
    ev.definition = true;
    *ev.p++ = OP_STACK;
    ev.p = put_varint(ev.p, id);
    ev.p = put_varint(ev.p, s->n);
    for (uint32_t i = 0; i < s->n; i++) {
        ev.p = put_varint(ev.p, string_id(s->frames[i].function));
        ev.p = put_varint(ev.p, string_id(s->frames[i].file));
        ev.p = put_varint(ev.p, s->frames[i].line);
    }
    if (writer_publish(w, &ev)) w->stack_mark[id] = ev.gen;
    return 0;
}

/* The same as open_with, with all that it may take. */
int open_defining(struct writer *w, struct event *ev, size_t need, const struct refs *r, bool in) {
    for (;;) {
        if (!writer_open(w, ev, need)) return 0;
        if (in && !is_in(w)) return 0;
        int made = r->name ? need_string(w, r->name, ev->gen) : 1;
        if (made == 1 && r->stack) made = need_stack(w, r->stack, ev->gen);
        if (made == 1 && r->start) made = need_stack(w, r->start, ev->gen);
        if (made == 1) return 1;
        if (made < 0) return 0;
    }
}
