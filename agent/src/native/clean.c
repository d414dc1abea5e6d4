/* Whether a text is certainly without a secret: `patterns.nothing_in`, in one pass, and less sure of itself.

A text is taken apart into words of ASCII letters and digits and what stands between them. The hints of FORMATS come
from Python; what CONTEXT looks for is written out below, and `native.JUDGED` tells which CONTEXT that was. */
#include "native.h"
#include <string.h>

enum { WORD = 1, HEX_DIGIT = 2, BASE64 = 4, SPACE = 8, NAME = 16 };
static byte kind[256];
enum { AFTER_NAME = 1, ENDS_NAME = 2, BEGINS = 4, RARE = 8, SPECIAL = 16 };  /* what makes a character worth a look */
static byte role[256];

#define IS(c, of) (kind[c] & (of))
#define LONG_RUN 20
#define RUN_MAX 4096
#define FOLLOWS 9  /* characters that follow a hint's rare character in every token, and in few other words */
#define BEFORE_RUN 7
#define BEHIND_RUN 4
#define HINT_MAX 24
#define HINTS_MAX 96

typedef struct {
    char text[HINT_MAX];
    byte size, at;  /* at: of its first rare character */
} Hint;

typedef struct {
    Hint all[HINTS_MAX];
    int count;
    uint64_t first[HINT_MAX];  /* by the length of the word before it: the first letters of these, modulo 64 */
} Hints;

/* words: by the rare character, with a whole word before it; bare: with none; ends: with the end of one. In words; in runs. */
static Hints words[128], bare, ends, starts, runs;
static byte loose[128];  /* the rare characters of `bare` and `ends` */
static int learned = 0;

static int keep(Hints *in, const char *text, size_t size, size_t at)
{
    if (in->count == HINTS_MAX || size > HINT_MAX)
        return 0;
    Hint *hint = &in->all[in->count++];
    memcpy(hint->text, text, size);
    hint->size = (byte)size, hint->at = (byte)at;
    return 1;
}

/* Hints as (how, text): "word", "end", "start" or "run"; see `native._hints`. 0: one of them is not understood. */
int clean_learn(PyObject *hints)
{
    memset(words, 0, sizeof words);
    memset(loose, 0, sizeof loose);
    bare.count = ends.count = starts.count = runs.count = learned = 0;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(hints); i++) {
        const char *how, *text;
        Py_ssize_t size;
        if (!PyArg_ParseTuple(PyList_GET_ITEM(hints, i), "ss#", &how, &text, &size))
            return 0;
        size_t at = 0;
        while (at < (size_t)size && IS((byte)text[at], WORD))
            at++;
        int known = 0;
        if (!strcmp(how, "run"))
            known = keep(&runs, text, size, 0);
        else if (!strcmp(how, "start"))
            known = at == (size_t)size && size >= 4 && keep(&starts, text, size, 0) && (role[(byte)text[0]] |= BEGINS);
        else if (at < (size_t)size && (byte)text[at] < 128) {
            byte c = (byte)text[at];
            Hints *in = strcmp(how, "word") ? &ends : at ? &words[c] : &bare;
            role[c] |= RARE;
            loose[c] |= in != &words[c];
            if (at < HINT_MAX)
                in->first[at] |= (uint64_t)1 << (text[0] & 63);
            known = (in != &ends || !strcmp(how, "end")) && keep(in, text, size, at);
        }
        if (!known)
            return 0;
    }
    learned = 1;
    return 1;
}

static int ends_with(const byte *word, size_t size, const char *end, size_t length)
{
    if (size < length)
        return 0;
    for (size_t i = 0; i < length; i++)
        if ((word[size - length + i] | 32) != (byte)end[i])
            return 0;
    return 1;
}

#define ENDS(with) ends_with(word, size, with, sizeof(with) - 1)

enum { NOTHING, OPTION, NAMED, ANNOUNCES };  /* whose value is a secret: only as an option, also as `name=`, whatever follows */

#define TWO(a, b) ((a) << 8 | (b))

