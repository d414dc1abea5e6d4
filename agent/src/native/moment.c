/* Moments and ids: the texts that `event.timestamp` and `event.uuid7` give. */
#include "native.h"
#include <pthread.h>
#include <string.h>
#include <time.h>
#ifdef __linux__
#include <sys/random.h>
#endif

static int64_t clock_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int64_t wall_ns(void) { return clock_ns(CLOCK_REALTIME); }

int64_t monotonic_ns(void) { return clock_ns(CLOCK_MONOTONIC); }

static void digits(char *out, int width, int64_t number)
{
    for (int i = width; i--; number /= 10)
        out[i] = (char)('0' + number % 10);
}

/* RFC 3339 in UTC with microseconds, 27 characters. 0: not of the years 1970 to 9999. */
int timestamp(int64_t microseconds, char out[27])
{
    static int64_t second = -1;
    static char text[20] = "";
    int64_t whole = microseconds / 1000000;
    if (microseconds < 0 || whole > 253402300799)
        return 0;
    if (whole != second) {
        struct tm t;
        time_t seconds = (time_t)whole;
        if (gmtime_r(&seconds, &t) == NULL)
            return 0;
        memcpy(text, "0000-00-00T00:00:00.", 20);
        digits(text, 4, t.tm_year + 1900), digits(text + 5, 2, t.tm_mon + 1), digits(text + 8, 2, t.tm_mday);
        digits(text + 11, 2, t.tm_hour), digits(text + 14, 2, t.tm_min), digits(text + 17, 2, t.tm_sec);
        second = whole;
    }
    memcpy(out, text, 20);
    digits(out + 20, 6, microseconds % 1000000);
    out[26] = 'Z';
    return 1;
}

static int64_t millisecond = -1;
static uint64_t next_id;
static char shared[24];  /* what the ids of one millisecond begin with */

static void forget(void) { millisecond = -1; }

/* UUID version 7, RFC 9562 section 5.7: a millisecond begins at 73 random bits and counts up. 0: the system gave no random bits. */
int uuid7(char out[36])
{
    int64_t now = wall_ns() / 1000000;
    if (now != millisecond) {
        static byte pool[640];
        static size_t left = 0;
        if (left < 10 || millisecond < 0) {
#ifdef __linux__
            if (getrandom(pool, sizeof pool, 0) != sizeof pool)
                return 0;
#else
            if (getentropy(pool, 256) || getentropy(pool + 256, 256) || getentropy(pool + 512, 128))
                return 0;
#endif
            left = sizeof pool;
        }
        byte *random = pool + (left -= 10);
        byte head[10];
        for (int i = 0; i < 6; i++)
            head[i] = (byte)(now >> (40 - 8 * i));
        head[6] = 0x70 | (random[0] & 15), head[7] = random[1];
        head[8] = 0x80 | (random[2] & 63), head[9] = random[3];
        next_id = (uint64_t)(random[4] & 127) << 40;  /* too small to overflow 48 bits */
        for (int i = 5; i < 10; i++)
            next_id |= (uint64_t)random[i] << (8 * (9 - i));
        char all[20];
        hex(head, 10, all);
        memcpy(shared, all, 8), memcpy(shared + 9, all + 8, 4), memcpy(shared + 14, all + 12, 4), memcpy(shared + 19, all + 16, 4);
        shared[8] = shared[13] = shared[18] = shared[23] = '-';
        millisecond = now;
    }
    byte tail[6];
    for (int i = 0; i < 6; i++)
        tail[i] = (byte)(next_id >> (40 - 8 * i));
    next_id++;
    memcpy(out, shared, 24);
    hex(tail, 6, out + 24);
    return 1;
}

int moment_init(void)
{
    return pthread_atfork(NULL, NULL, forget) ? -1 : 0;  /* a child begins anew, at other random bits */
}
