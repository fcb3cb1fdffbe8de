/* Figures for the summary, counted while the streams are merged: no second pass over the file. */
#include "merge.h"

#include <stdlib.h>

#define FUNCTIONS_MAX 1024 /* further names share one line */

/* Log-linear buckets: 64 for each power of two, so a quantile is right within 1.6 %. */
static uint32_t bucket_of(uint64_t ns) {
    if (ns < HIST_SUB) return (uint32_t)ns;
    uint32_t top = 63u - (uint32_t)__builtin_clzll(ns);
    return (top - 5) * HIST_SUB + (uint32_t)(ns >> (top - 6)) - HIST_SUB;
}

static uint64_t bucket_middle(uint32_t b) {
    if (b < HIST_SUB) return b;
    uint32_t top = b / HIST_SUB + 5;
    uint64_t width = (uint64_t)1 << (top - 6);
    return ((uint64_t)(b % HIST_SUB + HIST_SUB) << (top - 6)) + width / 2;
}

uint64_t agg_quantile(const struct agg *a, double q) {
    uint64_t rank = (uint64_t)(q * (double)a->count), seen = 0;
    if (rank >= a->count) rank = a->count ? a->count - 1 : 0;
    for (uint32_t b = 0; b < HIST_SIZE; b++) {
        seen += a->hist[b];
        if (seen > rank) {
            uint64_t v = bucket_middle(b);
            return v > a->max ? a->max : v < a->min ? a->min : v;
        }
    }
    return a->max;
}

static struct agg *agg_of(struct merge *g, struct str *name) {
    if (name->agg) return name->agg;
    if (g->naggs == FUNCTIONS_MAX) return name->agg = g->aggs[FUNCTIONS_MAX - 1];
    struct agg **grown = realloc(g->aggs, (g->naggs + 1) * sizeof *grown);
    if (grown) g->aggs = grown;
    struct agg *a = grown ? calloc(1, sizeof *a) : NULL;
    if (!a) return NULL;
    struct str *shown = name;
    if (g->naggs == FUNCTIONS_MAX - 1) {
        struct str *other = str_get(g, (const uint8_t *)"(further names)", 15);
        if (other) shown = other;
    }
    a->name = shown;
    shown->refs++;
    g->aggs[g->naggs++] = a;
    return name->agg = a;
}

static bool is_named(const struct str *s, const char *name) {
    return s->len == strlen(name) && !memcmp(s->bytes, name, s->len);
}

void account_region(struct merge *g, struct mst *m, const struct region *r, uint64_t end) {
    uint64_t ns = end > r->begin ? end - r->begin : 0;
    struct pst *p = m->kind == KIND_WORKER ? p_get(g, m->p) : NULL;
    if (r->kind == REGION_ITEM) {
        struct agg *a = agg_of(g, r->name);
        if (!m->starting) { /* an initializer's call is no item */
            g->items++;
            if (p) p->item += ns;
        }
        if (!a) return;
        if (a->count++ == 0 || ns < a->min) a->min = ns;
        a->total += ns;
        if (ns > a->max) a->max = ns;
        a->hist[bucket_of(ns)]++;
    } else if (r->kind == REGION_PHASE && p) {
        if (is_named(r->name, "unpickle")) p->unpickle += ns;
        else if (is_named(r->name, "pickle")) p->pickle += ns;
        else if (is_named(r->name, "send")) p->send += ns;
    }
}

static uint64_t alive_from(const struct merge *g, const struct mst *m) {
    return m->slot->opened > g->begin_time ? m->slot->opened : g->begin_time;
}

/* A worker's start-up is a G of its own (pool/worker.py), but no unit of the job's.  What lay between the making of the
 * process and it is part of the start. */
void account_begin(struct merge *g, struct mst *m) {
    m->starting = m->kind == KIND_WORKER && m->start && m->start->n > 0 &&
                  is_named(m->start->frames[0].function, "pooltrace.pool.worker.main");
    if (!m->starting) return;
    struct pst *p = p_get(g, m->p);
    if (p && m->unit_begin > alive_from(g, m)) p->start += m->unit_begin - alive_from(g, m);
}

void account_life(struct merge *g, struct mst *m, uint64_t end) {
    struct pst *p = p_get(g, m->p);
    uint64_t from = alive_from(g, m);
    if (m->kind != KIND_WORKER || !p || end <= from) return;
    p->life += end - from;
    if (m->slot->opened > g->begin_time && !m->last_unit) p->start += end - from; /* it never came to its start-up */
}

void account_unit(struct merge *g, struct mst *m, uint64_t end) {
    struct pst *p = p_get(g, m->p);
    if (m->kind != KIND_WORKER) return;
    if (!m->starting) g->units++;
    if (p && end > m->unit_begin) *(m->starting ? &p->start : &p->unit) += end - m->unit_begin;
}

void account_open(struct merge *g, struct mst *m, uint64_t end) {
    if (m->gs != GS_RUNNING) return;
    for (uint32_t i = 0; i < m->nregions; i++)
        if (m->regions[i].name) account_region(g, m, &m->regions[i], end);
    account_unit(g, m, end);
}
