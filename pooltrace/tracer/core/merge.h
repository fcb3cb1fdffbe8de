/* The merge: streams of Ms in, Go's trace format out.  The one place where form is made; no Python, no GIL.
 *
 *   tables.c   strings, stacks and batches: ids per generation, what a batch looks like
 *   merge.c    the small state machine of each M; statuses, sequence numbers, generations
 *   account.c  what the summary needs, counted on the way
 */
#ifndef POOLTRACE_MERGE_H
#define POOLTRACE_MERGE_H

#include "process.h"

/* Go's event numbers, as far as we write them; tests compare them with pooltrace/format/spec.py. */
#define GO_EVENTS(X) \
    X(EventBatch, 1) X(Stacks, 2) X(Stack, 3) X(Strings, 4) X(String, 5) X(CPUSamples, 6) X(CPUSample, 7) X(Frequency, 8) X(ProcsChange, 9) \
    X(ProcStart, 10) X(ProcStop, 11) X(ProcStatus, 13) X(GoCreate, 14) X(GoCreateSyscall, 15) X(GoStart, 16) \
    X(GoDestroy, 17) X(GoBlock, 20) X(GoUnblock, 21) X(GoSyscallEndBlocked, 24) X(GoStatus, 25) X(STWBegin, 26) \
    X(STWEnd, 27) X(GCMarkAssistActive, 34) X(GCMarkAssistBegin, 35) X(GCMarkAssistEnd, 36) X(HeapAlloc, 37) X(HeapGoal, 38) X(UserTaskBegin, 40) X(UserTaskEnd, 41) X(UserRegionBegin, 42) \
    X(UserRegionEnd, 43) X(UserLog, 44) X(GoStatusStack, 48) X(Sync, 50) X(ClockSnapshot, 51) X(EndOfGeneration, 52)
#define X(name, number) Go##name = number,
enum go_event { GO_EVENTS(X) };
#undef X
enum { G_RUNNABLE = 1, G_RUNNING = 2, G_WAITING = 4, P_RUNNING = 1, P_IDLE = 2 };
#define NO_M UINT64_MAX

struct str {              /* a string of this trace */
    struct str *chain;
    uint64_t hash;
    uint32_t refs;        /* stacks and open regions that hold it */
    uint32_t gen;         /* the generation that id belongs to */
    uint64_t id;
    struct agg *agg;      /* figures of the function of that name, borrowed */
    uint32_t len;
    uint8_t bytes[];
};

struct stk_frame {
    struct str *function, *file; /* one of their refs */
    uint64_t line, pc;
};

struct stk {              /* a stack of this trace */
    struct stk *chain;
    uint64_t hash;
    uint32_t refs;        /* running units that it names */
    uint32_t gen;
    uint64_t id;
    uint32_t n;
    struct stk_frame frames[];
};

struct sample {           /* CPU samples of one moment */
    uint64_t time, m, p, g; /* NO_M: none */
    uint64_t stack;       /* its id in this generation */
    uint32_t weight;      /* how many */
};

struct out {              /* the batch that is being filled for one M */
    uint64_t m;
    uint8_t *buf;         /* owned, PT_BLOCK bytes, or NULL before the first event */
    uint32_t len;
    uint64_t first, last; /* times of its first event and of the M's last one */
};

struct region {
    uint64_t task, begin;
    uint64_t serial;      /* a user's region; 0: one of ours */
    struct str *name;     /* one of its refs; NULL: one of ours that ended with a user's around it */
    enum region_kind kind;
};

enum gstate { GS_NONE, GS_RUNNING, GS_BLOCKED };

struct mst {              /* one M */
    struct slot *slot;    /* borrowed */
    enum kind kind;
    uint64_t p;
    uint32_t gen;         /* of the blocks that are taken now */
    uint32_t next_block;  /* the one that is due */
    uint64_t in_time;     /* of the last event read */
    struct str **strs;    /* owned array, borrowed items: by the stream's id, this generation's */
    struct stk **stks;
    uint32_t nstrs, nstks;
    bool has_p;
    enum gstate gs;
    uint64_t g;           /* unless GS_NONE */
    uint64_t last_unit;   /* the newest unit that it began */
    struct stk *start;    /* one of its refs: start function of g */
    uint32_t seq;         /* sequenced events of g in this generation */
    uint32_t block_gen;   /* when GS_BLOCKED: in which generation it did */
    uint64_t unit_begin;  /* since when g runs, for the account */
    bool paused;          /* g is in the collector */
    bool starting;        /* g is the worker's start-up, for the account */
    struct region *regions; /* owned */
    uint32_t nregions, regions_cap;
    uint32_t skipped;     /* regions that were too many: the ends of these are skipped as well */
    uint64_t lost_before, lost_told; /* events that its writer had lost before this trace, and when it was last told */
    bool broken;          /* its stream made no sense: nothing more is read from it */
    struct out out;
};

struct pst {              /* one P */
    uint32_t gen;         /* in which its status was last written */
    uint64_t seq;         /* ProcStarts in that generation */
    struct mst *by;       /* the M that has it, borrowed */
    bool is_slot;
    uint64_t life, start, unit, item, unpickle, pickle, send; /* ns, for the account */
};

