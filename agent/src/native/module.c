/* clawtrail._native: what costs most of an event's way, in C. `clawtrail.native` imports it, or does without. */
#include "native.h"
#include <string.h>

PyDoc_STRVAR(learn_doc, "learn(hints)\n--\n\nWhat `clean` looks for, as (how, text). False: a hint is of no known kind, and nothing is called clean.");

static PyObject *native_learn(PyObject *Py_UNUSED(module), PyObject *hints)
{
    if (!PyList_Check(hints))
        return PyErr_Format(PyExc_TypeError, "learn() takes a list, not %.100s", Py_TYPE(hints)->tp_name);
    int understood = clean_learn(hints);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(understood);
}

PyDoc_STRVAR(tables_doc, "tables(fields, single, roles, kinds, attributes)\n--\n\nWhat a `Lane` knows of events and of log records; before the first is made.");

static PyObject *native_tables(PyObject *Py_UNUSED(module), PyObject *args)
{
    if (lane_init(args) < 0)
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(clean_doc, "clean(text)\n--\n\nTrue: no expression of `patterns` finds anything in it, and nothing of it is escaped in JSON but quotes and control characters.");

static PyObject *native_clean(PyObject *Py_UNUSED(module), PyObject *text)
{
    size_t size;
    if (!PyUnicode_Check(text))
        return PyErr_Format(PyExc_TypeError, "clean() takes a string, not %.100s", Py_TYPE(text)->tp_name);
    const byte *data = utf8(text, &size);
    return PyBool_FromLong(data != NULL && clean(data, size) != UNSURE);
}

PyDoc_STRVAR(json_doc, "json(value, keys)\n--\n\nA value's JSON, as `event.dumps` writes what `event.clean` leaves of it, if it is certain that no secret is in it; else None.\n`keys`: those that are known to be harmless.");

static PyObject *native_json(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    Text text = {0};
    if (count != 2 || !PyAnySet_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "json() takes a value and a set");
        return NULL;
    }
    int certain = put_value(&text, args[0], args[1], 0);
    PyObject *written = certain ? PyUnicode_DecodeUTF8((const char *)text.data, (Py_ssize_t)text.size, NULL) : PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
    PyMem_Free(text.data);
    return written;
}

PyDoc_STRVAR(uuid7_doc, "uuid7()\n--\n\nA new UUID version 7.");

static PyObject *native_uuid7(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    char id[36];
    if (!uuid7(id))
        return PyErr_SetFromErrno(PyExc_OSError);
    return PyUnicode_FromStringAndSize(id, sizeof id);
}

PyDoc_STRVAR(sha256_doc, "sha256(data)\n--\n\nThe SHA-256 of bytes, in hex.");

static PyObject *native_sha256(PyObject *Py_UNUSED(module), PyObject *data)
{
    byte sum[32];
    char text[64];
    Py_buffer buffer;
    if (PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE) < 0)
        return NULL;
    sha256(buffer.buf, (size_t)buffer.len, sum);
    PyBuffer_Release(&buffer);
    hex(sum, 32, text);
    return PyUnicode_FromStringAndSize(text, 64);
}

PyDoc_STRVAR(crc32_doc, "crc32(data, before=0)\n--\n\nThe CRC-32 of bytes, as `zlib.crc32`.");

static PyObject *native_crc32(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer buffer;
    unsigned int before = 0;
    if (!PyArg_ParseTuple(args, "y*|I", &buffer, &before))
        return NULL;
    uint32_t sum = crc32(before, buffer.buf, (size_t)buffer.len);
    PyBuffer_Release(&buffer);
    return PyLong_FromUnsignedLong(sum);
}

PyDoc_STRVAR(gather_doc, "gather(view, at, end, last, edge, room, some)\n--\n\nSee `segment._gather`.");

static uint64_t little(const byte *data, int size)
{
    uint64_t number = 0;
    while (size--)
        number = number << 8 | data[size];
    return number;
}

static PyObject *native_gather(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer view;
    Py_ssize_t at, end, room;
    long long last, edge;
    int some, full = 0;
    if (!PyArg_ParseTuple(args, "y*nnLLnp", &view, &at, &end, &last, &edge, &room, &some))
        return NULL;
    PyObject *frames = PyList_New(0);
    while (frames != NULL && at >= 0 && at + SIZE <= end && end <= view.len) {
        const byte *record = (const byte *)view.buf + at;
        Py_ssize_t length = (Py_ssize_t)little(record + 4, 4);
        long long seq = (long long)little(record + 12, 8);
        if (length > end - at - SIZE)
            break;
        if (seq > last) {
            full = (some || PyList_GET_SIZE(frames)) && (length > room || (last <= edge && edge < seq));
            if (full)
                break;
            PyObject *frame = PyBytes_FromStringAndSize((const char *)record + SIZE, length);
            if (frame == NULL || PyList_Append(frames, frame) < 0)
                Py_CLEAR(frames);
            Py_XDECREF(frame);
            room -= length, last = seq;
        }
        at += SIZE + length;
    }
    PyBuffer_Release(&view);
    return frames ? Py_BuildValue("NLnO", frames, last, at, full ? Py_True : Py_False) : NULL;
}

static PyMethodDef methods[] = {
    {"gather", native_gather, METH_VARARGS, gather_doc},
    {"learn", native_learn, METH_O, learn_doc},
    {"tables", native_tables, METH_VARARGS, tables_doc},
    {"clean", native_clean, METH_O, clean_doc},
    {"json", (PyCFunction)(void (*)(void))native_json, METH_FASTCALL, json_doc},
    {"uuid7", native_uuid7, METH_NOARGS, uuid7_doc},
    {"sha256", native_sha256, METH_O, sha256_doc},
    {"crc32", native_crc32, METH_VARARGS, crc32_doc},
    {NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "clawtrail._native", "What costs most of an event's way.", -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void)
{
    PyObject *made;
    digest_init();
    clean_init();
    if (moment_init() < 0 || PyType_Ready(&Lane_Type) < 0 || PyType_Ready(&Finder_Type) < 0 || (made = PyModule_Create(&module)) == NULL)
        return NULL;
    if (PyModule_AddObjectRef(made, "Lane", (PyObject *)&Lane_Type) < 0 || PyModule_AddObjectRef(made, "Finder", (PyObject *)&Finder_Type) < 0
        || PyModule_AddStringConstant(made, "JUDGED", JUDGED) < 0
        || PyModule_AddObject(made, "LIMITS", Py_BuildValue("iiiiii", LEAF_MAX, DEPTH_MAX, LINE_MAX_BYTES, SIZE, RESERVE, VALUE_MAX)) < 0) {
        Py_DECREF(made);
        return NULL;
    }
    return made;
}
