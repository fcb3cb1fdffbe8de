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

bool coord_push(struct slot *s, uint32_t gen, uint32_t block, const uint8_t *data, uint32_t len, bool close, bool lost) {
    struct block *b = malloc(sizeof *b + len);
    if (!b) {
        atomic_fetch_add_explicit(&s->entry->lost, 1, memory_order_relaxed);
        return false;
    }
    *b = (struct block){.slot = s, .gen = gen, .block = block, .len = len, .close = close, .lost = lost};
    if (len) memcpy(b->data, data, len);
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

int coord_read(uint8_t **bytes, size_t *len, uint64_t wait_ns) {
    uint64_t deadline = now_ns() + wait_ns;
    pthread_mutex_lock(&c.lock);
    while (!c.out && !c.stopped && wait_until(deadline)) {}
    int what = c.out ? READ_DATA : c.stopped ? READ_END : READ_AGAIN;
    if (what == READ_DATA) {
        struct chunk *k = c.out;
        c.out = k->next;
        if (!c.out) c.out_tail = &c.out;
        c.out_bytes -= k->len;
        *len = k->len;
        *bytes = malloc(k->len ? k->len : 1);
        if (*bytes) memcpy(*bytes, k->bytes, k->len);
        c.chunks_read = k->number;
        free(k);
        wake(); /* an advance may wait for this */
    }
    pthread_cond_broadcast(&c.cond);
    pthread_mutex_unlock(&c.lock);
    return what;
}

uint64_t coord_queued(void) {
    pthread_mutex_lock(&c.lock);
    uint64_t n = c.out_bytes;
    pthread_mutex_unlock(&c.lock);
    return n;
}
