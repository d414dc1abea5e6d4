/* An event's JSON behind `prev`, and its structured data, as `event.encode` and `syslog.Header` write them. */
#include "lane.h"

#define NAME_MAX_LENGTH 128   /* characters of a session or run that nothing cuts */

/* PARAM-VALUE, RFC 5424 section 6.3.3. 0: it would have to be cut or changed. */
int put_param(Text *text, const char *name, size_t name_size, PyObject *value)
{
    size_t size;
    const byte *data = utf8(value, &size);
    if (data == NULL || size >= VALUE_MAX || !text_room(text, name_size + 2 * size + 4))
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
int put_tail(Text *text, const Event *event, PyObject *keys)
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
int named(PyObject *group, PyObject **name)
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
