/* What writer.c needs of Python, for programs without one: a GIL that is a mutex, held by the threads that say so.
 *
 * A thread that stands for a worker process (gil_mine false) has an interpreter of its own: nobody to wait for.
 */
#ifndef POOLTRACE_STUB_PYTHON_H
#define POOLTRACE_STUB_PYTHON_H

#include <pthread.h>
#include <stdbool.h>

typedef struct stub_thread_state PyThreadState;

extern pthread_mutex_t gil;
extern __thread bool gil_mine;

static inline int PyErr_SetInterruptEx(int signum) {
    (void)signum;
    return 0;
}

static inline PyThreadState *PyEval_SaveThread(void) {
    if (gil_mine) pthread_mutex_unlock(&gil);
    return (PyThreadState *)0;
}

static inline void PyEval_RestoreThread(PyThreadState *state) {
    (void)state;
    if (gil_mine) pthread_mutex_lock(&gil);
}

#endif
