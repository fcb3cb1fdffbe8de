/* Strings and stacks of this process: looked up on each emit, so made to be found fast.
 *
 * Everything here needs the GIL.  A stack's key is its (code object, instruction) pairs; the table holds references
 * to the code objects, so that an address cannot come again with another meaning.  The tables are bounded: when one
 * is full, both are emptied between two emits and the epoch changes; what is still held gets a new id on next use.
 */
#include "intern.h"

#include <frameobject.h>

#define STRINGS_MAX 65536
#define STACKS_MAX 16384

uint32_t intern_epoch = 1;
static uint32_t next_string_id = 1, next_stack_id = 1; /* of this epoch; 0 is 'none' */
static PyObject *strings;                              /* dict: str -> capsule of struct string */
struct cached intern_cache[PT_CACHE];
bool intern_full;
static struct {
    stack_t_ **at;        /* open addressing; owned references */
    uint32_t size, used;
} table;

/* ---- strings ---- */
static struct string *string_new(const char *bytes, Py_ssize_t len) {
    if (len > (Py_ssize_t)PT_STRING_MAX) {
        len = PT_STRING_MAX;
        while (len > 0 && ((unsigned char)bytes[len] & 0xc0) == 0x80) len--; /* not inside a character */
    }
    struct string *s = PyMem_Malloc(sizeof *s + (size_t)len);
    if (!s) {
        PyErr_NoMemory();
        return NULL;
    }
    s->refs = 1;
    s->id = s->epoch = 0;
    s->len = (uint32_t)len;
    memcpy(s->bytes, bytes, (size_t)len);
    return s;
}

void string_unref(struct string *s) {
    if (s && --s->refs == 0) PyMem_Free(s);
}

uint32_t string_id(struct string *s) {
    if (s->epoch != intern_epoch) {
        s->epoch = intern_epoch;
        s->id = next_string_id++;
        intern_full |= next_string_id >= STRINGS_MAX;
    }
    return s->id;
}

static void capsule_free(PyObject *capsule) { string_unref(PyCapsule_GetPointer(capsule, NULL)); }

struct string *string_once(PyObject *text) {
    if (!PyUnicode_Check(text)) {
        PyErr_Format(PyExc_TypeError, "a text must be a str, not %.100s", Py_TYPE(text)->tp_name);
        return NULL;
    }
    Py_ssize_t len;
    const char *bytes = PyUnicode_AsUTF8AndSize(text, &len);
    PyObject *escaped = NULL;
    if (!bytes) { /* lone surrogates */
        PyErr_Clear();
        escaped = PyUnicode_AsEncodedString(text, "utf-8", "backslashreplace");
        if (!escaped) return NULL;
        bytes = PyBytes_AS_STRING(escaped);
        len = PyBytes_GET_SIZE(escaped);
    }
    struct string *s = string_new(bytes, len);
    Py_XDECREF(escaped);
    return s;
}

static struct string *string_add(PyObject *text) {
    struct string *s = string_once(text);
    if (!s) return NULL;
    PyObject *capsule = PyCapsule_New(s, NULL, capsule_free);
    if (!capsule) {
        string_unref(s);
        return NULL;
    }
    int failed = PyDict_SetItem(strings, text, capsule);
    intern_full |= PyDict_GET_SIZE(strings) >= STRINGS_MAX;
    if (!failed) s->refs++; /* ours, beside the table's */
    Py_DECREF(capsule);
    return failed ? NULL : s;
}

struct string *string_of(PyObject *text) {
    size_t i = ((uintptr_t)text >> 4) % PT_CACHE;
    if (intern_cache[i].text == text) {
        intern_cache[i].string->refs++;
        return intern_cache[i].string;
    }
    if (!PyUnicode_CheckExact(text)) {
        PyObject *exact = PyUnicode_Check(text) ? PyUnicode_FromObject(text) : NULL; /* of a subclass: as a plain str */
        if (!exact) {
            if (!PyErr_Occurred()) PyErr_Format(PyExc_TypeError, "a name must be a str, not %.100s", Py_TYPE(text)->tp_name);
            return NULL;
        }
        struct string *plain = string_of(exact);
        Py_DECREF(exact);
        return plain;
    }
    struct string *s;
    PyObject *capsule = PyDict_GetItemWithError(strings, text);
    if (capsule) {
        s = PyCapsule_GetPointer(capsule, NULL);
        s->refs++;
    } else {
        if (PyErr_Occurred()) return NULL;
        s = string_add(text);
        if (!s) return NULL;
    }
    PyObject *old_text = intern_cache[i].text;
    struct string *old = intern_cache[i].string;
    Py_INCREF(text);
    s->refs++;
    intern_cache[i].text = text;
    intern_cache[i].string = s;
    Py_XDECREF(old_text);
    string_unref(old);
    return s;
}

