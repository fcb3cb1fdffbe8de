/* The coordinator's two queues: blocks from the parent's threads, and the file's bytes to its reader. */
#include "coord_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

/* ---- the queue from the parent's threads ---- */
void wake(void) {
    uint64_t one = 1;
    if (c.wake >= 0 && write(c.wake, &one, sizeof one) < 0) return; /* full: it is awake anyway */
}

void coord_look(void) {
    pthread_mutex_lock(&c.lock);
    wake();
    pthread_mutex_unlock(&c.lock);
}

struct block *block_make(const uint8_t *data, uint32_t len) {
    struct block *b = malloc(sizeof *b + len);
    if (!b) return NULL;
    *b = (struct block){.len = len};
    if (len) memcpy(b->data, data, len);
    return b;
}

bool coord_push(struct block *b, struct slot *s, uint32_t gen, uint32_t block) {
    b->slot = s;
    b->gen = gen;
    b->block = block;
    pthread_mutex_lock(&c.lock);
    bool ok = c.accepting;
    if (ok) {
        *c.queue_tail = b;
        c.queue_tail = &b->next;
        wake();
    }
    pthread_mutex_unlock(&c.lock);
    if (!ok) free(b);
    return ok;
}

void coord_cut(void) {
    pthread_mutex_lock(&c.lock);
    if (c.accepting) c.cut = true;
    pthread_mutex_unlock(&c.lock);
}

void free_blocks(struct block *b) {
    while (b) {
        struct block *next = b->next;
        free(b);
        b = next;
    }
}

/* ---- the queue to the reader ---- */
void sink(void *arg, const uint8_t *bytes, size_t len) {
    (void)arg;
    pthread_mutex_lock(&c.lock);
    if (c.cut) c.merge.failed = true;
    if (c.merge.failed) len = 0; /* what comes now does not follow what came before */
    struct chunk *last = c.out ? (struct chunk *)((char *)c.out_tail - offsetof(struct chunk, next)) : NULL;
    while (len > 0) {
        if (!last || last->len == last->cap) {
            last = malloc(sizeof *last + CHUNK);
            if (!last) {
                c.merge.failed = true;
                break;
            }
            *last = (struct chunk){.cap = CHUNK, .number = ++c.chunks};
            *c.out_tail = last;
            c.out_tail = &last->next;
        }
        size_t n = last->cap - last->len < len ? last->cap - last->len : len;
        memcpy(last->bytes + last->len, bytes, n);
        last->len += n;
        c.out_bytes += n;
        bytes += n;
        len -= n;
    }
    pthread_cond_broadcast(&c.cond);
    pthread_mutex_unlock(&c.lock);
}

bool wait_until(uint64_t deadline) {
    struct timespec t = {(time_t)(deadline / 1000000000u), (long)(deadline % 1000000000u)};
    return pthread_cond_timedwait(&c.cond, &c.lock, &t) != ETIMEDOUT;
}

int coord_wait(size_t *len, uint64_t wait_ns) {
    uint64_t deadline = now_ns() + wait_ns;
    pthread_mutex_lock(&c.lock);
    while (!c.out && !c.stopped && wait_until(deadline)) {}
    int what = c.out ? READ_DATA : c.stopped ? READ_END : READ_AGAIN;
    if (what == READ_DATA) *len = c.out->cap = c.out->len; /* it grows no more */
    pthread_mutex_unlock(&c.lock);
    return what;
}

bool coord_read(uint8_t *to, size_t len) {
    pthread_mutex_lock(&c.lock);
    struct chunk *k = c.out;
    bool mine = k && k->len == len;
    if (mine) {
        memcpy(to, k->bytes, len);
        c.out = k->next;
        if (!c.out) c.out_tail = &c.out;
        c.out_bytes -= len;
        c.chunks_read = k->number;
        wake(); /* an advance may wait for this */
        pthread_cond_broadcast(&c.cond);
    }
    pthread_mutex_unlock(&c.lock);
    if (mine) free(k);
    return mine;
}

uint64_t coord_queued(void) {
    pthread_mutex_lock(&c.lock);
    uint64_t n = c.out_bytes;
    pthread_mutex_unlock(&c.lock);
    return n;
}
