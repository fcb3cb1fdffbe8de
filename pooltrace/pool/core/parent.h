/* The parent's end of a channel, for those who make it: parent.c, post.c and call.c. */
#ifndef POOLTRACE_PARENT_H
#define POOLTRACE_PARENT_H

#include "channel.h"
#include "spin.h"

#define ROUNDS 32 /* receive calls at a time: the other workers have a turn, too */

typedef struct {
    PyObject_HEAD
    struct receiver in;
    struct sender out;
    struct page *page;       /* owned mapping; NULL once closed */
    uint64_t next;           /* number of the next unit that is sent */
    uint64_t tail;           /* bytes of results that were taken; the page's own is for the worker */
    PyObject *unit[WINDOW];  /* owned: units in flight, by number % WINDOW; NULL: answered or taken back */
    uint64_t seq[WINDOW];    /* their numbers */
    uint64_t size[WINDOW];   /* bytes of their frames, */
    uint64_t waiting;        /* and of all in flight */
    Py_ssize_t inflight;     /* how many there are */
    uint64_t taken, answers; /* units that were taken back; that were answered */
    struct spin spin;        /* of calls */
    int pidfd;               /* borrowed: readable when the worker is dead; -1: there is none */
    bool ended;              /* the worker has closed its end */
    bool broken;             /* what it says makes no sense; nothing more is read */
    bool lent;               /* a call has it */
    bool wanted;             /* and somebody has asked for it */
    bool retired, stopping;  /* it is lent no more; the worker was asked to end, */
    bool stop_due;           /* or will be when the end is back */
} parent_t;

/* parent.c */
bool parent_is_open(parent_t *p); /* false with an exception set */
bool parent_is_lent(parent_t *p); /* somebody else has it; he is told to say when it is back */
bool parent_send_stop(parent_t *p);
int parent_take_in(parent_t *p, PyObject *list, int rounds); /* -1 with an exception; what could be had is in the list */

/* post.c */
Py_ssize_t parent_room(parent_t *p, Py_ssize_t most); /* for how many units, up to that many */
bool parent_has_room(parent_t *p);                    /* for one */
bool parent_post_args(parent_t *p, PyObject *const *args); /* as of post(); false with an exception set: not in flight */
PyObject *parent_post(parent_t *p, PyObject *const *args, Py_ssize_t n);
PyObject *parent_post_row(parent_t *p, PyObject *const *args, Py_ssize_t n);
PyObject *parent_post_units(parent_t *p, PyObject *const *args, Py_ssize_t n);

/* call.c */
bool parent_is_idle(parent_t *p);
PyObject *parent_call(parent_t *p, PyObject *const *args, Py_ssize_t n);

#endif
