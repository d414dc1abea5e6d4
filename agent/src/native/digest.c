/* SHA-256 (FIPS 180-4) and CRC-32 (ISO 3309, as zlib), with the processor's instructions for them where it has some. */
#include "native.h"
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(PORTABLE)
#define X86 1
#include <cpuid.h>
#include <immintrin.h>
#endif

static const uint32_t K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be,
    0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
    0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
    0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
    0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
    0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

#define ROTATE(x, n) ((x) >> (n) | (x) << (32 - (n)))

static void blocks_portable(uint32_t state[8], const byte *data, size_t blocks)
{
    for (; blocks; blocks--, data += 64) {
        uint32_t w[64], a = state[0], b = state[1], c = state[2], d = state[3], e = state[4], f = state[5], g = state[6], h = state[7];
        for (int i = 0; i < 16; i++)
            w[i] = (uint32_t)data[4 * i] << 24 | data[4 * i + 1] << 16 | data[4 * i + 2] << 8 | data[4 * i + 3];
        for (int i = 16; i < 64; i++) {
            uint32_t x = w[i - 15], y = w[i - 2];
            w[i] = w[i - 16] + w[i - 7] + (ROTATE(x, 7) ^ ROTATE(x, 18) ^ x >> 3) + (ROTATE(y, 17) ^ ROTATE(y, 19) ^ y >> 10);
        }
        for (int i = 0; i < 64; i++) {
            uint32_t one = h + (ROTATE(e, 6) ^ ROTATE(e, 11) ^ ROTATE(e, 25)) + ((e & f) ^ (~e & g)) + K[i] + w[i];
            uint32_t two = (ROTATE(a, 2) ^ ROTATE(a, 13) ^ ROTATE(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
            h = g, g = f, f = e, e = d + one, d = c, c = b, b = a, a = one + two;
        }
        state[0] += a, state[1] += b, state[2] += c, state[3] += d, state[4] += e, state[5] += f, state[6] += g, state[7] += h;
    }
}

#ifdef X86
__attribute__((target("sha,sse4.1,ssse3"))) static void blocks_sha_ni(uint32_t state[8], const byte *data, size_t blocks)
{
    const __m128i order = _mm_set_epi64x(0x0c0d0e0f08090a0bLL, 0x0405060700010203LL);
    __m128i cdab = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)state), 0xB1);
    __m128i efgh = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)(state + 4)), 0x1B);
    __m128i abef = _mm_alignr_epi8(cdab, efgh, 8), cdgh = _mm_blend_epi16(efgh, cdab, 0xF0);
    for (; blocks; blocks--, data += 64) {
        const __m128i abef_before = abef, cdgh_before = cdgh;
        __m128i w[4];
        for (int i = 0; i < 4; i++)
            w[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(data + 16 * i)), order);
        for (int i = 0; i < 16; i++) {  /* four rounds each */
            __m128i now = w[i & 3], rounds = _mm_add_epi32(now, _mm_loadu_si128((const __m128i *)(K + 4 * i)));
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, rounds);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(rounds, 0x0E));
            if (i < 12) {
                __m128i next = _mm_sha256msg1_epu32(now, w[(i + 1) & 3]);
                next = _mm_add_epi32(next, _mm_alignr_epi8(w[(i + 3) & 3], w[(i + 2) & 3], 4));
                w[i & 3] = _mm_sha256msg2_epu32(next, w[(i + 3) & 3]);
            }
        }
        abef = _mm_add_epi32(abef, abef_before);
        cdgh = _mm_add_epi32(cdgh, cdgh_before);
    }
    __m128i feba = _mm_shuffle_epi32(abef, 0x1B), dchg = _mm_shuffle_epi32(cdgh, 0xB1);
    _mm_storeu_si128((__m128i *)state, _mm_blend_epi16(feba, dchg, 0xF0));
    _mm_storeu_si128((__m128i *)(state + 4), _mm_alignr_epi8(dchg, feba, 8));
}
#endif

static void (*blocks_of)(uint32_t state[8], const byte *data, size_t blocks) = blocks_portable;

