/* Strings, stacks and batches of the file: ids per generation, limits kept.
 *
 * A string or stack lives as long as it is used in the generation at hand or held by an open region, a running unit or
 * a stack; so memory follows the largest generation, not the run.
 */
#include "merge.h"

#include <stdlib.h>

static uint64_t hash_bytes(uint64_t h, const uint8_t *p, size_t n) { /* FNV-1a, then mixed */
    for (size_t i = 0; i < n; i++) h = (h ^ p[i]) * 0x100000001b3ull;
    h ^= h >> 29;
    return h * 0xbf58476d1ce4e5b9ull;
}

static bool grow(void ***table, uint32_t *size, uint32_t count, size_t chain_at, size_t hash_at) {
    if (*size && count < *size) return true;
    uint32_t bigger = *size ? 2 * *size : 256;
    void **fresh = calloc(bigger, sizeof *fresh);
    if (!fresh) return *size != 0;
    for (uint32_t i = 0; i < *size; i++)
        for (void *item = (*table)[i]; item;) {
            void **chain = (void **)((char *)item + chain_at), *next = *chain;
            uint64_t h = *(uint64_t *)((char *)item + hash_at);
            *chain = fresh[h & (bigger - 1)];
            fresh[h & (bigger - 1)] = item;
            item = next;
        }
    free(*table);
    *table = fresh;
    *size = bigger;
    return true;
}

struct str *str_get(struct merge *g, const uint8_t *bytes, uint32_t len) {
    uint64_t h = hash_bytes(0xcbf29ce484222325ull, bytes, len);
    if (!grow((void ***)&g->str_table, &g->str_size, g->str_count, offsetof(struct str, chain), offsetof(struct str, hash)))
        return g->failed = true, NULL;
    struct str **at = &g->str_table[h & (g->str_size - 1)];
    for (struct str *s = *at; s; s = s->chain)
        if (s->hash == h && s->len == len && !memcmp(s->bytes, bytes, len)) return s;
    struct str *s = calloc(1, sizeof *s + len);
    if (!s) return g->failed = true, NULL;
    s->hash = h;
    s->len = len;
    memcpy(s->bytes, bytes, len);
    s->chain = *at;
    *at = s;
    g->str_count++;
    g->str_bytes += sizeof *s + len;
    return s;
}

struct stk *stk_get(struct merge *g, const struct stk_frame *frames, uint32_t n) {
    uint64_t h = 0x9ae16a3b2f90404full;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t key[3] = {(uint64_t)(uintptr_t)frames[i].function, (uint64_t)(uintptr_t)frames[i].file, frames[i].line};
        h = hash_bytes(h, (const uint8_t *)key, sizeof key);
    }
    if (!grow((void ***)&g->stk_table, &g->stk_size, g->stk_count, offsetof(struct stk, chain), offsetof(struct stk, hash)))
        return g->failed = true, NULL;
    struct stk **at = &g->stk_table[h & (g->stk_size - 1)];
    for (struct stk *s = *at; s; s = s->chain) {
        bool same = s->hash == h && s->n == n;
        for (uint32_t i = 0; same && i < n; i++)
            same = s->frames[i].function == frames[i].function && s->frames[i].file == frames[i].file &&
                   s->frames[i].line == frames[i].line;
        if (same) return s;
    }
    struct stk *s = calloc(1, sizeof *s + n * sizeof *frames);
    if (!s) return g->failed = true, NULL;
    s->hash = h;
    s->n = n;
    for (uint32_t i = 0; i < n; i++) {
        s->frames[i] = frames[i];
        frames[i].function->refs++;
        frames[i].file->refs++;
        uint64_t pc = hash_bytes(frames[i].function->hash, frames[i].file->bytes, frames[i].file->len);
        pc = hash_bytes(pc, (const uint8_t *)&frames[i].line, sizeof frames[i].line);
        s->frames[i].pc = pc >> 1 | 1; /* equal in every process, never 0 */
    }
    s->chain = *at;
    *at = s;
    g->stk_count++;
    return s;
}

static bool push(void ***array, uint32_t *n, uint32_t *cap, void *item) {
    if (*n == *cap) {
        uint32_t bigger = *cap ? 2 * *cap : 256;
        void **grown = realloc(*array, bigger * sizeof *grown);
        if (!grown) return false;
        *array = grown;
        *cap = bigger;
    }
    (*array)[(*n)++] = item;
    return true;
}

