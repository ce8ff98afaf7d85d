/* A plugin for qemu's user-mode emulation of arm64: what was executed inside of marked regions, by class of instruction, and the bytes that
 * were loaded and stored.
 *
 *   qemu-aarch64 -plugin counter.so,out=FILE program
 *
 * A program marks a region with a system call that no kernel knows, prctl(MARK, 1, number) at its begin and prctl(MARK, 0, number) at its end;
 * without this plugin it is an error that can be ignored. Every end of a region adds one line of JSON to FILE. FILE is emptied first, and its
 * first line tells the emulated architecture and the plugin API of qemu.
 *
 * How it counts: each translated block has one counter, which qemu adds 1 to whenever the block begins, and what the block consists of is
 * decoded once, when it is translated. Blocks end with branches and system calls, so a block that begins is executed whole; only a fault in its
 * middle breaks that rule. One thread is assumed to work inside of regions (what another does would be counted too, and additions of two can be
 * lost): every line tells how many system calls others made. A thread that wakes and goes back to sleep makes one.
 *
 * The interface is qemu's plugin API, version 1 (qemu 6.0 to 8.x, include/qemu/qemu-plugin.h); its few declarations that are needed are repeated
 * here, for distributions don't ship that header. Version 2 (qemu 9.0) removed the inline counters of version 1, and refuses to load this file.
 *
 * The decoder follows "A64 instruction set encoding" in the Arm Architecture Reference Manual (DDI 0487), chapter C4.1. */

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------ qemu's plugin API, version 1 */

typedef uint64_t qemu_plugin_id_t;
typedef struct {
    const char *target_name;
    struct { int min, cur; } version;
    bool system_emulation;
    union { struct { int smp_vcpus, max_vcpus; } system; };
} qemu_info_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum { QEMU_PLUGIN_INLINE_ADD_U64 };

size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int, void *, uint64_t);
void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                                                                   uint64_t, uint64_t, uint64_t, uint64_t));

#define EXPORT __attribute__((visibility("default")))
EXPORT int qemu_plugin_version = 1;

/* ------------------------------------------------------------ classes */

enum { MULTIPLY_ADD, DOT_PRODUCT, SIMD, INTEGER, LOAD, STORE, BRANCH, SCALABLE, OTHER, CLASSES };
static const char *const NAMES[CLASSES] = {"multiply_add", "dot_product", "simd", "integer", "load", "store", "branch", "scalable", "other"};

typedef struct { int class; uint32_t loaded, stored; } Decoded;

#define BITS(high, low) ((word >> (low)) & ((1u << ((high) - (low) + 1)) - 1))
#define BIT(at) BITS(at, at)

static Decoded access(bool load, uint32_t bytes) { return load ? (Decoded){LOAD, bytes, 0} : (Decoded){STORE, 0, bytes}; }
static Decoded both(uint32_t bytes) { return (Decoded){LOAD, bytes, bytes}; } /* reads, changes and writes at once: a load that also stores */

/* C4.1.94, "Loads and stores": word[27] = 1, word[25] = 0. Prefetches and memory tags are no access to data: OTHER. */
static Decoded memory(uint32_t word) {
    const uint32_t size = BITS(31, 30), simd = BIT(26), opc = BITS(23, 22);
    const Decoded other = {OTHER, 0, 0};
    switch (BITS(29, 27)) {
    case 1: /* word[29:27] = 001 */
        if (simd) {
            if (BIT(31))
                return other;
            if (!BIT(24)) { /* LD1..LD4, ST1..ST4 of whole registers: the opcode tells how many, word[30] whether of 16 or 8 bytes */
                static const uint8_t REGISTERS[16] = {[0] = 4, [2] = 4, [4] = 3, [6] = 3, [7] = 1, [8] = 2, [10] = 2};
                return access(BIT(22), REGISTERS[BITS(15, 12)] * (BIT(30) ? 16 : 8));
            } /* of one element per register, or LD1R..LD4R, which repeat it */
            const uint32_t kind = BITS(15, 14), elements = 2 * BIT(13) + BIT(21) + 1;
            return access(BIT(22), elements << (kind == 3 ? BITS(11, 10) : kind == 2 ? 2 + BIT(10) : kind));
        }
        if (BIT(24))
            return other;
        if (!BIT(21)) /* LDXR, STXR; LDAR, STLR */
            return access(BIT(22), 1u << size);
        if (BIT(23)) /* CAS */
            return both(1u << size);
        return BIT(31) ? access(BIT(22), 8u << BIT(30)) : both(8u << BIT(30)); /* LDXP, STXP; CASP */
    case 3:                                                                  /* 011 */
        if (BIT(24))                                                         /* LDAPUR, STLUR; not: memory tags, copies of memory */
            return simd || BIT(21) || BITS(11, 10) ? other : access(opc != 0, 1u << size);
        return !simd && size == 3 ? other : access(true, simd ? 4u << size : size == 1 ? 8 : 4); /* LDR of a literal; not PRFM */
    case 5:                                                                                      /* 101: pairs */
        return access(BIT(22), simd ? 8u << size : size == 2 || (size == 1 && !BIT(22)) ? 16 : 8);
    case 7: /* 111: one register */
        if (!BIT(24) && BIT(21) && BITS(11, 10) == 0) /* LDADD, SWP, ...; LDAPR loads only */
            return simd ? other : BITS(15, 12) == 12 ? access(true, 1u << size) : size == 3 && BIT(15) && BITS(14, 12) ? other : both(1u << size);
        if (!BIT(24) && BIT(21) && BIT(10)) /* LDRAA, LDRAB */
            return access(true, 8);
        if (simd)
            return access(BIT(22), opc & 2 ? 16 : 1u << size);
        return size == 3 && opc == 2 ? other : access(opc != 0, 1u << size); /* not PRFM */
    }
    return other;
}

