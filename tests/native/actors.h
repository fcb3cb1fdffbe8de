/* Writers for the native tests: what emit_*.c and module.c do for Python, by the same calls into the core. */
#ifndef POOLTRACE_ACTORS_H
#define POOLTRACE_ACTORS_H

#include <Python.h>

#include "coord.h"
#include "writer.h"

struct actor {             /* one M to be; its own thread or process only */
    struct writer own;     /* of a worker; a thread's belongs to its thread */
    struct trunk trunk;
    struct writer *w;      /* borrowed */
    struct slot *slot;     /* borrowed; workers only */
    int index;             /* of the worker's entry */
    int pipe;              /* worker's write end, owned until actor_attach */
    uint64_t p;
};

/* A number below n; each thread has a sequence of its own, from the seed that it was given. */
uint32_t random_below(uint64_t *state, uint32_t n);
void die(const char *what); /* the test itself cannot go on: status 2 */

void gil_take(void);        /* this thread is one of the parent's */
void gil_drop(void);

int arena_open_temp(char *path, size_t size); /* makes the arena; its path */
void worker_open(struct actor *a, uint64_t p); /* as module.c's worker_open, and a pipe */
/* As module.c's attach.  `forked`: in a process of its own, by mappings of its own; else in a thread, by the parent's. */
void worker_attach(struct actor *a, const char *path, bool forked);
void worker_detach(struct actor *a);           /* the thread that stood for it is over */
struct slot *start_trace(int header, uint64_t period); /* as module.c's start; with the GIL; NULL without memory */
extern __thread bool starting; /* inside coord_start */
uint8_t *next_piece(size_t *len); /* of the file, as module.c's read; malloc'ed; NULL at the end */

/* Events; false: no trace is on, or the writer is detached. */
bool say(struct writer *w, enum op op, const uint64_t *args, int n);
/* A region whose name is defined in its generation; *name_gen is that of the last definition, 0 at first. */
bool say_region(struct writer *w, uint32_t *name_gen, uint32_t kind, const char *name);

#endif
