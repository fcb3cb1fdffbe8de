/* parts(): what parts.c reads off a pickle, as Python has it. */
#include <Python.h>

#include "channel.h"
#include "parts.h"

/* The sizes of the buffers, to be freed with PyMem_Free; NULL with an exception, or without one: they are no sizes. */
static uint64_t *sizes_of(PyObject *given, size_t *n) {
    PyObject *row = PySequence_Fast(given, "the sizes of the buffers are to be a sequence");
    if (!row) return NULL;
    *n = (size_t)PySequence_Fast_GET_SIZE(row);
    uint64_t left = INT64_MAX, *sizes = PyMem_New(uint64_t, *n + 1);
    bool good = sizes != NULL;
    if (!sizes) PyErr_NoMemory();
    for (size_t i = 0; good && i < *n; i++) {
        sizes[i] = PyLong_AsUnsignedLongLong(PySequence_Fast_GET_ITEM(row, (Py_ssize_t)i));
        if (PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_OverflowError)) PyErr_Clear(), sizes[i] = UINT64_MAX;
        good = !PyErr_Occurred() && sizes[i] <= left;
        left -= good ? sizes[i] : 0;
    }
    Py_DECREF(row);
    if (!good) PyMem_Free(sizes), sizes = NULL;
    return sizes;
}

static PyObject *label_of(const uint8_t *bytes, const struct parts *parts, size_t i) {
    if (i < parts->positions) return PyUnicode_FromFormat("%zu", i);
    size_t length, name = parts->list[i].name;
    if (name) {
        const char *text = (const char *)parts_name(bytes, name, &length);
        PyObject *label = PyUnicode_DecodeUTF8(text, (Py_ssize_t)length, NULL);
        if (label || !PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) return label;
        PyErr_Clear();
    }
    return PyUnicode_FromString("?");
}

static PyObject *list_of(const uint8_t *bytes, const struct parts *parts) {
    PyObject *list = PyList_New((Py_ssize_t)parts->n);
    for (size_t i = 0; list && i < parts->n; i++) {
        PyObject *label = label_of(bytes, parts, i);
        PyObject *pair = label ? Py_BuildValue("NK", label, (unsigned long long)parts->list[i].bytes) : NULL;
        if (pair) PyList_SET_ITEM(list, (Py_ssize_t)i, pair);
        else Py_CLEAR(list);
    }
    return list;
}

PyObject *parts_function(PyObject *m, PyObject *args) {
    (void)m;
    Py_buffer payload;
    PyObject *given, *list = NULL;
    int kind;
    if (!PyArg_ParseTuple(args, "y*Oi", &payload, &given, &kind)) return NULL;
    size_t n = 0;
    uint64_t *sizes = sizes_of(given, &n);
    struct parts parts = {NULL, 0, 0};
    enum parts_kind kinds[] = {[FRAME_APPLY] = PARTS_CALL, [FRAME_MAP] = PARTS_ITEMS, [FRAME_STARMAP] = PARTS_ROWS};
    bool good = sizes && kind >= FRAME_APPLY && kind <= FRAME_STARMAP &&
                parts_scan(payload.buf, (size_t)payload.len, sizes, n, kinds[kind], &parts);
    if (good) list = list_of(payload.buf, &parts);
    else if (!PyErr_Occurred()) list = Py_NewRef(Py_None);
    free(parts.list);
    PyMem_Free(sizes);
    PyBuffer_Release(&payload);
    return list;
}