void sha256(const byte *data, size_t size, byte out[32])
{
    uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    byte end[128] = {0};
    size_t whole = size / 64, rest = size % 64, last = rest < 56 ? 64 : 128;
    blocks_of(state, data, whole);
    memcpy(end, data + 64 * whole, rest);
    end[rest] = 0x80;
    for (int i = 0; i < 8; i++)
        end[last - 1 - i] = (byte)((uint64_t)size * 8 >> 8 * i);
    blocks_of(state, end, last / 64);
    for (int i = 0; i < 32; i++)
        out[i] = (byte)(state[i / 4] >> (24 - 8 * (i % 4)));
}

static uint32_t table[8][256];

static uint32_t crc_portable(uint32_t crc, const byte *data, size_t size)
{
    for (; size >= 8; size -= 8, data += 8) {
        crc ^= data[0] | (uint32_t)data[1] << 8 | (uint32_t)data[2] << 16 | (uint32_t)data[3] << 24;
        crc = table[7][crc & 255] ^ table[6][crc >> 8 & 255] ^ table[5][crc >> 16 & 255] ^ table[4][crc >> 24]
            ^ table[3][data[4]] ^ table[2][data[5]] ^ table[1][data[6]] ^ table[0][data[7]];
    }
    while (size--)
        crc = crc >> 8 ^ table[0][(crc ^ *data++) & 255];
    return crc;
}

#ifdef X86
/* Sixteen bytes are folded onto the sixteen that lie 64 further on; x^n mod P for the distances, bits reflected. */
__attribute__((target("pclmul,sse4.1"))) static inline __m128i folded(__m128i x, __m128i by, __m128i onto)
{
    return _mm_xor_si128(_mm_xor_si128(_mm_clmulepi64_si128(x, by, 0x00), _mm_clmulepi64_si128(x, by, 0x11)), onto);
}

__attribute__((target("pclmul,sse4.1"))) static uint32_t crc_pclmul(uint32_t crc, const byte *data, size_t size)
{
    if (size < 80)
        return crc_portable(crc, data, size);
    const __m128i by_64 = _mm_set_epi64x(0x1c6e41596, 0x154442bd4), by_16 = _mm_set_epi64x(0x0ccaa009e, 0x1751997d0);
    const __m128i *at = (const __m128i *)data;
    __m128i x[4];
    for (int i = 0; i < 4; i++)
        x[i] = _mm_loadu_si128(at + i);
    x[0] = _mm_xor_si128(x[0], _mm_cvtsi32_si128((int)crc));
    for (at += 4, size -= 64; size >= 64; at += 4, size -= 64)
        for (int i = 0; i < 4; i++)
            x[i] = folded(x[i], by_64, _mm_loadu_si128(at + i));
    __m128i one = folded(folded(folded(x[0], by_16, x[1]), by_16, x[2]), by_16, x[3]);
    for (; size >= 16; at++, size -= 16)
        one = folded(one, by_16, _mm_loadu_si128(at));
    byte left[16];
    _mm_storeu_si128((__m128i *)left, one);
    return crc_portable(crc_portable(0, left, 16), (const byte *)at, size);
}
#endif

static uint32_t (*crc_of)(uint32_t crc, const byte *data, size_t size) = crc_portable;

uint32_t crc32(uint32_t before, const byte *data, size_t size)
{
    return ~crc_of(~before, data, size);
}

void hex(const byte *data, size_t size, char *out)
{
    for (size_t i = 0; i < size; i++) {
        *out++ = "0123456789abcdef"[data[i] >> 4];
        *out++ = "0123456789abcdef"[data[i] & 15];
    }
}

void digest_init(void)
{
    for (uint32_t n = 0; n < 256; n++) {
        uint32_t crc = n;
        for (int i = 0; i < 8; i++)
            crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
        table[0][n] = crc;
    }
    for (int i = 1; i < 8; i++)
        for (int n = 0; n < 256; n++)
            table[i][n] = table[i - 1][n] >> 8 ^ table[0][table[i - 1][n] & 255];
#ifdef X86
    unsigned a, b, c, d;
    if (__get_cpuid(1, &a, &b, &c, &d) && c & bit_SSE4_1 && c & bit_SSSE3) {
        if (c & bit_PCLMUL)
            crc_of = crc_pclmul;
        if (__get_cpuid_count(7, 0, &a, &b, &c, &d) && b & 1u << 29)
            blocks_of = blocks_sha_ni;
    }
#endif
}
