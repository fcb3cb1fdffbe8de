/* The state machine of each M: its stream is replayed, and what Go's format asks for is added.
 *
 * A stream may name what the machine does not know (its begin lay before the trace, or was lost): then the event is
 * dropped or what is missing is made, so that a file is never refused.  Nothing in a stream is trusted: every length
 * and id is checked, and a stream that makes no sense is not read further.
 */
#include "merge.h"

#include <stdlib.h>

#define ARRAY(...) ((const uint64_t[]){__VA_ARGS__}), (int)(sizeof((const uint64_t[]){__VA_ARGS__}) / sizeof(uint64_t))
#define REGIONS_MAX 4096
#define IDS_MAX (1u << 21)

struct pst *p_get(struct merge *g, uint64_t p) {
    if (p >= g->nps) {
        if (p > 1u << 24) return NULL;
        uint32_t n = g->nps ? g->nps : 16;
        while (n <= p) n *= 2;
        struct pst *grown = realloc(g->ps, n * sizeof *grown);
        if (!grown) return g->failed = true, NULL;
        memset(grown + g->nps, 0, (n - g->nps) * sizeof *grown);
        g->ps = grown;
        g->nps = n;
    }
    return &g->ps[p];
}

struct mst *merge_add(struct merge *g, struct slot *s) {
    struct mst *m = s->m;
    if (m) {
        if (!m->out.m) m->out.m = LOAD(&s->entry->m);
        return m;
    }
    m = calloc(1, sizeof *m);
    if (!m) return g->failed = true, NULL;
    m->slot = s;
    m->kind = s->kind;
    m->p = s->p;
    m->gen = g->gen;
    m->out.m = LOAD(&s->entry->m);
    m->lost_before = m->lost_told = s->opened > g->begin_time ? 0 : LOAD(&s->entry->lost); /* of older traces */
    struct pst *p = p_get(g, s->p);
    if (p && s->kind == KIND_WORKER) p->is_slot = true;
    s->m = m;
    return m;
}

/* ---- what the machine writes ---- */
static void put(struct merge *g, struct mst *m, enum go_event type, uint64_t t, const uint64_t *args, int n) {
    out_event(g, &m->out, type, t, args, n);
}

static void proc_start(struct merge *g, struct mst *m, uint64_t t) {
    struct pst *p = p_get(g, m->p);
    if (m->has_p || !p) return;
    if (p->by && p->by != m) merge_close_m(g, p->by, t, NULL, 0); /* its process was never closed: do it now */
    if (p->gen != g->gen) {
        p->gen = g->gen;
        p->seq = 0;
        put(g, m, GoProcStatus, t, ARRAY(m->p, P_IDLE));
    }
    put(g, m, GoProcStart, t, ARRAY(m->p, ++p->seq));
    p->by = m;
    m->has_p = true;
}

static void proc_stop(struct merge *g, struct mst *m, uint64_t t) {
    struct pst *p = p_get(g, m->p);
    if (!m->has_p || !p) return;
    put(g, m, GoProcStop, t, NULL, 0);
    p->by = NULL;
    m->has_p = false;
}

static void region_end(struct merge *g, struct mst *m, uint64_t t, struct region *r) {
    if (!r->name) return; /* it ended with one around it */
    put(g, m, GoUserRegionEnd, t, ARRAY(r->task, str_use(g, r->name), 0));
    account_region(g, m, r, t);
    r->name->refs--;
    r->name = NULL;
}

/* Closes the innermost region with that serial, and first what is inside it.  None: it began before the trace, or was
 * closed with one around it.  Of ours the innermost is meant: so one that ends with a user's around it keeps its place
 * until its own end comes. */
static void region_close(struct merge *g, struct mst *m, uint64_t t, uint64_t serial) {
    uint32_t i = m->nregions;
    while (i > 0 && m->regions[i - 1].serial != serial) i--;
    if (i == 0) return;
    for (uint32_t k = m->nregions; k >= i; k--) region_end(g, m, t, &m->regions[k - 1]);
    uint32_t kept = i - 1;
    for (uint32_t k = i; k < m->nregions; k++)
        if (!m->regions[k].serial) m->regions[kept++] = m->regions[k];
    m->nregions = kept;
}

