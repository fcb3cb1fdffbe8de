/* pooltrace.pool._channel: both ends of a channel, and the numbers that they agree on. */
#include "channel.h"
#include "parts.h"
#include "plain.h"
#include "unit.h"

static PyStructSequence_Field answer_fields[] = {
    {"kind", "READY, START_FAILED, RESULT, or RESULTS: of several Units of one job"},
    {"flags", "FAILED: the payload is an exception"},
    {"unit", "what post() was given, the last of several; None if it is no RESULT"},
    {"ns", "from the unit's claim to its answer; the mean of several"},
    {"payload", "bytes, bytearray or memoryview; None: there was no memory for it, or the outcome is there"},
    {"buffers", "bytearrays"},
    {"outcome", "(True, value) of a small plain result, which has no payload then, or None; of RESULTS [(index, outcome), ...]"},
    {NULL, NULL},
};
static PyStructSequence_Desc answer_desc = {"pooltrace.pool._channel.Answer", "What a worker said.", answer_fields, 7};
static PyStructSequence_Field frame_fields[] = {
    {"kind", "APPLY, MAP, STARMAP or STOP"},
    {"flags", "FRESH, ONCE"},
    {"generation", "of the trace, in which the unit was created; 0: none"},
    {"unit", "its G"},
    {"job", "its job"},
    {"function", "the job's function, if FRESH"},
    {"payload", "bytes, bytearray or memoryview; None: there was no memory for it"},
    {"buffers", "bytearrays"},
    {"claimed", "False: the unit was taken back, do not run it"},
    {NULL, NULL},
};
static PyStructSequence_Desc frame_desc = {"pooltrace.pool._channel.Frame", "What the parent sent.", frame_fields, 9};

static PyMethodDef functions[] = {
    {"plain", plain_function, METH_O, "plain(value) -> bytes | None: as marshal writes it, if it is small and plain."},
    {"parts", parts_function, METH_VARARGS,
     "parts(payload, buffer_sizes, kind) -> list[(label, bytes)] | None: how large each argument is in a pickle of what is\n"
     "sent as APPLY, MAP or STARMAP; labels are positions (\"0\") and keywords (\"?\": it is not known).\n"
     "None: it is not understood."},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "pooltrace.pool._channel",
    .m_doc = "The channel between the parent and one worker: frames, claims and results. See core/channel.h.",
    .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC PyInit__channel(void) {
    static const struct {
        const char *name;
        long value;
    } numbers[] = {
        {"APPLY", FRAME_APPLY}, {"MAP", FRAME_MAP}, {"STARMAP", FRAME_STARMAP}, {"STOP", FRAME_STOP},
        {"READY", FRAME_READY}, {"START_FAILED", FRAME_START_FAILED}, {"RESULT", FRAME_RESULT}, {"RESULTS", FRAME_RESULTS},
        {"FAILED", FLAG_FAILED}, {"FRESH", FLAG_FRESH}, {"ONCE", FLAG_ONCE},
        {"PAGE_BYTES", (long)sizeof(struct page)}, {"WINDOW", WINDOW}, {"RESULT_MOST", RESULT_MOST}, {"PICKLE", PICKLE},
    };
    if (!AnswerType && !(AnswerType = PyStructSequence_NewType(&answer_desc))) return NULL;
    if (!FrameType && !(FrameType = PyStructSequence_NewType(&frame_desc))) return NULL;
    if (!no_buffers && !(no_buffers = PyTuple_New(0))) return NULL;
    PyObject *m = PyModule_Create(&module);
    if (!m) return NULL;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (PyModule_AddIntConstant(m, numbers[i].name, numbers[i].value) < 0) goto failed;
    if (PyModule_AddType(m, &ParentEndType) < 0 || PyModule_AddType(m, &WorkerEndType) < 0 || PyModule_AddType(m, AnswerType) < 0 ||
        PyModule_AddType(m, FrameType) < 0 || PyModule_AddType(m, &UnitType) < 0 || PyModule_AddType(m, &RowType) < 0)
        goto failed;
    return m;
failed:
    Py_DECREF(m);
    return NULL;
}