/* What a word of three letters or more tells about what follows it. */
static int telling(const byte *word, size_t size)
{
    switch (TWO(word[size - 2] | 32, word[size - 1] | 32)) {
    case TWO('r', 'd'): return ENDS("password") ? NAMED : NOTHING;
    case TWO('w', 'd'): return ENDS("passwd") || ENDS("pwd") ? NAMED : NOTHING;
    case TWO('s', 'e'): return ENDS("passphrase") ? NAMED : NOTHING;
    case TWO('i', 'e'): return ENDS("cookie") ? NAMED : NOTHING;
    case TWO('e', 't'): return ENDS("secret") ? NAMED : NOTHING;
    case TWO('e', 'n'): return ENDS("token") ? NAMED : NOTHING;
    case TWO('o', 'n'): return ENDS("authorization") ? NAMED : NOTHING;
    case TWO('e', 'y'): return ENDS("key") ? NAMED : NOTHING;
    case TWO('a', 'l'): return ENDS("credential") ? NAMED : NOTHING;
    case TWO('l', 's'): return ENDS("credentials") ? NAMED : NOTHING;
    case TWO('a', 't'): return ENDS("pat") ? OPTION : NOTHING;
    case TWO('s', 's'): return ENDS("pass") ? OPTION : NOTHING;
    case TWO('e', 'r'): return ENDS("bearer") ? ANNOUNCES : NOTHING;
    case TWO('i', 'n'): return ENDS("login") ? ANNOUNCES : NOTHING;
    default: return NOTHING;
    }
}

static int is_word(const byte *word, size_t size, const char *wanted)
{
    return size == strlen(wanted) && !memcmp(word, wanted, size);
}

static int has(const byte *text, const byte *end, const char *wanted)
{
    size_t size = strlen(wanted);
    for (const byte *at = text; at + size <= end; at++)
        if (*at == (byte)wanted[0] && !memcmp(at, wanted, size))
            return 1;
    return 0;
}

/* A program that is given a password on its command line, in a text that looks as if it were. */
static int is_given_to_program(const byte *text, const byte *end, const byte *word, size_t size)
{
    switch (word[0]) {
    case 'c': return is_word(word, size, "curl") && (has(text, end, "-u") || has(text, end, "-U") || has(text, end, "-user") || has(text, end, "-proxy-user"));
    case 's': return is_word(word, size, "sshpass") && has(text, end, "-");
    case 'm': return (is_word(word, size, "mysql") || is_word(word, size, "mysqldump") || is_word(word, size, "mariadb") || is_word(word, size, "mongo")) && has(text, end, "-");
    case 'r': return is_word(word, size, "redis") && has(text, end, "-");
    default: return 0;
    }
}

/* Of a parameter in a URL: `?name=` or `&name=`. */
static int is_query(const byte *text, const byte *word, size_t size)
{
    const byte *at = word;
    while (at > text && IS(at[-1], NAME))
        at--;
    return at > text && (at[-1] == '?' || at[-1] == '&')
        && (ENDS("token") || ENDS("key") || ENDS("sig") || ENDS("signature") || ENDS("code") || ENDS("auth") || ENDS("credential") || ENDS("secret"));
}

static int is_option(const byte *text, const byte *word)
{
    while (word > text && IS(word[-1], NAME))
        if (*--word == '-')
            return 1;
    return 0;
}

/* What stands behind a telling word: a value, given by `=` or `:`. A character that is no ASCII may be a space. */
static int is_given(const byte *at, const byte *end)
{
    if (at < end && (*at == '"' || *at == '\''))
        at++;
    while (at < end && (IS(*at, SPACE) || *at >= 128))
        at++;
    return at < end && (*at == '=' || *at == ':');
}

static int value_of(byte c)
{
    return c >= 'a' ? c <= 'z' ? c - 'a' + 26 : -1 : c >= 'A' ? c <= 'Z' ? c - 'A' : c == '_' ? 63 : -1 : c >= '0' && c <= '9' ? c - '0' + 52 : c == '+' || c == '-' ? 62 : c == '/' ? 63 : -1;
}