static void pause_end(struct merge *g, struct mst *m, uint64_t t) {
    if (m->paused) put(g, m, GoGCMarkAssistEnd, t, NULL, 0);
    m->paused = false;
}

static void g_forget(struct mst *m) {
    m->paused = false;
    if (m->start) m->start->refs--;
    m->start = NULL;
    m->gs = GS_NONE;
    m->seq = 0;
    m->starting = false;
}

static void g_run(struct mst *m, uint64_t id, struct stk *start, uint64_t t, uint32_t seq) {
    g_forget(m);
    m->gs = GS_RUNNING;
    m->g = m->last_unit = id;
    m->start = start;
    if (start) start->refs++;
    m->unit_begin = t;
    m->seq = seq;
}

static void g_destroy(struct merge *g, struct mst *m, uint64_t t) {
    if (m->gs != GS_RUNNING) return;
    m->skipped = 0;
    pause_end(g, m, t);
    while (m->nregions) region_end(g, m, t, &m->regions[--m->nregions]);
    put(g, m, GoGoDestroy, t, NULL, 0);
    account_unit(g, m, t);
    g_forget(m);
}

void g_status(struct merge *g, struct out *o, uint64_t t, uint64_t id, uint64_t m, uint64_t status, struct stk *start) {
    if (start && g->header >= 23) out_event(g, o, GoGoStatusStack, t, ARRAY(id, m, status, stk_use(g, start)));
    else out_event(g, o, GoGoStatus, t, ARRAY(id, m, status));
}

void merge_running(struct merge *g, struct mst *m, uint64_t unit, struct stk *start) {
    struct pst *p = p_get(g, m->p);
    if (!p) return;
    m->has_p = true;
    p->by = m;
    g_run(m, unit, start, g->gen_time, 0);
    account_begin(g, m);
}

void merge_close_m(struct merge *g, struct mst *m, uint64_t t, const char *lost, size_t lost_len) {
    if (t <= m->in_time) t = m->in_time + 1;
    if (lost && !g->over) { /* after the last generation it is no loss of this trace */
        g->lost_workers++;
        if (m->gs == GS_RUNNING) {
            struct str *key = str_get(g, (const uint8_t *)"worker lost", 11);
            struct str *value = str_get(g, (const uint8_t *)lost, lost_len > PT_STRING_MAX ? PT_STRING_MAX : (uint32_t)lost_len);
            if (key && value) put(g, m, GoUserLog, t, ARRAY(0, str_use(g, key), str_use(g, value), 0));
        } else {
            merge_coord_log(g, t, "worker lost", lost, lost_len);
        }
    }
    merge_losses(g, m, t);
    g_destroy(g, m, t);
    proc_stop(g, m, t);
    while (m->nregions)
        if (m->regions[--m->nregions].name) m->regions[m->nregions].name->refs--;
    g_forget(m);
    struct pst *p = p_get(g, m->p);
    if (p && p->by == m) p->by = NULL;
    account_life(g, m, t);
    g->lost_events += m->lost_told - m->lost_before;
    g->lost_told += m->lost_told - m->lost_before; /* it was said as the M's own */
    out_flush(g, &m->out);
    m->slot->m = NULL;
    free(m->out.buf);
    free(m->strs);
    free(m->stks);
    free(m->regions);
    free(m);
}

/* ---- definitions in the stream ---- */
static bool id_room(void ***array, uint32_t *n, uint64_t id) {
    if (id == 0 || id >= IDS_MAX) return false;
    if (id < *n) return true;
    uint32_t size = *n ? *n : 64;
    while (size <= id) size *= 2;
    void **grown = realloc(*array, size * sizeof *grown);
    if (!grown) return false;
    memset(grown + *n, 0, (size - *n) * sizeof *grown);
    *array = grown;
    *n = size;
    return true;
}

static struct str *str_at(struct mst *m, uint64_t id) { return id < m->nstrs ? m->strs[id] : NULL; }
static struct stk *stk_at(struct mst *m, uint64_t id) { return id < m->nstks ? m->stks[id] : NULL; }

