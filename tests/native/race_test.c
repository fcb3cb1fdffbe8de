/* Everything that may happen at the same time, at the same time: for ThreadSanitizer, and for the file's form.
 *
 *   main      starts and stops traces, one after the other, with a reader each; period 0 or 1 ms
 *   engines   each has a slot: opens an entry, lets a worker run units in it, buries it (killed, ended, with a claim)
 *             and fills the slot again, whether a trace is on or not; the first one's workers have threads of their own
 *   threads   of the parent that come in, write, leave or not, and end; how much they wrote into which generation is
 *             counted, and held against the file
 *
 * usage: race_test [-traces N] [-seed N] [-limit S] [-fail N] [-starve N] [-o PREFIX]
 *   -fail    of the coordinator's calls for memory one in N fails, at random; a file may be cut off then, but not be wrong
 *   -starve  the same for the parent's threads that write
 *   -o       the files are PREFIX0.trace, PREFIX1.trace, ...
 * Exit status: 0 fine, 1 a file is wrong, 2 the test could not be done; ThreadSanitizer has one of its own.
 */
#include "actors.h"
#include "wire.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define ENGINES 3
#define SPAWNERS 2
#define GUESTS 3

static struct {
    uint64_t traces, seed;
    uint32_t limit, fail, starve;
    const char *out;
} options = {.traces = 50, .seed = 1, .limit = 300};
static char arena_path[64];
static au64 over;     /* the main thread has made its traces */
static au64 buried, ended_threads, ended_guests;

/* ---- memory, which may be short ---- */
void *__real_malloc(size_t n), *__real_calloc(size_t n, size_t size), *__real_realloc(void *p, size_t n);
void *__wrap_malloc(size_t n), *__wrap_calloc(size_t n, size_t size), *__wrap_realloc(void *p, size_t n);
static __thread bool spared; /* the test's own calls; the coordinator's never are */
static __thread bool writing;
static au64 failures;

static bool fails(void) {
    static __thread uint64_t random;
    static au64 threads;
    uint32_t one_in = writing ? options.starve : options.fail;
    if ((spared && !starting) || !one_in) return false;
    if (!random) random = options.seed * 1000 + atomic_fetch_add(&threads, 1) + 1;
    if (random_below(&random, one_in) != 0) return false;
    atomic_fetch_add(&failures, 1);
    return true;
}

void *__wrap_malloc(size_t n) { return fails() ? NULL : __real_malloc(n); }
void *__wrap_calloc(size_t n, size_t size) { return fails() ? NULL : __real_calloc(n, size); }
void *__wrap_realloc(void *p, size_t n) { return fails() ? NULL : __real_realloc(p, n); }

/* As `say`, with what the core asks for while a block is handed up. */
static bool say_meagrely(struct writer *w, enum op op, const uint64_t *args, int n) {
    writing = true;
    spared = false;
    bool said = say(w, op, args, n);
    spared = true;
    return said;
}

/* ---- units that threads have created, for workers: the low half of a G's id, and the generation ---- */
static au64 offers[16];

static void offer(uint64_t *random, const struct writer *w, uint64_t g) {
    STORE(&offers[random_below(random, 16)], g << 32 | word_gen(w->last_word));
}

/* ---- workers and their burial ---- */
struct engine {
    uint32_t number;
    uint64_t random;
    uint64_t p;
    struct actor worker;
    uint64_t last_g;
    uint32_t name_gen; /* in which the item's name is defined in the worker's stream */
};

static void unit(struct engine *e, struct writer *w) {
    uint64_t offered = atomic_exchange(&offers[random_below(&e->random, 16)], 0);
    uint64_t g = e->last_g = offered ? offered >> 32 : atomic_fetch_add(&counters->g, 1), begin[3] = {g, offered & UINT32_MAX, 0};
    while (!writer_off_state(w, PT_STATE_RUN | ((uint32_t)g & PT_UNIT_MASK)))
        if (w->detached || say(w, OP_BEGIN, begin, 3)) break;
    for (uint32_t n = random_below(&e->random, 40); n > 0; n--)
        if (say_region(w, &e->name_gen, REGION_ITEM, "item")) say(w, OP_REGION_END, NULL, 0);
}

