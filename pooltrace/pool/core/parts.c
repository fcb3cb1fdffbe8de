/* How many bytes of a pickle each argument takes: read off its opcodes, without making any object or running any code.
 *
 * 1. The opcodes are gone through once, in order.  Of the unpickler's stack there is only, for each element, where the
 *    first opcode that made it stands; buffers beside the pickle count at the opcode that takes them.  An element's size
 *    is the way from its start to the next one's, or to where we are.
 * 2. When a tuple, or a part of a list or dict, is put together from the elements on top of the stack, their sizes are
 *    its row, if it stands where it may be what we look for: the tuple of arguments, the dict of keywords, an item.
 *    Rows lie behind each other as their owners on the stack do, and go with them.  So each size is written and read once.
 * 3. What is put together at the bottom of the stack may be the whole: the answer is made of the rows of its elements
 *    then, and counts if nothing but the end follows.
 *
 * An object that comes again is a reference to the first one: it counts where it was written first.  What stands between
 * two elements (marks, frames, what is put into the memo) counts for one of the two, so a size is right to a few bytes.
 *
 * The bytes are not trusted: each length is held against what is left, and everything that grows has a limit.  Of the
 * opcodes there are those that protocols 2 to 5 write; whatever else comes is not understood.
 */
#include "parts.h"

#include <stdlib.h>
#include <string.h>

#define ELEMENTS (1u << 16) /* on the stack, */
#define MARKS (1u << 16)    /* marks in it, */
#define ROW (1u << 16)      /* sizes in one row, */
#define ROWS (1u << 20)     /* in all of them, */
#define MEMO (1u << 20)     /* objects in the memo of which we know something, */
#define NAME 255u           /* bytes of a keyword */

enum opcode { BINGET = 'h', LONG_BINGET = 'j', BINUNICODE = 'X', POP = '0', PROTO = 0x80, SHORT_BINUNICODE = 0x8c };

enum act {
    UNKNOWN, FRAME, STOP, MARK,
    PUSH, UNICODE, GET, DUP, BUFFER,    /* one more element */
    FOLD1, FOLD2, FOLD3, REDUCE,        /* so many become one; REDUCE: two */
    EMPTY_TUPLE, TUPLE1, TUPLE2, TUPLE3, TUPLE,
    EMPTY_LIST, APPEND, APPENDS,
    EMPTY_DICT, SETITEM, SETITEMS,
    ADDITEMS, FROZENSET,
    DISCARD, DISCARD_MARK,
    MEMOIZE, PUT,
};
enum how { PLAIN, NUMBER, LENGTH, LINES }; /* the argument: nothing to us, a number, so many bytes more, two lines */

