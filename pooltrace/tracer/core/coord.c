/* The coordinator's thread: the advance, the gathering and the queue to the reader.
 *
 *   loop      wait for pipes, the parent's queue, requests or the next advance; feed what belongs to the open
 *             generation, hold what is newer, throw away what is older (its bytes were taken from the arena)
 *   advance   1. read the clock, store the new generation, then move every word on: the words are listed after
 *                the store, under the registry's lock
 *             2. drain the queue, and of the pipes what stands in them: later bytes are the next generation's
 *             3. take from the arena what is left of the block at which each M was switched
 *             4. close generation n: tables, and for header 1.26 its end
 *             5. open n+1 with the statuses in which the streams ended; feed what was held
 *
 * n+1 is not advanced before n was read, except to stop.  The thread never takes the GIL, so nobody's Python code can
 * delay it.
 */
#include "coord_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

struct coordinator c = {.wake = -1, .lock = PTHREAD_MUTEX_INITIALIZER};

#define BACKLOG (32u << 20) /* bytes that may wait for the reader before the workers' pipes are left to fill up; and bytes
                             * of strings after which a generation is closed early */

#define OFTEN 250000000u /* ns: where generations are shorter than this, /proc is not looked at in each */

/* ---- the advance ---- */
static struct gen_info gen_info(uint64_t before) {
    struct timespec wall;
    clock_gettime(CLOCK_REALTIME, &wall);
    struct gen_info info = {.before = before, .wall_sec = (uint64_t)wall.tv_sec, .wall_nsec = (uint64_t)wall.tv_nsec,
                            .limit = c.limit};
    if (processes_read(&c.processes, before, c.period < OFTEN ? OFTEN : 0, c.slots, c.n)) info.processes = c.processes.list, info.n_processes = c.processes.n;
    info.rss = c.processes.rss;
    return info;
}

/* Stores the generation, then moves every word.  Returns the clock before the store. */
static uint64_t switch_all(uint32_t gen, bool on) {
    uint64_t before = now_ns();
    pt_pause();
    STORE(&registry.head->gen, make_word(gen, on, 0));
    pt_pause();
    pthread_mutex_lock(&registry.lock);
    list_slots();
    pthread_mutex_unlock(&registry.lock);
    for (uint32_t i = 0; i < c.n; i++) {
        struct entry *e = c.slots[i]->entry;
        uint64_t word = LOAD(&e->word);
        c.finals[i] = 0;
        pt_pause();
        while (word_gen(word) != gen)
            if (CAS(&e->word, &word, make_word(gen, on, PT_STATE_UNSET))) {
                c.finals[i] = word;
                break;
            }
    }
    return before;
}

/* The word at which an M left generation gen, or 0 when it was not there. */
static uint64_t final_word(uint32_t i, uint32_t gen, bool on) {
    struct entry *e = c.slots[i]->entry;
    uint64_t word = c.finals[i];
    if (!word) word = LOAD(on ? &e->left[gen & 1] : &e->left_off);
    return word_gen(word) == gen && word_on(word) == on ? word : 0;
}

static void gather(uint32_t gen) {
    for (uint32_t i = 0; i < c.npipes; i++) drain_standing(c.pipes[i]);
    take_queue();
    for (uint32_t i = 0; i < c.n; i++) {
        uint64_t word = final_word(i, gen, true);
        uint32_t pos = word_pos(word);
        if (word && pos && pos <= PT_BLOCK) take(c.slots[i], word_block(word), c.slots[i]->entry->buffer[gen & 1], pos);
    }
}

