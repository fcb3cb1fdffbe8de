/* The write side's half of the publication protocol: open, encode, publish. */
#ifndef POOLTRACE_WRITER_H
#define POOLTRACE_WRITER_H

#include "core.h"

struct trunk {                /* a worker's trace pipe, for all its threads */
    pthread_mutex_t lock;     /* taken without the GIL, held over a whole block */
    int fd;                   /* under lock: write end, owned; -1: there is none */
    const uint8_t *debt;      /* under lock: rest of a block that was cut off by a switch */
    size_t debt_len;
    int64_t patience;         /* under lock: ns that they may still wait, together, for a full pipe */
    uint64_t trace;           /* under lock: first generation of the trace in which that is */
    _Atomic bool broken;      /* set under lock: nothing more can be written to it */
};

struct writer {               /* one per thread, that thread only (with the GIL) */
    enum kind kind;
    uint64_t epoch;           /* of the registry when entry was taken; another one: void (threads) */
    struct head *head;        /* borrowed */
    struct entry *entry;      /* borrowed for threads, owned for a worker and its guests; NULL before the first use */
    uint32_t index;           /* its number; workers and guests */
    struct slot *slot;        /* borrowed; threads only */
    struct block *notice;     /* owned: that the thread is gone; made beforehand, it must not fail; threads only */
    uint64_t last_word;       /* what this thread published last, and when */
    uint64_t last_time;
    uint32_t *string_mark;    /* owned: by id, the generation in which it was defined */
    uint32_t *stack_mark;     /* owned */
    uint32_t strings, stacks; /* sizes of the marks */
    uint32_t marks_epoch;     /* of the intern tables */
    int depth;                /* of enter() */
    bool starter;             /* began the trace that in_first names: stays in it */
    uint64_t in_first;        /* first generation of the trace in which it is, 0 for none */
    uint64_t blocked;         /* in_first while it is in a wait, else 0 */
    void *ticket;             /* of that wait: an owned reference, GIL; left alone at the thread's end, which has none */
    uint64_t g;               /* its G there */
    uint32_t seq, seq_gen;    /* sequenced events of its G in that generation */
    struct trunk *trunk;      /* borrowed; workers and guests */
    uint64_t trace;           /* first generation of the trace in which it wrote last */
    bool detached;            /* recording failed here: nothing more is written in this trace */
    uint32_t tick;            /* its place in ticks, owned; 0: it has no timer */
    uint64_t cpu, dice;       /* CPU time of the thread at its last sample, ns; for the time of the next */
    int64_t cpu_left;         /* ns that the samples up to now are too light by */
    bool unsampled;           /* something is against samples, for now, */
    uint64_t refused;         /* as was found then, ns */
    uint32_t asked;           /* how often that was looked for */
};

/* ticks.c: a thread's timer.  A signal's handler looks here: so it is never freed. */
#define TICKS 1024
extern struct tick {
    _Atomic bool due;         /* handler and thread: a sample is to be taken */
    _Atomic bool is_main;     /* thread, before the timer is made: Python handles signals there */
    _Atomic bool used;        /* by compare-and-swap: a thread has it */
} ticks[TICKS];
void ticks_arm(struct writer *w);  /* a trace is on, and this thread writes its first event there */
void ticks_set(struct writer *w);  /* for the next sample, unless something is against it */
void ticks_again(struct writer *w); /* something was against it: has it gone? */
/* sampler.c: what Python knows.  NULL: it is not asked. */
extern struct ticks_ask {
    bool (*has_wakeup)(void);     /* a signal of ours would wake somebody of the program's */
    bool (*is_back)(int signum);  /* the program has put our handler back */
} ticks_ask;
void ticks_check(struct writer *w, uint64_t cpu); /* whether its signals still come; now, in ns of this thread's CPU time */
void ticks_drop(struct writer *w); /* the thread ends */
void ticks_disarm(void);           /* the trace is over: those of all threads of this process */
void ticks_after_fork(void);       /* in the child */
uint64_t ticks_cpu(void);          /* ns of CPU time of this thread */
int ticks_install(int signum, bool has_main); /* 0, or errno */
bool ticks_are_ours(int signum);   /* the handler is */

/* An event that is being written. */
struct event {
    uint64_t word, time;
    uint32_t gen;
    uint8_t *start, *p;
    uint64_t dt;
    bool whole;      /* it begins with OP_TIME */
    bool definition; /* set by the encoder of one */
};

extern __thread struct writer *tls_writer;

int writer_open_anew(struct writer *w, struct event *ev, size_t need); /* whatever has happened */

/* 1: encode at ev->p (ev->dt is its time); 0: no trace is on, or none that this thread can write to.
 * First what is mostly the case: nobody has touched the word since this thread's last event.  `again`: that was just
 * now, and its time serves for this one, too. */
static inline bool writer_open_at(struct writer *w, struct event *ev, size_t need, bool again) {
    if (w->entry && !w->detached && (w->kind != KIND_THREAD || w->epoch == registry.epoch)) {
        uint64_t t = again ? w->last_time : now_ns(), g = LOAD(&w->head->gen), word = LOAD(&w->entry->word);
        if (word == w->last_word && word_gen(word) == word_gen(g) && word_on(word) && word_pos(word) + need + 24 <= PT_BLOCK) {
            uint8_t *at = w->entry->buffer[word_gen(word) & 1] + word_pos(word);
            *ev = (struct event){.word = word, .time = t, .gen = word_gen(word), .start = at, .p = at, .dt = t - w->last_time};
            return true;
        }
    }
    return false;
}
static inline int writer_open(struct writer *w, struct event *ev, size_t need) {
    return writer_open_at(w, ev, need, false) ? 1 : writer_open_anew(w, ev, need);
}

/* true: it is in the trace; false: the word had moved on, write it again from writer_open. */
static inline bool writer_publish(struct writer *w, struct event *ev) {
    uint64_t old = ev->word, next = ev->word + (uint64_t)(ev->p - ev->start);
    if (!CAS(&w->entry->word, &old, next)) return false;
    w->last_word = next;
    if (ev->whole || !ev->definition) w->last_time = ev->time; /* a definition has no time of its own */
    return true;
}

struct writer *writer_get(void);         /* of this thread, made when there is none; NULL without memory */
bool writer_register(struct writer *w, bool starter); /* threads: an entry in the arena; the starter's has P 0 */
void writer_dispose(void *writer);       /* at the thread's end; without the GIL */
bool writer_off_state(struct writer *w, uint32_t state); /* true: stored; false: a trace is on */
void writer_after_fork(void);            /* in the child */
bool trunk_block(struct writer *w, uint32_t gen, uint32_t block, const uint8_t *bytes, uint32_t len); /* without the GIL */

/* guest.c */
int home_open(struct writer *w, struct head *head, int file, struct entry *e, uint32_t index, int pipe); /* 0, or errno */
struct head *home_head(void);            /* the arena in which this process is a worker, or NULL */
bool guest_register(struct writer *w);   /* another thread of a worker takes an entry there */
void guest_dispose(struct writer *w);    /* at its end, entry and all; without the GIL */
void home_close(void);                   /* the worker's main thread ends */
void home_after_fork(void);

static inline bool writer_valid(const struct writer *w) { return w && w->entry && w->epoch == registry.epoch; }

#endif
