/* What the parts of the C core share: the arena's layout, the words, the writers and the stream's opcodes.
 *
 * Who may touch what:
 *   emit side   emit_*.c, intern.c, writer.c, guest.c  with the GIL held; one thread per writer
 *   coordinator coord.c, merge.c             one native thread without the GIL; knows no Python object
 *   both        arena.c                      the registry of entries, under registry.lock
 *
 * Nothing here knows pools, jobs or files.  Every rule of Go's format lives in merge.c.
 */
#ifndef POOLTRACE_CORE_H
#define POOLTRACE_CORE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

typedef _Atomic uint64_t au64;

/* ---- the word of an M, and the generation in force -------------------------------------------------
 *
 *   63            33  32  31      16 15       0
 *   +---------------+---+----------+----------+
 *   | generation:31 | 1 | block:16 | position |      a trace is on
 *   | generation:31 | 0 | state:32            |      no trace: what the M does, kept for the next start
 *   +---------------+---+---------------------+
 *
 * G, the generation in force, has the same two leading fields.
 */
#define PT_ON ((uint64_t)1 << 32)
#define PT_GEN_MAX 0x7fffffffu
#define PT_STATE_UNSET 0u             /* nobody has said what the M does */
#define PT_STATE_IDLE 1u
#define PT_STATE_RUN 0x80000000u      /* with the low 31 bits of the unit's id */
#define PT_UNIT_MASK 0x7fffffffu

static inline uint32_t word_gen(uint64_t w) { return (uint32_t)(w >> 33); }
static inline bool word_on(uint64_t w) { return (w & PT_ON) != 0; }
static inline uint32_t word_block(uint64_t w) { return (uint32_t)(w >> 16) & 0xffff; }
static inline uint32_t word_pos(uint64_t w) { return (uint32_t)w & 0xffff; }
static inline uint32_t word_state(uint64_t w) { return (uint32_t)w; }
static inline uint64_t make_word(uint32_t gen, bool on, uint32_t low) {
    return (uint64_t)gen << 33 | (on ? PT_ON : 0) | low;
}
/* Is generation a older than b?  They wrap, so the distance decides. */
static inline bool gen_before(uint32_t a, uint32_t b) { return a != b && ((b - a) & PT_GEN_MAX) < 0x40000000u; }
static inline uint32_t gen_next(uint32_t g) { return g == PT_GEN_MAX ? 4 : g + 1; } /* as Go: never 0, parity kept */

#define LOAD(p) atomic_load_explicit((p), memory_order_acquire)
#define STORE(p, v) atomic_store_explicit((p), (v), memory_order_release)
#define CAS(p, old, new) \
    atomic_compare_exchange_strong_explicit((p), (old), (new), memory_order_acq_rel, memory_order_acquire)

#ifdef PT_TEST /* only in tests/native: a moment in which others may come in between */
void pt_pause(void);
#else
static inline void pt_pause(void) {}
#endif

/* ---- the arena: one file, a header and then entries of PT_STRIDE bytes ------------------------------- */
#define PT_MAGIC 0x3130414352415450ull /* "PTARCA01" */
#define PT_PAGE 4096u
#define PT_BUFFER 65536u
#define PT_BLOCK 60000u /* bytes of stream in a block, at most */
#define PT_PIPE (1u << 20)  /* bytes that a worker's pipe should hold; the user's limit may be less */
#define PT_STRIDE (PT_PAGE + 2 * PT_BUFFER)
#define PT_ENTRIES 16384u /* at most */

/* Who has an entry.  Parent and workers take free ones by compare-and-swap; only the parent gives them back. */
#define OWNER_FREE 0u
#define OWNER_PARENT 1u         /* the parent: for itself, or for a worker */
#define OWNER_GUEST 0x80000000u /* a thread of the worker whose entry's number is in the low bits: being made, */
#define OWNER_LISTED 0x40000000u /* in use (it writes there), */
#define OWNER_ENDED 0x20000000u /* left without a word: nothing more is written there */
#define OWNER_HOST 0xffffu

struct counters {       /* ids that never come twice, whoever takes them */
    au64 g, task;
};

