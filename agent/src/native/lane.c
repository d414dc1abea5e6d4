/* The quick way of an event: from what a producer gives into the spool, in one call and in one piece.

It does what `Drafts.make`, `Recorder._append` and `Spool.append` do together, for events without anything out of the
ordinary, and answers None for all others: those go the long way, in Python. While it is open it is the only one that
appends: whoever wants to do so in Python shuts it before, under the recorder's lock. In between two calls the numbers
that other threads read without that lock (`chain.seq`, `spool.last`, `spool._appended`, `segment.last`, `segment.end`)
are true; the others are when it was shut. */
#include "lane.h"
#include <math.h>
#include <string.h>

#define HEADS_MAX 1000  /* claims whose frames are remembered */

/* The frame's text between its time and its number; a new reference. */
static PyObject *between(Lane *lane, PyObject *claim, PyObject *kind)
{
    PyObject *mine = PyDict_GetItemWithError(lane->heads, claim);
    if (mine == NULL) {
        if (PyErr_Occurred() || PyDict_GET_SIZE(lane->heads) >= HEADS_MAX)
            return NULL;
        PyObject *fresh = PyDict_New();
        if (fresh == NULL || PyDict_SetItem(lane->heads, claim, fresh) < 0) {
            Py_XDECREF(fresh);
            return NULL;
        }
        Py_DECREF(fresh);
        mine = fresh;
    }
    PyObject *head = PyDict_GetItemWithError(mine, kind);
    if (head != NULL)
        return Py_NewRef(head);
    if (PyErr_Occurred())
        return NULL;
    Py_INCREF(mine);
    head = PyObject_CallFunctionObjArgs(lane->between, claim, kind, NULL);
    if (head != NULL && PyDict_SetItem(mine, kind, head) < 0)
        Py_CLEAR(head);
    Py_DECREF(mine);
    return head;
}

static int add_ambient(Lane *lane, Event *event)
{
    PyObject *ambient, *name, *value;
    Py_ssize_t at = 0;
    if (PyContextVar_Get(lane->context, NULL, &ambient) < 0)
        return -1;
    int known = PyDict_CheckExact(ambient);
    if (known && PyDict_GET_SIZE(ambient))
        while (known && PyDict_Next(ambient, &at, &name, &value)) {
            PyObject *index = PyDict_GetItemWithError(order, name);
            known = index != NULL;
            if (known && event->slots[PyLong_AS_LONG(index)] == NULL)
                event->slots[PyLong_AS_LONG(index)] = value;  /* the context holds it for as long as this call lasts */
        }
    Py_DECREF(ambient);
    return known && !PyErr_Occurred();
}

/* From an event whose slots are filled into the spool. 1, 0 or -1 as `store`. */
static int accept(Lane *lane, Event *event, char id[36], const byte **line, size_t *size)
{
    PyObject *keys = NULL, *known = NULL, *head = NULL;
    int done = 0;
    if (!PyUnicode_CheckExact(event->kind) || !PyUnicode_CheckExact(event->outcome) || !PyUnicode_CheckExact(event->claim))
        return 0;
    event->category = PyDict_GetItemWithError(kinds, event->kind);
    if (event->category == NULL)
        return PyErr_Occurred() ? -1 : 0;
    const char *outcome = PyUnicode_IS_COMPACT_ASCII(event->outcome) ? PyUnicode_DATA(event->outcome) : "";
    int bad = !strcmp(outcome, "failure") || !strcmp(outcome, "denied"), odd = !strcmp(outcome, "unknown");
    if (!bad && !odd && strcmp(outcome, "success") && strcmp(outcome, "attempt"))
        return 0;
    if (event->severity < 0)
        event->severity = bad ? 4 : odd ? 5 : 6;
    if ((done = add_ambient(lane, event)) <= 0)
        return done;
    done = 0;
    PyObject *tool = event->slots[TOOL], *credential = event->slots[CREDENTIAL];
    if (tool && PyUnicode_CheckExact(tool) && event->logger)
        event->tool_name = PyUnicode_GET_LENGTH(tool) ? tool : NULL;
    else if (!named(tool, &event->tool_name))
        return 0;
    if (!named(credential, &event->credential_name) || (credential && PyDict_CheckExact(credential) && PyDict_Contains(credential, s_value)))
        return 0;
    if (event->slots[LOG] && event->slots[LOG] != Py_None && !event->logger)
        return 0;  /* a group with a severity of its own */
    if ((head = between(lane, event->claim, event->kind)) == NULL)  /* may run Python code; from here on none is run */
        return PyErr_Occurred() ? -1 : 0;
    if (!lane->open)
        goto end;
    if ((keys = PyObject_GetAttr(lane->redactor, s_keys)) == NULL || (known = PyObject_GetAttr(lane->redactor, s_known)) == NULL) {
        done = -1;
        goto end;
    }
    if (!PyAnySet_Check(keys) || !PyDict_CheckExact(known) || PyDict_GET_SIZE(known) || !put_tail(&lane->tail, event, keys))
        goto end;
    done = lane_store(lane, event, head, id, line, size);
end:
    Py_XDECREF(keys);
    Py_XDECREF(known);
    Py_XDECREF(head);
    if (done == 0 && PyErr_Occurred())
        PyErr_Clear();
    return done;
}

