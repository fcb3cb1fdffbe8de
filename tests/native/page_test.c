/* The page test: over one shared page, each unit is run or taken back, each result arrives once, and no bell is lost.
 *
 * A parent and a worker, two threads.  The parent sends units (through a queue in place of the socket), takes some back
 * and sends them again under another number, and waits only for bells.  The worker claims, runs, and answers in the page,
 * or through a queue when there is no room; it rings now and then, and before it waits.
 *
 * usage: page_test [-units N] [-seed N] [-patience S]
 * Exit status: 0 fine, 1 a rule is broken, 2 the test could not be done.
 */
#include "page.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static struct {
    uint64_t units, seed;
    int patience; /* s: for a bell */
} options = {.units = 200000, .seed = 1, .patience = 20};

static struct page *page;
static _Atomic uint64_t errors;
static sem_t bells;

static uint32_t below(uint64_t *state, uint32_t n) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33) % n;
}

void page_pause(void) { /* others come in between */
    static _Atomic uint64_t threads;
    static __thread uint64_t random;
    if (!random) random = atomic_fetch_add(&threads, 1) * 7919 + options.seed;
    uint32_t dice = below(&random, 256);
    if (dice == 0) usleep(below(&random, 100));
    else if (dice < 16) sched_yield();
}

static void wrong(const char *what, uint64_t unit) {
    if (atomic_fetch_add(&errors, 1) < 10) fprintf(stderr, "unit %" PRIu64 ": %s\n", unit, what);
}

static uint64_t taken; /* back; parent only */
static uint64_t looks; /* without being told; parent only */

static int result(void) {
    printf("%" PRIu64 " units, %" PRIu64 " taken back, %" PRIu64 " looks, %" PRIu64 " errors\n", options.units, taken, looks, atomic_load(&errors));
    return errors != 0;
}
static void give_up(const char *what, uint64_t unit) {
    wrong(what, unit);
    exit(result());
}

/* A queue of pairs, in place of the socket's two directions. */
struct queue {
    pthread_mutex_t lock;
    pthread_cond_t more;
    struct pair {
        uint64_t seq, unit;
    } pairs[2 * WINDOW];
    uint64_t first, end;
    bool over;
} down = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, {{0, 0}}, 0, 0, false},
  up = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, {{0, 0}}, 0, 0, false};

static void put(struct queue *q, uint64_t seq, uint64_t unit) {
    pthread_mutex_lock(&q->lock);
    q->pairs[q->end++ % (2 * WINDOW)] = (struct pair){seq, unit};
    pthread_cond_signal(&q->more);
    pthread_mutex_unlock(&q->lock);
}

static bool get(struct queue *q, struct pair *pair, bool wait) {
    pthread_mutex_lock(&q->lock);
    while (wait && q->first == q->end && !q->over) pthread_cond_wait(&q->more, &q->lock);
    bool some = q->first != q->end;
    if (some) *pair = q->pairs[q->first++ % (2 * WINDOW)];
    pthread_mutex_unlock(&q->lock);
    return some;
}

/* ---- the worker ---- */
static uint8_t *ran; /* by unit; worker only, until it has ended */

static void *work(void *unused) {
    (void)unused;
    uint64_t random = options.seed * 3 + 1;
    uint8_t data[RESULT_MOST];
    struct pair pair;
    bool skipped = false;
    for (;;) {
        if (!get(&down, &pair, false)) {
            if ((skipped || !results_are_taken(page)) && bell_due(page)) sem_post(&bells);
            skipped = false;
            if (!get(&down, &pair, true)) return NULL;
        }
        bool claimed = claim_move(page, pair.seq, CLAIM_CLAIMED);
        atomic_store_explicit(&page->passed, pair.seq + 1, memory_order_release);
        skipped |= !claimed;
        if (!claimed) continue;
        if (ran[pair.unit]++) wrong("was run twice", pair.unit);
        struct record r = {.len = below(&random, below(&random, 8) ? 40 : RESULT_MOST), .flags = 7, .seq = pair.seq, .ns = pair.unit};
        memset(data, (int)(pair.unit & 0xff), r.len);
        if (!result_put(page, &r, data)) {
            put(&up, pair.seq, pair.unit);
            sem_post(&bells);
        } else if (below(&random, 20) == 0 && bell_due(page)) sem_post(&bells);
    }
}

/* ---- the parent ---- */
static uint64_t sent[WINDOW], next, tail, answered; /* sent: the unit by number % WINDOW, +1; 0: none */
static uint8_t *done; /* by unit */

