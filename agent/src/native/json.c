/* JSON as `event.dumps` writes it, of values as `Redactor.make_plain` lets them through. */
#include "native.h"
#include <string.h>

#define INT_MAX_JSON ((int64_t)1 << 53)

int text_room(Text *text, size_t more)
{
    if (text->size + more <= text->room)
        return 1;
    size_t room = (text->size + more) * 2;
    byte *data = PyMem_Realloc(text->data, room);
    if (data == NULL)
        return 0;
    text->data = data, text->room = room;
    return 1;
}

int put(Text *text, const char *data, size_t size)
{
    if (!text_room(text, size))
        return 0;
    memcpy(text->data + text->size, data, size);
    text->size += size;
    return 1;
}

int put_number(Text *text, int64_t number)
{
    char digits[20];
    size_t at = sizeof digits;
    uint64_t left = number < 0 ? (uint64_t)-number : (uint64_t)number;
    do
        digits[--at] = (char)('0' + left % 10);
    while (left /= 10);
    if (number < 0)
        digits[--at] = '-';
    return put(text, digits + at, sizeof digits - at);
}

/* NULL: it cannot be encoded. */
const byte *utf8(PyObject *string, size_t *size)
{
    Py_ssize_t length;
    if (PyUnicode_IS_COMPACT_ASCII(string)) {
        *size = (size_t)PyUnicode_GET_LENGTH(string);
        return PyUnicode_DATA(string);
    }
    const char *data = PyUnicode_AsUTF8AndSize(string, &length);
    if (data == NULL)
        PyErr_Clear();
    *size = (size_t)length;
    return (const byte *)data;
}

static int put_escaped(Text *text, const byte *data, size_t size)
{
    if (!text_room(text, 6 * size))
        return 0;
    char *out = (char *)text->data + text->size;
    for (size_t i = 0; i < size; i++) {
        byte c = data[i];
        const char *found = c < 32 ? strchr("\bb\ff\nn\rr\tt", c) : NULL;  /* no control character stands for one in there */
        if (c == '"' || c == '\\')
            *out++ = '\\', *out++ = (char)c;
        else if (c >= 32)
            *out++ = (char)c;
        else if (c && found)
            *out++ = '\\', *out++ = found[1];
        else {
            memcpy(out, "\\u00", 4), hex(&c, 1, out + 4);
            out += 6;
        }
    }
    text->size = (size_t)((byte *)out - text->data);
    return 1;
}

/* A string in quotes, if it is certain that no secret is in it. */
int put_judged(Text *text, PyObject *string)
{
    size_t size;
    const byte *data;
    if (PyUnicode_GET_LENGTH(string) > LEAF_MAX || (data = utf8(string, &size)) == NULL || !text_room(text, size + 2))
        return 0;
    enum clean verdict = clean(data, size);
    if (verdict == UNSURE)
        return 0;
    if (verdict == CLEAN_TO_ESCAPE)
        return PUT(text, "\"") && put_escaped(text, data, size) && PUT(text, "\"");
    byte *out = text->data + text->size;
    *out++ = '"';
    memcpy(out, data, size);
    out[size] = '"';
    text->size += size + 2;
    return 1;
}

static int put_float(Text *text, double number)
{
    char *written = PyOS_double_to_string(number, 'r', 0, Py_DTSF_ADD_DOT_0, NULL);
    if (written == NULL) {
        PyErr_Clear();
        return 0;
    }
    int done = PUT(text, "\"") && put(text, written, strlen(written)) && PUT(text, "\"");
    PyMem_Free(written);
    return done;
}

static int put_dict(Text *text, PyObject *dict, PyObject *keys, int depth)
{
    PyObject *key, *value;
    Py_ssize_t at = 0;
    int first = 1;
    if (!PUT(text, "{"))
        return 0;
    for (; PyDict_Next(dict, &at, &key, &value); first = 0)
        if (!put_member(text, key, value, keys, depth, first))
            return 0;
    return PUT(text, "}");
}

static int put_list(Text *text, PyObject *list, PyObject *keys, int depth)
{
    if (!PUT(text, "["))
        return 0;
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(list); i++) {
        PyObject *item = PySequence_Fast_GET_ITEM(list, i);
        if (PyUnicode_CheckExact(item) && PyUnicode_GET_LENGTH(item) && PyUnicode_READ_CHAR(item, 0) == '-')
            return 0;  /* an option, and the next item may be its secret */
        if ((i && !PUT(text, ",")) || !put_value(text, item, keys, depth))
            return 0;
    }
    return PUT(text, "]");
}

/* `keys`: those that are known to be harmless. */
int put_member(Text *text, PyObject *key, PyObject *value, PyObject *keys, int depth, int first)
{
    size_t size;
    const byte *name;
    if (!PyUnicode_CheckExact(key) || PySet_Contains(keys, key) != 1 || (name = utf8(key, &size)) == NULL)
        return 0;
    for (size_t i = 0; i < size; i++)
        if (name[i] < 32 || name[i] > 126 || name[i] == '"' || name[i] == '\\')
            return 0;
    if (!text_room(text, size + 4))
        return 0;
    byte *out = text->data + text->size;
    if (!first)
        *out++ = ',';
    *out++ = '"';
    memcpy(out, name, size);
    out += size;
    *out++ = '"', *out++ = ':';
    text->size = (size_t)(out - text->data);
    return put_value(text, value, keys, depth);
}

/* `depth`: of what the value lies in. */
int put_value(Text *text, PyObject *value, PyObject *keys, int depth)
{
    if (PyUnicode_CheckExact(value))
        return put_judged(text, value);
    if (PyLong_CheckExact(value)) {
        int overflow;
        int64_t number = PyLong_AsLongLongAndOverflow(value, &overflow);
        return !overflow && -INT_MAX_JSON < number && number < INT_MAX_JSON && put_number(text, number);
    }
    if (value == Py_None)
        return PUT(text, "null");
    if (PyBool_Check(value))
        return value == Py_True ? PUT(text, "true") : PUT(text, "false");
    if (PyFloat_CheckExact(value))
        return put_float(text, PyFloat_AS_DOUBLE(value));
    if (depth >= DEPTH_MAX)
        return 0;
    if (PyDict_CheckExact(value))
        return put_dict(text, value, keys, depth + 1);
    if (PyList_CheckExact(value) || PyTuple_CheckExact(value))
        return put_list(text, value, keys, depth + 1);
    return 0;
}
