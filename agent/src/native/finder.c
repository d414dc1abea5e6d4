/* Which of many literals stand in a text: one pass, whatever their number. For `rules.Rules`. */
#include "native.h"
#include <string.h>

#define BUCKETS 1024  /* by the first two bytes of a literal */

typedef struct {
    PyObject_HEAD
    PyObject *literals;      /* a tuple of bytes */
    int *next, first[BUCKETS]; /* the literals of a bucket; -1: no more */
    unsigned *met, pass;     /* the pass in which a literal was met last */
    size_t count;
} Finder;

static unsigned bucket(const byte *at)
{
    return (at[0] * 37u + at[1]) & (BUCKETS - 1);
}

PyDoc_STRVAR(within_doc, "within(text)\n--\n\nThe indices of the literals that stand in the text, in no order.");

static PyObject *finder_within(Finder *finder, PyObject *string)
{
    size_t size;
    if (!PyUnicode_Check(string))
        return PyErr_Format(PyExc_TypeError, "within() takes a string, not %.100s", Py_TYPE(string)->tp_name);
    PyObject *broken = NULL, *found = PyList_New(0);
    const byte *text = utf8(string, &size);
    if (text == NULL && (broken = PyUnicode_AsEncodedString(string, "utf-8", "surrogatepass")) != NULL)  /* lone surrogates */
        text = (const byte *)PyBytes_AS_STRING(broken), size = (size_t)PyBytes_GET_SIZE(broken);
    if (text == NULL)
        Py_CLEAR(found);
    unsigned pass = ++finder->pass;
    if (pass == 0) {  /* they begin anew */
        memset(finder->met, 0, finder->count * sizeof *finder->met);
        pass = finder->pass = 1;
    }
    for (size_t at = 0; found && at + 1 < size; at++)
        for (int i = finder->first[bucket(text + at)]; i >= 0; i = finder->next[i]) {
            PyObject *literal = PyTuple_GET_ITEM(finder->literals, i);
            size_t length = (size_t)PyBytes_GET_SIZE(literal);
            if (finder->met[i] == pass || length > size - at || memcmp(text + at, PyBytes_AS_STRING(literal), length))
                continue;
            finder->met[i] = pass;
            PyObject *index = PyLong_FromLong(i);
            if (index == NULL || PyList_Append(found, index) < 0)
                Py_CLEAR(found);
            Py_XDECREF(index);
            if (found == NULL)
                break;
        }
    Py_XDECREF(broken);
    return found;
}

static void finder_dealloc(Finder *finder)
{
    Py_XDECREF(finder->literals);
    PyMem_Free(finder->next);
    PyMem_Free(finder->met);
    Py_TYPE(finder)->tp_free((PyObject *)finder);
}

static PyObject *finder_new(PyTypeObject *type, PyObject *args, PyObject *kwds)
{
    PyObject *literals;
    static char *names[] = {"literals", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwds, "O!", names, &PyTuple_Type, &literals))
        return NULL;
    Py_ssize_t count = PyTuple_GET_SIZE(literals);
    for (Py_ssize_t i = 0; i < count; i++)
        if (!PyBytes_CheckExact(PyTuple_GET_ITEM(literals, i)) || PyBytes_GET_SIZE(PyTuple_GET_ITEM(literals, i)) < 2) {
            PyErr_Format(PyExc_TypeError, "Finder(): literal %zd is %.200R; expected bytes, two at least", i, PyTuple_GET_ITEM(literals, i));
            return NULL;
        }
    Finder *finder = (Finder *)type->tp_alloc(type, 0);
    if (finder == NULL)
        return NULL;
    finder->literals = Py_NewRef(literals);
    finder->next = PyMem_Calloc((size_t)count + 1, sizeof(int));
    finder->met = PyMem_Calloc((size_t)count + 1, sizeof *finder->met);
    finder->count = (size_t)count;
    if (finder->next == NULL || finder->met == NULL) {
        Py_DECREF(finder);
        return PyErr_NoMemory();
    }
    memset(finder->first, -1, sizeof finder->first);
    for (int i = 0; i < (int)count; i++) {
        unsigned at = bucket((const byte *)PyBytes_AS_STRING(PyTuple_GET_ITEM(literals, i)));
        finder->next[i] = finder->first[at], finder->first[at] = i;
    }
    return (PyObject *)finder;
}

static PyMethodDef finder_methods[] = {
    {"within", (PyCFunction)finder_within, METH_O, within_doc},
    {NULL},
};

PyTypeObject Finder_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "clawtrail._native.Finder",
    .tp_basicsize = sizeof(Finder),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Finder(literals)\n--\n\nLooks for many literals at once: a tuple of bytes, each two at least.",
    .tp_new = finder_new,
    .tp_dealloc = (destructor)finder_dealloc,
    .tp_methods = finder_methods,
};
