/* How many bytes of a pickle each argument takes, see parts.c.  No Python here, so that it can be fuzzed alone. */
#ifndef POOLTRACE_PARTS_H
#define POOLTRACE_PARTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum parts_kind {
    PARTS_CALL,  /* (arguments, {keyword: argument}) */
    PARTS_ITEMS, /* items, each of which is the one argument */
    PARTS_ROWS,  /* items, each of which is a tuple or list of arguments */
};

struct part {
    uint64_t bytes;
    size_t name; /* of a keyword: where its string is, for parts_name; 0: not to be had */
};
struct parts {
    struct part *list; /* owned, by free() */
    size_t n, positions; /* of all; how many are not keywords */
};

/* The pickle is bytes[0 .. n); `buffers` are the sizes of those beside it, all of them less than 2^63 bytes together.
 * false: it is not understood, or there is no memory; there is nothing to free then. */
bool parts_scan(const uint8_t *bytes, size_t n, const uint64_t *buffers, size_t n_buffers, enum parts_kind kind, struct parts *parts);
const uint8_t *parts_name(const uint8_t *bytes, size_t name, size_t *length); /* UTF-8, of the pickle that was scanned */

#ifdef Py_PYTHON_H /* sizes.c */
PyObject *parts_function(PyObject *module, PyObject *args); /* parts(payload, buffer_sizes, kind) -> list | None */
#endif

#endif
