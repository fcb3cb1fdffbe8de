/* What users say: their tasks, which any M that runs a G may begin and end; and the base of annotate.py's context
 * managers, in C since they are to cost next to nothing when no trace is on: then neither runs a line of Python.
 */
#include "emit.h"

#include <structmember.h>

/* ---- tasks ---- */
static PyObject *user_task_begin(PyObject *m, PyObject *const *args, Py_ssize_t n) {
    (void)m;
    if (arg_count(n, 3, "user_task_begin") < 0) return NULL;
    struct writer *w = ready_any();
    if (!w) Py_RETURN_NONE;
    struct refs r = {0};
    struct event ev;
    uint64_t parent, first = 0, task = 0;
    bool written = false;
    emit_begin();
    bool failed = arg_uint(args[0], &parent) < 0 || !(r.name = string_of_cached(args[1])) || arg_stack(args[2], true, &r.stack) < 0;
    if (!failed) task = atomic_fetch_add(&w->head->next.task, 1); /* of the arena: a worker's do not meet its parent's */
    while (!failed && open_with(w, &ev, 64, &r, w->kind != KIND_WORKER)) {
        first = LOAD(&w->head->first_gen);
        put_task(&ev, OP_USER_TASK, task, parent, &r);
        if ((written = writer_publish(w, &ev))) break;
    }
    emit_end();
    refs_free(&r);
    if (failed) return NULL;
    if (!written) Py_RETURN_NONE;
    return Py_BuildValue("KK", (unsigned long long)task, (unsigned long long)first);
}

static PyObject *user_task_end(PyObject *m, PyObject *const *args, Py_ssize_t n) {
    (void)m;
    if (arg_count(n, 3, "user_task_end") < 0) return NULL;
    struct writer *w = ready_any();
    if (!w) Py_RETURN_NONE;
    struct refs r = {0};
    struct event ev;
    uint64_t task, first;
    emit_begin();
    bool failed = arg_uint(args[0], &task) < 0 || arg_uint(args[1], &first) < 0 || arg_stack(args[2], true, &r.stack) < 0;
    while (!failed && open_with(w, &ev, 48, &r, w->kind != KIND_WORKER)) {
        if (LOAD(&w->head->first_gen) != first) break; /* it began in another trace */
        put_task_end(&ev, task, &r);
        if (writer_publish(w, &ev)) break;
    }
    return emit_done(&r, failed);
}

PyMethodDef annotation_methods[] = {
    FAST("user_task_begin", user_task_begin,
         "user_task_begin(parent, name, stack) -> (task, trace) | None: a task of the user's begins; None: it was not recorded."),
    FAST("user_task_end", user_task_end, "user_task_end(task, trace, stack): it ends, if that trace is still on."),
    {NULL, NULL, 0, NULL},
};

/* ---- context managers ---- */
typedef struct {
    PyObject_HEAD
    PyObject *name;  /* owned: a str */
    PyObject *begun; /* owned: a list of what _end() has to end, the subclass's; NULL before the first */
    Py_ssize_t unheard; /* who came in without being told of, and has not left */
} annotation_t;

static PyObject *str_begin, *str_end; /* owned, once */

static PyObject *annotation_new(PyTypeObject *type, PyObject *args, PyObject *kwds) {
    static char *keywords[] = {"name", NULL};
    PyObject *name;
    if (!kwds && PyTuple_GET_SIZE(args) == 1) name = PyTuple_GET_ITEM(args, 0);
    else if (!PyArg_ParseTupleAndKeywords(args, kwds, "O", keywords, &name)) return NULL;
    if (!PyUnicode_Check(name))
        return PyErr_Format(PyExc_TypeError, "%s() takes a name, which is a str, not %.100s", type->tp_name, Py_TYPE(name)->tp_name);
    annotation_t *a = (annotation_t *)type->tp_alloc(type, 0);
    if (!a) return NULL;
    Py_INCREF(name);
    a->name = name;
    return (PyObject *)a;
}

static void annotation_dealloc(annotation_t *a) { /* no cycles: what was begun does not know who has begun it */
    PyTypeObject *type = Py_TYPE(a);
    Py_XDECREF(a->name);
    Py_XDECREF(a->begun);
    type->tp_free(a);
}

/* After what was raised, and is to be raised, by a signal's handler, say: there is something that has to end. */
static void end_all_the_same(PyObject *self) {
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyObject *done = PyObject_CallMethodNoArgs(self, str_end);
    if (!done) PyErr_Clear();
    Py_XDECREF(done);
    PyErr_Restore(type, value, traceback);
}

static PyObject *annotation_enter(PyObject *self, PyObject *unused) {
    (void)unused;
    annotation_t *a = (annotation_t *)self;
    if (!any_trace()) {
        a->unheard++;
        Py_RETURN_NONE;
    }
    if (!a->begun && !(a->begun = PyList_New(0))) return NULL;
    Py_ssize_t before = PyList_GET_SIZE(a->begun);
    PyObject *done = PyObject_CallMethodNoArgs(self, str_begin);
    bool begun = PyList_GET_SIZE(a->begun) > before;
    if (!done && begun) end_all_the_same(self); /* `with` does not, if __enter__ raises */
    else if (done && !begun) a->unheard++;
    return done;
}

static PyObject *annotation_exit(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    (void)args, (void)n;
    annotation_t *a = (annotation_t *)self;
    Py_ssize_t before = a->begun ? PyList_GET_SIZE(a->begun) : 0;
    if (before == 0) {
        if (a->unheard > 0) a->unheard--;
        Py_RETURN_NONE;
    }
    PyObject *done = PyObject_CallMethodNoArgs(self, str_end);
    if (!done && PyList_GET_SIZE(a->begun) == before) end_all_the_same(self);
    return done;
}

static PyMethodDef methods[] = {
    {"__enter__", annotation_enter, METH_NOARGS, "Calls _begin() if a trace is on."},
    FAST("__exit__", annotation_exit, "Calls _end() if something was begun."),
    {NULL, NULL, 0, NULL},
};
static PyMemberDef members[] = {
    {"_name", T_OBJECT, offsetof(annotation_t, name), READONLY, "what it is called"},
    {"_unheard", T_PYSSIZET, offsetof(annotation_t, unheard), 0, "who came in without being told of, and has not left"},
    {"_begun", T_OBJECT, offsetof(annotation_t, begun), READONLY, "what _end() has to end"},
    {NULL, 0, 0, 0, NULL},
};
PyTypeObject AnnotationType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "pooltrace.tracer._core.Annotation",
    .tp_basicsize = sizeof(annotation_t),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .tp_doc = "Annotation(name): calls its subclass's _begin() and _end() only when there is a trace to tell.",
    .tp_new = annotation_new,
    .tp_dealloc = (destructor)annotation_dealloc,
    .tp_methods = methods,
    .tp_members = members,
};

int annotation_init(PyObject *m) {
    if (!str_begin && !(str_begin = PyUnicode_InternFromString("_begin"))) return -1;
    if (!str_end && !(str_end = PyUnicode_InternFromString("_end"))) return -1;
    return PyModule_AddType(m, &AnnotationType) < 0 ? -1 : PyModule_AddFunctions(m, annotation_methods);
}