static void answer(uint64_t seq, uint64_t unit) {
    if (sent[seq % WINDOW] != unit + 1 || !claim_is(page, seq, CLAIM_CLAIMED)) wrong("was answered, but is not in flight", unit);
    else if (done[unit]++) wrong("was answered twice", unit);
    sent[seq % WINDOW] = 0;
    answered++;
}

static void collect(void) {
    struct pair pair;
    while (get(&up, &pair, false)) answer(pair.seq, pair.unit);
    uint64_t head = bell_heard(page);
    struct record r;
    uint8_t data[RESULT_MOST];
    int some;
    while ((some = result_peek(page, tail, head, &r)) > 0) {
        ring_get(page, tail + sizeof r, data, r.len);
        for (uint32_t i = 0; i < r.len; i++)
            if (data[i] != (uint8_t)r.ns) {
                wrong("has a result with other bytes", r.ns);
                break;
            }
        if (r.ns >= options.units || r.flags != 7) give_up("has a record of nothing", r.ns);
        answer(r.seq, r.ns);
        tail += record_bytes(r.len);
    }
    if (some < 0) give_up("a record makes no sense", answered);
    results_taken(page, tail);
}

static void offer(uint64_t unit) {
    sent[next % WINDOW] = unit + 1;
    claim_offer(page, next);
    put(&down, next++, unit);
}

static bool room(void) {
    uint64_t passed = atomic_load_explicit(&page->passed, memory_order_acquire);
    return next - passed < WINDOW - 1 && !sent[next % WINDOW];
}

static uint64_t back[WINDOW]; /* units that were taken back, and have to be sent again */
static uint32_t backs;

static void take_back(uint32_t most) {
    uint64_t last = next > WINDOW ? next - WINDOW : 0;
    for (uint64_t seq = next; most && seq-- > last;) {
        if (!sent[seq % WINDOW]) continue;
        if (!claim_move(page, seq, CLAIM_TAKEN)) break;
        back[backs++] = sent[seq % WINDOW] - 1;
        sent[seq % WINDOW] = 0;
        taken++;
        most--;
    }
}

static void hear(void) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += options.patience;
    while (sem_timedwait(&bells, &until) != 0)
        if (errno != EINTR) give_up("a bell was lost: the parent would wait for ever", answered);
    collect();
}

/* Without being told: for as long as that takes, or in vain. */
static void look(uint32_t times) {
    bell_hold(page);
    while (times-- && atomic_load_explicit(&page->head, memory_order_acquire) == tail) sched_yield();
    collect();
    looks++;
}

static void drive(void) {
    uint64_t random = options.seed, unit = 0;
    while (answered < options.units) {
        uint32_t some = below(&random, below(&random, 2) ? 4 : 60);
        while (some-- && room() && (backs || unit < options.units)) offer(backs ? back[--backs] : unit++);
        if (below(&random, 4) == 0) take_back(1 + below(&random, 10));
        bool all = below(&random, 4) == 0; /* else it goes on as soon as there is room */
        do {
            if (below(&random, 3) == 0) look(below(&random, 20));
            uint64_t left = unit - answered - backs;
            if (left > 0 && (all || !room() || (!backs && unit == options.units))) hear();
            else all = false;
        } while (all);
    }
}

int main(int argc, char **argv) {
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "-units")) options.units = strtoull(argv[i + 1], NULL, 0);
        else if (!strcmp(argv[i], "-seed")) options.seed = strtoull(argv[i + 1], NULL, 0);
        else if (!strcmp(argv[i], "-patience")) options.patience = atoi(argv[i + 1]);
        else return 2;
    }
    pthread_t thread;
    page = aligned_alloc(4096, (sizeof *page + 4095) / 4096 * 4096);
    ran = calloc(options.units, 1);
    done = calloc(options.units, 1);
    if (!page || !ran || !done || sem_init(&bells, 0, 0) != 0) return 2;
    memset(page, 0, sizeof *page);
    if (pthread_create(&thread, NULL, work, NULL) != 0) return 2;
    drive();
    pthread_mutex_lock(&down.lock);
    down.over = true;
    pthread_cond_signal(&down.more);
    pthread_mutex_unlock(&down.lock);
    pthread_join(thread, NULL);
    for (uint64_t i = 0; i < options.units; i++)
        if (ran[i] != 1 || done[i] != 1) wrong("was not run and answered once", i);
    return result();
}
