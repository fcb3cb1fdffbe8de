/* The switch test: no event is lost, doubled, out of order or outside of its generation, however often that changes.
 *
 * Writers (processes, and threads of the parent) number their events; each event also says in which generation it was
 * encoded, and at which time is noted beside it.  The coordinator advances as fast as the file is read; the reader parses it and holds every event against
 * the number that is due.  Writers pause at random between encoding and publishing, nest one event in another, fill
 * blocks, and are stopped by signals; the reader is slow at times, so that generations grow.
 *
 * With a core that is broken on purpose it must fail (tests/test_native.py): then it sees what it is for.
 *
 * usage: switch_test [-switches N] [-workers N] [-threads N] [-in-threads] [-seed N] [-ahead N] [-limit S] [-o FILE]
 *   -in-threads  the workers are threads too: one process, for ThreadSanitizer
 *   -ahead       events that the writers may be ahead of the reader (60,000): bounds the memory; few, so that a slow
 *                build has short generations
 *   -limit       seconds after which the test ends by SIGALRM (300)
 * Exit status: 0 fine, 1 a rule is broken, 2 the test could not be done.
 */
#include "actors.h"
#include "wire.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define WRITERS_MAX 16
#define ID_MARK ((uint64_t)1 << 62)
#define TIMES (1u << 18) /* more than any writer can be ahead */
#define MOVED 1000       /* ns that an event may be later in the file: the merge keeps times apart */

static uint64_t make_id(uint32_t writer, uint32_t gen, uint64_t seq) {
    return ID_MARK | (uint64_t)writer << 54 | (uint64_t)(gen & 0x3ff) << 44 | seq;
}

struct shared {                 /* between processes */
    au64 stamp;                 /* the newest generation in which anything was published */
    au64 published, checked;    /* events */
    au64 early;                 /* effects older than their cause */
    au64 by[WRITERS_MAX];       /* published, by writer */
    au64 refused[WRITERS_MAX];  /* it stopped though the trace was on */
    au64 times[WRITERS_MAX][TIMES]; /* of the events, by number */
};
static struct shared *shared;

static struct {
    uint64_t switches, seed;
    uint32_t workers, threads, limit, ahead;
    bool in_threads;
    const char *out;
} options = {.switches = 2000, .seed = 1, .workers = 3, .threads = 1, .limit = 300, .ahead = 60000};
static char arena_path[64];
static struct actor actors[WRITERS_MAX];

/* ---- the writers ---- */
struct speaker {
    uint32_t number;
    struct writer *w;
    uint64_t next;      /* number of its next event */
    uint32_t key_gen;   /* the generation in which its key and its text are defined */
    uint64_t random;
    int depth;
};
static char long_text[1001];

static void pause_a_while(struct speaker *s) {
    uint32_t dice = random_below(&s->random, 4096);
    if (dice == 0) usleep(random_below(&s->random, 2000));
    else if (dice < 40) sched_yield();
    else if (dice < 400)
        for (volatile uint32_t i = random_below(&s->random, 300); i > 0; i--) {}
}

static bool define_key(struct speaker *s) {
    struct event ev;
    do {
        if (!writer_open(s->w, &ev, 32)) return false;
        ev.definition = true;
        *ev.p++ = OP_STRING;
        *ev.p++ = 1;
        *ev.p++ = 3;
        memcpy(ev.p, "key", 3);
        ev.p += 3;
        pause_a_while(s);
    } while (!writer_publish(s->w, &ev));
    s->key_gen = ev.gen;
    return true;
}

static void encode(struct speaker *s, struct event *ev, bool log, size_t text) {
    uint64_t id = make_id(s->number, ev->gen, s->next);
    *ev->p++ = log ? OP_LOG : OP_CREATE;
    ev->p = put_varint(ev->p, ev->dt);
    ev->p = put_varint(ev->p, id);
    *ev->p++ = log ? 1 : 0;
    if (!log) {
        *ev->p++ = 0;
        return;
    }
    ev->p = put_varint(ev->p, text);
    memcpy(ev->p, long_text, text);
    ev->p += text;
}

static bool speak(struct speaker *s) {
    bool log = random_below(&s->random, 8) == 0;
    size_t text = !log ? 0 : random_below(&s->random, 4) == 0 ? 1000 : 8;
    struct event ev;
    for (;;) {
        uint64_t stamp = LOAD(&shared->stamp); /* whatever was published there came before us */
        if (!writer_open(s->w, &ev, 64 + text)) return false;
        if (log && s->key_gen != ev.gen) {
            if (!define_key(s)) return false;
            continue;
        }
        uint64_t mine = s->next;
        encode(s, &ev, log, text);
        pause_a_while(s);
        if (s->depth == 0 && random_below(&s->random, 64) == 0) { /* as a collector callback does */
            s->depth++;
            bool said = speak(s);
            s->depth--;
            if (!said) return false;
        }
        if (s->next == mine) STORE(&shared->times[s->number][mine % TIMES], ev.time); /* else a nested one has that number */
        if (!writer_publish(s->w, &ev)) continue;
        s->next = mine + 1;
        if (gen_before(ev.gen, (uint32_t)stamp)) atomic_fetch_add(&shared->early, 1);
        while (gen_before((uint32_t)stamp, ev.gen) && !CAS(&shared->stamp, &stamp, ev.gen)) {}
        break;
    }
    atomic_fetch_add(&shared->by[s->number], 1);
    atomic_fetch_add(&shared->published, 1);
    return true;
}

