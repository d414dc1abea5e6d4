/* What the rooms of this module have in common. The module is optional: `clawtrail.native` says what it stands in for. */
#ifndef CLAWTRAIL_NATIVE_H
#define CLAWTRAIL_NATIVE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

#ifdef Py_GIL_DISABLED
#error "written for the GIL: what a call does here, it does in one piece"
#endif

typedef unsigned char byte;

/* As in Python; a test compares them. */
#define LEAF_MAX 2048        /* event.LEAF_MAX, in characters: a longer text is cut */
#define DEPTH_MAX 8          /* event.DEPTH_MAX */
#define LINE_MAX_BYTES 40960 /* event.LINE_MAX */
#define SIZE 20              /* segment.SIZE */
#define RESERVE 16384        /* segment.RESERVE */
#define VALUE_MAX 256        /* syslog.VALUE_MAX */

/* digest.c */
void digest_init(void);
void sha256(const byte *data, size_t size, byte out[32]);
uint32_t crc32(uint32_t before, const byte *data, size_t size);
void hex(const byte *data, size_t size, char *out);

/* clean.c */
enum clean { UNSURE = 0, CLEAN = 1, CLEAN_TO_ESCAPE = 2 };
void clean_init(void);
int clean_learn(PyObject *hints);
enum clean clean(const byte *text, size_t size);
#define JUDGED "c83bb760448f6057"  /* the beginning of the SHA-256 of `patterns.CONTEXT`, as far as clean.c has it written out */

/* moment.c */
int moment_init(void);
int uuid7(char out[36]);
int64_t wall_ns(void);
int64_t monotonic_ns(void);
int timestamp(int64_t microseconds, char out[27]);

/* json.c: each answers 1, or 0 when the value is for the long way; nothing here raises or calls Python code. */
typedef struct {
    byte *data;
    size_t size, room;
} Text;

int text_room(Text *text, size_t more);
int put(Text *text, const char *data, size_t size);
int put_number(Text *text, int64_t number);
int put_judged(Text *text, PyObject *string);
int put_value(Text *text, PyObject *value, PyObject *keys, int depth);
int put_member(Text *text, PyObject *key, PyObject *value, PyObject *keys, int depth, int first);
const byte *utf8(PyObject *string, size_t *size);

#define PUT(text, literal) put(text, literal, sizeof(literal) - 1)

/* finder.c */
extern PyTypeObject Finder_Type;

/* lane.c */
extern PyTypeObject Lane_Type;
int lane_init(PyObject *tables);

#endif
