/* Generations of the file: how one begins (clock, statuses, limits) and how it ends (tables).
 *
 * Statuses take times of their own, one ns apart, in the gap between the last event of the old generation and the
 * switch: Go's reader moves events that share a time, and would push true ones along.
 */
#include "merge.h"

#include <stdio.h>
#include <stdlib.h>

#define ARRAY(...) ((const uint64_t[]){__VA_ARGS__}), (int)(sizeof((const uint64_t[]){__VA_ARGS__}) / sizeof(uint64_t))

void merge_header(struct merge *g) {
    char head[17];
    int n = snprintf(head, sizeof head, "go 1.%d trace", g->header);
    memset(head + n, 0, 16 - (size_t)n);
    merge_bytes(g, (const uint8_t *)head, 16);
}

static void sync_batch(struct merge *g, const struct gen_info *info) {
    uint8_t body[64], *p = body;
    if (g->header >= 25) *p++ = GoSync;
    *p++ = GoFrequency;
    p = put_varint(p, 1000000000u);
    if (g->header >= 25) {
        *p++ = GoClockSnapshot;
        p = put_varint(p, 0);
        p = put_varint(p, g->gen_time);
        p = put_varint(p, info->wall_sec);
        p = put_varint(p, info->wall_nsec);
    }
    uint8_t head[48], *h = head;
    *h++ = GoEventBatch;
    h = put_varint(h, g->gen);
    h = put_varint(h, NO_M);
    h = put_varint(h, g->gen_time);
    h = put_varint(h, (uint64_t)(p - body));
    merge_bytes(g, head, (size_t)(h - head));
    merge_bytes(g, body, (size_t)(p - body));
}

static struct stk *coord_stack(struct merge *g) {
    struct str *function = str_get(g, (const uint8_t *)"pooltrace.coordinator", 21);
    struct str *file = str_get(g, (const uint8_t *)"pooltrace", 9);
    struct stk_frame frame = {.function = function, .file = file};
    return function && file ? stk_get(g, &frame, 1) : NULL;
}

/* The coordinator's M takes its P.  Returns the next free time. */
static uint64_t coord_proc(struct merge *g, uint64_t t) {
    struct pst *p = p_get(g, g->coord_p);
    if (!p) return t;
    if (p->gen != g->gen) {
        p->gen = g->gen;
        p->seq = 0;
        out_event(g, &g->coord, GoProcStatus, t++, ARRAY(g->coord_p, P_IDLE));
    }
    out_event(g, &g->coord, GoProcStart, t++, ARRAY(g->coord_p, ++p->seq));
    return t;
}

/* The coordinator comes in for what only a running G may write; a new G each time. */
static uint64_t coord_in(struct merge *g, uint64_t t) {
    uint64_t id = atomic_fetch_add(&counters->g, 1), stack = stk_use(g, coord_stack(g));
    t = coord_proc(g, t);
    out_event(g, &g->coord, GoGoCreate, t++, ARRAY(id, stack, 0));
    out_event(g, &g->coord, GoGoStart, t++, ARRAY(id, 1));
    return t;
}

static uint64_t coord_out(struct merge *g, uint64_t t) {
    out_event(g, &g->coord, GoGoDestroy, t++, NULL, 0);
    out_event(g, &g->coord, GoProcStop, t++, NULL, 0);
    return t;
}

void merge_coord_log(struct merge *g, uint64_t t, const char *key, const char *value, size_t len) {
    struct str *k = str_get(g, (const uint8_t *)key, (uint32_t)strlen(key));
    struct str *v = str_get(g, (const uint8_t *)value, len > PT_STRING_MAX ? PT_STRING_MAX : (uint32_t)len);
    if (!k || !v) return;
    t = coord_in(g, t);
    out_event(g, &g->coord, GoUserLog, t++, ARRAY(0, str_use(g, k), str_use(g, v), 0));
    coord_out(g, t);
}

/* In the file itself: a log of the coordinator, for the M, or for what no M can be blamed for (m NULL). */
void merge_losses(struct merge *g, struct mst *m, uint64_t t) {
    uint64_t now = m ? LOAD(&m->slot->entry->lost) : g->lost_events, *told = m ? &m->lost_told : &g->lost_told;
    if (now == *told) return;
    char text[64];
    int n = m ? snprintf(text, sizeof text, "%llu of M %llu", (unsigned long long)(now - *told), (unsigned long long)m->out.m)
              : snprintf(text, sizeof text, "%llu", (unsigned long long)(now - *told));
    *told = now;
    merge_coord_log(g, t, "events lost", text, (size_t)n);
}

void merge_coord_cancel(struct merge *g, uint64_t t, uint64_t unit, bool older, struct stk *start) {
    t = coord_proc(g, t);
    if (older) g_status(g, &g->coord, t++, unit, NO_M, G_RUNNABLE, start);
    out_event(g, &g->coord, GoGoStart, t++, ARRAY(unit, 1));
    coord_out(g, t);
}

static uint64_t count_slots(struct merge *g, struct slot **slots, uint32_t n) {
    uint64_t count = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (slots[i]->kind != KIND_WORKER) continue;
        bool again = false;
        for (uint32_t k = 0; k < i; k++) again |= slots[k]->kind == KIND_WORKER && slots[k]->p == slots[i]->p;
        count += !again;
        struct pst *p = p_get(g, slots[i]->p);
        if (p) p->is_slot = true;
    }
    return count;
}

void merge_slots(struct merge *g, uint64_t time, struct slot **slots, uint32_t n) {
    uint64_t count = count_slots(g, slots, n);
    if (count == g->slots) return;
    g->slots = count;
    time = coord_in(g, time);
    out_event(g, &g->coord, GoProcsChange, time++, ARRAY(count, 0));
    coord_out(g, time);
}

