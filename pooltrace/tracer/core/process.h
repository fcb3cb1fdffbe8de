/* What the parent and its workers have of the machine, see process.c. */
#ifndef POOLTRACE_PROCESS_H
#define POOLTRACE_PROCESS_H

#include "core.h"

struct process {
    bool is_parent;
    uint64_t p;           /* the slot's, of a worker */
    uint64_t rss;         /* bytes */
    uint64_t threads, descriptors;
};

struct processes {
    struct process *list; /* owned */
    uint32_t n;
    uint64_t rss;         /* of all together, bytes */
    uint64_t read_at;     /* ns; 0: never */
};

bool process_read(uint64_t pid, struct process *p); /* false: it is gone */
/* Of the parent and the workers among these.  false: they were read less than `pause` ns ago, or there is no memory. */
bool processes_read(struct processes *all, uint64_t now, uint64_t pause, struct slot **slots, uint32_t n);
void processes_free(struct processes *all);

#endif
