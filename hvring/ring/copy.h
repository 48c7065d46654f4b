/* SPDX-License-Identifier: Apache-2.0 */
/* Copies in and out of a ring.  glibc copies more than about 2 KiB with `rep movsb`, which on many processors is 20 to
 * 40 times slower when the target lies 1 to 31 bytes behind the source modulo a page; packets with a stride of 4 KiB
 * and a page-aligned buffer meet that on every copy.  So large copies are done with vectors of our own. */
#ifndef HVRING_COPY_H
#define HVRING_COPY_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define HV_COPY_SMALL 128 /* bytes up to which they are copied without a call */
#define HV_COPY_OWN 512   /* bytes from which the loops below are used */

#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#include <immintrin.h>

/* Both: n >= 128; the first and the last vectors overlap the loop's, so that its stores are aligned. */
__attribute__((target("avx2"), noinline, unused)) static void hv_copy_avx2(uint8_t *to, const uint8_t *from, size_t n)
{
    const uint8_t *end = from + n;
    uint8_t *to_end = to + n;
    __m256i head = _mm256_loadu_si256((const __m256i *)from);
    __m256i t0 = _mm256_loadu_si256((const __m256i *)(end - 128)), t1 = _mm256_loadu_si256((const __m256i *)(end - 96));
    __m256i t2 = _mm256_loadu_si256((const __m256i *)(end - 64)), t3 = _mm256_loadu_si256((const __m256i *)(end - 32));
    size_t skip = 32 - ((uintptr_t)to & 31);
    _mm256_storeu_si256((__m256i *)to, head);
    for (to += skip, from += skip; end - from > 128; to += 128, from += 128) {
        __m256i a = _mm256_loadu_si256((const __m256i *)from), b = _mm256_loadu_si256((const __m256i *)(from + 32));
        __m256i c = _mm256_loadu_si256((const __m256i *)(from + 64)), d = _mm256_loadu_si256((const __m256i *)(from + 96));
        _mm256_store_si256((__m256i *)to, a);
        _mm256_store_si256((__m256i *)(to + 32), b);
        _mm256_store_si256((__m256i *)(to + 64), c);
        _mm256_store_si256((__m256i *)(to + 96), d);
    }
    _mm256_storeu_si256((__m256i *)(to_end - 128), t0);
    _mm256_storeu_si256((__m256i *)(to_end - 96), t1);
    _mm256_storeu_si256((__m256i *)(to_end - 64), t2);
    _mm256_storeu_si256((__m256i *)(to_end - 32), t3);
}

__attribute__((noinline, unused)) static void hv_copy_sse2(uint8_t *to, const uint8_t *from, size_t n)
{
    const uint8_t *end = from + n;
    uint8_t *to_end = to + n;
    __m128i head = _mm_loadu_si128((const __m128i *)from);
    __m128i t0 = _mm_loadu_si128((const __m128i *)(end - 64)), t1 = _mm_loadu_si128((const __m128i *)(end - 48));
    __m128i t2 = _mm_loadu_si128((const __m128i *)(end - 32)), t3 = _mm_loadu_si128((const __m128i *)(end - 16));
    size_t skip = 16 - ((uintptr_t)to & 15);
    _mm_storeu_si128((__m128i *)to, head);
    for (to += skip, from += skip; end - from > 64; to += 64, from += 64) {
        __m128i a = _mm_loadu_si128((const __m128i *)from), b = _mm_loadu_si128((const __m128i *)(from + 16));
        __m128i c = _mm_loadu_si128((const __m128i *)(from + 32)), d = _mm_loadu_si128((const __m128i *)(from + 48));
        _mm_store_si128((__m128i *)to, a);
        _mm_store_si128((__m128i *)(to + 16), b);
        _mm_store_si128((__m128i *)(to + 32), c);
        _mm_store_si128((__m128i *)(to + 48), d);
    }
    _mm_storeu_si128((__m128i *)(to_end - 64), t0);
    _mm_storeu_si128((__m128i *)(to_end - 48), t1);
    _mm_storeu_si128((__m128i *)(to_end - 32), t2);
    _mm_storeu_si128((__m128i *)(to_end - 16), t3);
}

/* __builtin_cpu_supports is a load and a test: libgcc asked the processor when the module was loaded. */
__attribute__((noinline, unused)) static void hv_copy_large(void *to, const void *from, size_t n)
{
    if (__builtin_cpu_supports("avx2"))
        hv_copy_avx2((uint8_t *)to, (const uint8_t *)from, n);
    else
        hv_copy_sse2((uint8_t *)to, (const uint8_t *)from, n);
}

/* 16 <= n <= HV_COPY_SMALL, in place: a call of memcpy costs as much as the copy. */
static inline void hv_copy_small(uint8_t *to, const uint8_t *from, size_t n)
{
    __m128i last = _mm_loadu_si128((const __m128i *)(from + n - 16));
    if (n > 32) {
        __m128i before = _mm_loadu_si128((const __m128i *)(from + n - 32));
#pragma GCC unroll 1
        for (size_t i = 0; i + 32 < n; i += 32) {
            __m128i a = _mm_loadu_si128((const __m128i *)(from + i));
            __m128i b = _mm_loadu_si128((const __m128i *)(from + i + 16));
            _mm_storeu_si128((__m128i *)(to + i), a);
            _mm_storeu_si128((__m128i *)(to + i + 16), b);
        }
        _mm_storeu_si128((__m128i *)(to + n - 32), before);
    } else {
        _mm_storeu_si128((__m128i *)to, _mm_loadu_si128((const __m128i *)from));
    }
    _mm_storeu_si128((__m128i *)(to + n - 16), last);
}

static inline void hv_copy(void *to, const void *from, size_t n)
{
    if (__builtin_expect(n - 16 <= HV_COPY_SMALL - 16, 1))
        hv_copy_small((uint8_t *)to, (const uint8_t *)from, n);
    else if (__builtin_expect(n < HV_COPY_OWN, 1))
        memcpy(to, from, n);
    else
        hv_copy_large(to, from, n);
}

#else

static inline void hv_copy(void *to, const void *from, size_t n)
{
    memcpy(to, from, n);
}

#endif
#endif
