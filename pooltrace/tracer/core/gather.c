/* Gathering: whole blocks from pipes and queue, each to its generation; and the list of Ms. */
#include "coord_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define EARLY 0x8000u /* a block number has 16 bits */

/* ---- blocks ---- */
void take(struct slot *s, uint32_t block, const uint8_t *data, uint32_t len) {
    if (c.merge.over) return; /* the tables are gone */
    struct mst *m = merge_add(&c.merge, s);
    if (!m) return;
    if (block < m->next_block) return; /* it came by the other way already */
    if (block > m->next_block) c.merge.lost_events++;
    if (block > EARLY) c.early = true;
    m->next_block = block + 1;
    merge_feed(&c.merge, m, data, len);
}

/* A thread, of the parent or a guest, has ended. */
void bury(struct slot *s) {
    struct mst *m = merge_add(&c.merge, s);
    if (m) merge_close_m(&c.merge, m, c.switched ? c.switched : now_ns(), NULL, 0); /* not behind the switch */
    forget_slot(s);
    slot_free(s);
}

static void hold(struct block *b) {
    b->next = NULL;
    *c.held_tail = b;
    c.held_tail = &b->next;
}

/* A block of the open generation is taken; one of a later one is left alone: false. */
static bool sort_in(struct block *b) {
    if (gen_before(c.merge.gen, b->gen)) return false;
    struct slot *s = b->slot;
    if (!s) { /* its M was buried */
        c.merge.lost_events++;
    } else if (b->close) {
        bury(s);
    } else if (b->gen == c.merge.gen) {
        take(s, b->block, b->data, b->len);
    }
    return true;
}

void take_queue(void) {
    pthread_mutex_lock(&c.lock);
    struct block *b = c.queue;
    c.queue = NULL;
    c.queue_tail = &c.queue;
    pthread_mutex_unlock(&c.lock);
    while (b) {
        struct block *next = b->next;
        if (sort_in(b)) free(b);
        else hold(b);
        b = next;
    }
}

void take_held(void) { /* in place: what is sorted in may bury an M that has more here */
    struct block **at = &c.held;
    while (*at) {
        struct block *b = *at;
        if (sort_in(b)) {
            *at = b->next;
            free(b);
        } else {
            at = &b->next;
        }
    }
    c.held_tail = at;
}

/* Whole blocks in a pipe's buffer go on. */
static void take_pipe_block(struct in_pipe *p) {
    struct block_head h;
    memcpy(&h, p->buf, sizeof h);
    const uint8_t *data = p->buf + sizeof h;
    bool old = h.gen != c.merge.gen && h.gen != gen_next(c.merge.gen);
    p->fill = 0;
    if (old && h.len > 0) return; /* it was taken from the arena */
    struct slot *s = h.entry == p->slot->index ? p->slot : slot_guest(p->slot, h.entry);
    if (!s || (h.len == 0 && s == p->slot)) {
        if (!old) c.merge.lost_events++;
    } else if (h.gen == gen_next(c.merge.gen)) {
        struct block *b = block_make(data, h.len);
        if (b) {
            b->slot = s;
            b->gen = h.gen;
            b->block = h.block;
            b->close = h.len == 0;
            hold(b);
        } else {
            c.merge.lost_events++;
        }
    } else if (h.len == 0) {
        bury(s); /* whatever its generation: it is gone */
    } else if (h.gen == c.merge.gen) {
        take(s, h.block, data, h.len);
    }
}

/* Reads what is there; about max bytes of it.  A pipe that makes no sense is closed. */
void drain(struct in_pipe *p, size_t max) {
    while (p->slot->pipe >= 0) {
        uint32_t want = sizeof(struct block_head);
        if (p->fill >= want) {
            struct block_head h;
            memcpy(&h, p->buf, sizeof h);
            if (h.magic != PT_BLOCK_MAGIC || h.len > PT_BLOCK) {
                slot_close_pipe(p->slot);
                c.merge.lost_events++;
                return;
            }
            want += h.len;
        }
        if (p->fill == want) {
            take_pipe_block(p);
            continue;
        }
        if (max == 0) return;
        ssize_t n = read(p->slot->pipe, p->buf + p->fill, want - p->fill);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return; /* nothing now, or its writers are gone: the arena has the rest */
        p->fill += (uint32_t)n;
        max -= (size_t)n < max ? (size_t)n : max;
    }
}