static void unit_over(struct writer *w) {
    while (!writer_off_state(w, PT_STATE_IDLE))
        if (w->detached || say(w, OP_END, NULL, 0)) break;
    say(w, OP_IDLE, NULL, 0);
}

/* ---- threads of a worker: the state of guest.c is a process's, so one worker at a time has them ---- */
static pthread_mutex_t workers_gil = PTHREAD_MUTEX_INITIALIZER;

static void *guest_life(void *arg) {
    uint64_t random = (uint64_t)(uintptr_t)arg;
    uint32_t name_gen = 0;
    spared = true;
    struct writer *w = writer_get();
    if (!w) die("writer_get");
    pthread_mutex_lock(&workers_gil);
    bool in = guest_register(w);
    pthread_mutex_unlock(&workers_gil);
    for (uint32_t calls = random_below(&random, 4); in && calls > 0; calls--) {
        uint64_t g = atomic_fetch_add(&counters->g, 1);
        if (!say(w, OP_ENTER, &g, 1)) continue;
        for (uint32_t n = random_below(&random, random_below(&random, 20) ? 40 : 20000); n > 0; n--) /* or some blocks */
            if (say_region(w, &name_gen, REGION_USER, "guest")) say(w, OP_REGION_END, NULL, 0);
        say(w, OP_LEAVE, NULL, 0);
    }
    atomic_fetch_add(&ended_guests, 1);
    return NULL;
}

static void home_attach(struct actor *a) {
    a->w = &a->own;
    pthread_mutex_lock(&workers_gil);
    errno = home_open(a->w, registry.head, registry.fd, a->slot->entry, (uint32_t)a->index, a->pipe);
    pthread_mutex_unlock(&workers_gil);
    if (errno) die("home_open");
    close(a->pipe);
}

static void home_detach(struct actor *a) {
    pthread_mutex_lock(&workers_gil);
    home_close();
    pthread_mutex_unlock(&workers_gil);
    a->own.entry = NULL;
}

static void *worker_life(void *arg) {
    struct engine *e = arg;
    struct actor *a = &e->worker;
    bool home = e->number == 0;
    pthread_t guests[GUESTS];
    spared = true;
    if (home) home_attach(a);
    else worker_attach(a, arena_path, false);
    for (uint32_t i = 0; home && i < GUESTS; i++)
        if (pthread_create(&guests[i], NULL, guest_life, (void *)(uintptr_t)random_below(&e->random, 1u << 30))) die("pthread_create");
    e->name_gen = 0;
    e->last_g = 0;
    for (uint32_t units = random_below(&e->random, 30); units > 0; units--) {
        unit(e, a->w);
        if (random_below(&e->random, 20) == 0) break; /* killed at work */
        unit_over(a->w);
        if (random_below(&e->random, 10) == 0) usleep(random_below(&e->random, 500));
    }
    for (uint32_t i = 0; home && i < GUESTS; i++) pthread_join(guests[i], NULL);
    if (home) home_detach(a);
    else worker_detach(a);
    return NULL;
}

static void *engine(void *arg) {
    struct engine *e = arg;
    spared = true;
    while (!LOAD(&over)) {
        pthread_t life;
        gil_take();
        worker_open(&e->worker, e->p);
        gil_drop();
        if (pthread_create(&life, NULL, worker_life, e)) die("pthread_create");
        pthread_join(life, NULL);
        uint32_t how = random_below(&e->random, 3);
        struct named_unit claimed = {.g = how == 2 && e->last_g ? e->last_g : atomic_fetch_add(&counters->g, 1), .function = "f", .function_len = 1,
                                     .file = "f.c", .file_len = 3, .line = 1};
        coord_gone(e->worker.slot, how ? "was killed by SIGKILL" : NULL, how ? &claimed : NULL, 0);
        atomic_fetch_add(&buried, 1);
    }
    return NULL;
}

/* ---- threads of the parent ---- */
static uint64_t written[1u << 16]; /* GIL: events of a kind that nobody else writes, by generation */

