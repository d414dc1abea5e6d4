/* Where a lane appends: the chain's next number and link, the end of the active segment. */
#include "lane.h"
#include <string.h>
#ifdef __linux__
#include <sys/mman.h>
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#endif

#define BEFORE 40            /* bytes in front of a frame's head for the record's and the frame's */
#define AHEAD (128 * 1024)   /* bytes of a segment whose pages are asked for at a time */

static Py_ssize_t number_of(PyObject *object, PyObject *name)
{
    PyObject *value = PyObject_GetAttr(object, name);
    if (value == NULL)
        return -1;
    Py_ssize_t number = PyLong_AsSsize_t(value);
    Py_DECREF(value);
    return number;
}

int is_true(PyObject *object, PyObject *name)
{
    PyObject *value = PyObject_GetAttr(object, name);
    if (value == NULL)
        return -1;
    int truth = value == Py_True ? 1 : value == Py_False || value == Py_None ? 0 : PyObject_IsTrue(value);
    Py_DECREF(value);
    return truth;
}

/* -- open and shut ------------------------------------------------------------------------------------------------ */

void lane_release(Lane *lane)
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

PyObject *lane_shut(Lane *lane, PyObject *Py_UNUSED(ignored))
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
    lane_release(lane);
    return PyLong_FromSsize_t(added);
}

PyObject *lane_open(Lane *lane, PyObject *Py_UNUSED(ignored))
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
        lane_release(lane);
    if (PyErr_Occurred())
        return NULL;
    return PyBool_FromLong(lane->open);
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
int lane_store(Lane *lane, const Event *event, PyObject *head, char id[36], const byte **line, size_t *line_size)
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
