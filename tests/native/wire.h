/* Reads a Go trace as it comes and says what is wrong with its form: a second opinion on the merge, in C.
 *
 * Knows batches, event types, tables and times; nothing of what the events mean (that is pooltrace check's part).
 */
#ifndef POOLTRACE_WIRE_H
#define POOLTRACE_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct wire_event {
    uint32_t gen;
    uint64_t m, time;
    uint8_t type;
    const uint64_t *args; /* behind the time */
};

struct wire_ids {          /* ids of one kind of one generation */
    uint8_t *seen;         /* owned: 1 used, 2 defined */
    size_t n;
};

struct wire {
    int header;            /* 22, 23, 25, 26 */
    bool overlap;          /* whether times of one generation may reach into the next (false: that is an error) */
    void (*event)(void *arg, const struct wire_event *e); /* may be NULL */
    void *arg;
    uint8_t *buf;          /* owned: what was not read yet */
    size_t fill, cap;
    bool started;
    uint32_t gen;          /* the one that is being read, 0 between two */
    uint32_t last_gen;
    uint64_t min_time, max_time, last_max;
    struct wire_ids strings, stacks;
    uint64_t generations, events, bytes;
    uint64_t errors;
    char error[200];       /* the first */
};

void wire_init(struct wire *w, int header);
void wire_feed(struct wire *w, const uint8_t *bytes, size_t len);
void wire_end(struct wire *w); /* there is no more: it must be whole */
void wire_free(struct wire *w);
void wire_fail(struct wire *w, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
