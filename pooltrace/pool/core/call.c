/* A call: one unit is sent, and its answer awaited, by the calling thread.
 *
 * The parent's end is the dispatcher's, but for that time: it is `lent`.  That begins and ends inside one function, by
 * which the GIL is held when it changes: no signal's handler, no exception in a thread can leave it lent.  No handler
 * runs while it is lent, since that may wait for the dispatcher; it is given back for the time, and taken again if it is
 * as it was.  The dispatcher's own calls do nothing to an end that is lent; it says that it wants it, and is woken when
 * it is back.
 */
#include "parent.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>

bool parent_is_idle(parent_t *p) {
    bool free = p->page && !p->lent && !p->retired && !p->stopping && p->inflight == 0 && p->out.first == p->out.n;
    return free && !p->ended && !p->broken && p->pidfd >= 0 && parent_has_room(p);
}

/* What went wrong is the dispatcher's to see again; an exception of a signal's handler stays. */
static int left_to_others(void) {
    if (!PyErr_ExceptionMatches(PyExc_OSError) && !PyErr_ExceptionMatches(PyExc_MemoryError)) return -1;
    PyErr_Clear();
    return 0;
}

enum { ANSWERED = 2, GO_ON = 1, LEFT = 0, RAISED = -1 };

/* Signals' handlers run, and `leave`'s __exit__ if there is one, while the end is the dispatcher's.  GO_ON: it is as it
 * was (also when it is `wanted`, if that is no reason to leave it), and lent again; else it is not *mine any more, and
 * perhaps another call's. */
static int step_aside(parent_t *p, uint64_t seq, PyObject *leave, bool stays, bool *mine) {
    p->lent = *mine = false;
    PyObject *done = leave ? PyObject_CallMethod(leave, "__exit__", "OOO", Py_None, Py_None, Py_None) : Py_NewRef(Py_None);
    if (!done) return RAISED;
    Py_DECREF(done);
    if (PyErr_CheckSignals() < 0) return RAISED;
    bool same = p->page && !p->lent && (stays || !p->wanted) && p->inflight == 1 && p->next == seq + 1 && p->unit[seq % WINDOW];
    if (!same || p->retired || p->stopping) return LEFT;
    p->lent = *mine = true;
    return GO_ON;
}

/* The answer may be there soon.  A bell of earlier is read then: what nobody reads fills the channel. */
static int look(parent_t *p, PyObject *list, uint64_t seq, bool *mine) {
    bool rung = bell_hold(p->page);
    Py_BEGIN_ALLOW_THREADS
    spin_until(&p->spin, &p->page->head, false, p->tail);
    Py_END_ALLOW_THREADS
    int how = GO_ON;
    if (bell_heard(p->page) != p->tail) how = parent_take_in(p, list, rung ? 1 : 0) < 0 ? left_to_others() : GO_ON;
    if (PyList_GET_SIZE(list) > 0) return how == RAISED ? RAISED : ANSWERED;
    return how == GO_ON ? step_aside(p, seq, NULL, true, mine) : how; /* of a signal that came while we looked */
}

static int await_answer(parent_t *p, PyObject *list, uint64_t seq, bool sent, bool *mine) {
    int how = sent ? look(p, list, seq, mine) : GO_ON;
    if (how != GO_ON) return how;
    while (PyList_GET_SIZE(list) == 0) {
        struct pollfd fds[2] = {{.fd = p->out.fd, .events = sent ? POLLIN : POLLIN | POLLOUT}, {.fd = p->pidfd, .events = POLLIN}};
        int n;
        Py_BEGIN_ALLOW_THREADS
        n = poll(fds, 2, -1);
        Py_END_ALLOW_THREADS
        int interrupted = n < 0 && errno == EINTR;
        if (n < 0 && !interrupted) return LEFT;
        if (!interrupted && (fds[1].revents || p->ended)) return LEFT;
        if (!interrupted && fds[0].revents & ~POLLOUT && parent_take_in(p, list, ROUNDS) < 0) {
            int left = left_to_others();
            return PyList_GET_SIZE(list) > 0 && left == LEFT ? ANSWERED : left;
        }
        if (!sent && !interrupted) {
            int all = sender_flush(&p->out, false);
            if (all < 0) return left_to_others();
            sent = all;
            interrupted = true; /* it may have been, without the GIL */
        }
        if (interrupted && PyList_GET_SIZE(list) == 0) {
            how = step_aside(p, seq, NULL, false, mine);
            if (how != GO_ON) return how;
        }
    }
    return ANSWERED;
}

/* Sends the unit, and waits; the gate was entered, and is left. */
static int call(parent_t *p, PyObject *const *args, PyObject *gate, PyObject *list, bool *mine) {
    uint64_t seq = p->next;
    bool posted = parent_post_args(p, args);
    if (posted && PyObject_SetAttrString(args[0], "sent", Py_True) < 0) PyErr_Clear();
    int all = posted ? sender_flush(&p->out, false) : 0, how = !posted ? RAISED : all < 0 ? left_to_others() : GO_ON;
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    int after = step_aside(p, seq, gate, false, mine);
    if (type) {
        PyErr_Clear();
        PyErr_Restore(type, value, traceback);
    }
    if (how != GO_ON || after != GO_ON) return how == RAISED || after == RAISED ? RAISED : LEFT;
    return await_answer(p, list, seq, all, mine);
}

/* The gate is entered before the end is lent: that may wait. */
PyObject *parent_call(parent_t *p, PyObject *const *args, Py_ssize_t n) {
    if (n != 11) return PyErr_Format(PyExc_TypeError, "call() takes 11 arguments, not %zd", n);
    PyObject *gate = args[9], *answer = NULL, *entered = NULL, *list = PyList_New(0);
    int waker = (int)PyLong_AsLong(args[10]);
    if (!list || (waker == -1 && PyErr_Occurred()) || !(entered = PyObject_CallMethod(gate, "__enter__", NULL))) goto out;
    if (!parent_is_idle(p)) { /* from here to `lent` nothing is allocated */
        PyObject *left = PyObject_CallMethod(gate, "__exit__", "OOO", Py_None, Py_None, Py_None);
        if (left) answer = Py_NewRef(Py_False);
        Py_XDECREF(left);
        goto out;
    }
    bool mine = p->lent = true;
    int how = call(p, args, gate, list, &mine);
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    bool tell = false;
    if (mine || !p->lent) { /* else another call has it, and does that at its end */
        if (p->stop_due && p->page && !parent_send_stop(p)) PyErr_Clear(); /* without memory: it is killed in time */
        tell = p->page && p->pidfd >= 0 && (p->wanted || p->inflight > 0);
        p->lent = p->wanted = false;
    }
    if (tell) (void)!send(waker, ".", 1, MSG_DONTWAIT | MSG_NOSIGNAL); /* full: it is awake */
    PyErr_Restore(type, value, traceback);
    if (how != RAISED) answer = Py_NewRef(how == ANSWERED ? PyList_GET_ITEM(list, 0) : Py_None);
out:
    Py_XDECREF(entered);
    Py_XDECREF(list);
    return answer;
}