/* Whether what base64 says here is no text, for certain. */
static int says_nothing(const byte *at, const byte *end)
{
    uint32_t bits = 0;
    int have = 0;
    for (; at < end; at++) {
        int value = value_of(*at);
        if (value < 0)
            return 0;
        bits = bits << 6 | (uint32_t)value, have += 6;
        if (have >= 8) {
            byte c = (byte)(bits >> (have -= 8));
            if ((c < 32 && c != '\n' && c != '\r' && c != '\t') || c == 127)
                return 1;
        }
    }
    return 0;
}

/* Of a text with a long word: no run of it is a token, or base64 in which something stands. */
static int harmless_runs(const byte *text, const byte *end)
{
    for (const byte *first = text, *last; first < end; first = last + 1) {
        int digits = 1;
        for (last = first; last < end && IS(*last, BASE64); last++)
            digits &= IS(*last, HEX_DIGIT) || *last == '-';
        if (digits || last - first < LONG_RUN)
            continue;
        const byte *low = first - text > BEFORE_RUN ? first - BEFORE_RUN : text, *high = end - last > BEHIND_RUN ? last + BEHIND_RUN : end;
        for (int i = 0; i < runs.count; i++)
            for (const byte *at = low; at + runs.all[i].size <= high; at++)
                if (*at == (byte)runs.all[i].text[0] && !memcmp(at, runs.all[i].text, runs.all[i].size))
                    return 0;
        if (last - first > RUN_MAX || !says_nothing(first, last))
            return 0;
    }
    return 1;
}

static int much_follows(const byte *at, const byte *end)
{
    if (end - at < FOLLOWS)
        return 0;
    for (int i = 0; i < FOLLOWS; i++)
        if (!IS(at[i], NAME) && at[i] != '.' && at[i] != '/' && at[i] < 128)
            return 0;
    return 1;
}

static int begins(const Hint *hint, const byte *at, const byte *end)
{
    size_t rest = hint->size - hint->at;
    return (size_t)(end - at) >= rest && !memcmp(at, hint->text + hint->at, rest);
}

/* A hint whose rare character stands at `at`, behind this word. */
static int is_hint(const byte *word, size_t size, const byte *at, const byte *end)
{
    byte c = *at;
    const Hints *whole = &words[c];
    int may = size && size < HINT_MAX && whole->first[size] >> (word[0] & 63) & 1;
    if ((!may && !loose[c]) || ((c == '-' || c == '_' || c == '.') && !much_follows(at + 1, end)))
        return 0;
    for (int i = 0; may && i < whole->count; i++)
        if (whole->all[i].at == size && !memcmp(whole->all[i].text, word, size) && begins(&whole->all[i], at, end))
            return 1;
    for (int i = 0; i < bare.count; i++)
        if ((byte)bare.all[i].text[0] == c && begins(&bare.all[i], at, end))
            return 1;
    for (int i = 0; i < ends.count; i++) {
        const Hint *hint = &ends.all[i];
        if ((byte)hint->text[hint->at] == c && size >= hint->at && !memcmp(hint->text, word + size - hint->at, hint->at) && begins(hint, at, end))
            return 1;
    }
    return 0;
}

/* Three parts with dots between, the second of six characters, the third of 27 or more: a token without any literal. */
static int is_dotted(const byte *at, const byte *end)
{
    const byte *second = ++at;
    int other = 0;
    for (; at < end && (IS(*at, NAME) || *at >= 128); at++)
        other |= *at >= 128;
    if (at == end || *at != '.' || (at - second != 6 && !other))
        return 0;
    const byte *third = ++at;
    while (at < end && (IS(*at, NAME) || *at >= 128))
        at++;
    return at - third >= 27;
}