static bool tracing(struct speaker *s) { return word_on(LOAD(&s->w->head->gen)); }

static void speak_until_the_end(struct speaker *s, bool thread) {
    while (!tracing(s)) usleep(200);
    bool on = true;
    while (on) {
        if (thread) gil_take();
        for (int i = 0; on && i < 100; i++) on = speak(s);
        if (thread) gil_drop();
        while (on && LOAD(&shared->published) > LOAD(&shared->checked) + options.ahead && tracing(s)) usleep(100);
    }
    if (tracing(s)) STORE(&shared->refused[s->number], 1);
}

static void run_worker(uint32_t number, bool forked) {
    struct actor *a = &actors[number];
    worker_attach(a, arena_path, forked);
    struct speaker s = {.number = number, .w = a->w, .random = options.seed * 1000 + number};
    while (!tracing(&s)) usleep(200);
    uint64_t begin[3] = {1000 + number, 0, 0};
    say(a->w, OP_BEGIN, begin, 3);
    speak_until_the_end(&s, false);
}

static void *worker_thread(void *arg) {
    uint32_t number = (uint32_t)(uintptr_t)arg;
    run_worker(number, false);
    worker_detach(&actors[number]);
    return NULL;
}

static void *parent_thread(void *arg) {
    uint32_t number = (uint32_t)(uintptr_t)arg;
    gil_take();
    struct writer *w = writer_get();
    if (!w || !writer_register(w, false)) die("writer_register");
    struct speaker s = {.number = number, .w = w, .random = options.seed * 1000 + number};
    gil_drop();
    while (!tracing(&s)) usleep(200);
    uint64_t id = 1000 + number;
    gil_take();
    say(w, OP_ENTER, &id, 1);
    gil_drop();
    speak_until_the_end(&s, true);
    gil_take(); /* a thread ends with the GIL in hand, or after it */
    gil_drop();
    return NULL;
}

/* ---- the reader ---- */
struct reader {
    struct wire wire;
    uint64_t next[WRITERS_MAX];
    uint64_t disordered, elsewhere, moved;
    au64 generations; /* for the thread that waits for so many */
    FILE *out;
};

static void check_event(void *arg, const struct wire_event *e) {
    struct reader *r = arg;
    uint64_t id = e->args[0];
    if ((e->type != 14 && e->type != 44) || !(id & ID_MARK)) return;
    uint32_t writer = (uint32_t)(id >> 54) & 0xff;
    uint64_t seq = id & (((uint64_t)1 << 44) - 1);
    if (writer >= options.workers + options.threads) {
        wire_fail(&r->wire, "an event of writer %u", writer);
        return;
    }
    if (((id >> 44) & 0x3ff) != (e->gen & 0x3ff)) {
        r->elsewhere++;
        wire_fail(&r->wire, "event %llu of writer %u is not where it was written", (unsigned long long)seq, writer);
    }
    if (seq != r->next[writer]) {
        r->disordered++;
        wire_fail(&r->wire, "writer %u: event %llu, where %llu is due", writer, (unsigned long long)seq,
                  (unsigned long long)r->next[writer]);
    }
    uint64_t noted = LOAD(&shared->times[writer][seq % TIMES]);
    if (e->time < noted || e->time > noted + MOVED) {
        r->moved++;
        wire_fail(&r->wire, "event %llu of writer %u is %lld ns later than it was", (unsigned long long)seq, writer, (long long)(e->time - noted));
    }
    r->next[writer] = seq + 1;
    atomic_fetch_add(&shared->checked, 1);
}

static void *read_all(void *arg) {
    struct reader *r = arg;
    uint64_t random = options.seed;
    uint8_t *bytes;
    size_t len;
    while ((bytes = next_piece(&len))) {
        wire_feed(&r->wire, bytes, len);
        if (r->out && fwrite(bytes, 1, len, r->out) != len) die("write");
        free(bytes);
        STORE(&r->generations, r->wire.generations);
        if (random_below(&random, 500) == 0) usleep(5000);
    }
    wire_end(&r->wire);
    return NULL;
}

/* ---- the test ---- */
static void options_read(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "-in-threads")) {
            options.in_threads = true;
            continue;
        }
        if (i + 1 == argc) goto usage;
        uint64_t value = strtoull(argv[i + 1], NULL, 10);
        if (!strcmp(argv[i], "-switches")) options.switches = value;
        else if (!strcmp(argv[i], "-workers")) options.workers = (uint32_t)value;
        else if (!strcmp(argv[i], "-threads")) options.threads = (uint32_t)value;
        else if (!strcmp(argv[i], "-seed")) options.seed = value;
        else if (!strcmp(argv[i], "-ahead")) options.ahead = (uint32_t)value;
        else if (!strcmp(argv[i], "-limit")) options.limit = (uint32_t)value;
        else if (!strcmp(argv[i], "-o")) options.out = argv[i + 1];
        else goto usage;
        i++;
    }
    if (options.workers + options.threads <= WRITERS_MAX) return;