/* The line lies in a buffer that the next event takes, so this comes before anything else may run. */
static PyObject *receipt_of(Lane *lane, const char id[36], const byte *line, size_t size)
{
    PyObject *ident = PyUnicode_FromStringAndSize(id, 36), *copy = PyBytes_FromStringAndSize((const char *)line, (Py_ssize_t)size);
    PyObject *seq = PyLong_FromSsize_t(lane->seq), *receipt = NULL;
    PyTypeObject *type = (PyTypeObject *)lane->receipt;
    if (ident && copy && seq && (receipt = type->tp_alloc(type, 4)) != NULL) {
        PyTuple_SET_ITEM(receipt, 0, ident);
        PyTuple_SET_ITEM(receipt, 1, Py_NewRef(lane->epoch));
        PyTuple_SET_ITEM(receipt, 2, seq);
        PyTuple_SET_ITEM(receipt, 3, copy);
        return receipt;
    }
    Py_XDECREF(ident);
    Py_XDECREF(copy);
    Py_XDECREF(seq);
    return NULL;
}

static int tap(Lane *lane, PyObject *recorder, PyObject *receipt)
{
    if (PySet_GET_SIZE(lane->taps) == 0)
        return 0;
    PyObject *answer = PyObject_CallMethodOneArg(recorder, s_tap, receipt);
    Py_XDECREF(answer);
    return answer == NULL ? -1 : 0;
}

static int wake(Lane *lane, PyObject *recorder)
{
    int idle = is_true(lane->shipper, s_idle);
    if (idle <= 0 || is_true(recorder, s_unhurried))
        return PyErr_Occurred() ? -1 : 0;
    PyObject *answer = PyObject_CallMethodNoArgs(lane->shipper, s_wake);
    Py_XDECREF(answer);
    return answer == NULL ? -1 : 0;
}

/* Seconds since the epoch in microseconds, half to even. 0: a moment that `event.timestamp` has to look at. */
static int moment(double seconds, int64_t *microseconds)
{
    double whole, fraction = modf(seconds, &whole);
    if (!(whole >= 0 && whole < 253402300799.0) || fraction < 0)
        return 0;
    *microseconds = (int64_t)whole * 1000000 + (int64_t)nearbyint(fraction * 1e6);
    return 1;
}

/* -- the two ways in ---------------------------------------------------------------------------------------------- */

PyDoc_STRVAR(put_doc, "put(recorder, kind, outcome, fields)\n--\n\nThe receipt; None: nothing was recorded, the long way is open.");