/* Closes the open generation; on: opens the next one, else the trace is over. */
static void advance(bool on) {
    uint32_t gen = c.merge.gen, next = gen_next(gen);
    uint64_t before = c.switched = switch_all(next, on);
    gather(gen);
    bury_ended(next);
    c.switched = 0;
    merge_close(&c.merge, c.slots, c.n);
    pthread_mutex_lock(&c.lock);
    c.chunks_closed = c.chunks;
    c.advances++;
    if (c.out) { /* what follows begins a chunk of its own, so that "n was read" can be told */
        struct chunk *last = (struct chunk *)((char *)c.out_tail - offsetof(struct chunk, next));
        last->cap = last->len;
    }
    pthread_cond_broadcast(&c.cond);
    pthread_mutex_unlock(&c.lock);
    if (!on) {
        c.merge.end_time = before;
        return;
    }
    struct gen_info info = gen_info(before);
    merge_open(&c.merge, next, &info, c.slots, c.n);
    take_held();
}

/* The state in which each worker's stream ended goes into its word, for the next start. */
static void put_states(uint32_t gen) {
    for (uint32_t i = 0; i < c.n; i++) {
        struct slot *s = c.slots[i];
        struct mst *m = s->m;
        if (s->kind != KIND_WORKER || !m) continue;
        uint64_t unit = m->gs == GS_RUNNING ? m->g : 0;
        if (c.merge.failed || m->broken || LOAD(&s->entry->lost) != m->lost_before) /* its stream has gaps, or was not read */
            unit = LOAD(&s->entry->unit);
        uint32_t state = unit ? PT_STATE_RUN | ((uint32_t)unit & PT_UNIT_MASK) : PT_STATE_IDLE;
        uint64_t unset = make_word(gen, false, PT_STATE_UNSET);
        CAS(&s->entry->word, &unset, make_word(gen, false, state)); /* unless the worker has said something since */
    }
}

static void end_accounts(void) {
    for (uint32_t i = 0; i < c.n; i++) {
        struct mst *m = c.slots[i]->m;
        if (!m) continue;
        account_life(&c.merge, m, c.merge.end_time);
        account_open(&c.merge, m, c.merge.end_time);
        c.merge.lost_events += LOAD(&c.slots[i]->entry->lost) - m->lost_before;
        free(m->out.buf);
        free(m->strs);
        free(m->stks);
        free(m->regions);
        free(m);
        c.slots[i]->m = NULL;
    }
}

/* ---- the loop ---- */
static struct stk *named_stack(const struct named_unit *u) {
    struct merge *g = &c.merge;
    struct stk_frame frame = {
        .function = str_get(g, (const uint8_t *)u->function, (uint32_t)u->function_len),
        .file = str_get(g, (const uint8_t *)u->file, (uint32_t)u->file_len),
        .line = u->line,
    };
    return frame.function && frame.file ? stk_get(g, &frame, 1) : NULL;
}

static void serve_gone(void) {
    pthread_mutex_lock(&c.lock);
    struct gone *gone = c.gone; /* it stays as it is until it is done */
    pthread_mutex_unlock(&c.lock);
    if (!gone) return;
    struct slot *s = gone->slot;
    pthread_mutex_lock(&registry.lock);
    list_slots();
    pthread_mutex_unlock(&registry.lock);
    struct in_pipe *p = pipe_of(s);
    if (p) drain(p, SIZE_MAX);
    pthread_mutex_lock(&registry.lock);
    list_slots(); /* threads of it that only its pipe told of */
    pthread_mutex_unlock(&registry.lock);
    take_rest(s);
    for (uint32_t i = c.n; i-- > 0;) { /* its threads first */
        struct slot *guest = c.slots[i];
        if (guest->host != s) continue;
        take_rest(guest);
        bury(guest);
    }
    struct mst *m = merge_add(&c.merge, s);
    uint64_t now = now_ns();
    if (m && gone->claimed) merge_claimed(&c.merge, m, now, gone->claimed->g, gone->created, named_stack(gone->claimed));
    if (m) merge_close_m(&c.merge, m, now, gone->lost, gone->lost ? strlen(gone->lost) : 0);
    forget_slot(s);
    slot_free(s); /* here, not by the asker: the next trace may list what is still in use */
    pthread_mutex_lock(&c.lock);
    gone->done = true;
    c.gone = NULL;
    pthread_cond_broadcast(&c.cond);
    pthread_mutex_unlock(&c.lock);
}

