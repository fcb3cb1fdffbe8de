/* In a worker process: the place that its main thread has in the arena, and its other threads as guests there.
 *
 * A guest takes an entry of its own when it first comes in while a trace is on, and keeps it until the thread ends.  Its
 * full blocks go up the worker's pipe, and at its end what is left, then a block without bytes: so that they are read in
 * this order, and before those of a later thread that the system gives the same id.
 */
#include "writer.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static struct {
    struct head *head;  /* GIL: owned mapping, stays until the process ends; NULL: this process is no worker */
    uint32_t index;     /* GIL: of the worker's entry */
    struct entry *entry; /* GIL: the worker's, borrowed; it stays mapped */
    int file;           /* GIL: the arena's file, owned */
    uint64_t failed;    /* GIL: first generation of the trace in which there was no entry for a guest */
    struct trunk trunk;
} home = {.file = -1, .trunk = {.lock = PTHREAD_MUTEX_INITIALIZER, .fd = -1}};

struct head *home_head(void) { return home.head; }

int home_open(struct writer *w, struct head *head, int file, struct entry *e, uint32_t index, int pipe) {
    int fd = fcntl(pipe, F_DUPFD_CLOEXEC, 3);
    if (fd < 0 || fcntl(fd, F_SETFL, O_NONBLOCK) < 0) {
        int err = errno;
        if (fd >= 0) close(fd);
        return err;
    }
    home.head = head;
    home.index = index;
    home.entry = e;
    home.file = file;
    home.trunk.fd = fd;
    home.trunk.debt_len = 0;
    home.trunk.trace = 0;
    home.trunk.broken = false;
    *w = (struct writer){.kind = KIND_WORKER, .head = head, .entry = e, .index = index, .trunk = &home.trunk, .string_mark = w->string_mark,
                         .stack_mark = w->stack_mark, .strings = w->strings, .stacks = w->stacks, .depth = w->depth, .notice = w->notice};
    STORE(&e->m, (uint64_t)syscall(SYS_gettid));
    return 0;
}

void home_close(void) {
    pthread_mutex_lock(&home.trunk.lock);
    if (home.trunk.fd >= 0) close(home.trunk.fd);
    home.trunk.fd = -1;
    home.trunk.broken = true; /* for guests that are still there */
    pthread_mutex_unlock(&home.trunk.lock);
}

/* A forked child is no worker: the mapping is left alone. */
void home_after_fork(void) {
    pthread_mutex_t fresh = PTHREAD_MUTEX_INITIALIZER;
    if (home.file >= 0) close(home.file);
    if (home.trunk.fd >= 0) close(home.trunk.fd);
    home.head = NULL;
    home.file = -1;
    home.trunk = (struct trunk){.lock = fresh, .fd = -1};
}

bool guest_register(struct writer *w) {
    struct entry *e;
    uint32_t index, owner = OWNER_GUEST | home.index;
    if (!home.head || w->entry) return false;
    uint64_t trace = LOAD(&home.head->first_gen);
    if (home.failed == trace || home.trunk.broken || entry_take(home.head, home.file, owner, &index, &e) != 0) {
        home.failed = trace; /* trying is dear, and takes what little room there is from others */
        atomic_fetch_add_explicit(&home.entry->lost, 1, memory_order_relaxed);
        return false;
    }
    entry_init(e, home.head, KIND_GUEST, 0);
    STORE(&e->m, (uint64_t)syscall(SYS_gettid));
    STORE(&e->since, now_ns()); /* it writes nothing before: the parent looks for a P that is free since then */
    pt_pause();
    STORE(&home.head->owner[index], owner | OWNER_LISTED);
    atomic_thread_fence(memory_order_seq_cst); /* see slots_adopt */
    w->kind = KIND_GUEST;
    w->head = home.head;
    w->entry = e;
    w->index = index;
    w->trunk = &home.trunk;
    w->last_word = 0;
    w->in_first = 0;
    w->seq_gen = 0;
    w->marks_epoch = 0;
    w->detached = false;
    w->trace = 0;
    return true;
}

/* Everything up the pipe; false: it cannot be, or the trace is over: then it is taken from the arena. */
static bool say_all(struct writer *w) {
    for (;;) {
        uint64_t word = LOAD(&w->entry->word), g = LOAD(&w->head->gen);
        uint32_t gen = word_gen(word), len = word_pos(word);
        if (!word_on(g) || w->detached) return false;
        if (word_gen(g) != gen) { /* as writer_open_anew */
            STORE(word_on(word) ? &w->entry->left[gen & 1] : &w->entry->left_off, word);
            CAS(&w->entry->word, &word, make_word(word_gen(g), true, PT_STATE_UNSET));
        } else if (len == 0) {
            if (trunk_block(w, gen, word_block(word), NULL, 0)) return true; /* the coordinator gives the entry back */
        } else if (trunk_block(w, gen, word_block(word), w->entry->buffer[gen & 1], len)) {
            CAS(&w->entry->word, &word, make_word(gen, true, (word_block(word) + 1) << 16));
        }
    }
}

void guest_dispose(struct writer *w) {
    if (!say_all(w)) atomic_fetch_or(&w->head->owner[w->index], OWNER_ENDED);
    struct trunk *k = w->trunk;
    pthread_mutex_lock(&k->lock);
    bool owed = k->debt_len && k->debt >= (uint8_t *)w->entry && k->debt < (uint8_t *)w->entry + PT_STRIDE;
    pthread_mutex_unlock(&k->lock);
    if (!owed) munmap(w->entry, PT_STRIDE); /* else its mapping stays; what is there is of a generation that is over */
}
