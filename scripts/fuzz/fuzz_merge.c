/* Fuzz target: the merge, fed with whatever a stream may contain.
 *
 * The input is a script.  Its first byte chooses the header; then come commands:
 *
 *   which:2 what:6                  one of four Ms: a thread, and three workers (two of them in one slot)
 *   what 0..7    feed               length:8, bytes
 *        8       feed               length:16, bytes
 *        9       next generation    ns since the last:32
 *        10, 11  its M ends         11: its worker was lost
 *        12      claimed            unit:16, created:8 (generations ago)
 *        13      a slot more or less is listed
 *   else         nothing
 *
 * Besides what sanitizers see: the file has the right form (tests/native/wire.c).
 */
#include "fuzz.h"
#include "merge.h"
#include "wire.h"

#include <stdio.h>
#include <stdlib.h>

#define MS 4
static struct entry entries[MS];
static struct slot slots[MS];

struct script {
    FILE *out; /* $POOLTRACE_FUZZ_OUT, for a look at what one input makes */
    struct merge merge;
    struct wire wire;
    struct slot *listed[MS];
    uint32_t n;
    uint64_t clock;
};

static void sink(void *arg, const uint8_t *bytes, size_t len) {
    struct script *s = arg;
    wire_feed(&s->wire, bytes, len);
    if (s->out) fwrite(bytes, 1, len, s->out);
}

static void feed(struct script *s, struct slot *slot, const uint8_t *bytes, uint32_t len) {
    struct mst *m = merge_add(&s->merge, slot);
    if (!m) return;
    uint8_t *copy = malloc(len ? len : 1); /* of that size, so that a read beyond it is seen */
    if (!copy) abort();
    if (len) memcpy(copy, bytes, len);
    merge_feed(&s->merge, m, copy, len);
    free(copy);
}

static void next_generation(struct script *s, uint64_t ns) {
    struct gen_info info = {.before = s->clock += ns, .wall_sec = 1, .wall_nsec = 2, .rss = 3, .limit = 4};
    merge_close(&s->merge, s->listed, s->n);
    merge_open(&s->merge, gen_next(s->merge.gen), &info, s->listed, s->n);
}

static void command(struct script *s, struct input *in) {
    uint8_t what = (uint8_t)input_number(in, 1);
    struct slot *slot = &slots[what & 3];
    struct str *name;
    struct mst *m;
    uint32_t len;
    const uint8_t *bytes;
    what >>= 2;
    if (what != 9 && what != 13 && (slot - slots) >= s->n) s->n = MS; /* whoever has something to say is listed */
    switch (what) {
    case 8:
        bytes = input_bytes(in, input_number(in, 2), &len);
        feed(s, slot, bytes, len < PT_BLOCK ? len : PT_BLOCK);
        return;
    case 9: next_generation(s, input_number(in, 4)); return;
    case 10:
    case 11:
        if (!(m = merge_add(&s->merge, slot))) return;
        merge_close_m(&s->merge, m, s->clock, what == 11 ? "was killed" : NULL, 10);
        return;
    case 12:
        if (!(m = merge_add(&s->merge, slot)) || !(name = str_get(&s->merge, (const uint8_t *)"f", 1))) return;
        uint64_t unit = input_number(in, 2), ago = input_number(in, 1);
        struct stk_frame frame = {.function = name, .file = name, .line = 1};
        merge_claimed(&s->merge, m, s->clock, unit, s->merge.gen - ago, stk_get(&s->merge, &frame, 1));
        return;
    case 13:
        s->n = s->n == MS ? MS - 1 : MS;
        merge_slots(&s->merge, s->clock, s->listed, s->n);
        if (s->n < MS && slots[s->n].m) merge_close_m(&s->merge, slots[s->n].m, s->clock, NULL, 0); /* as forget_slot's callers do */
        return;
    default:
        if (what >= 8) return;
        bytes = input_bytes(in, input_number(in, 1), &len);
        feed(s, slot, bytes, len);
    }
}

static void begin(struct script *s, int header) {
    struct gen_info info = {.before = s->clock = 1000000000u, .wall_sec = 1, .wall_nsec = 2, .rss = 3, .limit = 4};
    const char *out = getenv("POOLTRACE_FUZZ_OUT");
    s->out = out ? fopen(out, "wb") : NULL;
    wire_init(&s->wire, header);
    s->wire.overlap = true; /* times come from the streams */
    s->merge = (struct merge){.header = header, .gen = 5, .first_gen = 5, .sink = sink, .sink_arg = s, .coord_p = 9};
    s->merge.begin_time = s->merge.gen_time = s->clock;
    s->merge.nobody.m = NO_M;
    s->merge.coord.m = 99;
    STORE(&counters->g, 1000);
    for (uint32_t i = 0; i < MS; i++) {
        slots[i] = (struct slot){.entry = &entries[i], .kind = i ? KIND_WORKER : KIND_THREAD, .p = i == 3 ? 2 : i, .pipe = -1};
        STORE(&entries[i].m, 100 + i);
        s->listed[i] = &slots[i];
    }
    s->n = MS;
    merge_header(&s->merge);
    merge_running(&s->merge, merge_add(&s->merge, &slots[0]), 1, NULL);
    merge_running(&s->merge, merge_add(&s->merge, &slots[1]), 2, NULL);
    merge_open(&s->merge, 5, &info, s->listed, s->n);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const int headers[] = {22, 23, 25, 26};
    static struct script s;
    struct input in = {data, data + size};
    begin(&s, headers[input_number(&in, 1) & 3]);
    while (in.p < in.end) command(&s, &in);
    for (uint32_t i = 0; i < MS; i++)
        if (slots[i].m) merge_close_m(&s.merge, slots[i].m, s.clock, NULL, 0);
    merge_close(&s.merge, s.listed, s.n);
    for (uint32_t i = 0; i < s.merge.naggs; i++) {
        agg_quantile(s.merge.aggs[i], 0.5);
        agg_quantile(s.merge.aggs[i], 0.99);
    }
    wire_end(&s.wire);
    if (s.wire.errors) {
        fprintf(stderr, "the file is wrong: %s\n", s.wire.error);
        abort();
    }
    if (s.out) fclose(s.out);
    wire_free(&s.wire);
    merge_free(&s.merge);
    return 0;
}