static const struct {
    uint8_t act, how, bytes; /* bytes: of the argument, or of the number in it */
} opcodes[256] = {
    ['N'] = {PUSH, PLAIN, 0}, [0x88] = {PUSH, PLAIN, 0}, [0x89] = {PUSH, PLAIN, 0},          /* None, True, False */
    ['K'] = {PUSH, PLAIN, 1}, ['M'] = {PUSH, PLAIN, 2}, ['J'] = {PUSH, PLAIN, 4},            /* BININT1, 2, BININT */
    [0x8a] = {PUSH, LENGTH, 1}, [0x8b] = {PUSH, LENGTH, 4}, ['G'] = {PUSH, PLAIN, 8},        /* LONG1, LONG4, BINFLOAT */
    ['C'] = {PUSH, LENGTH, 1}, ['B'] = {PUSH, LENGTH, 4}, [0x8e] = {PUSH, LENGTH, 8},        /* SHORT_BINBYTES, BINBYTES, 8 */
    [0x96] = {PUSH, LENGTH, 8}, [0x97] = {BUFFER, PLAIN, 0}, [0x98] = {FOLD1, PLAIN, 0},     /* BYTEARRAY8, NEXT_, READONLY_BUFFER */
    [SHORT_BINUNICODE] = {UNICODE, LENGTH, 1}, [BINUNICODE] = {UNICODE, LENGTH, 4}, [0x8d] = {PUSH, LENGTH, 8},
    [')'] = {EMPTY_TUPLE, PLAIN, 0}, [0x85] = {TUPLE1, PLAIN, 0}, [0x86] = {TUPLE2, PLAIN, 0}, [0x87] = {TUPLE3, PLAIN, 0},
    ['t'] = {TUPLE, PLAIN, 0}, [']'] = {EMPTY_LIST, PLAIN, 0}, ['a'] = {APPEND, PLAIN, 0}, ['e'] = {APPENDS, PLAIN, 0},
    ['}'] = {EMPTY_DICT, PLAIN, 0}, ['s'] = {SETITEM, PLAIN, 0}, ['u'] = {SETITEMS, PLAIN, 0},
    [0x8f] = {PUSH, PLAIN, 0}, [0x90] = {ADDITEMS, PLAIN, 0}, [0x91] = {FROZENSET, PLAIN, 0}, /* EMPTY_SET */
    ['('] = {MARK, PLAIN, 0}, [POP] = {DISCARD, PLAIN, 0}, ['1'] = {DISCARD_MARK, PLAIN, 0}, ['2'] = {DUP, PLAIN, 0},
    [BINGET] = {GET, NUMBER, 1}, [LONG_BINGET] = {GET, NUMBER, 4},
    ['q'] = {PUT, NUMBER, 1}, ['r'] = {PUT, NUMBER, 4}, [0x94] = {MEMOIZE, PLAIN, 0},
    [0x82] = {PUSH, PLAIN, 1}, [0x83] = {PUSH, PLAIN, 2}, [0x84] = {PUSH, PLAIN, 4},         /* EXT1, 2, 4 */
    ['c'] = {PUSH, LINES, 0}, [0x93] = {FOLD2, PLAIN, 0},                                    /* GLOBAL, STACK_GLOBAL */
    ['R'] = {REDUCE, PLAIN, 0}, ['b'] = {FOLD2, PLAIN, 0}, [0x81] = {FOLD2, PLAIN, 0}, [0x92] = {FOLD3, PLAIN, 0}, /* BUILD, NEWOBJ, _EX */
    [0x95] = {FRAME, NUMBER, 8}, ['.'] = {STOP, PLAIN, 0},
};

enum shape { SHAPE_OTHER, SHAPE_TUPLE, SHAPE_LIST, SHAPE_LONG_LIST, SHAPE_DICT, SHAPE_NAME }; /* LONG: it has no row */
#define SHAPE_BITS 3

struct element {
    size_t at;       /* of its first opcode */
    uint64_t beside; /* bytes of the buffers that came before it */
    uint32_t row;    /* sizes in the rows of those below it; its own row ends where the next one's begins */
    uint32_t shape;
};

struct scan {
    const uint8_t *bytes;    /* borrowed */
    size_t n, at, next;      /* at: of this opcode; next: of the one after it */
    uint64_t number;         /* its argument, if it has such a one */
    const uint64_t *buffers; /* borrowed; those that are not taken yet */
    size_t n_buffers;
    uint64_t beside;         /* bytes of those that are */
    enum parts_kind kind;
    struct element *stack;   /* owned */
    size_t depth, stack_cap;
    uint32_t *marks;         /* owned: the depth at each */
    size_t n_marks, marks_cap;
    uint64_t *rows;          /* owned: sizes; of a dict a name (as in struct part) and a size for each keyword */
    size_t n_rows, rows_cap;
    uint64_t *memo;          /* owned: of a name, tuple or list: its at << SHAPE_BITS | shape; 0: anything else */
    size_t n_memo, memo_cap;
    size_t aside;            /* where the opcode after the last one that may have ended a call aside stands, see discard */
    bool whole;              /* what is at the bottom of the stack has the shape that we look for, and this is its answer: */
    struct part *parts;      /* owned */
    size_t n_parts, positions, parts_cap;
};

static __attribute__((noinline)) bool grow_more(void *array, size_t *cap, size_t need, size_t most, size_t size) {
    if (need > most) return false;
    size_t more = *cap ? *cap : 64;
    while (more < need) more *= 2;
    char *old, *new;
    memcpy(&old, array, sizeof old); /* the pointer, of whatever type */
    new = realloc(old, more * size);
    if (!new) return false;
    memset(new + *cap * size, 0, (more - *cap) * size);
    memcpy(array, &new, sizeof new);
    *cap = more;
    return true;
}