static void *thread_life(void *arg) {
    uint64_t random = (uint64_t)(uintptr_t)arg;
    spared = true;
    gil_take();
    struct writer *w = writer_get();
    for (int calls = (int)random_below(&random, 4); w && calls > 0; calls--) {
        if (!writer_valid(w) && !writer_register(w, false)) die("writer_register");
        uint64_t g = atomic_fetch_add(&counters->g, 1), first = LOAD(&w->head->first_gen), made[3] = {0, 0, 0};
        if (w->in_first != first || first == 0) {
            if (!say_meagrely(w, OP_ENTER, &g, 1)) break;
            w->in_first = first;
        }
        for (uint32_t n = random_below(&random, random_below(&random, 30) ? 100 : 20000); n > 0; n--) { /* or some blocks */
            made[0] = atomic_fetch_add(&counters->g, 1);
            if (say_meagrely(w, OP_CREATE, made, 3)) offer(&random, w, made[0]);
        }
        if (say_meagrely(w, OP_TASK_END, made, 2)) written[word_gen(w->last_word) & 0xffff]++;
        if (random_below(&random, 2) && say_meagrely(w, OP_LEAVE, NULL, 0)) w->in_first = 0;
        gil_drop();
        usleep(random_below(&random, 300));
        gil_take();
    }
    gil_drop();
    spared = random_below(&random, 50) != 0; /* for the writer's end: what is lost there cuts the file */
    writing = true;
    return NULL;
}

static void *spawner(void *arg) {
    uint64_t random = (uint64_t)(uintptr_t)arg;
    spared = true;
    while (!LOAD(&over)) {
        pthread_t life;
        if (pthread_create(&life, NULL, thread_life, (void *)(uintptr_t)random_below(&random, 1u << 30))) die("pthread_create");
        pthread_join(life, NULL);
        atomic_fetch_add(&ended_threads, 1);
    }
    return NULL;
}

/* ---- traces ---- */
struct reading {
    struct wire wire;
    uint64_t errors; /* before its end */
    uint64_t found;  /* of what was written */
    FILE *out;
};

static void count_event(void *arg, const struct wire_event *e) {
    struct reading *r = arg;
    r->found += e->type == GoUserTaskEnd;
}

static void *read_all(void *arg) {
    struct reading *r = arg;
    uint8_t *bytes;
    size_t len;
    spared = true;
    while ((bytes = next_piece(&len))) {
        wire_feed(&r->wire, bytes, len);
        if (r->out && fwrite(bytes, 1, len, r->out) != len) die("write");
        free(bytes);
    }
    r->errors = r->wire.errors;
    wire_end(&r->wire);
    return NULL;
}

struct totals {
    uint64_t generations, events, errors, lost, cut, refused;
};

static void one_trace(uint64_t number, uint64_t *random, struct totals *t) {
    static const int headers[] = {26, 26, 25, 23, 22};
    int header = headers[random_below(random, 5)];
    struct reading r = {0};
    char path[300];
    pthread_t reader;
    wire_init(&r.wire, header);
    r.wire.event = count_event;
    r.wire.arg = &r;
    snprintf(path, sizeof path, "%s%llu.trace", options.out ? options.out : "", (unsigned long long)number);
    if (options.out && !(r.out = fopen(path, "wb"))) die(path);
    gil_take();
    bool started = start_trace(header, random_below(random, 2) ? 0 : 1000000);
    gil_drop();
    if (!started) {
        t->refused++;
        if (r.out && fclose(r.out)) die(path);
        wire_free(&r.wire);
        return;
    }
    if (pthread_create(&reader, NULL, read_all, &r)) die("pthread_create");
    usleep(random_below(random, 20000));
    gil_take();
    say(writer_get(), OP_CREATE, (uint64_t[]){atomic_fetch_add(&counters->g, 1), 0, 0}, 3);
    if (random_below(random, 2)) {
        gil_drop();
        coord_advance(1000000000);
        gil_take();
    }
    coord_stop_request();
    gil_drop();
    while (!coord_stopped(1000000000)) {}
    pthread_join(reader, NULL);
    coord_join();
    gil_take();
    t->generations += r.wire.generations;
    t->events += r.wire.events;
    t->lost += coord_merge()->lost_events;
    uint64_t noted = 0;
    for (uint32_t gen = coord_merge()->first_gen; gen <= r.wire.last_gen; gen++) noted += written[gen & 0xffff];
    if (noted != r.found && !options.fail && !options.starve)
        wire_fail(&r.wire, "%llu events were written, %llu are there", (unsigned long long)noted, (unsigned long long)r.found);
    bool cut = coord_merge()->failed && (options.fail || options.starve);
    uint64_t errors = cut ? r.errors : r.wire.errors + coord_merge()->failed;
    t->errors += errors;
    t->cut += cut;
    gil_drop();
    if (errors) fprintf(stderr, "trace %llu (1.%d): %s\n", (unsigned long long)number, header, r.wire.error);
    if (r.out && fclose(r.out)) die(path);
    wire_free(&r.wire);
    usleep(random_below(random, 2000));
}