static int poll_timeout(bool due_blocked) {
    if (due_blocked) return 100; /* the reader wakes us */
    uint64_t now = now_ns();
    if (c.next_advance <= now) return 0;
    uint64_t ms = (c.next_advance - now + 999999) / 1000000;
    return ms > 1000 ? 1000 : (int)ms;
}

static void poll_once(int timeout, bool was_read) {
    struct pollfd *fds = c.fds;
    if (!fds) return;
    /* The reader does not read: let the workers wait, as long as they may. */
    bool full = coord_queued() > BACKLOG || (c.merge.str_bytes > BACKLOG && !was_read);
    fds[0] = (struct pollfd){.fd = c.wake, .events = POLLIN};
    for (uint32_t i = 0; i < c.npipes; i++)
        fds[i + 1] = (struct pollfd){.fd = full ? -1 : c.pipes[i]->slot->pipe, .events = POLLIN};
    if (poll(fds, c.npipes + 1, timeout) > 0) {
        uint64_t count;
        if (fds[0].revents && read(c.wake, &count, sizeof count) < 0) count = 0;
        for (uint32_t i = 0; i < c.npipes; i++) {
            if (fds[i + 1].revents & POLLIN) drain(c.pipes[i], PT_PIPE);
            else if (fds[i + 1].revents) { /* all writers are gone; the rest comes with coord_gone */
                drain(c.pipes[i], SIZE_MAX);
                slot_close_pipe(c.pipes[i]->slot);
            }
        }
    }
}

/* The exchange of the words shows as a stop of the world on the thread that starts the trace. */
static void start_range(struct slot *starter, uint64_t before, uint64_t after) {
    struct mst *m = starter->m;
    struct str *kind = str_get(&c.merge, (const uint8_t *)"start trace", 11);
    if (!m || !kind) return;
    out_event(&c.merge, &m->out, GoSTWBegin, before, (uint64_t[]){str_use(&c.merge, kind), 0}, 2);
    out_event(&c.merge, &m->out, GoSTWEnd, after, NULL, 0);
}

static void *coordinator(void *arg) {
    (void)arg;
    c.merge.coord.m = (uint64_t)syscall(SYS_gettid);
    struct gen_info info = gen_info(c.start_before);
    merge_open(&c.merge, c.merge.gen, &info, c.slots, c.n);
    start_range(c.starter, c.start_before, c.start_after);
    bool stop = false;
    while (!stop) {
        take_queue();
        serve_gone();
        pthread_mutex_lock(&registry.lock);
        bool news = c.list_serial != registry.serials;
        list_slots();
        pthread_mutex_unlock(&registry.lock);
        if (news) merge_slots(&c.merge, now_ns(), c.slots, c.n);
        pthread_mutex_lock(&c.lock);
        bool was_read = c.chunks_read >= c.chunks_closed;
        bool due = now_ns() >= c.next_advance || c.advances_wanted > c.advances || c.early || c.merge.str_bytes > BACKLOG;
        stop = c.stop;
        pthread_mutex_unlock(&c.lock);
        if (stop) break;
        if (due && was_read) {
            advance(true);
            c.next_advance = now_ns() + c.period;
            c.early = false;
        }
        poll_once(poll_timeout(due && !was_read), was_read);
    }
    advance(false);
    c.merge.over = true;
    c.merge.gen = gen_next(c.merge.gen); /* nothing is newer now */
    put_states(c.merge.gen);
    for (;;) { /* threads that ended and workers that died meanwhile */
        take_held();
        take_queue();
        serve_gone();
        pthread_mutex_lock(&registry.lock);
        pthread_mutex_lock(&c.lock);
        if (!c.queue && !c.gone) break;
        pthread_mutex_unlock(&c.lock);
        pthread_mutex_unlock(&registry.lock);
    }
    /* In one step: whoever is refused frees its slot, which may be given out again, so nothing of ours hangs on it. */
    c.accepting = false;
    end_accounts();
    c.stopped = true;
    pthread_cond_broadcast(&c.cond);
    pthread_mutex_unlock(&c.lock);
    pthread_mutex_unlock(&registry.lock);
    return NULL;
}