/* Characters that are no ASCII: those that are one to an expression that ignores case, and those that are escaped. */
static int is_odd(const byte *at, const byte *end)
{
    byte second = at + 1 < end ? at[1] : 0, third = at + 2 < end ? at[2] : 0;
    switch (at[0]) {
    case 0xC2: return second < 0xA0;
    case 0xC4: return second == 0xB0 || second == 0xB1;
    case 0xC5: return second == 0xBF;
    case 0xE2: return (second == 0x84 && third == 0xAA) || (second == 0x80 && (third == 0xA8 || third == 0xA9));
    case 0xEF: return second == 0xBB && third == 0xBF;
    default: return 0;
    }
}

/* What a word says together with what stands behind it. */
static int tells(const byte *text, const byte *end, const byte *word, size_t size, const byte *at)
{
    byte c = *at;
    if (c == '=' && is_query(text, word, size))
        return 1;
    int how = size >= 3 ? telling(word, size) : NOTHING;
    if (how == NOTHING)
        return 0;
    int space = c >= 128 || IS(c, SPACE);
    return (how == ANNOUNCES && space) || (how == NAMED && is_given(at, end)) || (how != ANNOUNCES && (c == '=' || space) && is_option(text, word));
}

enum clean clean(const byte *text, size_t length)
{
    const byte *at = text, *end = text + length;
    enum clean verdict = CLEAN;
    int judged = 0;
    if (!learned)
        return UNSURE;
    if (length >= 6 && (text[0] == '{' || text[0] == '[') && (end[-1] == '}' || end[-1] == ']'))
        return UNSURE;
    for (;; at++) {
        const byte *word = at;
        while (at < end && IS(*at, WORD))
            at++;
        size_t size = (size_t)(at - word);
        if (size >= 4) {
            if (size >= LONG_RUN && !judged) {
                judged = 1;
                if (!harmless_runs(text, end))
                    return UNSURE;
            }
            if (role[word[0]] & BEGINS) {
                for (int i = 0; i < starts.count; i++)
                    if (size >= starts.all[i].size && !memcmp(word, starts.all[i].text, starts.all[i].size))
                        return UNSURE;
                if (is_given_to_program(text, end, word, size))
                    return UNSURE;
            }
        }
        if (at == end)
            return verdict;
        byte c = *at, does = role[c];
        if (does & AFTER_NAME && size && (role[at[-1]] & ENDS_NAME || c == '=') && tells(text, end, word, size, at))
            return UNSURE;
        if (does & RARE && is_hint(word, size, at, end))
            return UNSURE;
        if (does & SPECIAL)
            switch (c) {
            case '\\': case 127:
                return UNSURE;
            case '%':
                if (end - at > 2 && IS(at[1], HEX_DIGIT) && IS(at[2], HEX_DIGIT))
                    return UNSURE;
                break;
            case '.':
                if (is_dotted(at, end))
                    return UNSURE;
                break;
            case ':':
                if (end - at > 3 && at[1] == '/' && at[2] == '/' && memchr(at + 3, '@', (size_t)(end - at) - 3))
                    return UNSURE;
                break;
            default:
                if (c >= 128) {
                    if (is_odd(at, end))
                        return UNSURE;
                } else
                    verdict = CLEAN_TO_ESCAPE;
            }
    }
}

void clean_init(void)
{
    for (int c = 0; c < 256; c++) {
        int digit = c >= '0' && c <= '9', low = c >= 'a' && c <= 'z', capital = c >= 'A' && c <= 'Z', word = digit || low || capital;
        int space = c == ' ' || (c >= 9 && c <= 13) || (c >= 28 && c <= 31);
        kind[c] = (byte)((word ? WORD | BASE64 | NAME : 0) | (c == '+' || c == '/' || c == '_' || c == '-' ? BASE64 : 0) | (c == '-' || c == '_' ? NAME : 0)
                         | (digit || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F') ? HEX_DIGIT : 0) | (space ? SPACE : 0));
        role[c] = (byte)((space || c >= 128 || (c && strchr("=:\"'", c)) ? AFTER_NAME : 0) | (c < 32 || c >= 127 || strchr("\\%.:\"", c) ? SPECIAL : 0)
                         | (c && strchr("dDeEtTnNyYlLsSrR", c) ? ENDS_NAME : 0) | (c && strchr("csmr", c) ? BEGINS : 0));
    }
}
