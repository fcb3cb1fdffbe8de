/* See wire.h. */
#include "wire.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BATCH_MAX 65536u
#define STRING_MAX 1024u
#define FRAMES_MAX 128u
#define ID_MAX (1u << 26)
enum { BATCH = 1, STACKS, STACK, STRINGS, STRING, SAMPLES, SAMPLE, FREQUENCY, SYNC = 50, SNAPSHOT = 51, GENERATION_END = 52 };

/* Arguments behind the time of every event that a batch of events may have: n number, s string, k stack. */
static const char *const args_of[64] = {
    [9] = "nk",   [10] = "nn",   [11] = "",     [12] = "nnn", [13] = "nn",  [14] = "nkk", [15] = "n",    [16] = "nn",
    [17] = "",    [18] = "",     [19] = "sk",   [20] = "sk",  [21] = "nnk", [22] = "nk",  [23] = "",     [24] = "",
    [25] = "nnn", [26] = "sk",   [27] = "",     [28] = "n",   [29] = "nk",  [30] = "n",   [31] = "n",    [32] = "k",
    [33] = "nn",  [34] = "n",    [35] = "k",    [36] = "",    [37] = "n",   [38] = "n",   [39] = "s",    [40] = "nnsk",
    [41] = "nk",  [42] = "nsk",  [43] = "nsk",  [44] = "nssk", [48] = "nnnk",
};

void wire_init(struct wire *w, int header) {
    memset(w, 0, sizeof *w);
    w->header = header;
}

void wire_free(struct wire *w) {
    free(w->buf);
    free(w->strings.seen);
    free(w->stacks.seen);
    memset(w, 0, sizeof *w);
}

void wire_fail(struct wire *w, const char *format, ...) {
    if (w->errors++) return;
    va_list list;
    int n = snprintf(w->error, sizeof w->error, "generation %u: ", w->gen ? w->gen : w->last_gen);
    va_start(list, format);
    vsnprintf(w->error + n, sizeof w->error - (size_t)n, format, list);
    va_end(list);
}

/* 1: read; 0: it is not all there; -1: no number. */
static int number(const uint8_t **p, const uint8_t *end, uint64_t *out) {
    uint64_t v = 0;
    const uint8_t *q = *p;
    for (int shift = 0; shift < 70; shift += 7) {
        if (q == end) return 0;
        uint8_t b = *q++;
        if (shift == 63 && b > 1) return -1;
        v |= (uint64_t)(b & 0x7f) << shift;
        if (b < 0x80) {
            *p = q;
            *out = v;
            return 1;
        }
    }
    return -1;
}

static void mark(struct wire *w, struct wire_ids *ids, uint64_t id, uint8_t how, const char *what) {
    if (id == 0 && how == 1) return; /* none */
    if (id == 0 || id >= ID_MAX) {
        wire_fail(w, "%s id %llu", what, (unsigned long long)id);
        return;
    }
    if (id >= ids->n) {
        size_t n = ids->n ? ids->n : 1024;
        while (n <= id) n *= 2;
        uint8_t *grown = realloc(ids->seen, n);
        if (!grown) abort();
        memset(grown + ids->n, 0, n - ids->n);
        ids->seen = grown;
        ids->n = n;
    }
    if (how == 2 && (ids->seen[id] & 2)) wire_fail(w, "%s %llu is defined twice", what, (unsigned long long)id);
    ids->seen[id] |= how;
}

static void close_ids(struct wire *w, struct wire_ids *ids, const char *what) {
    for (size_t i = 0; i < ids->n; i++)
        if (ids->seen[i] == 1) wire_fail(w, "%s %zu is used and not defined", what, i);
    if (ids->n) memset(ids->seen, 0, ids->n);
}

static void close_generation(struct wire *w) {
    close_ids(w, &w->strings, "string");
    close_ids(w, &w->stacks, "stack");
    if (!w->overlap && w->generations && w->min_time && w->min_time <= w->last_max)
        wire_fail(w, "begins at %llu, the one before ends at %llu", (unsigned long long)w->min_time, (unsigned long long)w->last_max);
    w->last_max = w->max_time;
    w->last_gen = w->gen;
    w->gen = 0;
    w->generations++;
}

static void open_generation(struct wire *w, uint64_t gen) {
    if (gen == 0 || gen > 0x7fffffff) wire_fail(w, "a generation %llu", (unsigned long long)gen);
    if (w->last_gen && gen != w->last_gen + 1 && gen != 4) wire_fail(w, "%llu comes after it", (unsigned long long)gen);
    w->gen = (uint32_t)gen;
    w->min_time = w->max_time = 0;
}

static void table(struct wire *w, const uint8_t *p, const uint8_t *end, bool strings) {
    while (p < end) {
        uint64_t id, n, part;
        uint8_t type = *p++;
        if (type != (strings ? STRING : STACK) || number(&p, end, &id) != 1 || number(&p, end, &n) != 1) {
            wire_fail(w, "a table with an event %u", type);
            return;
        }
        mark(w, strings ? &w->strings : &w->stacks, id, 2, strings ? "string" : "stack");
        if (strings) {
            if (n > STRING_MAX || n > (size_t)(end - p)) {
                wire_fail(w, "a string of %llu bytes", (unsigned long long)n);
                return;
            }
            p += n;
            continue;
        }
        if (n > FRAMES_MAX) wire_fail(w, "a stack of %llu frames", (unsigned long long)n);
        for (uint64_t i = 0; i < 4 * n; i++) {
            if (number(&p, end, &part) != 1) {
                wire_fail(w, "a stack that is cut off");
                return;
            }
            if (i % 4 == 1 || i % 4 == 2) mark(w, &w->strings, part, 1, "string");
        }
    }
}

