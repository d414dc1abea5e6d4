/* A lane, an event on its way, and what the rooms of the lane share. */
#ifndef CLAWTRAIL_LANE_H
#define CLAWTRAIL_LANE_H

#include "native.h"

#define FIELDS_MAX 40
#define ATTRIBUTES_MAX 40

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

/* names.c: fields and attributes of a log record by their index, and the names of Python's attributes. */
enum { OTHER = -1, SKIP = -2, KIND = -3, OUTCOME = -4, CLAIM = -5, RARE = -6 };
extern PyObject *field_names[FIELDS_MAX], *attribute_names[ATTRIBUTES_MAX];
extern byte is_single[FIELDS_MAX];
extern int fields, SESSION, RUN, TOOL, CONTENT, CREDENTIAL, LOG;
extern int attributes, NAME, MSG, ARGS, LEVELNAME, LEVELNO, EXC_INFO, EXC_TEXT, STACK_INFO, CREATED;
extern PyObject *order, *roles, *kinds; /* field -> its index; name in `extra` -> index or one of the enum; kind -> category */
extern PyObject *s_seq, *s_prev, *s_same, *s_own, *s_active, *s_map, *s_end, *s_first, *s_last, *s_count, *s_size, *s_sealed,
    *s_write_through, *s_appended, *s_stored, *s_limit, *s_next_moment, *s_keys, *s_known, *s_idle, *s_wake, *s_unhurried, *s_name,
    *s_value, *s_epoch, *s_format, *s_tap;

/* text.c: 1, or 0 when it is for the long way; nothing there raises or calls Python code. */
int put_param(Text *text, const char *name, size_t name_size, PyObject *value);
int put_tail(Text *text, const Event *event, PyObject *keys);
int named(PyObject *group, PyObject **name);
#define PARAM(text, name, value) put_param(text, " " name "=\"", sizeof(name) + 2, value)

/* store.c */
int is_true(PyObject *object, PyObject *name);
void lane_release(Lane *lane);
PyObject *lane_open(Lane *lane, PyObject *ignored);
PyObject *lane_shut(Lane *lane, PyObject *ignored);
int lane_store(Lane *lane, const Event *event, PyObject *head, char id[36], const byte **line, size_t *line_size);

#endif