/* ---- from Python's side ---- */
/* The whole id of a unit from the 31 bits that fit into a word: the one nearest below the newest id. */
static uint64_t whole_id(uint32_t low) {
    uint64_t newest = LOAD(&counters->g), id = (newest & ~(uint64_t)PT_UNIT_MASK) | low;
    return id > newest ? id - PT_UNIT_MASK - 1 : id;
}

/* What every M does at the instant of the switch. */
static void first_states(const struct coord_options *o, uint32_t off_gen) {
    for (uint32_t i = 0; i < c.n; i++) {
        struct slot *s = c.slots[i];
        struct mst *m = merge_add(&c.merge, s);
        uint32_t state = word_state(final_word(i, off_gen, false));
        if (!m) continue;
        if (s == o->starter) merge_running(&c.merge, m, o->starter_g, named_stack(&o->start));
        if (s->kind != KIND_WORKER || !(state & PT_STATE_RUN)) continue;
        uint64_t unit = whole_id(state & PT_UNIT_MASK);
        struct stk *start = NULL;
        for (uint32_t k = 0; k < o->n_units && !start; k++)
            if (o->units[k].g == unit) start = named_stack(&o->units[k]);
        merge_running(&c.merge, m, unit, start);
    }
}

static void reset(void) {
    merge_free(&c.merge);
    processes_free(&c.processes);
    free(c.slots);
    free(c.finals);
    free(c.pipes);
    free(c.fds);
    c.slots = NULL;
    c.finals = NULL;
    c.pipes = NULL;
    c.fds = NULL;
    c.n = c.cap = c.npipes = 0;
    c.list_serial = 0;
    free_blocks(c.held); /* of a generation that never came */
    free_blocks(c.queue);
    c.held = NULL;
    c.held_tail = &c.held;
    c.queue = NULL;
    c.queue_tail = &c.queue;
    pthread_mutex_lock(&c.lock);
    c.stop = c.stopped = c.accepting = c.cut = false;
    pthread_mutex_unlock(&c.lock);
    c.advances = c.advances_wanted = 0;
    c.early = false;
    c.switched = 0;
    for (struct chunk *k = c.out, *next; k; k = next) {
        next = k->next;
        free(k);
    }
    c.out = NULL;
    c.out_tail = &c.out;
    c.out_bytes = c.chunks = c.chunks_read = c.chunks_closed = 0;
}

static int start_thread(void) {
    sigset_t all, old;
    sigfillset(&all); /* the program's signals are not ours */
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int err = pthread_create(&c.thread, NULL, coordinator, NULL);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return err;
}

/* Once in a process: somebody may still be on his way out of a wait when the next trace starts. */
static void make_cond(void) {
    pthread_condattr_t attr;
    if (c.has_cond) return;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&c.cond, &attr);
    pthread_condattr_destroy(&attr);
    c.has_cond = true;
}