static bool define_string(struct merge *g, struct mst *m, const uint8_t **p, const uint8_t *end) {
    uint64_t id, len;
    if (!get_varint(p, end, &id) || !get_varint(p, end, &len)) return false;
    if (len > PT_STRING_MAX || len > (size_t)(end - *p)) return false;
    if (!id_room((void ***)&m->strs, &m->nstrs, id)) return false;
    m->strs[id] = str_get(g, *p, (uint32_t)len);
    *p += len;
    return m->strs[id] != NULL;
}

static bool define_stack(struct merge *g, struct mst *m, const uint8_t **p, const uint8_t *end) {
    struct stk_frame frames[PT_FRAMES_MAX];
    uint64_t id, n, function, file;
    if (!get_varint(p, end, &id) || !get_varint(p, end, &n) || n > PT_FRAMES_MAX) return false;
    for (uint64_t i = 0; i < n; i++) {
        if (!get_varint(p, end, &function) || !get_varint(p, end, &file) || !get_varint(p, end, &frames[i].line))
            return false;
        frames[i].function = str_at(m, function);
        frames[i].file = str_at(m, file);
        if (!frames[i].function || !frames[i].file) return false;
    }
    if (!id_room((void ***)&m->stks, &m->nstks, id)) return false;
    m->stks[id] = stk_get(g, frames, (uint32_t)n);
    return m->stks[id] != NULL;
}

/* ---- units and threads ---- */
static void unit_begin(struct merge *g, struct mst *m, uint64_t t, uint64_t id, uint64_t created, struct stk *start) {
    if (m->gs == GS_RUNNING && m->g == id) return; /* a status has said so */
    g_destroy(g, m, t); /* its end was lost */
    proc_start(g, m, t);
    uint32_t gen = (uint32_t)created;
    bool known = created != 0 && !gen_before(gen, g->first_gen);
    if (known && g->waiting) g->waiting--;
    if (!known) put(g, m, GoGoCreate, t, ARRAY(id, stk_use(g, start), 0)); /* submitted before the trace */
    else if (gen != g->gen) g_status(g, &m->out, t, id, NO_M, G_RUNNABLE, start);
    put(g, m, GoGoStart, t, ARRAY(id, 1));
    g_run(m, id, start, t, 1);
    account_begin(g, m);
}

/* A worker died with this unit claimed: it may not have come to saying that it began. */
void merge_claimed(struct merge *g, struct mst *m, uint64_t t, uint64_t unit, uint64_t created, struct stk *start) {
    if (m->last_unit == unit) return;
    if (t <= m->in_time) t = m->in_time + 1;
    unit_begin(g, m, t, unit, created, start);
}

/* It will never run: the coordinator starts it and ends it at once, so that it does not wait for ever. */
static void unit_cancel(struct merge *g, uint64_t t, uint64_t id, uint64_t created, struct stk *start) {
    uint32_t gen = (uint32_t)created;
    if (created == 0 || gen_before(gen, g->first_gen)) return; /* the trace does not know it */
    merge_coord_cancel(g, t, id, gen != g->gen, start);
    g->cancelled++;
    if (g->waiting) g->waiting--;
}

static void thread_enter(struct merge *g, struct mst *m, uint64_t t, uint64_t id) {
    if (m->gs != GS_NONE) return;
    put(g, m, GoGoCreateSyscall, t, ARRAY(id));
    put(g, m, GoGoSyscallEndBlocked, t, NULL, 0);
    proc_start(g, m, t);
    put(g, m, GoGoStart, t, ARRAY(id, 1));
    g_run(m, id, NULL, t, 1);
}

static void thread_block(struct merge *g, struct mst *m, uint64_t t, struct str *reason, struct stk *stack) {
    if (m->gs != GS_RUNNING) return;
    pause_end(g, m, t);
    put(g, m, GoGoBlock, t, ARRAY(str_use(g, reason), stk_use(g, stack)));
    proc_stop(g, m, t);
    m->gs = GS_BLOCKED;
    m->block_gen = g->gen;
}

/* The status of a G that blocked in an older generation: on behalf of it, at the time of the switch. */
static void waiting_status(struct merge *g, uint64_t id) {
    uint64_t t = g->nobody.last > g->gen_time ? g->nobody.last : g->gen_time;
    out_event(g, &g->nobody, GoGoStatus, t, ARRAY(id, NO_M, G_WAITING));
}