usage:
    fputs("usage: switch_test [-switches N] [-workers N] [-threads N] [-in-threads] [-seed N] [-ahead N] [-limit S] [-o FILE]\n", stderr);
    exit(2);
}

static void start_workers(pid_t *pids, pthread_t *threads) {
    for (uint32_t i = 0; i < options.workers; i++) {
        worker_open(&actors[i], p_alloc());
        if (options.in_threads) {
            if (pthread_create(&threads[i], NULL, worker_thread, (void *)(uintptr_t)i)) die("pthread_create");
            continue;
        }
        pids[i] = fork();
        if (pids[i] < 0) die("fork");
        if (pids[i] == 0) {
            alarm(options.limit);
            run_worker(i, true);
            _exit(0);
        }
        close(actors[i].pipe);
    }
    for (uint32_t i = options.workers; i < options.workers + options.threads; i++)
        if (pthread_create(&threads[i], NULL, parent_thread, (void *)(uintptr_t)i)) die("pthread_create");
}

static uint32_t end_workers(const pid_t *pids, const pthread_t *threads) {
    uint32_t failed = 0;
    for (uint32_t i = 0; i < options.workers + options.threads; i++) {
        int status = 0;
        if (options.in_threads || i >= options.workers) pthread_join(threads[i], NULL);
        else if (waitpid(pids[i], &status, 0) < 0 || status != 0) failed++;
    }
    return failed;
}

/* Until there were so many switches; workers are stopped for a moment now and then. */
static void wait_for_switches(struct reader *r, const pid_t *pids) {
    uint64_t random = options.seed + 1;
    while (LOAD(&r->generations) < options.switches) {
        usleep(10000);
        if (options.in_threads || !options.workers || random_below(&random, 4)) continue;
        pid_t pid = pids[random_below(&random, options.workers)];
        kill(pid, SIGSTOP);
        usleep(random_below(&random, 3000));
        kill(pid, SIGCONT);
    }
}

static uint64_t report(struct reader *r, uint32_t failed) {
    uint64_t missing = 0, refused = 0, events = LOAD(&shared->published), lost = coord_merge()->lost_events;
    for (uint32_t i = 0; i < options.workers + options.threads; i++) {
        uint64_t said = LOAD(&shared->by[i]);
        missing += said != r->next[i];
        refused += LOAD(&shared->refused[i]);
    }
    uint64_t early = LOAD(&shared->early);
    uint64_t errors = r->wire.errors + missing + refused + early + lost + failed + coord_merge()->failed;
    if (events == 0) errors++;
    if (errors)
        fprintf(stderr,
                "%llu out of order, %llu in another generation, %llu writers whose last events are missing, %llu effects before "
                "their cause, %llu moved, %llu counted as lost, %u workers failed, %llu refused; first: %s\n",
                (unsigned long long)r->disordered, (unsigned long long)r->elsewhere, (unsigned long long)missing,
                (unsigned long long)early, (unsigned long long)r->moved, (unsigned long long)lost, failed, (unsigned long long)refused,
                r->wire.errors ? r->wire.error : "-");
    printf("switch_test: seed %llu, %u workers (%s), %u threads: %llu switches, %llu events, %llu errors\n",
           (unsigned long long)options.seed, options.workers, options.in_threads ? "as threads" : "forked", options.threads,
           (unsigned long long)r->wire.generations, (unsigned long long)events, (unsigned long long)errors);
    return errors;
}

int main(int argc, char **argv) {
    options_read(argc, argv);
    memset(long_text, 'x', sizeof long_text - 1);
    alarm(options.limit);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) die("mmap");
    if ((errno = arena_open_temp(arena_path, sizeof arena_path))) die(arena_path);
    struct reader reader = {0};
    wire_init(&reader.wire, 26);
    reader.wire.event = check_event;
    reader.wire.arg = &reader;
    if (options.out && !(reader.out = fopen(options.out, "wb"))) die(options.out);

    pid_t pids[WRITERS_MAX];
    pthread_t threads[WRITERS_MAX], reading;
    start_workers(pids, threads);
    gil_take();
    start_trace(26, 0);
    gil_drop();
    if (pthread_create(&reading, NULL, read_all, &reader)) die("pthread_create");
    wait_for_switches(&reader, pids);
    coord_stop_request();
    while (!coord_stopped(1000000000)) {}
    pthread_join(reading, NULL);
    uint32_t failed = end_workers(pids, threads);
    unlink(arena_path);
    coord_join();
    if (reader.out && fclose(reader.out)) die(options.out);
    bool broken = report(&reader, failed) != 0;
    wire_free(&reader.wire);
    return broken;
}