/* Room for `need` of what is `size` bytes each in the array to which `array` points, the new ones 0; false: as it was. */
static inline bool grow(void *array, size_t *cap, size_t need, size_t most, size_t size) {
    return need <= *cap || grow_more(array, cap, need, most, size);
}

/* ---- one opcode ---- */
static uint64_t number_at(const struct scan *s, size_t at, size_t bytes) {
    uint64_t v = 0;
    while (bytes-- > 0) v = v << 8 | s->bytes[at + bytes];
    return v;
}

static bool is_get(uint8_t code) { return code == BINGET || code == LONG_BINGET; }

static bool read_lines(struct scan *s) {
    for (int i = 0; i < 2; i++) {
        const uint8_t *end = memchr(s->bytes + s->next, '\n', s->n - s->next);
        if (!end) return false;
        s->next = (size_t)(end - s->bytes) + 1;
    }
    return true;
}

/* The opcode at `next`. */
static inline bool read_opcode(struct scan *s) {
    s->at = s->next;
    if (s->at >= s->n) return false;
    uint8_t code = s->bytes[s->at];
    size_t bytes = opcodes[code].bytes, left = s->n - s->at - 1;
    if (left < bytes) return false;
    s->next = s->at + 1 + bytes;
    if (opcodes[code].how == PLAIN) return true;
    if (opcodes[code].how == LINES) return read_lines(s);
    s->number = number_at(s, s->at + 1, bytes);
    if (opcodes[code].how == NUMBER) return true;
    if (s->number > left - bytes) return false;
    s->next += s->number;
    return true;
}

/* ---- the stack ---- */
static size_t floor_of(const struct scan *s) { return s->n_marks ? s->marks[s->n_marks - 1] : 0; }
static bool have(const struct scan *s, size_t count) { return s->depth - floor_of(s) >= count; }

static uint64_t start_of(const struct scan *s, size_t i) {
    return i < s->depth ? s->stack[i].at + s->stack[i].beside : s->at + s->beside;
}
static uint64_t size_of(const struct scan *s, size_t i) { return start_of(s, i + 1) - start_of(s, i); }
static size_t row_of(const struct scan *s, size_t i) { return i < s->depth ? s->stack[i].row : s->n_rows; }

static inline bool push(struct scan *s, enum shape shape) {
    if (!grow(&s->stack, &s->stack_cap, s->depth + 1, ELEMENTS, sizeof *s->stack)) return false;
    s->stack[s->depth++] = (struct element){s->at, s->beside, (uint32_t)s->n_rows, (uint32_t)shape};
    return true;
}

static bool take_mark(struct scan *s, size_t *first) {
    if (!s->n_marks) return false;
    *first = s->marks[--s->n_marks];
    return true;
}

static void cut(struct scan *s, size_t depth) {
    s->n_rows = row_of(s, depth);
    s->depth = depth;
}

/* All from `first` on become one element. */
static bool fold(struct scan *s, size_t first, enum shape shape) {
    if (first == s->depth) return push(s, shape);
    cut(s, first);
    s->depth++; /* it begins where the lowest of them did */
    s->stack[first].shape = (uint32_t)shape;
    return true;
}
static bool fold_last(struct scan *s, size_t count) { return have(s, count) && fold(s, s->depth - count, SHAPE_OTHER); }

/* ---- rows ---- */
static bool is_bottom(const struct scan *s, size_t i) { return i == 0 && s->n_marks == 0; }

/* Where the arguments of a call are, or an item: in a list, or in a tuple of up to three, there is no mark below it. */
static bool has_row(const struct scan *s, size_t i) {
    return s->kind == PARTS_CALL ? is_bottom(s, i) : s->kind == PARTS_ROWS && s->n_marks <= 1;
}

static bool add_size(struct scan *s, uint64_t size) {
    if (!grow(&s->rows, &s->rows_cap, s->n_rows + 1, ROWS, sizeof *s->rows)) return false;
    s->rows[s->n_rows++] = size;
    return true;
}

