/* The arena's mapping in this process and the registry of its entries.
 *
 * An M registers under registry.lock before it reads the generation; the coordinator stores the new generation
 * first and lists the Ms under the same lock afterwards.  So an M is either listed, or starts in the new one.  A thread
 * of a worker (a guest) registers itself, in the header's table, with a fence in the lock's place.
 */
#include "core.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

struct registry registry = {.lock = PTHREAD_MUTEX_INITIALIZER, .fd = -1};
static struct counters own = {1, 1};
struct counters *counters = &own;
static uint32_t last_gen = 1; /* under the lock: where the next arena goes on; numbers never come twice in a process */

struct head *head_map(int fd) {
    struct stat st;
    if (fstat(fd, &st) != 0) return NULL;
    if (st.st_size < (off_t)PT_HEAD) {
        errno = EINVAL;
        return NULL;
    }
    struct head *h = mmap(NULL, PT_HEAD, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return h == MAP_FAILED ? NULL : h;
}

struct entry *entry_map(int fd, uint32_t index) {
    off_t at = (off_t)PT_HEAD + (off_t)index * (off_t)PT_STRIDE;
    struct stat st;
    if (fstat(fd, &st) != 0) return NULL;
    if (st.st_size < at + (off_t)PT_STRIDE) { /* a page behind the end would be a SIGBUS */
        errno = EINVAL;
        return NULL;
    }
    struct entry *e = mmap(NULL, PT_STRIDE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, at);
    return e == MAP_FAILED ? NULL : e;
}

int arena_create(const char *path) {
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0) return errno;
    int err = posix_fallocate(fd, 0, PT_HEAD);
    struct head *h = NULL;
    if (err == 0 && (h = head_map(fd)) == NULL) err = errno;
    if (err != 0) {
        close(fd);
        return err;
    }
    h->magic = PT_MAGIC;
    h->pid = (uint64_t)getpid();
    STORE(&h->gen, make_word(last_gen, false, 0));
    STORE(&h->first_gen, 0);
    STORE(&h->next.g, LOAD(&own.g));
    STORE(&h->next.task, LOAD(&own.task));
    counters = &h->next;
    pthread_mutex_lock(&registry.lock);
    registry.fd = fd;
    registry.head = h;
    registry.epoch++;
    pthread_mutex_unlock(&registry.lock);
    return 0;
}

static uint32_t entries(void) {
    uint64_t n = LOAD(&registry.head->entries);
    return n < PT_ENTRIES ? (uint32_t)n : PT_ENTRIES;
}

#define P_USED UINT64_MAX

/* Under the lock: the lowest P that was free before that time, or was never used.  Who gets it may have written since then, and what is read
 * of him later must not be older than what another M did on the same P. */
static uint64_t p_alloc_locked(uint64_t before) {
    uint32_t p = 1; /* 0 is the thread that starts the trace */
    while (p < registry.p_cap && registry.p_free[p] && registry.p_free[p] >= before) p++;
    if (p >= registry.p_cap) {
        uint32_t cap = registry.p_cap ? 2 * registry.p_cap : 64;
        uint64_t *grown = realloc(registry.p_free, cap * sizeof *grown);
        if (grown) {
            memset(grown + registry.p_cap, 0, (cap - registry.p_cap) * sizeof *grown);
            registry.p_free = grown;
            registry.p_cap = cap;
        }
    }
    if (p < registry.p_cap) registry.p_free[p] = P_USED;
    return p;
}

static void p_free_locked(uint64_t p) {
    if (p < registry.p_cap && registry.p_free[p] == P_USED) registry.p_free[p] = now_ns();
}

/* Under the lock.  A worker's P is its pool's. */
static void give_p_back(const struct slot *s) {
    if (s->kind != KIND_WORKER && s->p) p_free_locked(s->p);
}

void arena_destroy(void) {
    pthread_mutex_lock(&registry.lock);
    for (uint32_t i = 0; i < registry.n; i++) {
        struct slot *s = registry.slots[i];
        if (s->entry) munmap(s->entry, PT_STRIDE);
        if (s->state == SLOT_USED) give_p_back(s);
        if (s->pipe >= 0) close(s->pipe);
        free(s->in);
        free(s);
    }
    registry.n = 0;
    if (registry.head) {
        last_gen = word_gen(LOAD(&registry.head->gen));
        STORE(&own.g, LOAD(&registry.head->next.g));
        STORE(&own.task, LOAD(&registry.head->next.task));
        counters = &own;
        munmap(registry.head, PT_HEAD);
    }
    if (registry.fd >= 0) close(registry.fd);
    registry.head = NULL;
    registry.fd = -1;
    registry.epoch++;
    pthread_mutex_unlock(&registry.lock);
}