struct head {
    uint64_t magic;     /* creator, once */
    uint64_t pid;       /* creator, once */
    au64 gen;           /* coordinator: the generation in force, stored before any word is moved */
    au64 first_gen;     /* coordinator: of the newest trace, stored before gen is switched on */
    au64 patience;      /* coordinator: ns that a worker may wait for a full pipe in that trace, stored before it */
    struct counters next; /* all */
    au64 cpu_period;    /* coordinator: ns of CPU time between samples in that trace, 0: none; stored before it */
    _Atomic uint32_t unsampled; /* all: MISS_..., why threads had no samples in that trace, for a time at least */
    uint32_t reserved;
    au64 entries;       /* all: no entry was ever taken from here on */
    uint8_t pad[PT_PAGE - 10 * 8];
    _Atomic uint32_t owner[PT_ENTRIES]; /* by entry; see above */
};
/* The program handles the signal, blocks it, has a wakeup descriptor; the system gives no timer. */
enum { MISS_HANDLED = 1, MISS_BLOCKED = 2, MISS_WAKEUP = 4, MISS_TIMERS = 8 };
#define PT_HEAD (PT_PAGE + 4 * PT_ENTRIES)
_Static_assert(sizeof(struct head) == PT_HEAD, "the header is whole pages");

struct entry {          /* one M: a control page and its pair of buffers */
    au64 word;          /* writer and coordinator, by compare-and-swap only */
    au64 left[2];       /* writer: by parity, the word that it moved away from */
    au64 left_off;      /* writer: the off word that it moved away from */
    au64 m;             /* writer, once: native thread id, 0 until it is attached */
    au64 unit;          /* writer: the unit that runs, 0 for none */
    au64 since;         /* writer: since when, CLOCK_MONOTONIC ns */
    au64 done;          /* writer: units ended */
    au64 lost;          /* writer: events that it could not record */
    uint64_t p;         /* parent, before the writer is there */
    uint64_t kind;      /* parent, before the writer is there: enum kind */
    uint8_t pad[PT_PAGE - 11 * 8];
    uint8_t buffer[2][PT_BUFFER]; /* writer, behind position; coordinator reads what is before */
};

enum kind { KIND_NONE, KIND_THREAD, KIND_WORKER, KIND_GUEST }; /* the last: another thread of a worker */

/* A full block on its way up the pipe: this header, then len bytes. */
struct block_head {
    uint32_t magic, entry, gen, block, len; /* len 0, of a guest: it is gone */
};
#define PT_BLOCK_MAGIC 0x4b4c4254u

/* ---- the stream that an M writes: opcode, time since the last event (or OP_TIME), arguments, all varints -- */
enum op {
    OP_STRING = 1,  /* id, length, bytes */
    OP_STACK,       /* id, n, n x (function, file, line) */
    OP_TIME,        /* ns: the event that follows has this time */
    OP_CREATE = 8,  /* dt, g, start stack, stack */
    OP_BEGIN,       /* dt, g, generation of its creation, start stack */
    OP_END,         /* dt */
    OP_CANCEL,      /* dt, g, generation of its creation, start stack */
    OP_IDLE,        /* dt */
    OP_BLOCK,       /* dt, reason, stack */
    OP_UNBLOCK,     /* dt, g, sequence, blocked in an older generation?, stack */
    OP_RESUME,      /* dt, flags: RESUME_SELF, RESUME_SAME */
    OP_ENTER,       /* dt, g: the thread comes in */
    OP_LEAVE,       /* dt */
    OP_TASK,        /* dt, task, parent, name, stack */
    OP_TASK_END,    /* dt, task, stack */
    OP_REGION,      /* dt, kind, task, name, stack: ours; they nest */
    OP_REGION_END,  /* dt: of the innermost of ours */
    OP_LOG,         /* dt, task, key, length, bytes */
    OP_SPAN,        /* dt, serial, task, name, stack: a region of the user's, which may end in any order */
    OP_SPAN_END,    /* dt, serial */
    OP_SAMPLE,      /* dt, weight, stack: it has computed there for so many periods of the sampler */
    OP_PAUSE,       /* dt, stack: Python's collector begins here */
    OP_PAUSE_END,   /* dt */
    OP_USER_TASK,   /* dt, task, parent, name, stack: one of the user's, which is no job; it ends as one does */
    OP_MAX
};
enum { RESUME_SELF = 1, RESUME_SAME = 2 }; /* nobody else unblocked it / it was unblocked in this generation */
enum region_kind { REGION_USER, REGION_PHASE, REGION_ITEM };

#define PT_STRING_MAX 1024u
#define PT_FRAMES_MAX 128u

