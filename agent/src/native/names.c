/* What a lane knows by heart: fields of an event, attributes of a log record, and the names it asks Python's objects for. */
#include "lane.h"

PyObject *field_names[FIELDS_MAX], *attribute_names[ATTRIBUTES_MAX];
byte is_single[FIELDS_MAX];
int fields, SESSION, RUN, TOOL, CONTENT, CREDENTIAL, LOG;
int attributes, NAME, MSG, ARGS, LEVELNAME, LEVELNO, EXC_INFO, EXC_TEXT, STACK_INFO, CREATED;
PyObject *order, *roles, *kinds;
PyObject *s_seq, *s_prev, *s_same, *s_own, *s_active, *s_map, *s_end, *s_first, *s_last, *s_count, *s_size, *s_sealed,
    *s_write_through, *s_appended, *s_stored, *s_limit, *s_next_moment, *s_keys, *s_known, *s_idle, *s_wake, *s_unhurried, *s_name,
    *s_value, *s_epoch, *s_format, *s_tap;

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
