/* The state test: a trace that starts while work is under way knows of each unit once, from the exchange or from its event.
 *
 * Workers begin and end units all the time, and note how each was said: by the state in their word (no trace was on),
 * or by an event of a generation.  The main thread starts and stops traces, one after the other, and holds each file
 * against the notes: a unit that ended in it is there, by its start if it began in it, by its status if it began before.
 *
 * usage: state_test [-starts N] [-seed N] [-limit S]
 * Exit status: 0 fine, 1 a rule is broken, 2 the test could not be done.
 */
#include "actors.h"
#include "wire.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define WORKERS 3
#define NOTES (1u << 16) /* units of one worker that are remembered */

static struct {
    uint64_t starts, seed;
    uint32_t limit;
} options = {.starts = 2000, .seed = 1, .limit = 300};

struct note {
    au64 begin, end; /* the generation of its event; 0: said by a state */
};

static struct worker {
    struct actor actor;
    uint32_t number;
    au64 m;          /* thread id */
    au64 ended;      /* units: the notes of those up to here are whole */
    struct note notes[NOTES];
} workers[WORKERS];
static au64 over;

/* Of worker w the k-th unit, from 1. */
static uint64_t unit_id(uint32_t w, uint64_t k) { return k * WORKERS + w; }
static struct note *note_of(struct worker *w, uint64_t k) { return &w->notes[k % NOTES]; }

/* By a state or by an event: its generation, or 0. */
static uint64_t said(struct writer *w, uint32_t state, enum op op, const uint64_t *args, int n) {
    while (!writer_off_state(w, state))
        if (say(w, op, args, n)) return word_gen(w->last_word);
    return 0;
}

static void *work(void *arg) {
    struct worker *me = arg;
    uint64_t random = options.seed * 10 + me->number;
    worker_attach(&me->actor, NULL, false);
    struct writer *w = me->actor.w;
    STORE(&me->m, LOAD(&w->entry->m));
    for (uint64_t k = 1; !LOAD(&over); k++) {
        uint64_t g = unit_id(me->number, k), begin[3] = {g, 0, 0};
        STORE(&note_of(me, k)->begin, said(w, PT_STATE_RUN | ((uint32_t)g & PT_UNIT_MASK), OP_BEGIN, begin, 3));
        if (random_below(&random, 4) == 0) sched_yield();
        if (random_below(&random, 200) == 0) usleep(random_below(&random, 3000)); /* over a whole trace, or between two */
        STORE(&note_of(me, k)->end, said(w, PT_STATE_IDLE, OP_END, NULL, 0));
        STORE(&me->ended, k);
        if (random_below(&random, 4) == 0) say(w, OP_IDLE, NULL, 0);
        if (random_below(&random, 50) == 0) usleep(random_below(&random, 300));
    }
    worker_detach(&me->actor);
    return NULL;
}

/* ---- one trace ---- */
struct seen {
    uint64_t first, last;   /* units; 0: none so far */
    bool by_status;         /* the first one */
    bool open;              /* the last one has not ended */
};

struct trace {
    struct wire wire;
    uint64_t gen;           /* the first */
    struct seen seen[WORKERS];
};

static void on_event(void *arg, const struct wire_event *e) {
    struct trace *t = arg;
    bool status = e->type == GoGoStatus || e->type == GoGoStatusStack, start = e->type == GoGoStart;
    if (!t->gen) t->gen = e->gen;
    uint32_t i = 0;
    while (i < WORKERS && LOAD(&workers[i].m) != e->m) i++;
    if (i == WORKERS) return;
    struct seen *s = &t->seen[i];
    if (e->type == GoGoDestroy) {
        if (!s->open) wire_fail(&t->wire, "worker %u: an end of nothing", i);
        s->open = false;
    }
    if (!start && !(status && e->args[2] == G_RUNNING)) return;
    uint64_t k = (e->args[0] - i) / WORKERS;
    if (status && s->open && k == s->last) return; /* again, in the next generation */
    if (e->args[0] % WORKERS != i || s->open || (s->last && k != s->last + 1) || (status && s->last))
        wire_fail(&t->wire, "worker %u: unit %llu %s after unit %llu", i, (unsigned long long)k, status ? "runs" : "starts",
                  (unsigned long long)s->last);
    if (!s->last) {
        s->first = k;
        s->by_status = status;
    }
    s->last = k;
    s->open = true;
}