uint64_t str_use(struct merge *g, struct str *s) {
    if (!s) return 0;
    if (s->gen != g->gen) {
        if (!push((void ***)&g->gen_strs, &g->n_gen_strs, &g->gen_strs_cap, s)) return g->failed = true, 0;
        s->gen = g->gen;
        s->id = g->n_gen_strs;
    }
    return s->id;
}

uint64_t stk_use(struct merge *g, struct stk *s) {
    if (!s || s->n == 0) return 0;
    if (s->gen != g->gen) {
        for (uint32_t i = 0; i < s->n; i++) {
            str_use(g, s->frames[i].function);
            str_use(g, s->frames[i].file);
        }
        if (!push((void ***)&g->gen_stks, &g->n_gen_stks, &g->gen_stks_cap, s)) return g->failed = true, 0;
        s->gen = g->gen;
        s->id = g->n_gen_stks;
    }
    return s->id;
}

/* ---- batches ---- */
void merge_bytes(struct merge *g, const uint8_t *bytes, size_t len) {
    if (g->failed) return; /* the file is cut off, and not wrong */
    g->bytes += len;
    g->sink(g->sink_arg, bytes, len);
}

static void batch(struct merge *g, uint64_t m, uint64_t time, const uint8_t *bytes, uint32_t len) {
    uint8_t head[48], *p = head;
    *p++ = GoEventBatch;
    p = put_varint(p, g->gen);
    p = put_varint(p, m);
    p = put_varint(p, time);
    p = put_varint(p, len);
    merge_bytes(g, head, (size_t)(p - head));
    merge_bytes(g, bytes, len);
}

void out_flush(struct merge *g, struct out *o) {
    if (o->len && !g->over) batch(g, o->m, o->first, o->buf, o->len);
    o->len = 0;
}

/* Times of one M rise strictly: Go's reader would move the second of two equal ones. */
void out_event(struct merge *g, struct out *o, enum go_event type, uint64_t time, const uint64_t *args, int n) {
    if (g->over) return;
    if (!o->buf && !(o->buf = malloc(PT_BLOCK))) {
        g->failed = true;
        return;
    }
    if (o->len + 80 > PT_BLOCK) out_flush(g, o);
    if (time <= o->last) time = o->last + 1;
    if (o->len == 0) {
        o->first = time;
        o->last = time;
    }
    uint8_t *p = o->buf + o->len;
    *p++ = (uint8_t)type;
    p = put_varint(p, time - o->last);
    for (int i = 0; i < n; i++) p = put_varint(p, args[i]);
    o->len = (uint32_t)(p - o->buf);
    o->last = time;
    if (time > g->last_time) g->last_time = time;
    g->events++;
}

/* ---- CPU samples ---- */
#define SAMPLES_MAX (1u << 16) /* moments of one generation */
#define WEIGHT_MAX (1u << 16)  /* samples of one moment: eleven minutes at 100 Hz, */
#define WEIGHTS_MAX (1u << 20) /* and of one generation */

void sample_add(struct merge *g, struct sample s) {
    uint32_t room = WEIGHTS_MAX - g->samples_weight, most = room < WEIGHT_MAX ? room : WEIGHT_MAX;
    if (s.weight > most) {
        g->samples_lost += s.weight - most;
        s.weight = most;
    }
    if (!s.weight) return;
    if (g->nsamples == g->samples_cap) {
        uint32_t cap = g->samples_cap ? 2 * g->samples_cap : 256;
        struct sample *grown = cap <= SAMPLES_MAX ? realloc(g->samples, cap * sizeof *grown) : NULL;
        if (!grown) {
            g->samples_lost += s.weight;
            return;
        }
        g->samples = grown;
        g->samples_cap = cap;
    }
    uint64_t back = s.weight - 1, since = s.time - g->gen_time;
    s.time -= back < since ? back : since; /* of the first one: they are written 1 ns apart, this generation's all */
    g->samples[g->nsamples++] = s;
    g->samples_weight += s.weight;
    g->cpu_samples += s.weight;
    if (s.time + back > g->last_time) g->last_time = s.time + back;
}

/* Go's samples have no weight: each is written as often as it counts, 1 ns apart, since Go's reader would move those that
 * share a time, and true events along with them. */
