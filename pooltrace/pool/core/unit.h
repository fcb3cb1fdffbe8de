/* Units and rows of them, as they wait and as they are on their way, see unit.c. */
#ifndef POOLTRACE_UNIT_H
#define POOLTRACE_UNIT_H

#include <Python.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct {
    PyObject_HEAD
    PyObject *job, *what, *packed, *error, *first; /* owned; NULL: None */
    Py_ssize_t begin, end;       /* of the items that it has of `what`; end < 0: `what` is what it has */
    Py_ssize_t index, size, items, weight, deaths, losses;
    unsigned long long g;
    unsigned int generation;
    char sent;
} unit_t;

typedef struct {
    PyObject_HEAD
    PyObject *unit_type;         /* owned: a subclass of Unit */
    PyObject *job, *items;       /* owned; items has a length and slices */
    Py_ssize_t size;             /* items of a unit */
    Py_ssize_t index, left;      /* of the next unit; units */
    unsigned long long g;        /* of the next unit */
    unsigned int generation;
} row_t;

unit_t *row_next(row_t *r);          /* its first unit, which stays in it; NULL with an exception */
void row_advance(row_t *r);          /* past it */
PyObject *unit_bytes(const unit_t *u); /* what it has, if it is plain or packed, and small; NULL without an exception: by others */

extern PyTypeObject UnitType, RowType;

#endif