/* What worker i noted, for the units around those that were seen; the one that may still run is left out. */
static void compare(struct trace *t, uint32_t i, uint64_t last_gen) {
    struct worker *w = &workers[i];
    struct seen *s = &t->seen[i];
    uint64_t ended = LOAD(&w->ended), from = s->first > 1 ? s->first - 1 : 1;
    if (!s->last) from = ended > 100 ? ended - 100 : 1;
    for (uint64_t k = from; k <= ended; k++) {
        uint64_t begin = LOAD(&note_of(w, k)->begin), end = LOAD(&note_of(w, k)->end);
        bool inside = s->last && k >= s->first && k <= s->last;
        bool began = begin >= t->gen && begin <= last_gen, finished = end >= t->gen && end <= last_gen;
        if ((began || finished) && !inside)
            wire_fail(&t->wire, "worker %u: unit %llu is not there", i, (unsigned long long)k);
        if (!inside) continue;
        if (began == (k == s->first && s->by_status))
            wire_fail(&t->wire, "worker %u: unit %llu began %s the trace, the file says otherwise", i, (unsigned long long)k, began ? "in" : "before");
        bool open = k == s->last && s->open;
        if (finished == open)
            wire_fail(&t->wire, "worker %u: unit %llu ended %s the trace, the file says otherwise", i, (unsigned long long)k, finished ? "in" : "after");
    }
}

static uint64_t one_trace(uint64_t *random, uint64_t *units) {
    static const int headers[] = {26, 25, 23, 22};
    int header = headers[random_below(random, 4)];
    struct trace t = {0};
    wire_init(&t.wire, header);
    t.wire.event = on_event;
    t.wire.arg = &t;
    gil_take();
    start_trace(header, random_below(random, 3) ? 1000000000 : 200000);
    gil_drop();
    if (random_below(random, 2)) usleep(random_below(random, 1000));
    coord_stop_request();
    uint8_t *bytes;
    size_t len;
    while ((bytes = next_piece(&len))) {
        wire_feed(&t.wire, bytes, len);
        free(bytes);
    }
    wire_end(&t.wire);
    uint64_t last_gen = t.wire.last_gen;
    coord_join();
    for (uint32_t i = 0; i < WORKERS; i++) {
        compare(&t, i, last_gen);
        if (t.seen[i].last) *units += t.seen[i].last - t.seen[i].first + 1;
    }
    if (t.wire.errors) fprintf(stderr, "1.%d: %s\n", header, t.wire.error);
    uint64_t errors = t.wire.errors + coord_merge()->failed + coord_merge()->lost_events;
    wire_free(&t.wire);
    return errors;
}

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i += 2) {
        uint64_t value = i + 1 < argc ? strtoull(argv[i + 1], NULL, 10) : 0;
        if (i + 1 < argc && !strcmp(argv[i], "-starts")) options.starts = value;
        else if (i + 1 < argc && !strcmp(argv[i], "-seed")) options.seed = value;
        else if (i + 1 < argc && !strcmp(argv[i], "-limit")) options.limit = (uint32_t)value;
        else {
            fputs("usage: state_test [-starts N] [-seed N] [-limit S]\n", stderr);
            return 2;
        }
    }
    alarm(options.limit);
    char path[64];
    if ((errno = arena_open_temp(path, sizeof path))) die(path);
    unlink(path); /* everybody is in this process */
    STORE(&counters->g, (uint64_t)1 << 30); /* newer than any unit here */
    pthread_t threads[WORKERS];
    for (uint32_t i = 0; i < WORKERS; i++) {
        workers[i].number = i;
        worker_open(&workers[i].actor, p_alloc());
        if (pthread_create(&threads[i], NULL, work, &workers[i])) die("pthread_create");
    }
    uint64_t random = options.seed, errors = 0, units = 0, starts = 0;
    for (; starts < options.starts && !errors; starts++) errors += one_trace(&random, &units);
    STORE(&over, 1);
    for (uint32_t i = 0; i < WORKERS; i++) pthread_join(threads[i], NULL);
    printf("state_test: seed %llu: %llu starts, %llu units seen, %llu errors\n", (unsigned long long)options.seed, (unsigned long long)starts,
           (unsigned long long)units, (unsigned long long)errors);
    return errors != 0;
}
