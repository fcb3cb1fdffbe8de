/* What the fuzz targets in C share: an input that is taken piece by piece. */
#ifndef POOLTRACE_FUZZ_H
#define POOLTRACE_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
    const uint8_t *p, *end;
};

static inline uint64_t input_number(struct input *in, size_t bytes) { /* little-endian; what is missing is 0 */
    uint64_t v = 0;
    size_t n = (size_t)(in->end - in->p) < bytes ? (size_t)(in->end - in->p) : bytes;
    memcpy(&v, in->p, n);
    in->p += n;
    return v;
}

/* At most n bytes; *len is how many there are. */
static inline const uint8_t *input_bytes(struct input *in, size_t n, uint32_t *len) {
    const uint8_t *p = in->p;
    *len = (uint32_t)((size_t)(in->end - in->p) < n ? (size_t)(in->end - in->p) : n);
    in->p += *len;
    return p;
}

#endif
