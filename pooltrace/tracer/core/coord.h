/* The coordinator: one native thread of the parent that gathers, advances and merges, without the GIL. */
#ifndef POOLTRACE_COORD_H
#define POOLTRACE_COORD_H

#include "merge.h"

struct named_unit {       /* a unit in flight, and its start function */
    uint64_t g;
    const char *function, *file; /* borrowed during coord_start */
    size_t function_len, file_len;
    uint64_t line;
};

struct coord_options {
    int header;           /* 22, 23, 25 or 26 */
    uint64_t period;      /* ns; 0: one advance after the other */
    uint64_t patience;    /* ns that a worker may wait for a full pipe, in all */
    uint64_t cpu_period;  /* ns of CPU time between samples, 0: none */
    uint64_t limit;       /* bytes of memory that may be used, 0 unknown */
    struct slot *starter; /* the thread that starts the trace */
    uint64_t starter_g;
    struct named_unit start; /* where it called start */
    const struct named_unit *units;
    uint32_t n_units;
};

enum { READ_DATA, READ_AGAIN, READ_END };

int coord_start(const struct coord_options *o);    /* 0 or errno; with the GIL */
void coord_stop_request(void);
bool coord_stopped(uint64_t wait_ns);              /* waits; without the GIL */
void coord_join(void);
int coord_wait(size_t *len, uint64_t wait_ns);     /* for the next piece of the file.  READ_AGAIN: none came in wait_ns */
bool coord_read(uint8_t *to, size_t len);          /* takes it; false: it is not so long, somebody else took it */
bool coord_advance(uint64_t wait_ns);              /* asks for one advance and waits for it; for tests */
/* A worker is dead: closes its stream, if a trace is on, and frees its slot.  `lost`: how, or NULL; `claimed`: the unit
 * that it had claimed, created in that generation, or NULL. */
void coord_gone(struct slot *s, const char *lost, const struct named_unit *claimed, uint64_t created);
struct merge *coord_merge(void);                   /* figures of the newest trace, after its end */
uint64_t coord_queued(void);                       /* bytes that wait for the reader */
void coord_after_fork(void);

#endif