/* C4.1.96, "Data processing -- scalar floating-point and Advanced SIMD": word[27:25] = 111. */
static int simd(uint32_t word) {
    const uint32_t u = BIT(29), size = BITS(23, 22);
    const bool vectors = !BIT(31) && !BIT(28), scalar = BITS(31, 30) == 1 && BIT(28); /* 0xx0111x; 01x1111x: their forms with one element */
    if (BITS(30, 29) == 0 && BITS(28, 24) == 0x1f) /* FMADD, FMSUB, FNMADD, FNMSUB */
        return MULTIPLY_ADD;
    if (!vectors && !scalar) /* FADD, FMOV, FCVT, ... */
        return SIMD;
    if (BIT(24)) { /* x01111, xx11111: by an element (word[10] = 0), or shifts by an immediate */
        if (BIT(10))
            return SIMD;
        const uint32_t opcode = BITS(15, 12);
        if (opcode < 8) /* FMLA, FMLS, MLA, MLS, SMLAL, UMLAL, SQDMLAL, FMLAL, FCMLA, ...: all that adds */
            return MULTIPLY_ADD;
        if (opcode == 14 || (opcode == 15 && !u && size != 3)) /* SDOT, UDOT; SUDOT, USDOT, BFDOT */
            return DOT_PRODUCT;
        if (opcode == 15 || (u && (opcode == 8 || opcode == 12 || opcode == 13))) /* BFMLAL, SQRDMLSH; FMLAL2, FMLSL2, SQRDMLAH */
            return MULTIPLY_ADD;
        return SIMD;
    }
    if (BIT(21) && BIT(10)) { /* three registers of the same kind: MLA, MLS; FMLA, FMLS, FMLAL2; FMLAL */
        const uint32_t opcode = BITS(15, 11);
        return opcode == 0x12 || opcode == 0x19 || (opcode == 0x1d && !u) ? MULTIPLY_ADD : SIMD;
    }
    if (BIT(21) && BITS(11, 10) == 0) { /* three registers of different widths: SMLAL, SQDMLAL, SMLSL, SQDMLSL, and the unsigned ones */
        const uint32_t opcode = BITS(15, 12);
        return opcode >= 8 && opcode <= 11 ? MULTIPLY_ADD : SIMD;
    }
    if (!BIT(21) && BIT(15) && BIT(10)) { /* three registers, extension */
        const uint32_t opcode = BITS(14, 11);
        if (opcode >= 2 && opcode <= 5) /* SDOT, UDOT, USDOT, SMMLA, UMMLA, USMMLA */
            return DOT_PRODUCT;
        if (opcode == 13 || (opcode == 15 && size == 1)) /* BFMMLA; BFDOT */
            return DOT_PRODUCT;
        return opcode < 2 || (opcode >= 8 && opcode <= 11) || opcode == 15 ? MULTIPLY_ADD : SIMD; /* SQRDMLAH, SQRDMLSH; FCMLA; BFMLAL */
    }
    if (BITS(22, 21) == 2 && BITS(15, 14) == 0 && BIT(10) && vectors) /* three of the same, half precision: FMLA, FMLS */
        return BITS(13, 11) == 1 && !u ? MULTIPLY_ADD : SIMD;
    return SIMD;
}