static void options_read(int argc, char **argv) {
    for (int i = 1; i < argc; i += 2) {
        uint64_t value = i + 1 < argc ? strtoull(argv[i + 1], NULL, 10) : 0;
        if (i + 1 < argc && !strcmp(argv[i], "-traces")) options.traces = value;
        else if (i + 1 < argc && !strcmp(argv[i], "-seed")) options.seed = value;
        else if (i + 1 < argc && !strcmp(argv[i], "-limit")) options.limit = (uint32_t)value;
        else if (i + 1 < argc && !strcmp(argv[i], "-fail")) options.fail = (uint32_t)value;
        else if (i + 1 < argc && !strcmp(argv[i], "-starve")) options.starve = (uint32_t)value;
        else if (i + 1 < argc && !strcmp(argv[i], "-o")) options.out = argv[i + 1];
        else {
            fputs("usage: race_test [-traces N] [-seed N] [-limit S] [-fail N] [-starve N] [-o PREFIX]\n", stderr);
            exit(2);
        }
    }
}

int main(int argc, char **argv) {
    spared = true;
    options_read(argc, argv);
    alarm(options.limit);
    if ((errno = arena_open_temp(arena_path, sizeof arena_path))) die(arena_path);
    unlink(arena_path); /* everybody is in this process */
    pthread_t engines[ENGINES], spawners[SPAWNERS];
    static struct engine e[ENGINES];
    for (uint32_t i = 0; i < ENGINES; i++) {
        e[i] = (struct engine){.number = i, .random = options.seed * 100 + i, .p = p_alloc()};
        if (pthread_create(&engines[i], NULL, engine, &e[i])) die("pthread_create");
    }
    for (uint32_t i = 0; i < SPAWNERS; i++)
        if (pthread_create(&spawners[i], NULL, spawner, (void *)(uintptr_t)(options.seed * 100 + 50 + i))) die("pthread_create");
    uint64_t random = options.seed;
    struct totals t = {0};
    for (uint64_t i = 0; i < options.traces; i++) one_trace(i, &random, &t);
    STORE(&over, 1);
    for (uint32_t i = 0; i < ENGINES; i++) pthread_join(engines[i], NULL);
    for (uint32_t i = 0; i < SPAWNERS; i++) pthread_join(spawners[i], NULL);
    printf("race_test: seed %llu: %llu traces, %llu generations, %llu events, %llu workers buried, %llu threads ended, "
           "%llu guests ended, %llu lost, "
           "%llu allocations failed, %llu starts refused, %llu cut, %llu errors\n",
           (unsigned long long)options.seed, (unsigned long long)options.traces, (unsigned long long)t.generations,
           (unsigned long long)t.events, (unsigned long long)LOAD(&buried), (unsigned long long)LOAD(&ended_threads),
           (unsigned long long)LOAD(&ended_guests),
           (unsigned long long)t.lost, (unsigned long long)LOAD(&failures), (unsigned long long)t.refused,
           (unsigned long long)t.cut, (unsigned long long)t.errors);
    return t.errors || (t.lost && !options.fail && !options.starve);
}