int coord_start(const struct coord_options *o) {
    reset();
    if (c.wake < 0 && (c.wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0) return errno;
    make_cond();
    c.period = o->period;
    c.limit = o->limit;
    c.merge.header = o->header;
    c.merge.sink = sink;
    c.merge.coord_p = p_alloc();
    c.merge.nobody.m = NO_M;
    uint32_t off_gen = word_gen(LOAD(&registry.head->gen)), first = gen_next(off_gen);
    c.merge.cpu_period = o->cpu_period;
    STORE(&registry.head->patience, o->patience);
    STORE(&registry.head->cpu_period, o->cpu_period);
    STORE(&registry.head->unsampled, 0);
    STORE(&registry.head->first_gen, first);
    c.merge.first_gen = first;
    pthread_mutex_lock(&c.lock);
    c.accepting = true;
    pthread_mutex_unlock(&c.lock);
    pthread_mutex_lock(&registry.lock);
    slots_reclaim();
    pthread_mutex_unlock(&registry.lock);
    uint64_t before = switch_all(first, true);
    c.merge.gen = first;
    c.merge.begin_time = c.merge.gen_time = before;
    merge_header(&c.merge);
    first_states(o, off_gen);
    c.next_advance = before + o->period;
    c.starter = o->starter;
    c.start_before = before;
    c.start_after = now_ns();
    int err = c.merge.failed ? ENOMEM : start_thread();
    if (err != 0) { /* as if it had never been */
        switch_all(gen_next(first), false);
        p_free(c.merge.coord_p);
        pthread_mutex_lock(&registry.lock);
        pthread_mutex_lock(&c.lock);
        c.accepting = false;
        end_accounts();
        c.stopped = true;
        pthread_cond_broadcast(&c.cond);
        pthread_mutex_unlock(&c.lock);
        pthread_mutex_unlock(&registry.lock);
        return err;
    }
    c.started = true;
    return 0;
}

void coord_stop_request(void) {
    pthread_mutex_lock(&c.lock);
    c.stop = true;
    wake();
    pthread_mutex_unlock(&c.lock);
}

bool coord_stopped(uint64_t wait_ns) {
    uint64_t deadline = now_ns() + wait_ns;
    pthread_mutex_lock(&c.lock);
    while (!c.stopped && wait_until(deadline)) {}
    bool stopped = c.stopped;
    pthread_mutex_unlock(&c.lock);
    return stopped;
}

void coord_join(void) {
    if (!c.started) return;
    pthread_join(c.thread, NULL);
    c.started = false;
    p_free(c.merge.coord_p);
    pthread_mutex_lock(&c.lock); /* nobody writes to a descriptor that is somebody else's by then */
    close(c.wake);
    c.wake = -1;
    pthread_mutex_unlock(&c.lock);
}

bool coord_advance(uint64_t wait_ns) {
    uint64_t deadline = now_ns() + wait_ns;
    pthread_mutex_lock(&c.lock);
    uint64_t wanted = c.advances + 1;
    if (c.advances_wanted < wanted) c.advances_wanted = wanted;
    wake();
    while (c.accepting && c.advances < wanted && wait_until(deadline)) {} /* without a trace there is none to wait for */
    bool done = c.advances >= wanted;
    pthread_mutex_unlock(&c.lock);
    return done;
}

/* Under registry.lock and c.lock, in this order: it is decided whether the coordinator buries it, or nobody knows it. */
void coord_gone(struct slot *s, const char *lost, const struct named_unit *claimed, uint64_t created) {
    struct gone request = {.slot = s, .lost = lost, .claimed = claimed, .created = created};
    pthread_mutex_lock(&registry.lock);
    pthread_mutex_lock(&c.lock);
    while (c.gone && c.accepting) { /* one burial at a time */
        pthread_mutex_unlock(&registry.lock);
        pthread_cond_wait(&c.cond, &c.lock);
        pthread_mutex_unlock(&c.lock);
        pthread_mutex_lock(&registry.lock);
        pthread_mutex_lock(&c.lock);
    }
    if (c.accepting) {
        c.gone = &request;
        wake();
        pthread_mutex_unlock(&registry.lock);
        while (!request.done && c.accepting) pthread_cond_wait(&c.cond, &c.lock);
        if (request.done) {
            pthread_mutex_unlock(&c.lock);
            return;
        }
        c.gone = NULL; /* the trace could not start after all */
        pthread_mutex_unlock(&c.lock);
        pthread_mutex_lock(&registry.lock);
        pthread_mutex_lock(&c.lock);
    }
    slot_free_locked(s);
    pthread_mutex_unlock(&c.lock);
    pthread_mutex_unlock(&registry.lock);
}

struct merge *coord_merge(void) { return &c.merge; }

/* The child of a fork has neither the thread nor its locks.  What the thread was in the middle of is left alone: it may
 * be half made. */
void coord_after_fork(void) {
    if (c.wake >= 0) close(c.wake);
    c = (struct coordinator){.wake = -1, .lock = PTHREAD_MUTEX_INITIALIZER, .stopped = true};
}
