/* The quick way of an event: from what a producer gives into the spool, in one call and in one piece.

It does what `Drafts.make`, `Recorder._append` and `Spool.append` do together, for events without anything out of the
ordinary, and answers None for all others: those go the long way, in Python. While it is open it is the only one that
appends: whoever wants to do so in Python shuts it before, under the recorder's lock. In between two calls the numbers
that other threads read without that lock (`chain.seq`, `spool.last`, `spool._appended`, `segment.last`, `segment.end`)
are true; the others are when it was shut. */
#include "native.h"
#include <math.h>
#include <string.h>
#ifdef __linux__
#include <sys/mman.h>
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#endif

#define FIELDS_MAX 40
#define ATTRIBUTES_MAX 40
#define SIZE 20                 /* segment.RECORD */
#define RESERVE 16384           /* segment.RESERVE */
#define LINE_MAX_BYTES 40960    /* event.LINE_MAX */
#define VALUE_MAX 255           /* bytes of a PARAM-VALUE that nothing cuts */
#define NAME_MAX_LENGTH 128     /* characters of a session or run that nothing cuts */
#define BEFORE 40               /* bytes in front of a frame's head for the record's and the frame's */
#define AHEAD (128 * 1024)      /* bytes of a segment whose pages are asked for at a time */
#define HEADS_MAX 1000

enum { OTHER = -1, SKIP = -2, KIND = -3, OUTCOME = -4, CLAIM = -5, RARE = -6 };

static PyObject *field_names[FIELDS_MAX], *attribute_names[ATTRIBUTES_MAX];
static byte is_single[FIELDS_MAX];
static int fields, SESSION, RUN, TOOL, CONTENT, CREDENTIAL, LOG;
static int attributes, NAME, MSG, ARGS, LEVELNAME, LEVELNO, EXC_INFO, EXC_TEXT, STACK_INFO, CREATED;
static PyObject *order, *roles, *kinds;  /* field -> its index; name in `extra` -> index or one of the enum; kind -> category */

static PyObject *s_seq, *s_prev, *s_same, *s_own, *s_active, *s_map, *s_end, *s_first, *s_last, *s_count, *s_size, *s_sealed, *s_write_through,
    *s_appended, *s_stored, *s_limit, *s_next_moment, *s_keys, *s_known, *s_idle, *s_wake, *s_unhurried, *s_name, *s_value, *s_epoch, *s_format, *s_tap;

typedef struct {
    PyObject_HEAD
    PyObject *chain, *outbox, *shipper, *redactor, *between, *claim, *context, *taps, *receipt;
    PyObject *epoch, *same, *heads, *spool, *segment;
    int facility, open;
    Py_buffer map;
    Py_ssize_t seq, end, count, appended, stored, added, populated;
    int64_t next_moment;
    char prev[64];
    Text tail, frame;
} Lane;

/* An event on its way. All references are borrowed from the caller's objects. */
typedef struct {
    PyObject *kind, *category, *outcome, *claim, *slots[FIELDS_MAX], *tool_name, *credential_name;
    PyObject *text, *logger, *level, **others, **misnamed;   /* of a log record; pairs of name and value */
    int severity, other_count, misnamed_count;
    int64_t microseconds;
} Event;

static Py_ssize_t number_of(PyObject *object, PyObject *name)
{
    PyObject *value = PyObject_GetAttr(object, name);
    if (value == NULL)
        return -1;
    Py_ssize_t number = PyLong_AsSsize_t(value);
    Py_DECREF(value);
    return number;
}

static int is_true(PyObject *object, PyObject *name)
{
    PyObject *value = PyObject_GetAttr(object, name);
    if (value == NULL)
        return -1;
    int truth = value == Py_True ? 1 : value == Py_False || value == Py_None ? 0 : PyObject_IsTrue(value);
    Py_DECREF(value);
    return truth;
}

/* -- open and shut ------------------------------------------------------------------------------------------------ */

static void release(Lane *lane)
{
    if (lane->map.obj != NULL)
        PyBuffer_Release(&lane->map);
    Py_CLEAR(lane->spool);
    Py_CLEAR(lane->segment);
    lane->open = 0;
}

static int set_number(PyObject *object, PyObject *name, Py_ssize_t number)
{
    PyObject *value = PyLong_FromSsize_t(number);
    int failed = value == NULL || PyObject_SetAttr(object, name, value) < 0;
    Py_XDECREF(value);
    return failed ? -1 : 0;
}

