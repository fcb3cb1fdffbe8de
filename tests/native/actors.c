/* See actors.h. */
#include "actors.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

pthread_mutex_t gil = PTHREAD_MUTEX_INITIALIZER;
__thread bool gil_mine, starting;

uint32_t random_below(uint64_t *state, uint32_t n) {
    uint64_t x = *state += 0x9e3779b97f4a7c15ull; /* splitmix64 */
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return (uint32_t)((x ^ (x >> 31)) >> 32) % n;
}

void pt_pause(void) {
    static au64 threads;
    static __thread uint64_t random;
    if (!random) random = atomic_fetch_add(&threads, 1) * 7919 + (uint64_t)getpid();
    uint32_t dice = random_below(&random, 256);
    if (dice == 0) usleep(random_below(&random, 200));
    else if (dice < 8) sched_yield();
}

void die(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(2);
}

void gil_take(void) {
    pthread_mutex_lock(&gil);
    gil_mine = true;
}

void gil_drop(void) {
    gil_mine = false;
    pthread_mutex_unlock(&gil);
}

int arena_open_temp(char *path, size_t size) {
    const char *dir = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    snprintf(path, size, "%s/pooltrace-native-%d", dir, (int)getpid());
    unlink(path);
    return arena_create(path);
}

void worker_open(struct actor *a, uint64_t p) {
    int ends[2], err;
    memset(a, 0, sizeof *a);
    if (pipe2(ends, O_CLOEXEC) != 0 || fcntl(ends[0], F_SETFL, O_NONBLOCK) < 0) die("pipe");
    (void)fcntl(ends[0], F_SETPIPE_SZ, PT_PIPE);
    a->p = p;
    a->pipe = ends[1];
    a->slot = slot_open(KIND_WORKER, p, ends[0], &a->index, &err);
    if (!a->slot) {
        errno = err;
        die("slot_open");
    }
}

void worker_attach(struct actor *a, const char *path, bool forked) {
    struct writer *w = a->w = &a->own;
    w->kind = KIND_WORKER;
    w->index = (uint32_t)a->index;
    w->trunk = &a->trunk;
    a->trunk = (struct trunk){.lock = PTHREAD_MUTEX_INITIALIZER, .fd = a->pipe};
    if (fcntl(a->pipe, F_SETFL, O_NONBLOCK) < 0) die("fcntl");
    if (forked) {
        int file = open(path, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
        if (file < 0 || !(w->head = head_map(file)) || !(w->entry = entry_map(file, (uint32_t)a->index))) die("attach");
        close(file);
    } else {
        w->head = registry.head;
        w->entry = a->slot->entry;
    }
    STORE(&w->entry->m, (uint64_t)syscall(SYS_gettid));
}

void worker_detach(struct actor *a) {
    close(a->trunk.fd);
    a->own.entry = NULL;
}

struct slot *start_trace(int header, uint64_t period) {
    struct coord_options o = {.header = header, .period = period, .patience = 60000000000u, .starter_g = atomic_fetch_add(&counters->g, 1)};
    o.start = (struct named_unit){.g = o.starter_g, .function = "main", .file = "native.c", .function_len = 4, .file_len = 8};
    struct writer *w = writer_get();
    if (!w) die("writer_get");
    if (writer_valid(w)) {
        slot_free(w->slot);
        w->entry = NULL;
    }
    p0_take_back();
    if (!writer_register(w, true)) die("writer_register");
    o.starter = w->slot;
    starting = true;
    errno = coord_start(&o);
    starting = false;
    if (errno) {
        if (errno != ENOMEM) die("coord_start");
        w->starter = false;
        return NULL;
    }
    w->in_first = LOAD(&registry.head->first_gen);
    return w->slot;
}

uint8_t *next_piece(size_t *len) {
    int what;
    while ((what = coord_wait(len, 100000000)) == READ_AGAIN) {}
    if (what == READ_END) return NULL;
    uint8_t *bytes = malloc(*len);
    if (!bytes || !coord_read(bytes, *len)) die("coord_read");
    return bytes;
}

bool say(struct writer *w, enum op op, const uint64_t *args, int n) {
    struct event ev;
    do {
        if (!writer_open(w, &ev, 16 + 10 * (size_t)n)) return false;
        *ev.p++ = (uint8_t)op;
        ev.p = put_varint(ev.p, ev.dt);
        for (int i = 0; i < n; i++) ev.p = put_varint(ev.p, args[i]);
    } while (!writer_publish(w, &ev));
    return true;
}

/* String 1 of the stream is the text.  The generation in which it is defined now, or 0. */
static uint32_t define_name(struct writer *w, const char *text) {
    size_t len = strlen(text);
    struct event ev;
    do {
        if (!writer_open(w, &ev, len + 24)) return 0;
        ev.definition = true;
        *ev.p++ = OP_STRING;
        *ev.p++ = 1;
        ev.p = put_varint(ev.p, len);
        memcpy(ev.p, text, len);
        ev.p += len;
    } while (!writer_publish(w, &ev));
    return ev.gen;
}

bool say_region(struct writer *w, uint32_t *name_gen, uint32_t kind, const char *name) {
    struct event ev;
    do {
        while (true) {
            if (!writer_open(w, &ev, 48)) return false;
            if (*name_gen == ev.gen) break;
            if (!(*name_gen = define_name(w, name))) return false;
        }
        *ev.p++ = OP_REGION;
        ev.p = put_varint(ev.p, ev.dt);
        *ev.p++ = (uint8_t)kind;
        *ev.p++ = 0;
        *ev.p++ = 1;
        *ev.p++ = 0;
    } while (!writer_publish(w, &ev));
    return true;
}
