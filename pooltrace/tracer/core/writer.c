/* Publication: an event is encoded behind the position of its M's word and published by one compare-and-swap.
 *
 *   open      clock, then the generation in force, then the word.  If the word is behind, move it on.  If somebody
 *             else moved it since this thread's last event, read the clock again and see that the generation still
 *             stands: so every time of n+1 is later than every time of n.
 *   publish   compare-and-swap.  It fails when the coordinator has switched, or when an emit nested in this one
 *             (collector callback, Python-level signal handler) has published: then all is done anew.
 *   hand up   a full block goes up the pipe (worker, guest) or into the coordinator's queue (thread of the parent).
 *
 * One thread writes to a word's buffer; the coordinator only reads what lies before a position that it saw.
 */
#include <Python.h>

#include "writer.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

__thread struct writer *tls_writer;

static pthread_key_t thread_end;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void make_key(void) { pthread_key_create(&thread_end, writer_dispose); }

struct writer *writer_get(void) {
    struct writer *w = tls_writer;
    if (w) return w;
    pthread_once(&once, make_key);
    w = calloc(1, sizeof *w);
    if (!w) return NULL;
    if (pthread_setspecific(thread_end, w) != 0) { /* without the destructor its entry would leak */
        free(w);
        return NULL;
    }
    w->kind = KIND_THREAD;
    tls_writer = w;
    return w;
}

bool writer_register(struct writer *w, bool starter) {
    int index, err;
    w->starter = false;
    if (w->kind != KIND_THREAD || !registry.head) return false;
    if (!w->notice && !(w->notice = block_make(NULL, 0))) return false;
    w->notice->close = true;
    uint64_t p = starter ? 0 : p_alloc();
    struct slot *s = slot_open(KIND_THREAD, p, -1, &index, &err);
    if (!s) {
        if (p) p_free(p);
        return false;
    }
    STORE(&s->entry->m, (uint64_t)syscall(SYS_gettid));
    w->slot = s;
    w->head = registry.head;
    w->entry = s->entry;
    w->epoch = registry.epoch;
    w->last_word = 0;
    w->in_first = 0;
    w->seq_gen = 0;
    w->marks_epoch = 0; /* nothing is defined in this entry's stream */
    w->detached = false;
    w->trace = 0;
    w->starter = starter;
    return true;
}

/* The thread ends: its last block goes into the queue, then the notice that it is gone. */
void writer_dispose(void *writer) {
    struct writer *w = writer;
    tls_writer = NULL;
    ticks_drop(w);
    pthread_mutex_lock(&registry.lock); /* the arena stays while we look at it */
    if (w->kind == KIND_THREAD && w->entry && w->epoch == registry.epoch) {
        uint64_t word = LOAD(&w->entry->word);
        uint32_t gen = word_gen(word), len = word_on(word) ? word_pos(word) : 0;
        struct block *rest = len ? block_make(w->entry->buffer[gen & 1], len) : NULL;
        if (rest) coord_push(rest, w->slot, gen, word_block(word));
        else if (len) coord_cut();
        if (!coord_push(w->notice, w->slot, gen, word_block(word))) slot_free_locked(w->slot);
        w->notice = NULL;
    }
    pthread_mutex_unlock(&registry.lock);
    if (w->kind == KIND_GUEST && w->entry) guest_dispose(w);
    if (w->kind == KIND_WORKER && w->entry) home_close();
    free(w->notice);
    free(w->string_mark);
    free(w->stack_mark);
    free(w);
}

/* The child of a fork has no tracer: the mapping is left alone, everything else is forgotten. */
void writer_after_fork(void) {
    struct writer *w = tls_writer;
    home_after_fork();
    ticks_after_fork();
    if (!w) return;
    w->trunk = NULL;
    w->kind = KIND_THREAD;
    w->entry = NULL;
    w->head = NULL;
    w->slot = NULL;
    w->in_first = 0;
    w->marks_epoch = 0;
    w->depth = 0;
    w->starter = false;
    w->detached = false;
    w->tick = 0; /* timers are not inherited */
}

/* Leaves the old word behind and moves on; the coordinator may have done it first. */
static void move_on(struct entry *e, uint64_t word, uint64_t g) {
    STORE(word_on(word) ? &e->left[word_gen(word) & 1] : &e->left_off, word); /* leave first, */
    uint64_t fresh = make_word(word_gen(g), word_on(g), PT_STATE_UNSET);
    pt_pause();
    CAS(&e->word, &word, fresh); /* move second */
}

/* Under the trunk's lock.  False when the generation moved or patience is at its end. */
static bool pipe_write(struct writer *w, const uint8_t **bytes, size_t *len, uint32_t gen) {
    struct trunk *k = w->trunk;
    while (*len > 0) {
        ssize_t n = write(k->fd, *bytes, *len);
        if (n > 0) {
            *bytes += n;
            *len -= (size_t)n;
            continue;
        }
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno != EAGAIN) {
            k->broken = true;
            return false;
        }
        if (word_gen(LOAD(&w->head->gen)) != gen) return false;
        if (k->patience <= 0) {
            w->detached = true;
            return false;
        }
        uint64_t before = now_ns();
        struct pollfd pfd = {.fd = k->fd, .events = POLLOUT};
        if (poll(&pfd, 1, 50) < 0 && errno != EINTR) k->broken = true;
        k->patience -= (int64_t)(now_ns() - before);
        if (k->broken) return false;
    }
    return true;
}