/* Sizes of the elements from `first` on, which are still there, in place of their own rows. */
static bool add_sizes(struct scan *s, size_t first) {
    s->n_rows = row_of(s, first);
    for (size_t i = first; i < s->depth; i++)
        if (!add_size(s, size_of(s, i))) return false;
    return true;
}

/* ---- the answer ---- */
static void begin_answer(struct scan *s) {
    s->n_parts = s->positions = 0;
    s->whole = s->kind != PARTS_CALL;
}

static bool add_part(struct scan *s, size_t name, uint64_t bytes) {
    if (!grow(&s->parts, &s->parts_cap, s->n_parts + 1, 2 * ROW, sizeof *s->parts)) return false;
    s->parts[s->n_parts++] = (struct part){bytes, name};
    return true;
}

/* The row of an item, by position. */
static bool add_item(struct scan *s, size_t item) {
    size_t row = s->stack[item].row, n = row_of(s, item + 1) - row;
    if (s->stack[item].shape != SHAPE_TUPLE && s->stack[item].shape != SHAPE_LIST) s->whole = false;
    for (size_t i = 0; s->whole && i < n; i++) {
        if (i == s->n_parts && !add_part(s, 0, 0)) return false;
        s->parts[i].bytes += s->rows[row + i];
    }
    return true;
}

static bool add_call(struct scan *s) {
    const struct element *args = s->stack, *kwds = s->stack + 1;
    if (s->depth != 2 || (args->shape != SHAPE_TUPLE && args->shape != SHAPE_LIST) || kwds->shape != SHAPE_DICT) return true;
    for (size_t i = args->row; i < kwds->row; i++)
        if (!add_part(s, 0, s->rows[i])) return false;
    s->positions = s->n_parts;
    for (size_t i = kwds->row; i < s->n_rows; i += 2)
        if (!add_part(s, (size_t)s->rows[i], s->rows[i + 1])) return false;
    s->whole = true;
    return true;
}

/* The elements from `first` on come into what is at the bottom. */
static bool add_to_answer(struct scan *s, size_t first) {
    if (first == s->depth) return true;
    if (s->kind == PARTS_CALL) return first > 0 || add_call(s);
    if (s->kind == PARTS_ITEMS) {
        if (!s->n_parts && !add_part(s, 0, 0)) return false;
        s->parts[0].bytes += s->at + s->beside - start_of(s, first);
    }
    for (size_t i = first; s->kind == PARTS_ROWS && s->whole && i < s->depth; i++)
        if (!add_item(s, i)) return false;
    s->positions = s->n_parts;
    return true;
}

/* ---- containers ---- */
static bool make_tuple(struct scan *s, size_t first) {
    bool row = has_row(s, first);
    enum shape shape = s->kind == PARTS_CALL && !row ? SHAPE_OTHER : SHAPE_TUPLE;
    if (is_bottom(s, first)) {
        begin_answer(s);
        if (!add_to_answer(s, first)) return false;
    }
    if (!row || first == s->depth) return fold(s, first, shape);
    if (!add_sizes(s, first)) return false;
    s->depth = first + 1;
    s->stack[first].shape = (uint32_t)shape;
    return true;
}
static bool make_tuple_of(struct scan *s, size_t count) { return have(s, count) && make_tuple(s, s->depth - count); }

static bool make_list(struct scan *s) {
    if (is_bottom(s, s->depth)) begin_answer(s);
    return push(s, s->kind == PARTS_CALL && !has_row(s, s->depth) ? SHAPE_OTHER : SHAPE_LIST);
}

/* The elements from `first` on go into the object below, of which there is no row. */
static void join(struct scan *s, size_t first, enum shape shape) {
    struct element *object = &s->stack[first - 1];
    s->depth = first;
    s->n_rows = object->row;
    object->shape = (uint32_t)shape;
}