static PyObject *lane_put(Lane *lane, PyObject *const *args, Py_ssize_t count)
{
    Event event = {.severity = -1};
    PyObject *name, *value;
    Py_ssize_t at = 0;
    if (count != 4 || !PyDict_CheckExact(args[3])) {
        PyErr_SetString(PyExc_TypeError, "put() takes a recorder, a kind, an outcome and a dict");
        return NULL;
    }
    if (!lane->open)
        Py_RETURN_NONE;
    event.kind = args[1], event.outcome = args[2], event.claim = lane->claim;
    event.microseconds = wall_ns() / 1000;
    while (PyDict_Next(args[3], &at, &name, &value)) {
        PyObject *index = PyDict_GetItemWithError(order, name);
        if (index != NULL)
            event.slots[PyLong_AS_LONG(index)] = value;
        else if (PyErr_Occurred())
            return NULL;
        else if (!PyUnicode_CheckExact(name) || PyUnicode_CompareWithASCIIString(name, "time")
                 || (value != Py_None && !(PyFloat_CheckExact(value) && moment(PyFloat_AS_DOUBLE(value), &event.microseconds))))
            Py_RETURN_NONE;  /* `claim`, a time of another kind, or what is none of ours */
    }
    char id[36];
    const byte *line;
    size_t size;
    int done = accept(lane, &event, id, &line, &size);
    if (done < 0)
        return NULL;
    if (done == 0)
        Py_RETURN_NONE;
    PyObject *receipt = receipt_of(lane, id, line, size);
    if (receipt && (wake(lane, args[0]) < 0 || tap(lane, args[0], receipt) < 0))
        Py_CLEAR(receipt);
    return receipt;
}

/* The record's text, or NULL. Its arguments are builtin, so neither way calls anything foreign. */
static PyObject *text_of(PyObject *record, PyObject *msg, PyObject *args, PyObject *formatter)
{
    PyObject *text;
    int many = PyTuple_CheckExact(args);
    if (!PyUnicode_CheckExact(msg) || (args != Py_None && !many))
        return NULL;
    for (Py_ssize_t i = 0; many && i < PyTuple_GET_SIZE(args); i++) {
        PyObject *arg = PyTuple_GET_ITEM(args, i);
        if (!PyUnicode_CheckExact(arg) && !PyLong_CheckExact(arg) && !PyFloat_CheckExact(arg) && !PyBool_Check(arg) && arg != Py_None)
            return NULL;
    }
    if (formatter != Py_None)
        text = PyObject_CallMethodOneArg(formatter, s_format, record);
    else
        text = many && PyTuple_GET_SIZE(args) ? PyUnicode_Format(msg, args) : Py_NewRef(msg);
    if (text == NULL)
        PyErr_Clear();
    else if (!PyUnicode_CheckExact(text))
        Py_CLEAR(text);
    return text;
}

PyDoc_STRVAR(log_doc, "log(recorder, record, agent, formatter)\n--\n\nOf a log record; `agent`: the handler's own claim, or None; `formatter`: a plain `logging.Formatter`, or None.");