PyDoc_STRVAR(shut_doc, "shut()\n--\n\nWrites back what it knows. Returns the bytes of frames that were stored since `open()`.");

static PyObject *lane_shut(Lane *lane, PyObject *Py_UNUSED(ignored))
{
    if (!lane->open)
        return PyLong_FromLong(0);
    Py_ssize_t added = lane->added;
    if (added) {
        PyObject *prev = PyUnicode_FromStringAndSize(lane->prev, 64);
        int failed = prev == NULL || PyObject_SetAttr(lane->chain, s_prev, prev) < 0 || set_number(lane->segment, s_count, lane->count) < 0
            || set_number(lane->spool, s_stored, lane->stored) < 0;
        Py_XDECREF(prev);
        if (failed)
            return NULL;
    }
    release(lane);
    return PyLong_FromSsize_t(added);
}

PyDoc_STRVAR(open_doc, "open()\n--\n\nFrom now on events may go this way, if there is one: a segment that is written through a mapping.");

static PyObject *lane_open(Lane *lane, PyObject *Py_UNUSED(ignored))
{
    PyObject *map = NULL, *prev = NULL, *moment = NULL;
    if (lane->open)
        Py_RETURN_TRUE;
    if ((lane->spool = PyObject_GetAttr(lane->outbox, s_own)) == NULL || lane->spool == Py_None)
        goto no;
    if ((lane->segment = PyObject_GetAttr(lane->spool, s_active)) == NULL || lane->segment == Py_None)
        goto no;
    if (is_true(lane->segment, s_sealed) || is_true(lane->segment, s_write_through) || number_of(lane->segment, s_first) <= 0)
        goto no;
    if ((map = PyObject_GetAttr(lane->segment, s_map)) == NULL || map == Py_None || (prev = PyObject_GetAttr(lane->chain, s_prev)) == NULL)
        goto no;
    if (!PyUnicode_CheckExact(prev) || !PyUnicode_IS_COMPACT_ASCII(prev) || PyUnicode_GET_LENGTH(prev) != 64)
        goto no;
    memcpy(lane->prev, PyUnicode_DATA(prev), 64);
    if ((moment = PyObject_GetAttr(lane->outbox, s_next_moment)) == NULL)
        goto no;
    double due = PyFloat_AsDouble(moment);
    lane->next_moment = (int64_t)(due * 1e9);
    lane->seq = number_of(lane->chain, s_seq);
    lane->end = number_of(lane->segment, s_end);
    lane->count = number_of(lane->segment, s_count);
    lane->appended = number_of(lane->spool, s_appended);
    lane->stored = number_of(lane->spool, s_stored);
    if (PyErr_Occurred() || PyObject_GetBuffer(map, &lane->map, PyBUF_WRITABLE) < 0)
        goto no;
    lane->added = 0;
    if (lane->populated < lane->end || lane->populated > lane->end + AHEAD)
        lane->populated = lane->end;
    lane->open = 1;
no:
    Py_XDECREF(map);
    Py_XDECREF(prev);
    Py_XDECREF(moment);
    if (!lane->open)
        release(lane);
    if (PyErr_Occurred())
        return NULL;
    return PyBool_FromLong(lane->open);
}

/* -- an event's text ---------------------------------------------------------------------------------------------- */

/* PARAM-VALUE, RFC 5424 section 6.3.3. 0: it would have to be cut or changed. */
static int put_param(Text *text, const char *name, size_t name_size, PyObject *value)
{
    size_t size;
    const byte *data = utf8(value, &size);
    if (data == NULL || size > VALUE_MAX || !text_room(text, name_size + 2 * size + 4))
        return 0;
    char *out = (char *)text->data + text->size;
    memcpy(out, name, name_size);
    out += name_size;
    for (size_t i = 0; i < size; i++) {
        if (data[i] < 32 || data[i] == 127)
            return 0;
        if (data[i] == '"' || data[i] == '\\' || data[i] == ']')
            *out++ = '\\';
        *out++ = (char)data[i];
    }
    *out++ = '"';
    text->size = (size_t)(out - (char *)text->data);
    return 1;
}

#define PARAM(text, name, value) put_param(text, " " name "=\"", sizeof(name) + 2, value)