#define HIST_SUB 64
#define HIST_SIZE (59 * HIST_SUB)
struct agg {              /* one function's items */
    struct str *name;     /* one of its refs */
    uint64_t count, total, min, max;
    uint32_t hist[HIST_SIZE];
};

struct merge {
    int header;           /* 22, 23, 25, 26 */
    uint32_t gen, first_gen;
    uint64_t gen_time;    /* the time of the switch to gen */
    uint64_t last_time;   /* the latest time written in gen or before */
    uint64_t begin_time, end_time;
    struct str **str_table; /* owned; chained */
    uint32_t str_size, str_count;
    uint64_t str_bytes;   /* memory of the strings that are kept */
    struct stk **stk_table;
    uint32_t stk_size, stk_count;
    struct str **gen_strs; /* owned array: those of this generation, by id - 1 */
    struct stk **gen_stks;
    uint32_t n_gen_strs, n_gen_stks, gen_strs_cap, gen_stks_cap;
    struct pst *ps;       /* owned, by P id */
    uint32_t nps;
    struct out nobody;    /* batches of M -1: statuses on behalf of others */
    struct out coord;     /* the coordinator's own M */
    uint64_t coord_p;
    uint64_t slots;       /* as last written with ProcsChange */
    struct agg **aggs;    /* owned */
    uint32_t naggs;
    uint64_t lost_told;   /* of lost_events */
    uint64_t cpu_period;  /* ns between samples, 0: none */
    struct sample *samples; /* owned: of this generation */
    uint32_t nsamples, samples_cap, samples_weight;
    uint64_t samples_lost; /* in this generation: their log was full */
    uint64_t cpu_samples; /* that were written in all */
    uint64_t waiting;     /* units that were created and neither begun nor cancelled */
    uint64_t units, cancelled, items, jobs, lost_workers, events, bytes, generations, lost_events;
    bool over;            /* the last generation is closed: nothing more is written */
    bool failed;          /* no memory: the trace ends at the last whole generation */
    void (*sink)(void *arg, const uint8_t *bytes, size_t len); /* takes the file's bytes */
    void *sink_arg;
};

/* tables.c */
struct str *str_get(struct merge *g, const uint8_t *bytes, uint32_t len);
struct stk *stk_get(struct merge *g, const struct stk_frame *frames, uint32_t n);
uint64_t str_use(struct merge *g, struct str *s); /* its id in this generation */
uint64_t stk_use(struct merge *g, struct stk *s); /* NULL: 0 */
void sample_add(struct merge *g, struct sample s);
void samples_write(struct merge *g);              /* before the tables, with what their stacks need */
void tables_write(struct merge *g);               /* closes a generation's tables */
void tables_evict(struct merge *g);
void tables_free(struct merge *g);
void out_event(struct merge *g, struct out *o, enum go_event type, uint64_t time, const uint64_t *args, int n);
void out_flush(struct merge *g, struct out *o);
void merge_bytes(struct merge *g, const uint8_t *bytes, size_t len);

/* merge.c */
struct mst *merge_add(struct merge *g, struct slot *s); /* finds or makes the M of a slot */
void merge_feed(struct merge *g, struct mst *m, const uint8_t *p, uint32_t len);
void merge_close_m(struct merge *g, struct mst *m, uint64_t time, const char *lost, size_t lost_len);
void merge_claimed(struct merge *g, struct mst *m, uint64_t t, uint64_t unit, uint64_t created, struct stk *start);
void merge_running(struct merge *g, struct mst *m, uint64_t unit, struct stk *start); /* at the start of a trace */
void g_status(struct merge *g, struct out *o, uint64_t t, uint64_t id, uint64_t m, uint64_t status, struct stk *start);

/* generation.c */
struct gen_info {
    uint64_t before;      /* the clock just before the switch */
    uint64_t wall_sec, wall_nsec;
    uint64_t rss, limit;  /* bytes; 0: not known */
    const struct process *processes; /* borrowed: what is to be told of them; NULL: nothing */
    uint32_t n_processes;
};
void merge_header(struct merge *g);
void merge_open(struct merge *g, uint32_t gen, const struct gen_info *info, struct slot **slots, uint32_t n);
void merge_close(struct merge *g, struct slot **slots, uint32_t n);
void merge_slots(struct merge *g, uint64_t time, struct slot **slots, uint32_t n); /* ProcsChange if they changed */
void merge_coord_log(struct merge *g, uint64_t time, const char *key, const char *value, size_t len);
void merge_coord_cancel(struct merge *g, uint64_t time, uint64_t unit, bool older, struct stk *start);
void merge_losses(struct merge *g, struct mst *m, uint64_t time); /* says what was lost since it was last said */
void merge_free(struct merge *g);
struct pst *p_get(struct merge *g, uint64_t p);

/* account.c */
void account_region(struct merge *g, struct mst *m, const struct region *r, uint64_t end);
void account_begin(struct merge *g, struct mst *m); /* g has just begun on m */
void account_unit(struct merge *g, struct mst *m, uint64_t end);
void account_life(struct merge *g, struct mst *m, uint64_t end); /* m is gone, or the trace over */
void account_open(struct merge *g, struct mst *m, uint64_t end); /* what m is in when the trace ends */
uint64_t agg_quantile(const struct agg *a, double q); /* ns */

#endif