static uint64_t open_statuses(struct merge *g, struct slot **slots, uint32_t n, uint64_t t) {
    for (uint32_t i = 0; i < n; i++) {
        struct mst *m = merge_add(g, slots[i]);
        struct pst *p = m ? p_get(g, m->p) : NULL;
        if (!p) continue;
        m->gen = g->gen;
        m->next_block = 0;
        m->nstrs = m->nstrs ? (memset(m->strs, 0, m->nstrs * sizeof *m->strs), m->nstrs) : 0;
        m->nstks = m->nstks ? (memset(m->stks, 0, m->nstks * sizeof *m->stks), m->nstks) : 0;
        if (m->gs == GS_RUNNING) m->seq = 0;
        if (m->has_p) {
            p->gen = g->gen;
            p->seq = 0;
            out_event(g, &m->out, GoProcStatus, t++, ARRAY(m->p, P_RUNNING));
            if (m->gs != GS_RUNNING) continue;
            if (m->start && g->header >= 23)
                out_event(g, &m->out, GoGoStatusStack, t++, ARRAY(m->g, m->out.m, G_RUNNING, stk_use(g, m->start)));
            else out_event(g, &m->out, GoGoStatus, t++, ARRAY(m->g, m->out.m, G_RUNNING));
            if (m->paused) out_event(g, &m->out, GoGCMarkAssistActive, t++, ARRAY(m->g));
        } else if (m->kind == KIND_WORKER && p->gen != g->gen && !p->by) {
            p->gen = g->gen;
            p->seq = 0;
            out_event(g, &g->nobody, GoProcStatus, t++, ARRAY(m->p, P_IDLE));
        }
    }
    return t;
}

/* The coordinator's logs of a generation.  Returns the next free time. */
static uint64_t log_number(struct merge *g, uint64_t t, const char *key, uint64_t value) {
    char text[32];
    int len = snprintf(text, sizeof text, "%llu", (unsigned long long)value);
    struct str *k = str_get(g, (const uint8_t *)key, (uint32_t)strlen(key)), *v = str_get(g, (const uint8_t *)text, (uint32_t)len);
    if (k && v) out_event(g, &g->coord, GoUserLog, t++, ARRAY(0, str_use(g, k), str_use(g, v), 0));
    return t;
}

static uint64_t open_figures(struct merge *g, const struct gen_info *info, uint64_t t) {
    if (g->cpu_period) t = log_number(g, t, "cpu samples per second", 1000000000u / g->cpu_period);
    if (info->processes) t = log_number(g, t, "units waiting", g->waiting);
    for (uint32_t i = 0; i < info->n_processes; i++) {
        const struct process *p = &info->processes[i];
        char key[64], who[32] = "parent";
        if (!p->is_parent) snprintf(who, sizeof who, "Proc %llu", (unsigned long long)p->p);
        const struct { const char *what; uint64_t value; } told[] = {{"rss", p->rss}, {"threads", p->threads}, {"descriptors", p->descriptors}};
        for (size_t k = 0; k < sizeof told / sizeof *told; k++) {
            snprintf(key, sizeof key, "%s %s", who, told[k].what);
            t = log_number(g, t, key, told[k].value);
        }
    }
    return t;
}

void merge_open(struct merge *g, uint32_t gen, const struct gen_info *info, struct slot **slots, uint32_t n) {
    uint64_t count = 32 + 3 * (uint64_t)(n + info->n_processes); /* what is written below, at times of its own */
    g->gen = gen;
    g->gen_time = info->before > count ? info->before - count : 1;
    if (g->gen_time <= g->last_time) g->gen_time = g->last_time + 1;
    if (g->last_time < g->gen_time) g->last_time = g->gen_time;
    sync_batch(g, info);
    uint64_t t = open_statuses(g, slots, n, g->gen_time);
    g->slots = count_slots(g, slots, n);
    t = coord_in(g, t);
    out_event(g, &g->coord, GoProcsChange, t++, ARRAY(g->slots, 0));
    out_event(g, &g->coord, GoHeapGoal, t++, ARRAY(info->limit));
    if (info->rss) out_event(g, &g->coord, GoHeapAlloc, t++, ARRAY(info->rss));
    t = open_figures(g, info, t);
    coord_out(g, t);
}

void merge_close(struct merge *g, struct slot **slots, uint32_t n) {
    for (uint32_t i = 0; i < n; i++)
        if (slots[i]->m) merge_losses(g, slots[i]->m, g->last_time + 1);
    merge_losses(g, NULL, g->last_time + 1);
    if (g->samples_lost) {
        char text[32];
        int len = snprintf(text, sizeof text, "%llu", (unsigned long long)g->samples_lost);
        merge_coord_log(g, g->last_time + 1, "cpu samples lost", text, (size_t)len);
    }
    for (uint32_t i = 0; i < n; i++)
        if (slots[i]->m) out_flush(g, &((struct mst *)slots[i]->m)->out);
    out_flush(g, &g->coord);
    out_flush(g, &g->nobody);
    samples_write(g);
    tables_write(g);
    if (g->header >= 26) merge_bytes(g, &(const uint8_t){GoEndOfGeneration}, 1);
    tables_evict(g);
    g->generations++;
}

void merge_free(struct merge *g) {
    tables_free(g);
    for (uint32_t i = 0; i < g->naggs; i++) free(g->aggs[i]);
    free(g->aggs);
    free(g->samples);
    free(g->ps);
    free(g->nobody.buf);
    free(g->coord.buf);
    memset(g, 0, sizeof *g);
}
