/* What the coordinator's three files share. */
#ifndef POOLTRACE_COORD_INTERNAL_H
#define POOLTRACE_COORD_INTERNAL_H

#include "coord.h"

#include <poll.h>

#define CHUNK (1u << 18)

struct chunk {             /* a piece of the file that waits for the reader */
    struct chunk *next;
    uint64_t number;
    size_t len, cap;
    uint8_t bytes[];
};

struct in_pipe {           /* a worker's pipe, as far as it was read */
    struct slot *slot;     /* borrowed; owns this */
    uint32_t fill;
    uint8_t buf[sizeof(struct block_head) + PT_BLOCK];
};

struct gone {
    struct slot *slot;
    const char *lost;
    const struct named_unit *claimed;
    uint64_t created;
    bool done;
};

struct coordinator {
    pthread_t thread;
    bool started;          /* GIL: a thread is to be joined */
    int wake;              /* eventfd, owned */
    uint64_t period, limit;
    struct merge merge;    /* coordinator */
    struct processes processes; /* coordinator */
    struct slot **slots;   /* coordinator: owned copy of the used slots, in order of registration */
    uint64_t *finals;      /* coordinator: beside slots, the words at which they were switched */
    uint32_t n, cap;
    struct in_pipe **pipes; /* coordinator: owned array */
    uint32_t npipes;
    struct pollfd *fds;    /* coordinator: owned, room for all pipes and one more */
    struct block *held, **held_tail; /* coordinator: blocks of the next generation, in order */
    struct slot *starter;  /* coordinator: the thread that started the trace, and when */
    uint64_t start_before, start_after;
    uint64_t list_serial;  /* coordinator: newest slot that is listed */
    uint64_t next_advance; /* coordinator: when, ns */
    uint64_t switched;     /* coordinator: while it gathers, the time of the switch */
    bool early;            /* coordinator: an M's block numbers run out, advance now */
    bool has_cond;         /* GIL: cond is made */

    pthread_mutex_t lock;
    pthread_cond_t cond;   /* something under the lock changed */
    struct block *queue, **queue_tail; /* under lock: from the parent's threads */
    bool accepting;        /* under lock */
    bool cut;              /* under lock: something was lost without which the file makes no sense */
    bool stop, stopped;    /* under lock */
    uint64_t advances, advances_wanted; /* under lock */
    struct gone *gone;     /* under lock: a request, on the asker's stack; the coordinator takes it away */
    struct chunk *out, **out_tail; /* under lock */
    uint64_t out_bytes;    /* under lock */
    uint64_t chunks, chunks_read, chunks_closed; /* under lock: made, read, and made when the last generation closed */
};
extern struct coordinator c;

/* queue.c */
void wake(void);
void free_blocks(struct block *b);
void sink(void *arg, const uint8_t *bytes, size_t len);
bool wait_until(uint64_t deadline); /* on c.cond, under c.lock; false: time is up */

/* gather.c */
void take(struct slot *s, uint32_t block, const uint8_t *data, uint32_t len);
void take_queue(void);
void take_held(void);
void drain(struct in_pipe *p, size_t max);
void drain_standing(struct in_pipe *p);
struct in_pipe *pipe_of(struct slot *s);
void forget_slot(struct slot *s);
void bury(struct slot *s);
void take_rest(struct slot *s);
void bury_ended(uint32_t next); /* in the advance to that generation, after gathering */
void list_slots(void); /* under registry.lock */

#endif