static void thread_resume(struct merge *g, struct mst *m, uint64_t t, uint64_t flags) {
    if (m->gs != GS_BLOCKED) return;
    bool blocked_here = m->block_gen == g->gen;
    uint32_t seq = blocked_here ? m->seq : 0;
    if (flags & RESUME_SELF) {
        if (!blocked_here) waiting_status(g, m->g);
        put(g, m, GoGoUnblock, t, ARRAY(m->g, ++seq, 0));
    } else if (flags & RESUME_SAME) {
        seq++; /* the waker's GoUnblock */
    } else {
        seq = 0;
        g_status(g, &m->out, t, m->g, NO_M, G_RUNNABLE, NULL);
    }
    proc_start(g, m, t);
    put(g, m, GoGoStart, t, ARRAY(m->g, ++seq));
    m->gs = GS_RUNNING;
    m->seq = seq;
}

/* No room: its end is to be skipped as well, but a user's finds nothing of its serial. */
static void region_skip(struct merge *g, struct mst *m, uint64_t serial) {
    if (!serial) m->skipped++;
    g->lost_events++;
}

static void region_push(struct merge *g, struct mst *m, uint64_t t, struct region r, struct stk *stack) {
    if (m->gs != GS_RUNNING) return;
    if (m->skipped || m->nregions == REGIONS_MAX) {
        region_skip(g, m, r.serial);
        return;
    }
    if (m->nregions == m->regions_cap) {
        uint32_t cap = m->regions_cap ? 2 * m->regions_cap : 8;
        struct region *grown = realloc(m->regions, cap * sizeof *grown);
        if (!grown) {
            region_skip(g, m, r.serial);
            return;
        }
        m->regions = grown;
        m->regions_cap = cap;
    }
    put(g, m, GoUserRegionBegin, t, ARRAY(r.task, str_use(g, r.name), stk_use(g, stack)));
    r.name->refs++;
    r.begin = m->out.last;
    m->regions[m->nregions++] = r;
}

static bool take_log(struct merge *g, struct mst *m, uint64_t t, const uint64_t *a, const uint8_t **p, const uint8_t *end) {
    struct str *key = str_at(m, a[1]);
    if (!key || a[2] > PT_STRING_MAX || a[2] > (size_t)(end - *p)) return false;
    struct str *value = str_get(g, *p, (uint32_t)a[2]);
    *p += a[2];
    if (value && m->gs == GS_RUNNING) put(g, m, GoUserLog, t, ARRAY(a[0], str_use(g, key), str_use(g, value), 0));
    return true;
}

static void sample_in(struct merge *g, struct mst *m, uint64_t t, uint64_t weight, struct stk *stack) {
    if (g->over) return;
    struct sample s = {.time = t > g->gen_time ? t : g->gen_time, .m = m->out.m, .p = NO_M, .g = NO_M, .stack = stk_use(g, stack)};
    s.weight = weight > UINT32_MAX ? UINT32_MAX : (uint32_t)weight;
    if (m->has_p) s.p = m->p;
    if (m->gs == GS_RUNNING) s.g = m->g;
    sample_add(g, s);
}

static const uint8_t arg_counts[OP_MAX] = {
    [OP_CREATE] = 3, [OP_BEGIN] = 3,  [OP_BLOCK] = 2,    [OP_UNBLOCK] = 4, [OP_RESUME] = 1, [OP_ENTER] = 1,
    [OP_TASK] = 4,   [OP_TASK_END] = 2, [OP_REGION] = 4, [OP_LOG] = 3,     [OP_CANCEL] = 3, [OP_SPAN] = 4,
    [OP_SPAN_END] = 1, [OP_SAMPLE] = 2, [OP_PAUSE] = 1,   [OP_USER_TASK] = 4,
};