static bool append(struct scan *s, size_t first) {
    struct element *list = &s->stack[first - 1];
    if (list->shape != SHAPE_LIST && list->shape != SHAPE_LONG_LIST) {
        join(s, first, SHAPE_OTHER);
        return true;
    }
    if (is_bottom(s, first - 1) && !add_to_answer(s, first)) return false;
    if (row_of(s, first) - list->row + (s->depth - first) > ROW) list->shape = SHAPE_LONG_LIST;
    if (list->shape == SHAPE_LONG_LIST || !has_row(s, first - 1)) {
        join(s, first, list->shape);
        return true;
    }
    if (!add_sizes(s, first)) return false;
    s->depth = first;
    return true;
}

static size_t name_of(const struct scan *s, const struct element *e) {
    if (e->shape != SHAPE_NAME) return 0;
    uint8_t code = s->bytes[e->at];
    if (!is_get(code)) return e->at;
    uint64_t entry = s->memo[number_at(s, e->at + 1, opcodes[code].bytes)];
    return entry % (1 << SHAPE_BITS) == SHAPE_NAME ? (size_t)(entry >> SHAPE_BITS) : 0;
}

/* Keys and values from `first` on come into the object below, which is a dict if it can be that of the keywords. */
static bool set_items(struct scan *s, size_t first) {
    struct element *dict = &s->stack[first - 1];
    size_t depth = s->depth, rows = row_of(s, first);
    if ((depth - first) % 2) return false;
    if (is_get(s->bytes[dict->at])) s->aside = s->next;
    if (dict->shape != SHAPE_DICT || rows - dict->row + (depth - first) > 2 * ROW) {
        join(s, first, SHAPE_OTHER);
        return true;
    }
    s->n_rows = rows;
    for (size_t i = first; i < depth; i += 2)
        if (!add_size(s, name_of(s, &s->stack[i])) || !add_size(s, size_of(s, i + 1))) return false;
    s->depth = first;
    return true;
}

/* ---- the memo ---- */
static bool put(struct scan *s, uint64_t id) {
    if (!have(s, 1)) return false;
    if (id >= s->n_memo) s->n_memo = id < MEMO ? (size_t)id + 1 : MEMO;
    if (s->kind == PARTS_ITEMS || id >= MEMO) return true;
    if (!grow(&s->memo, &s->memo_cap, (size_t)id + 1, MEMO, sizeof *s->memo)) return false;
    const struct element *e = &s->stack[s->depth - 1];
    bool known = e->shape == SHAPE_TUPLE || e->shape == SHAPE_LIST || (e->shape == SHAPE_NAME && name_of(s, e) == e->at);
    s->memo[id] = known ? (uint64_t)e->at << SHAPE_BITS | e->shape : 0;
    return true;
}

/* A tuple or list from the memo is an item, or a part of one, without a row: all its bytes are elsewhere. */
static bool get(struct scan *s, uint64_t id) {
    if (id >= s->n_memo && s->n_memo < MEMO) return false;
    uint64_t entry = id < s->memo_cap ? s->memo[id] : 0;
    return push(s, s->depth > 0 ? (enum shape)(entry % (1 << SHAPE_BITS)) : SHAPE_OTHER);
}

/* Elements go, and what they wrote counts for somebody else.
 * They may be what is left of a call aside, that changed an object below and has no name in the memo (the state setter
 * of cloudpickle's functions, dill's late assignments and updates): then for that object.  Otherwise they were to be in a
 * tuple which turned out to be in one of them, so that it is in the memo by now, and the reference to it, which comes
 * next, begins where they began.  It is none of the shapes that we look for: its parts are not on the stack any more. */
static bool discard(struct scan *s, size_t first) {
    if (first == s->depth) return true;
    struct element gone = s->stack[first];
    bool aside = s->at == s->aside;
    cut(s, first);
    uint8_t code = s->next < s->n ? s->bytes[s->next] : 0;
    if (aside || !is_get(code)) return true;
    if (!read_opcode(s) || !get(s, s->number)) return false;
    gone.shape = SHAPE_OTHER;
    s->stack[first] = gone;
    return true;
}

static bool discard_last(struct scan *s) {
    size_t count = 1;
    for (; s->next < s->n && s->bytes[s->next] == POP; s->next++) count++;
    return have(s, count) && discard(s, s->depth - count);
}

/* ---- all of it ---- */
static bool take_buffer(struct scan *s) {
    if (!s->n_buffers || !push(s, SHAPE_OTHER)) return false;
    s->beside += *s->buffers++;
    s->n_buffers--;
    return true;
}

