/* SPDX-License-Identifier: Apache-2.0 */
/* C11 atomics on the fields that two sides of a ring share (PROTOCOL 2.11).  GCC's builtins, because the memory
 * comes from mmap and is not declared _Atomic.  Right on x86-64 and arm64, which are both little-endian. */
#ifndef HVRING_ATOMICS_H
#define HVRING_ATOMICS_H

#include <stdint.h>
#include <string.h>

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "VMBus exists on little-endian machines only"
#endif

static inline uint32_t hv_load_relaxed32(const void *p) { return __atomic_load_n((const uint32_t *)p, __ATOMIC_RELAXED); }
static inline uint32_t hv_load_acquire32(const void *p) { return __atomic_load_n((const uint32_t *)p, __ATOMIC_ACQUIRE); }
static inline uint64_t hv_load_relaxed64(const void *p) { return __atomic_load_n((const uint64_t *)p, __ATOMIC_RELAXED); }
static inline uint64_t hv_load_acquire64(const void *p) { return __atomic_load_n((const uint64_t *)p, __ATOMIC_ACQUIRE); }
/* Not atomic: for what is copied and never looked at twice; the compiler may drop or delay it. */
static inline uint64_t hv_load64(const void *p) { uint64_t v; memcpy(&v, p, 8); return v; }
static inline void hv_store_relaxed32(void *p, uint32_t v) { __atomic_store_n((uint32_t *)p, v, __ATOMIC_RELAXED); }
static inline void hv_store_release32(void *p, uint32_t v) { __atomic_store_n((uint32_t *)p, v, __ATOMIC_RELEASE); }
static inline void hv_store64(void *p, uint64_t v) { __atomic_store_n((uint64_t *)p, v, __ATOMIC_RELAXED); }

/* Does `index` lie nearer before `behind` than `other` does, in a ring of `size`?  A function of its own, because the
 * compiler would rather compute it always than branch around it. */
__attribute__((noinline, unused)) static int hv_nearer(uint32_t index, uint32_t other, uint32_t behind, uint32_t size)
{
    uint32_t to_index = index >= behind ? index - behind : index + size - behind;
    uint32_t to_other = other >= behind ? other - behind : other + size - behind;
    return to_index < to_other;
}

/* The condition, and a word to the compiler that it seldom holds. */
#define hv_unlikely(condition) __builtin_expect(!!(condition), 0)

/* Orders an earlier store before a later load, the one thing that x86 does not do by itself.  A locked add on the
 * stack is several times cheaper there than mfence. */
static inline void hv_fence(void)
{
#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__)
    __asm__ __volatile__("lock; addl $0,-4(%%rsp)" ::: "memory", "cc");
#else
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}

static inline uint32_t hv_or32(void *p, uint32_t bits) { return __atomic_fetch_or((uint32_t *)p, bits, __ATOMIC_SEQ_CST); }

#endif