static int put_name(Text *text, PyObject *name)
{
    if (name == NULL)
        return PUT(text, "null");
    return PyUnicode_CheckExact(name) && PyUnicode_GET_LENGTH(name) && PyUnicode_GET_LENGTH(name) <= NAME_MAX_LENGTH && put_judged(text, name);
}

static int put_log(Text *text, const Event *event, PyObject *keys)
{
    if (!PUT(text, ",\"log\":{\"logger\":") || !put_judged(text, event->logger) || !PUT(text, ",\"level\":") || !put_judged(text, event->level)
        || !PUT(text, ",\"severity\":") || !put_number(text, event->severity))
        return 0;
    int count = event->other_count + event->misnamed_count;
    if (count && !PUT(text, ",\"fields\":{"))
        return 0;
    for (int i = 0; i < count; i++) {
        PyObject **pair = i < event->other_count ? event->others + 2 * i : event->misnamed + 2 * (i - event->other_count);
        if (!put_member(text, pair[0], pair[1], keys, 2, i == 0))
            return 0;
    }
    return count ? PUT(text, "}}") : PUT(text, "}");
}

static int put_field(Text *text, const Event *event, int index, PyObject *keys)
{
    PyObject *value = event->slots[index];
    size_t size;
    if (index == LOG && event->logger)
        return put_log(text, event, keys);
    if (index == CONTENT && event->text) {
        utf8(event->text, &size);
        return PUT(text, ",\"content\":{\"size\":") && put_number(text, (int64_t)size) && PUT(text, ",\"excerpt\":") && put_judged(text, event->text)
            && PUT(text, "}");
    }
    if (value == NULL || value == Py_None)
        return 1;
    if (index == TOOL && event->logger && PyUnicode_CheckExact(value))
        return PUT(text, ",\"tool\":{\"name\":") && put_judged(text, value) && PUT(text, "}");
    return put_member(text, field_names[index], value, keys, 0, 0);
}

static int put_ascii(Text *text, PyObject *string)
{
    return put(text, PyUnicode_DATA(string), (size_t)PyUnicode_GET_LENGTH(string));
}

/* What of an event's line follows `prev`, as `event.encode` writes it. */
static int put_tail(Text *text, const Event *event, PyObject *keys)
{
    text->size = 0;
    PyObject *session = event->slots[SESSION] == Py_None ? NULL : event->slots[SESSION], *run = event->slots[RUN] == Py_None ? NULL : event->slots[RUN];
    if (!PUT(text, "\"kind\":\"") || !put_ascii(text, event->kind) || !PUT(text, "\",\"category\":\"") || !put_ascii(text, event->category)
        || !PUT(text, "\",\"outcome\":\"") || !put_ascii(text, event->outcome) || !PUT(text, "\",\"session\":") || !put_name(text, session)
        || !PUT(text, ",\"run\":") || !put_name(text, run))
        return 0;
    for (int i = 0; i < fields; i++)
        if (i != SESSION && i != RUN && !put_field(text, event, i, keys))
            return 0;
    return PUT(text, "}") && text->size + 1 <= LINE_MAX_BYTES;
}

/* A group's member `name` that the structured data tells. 0: it is nothing that goes in there as it is. */
static int named(PyObject *group, PyObject **name)
{
    *name = NULL;
    if (group == NULL || group == Py_None || !PyDict_CheckExact(group))
        return 1;
    PyObject *value = PyDict_GetItemWithError(group, s_name);
    if (value == NULL || value == Py_None)
        return !PyErr_Occurred();
    if (!PyUnicode_CheckExact(value))
        return 0;
    if (PyUnicode_GET_LENGTH(value))
        *name = value;
    return 1;
}

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

/* -- storing ------------------------------------------------------------------------------------------------------ */

static void populate(Lane *lane, Py_ssize_t upto)
{
#ifdef __linux__
    if (upto <= lane->populated)
        return;
    Py_ssize_t from = lane->populated & ~(Py_ssize_t)4095, to = from + AHEAD < lane->map.len ? from + AHEAD : lane->map.len;
    madvise((byte *)lane->map.buf + from, (size_t)(to - from), MADV_POPULATE_WRITE);  /* an error costs nothing but the page faults */
    lane->populated = to > upto ? to : upto;
#endif
}