/* A block goes up; false: it did not, since the generation moved, patience is at its end or the pipe broke. */
bool trunk_block(struct writer *w, uint32_t gen, uint32_t block, const uint8_t *bytes, uint32_t len) {
    struct block_head head = {PT_BLOCK_MAGIC, w->index, gen, block, len};
    const uint8_t *h = (const uint8_t *)&head;
    size_t h_len = sizeof head, left = len;
    struct trunk *k = w->trunk;
    pthread_mutex_lock(&k->lock);
    uint64_t first = LOAD(&w->head->first_gen);
    if (first != k->trace) k->trace = first, k->patience = (int64_t)LOAD(&w->head->patience);
    /* The rest of a cut-off block comes first.  Its generation is over, or its bytes still stand. */
    bool ok = !k->broken && (k->debt_len == 0 || pipe_write(w, &k->debt, &k->debt_len, gen));
    if (ok) {
        ok = pipe_write(w, &h, &h_len, gen) && pipe_write(w, &bytes, &left, gen);
        if (!ok && h_len && h_len < sizeof head) k->broken = true; /* half a header: the pipe cannot be mended */
        else if (!ok && !h_len && left) k->debt = bytes, k->debt_len = left;
    }
    if (k->broken) w->detached = true;
    pthread_mutex_unlock(&k->lock);
    return ok;
}

/* A full block goes up; afterwards the word shows the next block, or a newer generation.  Without memory it stays, and
 * what comes is lost: of units that have been created one after the other, those in it are told of, the others are not. */
static bool hand_up(struct writer *w, uint64_t word) {
    uint32_t gen = word_gen(word), len = word_pos(word);
    const uint8_t *bytes = w->entry->buffer[gen & 1];
    if (word_block(word) == 0xffff) w->detached = true; /* four GB in one generation: nobody advances any more */
    if (w->detached) return false;
    if (w->kind == KIND_THREAD) {
        struct block *b = block_make(bytes, len);
        if (!b) atomic_fetch_add_explicit(&w->entry->lost, 1, memory_order_relaxed);
        if (!b || !coord_push(b, w->slot, gen, word_block(word))) return false;
    } else {
        PyThreadState *ts = PyEval_SaveThread();
        bool ok = trunk_block(w, gen, word_block(word), bytes, len);
        PyEval_RestoreThread(ts);
        if (!ok) return !w->detached;
    }
    CAS(&w->entry->word, &word, make_word(gen, true, (word_block(word) + 1) << 16));
    return true;
}

/* Patience is for one trace: in the next one it is tried again, unless the pipe itself broke. */
static bool attach_again(struct writer *w) {
    if (!word_on(LOAD(&w->head->gen))) return false;
    if ((w->trunk && w->trunk->broken) || LOAD(&w->head->first_gen) == w->trace) {
        atomic_fetch_add_explicit(&w->entry->lost, 1, memory_order_relaxed);
        return false;
    }
    w->detached = false;
    return true;
}

int writer_open_anew(struct writer *w, struct event *ev, size_t need) {
    /* Inside an emit Python code may have run (a collector callback): the arena may be gone, or this be a forked child. */
    if (!w->entry || (w->kind == KIND_THREAD && w->epoch != registry.epoch)) return 0;
    if (w->detached && !attach_again(w)) return 0;
    for (;;) {
        uint64_t t = now_ns();
        pt_pause();
        uint64_t g = LOAD(&w->head->gen), word = LOAD(&w->entry->word);
        if (word_gen(word) != word_gen(g)) {
            if (gen_before(word_gen(word), word_gen(g))) move_on(w->entry, word, g);
            continue;
        }
        if (!word_on(word)) return 0;
        if (word_pos(word) + need + 24 > PT_BLOCK) {
            if (!hand_up(w, word)) return 0;
            continue;
        }
        bool whole = word != w->last_word;
        if (whole) { /* somebody published or moved since: keep times in order */
            t = now_ns();
            if (LOAD(&w->head->gen) != g) continue;
            uint64_t trace = LOAD(&w->head->first_gen);
            if (w->trace != trace) ticks_arm(w);
            w->trace = trace;
        }
        ev->word = word;
        ev->whole = whole;
        ev->gen = word_gen(word);
        ev->time = t;
        ev->definition = false;
        ev->start = ev->p = w->entry->buffer[word_gen(word) & 1] + word_pos(word);
        ev->dt = t - w->last_time;
        if (whole) {
            *ev->p++ = OP_TIME;
            ev->p = put_varint(ev->p, t);
            ev->dt = 0;
        }
        return 1;
    }
}

bool writer_off_state(struct writer *w, uint32_t state) {
    for (;;) {
        uint64_t g = LOAD(&w->head->gen), word = LOAD(&w->entry->word);
        if (word_gen(word) != word_gen(g)) {
            if (gen_before(word_gen(word), word_gen(g))) move_on(w->entry, word, g);
            continue;
        }
        if (word_on(word)) return false;
        pt_pause();
        if (CAS(&w->entry->word, &word, make_word(word_gen(word), false, state))) return true;
    }
}
