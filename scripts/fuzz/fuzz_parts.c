/* Fuzz target: the sizes of arguments, read off whatever a pickle may be.
 *
 * The input: kind:2 (3: as 0) buffers:2 unused:4, size:16 of each buffer, and the pickle.
 *
 * Besides what sanitizers see: the arguments have no more bytes together than there are, and a keyword is in the pickle.
 */
#include "fuzz.h"
#include "parts.h"

#include <stdio.h>
#include <stdlib.h>

static void check(bool good, const char *what) {
    if (good) return;
    fprintf(stderr, "%s\n", what);
    abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const enum parts_kind kinds[] = {PARTS_CALL, PARTS_ITEMS, PARTS_ROWS, PARTS_CALL};
    struct input in = {data, data + size};
    uint8_t head = (uint8_t)input_number(&in, 1);
    uint64_t buffers[3], all = 0, sum = 0;
    size_t n_buffers = head >> 2 & 3, n = 0;
    for (size_t i = 0; i < n_buffers; i++) all += buffers[i] = input_number(&in, 2);
    n = (size_t)(in.end - in.p);
    struct parts parts;
    bool good = parts_scan(in.p, n, buffers, n_buffers, kinds[head & 3], &parts);
    check(good || !parts.list, "something is left of what is not understood");
    check(parts.positions <= parts.n, "there are more positions than parts");
    for (size_t i = 0; i < parts.n; i++) {
        size_t length = 0, name = parts.list[i].name;
        sum += parts.list[i].bytes;
        check(sum <= n + all, "the parts are more than the whole");
        check(i >= parts.positions || !name, "a position has a name");
        if (name) check(parts_name(in.p, name, &length) + length <= in.end, "a name is not in the pickle");
    }
    free(parts.list);
    return 0;
}