void samples_write(struct merge *g) {
    uint8_t *buf = g->nsamples ? malloc(PT_BUFFER) : NULL, *p = buf;
    if (g->nsamples && !buf) g->failed = true;
    for (uint32_t i = 0; buf && i < g->nsamples; i++) {
        const struct sample *s = &g->samples[i];
        for (uint32_t k = 0; k < s->weight; k++) {
            if (p == buf) *p++ = GoCPUSamples;
            *p++ = GoCPUSample;
            p = put_varint(p, s->time + k);
            p = put_varint(p, s->m);
            p = put_varint(p, s->p);
            p = put_varint(p, s->g);
            p = put_varint(p, s->stack);
            if ((size_t)(p - buf) + 64 < PT_BLOCK) continue;
            batch(g, NO_M, g->gen_time, buf, (uint32_t)(p - buf));
            p = buf;
        }
    }
    if (p != buf) batch(g, NO_M, g->gen_time, buf, (uint32_t)(p - buf));
    free(buf);
    g->nsamples = g->samples_weight = 0;
    g->samples_lost = 0;
}

/* ---- the tables: samples come before them, stacks before strings ---- */
void tables_write(struct merge *g) {
    uint8_t *buf = malloc(PT_BUFFER), *p = buf;
    if (!buf) {
        g->failed = true;
        return;
    }
    *p++ = GoStacks;
    for (uint32_t i = 0; i < g->n_gen_stks; i++) {
        struct stk *s = g->gen_stks[i];
        if ((size_t)(p - buf) + 24 + s->n * 40u > PT_BLOCK) {
            batch(g, NO_M, g->gen_time, buf, (uint32_t)(p - buf));
            p = buf + 1;
        }
        *p++ = GoStack;
        p = put_varint(p, s->id);
        p = put_varint(p, s->n);
        for (uint32_t k = 0; k < s->n; k++) {
            p = put_varint(p, s->frames[k].pc);
            p = put_varint(p, s->frames[k].function->id);
            p = put_varint(p, s->frames[k].file->id);
            p = put_varint(p, s->frames[k].line);
        }
    }
    if (p > buf + 1) batch(g, NO_M, g->gen_time, buf, (uint32_t)(p - buf));
    p = buf;
    *p++ = GoStrings;
    for (uint32_t i = 0; i < g->n_gen_strs; i++) {
        struct str *s = g->gen_strs[i];
        if ((size_t)(p - buf) + 24 + s->len > PT_BLOCK) {
            batch(g, NO_M, g->gen_time, buf, (uint32_t)(p - buf));
            p = buf + 1;
        }
        *p++ = GoString;
        p = put_varint(p, s->id);
        p = put_varint(p, s->len);
        memcpy(p, s->bytes, s->len);
        p += s->len;
    }
    if (p > buf + 1) batch(g, NO_M, g->gen_time, buf, (uint32_t)(p - buf));
    free(buf);
}

/* What the closed generation did not use and nothing holds goes away. */
void tables_evict(struct merge *g) {
    for (uint32_t i = 0; i < g->stk_size; i++)
        for (struct stk **at = &g->stk_table[i]; *at;) {
            struct stk *s = *at;
            if (s->refs || s->gen == g->gen) {
                at = &s->chain;
                continue;
            }
            for (uint32_t k = 0; k < s->n; k++) {
                s->frames[k].function->refs--;
                s->frames[k].file->refs--;
            }
            *at = s->chain;
            g->stk_count--;
            free(s);
        }
    for (uint32_t i = 0; i < g->str_size; i++)
        for (struct str **at = &g->str_table[i]; *at;) {
            struct str *s = *at;
            if (s->refs || s->gen == g->gen) {
                at = &s->chain;
                continue;
            }
            *at = s->chain;
            g->str_count--;
            g->str_bytes -= sizeof *s + s->len;
            free(s);
        }
    g->n_gen_strs = g->n_gen_stks = 0;
}

void tables_free(struct merge *g) {
    for (uint32_t i = 0; i < g->stk_size; i++)
        for (struct stk *s = g->stk_table[i], *next; s; s = next) {
            next = s->chain;
            free(s);
        }
    for (uint32_t i = 0; i < g->str_size; i++)
        for (struct str *s = g->str_table[i], *next; s; s = next) {
            next = s->chain;
            free(s);
        }
    free(g->str_table);
    free(g->stk_table);
    free(g->gen_strs);
    free(g->gen_stks);
    g->str_table = NULL;
    g->stk_table = NULL;
    g->gen_strs = NULL;
    g->gen_stks = NULL;
    g->str_size = g->stk_size = g->str_count = g->stk_count = 0;
}