/* ---- entries: parent and workers alike ---- */
/* The first free entry, its memory reserved (else a full file system is a SIGBUS later) and mapped. */
int entry_take(struct head *head, int fd, uint32_t owner, uint32_t *index, struct entry **e) {
    uint32_t i = 0, nobody = OWNER_FREE;
    while (i < PT_ENTRIES && (LOAD(&head->owner[i]) != OWNER_FREE || !CAS(&head->owner[i], &nobody, owner))) i++, nobody = OWNER_FREE;
    if (i == PT_ENTRIES) return ENOSPC;
    uint64_t n = LOAD(&head->entries);
    while (n <= i && !CAS(&head->entries, &n, i + 1)) {} /* now: whoever buries us finds it */
    int err;
    do err = posix_fallocate(fd, (off_t)PT_HEAD + (off_t)i * (off_t)PT_STRIDE, PT_STRIDE);
    while (err == EINTR);
    if (err == 0 && !(*e = entry_map(fd, i))) err = errno;
    if (err != 0) {
        STORE(&head->owner[i], OWNER_FREE);
        return err;
    }
    *index = i;
    return 0;
}

void entry_init(struct entry *e, const struct head *head, enum kind kind, uint64_t p) {
    uint64_t g = LOAD((au64 *)&head->gen);
    e->p = p;
    e->kind = (uint64_t)kind;
    STORE(&e->left[0], 0);
    STORE(&e->left[1], 0);
    STORE(&e->left_off, 0);
    STORE(&e->m, 0);
    STORE(&e->unit, 0);
    STORE(&e->since, 0);
    STORE(&e->done, 0);
    STORE(&e->lost, 0);
    STORE(&e->word, make_word(word_gen(g), word_on(g), PT_STATE_UNSET));
}

void counters_after_fork(void) { /* the child's own */
    STORE(&own.g, LOAD(&counters->g));
    STORE(&own.task, LOAD(&counters->task));
    counters = &own;
}

/* ---- slots: the parent's side ---- */
/* Under the lock: room for the slot of entry i, and a slot there; NULL without memory. */
static struct slot *slot_at(uint32_t i, struct entry *e) {
    if (i >= registry.cap) {
        uint32_t cap = registry.cap ? registry.cap : 16;
        while (cap <= i) cap *= 2;
        struct slot **grown = realloc(registry.slots, cap * sizeof *grown);
        if (!grown) return NULL;
        registry.slots = grown;
        registry.cap = cap;
    }
    while (registry.n <= i) {
        struct slot *s = calloc(1, sizeof *s);
        if (!s) return NULL;
        s->pipe = -1;
        s->index = registry.n;
        registry.slots[registry.n++] = s;
    }
    struct slot *s = registry.slots[i];
    if (s->entry) munmap(e, PT_STRIDE); /* mapped before */
    else s->entry = e;
    return s;
}

/* Under the lock. */
static void slot_init(struct slot *s, enum kind kind, uint64_t p, int pipe, struct slot *host) {
    s->p = p;
    s->kind = kind;
    s->pipe = pipe;
    s->host = host;
    s->opened = now_ns();
    s->m = NULL;
    s->serial = ++registry.serials;
    s->state = SLOT_USED;
}

struct slot *slot_open(enum kind kind, uint64_t p, int pipe, int *index, int *err) {
    pthread_mutex_lock(&registry.lock);
    struct slot *s = NULL;
    struct entry *e;
    uint32_t i;
    *err = registry.head ? entry_take(registry.head, registry.fd, OWNER_PARENT, &i, &e) : ENOENT;
    while (*err == 0 && i < registry.n && registry.slots[i]->state == SLOT_USED) { /* the table is damaged: it stays ours */
        munmap(e, PT_STRIDE);
        *err = entry_take(registry.head, registry.fd, OWNER_PARENT, &i, &e);
    }
    if (*err == 0 && !(s = slot_at(i, e))) {
        *err = ENOMEM;
        munmap(e, PT_STRIDE);
        STORE(&registry.head->owner[i], OWNER_FREE);
    }
    if (s) {
        *index = (int)i;
        entry_init(s->entry, registry.head, kind, p);
        slot_init(s, kind, p, pipe, NULL);
    }
    pthread_mutex_unlock(&registry.lock);
    return s;
}