/* C4.1, the top level: word[28:25]. */
static Decoded decode(uint32_t word) {
    switch (BITS(28, 25)) {
    case 2: /* SVE, and with word[31] case 0 SME: how many bytes these move depends on what is in registers */
        return (Decoded){SCALABLE, 0, 0};
    case 0:
        return (Decoded){BIT(31) ? SCALABLE : OTHER, 0, 0};
    case 8: case 9: /* data processing, immediate */
    case 5: case 13: /* data processing, register */
        return (Decoded){INTEGER, 0, 0};
    case 10: case 11: /* branches, exceptions, system */
        if ((word & ~0x1fu) == 0xd50b7420) /* DC ZVA, which memset uses: 64 zero bytes on all Cortex-A cores that qemu knows */
            return (Decoded){STORE, 0, 64};
        return (Decoded){BITS(31, 24) == 0xd4 || BITS(31, 24) == 0xd5 ? OTHER : BRANCH, 0, 0};
    case 4: case 6: case 12: case 14:
        return memory(word);
    case 7: case 15:
        return (Decoded){simd(word), 0, 0};
    }
    return (Decoded){OTHER, 0, 0};
}

/* ------------------------------------------------------------ blocks and regions */

typedef struct Block {
    uint64_t begun; /* how often; qemu's code adds to it */
    uint32_t loaded, stored;
    uint16_t of[CLASSES];
    struct Block *next;
} Block;

typedef struct { uint64_t of[CLASSES], loaded, stored; } Sums;

enum { PRCTL = 167, MARK = 0x65646b64 }; /* the number of prctl on arm64; "edkd" */
static Block *blocks; /* of all translations; what was thrown away and translated again stands here twice, and adds up */
static Sums before;
static FILE *out;
static bool inside;
static unsigned marker, others; /* who marked the region; system calls of others in it */

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb) {
    Block *block = calloc(1, sizeof *block);
    if (!block)
        abort();
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(tb); i++) {
        uint32_t word;
        memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(tb, i)), sizeof word); /* little-endian, as the hosts that matter */
        const Decoded found = decode(word);
        block->of[found.class]++;
        block->loaded += found.loaded;
        block->stored += found.stored;
    }
    block->next = blocks; /* qemu translates one block at a time */
    blocks = block;
    qemu_plugin_register_vcpu_tb_exec_inline(tb, QEMU_PLUGIN_INLINE_ADD_U64, &block->begun, 1);
}

static Sums sums(void) {
    Sums all = {0};
    for (const Block *block = blocks; block; block = block->next) {
        if (!block->begun)
            continue;
        for (int class = 0; class < CLASSES; class++)
            all.of[class] += block->begun * block->of[class];
        all.loaded += block->begun * block->loaded;
        all.stored += block->begun * block->stored;
    }
    return all;
}

static void called(qemu_plugin_id_t id, unsigned cpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6,
                   uint64_t a7, uint64_t a8) {
    if (inside && cpu != marker)
        others++;
    if (number != PRCTL || (uint32_t)a1 != MARK)
        return;
    const Sums now = sums();
    if (!a2 && inside) {
        uint64_t all = 0;
        fprintf(out, "{\"region\": %llu, \"others\": %u, \"classes\": {", (unsigned long long)a3, others);
        for (int class = 0; class < CLASSES; class++) {
            const uint64_t count = now.of[class] - before.of[class];
            all += count;
            fprintf(out, "%s\"%s\": %llu", class ? ", " : "", NAMES[class], (unsigned long long)count);
        }
        fprintf(out, "}, \"instructions\": %llu, \"loaded_bytes\": %llu, \"stored_bytes\": %llu}\n", (unsigned long long)all,
                (unsigned long long)(now.loaded - before.loaded), (unsigned long long)(now.stored - before.stored));
        fflush(out);
    }
    inside = a2 != 0;
    marker = cpu;
    others = 0;
    before = now;
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv) {
    for (int i = 0; i < argc; i++)
        if (!strncmp(argv[i], "out=", 4))
            out = fopen(argv[i] + 4, "we");
    if (!out || info->system_emulation || strcmp(info->target_name, "aarch64")) {
        fprintf(stderr, "counter: needs out=FILE that can be written, and programs of aarch64 (these are of %s)\n", info->target_name);
        return 1;
    }
    fprintf(out, "{\"architecture\": \"%s\", \"api\": %d}\n", info->target_name, info->version.cur);
    fflush(out);
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