/* ---- stacks ---- */
static void stack_dealloc(PyObject *self) {
    stack_t_ *s = (stack_t_ *)self;
    for (uint32_t i = 0; i < s->n; i++) {
        if (s->codes) Py_DECREF(s->codes[i]);
        string_unref(s->frames[i].function);
        string_unref(s->frames[i].file);
    }
    PyMem_Free(s->codes);
    PyMem_Free(s->lasti);
    PyMem_Free(s->frames);
    Py_TYPE(self)->tp_free(self);
}

static PyObject *stack_frames(PyObject *self, void *unused) {
    (void)unused;
    stack_t_ *s = (stack_t_ *)self;
    PyObject *out = PyTuple_New(s->n);
    for (uint32_t i = 0; out && i < s->n; i++) {
        struct frame *f = &s->frames[i];
        PyObject *item = Py_BuildValue("(s#s#I)", f->function->bytes, (Py_ssize_t)f->function->len, f->file->bytes,
                                       (Py_ssize_t)f->file->len, f->line);
        if (!item) {
            Py_CLEAR(out);
            break;
        }
        PyTuple_SET_ITEM(out, i, item);
    }
    return out;
}

static PyGetSetDef stack_getset[] = {
    {"frames", stack_frames, NULL, "((function, file, line), ...), innermost first", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyTypeObject StackType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "pooltrace.tracer.Stack",
    .tp_basicsize = sizeof(stack_t_),
    .tp_dealloc = stack_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "A Python call stack as it was when it was taken: a handle for the emit functions.",
    .tp_getset = stack_getset,
};

uint32_t stack_id(stack_t_ *s) {
    if (s->epoch != intern_epoch) {
        s->epoch = intern_epoch;
        s->id = next_stack_id++;
        intern_full |= next_stack_id >= 4 * STACKS_MAX;
    }
    return s->id;
}

/* "module.qualname"; a module called runtime is prefixed, since Go's pages hide runtime.* */
static struct string *function_string(PyFrameObject *frame, PyCodeObject *code) {
#if PY_VERSION_HEX >= 0x030B0000
    PyObject *globals = PyFrame_GetGlobals(frame);
    PyObject *name = Py_NewRef(code->co_qualname);
#else
    PyObject *globals = frame->f_globals;
    Py_INCREF(globals);
    PyObject *name = code->co_name;
    Py_INCREF(name);
#endif
    struct string *s = NULL;
    PyObject *module = PyDict_GetItemString(globals, "__name__"); /* borrowed */
    PyObject *text = NULL;
    if (module && PyUnicode_Check(module)) {
        const char *prefix = PyUnicode_CompareWithASCIIString(module, "runtime") == 0 ? "./" : "";
        text = PyUnicode_FromFormat("%s%U.%U", prefix, module, name);
    } else {
        text = PyUnicode_FromObject(name);
    }
    if (text) s = string_of(text);
    Py_XDECREF(text);
    Py_DECREF(name);
    Py_DECREF(globals);
    return s;
}

static stack_t_ *stack_alloc(uint32_t n) {
    stack_t_ *s = PyObject_New(stack_t_, &StackType);
    if (!s) return NULL;
    s->id = s->epoch = 0;
    s->hash = 0;
    s->n = 0;
    s->codes = NULL;
    s->lasti = NULL;
    s->frames = PyMem_Calloc(n ? n : 1, sizeof *s->frames);
    if (!s->frames) {
        Py_DECREF(s);
        PyErr_NoMemory();
        return NULL;
    }
    return s;
}

static uint64_t mix(uint64_t h, uint64_t v) {
    h ^= v + 0x9e3779b97f4a7c15ull + (h << 6) + (h >> 2);
    return h * 0xff51afd7ed558ccdull;
}

/* Where this key is, or would be put. */
static uint32_t table_find(uint64_t hash, uint32_t n, PyCodeObject **codes, const int *lasti) {
    uint32_t i = (uint32_t)(hash >> 20) & (table.size - 1);
    for (;; i = (i + 1) & (table.size - 1)) {
        stack_t_ *s = table.at[i];
        if (!s) return i;
        if (s->hash == hash && s->n == n && !memcmp(s->codes, codes, n * sizeof *codes) &&
            !memcmp(s->lasti, lasti, n * sizeof *lasti))
            return i;
    }
}

static int frame_lasti(PyFrameObject *frame) {
#if PY_VERSION_HEX >= 0x030B0000
    return PyFrame_GetLasti(frame);
#else
    return frame->f_lasti * (int)sizeof(_Py_CODEUNIT);
#endif
}

static PyFrameObject *frame_back(PyFrameObject *frame) { /* steals frame */
    PyFrameObject *back = PyFrame_GetBack(frame);
    Py_DECREF(frame);
    return back;
}

/* The frames of a key that was not known; frame is the innermost one that counts. */
static stack_t_ *stack_build(PyFrameObject *frame, uint64_t hash, uint32_t n, PyCodeObject **codes, const int *lasti) {
    stack_t_ *s = stack_alloc(n);
    if (!s) return NULL;
    s->codes = PyMem_Malloc((n ? n : 1) * sizeof *codes);
    s->lasti = PyMem_Malloc((n ? n : 1) * sizeof *lasti);
    Py_INCREF(frame);
    if (!s->codes || !s->lasti) {
        PyErr_NoMemory();
        goto failed;
    }
    s->hash = hash;
    for (uint32_t i = 0; i < n && frame; i++) {
        struct frame *f = &s->frames[i];
        f->function = function_string(frame, codes[i]);
        if (!f->function) goto failed;
        f->file = string_of(codes[i]->co_filename);
        if (!f->file) {
            string_unref(f->function);
            goto failed;
        }
        int line = PyCode_Addr2Line(codes[i], lasti[i]);
        f->line = line > 0 ? (uint32_t)line : 0;
        Py_INCREF(codes[i]);
        s->codes[i] = codes[i];
        s->lasti[i] = lasti[i];
        s->n = i + 1;
        frame = frame_back(frame);
    }
    Py_XDECREF(frame);
    return s;
failed:
    Py_XDECREF(frame);
    if (!s->codes) s->n = 0;
    Py_DECREF(s);
    return NULL;
}

stack_t_ *stack_here(int skip) {
    PyCodeObject *codes[PT_FRAMES_MAX];
    int lasti[PT_FRAMES_MAX] = {0};
    uint32_t n = 0;
    PyFrameObject *frame = PyThreadState_GetFrame(PyThreadState_Get());
    while (frame && skip-- > 0) frame = frame_back(frame);
    PyFrameObject *innermost = frame;
    Py_XINCREF(innermost);
    uint64_t hash = 0x243f6a8885a308d3ull;
    for (; frame && n < PT_FRAMES_MAX; frame = frame_back(frame), n++) {
        codes[n] = PyFrame_GetCode(frame); /* new reference, kept until the end */
        lasti[n] = frame_lasti(frame);
        hash = mix(mix(hash, (uint64_t)(uintptr_t)codes[n]), (uint64_t)(uint32_t)lasti[n]);
    }
    Py_XDECREF(frame);
    stack_t_ *s = NULL;
    uint32_t i = table_find(hash, n, codes, lasti);
    if (table.at[i]) {
        s = table.at[i];
        Py_INCREF(s);
    } else if (innermost) {
        s = stack_build(innermost, hash, n, codes, lasti);
        if (s) { /* building ran Python code, perhaps: look again */
            i = table_find(hash, n, codes, lasti);
            if (!table.at[i] && table.used < table.size / 2) {
                Py_INCREF(s);
                table.at[i] = s;
                table.used++;
                intern_full |= table.used >= STACKS_MAX;
            }
        }
    } else {
        s = stack_alloc(0);
    }
    for (uint32_t k = 0; k < n; k++) Py_DECREF(codes[k]);
    Py_XDECREF(innermost);
    return s;
}

stack_t_ *stack_made(PyObject *function, PyObject *file, long line) {
    stack_t_ *s = stack_alloc(1);
    if (!s) return NULL;
    s->frames[0].function = string_of(function);
    s->frames[0].file = s->frames[0].function ? string_of(file) : NULL;
    if (!s->frames[0].file) {
        string_unref(s->frames[0].function);
        Py_DECREF(s);
        return NULL;
    }
    s->frames[0].line = line > 0 ? (uint32_t)line : 0;
    s->n = 1;
    return s;
}

void intern_trim(void) {
    PyObject *fresh = PyDict_New();
    stack_t_ **at = PyMem_Calloc(table.size, sizeof *at);
    if (!fresh || !at) { /* no memory now: the old tables go on */
        PyErr_Clear();
        Py_XDECREF(fresh);
        PyMem_Free(at);
        return;
    }
    intern_epoch++;
    intern_full = false;
    next_string_id = next_stack_id = 1;
    PyObject *old_strings = strings;
    stack_t_ **old = table.at;
    strings = fresh;
    table.at = at;
    table.used = 0;
    for (int i = 0; i < PT_CACHE; i++) {
        PyObject *text = intern_cache[i].text;
        struct string *s = intern_cache[i].string;
        intern_cache[i].text = NULL;
        intern_cache[i].string = NULL;
        Py_XDECREF(text);
        string_unref(s);
    }
    for (uint32_t i = 0; i < table.size; i++) Py_XDECREF(old[i]); /* may run Python code: the new tables stand */
    PyMem_Free(old);
    Py_DECREF(old_strings);
}

int intern_init(void) {
    if (PyType_Ready(&StackType) < 0) return -1;
    if (strings) return 0;
    strings = PyDict_New();
    table.size = 2 * STACKS_MAX;
    table.at = PyMem_Calloc(table.size, sizeof *table.at);
    if (!strings || !table.at) {
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}
