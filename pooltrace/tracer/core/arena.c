/* The arena's mapping in this process and the registry of its entries.
 *
 * An M registers under registry.lock before it reads the generation; the coordinator stores the new generation
 * first and lists the Ms under the same lock afterwards.  So an M is either listed, or starts in the new one.
 */
#include "core.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

struct registry registry = {.lock = PTHREAD_MUTEX_INITIALIZER, .fd = -1};
au64 next_g = 1, next_task = 1;
static uint32_t last_gen = 1; /* under the lock: where the next arena goes on; numbers never come twice in a process */

struct head *head_map(int fd) {
    struct stat st;
    if (fstat(fd, &st) != 0) return NULL;
    if (st.st_size < (off_t)PT_PAGE) {
        errno = EINVAL;
        return NULL;
    }
    struct head *h = mmap(NULL, PT_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return h == MAP_FAILED ? NULL : h;
}

struct entry *entry_map(int fd, uint32_t index) {
    off_t at = (off_t)PT_PAGE + (off_t)index * (off_t)PT_STRIDE;
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
    int err = posix_fallocate(fd, 0, PT_PAGE);
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
    pthread_mutex_lock(&registry.lock);
    registry.fd = fd;
    registry.head = h;
    registry.epoch++;
    pthread_mutex_unlock(&registry.lock);
    return 0;
}

void arena_destroy(void) {
    pthread_mutex_lock(&registry.lock);
    for (uint32_t i = 0; i < registry.n; i++) {
        struct slot *s = registry.slots[i];
        munmap(s->entry, PT_STRIDE);
        if (s->pipe >= 0) close(s->pipe);
        free(s->in);
        free(s);
    }
    registry.n = 0;
    if (registry.head) {
        last_gen = word_gen(LOAD(&registry.head->gen));
        munmap(registry.head, PT_PAGE);
    }
    if (registry.fd >= 0) close(registry.fd);
    registry.head = NULL;
    registry.fd = -1;
    registry.epoch++;
    pthread_mutex_unlock(&registry.lock);
}

/* Under the lock: a slot whose entry exists and is mapped; its index in *index. */
static struct slot *slot_get(int *index) {
    for (uint32_t i = 0; i < registry.n; i++)
        if (registry.slots[i]->state == SLOT_FREE) {
            *index = (int)i;
            return registry.slots[i];
        }
    if (registry.n == registry.cap) {
        uint32_t cap = registry.cap ? 2 * registry.cap : 16;
        struct slot **grown = realloc(registry.slots, cap * sizeof *grown);
        if (!grown) return NULL;
        registry.slots = grown;
        registry.cap = cap;
    }
    struct slot *s = calloc(1, sizeof *s);
    if (!s) return NULL;
    off_t at = (off_t)PT_PAGE + (off_t)registry.n * (off_t)PT_STRIDE;
    int err;
    do err = posix_fallocate(registry.fd, at, PT_STRIDE); /* else a full file system is a SIGBUS later */
    while (err == EINTR);
    if (err == 0 && (s->entry = entry_map(registry.fd, registry.n)) == NULL) err = errno;
    if (err != 0) {
        free(s);
        errno = err;
        return NULL;
    }
    s->pipe = -1;
    *index = (int)registry.n;
    registry.slots[registry.n++] = s;
    return s;
}

struct slot *slot_open(enum kind kind, uint64_t p, int pipe, int *index, int *err) {
    pthread_mutex_lock(&registry.lock);
    struct slot *s = NULL;
    errno = ENOENT;
    if (registry.head) s = slot_get(index);
    *err = s ? 0 : errno;
    if (s) {
        struct entry *e = s->entry;
        uint64_t g = LOAD(&registry.head->gen);
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
        s->p = p;
        s->kind = kind;
        s->pipe = pipe;
        s->opened = now_ns();
        s->m = NULL;
        s->serial = ++registry.serials;
        s->state = SLOT_USED;
    }
    pthread_mutex_unlock(&registry.lock);
    return s;
}

void slot_close_pipe(struct slot *s) {
    int fd = s->pipe;
    s->pipe = -1; /* first: the child of a fork in between would close somebody else's */
    if (fd >= 0) close(fd);
}

void slot_free_locked(struct slot *s) {
    slot_close_pipe(s);
    free(s->in);
    s->in = NULL;
    if (s->kind == KIND_THREAD && s->p && s->p < registry.p_cap) registry.p_used[s->p] = 0;
    s->state = SLOT_FREE;
}

void slot_free(struct slot *s) {
    pthread_mutex_lock(&registry.lock);
    slot_free_locked(s);
    pthread_mutex_unlock(&registry.lock);
}

/* Under the lock. */
static uint64_t p_alloc_locked(void) {
    uint32_t p = 1; /* 0 is the thread that starts the trace */
    while (p < registry.p_cap && registry.p_used[p]) p++;
    if (p >= registry.p_cap) {
        uint32_t cap = registry.p_cap ? 2 * registry.p_cap : 64;
        uint8_t *grown = realloc(registry.p_used, cap);
        if (grown) {
            memset(grown + registry.p_cap, 0, cap - registry.p_cap);
            registry.p_used = grown;
            registry.p_cap = cap;
        }
    }
    if (p < registry.p_cap) registry.p_used[p] = 1;
    return p;
}

uint64_t p_alloc(void) {
    pthread_mutex_lock(&registry.lock);
    uint64_t p = p_alloc_locked();
    pthread_mutex_unlock(&registry.lock);
    return p;
}

void p0_take_back(void) {
    pthread_mutex_lock(&registry.lock);
    for (uint32_t i = 0; i < registry.n; i++) {
        struct slot *s = registry.slots[i];
        if (s->state == SLOT_USED && s->kind == KIND_THREAD && s->p == 0) s->p = s->entry->p = p_alloc_locked();
    }
    pthread_mutex_unlock(&registry.lock);
}

void p_free(uint64_t p) {
    pthread_mutex_lock(&registry.lock);
    if (p < registry.p_cap) registry.p_used[p] = 0;
    pthread_mutex_unlock(&registry.lock);
}