static PyObject *lane_log(Lane *lane, PyObject *const *args, Py_ssize_t count)
{
    enum { EXTRA_MAX = 64 };
    PyObject *others[2 * EXTRA_MAX], *misnamed[2 * EXTRA_MAX], *standard[ATTRIBUTES_MAX], *name, *value, *claim = NULL;
    Event event = {.others = others, .misnamed = misnamed};
    Py_ssize_t at = 0;
    int seen = 0, given = 0, done = 0;
    if (count != 4) {
        PyErr_SetString(PyExc_TypeError, "log() takes a recorder, a record, an agent and a formatter");
        return NULL;
    }
    if (!lane->open)
        Py_RETURN_FALSE;
    PyObject *all = PyObject_GenericGetDict(args[1], NULL), *text = NULL;
    if (all == NULL) {
        PyErr_Clear();
        Py_RETURN_FALSE;
    }
    while (PyDict_Next(all, &at, &name, &value)) {
        if (seen < attributes) {
            if (name != attribute_names[seen])
                goto end;  /* somebody's own kind of record */
            standard[seen++] = value;
            continue;
        }
        PyObject *found = PyDict_GetItemWithError(roles, name);
        long role = found ? PyLong_AS_LONG(found) : OTHER;
        if (role == RARE || given + event.other_count + event.misnamed_count >= EXTRA_MAX || (found == NULL && PyErr_Occurred()))
            goto end;
        if (role == SKIP)
            continue;
        if (role == OTHER) {
            others[2 * event.other_count] = name, others[2 * event.other_count++ + 1] = value;
            continue;
        }
        given++;
        if (role == KIND)
            event.kind = value == Py_None ? NULL : value;
        else if (role == OUTCOME)
            event.outcome = value == Py_None ? NULL : value;
        else if (role == CLAIM)
            claim = value;
        else if (is_single[role] || PyDict_CheckExact(value) || (role == TOOL && PyUnicode_CheckExact(value)))
            event.slots[role] = value;
        else if (PyDict_Check(value) || (role == TOOL && PyUnicode_Check(value)))
            goto end;
        else
            misnamed[2 * event.misnamed_count] = name, misnamed[2 * event.misnamed_count++ + 1] = value;
    }
    if (seen < attributes || !PyUnicode_CheckExact(standard[NAME]) || !PyUnicode_CheckExact(standard[LEVELNAME]) || !PyLong_CheckExact(standard[LEVELNO])
        || standard[EXC_INFO] != Py_None || standard[EXC_TEXT] != Py_None || standard[STACK_INFO] != Py_None || !PyFloat_CheckExact(standard[CREATED]))
        goto end;
    size_t size;
    const byte *logger = utf8(standard[NAME], &size);
    if (logger == NULL || (size >= 9 && !memcmp(logger, "clawtrail", 9)))
        goto end;
    switch (PyLong_AsLong(standard[LEVELNO])) {
    case 10: event.severity = 7; break;
    case 20: event.severity = 6; break;
    case 30: event.severity = 4; break;
    case 40: event.severity = 3; break;
    case 50: event.severity = 2; break;
    default: goto end;
    }
    static PyObject *log_record, *unknown, *success;
    if (log_record == NULL && ((log_record = PyUnicode_InternFromString("log.record")) == NULL || (unknown = PyUnicode_InternFromString("unknown")) == NULL
                               || (success = PyUnicode_InternFromString("success")) == NULL))
        goto end;
    if (event.outcome == NULL)
        event.outcome = event.kind == NULL ? unknown : success;
    if (event.kind == NULL)
        event.kind = log_record;
    event.claim = args[2] != Py_None ? args[2] : claim && claim != Py_None ? claim : lane->claim;
    if (!PyUnicode_CheckExact(event.claim) || !PyUnicode_IS_ASCII(event.claim) || !PyUnicode_GET_LENGTH(event.claim))
        goto end;
    if ((text = text_of(args[1], standard[MSG], standard[ARGS], args[3])) == NULL)
        goto end;
    if (!moment(PyFloat_AS_DOUBLE(standard[CREATED]), &event.microseconds))
        goto end;
    event.text = text, event.logger = standard[NAME], event.level = standard[LEVELNAME];
    char id[36];
    const byte *line;
    done = accept(lane, &event, id, &line, &size);
    if (done > 0) {
        PyObject *receipt = PySet_GET_SIZE(lane->taps) ? receipt_of(lane, id, line, size) : Py_NewRef(Py_None);
        if (receipt == NULL || wake(lane, args[0]) < 0 || tap(lane, args[0], receipt) < 0)
            done = -1;
        Py_XDECREF(receipt);
    }
end:
    Py_XDECREF(text);
    Py_DECREF(all);
    if (done < 0)
        return NULL;
    if (PyErr_Occurred())
        PyErr_Clear();
    return PyBool_FromLong(done);
}

PyDoc_STRVAR(shut_doc, "shut()\n--\n\nWrites back what it knows. Returns the bytes of frames that were stored since `open()`.");
PyDoc_STRVAR(open_doc, "open()\n--\n\nFrom now on events may go this way, if there is one: a segment that is written through a mapping.");