/* 1: stored; 0: for the long way; -1: an exception. */
static int store(Lane *lane, const Event *event, PyObject *head, char id[36], const byte **line, size_t *line_size)
{
    Text *frame = &lane->frame;
    char ts[27];
    if (monotonic_ns() >= lane->next_moment || !timestamp(event->microseconds, ts) || !uuid7(id) || !text_room(frame, 2048 + lane->tail.size))
        return 0;
    frame->size = BEFORE;
    if (!PUT(frame, "<") || !put_number(frame, lane->facility * 8 + event->severity) || !PUT(frame, ">1 ") || !put(frame, ts, 27)
        || !put(frame, PyBytes_AS_STRING(head), (size_t)PyBytes_GET_SIZE(head)) || !put_number(frame, lane->seq + 1) || !PUT(frame, "\"")
        || !PARAM(frame, "category", event->category) || !PARAM(frame, "outcome", event->outcome)
        || (event->slots[SESSION] && event->slots[SESSION] != Py_None && !PARAM(frame, "session", event->slots[SESSION]))
        || (event->slots[RUN] && event->slots[RUN] != Py_None && !PARAM(frame, "run", event->slots[RUN]))
        || (event->tool_name && !PARAM(frame, "tool", event->tool_name))
        || (event->credential_name && !PARAM(frame, "credential", event->credential_name)) || !PUT(frame, "] "))
        return 0;
    size_t begins = frame->size;
    if (!PUT(frame, "{\"v\":1,\"id\":\"") || !put(frame, id, 36) || !PUT(frame, "\",\"ts\":\"") || !put(frame, ts, 27) || !PUT(frame, "\",")
        || !put(frame, PyBytes_AS_STRING(lane->same), (size_t)PyBytes_GET_SIZE(lane->same)) || !put_number(frame, lane->seq + 1)
        || !PUT(frame, ",\"prev\":\"") || !put(frame, lane->prev, 64) || !PUT(frame, "\",") || !put(frame, (char *)lane->tail.data, lane->tail.size))
        return 0;
    *line = frame->data + begins, *line_size = frame->size - begins;

    size_t message = frame->size - BEFORE, total = message + 1;
    byte *record = frame->data + BEFORE;
    *--record = ' ';
    for (size_t left = message; left; left /= 10, total++)
        *--record = (byte)('0' + left % 10);
    record -= SIZE;
    Py_ssize_t size = SIZE + (Py_ssize_t)total, seq = lane->seq + 1, limit = number_of(lane->outbox, s_limit), room = number_of(lane->segment, s_size);
    if (PyErr_Occurred())
        return -1;
    if (lane->stored + (Py_ssize_t)total > limit || lane->end + size > room - RESERVE || lane->end + size > lane->map.len)
        return 0;
    uint32_t crc = crc32((uint32_t)(seq ^ (Py_ssize_t)((uint64_t)seq >> 32)), record + SIZE, total);
    memcpy(record, "\xc1\xa7" "ct", 4);
    for (int i = 0; i < 4; i++)
        record[4 + i] = (byte)(total >> 8 * i), record[8 + i] = (byte)(crc >> 8 * i);
    for (int i = 0; i < 8; i++)
        record[12 + i] = (byte)((uint64_t)seq >> 8 * i);

    PyObject *number = PyLong_FromSsize_t(seq), *end = PyLong_FromSsize_t(lane->end + size), *appended = PyLong_FromSsize_t(lane->appended + 1);
    int failed = number == NULL || end == NULL || appended == NULL;
    if (!failed) {
        byte link[32];
        sha256(*line, *line_size, link);
        populate(lane, lane->end + size);
        memcpy((byte *)lane->map.buf + lane->end, record, (size_t)size);
        failed = PyObject_SetAttr(lane->segment, s_last, number) < 0 || PyObject_SetAttr(lane->spool, s_last, number) < 0
            || PyObject_SetAttr(lane->segment, s_end, end) < 0 || PyObject_SetAttr(lane->spool, s_appended, appended) < 0
            || PyObject_SetAttr(lane->chain, s_seq, number) < 0;
        hex(link, 32, lane->prev);
        lane->seq = seq, lane->end += size, lane->count++, lane->appended++;
        lane->stored += size, lane->added += (Py_ssize_t)total;
    }
    Py_XDECREF(number);
    Py_XDECREF(end);
    Py_XDECREF(appended);
    return failed ? -1 : 1;
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
    done = store(lane, event, head, id, line, size);
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
    PyObject *all = ident && copy && seq ? PyTuple_Pack(4, ident, lane->epoch, seq, copy) : NULL;
    PyObject *only = all ? PyTuple_Pack(1, all) : NULL;
    if (only)
        receipt = PyTuple_Type.tp_new((PyTypeObject *)lane->receipt, only, NULL);
    Py_XDECREF(ident);
    Py_XDECREF(copy);
    Py_XDECREF(seq);
    Py_XDECREF(all);
    Py_XDECREF(only);
    return receipt;
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
    release(lane);
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

static int index_of(PyObject **names, int count, const char *name)
{
    for (int i = 0; i < count; i++)
        if (PyUnicode_CompareWithASCIIString(names[i], name) == 0)
            return i;
    PyErr_Format(PyExc_ValueError, "no %s among the names", name);
    return 0;
}

static int names_into(PyObject *names, PyObject **into, int most)
{
    Py_ssize_t count = PyTuple_GET_SIZE(names);
    if (count > most) {
        PyErr_Format(PyExc_ValueError, "%zd names; expected at most %d", count, most);
        return 0;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        into[i] = Py_NewRef(PyTuple_GET_ITEM(names, i));
        PyUnicode_InternInPlace(&into[i]);
    }
    return (int)count;
}

/* (fields in their order, those that are one value, roles of names in `extra`, kinds, attributes of a log record) */
int lane_init(PyObject *tables)
{
    PyObject *names, *single, *given_roles, *given_kinds, *given_attributes;
    if (!PyArg_ParseTuple(tables, "O!O!O!O!O!", &PyTuple_Type, &names, &PyFrozenSet_Type, &single, &PyDict_Type, &given_roles, &PyDict_Type, &given_kinds,
                          &PyTuple_Type, &given_attributes))
        return -1;
    fields = names_into(names, field_names, FIELDS_MAX);
    attributes = names_into(given_attributes, attribute_names, ATTRIBUTES_MAX);
    if (PyErr_Occurred() || (order = PyDict_New()) == NULL)
        return -1;
    for (int i = 0; i < fields; i++) {
        PyObject *index = PyLong_FromLong(i);
        if (index == NULL || PyDict_SetItem(order, field_names[i], index) < 0)
            return -1;
        Py_DECREF(index);
        is_single[i] = (byte)PySet_Contains(single, field_names[i]);
    }
    const struct {
        int *index;
        const char *field, *attribute;
    } indices[] = {
        {&SESSION, "session", NULL}, {&RUN, "run", NULL}, {&TOOL, "tool", NULL}, {&CONTENT, "content", NULL}, {&CREDENTIAL, "credential", NULL},
        {&LOG, "log", NULL}, {&NAME, NULL, "name"}, {&MSG, NULL, "msg"}, {&ARGS, NULL, "args"}, {&LEVELNAME, NULL, "levelname"},
        {&LEVELNO, NULL, "levelno"}, {&EXC_INFO, NULL, "exc_info"}, {&EXC_TEXT, NULL, "exc_text"}, {&STACK_INFO, NULL, "stack_info"},
        {&CREATED, NULL, "created"},
    };
    for (size_t i = 0; i < sizeof indices / sizeof *indices; i++)
        *indices[i].index = indices[i].field ? index_of(field_names, fields, indices[i].field) : index_of(attribute_names, attributes, indices[i].attribute);
    roles = Py_NewRef(given_roles), kinds = Py_NewRef(given_kinds);
    const struct {
        PyObject **name;
        const char *text;
    } all[] = {
        {&s_seq, "seq"}, {&s_prev, "prev"}, {&s_same, "_same"}, {&s_own, "own"}, {&s_active, "active"}, {&s_map, "map"}, {&s_end, "end"},
        {&s_first, "first"}, {&s_last, "last"}, {&s_count, "count"}, {&s_size, "size"}, {&s_sealed, "sealed"}, {&s_write_through, "write_through"},
        {&s_appended, "_appended"}, {&s_stored, "stored"}, {&s_limit, "_limit"}, {&s_next_moment, "_next_moment"}, {&s_keys, "_keys"},
        {&s_known, "_known"}, {&s_idle, "_idle"}, {&s_wake, "wake"}, {&s_unhurried, "unhurried"}, {&s_name, "name"}, {&s_value, "value"},
        {&s_epoch, "epoch"}, {&s_format, "format"}, {&s_tap, "_tap"},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if ((*all[i].name = PyUnicode_InternFromString(all[i].text)) == NULL)
            return -1;
    return PyErr_Occurred() ? -1 : 0;
}