/* One event with a time; a holds its arguments.  False: the stream makes no sense. */
static bool step(struct merge *g, struct mst *m, uint8_t op, uint64_t t, const uint64_t *a, const uint8_t **p, const uint8_t *end) {
    bool running = m->gs == GS_RUNNING;
    switch (op) {
    case OP_CREATE:
        if (running) put(g, m, GoGoCreate, t, ARRAY(a[0], stk_use(g, stk_at(m, a[1])), stk_use(g, stk_at(m, a[2]))));
        g->waiting++;
        return true;
    case OP_BEGIN: unit_begin(g, m, t, a[0], a[1], stk_at(m, a[2])); return true;
    case OP_END: g_destroy(g, m, t); return true;
    case OP_CANCEL: unit_cancel(g, t, a[0], a[1], stk_at(m, a[2])); return true;
    case OP_IDLE:
    case OP_LEAVE:
        g_destroy(g, m, t);
        proc_stop(g, m, t);
        return true;
    case OP_BLOCK:
        if (!str_at(m, a[0])) return false;
        thread_block(g, m, t, str_at(m, a[0]), stk_at(m, a[1]));
        return true;
    case OP_UNBLOCK:
        if (a[2]) waiting_status(g, a[0]);
        put(g, m, GoGoUnblock, t, ARRAY(a[0], a[1], stk_use(g, stk_at(m, a[3]))));
        return true;
    case OP_RESUME: thread_resume(g, m, t, a[0]); return true;
    case OP_ENTER: thread_enter(g, m, t, a[0]); return true;
    case OP_TASK:
    case OP_USER_TASK:
        if (!str_at(m, a[2])) return false;
        g->jobs += op == OP_TASK;
        if (running) put(g, m, GoUserTaskBegin, t, ARRAY(a[0], a[1], str_use(g, str_at(m, a[2])), stk_use(g, stk_at(m, a[3]))));
        return true;
    case OP_TASK_END:
        if (running) put(g, m, GoUserTaskEnd, t, ARRAY(a[0], stk_use(g, stk_at(m, a[1]))));
        return true;
    case OP_REGION:
        if (a[0] > REGION_ITEM || !str_at(m, a[2])) return false;
        region_push(g, m, t, (struct region){.kind = (enum region_kind)a[0], .task = a[1], .name = str_at(m, a[2])}, stk_at(m, a[3]));
        return true;
    case OP_REGION_END:
        if (running && m->skipped) m->skipped--;
        else if (running) region_close(g, m, t, 0);
        return true;
    case OP_SPAN:
        if (a[0] == 0 || !str_at(m, a[2])) return false;
        region_push(g, m, t, (struct region){.serial = a[0], .task = a[1], .name = str_at(m, a[2])}, stk_at(m, a[3]));
        return true;
    case OP_SPAN_END:
        if (running && a[0]) region_close(g, m, t, a[0]);
        return true;
    case OP_LOG: return take_log(g, m, t, a, p, end);
    case OP_SAMPLE: sample_in(g, m, t, a[0], stk_at(m, a[1])); return true;
    case OP_PAUSE:
        if (running && !m->paused) {
            put(g, m, GoGCMarkAssistBegin, t, ARRAY(stk_use(g, stk_at(m, a[0]))));
            m->paused = true;
        }
        return true;
    case OP_PAUSE_END: pause_end(g, m, t); return true;
    default: return false;
    }
}

static bool one(struct merge *g, struct mst *m, const uint8_t **p, const uint8_t *end, uint64_t now) {
    uint8_t op = *(*p)++;
    uint64_t a[4] = {0}, dt, t;
    if (op == OP_STRING) return define_string(g, m, p, end);
    if (op == OP_STACK) return define_stack(g, m, p, end);
    if (op == OP_TIME) return get_varint(p, end, &t) && (t > now ? false : (m->in_time = t, true));
    if (op >= OP_MAX || !get_varint(p, end, &dt)) return false;
    for (int i = 0; i < arg_counts[op]; i++)
        if (!get_varint(p, end, &a[i])) return false;
    if (m->in_time > now || dt > now - m->in_time) return false; /* it would move all that comes after it */
    m->in_time += dt;
    return step(g, m, op, m->in_time, a, p, end);
}

void merge_feed(struct merge *g, struct mst *m, const uint8_t *p, uint32_t len) {
    const uint8_t *end = p + len;
    uint64_t now = now_ns() + 1000000000u; /* the clocks of two cores may be apart */
    if (!m->out.m) m->out.m = LOAD(&m->slot->entry->m);
    while (p < end && !m->broken && !g->failed)
        if (!one(g, m, &p, end, now)) {
            m->broken = true;
            g->lost_events++;
        }
}
