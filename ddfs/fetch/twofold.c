/*
 * SHA-256 (FIPS 180-4, section 6.2.2) with the CPU's own instructions, for two sums at once of
 * the same blocks: those of a file and of a piece of it. Both have the same message schedule,
 * and the rounds of one fill the time in which the other's wait for their results: so two cost
 * 1.4 times as much as one.
 *
 * Nothing is padded or ended here; twofold.py does that, and asks ddfs_sha256_supported() first.
 */

#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__)

#include <cpuid.h>
#include <immintrin.h>

#define TARGET __attribute__((target("sha,sse4.1,ssse3")))
#define INLINE static inline __attribute__((always_inline)) TARGET

static const uint32_t ROUND[64] __attribute__((aligned(16))) = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

/* The eight words a to h in the order that the instructions want. */
struct state {
    __m128i abef, cdgh;
};

INLINE struct state load(const uint32_t *words)
{
    __m128i badc = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)words), 0xB1);
    __m128i hgfe = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)(words + 4)), 0x1B);
    struct state state = {_mm_alignr_epi8(badc, hgfe, 8), _mm_blend_epi16(hgfe, badc, 0xF0)};
    return state;
}

INLINE void store(uint32_t *words, struct state state)
{
    __m128i feba = _mm_shuffle_epi32(state.abef, 0x1B);
    __m128i dchg = _mm_shuffle_epi32(state.cdgh, 0xB1);
    _mm_storeu_si128((__m128i *)words, _mm_blend_epi16(feba, dchg, 0xF0));
    _mm_storeu_si128((__m128i *)(words + 4), _mm_alignr_epi8(dchg, feba, 8));
}

/* Two rounds each; the arguments' order in the second call is that of the standard's words. */
INLINE struct state four_rounds(struct state state, __m128i first, __m128i second)
{
    state.cdgh = _mm_sha256rnds2_epu32(state.cdgh, state.abef, first);
    state.abef = _mm_sha256rnds2_epu32(state.abef, state.cdgh, second);
    return state;
}

INLINE struct state sum(struct state one, struct state other)
{
    one.abef = _mm_add_epi32(one.abef, other.abef);
    one.cdgh = _mm_add_epi32(one.cdgh, other.cdgh);
    return one;
}

/* Four words of the message schedule; SCHEDULE holds the sixteen before them, in a ring. */
INLINE __m128i next_words(const __m128i *schedule, int at)
{
    __m128i oldest = schedule[at & 3], older = schedule[(at + 1) & 3];
    __m128i newer = schedule[(at + 2) & 3], newest = schedule[(at + 3) & 3];
    __m128i made = _mm_add_epi32(_mm_sha256msg1_epu32(oldest, older),
                                 _mm_alignr_epi8(newest, newer, 4));
    return _mm_sha256msg2_epu32(made, newest);
}

INLINE void absorb(uint32_t *words, uint32_t *twin_words, const uint8_t *data, size_t blocks,
                   int has_twin)
{
    const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0bLL, 0x0405060700010203LL);
    struct state state = load(words), twin = has_twin ? load(twin_words) : state;

    for (; blocks != 0; blocks--, data += 64) {
        struct state before = state, twin_before = twin;
        __m128i schedule[4];
#pragma GCC unroll 16
        for (int at = 0; at < 16; at++) {
            __m128i made = at < 4 ? _mm_shuffle_epi8(
                                        _mm_loadu_si128((const __m128i *)data + at), big_endian)
                                  : next_words(schedule, at);
            schedule[at & 3] = made;
            __m128i first = _mm_add_epi32(made, _mm_load_si128((const __m128i *)ROUND + at));
            __m128i second = _mm_shuffle_epi32(first, 0x0E);
            state = four_rounds(state, first, second);
            if (has_twin)
                twin = four_rounds(twin, first, second);
        }
        state = sum(state, before);
        if (has_twin)
            twin = sum(twin, twin_before);
    }
    store(words, state);
    if (has_twin)
        store(twin_words, twin);
}

/* Whether this CPU has the instructions: SHA, SSE4.1 and SSSE3. */
int ddfs_sha256_supported(void)
{
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_SSE4_1) || !(c & bit_SSSE3))
        return 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_SHA) != 0;
}

/* Take BLOCKS blocks of 64 bytes into the eight WORDS, and into those of TWIN unless NULL. */
TARGET void ddfs_sha256_absorb(uint32_t *words, uint32_t *twin, const uint8_t *data,
                               size_t blocks)
{
    if (twin != NULL)
        absorb(words, twin, data, blocks, 1);
    else
        absorb(words, NULL, data, blocks, 0);
}

#else

int ddfs_sha256_supported(void)
{
    return 0;
}

void ddfs_sha256_absorb(uint32_t *words, uint32_t *twin, const uint8_t *data, size_t blocks)
{
    (void)words, (void)twin, (void)data, (void)blocks;
}

#endif