static bool mark(struct scan *s) {
    if (!grow(&s->marks, &s->marks_cap, s->n_marks + 1, MARKS, sizeof *s->marks)) return false;
    s->marks[s->n_marks++] = (uint32_t)s->depth;
    return true;
}

/* What goes with all elements since the last mark. */
static bool to_mark(struct scan *s, enum act act) {
    size_t first;
    if (!take_mark(s, &first)) return false;
    if (act == TUPLE) return make_tuple(s, first);
    if (act == FROZENSET) return fold(s, first, SHAPE_OTHER);
    if (act == DISCARD_MARK) return discard(s, first);
    if (first <= floor_of(s)) return false; /* the others need an object below */
    if (act == APPENDS) return append(s, first);
    if (act == SETITEMS) return set_items(s, first);
    join(s, first, SHAPE_OTHER); /* ADDITEMS */
    return true;
}

static inline bool step(struct scan *s, enum act act) {
    switch (act) {
    case PUSH: return push(s, SHAPE_OTHER);
    case MEMOIZE: return put(s, s->n_memo);
    case PUT: return put(s, s->number);
    case GET: return get(s, s->number);
    case UNICODE: return push(s, s->number <= NAME ? SHAPE_NAME : SHAPE_OTHER);
    case MARK: return mark(s);
    case FRAME: return s->number <= s->n - s->next;
    case DUP: return have(s, 1) && push(s, SHAPE_OTHER);
    case BUFFER: return take_buffer(s);
    case FOLD1: return fold_last(s, 1);
    case FOLD2: return fold_last(s, 2);
    case FOLD3: return fold_last(s, 3);
    case REDUCE: s->aside = s->next; return fold_last(s, 2);
    case EMPTY_TUPLE: return make_tuple(s, s->depth);
    case TUPLE1: return make_tuple_of(s, 1);
    case TUPLE2: return make_tuple_of(s, 2);
    case TUPLE3: return make_tuple_of(s, 3);
    case EMPTY_LIST: return make_list(s);
    case APPEND: return have(s, 2) && append(s, s->depth - 1);
    case EMPTY_DICT: return push(s, s->kind == PARTS_CALL && s->depth == 1 && !s->n_marks ? SHAPE_DICT : SHAPE_OTHER);
    case SETITEM: return have(s, 3) && set_items(s, s->depth - 2);
    case DISCARD: return discard_last(s);
    case TUPLE: case APPENDS: case SETITEMS: case ADDITEMS: case FROZENSET: case DISCARD_MARK: return to_mark(s, act);
    case UNKNOWN: case STOP: break;
    }
    return false;
}

static bool is_answer(const struct scan *s) {
    return s->whole && s->next == s->n && s->depth == 1 && s->n_marks == 0 &&
           (s->stack->shape == SHAPE_TUPLE || s->stack->shape == SHAPE_LIST || s->stack->shape == SHAPE_LONG_LIST);
}

bool parts_scan(const uint8_t *bytes, size_t n, const uint64_t *buffers, size_t n_buffers, enum parts_kind kind, struct parts *parts) {
    struct scan s = {.bytes = bytes, .n = n, .next = 2, .buffers = buffers, .n_buffers = n_buffers, .kind = kind};
    bool good = n > 2 && bytes[0] == PROTO && bytes[1] >= 2 && bytes[1] <= 5;
    while ((good = good && read_opcode(&s)) && opcodes[bytes[s.at]].act != STOP) good = step(&s, opcodes[bytes[s.at]].act);
    good = good && is_answer(&s);
    free(s.stack);
    free(s.marks);
    free(s.rows);
    free(s.memo);
    if (!good) free(s.parts), s.parts = NULL;
    *parts = (struct parts){s.parts, good ? s.n_parts : 0, good ? s.positions : 0};
    return good;
}

const uint8_t *parts_name(const uint8_t *bytes, size_t name, size_t *length) {
    *length = bytes[name + 1]; /* no more than NAME, which is one byte of BINUNICODE's four, too */
    return bytes + name + (bytes[name] == BINUNICODE ? 5 : 2);
}