static void samples(struct wire *w, const uint8_t *p, const uint8_t *end) {
    while (p < end) {
        uint64_t parts[5]; /* time, M, P, G, stack */
        bool ok = *p++ == SAMPLE;
        for (int i = 0; ok && i < 5; i++) ok = number(&p, end, &parts[i]) == 1;
        if (!ok) {
            wire_fail(w, "a CPU sample that makes no sense");
            return;
        }
        mark(w, &w->stacks, parts[4], 1, "stack");
        if (w->min_time && parts[0] < w->min_time) wire_fail(w, "a CPU sample before it begins");
        if (parts[0] > w->max_time) w->max_time = parts[0];
    }
}

static void events(struct wire *w, uint64_t m, uint64_t time, const uint8_t *p, const uint8_t *end) {
    while (p < end) {
        uint8_t type = *p++;
        const char *kinds = type < 64 ? args_of[type] : NULL;
        uint64_t dt, args[8];
        if (!kinds) {
            wire_fail(w, "M %lld: an event %u", (long long)m, type);
            return;
        }
        bool ok = number(&p, end, &dt) == 1;
        for (int i = 0; ok && kinds[i]; i++) ok = number(&p, end, &args[i]) == 1;
        if (!ok) {
            wire_fail(w, "M %lld: an event %u that is cut off", (long long)m, type);
            return;
        }
        if (dt >> 63 || (time += dt) >> 63) {
            wire_fail(w, "M %lld: an event %u whose time is not below 2**63", (long long)m, type);
            return;
        }
        for (int i = 0; kinds[i]; i++) {
            if (kinds[i] == 's') mark(w, &w->strings, args[i], 1, "string");
            if (kinds[i] == 'k') mark(w, &w->stacks, args[i], 1, "stack");
        }
        if (!w->min_time || time < w->min_time) w->min_time = time;
        if (time > w->max_time) w->max_time = time;
        w->events++;
        if (w->event) w->event(w->arg, &(struct wire_event){w->gen, m, time, type, args});
    }
}

static void batch(struct wire *w, uint64_t gen, uint64_t m, uint64_t time, const uint8_t *p, size_t len) {
    const uint8_t *end = p + len;
    if (w->gen && gen != w->gen) {
        if (w->header >= 26) wire_fail(w, "a batch of %llu in it", (unsigned long long)gen);
        close_generation(w);
    }
    if (!w->gen) open_generation(w, gen);
    if (len == 0) wire_fail(w, "a batch without contents");
    else if (*p == STACKS || *p == STRINGS) table(w, p + 1, end, *p == STRINGS);
    else if (*p == SAMPLES) samples(w, p + 1, end);
    else if (*p == (w->header >= 25 ? SYNC : FREQUENCY)) return; /* of one shape always */
    else events(w, m, time, p, end);
}

/* One batch or end from [p, p + n): how many bytes it has; 0: it is not all there. */
static size_t take_one(struct wire *w, const uint8_t *p, size_t n) {
    const uint8_t *q = p + 1, *end = p + n;
    uint64_t head[4];
    if (*p == GENERATION_END && w->header >= 26) {
        if (!w->gen) wire_fail(w, "an end without a generation");
        else close_generation(w);
        return 1;
    }
    if (*p != BATCH) {
        wire_fail(w, "a byte %u where a batch should begin", *p);
        return n; /* nothing can be read behind it */
    }
    for (int i = 0; i < 4; i++) {
        int got = number(&q, end, &head[i]);
        if (got == 0) return 0;
        if (got < 0) {
            wire_fail(w, "the head of a batch");
            return n;
        }
    }
    if (head[3] > BATCH_MAX) {
        wire_fail(w, "a batch of %llu bytes", (unsigned long long)head[3]);
        return n;
    }
    if (head[3] > (size_t)(end - q)) return 0;
    if (head[2] >> 63) wire_fail(w, "M %lld: a batch whose time is not below 2**63", (long long)head[1]);
    batch(w, head[0], head[1], head[2], q, head[3]);
    return (size_t)(q - p) + head[3];
}

void wire_feed(struct wire *w, const uint8_t *bytes, size_t len) {
    if (w->fill + len > w->cap) {
        size_t cap = 2 * (w->fill + len);
        uint8_t *grown = realloc(w->buf, cap);
        if (!grown) abort();
        w->buf = grown;
        w->cap = cap;
    }
    if (len) memcpy(w->buf + w->fill, bytes, len);
    w->fill += len;
    w->bytes += len;
    size_t at = 0, n;
    if (!w->started && w->fill >= 16) {
        char want[17] = {0};
        snprintf(want, sizeof want, "go 1.%d trace", w->header);
        if (memcmp(w->buf, want, 16)) wire_fail(w, "the header");
        w->started = true;
        at = 16;
    }
    while (w->started && at < w->fill && (n = take_one(w, w->buf + at, w->fill - at)) > 0) at += n;
    w->fill -= at;
    if (w->fill) memmove(w->buf, w->buf + at, w->fill);
}

void wire_end(struct wire *w) {
    if (w->fill) wire_fail(w, "%zu bytes of a batch that is cut off", w->fill);
    if (w->gen && w->header >= 26) wire_fail(w, "it has no end");
    else if (w->gen) close_generation(w);
}