void slot_close_pipe(struct slot *s) {
    int fd = s->pipe;
    s->pipe = -1; /* first: the child of a fork in between would close somebody else's */
    if (fd >= 0) close(fd);
}

static void free_one(struct slot *s) {
    slot_close_pipe(s);
    free(s->in);
    s->in = NULL;
    give_p_back(s);
    s->state = SLOT_FREE;
    if (registry.head) STORE(&registry.head->owner[s->index], OWNER_FREE);
}

/* The table says that entry i is a guest's; it may be damaged. */
static void free_guest(uint32_t i) {
    struct slot *s = i < registry.n ? registry.slots[i] : NULL;
    if (!s || s->state == SLOT_FREE) STORE(&registry.head->owner[i], OWNER_FREE);
    else if (s->kind == KIND_GUEST) free_one(s);
}

void slot_free_locked(struct slot *s) {
    if (s->kind == KIND_WORKER && registry.head)
        for (uint32_t i = 0, n = entries(); i < n; i++) {
            uint32_t owner = LOAD(&registry.head->owner[i]);
            if (owner & OWNER_GUEST && (owner & OWNER_HOST) == s->index) free_guest(i);
        }
    free_one(s);
}

/* Guests that left without a word while no trace was on; else the coordinator buries them. */
void slots_reclaim(void) {
    for (uint32_t i = 0, n = entries(); i < n; i++) {
        uint32_t owner = LOAD(&registry.head->owner[i]);
        if (owner & OWNER_GUEST && owner & OWNER_ENDED) free_guest(i);
    }
}

/* A guest stores that it is listed before it reads the generation; the new generation is stored before this.  So it is
 * seen here, or starts in the new one. */
void slots_adopt(void) {
    if (!registry.head) return;
    atomic_thread_fence(memory_order_seq_cst);
    for (uint32_t i = 0, n = entries(); i < n; i++) {
        uint32_t owner = LOAD(&registry.head->owner[i]), host = owner & OWNER_HOST;
        if (!(owner & OWNER_LISTED) || (i < registry.n && registry.slots[i]->state == SLOT_USED)) continue;
        struct slot *worker = host < registry.n ? registry.slots[host] : NULL;
        if (!worker || worker->state != SLOT_USED || worker->kind != KIND_WORKER) continue;
        struct entry *e = entry_map(registry.fd, i);
        struct slot *s = e ? slot_at(i, e) : NULL;
        if (!s) {
            if (e) munmap(e, PT_STRIDE);
            continue;
        }
        uint64_t since = LOAD(&s->entry->since);
        slot_init(s, KIND_GUEST, p_alloc_locked(since), -1, worker);
        s->opened = since;
    }
}

struct slot *slot_guest(struct slot *host, uint32_t index) {
    pthread_mutex_lock(&registry.lock);
    slots_adopt();
    struct slot *s = index < registry.n ? registry.slots[index] : NULL;
    if (s && (s->state != SLOT_USED || s->host != host || s->kind != KIND_GUEST)) s = NULL;
    pthread_mutex_unlock(&registry.lock);
    return s;
}

void slot_free(struct slot *s) {
    pthread_mutex_lock(&registry.lock);
    slot_free_locked(s);
    pthread_mutex_unlock(&registry.lock);
}

uint64_t p_alloc(void) {
    pthread_mutex_lock(&registry.lock);
    uint64_t p = p_alloc_locked(P_USED);
    pthread_mutex_unlock(&registry.lock);
    return p;
}

void p0_take_back(void) {
    pthread_mutex_lock(&registry.lock);
    for (uint32_t i = 0; i < registry.n; i++) {
        struct slot *s = registry.slots[i];
        if (s->state == SLOT_USED && s->kind == KIND_THREAD && s->p == 0) s->p = s->entry->p = p_alloc_locked(P_USED);
    }
    pthread_mutex_unlock(&registry.lock);
}

void p_free(uint64_t p) {
    pthread_mutex_lock(&registry.lock);
    p_free_locked(p);
    pthread_mutex_unlock(&registry.lock);
}
