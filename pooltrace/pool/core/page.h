/* The page that the parent shares with one worker: claims, and the ring of small results.
 *
 * Claims.  A unit that is sent has a number, and a word: offered by the parent before it is sent, then moved once, by
 * compare-and-swap: by the worker to claimed before it starts, or by the parent to taken, back.  So a unit is started or
 * taken back, never both; what a dead worker had begun are its claimed words without an answer, one at most.  A word
 * serves again only when the worker is past its unit (`passed`); the number in it says so a second time.
 *
 * Results.  The worker appends records and publishes them by storing `head`; what is not published when it dies does not
 * count.  It rings (a frame on the socket) when it sees fit, and once only until the parent has looked: it sets `rung`
 * after `head`, the parent clears it before it reads `head`.  So the parent finds every result that was published before
 * the bell that it heard, and of those afterwards there is another bell.  A parent that looks for a while without being
 * told sets `rung` itself meanwhile, and clears it as if it had heard a bell.
 *
 * The parent trusts nothing that it reads here: a user's code may have written over it.
 */
#ifndef POOLTRACE_PAGE_H
#define POOLTRACE_PAGE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef PT_TEST /* only in tests/native: a moment in which the other may come in between */
void page_pause(void);
#else
static inline void page_pause(void) {}
#endif

#define WINDOW 256u             /* units that can be on their way to one worker */
#define RESULTS (64u * 1024u)   /* bytes of the ring */
#define RESULT_MOST 4096u       /* of one record; larger ones take the socket */

enum claim { CLAIM_NONE, CLAIM_OFFERED, CLAIM_CLAIMED, CLAIM_TAKEN };

struct page {
    _Atomic uint64_t claim[WINDOW];  /* parent offers, both move on: number << 2 | enum claim */
    _Alignas(64) _Atomic uint64_t passed; /* worker: numbers below this are taken off the channel, started or skipped */
    _Atomic uint64_t head;           /* worker: bytes of results ever published */
    _Atomic uint64_t begun;          /* worker: when it claimed the unit that runs, ns << 8 | number % WINDOW; 0: it answers */
    _Alignas(64) _Atomic uint64_t tail; /* parent: bytes of them that it has taken */
    _Alignas(64) _Atomic uint64_t rung; /* both: there is a bell that the parent has not heard */
    _Alignas(64) uint8_t results[RESULTS]; /* worker, between head and tail + RESULTS */
};

struct record {                      /* then len bytes, then up to a multiple of 8 */
    uint32_t len, flags;
    uint64_t seq, ns;                /* which unit, and how long it took */
};

static inline uint64_t claim_word(uint64_t seq, enum claim state) { return seq << 2 | (uint64_t)state; }

static inline void claim_offer(struct page *p, uint64_t seq) {
    atomic_store_explicit(&p->claim[seq % WINDOW], claim_word(seq, CLAIM_OFFERED), memory_order_release);
}
/* true: it is ours, and nobody else's. */
static inline bool claim_move(struct page *p, uint64_t seq, enum claim to) {
    uint64_t offered = claim_word(seq, CLAIM_OFFERED);
    page_pause();
    uint64_t next = claim_word(seq, to);
    return atomic_compare_exchange_strong_explicit(&p->claim[seq % WINDOW], &offered, next, memory_order_acq_rel,
                                                   memory_order_acquire);
}
static inline bool claim_is(struct page *p, uint64_t seq, enum claim state) {
    return atomic_load_explicit(&p->claim[seq % WINDOW], memory_order_acquire) == claim_word(seq, state);
}

static inline void ring_put(struct page *p, uint64_t at, const void *data, size_t n) {
    size_t begin = at % RESULTS, first = n < RESULTS - begin ? n : RESULTS - begin;
    memcpy(p->results + begin, data, first);
    memcpy(p->results, (const uint8_t *)data + first, n - first);
}
static inline void ring_get(const struct page *p, uint64_t at, void *data, size_t n) {
    size_t begin = at % RESULTS, first = n < RESULTS - begin ? n : RESULTS - begin;
    memcpy(data, p->results + begin, first);
    memcpy((uint8_t *)data + first, p->results, n - first);
}
static inline size_t record_bytes(size_t len) { return sizeof(struct record) + ((len + 7) & ~(size_t)7); }

/* Worker.  false: there is no room now, or it is too large. */
static inline bool result_put(struct page *p, const struct record *r, const void *data) {
    uint64_t head = atomic_load_explicit(&p->head, memory_order_relaxed);
    uint64_t tail = atomic_load_explicit(&p->tail, memory_order_acquire);
    size_t bytes = record_bytes(r->len);
    if (bytes > RESULT_MOST || bytes > RESULTS - (head - tail)) return false;
    ring_put(p, head, r, sizeof *r);
    ring_put(p, head + sizeof *r, data, r->len);
    page_pause();
    atomic_store_explicit(&p->head, head + bytes, memory_order_release);
    return true;
}
/* Worker, after results were put there: true if it has to send the bell. */
static inline bool bell_due(struct page *p) {
    page_pause();
    return atomic_exchange(&p->rung, 1) == 0;
}

/* Worker: the parent has all results that were published, and so need not be told of them. */
static inline bool results_are_taken(struct page *p) {
    return atomic_load_explicit(&p->tail, memory_order_acquire) == atomic_load_explicit(&p->head, memory_order_relaxed);
}

/* Parent: the worker is not to ring, since it looks by itself, and ends that with bell_heard.  true: a bell is under way. */
static inline bool bell_hold(struct page *p) { return atomic_exchange(&p->rung, 1) != 0; }
/* Parent: from now on the worker rings again; what was published before is seen by who reads `head` now. */
static inline uint64_t bell_heard(struct page *p) {
    atomic_exchange(&p->rung, 0);
    page_pause();
    return atomic_load_explicit(&p->head, memory_order_acquire);
}
/* Parent: the record at *tail, with head as it was read.  1: *r, its bytes at *tail + sizeof *r; 0: there is none;
 * -1: it makes no sense. */
static inline int result_peek(const struct page *p, uint64_t tail, uint64_t head, struct record *r) {
    if (head == tail) return 0;
    if (head - tail > RESULTS || head - tail < sizeof *r) return -1;
    ring_get(p, tail, r, sizeof *r);
    return r->len <= RESULT_MOST && record_bytes(r->len) <= head - tail ? 1 : -1;
}
static inline void results_taken(struct page *p, uint64_t tail) {
    atomic_store_explicit(&p->tail, tail, memory_order_release);
}

#endif