/* What stood in the pipe when it was asked: after a switch, all of the generation that it closed.  A worker that writes
 * faster than it is read goes on meanwhile, in the next generation, and would keep an advance from its end. */
void drain_standing(struct in_pipe *p) {
    int standing;
    if (p->slot->pipe < 0) return;
    drain(p, ioctl(p->slot->pipe, FIONREAD, &standing) == 0 && standing >= 0 ? (size_t)standing : PT_PIPE);
}

/* What a dead writer has left in the arena. */
void take_rest(struct slot *s) {
    uint64_t word = LOAD(&s->entry->word);
    uint32_t gen = word_gen(word), pos = word_pos(word);
    if (word_on(word) && gen == c.merge.gen && pos && pos <= PT_BLOCK)
        take(s, word_block(word), s->entry->buffer[gen & 1], pos);
}

/* Guests that left without a word: what they wrote has been gathered, unless some of it is of the next generation. */
void bury_ended(uint32_t next) {
    for (uint32_t i = c.n; i-- > 0;) {
        struct slot *s = c.slots[i];
        if (s->kind != KIND_GUEST || !(LOAD(&registry.head->owner[s->index]) & OWNER_ENDED)) continue;
        uint64_t word = LOAD(&s->entry->word);
        if (word_gen(word) == next && (!word_on(word) || (word_pos(word) == 0 && word_block(word) == 0))) bury(s);
    }
}

/* ---- the Ms ---- */
struct in_pipe *pipe_of(struct slot *s) {
    for (uint32_t i = 0; i < c.npipes; i++)
        if (c.pipes[i]->slot == s) return c.pipes[i];
    return NULL;
}

void forget_slot(struct slot *s) {
    for (struct block *b = c.held; b; b = b->next)
        if (b->slot == s) b->slot = NULL; /* it may soon be another's */
    for (uint32_t i = 0; i < c.n; i++)
        if (c.slots[i] == s) {
            memmove(&c.slots[i], &c.slots[i + 1], (c.n - i - 1) * sizeof *c.slots);
            memmove(&c.finals[i], &c.finals[i + 1], (c.n - i - 1) * sizeof *c.finals);
            c.n--;
            break;
        }
    for (uint32_t i = 0; i < c.npipes; i++)
        if (c.pipes[i]->slot == s) {
            c.pipes[i] = c.pipes[--c.npipes];
            break;
        }
}

static bool add_slot(struct slot *s) {
    if (c.n == c.cap) {
        uint32_t cap = c.cap ? 2 * c.cap : 32;
        struct slot **slots = realloc(c.slots, cap * sizeof *slots);
        if (slots) c.slots = slots;
        uint64_t *finals = realloc(c.finals, cap * sizeof *finals);
        if (finals) c.finals = finals;
        struct in_pipe **pipes = realloc(c.pipes, cap * sizeof *pipes);
        if (pipes) c.pipes = pipes;
        struct pollfd *fds = realloc(c.fds, (cap + 1) * sizeof *fds);
        if (fds) c.fds = fds;
        if (!slots || !finals || !pipes || !fds) return false;
        c.cap = cap;
    }
    if (s->pipe >= 0) {
        struct in_pipe *p = s->in; /* a block cut off by the end of the last trace is still to be read to its end */
        if (!p) {
            if (!(p = malloc(sizeof *p))) return false;
            p->slot = s;
            p->fill = 0;
            s->in = p;
        }
        c.pipes[c.npipes++] = p;
    }
    c.finals[c.n] = 0;
    c.slots[c.n++] = s;
    return true;
}

/* Under registry.lock: Ms that came since; the list stays in order of registration. */
void list_slots(void) {
    slots_adopt();
    if (c.list_serial == registry.serials) return;
    uint64_t seen = c.list_serial;
    for (;;) {
        struct slot *next = NULL;
        for (uint32_t i = 0; i < registry.n; i++) {
            struct slot *s = registry.slots[i];
            if (s->state == SLOT_USED && s->serial > seen && (!next || s->serial < next->serial)) next = s;
        }
        if (!next) break;
        if (!add_slot(next)) c.merge.failed = true;
        seen = next->serial;
    }
    c.list_serial = registry.serials;
}
