/* Strings and stacks, interned once per process; each writer marks what it has defined in which generation. */
#ifndef POOLTRACE_INTERN_H
#define POOLTRACE_INTERN_H

#include <Python.h>

#include "core.h"

struct string {          /* a name: UTF-8, cut and escaped */
    uint32_t refs;       /* GIL */
    uint32_t id, epoch;  /* GIL: its id in the tables of that epoch */
    uint32_t len;
    char bytes[];
};

struct frame {
    struct string *function, *file; /* owned references */
    uint32_t line;
};

typedef struct stack {   /* the Python object `Stack`: immutable */
    PyObject_HEAD
    uint32_t id, epoch;  /* GIL: as above */
    uint64_t hash;
    uint32_t n;
    PyCodeObject **codes; /* owned references: the key while it is in the table; NULL for a made frame */
    int *lasti;
    struct frame *frames; /* innermost first */
} stack_t_;

extern PyTypeObject StackType;
extern uint32_t intern_epoch; /* GIL: changes when the tables are emptied */

int intern_init(void);
/* New reference or NULL with an exception set.  The caller is in an emit: the tables are not emptied under it. */
struct string *string_of(PyObject *text);
struct string *string_once(PyObject *text); /* cut and escaped likewise, but kept in no table */
void string_unref(struct string *s);
uint32_t string_id(struct string *s);
uint32_t stack_id(stack_t_ *s);
stack_t_ *stack_here(int skip);                                      /* of the calling thread, new reference */
stack_t_ *stack_made(PyObject *function, PyObject *file, long line); /* one frame, new reference */
void intern_trim(void); /* empties tables that grew too large; only between emits */
extern bool intern_full; /* GIL: one of them did */

#define PT_CACHE 512 /* direct-mapped, by address of the str object */
extern struct cached {
    PyObject *text;        /* owned reference */
    struct string *string; /* owned reference */
} intern_cache[PT_CACHE];  /* GIL */

/* As string_of, at once for a text that was looked up last under its address. */
static inline struct string *string_of_cached(PyObject *text) {
    struct cached *c = &intern_cache[((uintptr_t)text >> 4) % PT_CACHE];
    if (c->text != text) return string_of(text);
    c->string->refs++;
    return c->string;
}

#endif