static inline uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline uint8_t *put_varint(uint8_t *p, uint64_t v) {
    while (v >= 0x80) {
        *p++ = (uint8_t)v | 0x80;
        v >>= 7;
    }
    *p++ = (uint8_t)v;
    return p;
}

/* Reads one varint from [*p, end); false when it is cut off or longer than 64 bits. */
static inline bool get_varint(const uint8_t **p, const uint8_t *end, uint64_t *out) {
    uint64_t v = 0;
    for (int shift = 0; *p < end && shift < 64; shift += 7) {
        uint8_t b = *(*p)++;
        if (shift == 63 && b > 1) return false;
        v |= (uint64_t)(b & 0x7f) << shift;
        if (b < 0x80) {
            *out = v;
            return true;
        }
    }
    return false;
}

/* ---- arena.c: the mapping of this process, and the registry of its entries -------------------------- */
struct slot {            /* the parent's side of an entry */
    struct entry *entry; /* owned: its mapping */
    uint32_t index;      /* its number, once */
    enum { SLOT_FREE, SLOT_USED } state; /* under registry.lock */
    uint64_t serial;     /* under registry.lock: order of registration */
    uint64_t p;          /* under registry.lock */
    enum kind kind;      /* under registry.lock */
    int pipe;            /* owned: read end, -1 for threads */
    struct slot *host;   /* under registry.lock: the worker whose thread it is, borrowed; guests only */
    uint64_t opened;     /* under registry.lock: when, ns; a guest's: since when it may write */
    void *m;             /* coordinator: its struct mst, owned */
    void *in;            /* coordinator: what was read of its pipe, owned; outlives a trace */
};

struct registry {
    pthread_mutex_t lock;
    struct head *head;   /* owned mapping; NULL when this process has no arena */
    int fd;              /* owned: the arena's file */
    uint64_t epoch;      /* GIL: changes whenever head does; a writer of another epoch is void */
    struct slot **slots; /* under lock; the pointers stay valid until the arena is destroyed */
    uint32_t n, cap;     /* under lock */
    uint64_t serials;    /* under lock */
    uint64_t *p_free;    /* under lock: by P id, since when it is free, ns; P_USED while it is given out */
    uint32_t p_cap;      /* under lock */
};
extern struct registry registry;
extern struct counters *counters; /* GIL: the arena's, or while there is none this process's own */

int arena_create(const char *path);   /* 0, or errno */
void counters_after_fork(void);
void arena_destroy(void);
struct slot *slot_open(enum kind kind, uint64_t p, int pipe, int *index, int *err); /* err: errno of a failure */
void slot_free(struct slot *s);       /* once nobody writes there any more; a thread's P goes back too */
void slot_free_locked(struct slot *s); /* a worker's guests go with it */
void slots_adopt(void);               /* under registry.lock: guests that came since get slots */
void slots_reclaim(void);             /* the same, before a trace starts: of those that left without a word */
struct slot *slot_guest(struct slot *host, uint32_t index); /* of that worker, or NULL */
void slot_close_pipe(struct slot *s);
uint64_t p_alloc(void);
void p_free(uint64_t p);
void p0_take_back(void); /* before a start: the thread that had P 0 in the last trace gets one of its own */
int entry_take(struct head *head, int fd, uint32_t owner, uint32_t *index, struct entry **e); /* 0, or errno */
struct entry *entry_map(int fd, uint32_t index); /* NULL with errno set */
struct head *head_map(int fd);
void entry_init(struct entry *e, const struct head *head, enum kind kind, uint64_t p);

/* ---- coord.c: the coordinator ------------------------------------------------------------------------ */
struct block {           /* a piece of an M's stream that came by pipe or by queue */
    struct block *next;
    struct slot *slot;   /* NULL: buried meanwhile */
    uint32_t gen, block, len;
    bool close;          /* no bytes: the M is gone */
    uint8_t data[];
};
struct block *block_make(const uint8_t *data, uint32_t len); /* a copy; NULL without memory */
/* Puts it into the coordinator's queue, and takes it over; false when no coordinator takes any more: then it is freed. */
bool coord_push(struct block *b, struct slot *s, uint32_t gen, uint32_t block);
void coord_look(void);   /* a worker's pipe has come: it is listened to from now on, not from the next advance */
void coord_cut(void);    /* a piece is lost without which the file makes no sense: it ends here */

#endif
