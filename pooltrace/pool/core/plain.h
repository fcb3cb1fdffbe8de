/* Plain values as bytes, see plain.c. */
#ifndef POOLTRACE_PLAIN_H
#define POOLTRACE_PLAIN_H

#include <Python.h>
#include <stdbool.h>
#include <stdint.h>

#define PICKLE 0x80 /* the first byte of what is not plain */

PyObject *plain_dumps(PyObject *o);                      /* new bytes; NULL without an exception: it is not plain */
PyObject *plain_loads(const uint8_t *bytes, size_t n);   /* NULL with an exception: it is not what is made here */
PyObject *plain_function(PyObject *module, PyObject *o); /* plain(value) -> bytes | None */

#endif