/* -- the type ----------------------------------------------------------------------------------------------------- */

#define EACH(DO)                                                                                                                             \
    DO(chain) DO(outbox) DO(shipper) DO(redactor) DO(between) DO(claim) DO(context) DO(taps) DO(receipt) DO(epoch) DO(same) DO(heads) DO(spool) DO(segment)

static int lane_traverse(Lane *lane, visitproc visit, void *arg)
{
#define VISIT(name) Py_VISIT(lane->name);
    EACH(VISIT)
    return 0;
}

static int lane_clear(Lane *lane)
{
    lane_release(lane);
#define CLEAR(name) Py_CLEAR(lane->name);
    EACH(CLEAR)
    return 0;
}

static void lane_dealloc(Lane *lane)
{
    PyObject_GC_UnTrack(lane);
    lane_clear(lane);
    PyMem_Free(lane->tail.data);
    PyMem_Free(lane->frame.data);
    Py_TYPE(lane)->tp_free((PyObject *)lane);
}

static PyObject *lane_new(PyTypeObject *type, PyObject *args, PyObject *kwds)
{
    PyObject *chain, *outbox, *shipper, *redactor, *head, *claim, *context, *taps, *receipt, *same;
    int facility;
    static char *names[] = {"chain", "outbox", "shipper", "redactor", "between", "claim", "facility", "context", "taps", "receipt", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwds, "OOOOOUiOO!O!", names, &chain, &outbox, &shipper, &redactor, &head, &claim, &facility, &context,
                                     &PySet_Type, &taps, &PyType_Type, &receipt))
        return NULL;
    if (!PyContextVar_CheckExact(context) || !PyType_IsSubtype((PyTypeObject *)receipt, &PyTuple_Type) || order == NULL) {
        PyErr_SetString(PyExc_TypeError, "Lane(): expected a context variable, a tuple type, and that tables() was called");
        return NULL;
    }
    Lane *lane = (Lane *)type->tp_alloc(type, 0);
    if (lane == NULL)
        return NULL;
    lane->chain = Py_NewRef(chain), lane->outbox = Py_NewRef(outbox), lane->shipper = Py_NewRef(shipper), lane->redactor = Py_NewRef(redactor);
    lane->between = Py_NewRef(head), lane->claim = Py_NewRef(claim), lane->context = Py_NewRef(context), lane->taps = Py_NewRef(taps);
    lane->receipt = Py_NewRef(receipt), lane->facility = facility;
    same = PyObject_GetAttr(chain, s_same);
    lane->same = same ? PyUnicode_AsUTF8String(same) : NULL;
    Py_XDECREF(same);
    lane->epoch = lane->same ? PyObject_GetAttr(chain, s_epoch) : NULL;
    lane->heads = lane->epoch ? PyDict_New() : NULL;
    if (lane->heads == NULL)
        Py_CLEAR(lane);
    return (PyObject *)lane;
}

static PyMethodDef lane_methods[] = {
    {"put", (PyCFunction)(void (*)(void))lane_put, METH_FASTCALL, put_doc},
    {"log", (PyCFunction)(void (*)(void))lane_log, METH_FASTCALL, log_doc},
    {"open", (PyCFunction)(void (*)(void))lane_open, METH_NOARGS, open_doc},
    {"shut", (PyCFunction)(void (*)(void))lane_shut, METH_NOARGS, shut_doc},
    {NULL},
};

PyTypeObject Lane_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "clawtrail._native.Lane",
    .tp_basicsize = sizeof(Lane),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_doc = "The quick way of an event into the spool, of one epoch of one recorder.",
    .tp_new = lane_new,
    .tp_dealloc = (destructor)lane_dealloc,
    .tp_traverse = (traverseproc)lane_traverse,
    .tp_clear = (inquiry)lane_clear,
    .tp_methods = lane_methods,
};
