"""Instruction counts under emulation: the decoder against texts of an independent disassembler, programs whose counts
are known, qemu's own memory accesses, and an int8 file on cores with and without dot products."""

import dataclasses
import json
import math
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edgekd import results, targets
from edgekd.decisions import budget
from edgekd.errors import EnvironmentUnfit, RunFailed
from edgekd.hosts import counter, local
from edgekd.measure import folders
from edgekd.measure import instructions as counts
from edgekd.probes import Subject, static
from edgekd.records import Candidate, Measurement

ROOT = Path(__file__).resolve().parent.parent
CACHE = os.environ.get("EDGEKD_CACHE")
QEMU, CC = shutil.which("qemu-aarch64"), next(filter(None, map(shutil.which, counter.COMPILERS)), None)
needs_cc = pytest.mark.skipif(CC is None, reason="there is no C compiler")
needs_qemu = pytest.mark.skipif(CC is None or QEMU is None, reason="there is no qemu-aarch64, or no C compiler")

# word, what capstone 5.0.7 calls it, class, bytes loaded, bytes stored
WORDS = """
0f821020 fmla v0.2s, v1.2s, v2.s[0]                 multiply_add 0 0
6f8e1863 fcmla v3.4s, v3.4s, v14.s[1], #0           multiply_add 0 0
4e22cc20 fmla v0.4s, v1.4s, v2.4s                   multiply_add 0 0
4eb99421 mla v1.4s, v1.4s, v25.4s                   multiply_add 0 0
1f020c20 fmadd s0, s1, s2, s3                       multiply_add 0 0
5f8218a3 fmla s3, s5, v2.s[2]                       multiply_add 0 0
0ea28020 smlal v0.2d, v1.2s, v2.2s                  multiply_add 0 0
5ea29020 sqdmlal d0, s1, s2                         multiply_add 0 0
4e22ec20 fmlal v0.4s, v1.4h, v2.4h                  multiply_add 0 0
2e22cc20 fmlal2 v0.2s, v1.2h, v2.2h                 multiply_add 0 0
6ec2fc20 bfmlalt v0.4s, v1.8h, v2.8h                multiply_add 0 0
0fc2f020 bfmlalb v0.4s, v1.8h, v2.h[0]              multiply_add 0 0
4e829420 sdot v0.4s, v1.16b, v2.16b                 dot_product 0 0
6f82e020 udot v0.4s, v1.16b, v2.4b[0]               dot_product 0 0
4e829c20 usdot v0.4s, v1.16b, v2.16b                dot_product 0 0
4f02f020 sudot v0.4s, v1.16b, v2.4b[0]              dot_product 0 0
4e82a420 smmla v0.4s, v1.16b, v2.16b                dot_product 0 0
6e82a420 ummla v0.4s, v1.16b, v2.16b                dot_product 0 0
4e82ac20 usmmla v0.4s, v1.16b, v2.16b               dot_product 0 0
0f42f020 bfdot v0.2s, v1.4h, v2.2h[0]               dot_product 0 0
6e42fc20 bfdot v0.4s, v1.8h, v2.8h                  dot_product 0 0
6e42ec20 bfmmla v0.4s, v1.8h, v2.8h                 dot_product 0 0
4ea2c020 smull2 v0.2d, v1.4s, v2.4s                 simd 0 0
4e22dc20 fmulx v0.4s, v1.4s, v2.4s                  simd 0 0
6e22dc20 fmul v0.4s, v1.4s, v2.4s                   simd 0 0
1e220820 fmul s0, s1, s2                            simd 0 0
4ea48463 add v3.4s, v3.4s, v4.4s                    simd 0 0
4e21d820 scvtf v0.4s, v1.4s                         simd 0 0
0f08a420 sshll v0.8h, v1.8b, #0                     simd 0 0
4e0e1c20 mov v0.h[3], w1                            simd 0 0
4c402820 ld1 {v0.4s, v1.4s, v2.4s, v3.4s}, [x1]     load 64 0
4c9f2020 st1 {v0.16b, v1.16b, v2.16b, v3.16b}, [x1], #64  store 0 64
0c407820 ld1 {v0.2s}, [x1]                           load 8 0
0c008020 st2 {v0.8b, v1.8b}, [x1]                   store 0 16
f8200420 ldraa x0, [x1]                             load 8 0
4cdf7c20 ld1 {v0.2d}, [x1], #16                     load 16 0
0d404020 ld1 {v0.h}[0], [x1]                        load 2 0
0d00a420 st3 {v0.d, v1.d, v2.d}[0], [x1]            store 0 24
4d40c820 ld1r {v0.4s}, [x1]                         load 4 0
0dffe020 ld4r {v0.8b, v1.8b, v2.8b, v3.8b}, [x1], #4  load 4 0
3dc00020 ldr q0, [x1]                               load 16 0
3c9f03e0 stur q0, [sp, #-0x10]                      store 0 16
ad400820 ldp q0, q2, [x1]                           load 32 0
2d400820 ldp s0, s2, [x1]                           load 8 0
a9bf7bfd stp x29, x30, [sp, #-0x10]!                store 0 16
29400820 ldp w0, w2, [x1]                           load 8 0
69400820 ldpsw x0, x2, [x1]                         load 8 0
79400020 ldrh w0, [x1]                              load 2 0
78c00020 ldursh w0, [x1]                            load 2 0
b9800020 ldrsw x0, [x1]                             load 4 0
f8607840 ldr x0, [x2, x0, lsl #3]                   load 8 0
9c000040 ldr q0, #8                                 load 16 0
98000040 ldrsw x0, #8                               load 4 0
c8007c41 stxr w0, x1, [x2]                          store 0 8
c87f0440 ldxp x0, x1, [x2]                          load 16 0
88dffc20 ldar w0, [x1]                              load 4 0
b8bfc020 ldapr w0, [x1]                             load 4 0
b8e00041 ldaddal w0, w1, [x2]                       load 4 4
48207c82 casp x0, x1, x2, x3, [x4]                  load 16 16
d50b7421 dc zva, x1                                 store 0 64
d8000040 prfm pldl1keep, #8                         other 0 0
f9800020 prfm pldl1keep, [x1]                       other 0 0
54ffff41 b.ne                                       branch 0 0
94000001 bl                                         branch 0 0
d65f03c0 ret                                        branch 0 0
b4000020 cbz x0                                     branch 0 0
37000020 tbnz w0, #0                                branch 0 0
d503201f nop                                        other 0 0
d4000001 svc #0                                     other 0 0
d53be040 mrs x0, cntvct_el0                         other 0 0
8b020020 add x0, x1, x2                             integer 0 0
9b020c20 madd x0, x1, x2, x3                        integer 0 0
d2800063 mov x3, #3                                 integer 0 0
04a00000 add z0.s, z0.s, z0.s                       scalable 0 0
00000000 udf #0                                     other 0 0
"""

DECODER = """
#include "counter.c"
int main(void) {
    uint32_t word;
    while (fread(&word, 4, 1, stdin) == 1) {
        const Decoded d = decode(word);
        printf("%s %u %u\\n", NAMES[d.class], d.loaded, d.stored);
    }
}
"""

# The same plugin, and beside each region what qemu itself saw of memory. It doesn't see DC ZVA, and shows what atomics
# do as stores alone.
WATCHED = """
#define qemu_plugin_install counter_install
#include "counter.c"
#undef qemu_plugin_install
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *, void (*)(unsigned, uint32_t, uint64_t, void *), int,
                                      int, void *);
unsigned qemu_plugin_mem_size_shift(uint32_t);
bool qemu_plugin_mem_is_store(uint32_t);
static unsigned long long moved[2];
static void access_seen(unsigned cpu, uint32_t info, uint64_t address, void *user) {
    moved[qemu_plugin_mem_is_store(info)] += inside ? 1u << qemu_plugin_mem_size_shift(info) : 0;
}
static void block(qemu_plugin_id_t id, struct qemu_plugin_tb *tb) {
    translated(id, tb);
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(tb); i++)
        qemu_plugin_register_vcpu_mem_cb(qemu_plugin_tb_get_insn(tb, i), access_seen, 0, 3, 0);
}
static void call(qemu_plugin_id_t id, unsigned cpu, int64_t n, uint64_t a, uint64_t b, uint64_t c, uint64_t d,
                 uint64_t e, uint64_t f, uint64_t g, uint64_t h) {
    called(id, cpu, n, a, b, c, d, e, f, g, h);
    if (n == PRCTL && (uint32_t)a == MARK && !b)
        fprintf(out, "{\\"region\\": -1, \\"loaded_bytes\\": %llu, \\"stored_bytes\\": %llu}\\n", moved[0],
                moved[1]), fflush(out);
}
EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv) {
    const int failed = counter_install(id, info, argc, argv);
    qemu_plugin_register_vcpu_tb_trans_cb(id, block);
    qemu_plugin_register_vcpu_syscall_cb(id, call);
    return failed;
}
"""


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    """One cache for all tests of this file, and none of the user's."""
    monkeypatch.setenv("EDGEKD_CACHE", str(tmp_path_factory.getbasetemp() / "counter-cache"))


def compiled(folder, text, *flags):
    (folder / "made.c").write_text(text)
    subprocess.run(
        [CC, "-O1", "-std=gnu11", *flags, f"-I{counter.SOURCE.parent}", "-o", folder / "made", folder / "made.c"],
        check=True,
    )
    return folder / "made"


# ---------------------------------------------------------------- the decoder and the counter


@needs_cc
def test_words_are_of_the_class_that_their_name_says(tmp_path):
    rows = [line.split() for line in WORDS.strip().splitlines()]
    decoder = compiled(tmp_path, DECODER, "-ffunction-sections", "-Wl,--gc-sections")
    said = subprocess.run(
        [decoder], input=np.array([int(r[0], 16) for r in rows], "<u4").tobytes(), capture_output=True, check=True
    ).stdout
    assert [" ".join(r[-3:]) for r in rows] == said.decode().splitlines()


def zeros(**counted):
    return {**dict.fromkeys(counter._COUNTS, 0), **counted}


@needs_qemu
def test_a_program_is_counted_as_by_hand(tmp_path):
    # cbz x3: not taken
    words = [0x4E829420, 0x4F82E020, 0x4E22CC20, 0x1F020C20, 0xD2800063, 0xB4000043, 0xD503201F, 0xD503201F]
    (region,) = counter.run(QEMU, counter.library(QEMU), counter.program(words), tmp_path, ["-cpu", "neoverse-n1"])
    # what ends the region is inside of it: three of integers and svc
    assert region["classes"] == zeros(dot_product=2, multiply_add=2, integer=1 + 3, branch=1, other=2 + 1)
    assert (
        region["instructions"] == 12
        and region["loaded_bytes"] == region["stored_bytes"] == region["others"] == 0
        and region["region"] == 7
    )


@needs_qemu
def test_bytes_are_those_that_qemu_sees(tmp_path):
    """mov x1, sp, then one access of each kind at x1 or below, of all sizes."""
    words = [0x910003E1, 0xD1004021]  # mov x1, sp; sub x1, x1, #16
    words += [
        0x4C402820,
        0x4C002820,
        0x0D404020,
        0x4D40C820,
        0x3DC00020,
        0x3D800020,
        0xAD400820,
        0x2D400820,
        0x6D000820,
        0xA9400820,
    ]
    words += [
        0x29400820,
        0x69400820,
        0xF9400020,
        0xB9400020,
        0x79400020,
        0x39400020,
        0x39000020,
        0x78C00020,
        0xB9800020,
        0x3C9F03E0,
    ]
    words += [
        0x1C000040,
        0x9C000040,
        0x58000040,
        0x98000040,
        0x88DFFC20,
        0x889FFC20,
        0xF9800020,
        0x0D00A420,
        0xA9BF7BFD,
        0x0D40E020,
    ]
    plugin = compiled(tmp_path, WATCHED, *counter.FLAGS[2:])
    counted, seen = counter.run(QEMU, plugin, counter.program(words), tmp_path)
    assert (counted["loaded_bytes"], counted["stored_bytes"]) == (seen["loaded_bytes"], seen["stored_bytes"])
    assert counted["loaded_bytes"] > 200 and counted["stored_bytes"] > 100


# ---------------------------------------------------------------- where it can't count


def fake(folder, name, text):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


VERSION = 'if [ "$1" = --version ]; then echo "qemu-aarch64 version 0.0.$$"; exit; fi'


@needs_cc
@pytest.mark.parametrize(
    "text, message",
    [
        ("echo \"qemu-aarch64: unknown option 'plugin'\" >&2; exit 1", "unknown option 'plugin'"),
        (
            "echo 'plugin requires API version 1, but this QEMU supports only a minimum version of 2' >&2; exit 1",
            "minimum version of 2",
        ),
        ('echo "{\\"region\\": 7}" > "${2#*out=}"', "counted .*'region': 7}"),
    ],
)
def test_a_qemu_that_cannot_count_is_refused_with_what_to_install(tmp_path, monkeypatch, text, message):
    monkeypatch.setenv("EDGEKD_CACHE", str(tmp_path / "cache"))
    qemu = fake(tmp_path, "qemu-aarch64", f"{VERSION}\n{text}")
    with pytest.raises(EnvironmentUnfit, match=message) as error:
        counter.counting({"command": [qemu, "python"]}, tmp_path / "out")
    assert "apt install qemu-user" in error.value.problems[0].hint and error.value.exit_code == 4
    assert not list((tmp_path / "cache").glob("*"))  # nothing that was not tried is kept


def test_without_a_compiler_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKD_CACHE", str(tmp_path / "cache"))
    qemu = fake(tmp_path, "qemu-aarch64", VERSION)
    monkeypatch.setattr(counter, "COMPILERS", ("no-such-compiler",))
    with pytest.raises(EnvironmentUnfit, match="no C compiler") as error:
        counter.counting({"command": [qemu]}, tmp_path / "out")
    assert error.value.problems[0].hint.startswith("apt install gcc")
    monkeypatch.setattr(
        counter, "COMPILERS", (fake(tmp_path, "cc", "echo 'counter.c:1: fatal error: no stdint.h' >&2; exit 1"),)
    )
    with pytest.raises(EnvironmentUnfit, match="no stdint.h"):
        counter.counting({"command": [qemu]}, tmp_path / "out")


@pytest.mark.parametrize(
    "launch", [{}, {"command": ["qemu-x86_64", "python"]}, {"command": ["/nowhere/qemu-aarch64", "python"]}]
)
def test_nothing_but_the_emulator_of_arm64_counts(launch, tmp_path):
    with pytest.raises(EnvironmentUnfit):
        counter.counting(launch, tmp_path / "out")


@needs_qemu
def test_the_counter_is_made_once(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKD_CACHE", str(tmp_path / "a, b"))
    launch = {"command": ["qemu-aarch64", "-cpu", "cortex-a72", "python"], "variables": {"A": "1"}}
    first = counter.counting(launch, tmp_path / "o,ut")
    monkeypatch.setattr(counter, "COMPILERS", ())
    assert counter.counting(launch, tmp_path / "o,ut") == first and launch["variables"] == {"A": "1"}
    command = first["command"]
    assert (
        command[:2] == ["qemu-aarch64", "-plugin"]
        and command[3:] == ["-cpu", "cortex-a72", "python"]
        and first["variables"]["A"] == "1"
    )
    assert (
        command[2].endswith(f"{tmp_path}/o,,ut".replace(f"{tmp_path}", str(tmp_path)))
        and "/a,, b/" in command[2]
        and ",,out=" not in command[2]
    )
    path = tmp_path / "program"  # and qemu reads it so
    path.write_bytes(counter.program(counter._KNOWN))
    path.chmod(0o755)
    subprocess.run([*command[:5], str(path)], check=True)
    assert counter.read(tmp_path / "o,ut") == [counter._EXPECTED]


# ---------------------------------------------------------------- figures


def region(number, more=0, others=0):
    classes = zeros(multiply_add=100, integer=50 + more, load=30) if number > 1 else zeros(integer=10)
    instructions = sum(classes.values())
    return {
        "region": number,
        "others": others,
        "classes": classes,
        "instructions": instructions,
        "loaded_bytes": 8 + instructions,
        "stored_bytes": 8,
    }


def test_figures_by_hand():
    """Two regions of 10 without an inference, four of 180 and up: inferences of 170, 172, 171, 174."""
    found = counts.counts(
        [region(0), region(1), region(2), region(3, 2), region(4, 1), region(5, 4)], empty=2, inferences=4, target="a72"
    )
    assert found.of == (170, 172, 171, 174) and found.instructions == 171 and found.spread == 4 / 171
    assert found.classes == zeros(multiply_add=100, integer=41, load=30) and sum(found.classes.values()) == 171
    assert found.loaded_bytes == 171 and found.stored_bytes == 0
    (figure,) = found.measurements
    assert (figure.name, figure.unit, figure.value, figure.low, figure.high, figure.n) == (
        "instructions",
        "",
        171,
        170,
        174,
        4,
    )
    assert (figure.origin, figure.target, figure.threads) == (
        "emulated",
        "a72",
        1,
    ) and "58 % multiply and add" in figure.note
    assert (
        "multiply add              100   58.5 %" in str(found)
        and "dot product" not in str(found)
        and " ms" not in str(found)
    )


def test_regions_that_are_not_what_was_asked_for_are_refused():
    with pytest.raises(RunFailed, match="1 regions were counted instead of 3"):
        counts.counts([region(0)], empty=2, inferences=1)
    with pytest.raises(RunFailed, match="several threads"):
        counts.counts([region(0), region(1), region(2, others=3)], empty=2, inferences=1)


def test_a_line_that_a_kill_cut_is_left_out(tmp_path):
    (tmp_path / "out").write_text(
        '{"architecture": "aarch64", "api": 1}\n' + json.dumps(region(0)) + "\n" + json.dumps(region(1))[:40]
    )
    assert counter.read(tmp_path / "out") == [region(0)]


def test_without_a_counter_the_marks_are_nothing(tmp_path):
    student = ROOT / "benchmarks" / "cifar10" / "student.onnx"
    x = np.zeros((2, 3, 32, 32), np.float32)
    entry = {"id": "c", "subject": "s0", "pass": "count", "warmup_runs": 1, "empty": 1, "runs": 3}
    folders.build(tmp_path / "job", folders.Job({"s0": student}, x, [entry], "onnxruntime"))
    out = local.run(tmp_path / "job", 60)
    line = json.loads((out / "results.jsonl").read_text())
    assert (line["n"], line["empty"]) == (3, 1) and json.loads((out / "done.json").read_text())["failed"] == {}


# ---------------------------------------------------------------- gates


def judged(line, value, low=None, high=None, baseline=None):
    figure = Measurement("instructions", "", value, low or value, high or value, 8, None, "pi", "emulated", threads=1)
    before = (
        budget.Reference(
            (Measurement("instructions", "", baseline, baseline, baseline, 8, None, "pi", "emulated", threads=1),)
        )
        if baseline
        else None
    )
    candidate = Candidate("c", "c", 0, (), (), "onnx", None, "", (figure,))
    (check,) = budget.judge(
        budget.rules({"any": {"instructions": line}}, "pi"), candidate, target="pi", baseline=before
    )
    return check


def test_a_budget_takes_emulated_counts_where_it_says_so():
    accept = {"accept": ["emulated"]}
    assert judged({"is": "max 20 M", **accept}, 19.99e6).verdict == "pass"
    assert judged({"is": "max 20 M", **accept}, 20.01e6).verdict == "fail"
    assert judged({"is": "max 20_000 k", **accept}, 20e6).verdict == "pass"
    between = judged({"is": "max 20 M", **accept}, 20e6, 19.99e6, 20.01e6)
    assert between.verdict == "inconclusive" and "more inferences would decide" in between.reason
    assert judged({"is": "regress max 0.5 % vs baseline", **accept}, 1004, baseline=1000).verdict == "pass"
    assert judged({"is": "regress max 0.5 % vs baseline", **accept}, 1006, baseline=1000).verdict == "fail"


# of one file, 12 inputs
SMALL = (534_282, 532_440, 531_714, 531_637, 535_557, 530_332, 529_771, 529_752, 530_152, 529_774, 529_743, 530_193)


def counted(each, inputs="of seed 1"):
    """A figure as the counter's regions make it."""
    regions = [{**region(i), "instructions": n} for i, n in enumerate((0, 0, 0, *each))]
    return counts.counts(regions, empty=3, inferences=len(each), target="pi", inputs=inputs).measurements[0]


def regressed(each, before, line="regress max 0.5 % vs baseline"):
    candidate = Candidate("c", "c", 0, (), (), "onnx", None, "", (each,))
    rule = budget.rules({"any": {"instructions": line}}, "pi")
    (check,) = budget.judge(rule, candidate, target="pi", baseline=budget.Reference((before,)))
    return check


def test_counts_are_compared_input_by_input():
    """Half a million instructions, 1.1 % apart from input to input: the same file is 0 % worse, and 1 % more is
    told."""
    same = regressed(counted(SMALL), counted(SMALL))
    assert (same.verdict, same.value, same.low, same.high) == ("pass", 0, 0, 0)
    # another process, as seen under qemu
    noise = [n + more for n, more in zip(SMALL, (0, 0, 0, 380, 110, 90, 0, 0, -30, -380, 0, 0), strict=True)]
    again = regressed(counted(noise), counted(SMALL))
    assert again.verdict == "pass" and again.low <= 0 <= again.high < 0.03
    more = regressed(counted([round(1.01 * n) for n in noise]), counted(SMALL))
    assert more.verdict == "fail" and 0.95 < more.low <= more.value <= more.high < 1.05
    assert regressed(counted([n - 3000 for n in SMALL]), counted(SMALL), "drop max 100 vs baseline").value == -3000


def test_counts_of_other_inputs_or_of_an_older_edgekd_are_not_paired():
    """Then both intervals of the median count, and what is missing is said."""
    old = dataclasses.replace(counted(SMALL), each=(), pairing="")
    for before in (old, counted(SMALL, "of seed 2"), dataclasses.replace(counted(SMALL), each=(math.nan,) * 12)):
        check = regressed(counted(SMALL), before)
        assert (
            check.verdict == "inconclusive"
            and check.low < 0 < check.high
            and "the baseline has no counts of the same inputs" in check.reason
        )
    assert results.measurements(
        [{k: v for k, v in dataclasses.asdict(old).items() if k not in ("each", "pairing")}]
    ) == (old,)


def test_the_interval_of_counts_is_that_of_their_median():
    assert (counted(SMALL).low, counted(SMALL).high) == (sorted(SMALL)[2], sorted(SMALL)[9])


def test_a_budget_that_does_not_say_so_tells_what_to_write():
    assert judged("max 20 M", 1e6).verdict == "pass"  # instructions are counted under emulation and nowhere else
    right = Candidate(
        "c", "c", 0, (), (), "onnx", None, "", (Measurement("top1", "%", 90, 89, 91, 900, "test", "pi", "emulated"),)
    )
    (check,) = budget.judge(budget.rules({"any": {"top1": "min 80 %"}}, "pi"), right, target="pi")
    assert (
        check.verdict == "inconclusive"
        and 'top1 = { is = "min 80 %", accept = ["measured", "emulated"] }' in check.reason
    )
    latency = Measurement("latency_p50_ms", "ms", 1, 1, 1, 8, None, "pi", "emulated")
    candidate = Candidate("c", "c", 0, (), (), "onnx", None, "", (latency,))
    (check,) = budget.judge(budget.rules({"any": {"latency_p50_ms": "max 2 ms"}}, "pi"), candidate, target="pi")
    assert check.verdict == "inconclusive" and "to accept it" not in check.reason  # a time is never emulated


# ---------------------------------------------------------------- an int8 file on cores


@pytest.fixture
def arm():
    """{command, variables} of an emulated core, by its name."""
    from edgekd.hosts import arm as emulated
    from edgekd.hosts import emulator

    with pytest.MonkeyPatch.context() as patch:  # the set-up lies in the user's cache, the plugin in a test's
        if CACHE is None:
            patch.delenv("EDGEKD_CACHE", raising=False)
        else:
            patch.setenv("EDGEKD_CACHE", CACHE)
        if emulated.find() is None or emulated.emulator(emulated.place()) is None or CC is None:
            pytest.skip(f"needs a C compiler, and what runs files as ARM CPUs: {emulated.HINT}")
        launches = {core: emulator.launch(targets.load(core)) for core in ("cortex-a72", "cortex-a76")}
    return launches.__getitem__


def test_counts_repeat_and_follow_the_core(arm, tmp_path):
    """The delivered int8 student: a Cortex-A72 has no dot products, a Cortex-A76 has, and needs as many as there are
    multiply-accumulates / 16."""
    student, x = (
        ROOT / "benchmarks" / "cifar10" / "student.onnx",
        np.random.default_rng(0).normal(size=(8, 3, 32, 32)).astype(np.float32),
    )
    old, new, again = (
        counts.count(student, x, arm(f"cortex-{core}"), tmp_path / place)
        for core, place in (("a72", "1"), ("a76", "2"), ("a76", "3"))
    )
    assert abs(again.instructions / new.instructions - 1) < 0.001 and again.spread < 0.005
    assert old.classes["dot_product"] == 0 < old.classes["multiply_add"] and new.instructions < 0.8 * old.instructions
    macs = next(m.value for m in static.measure(Subject(file=student)) if m.name == "macs")
    assert 1 <= 16 * new.classes["dot_product"] / macs < 1.05
    assert sum(new.classes.values()) == new.instructions and new.loaded_bytes > new.stored_bytes > 0

    def broken(*_):
        raise AssertionError("what was counted is not counted again")

    assert counts.count(student, x, arm("cortex-a76"), tmp_path / "2", run=broken) == new


def test_a_file_that_does_not_run_is_told(arm, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(RunFailed, match="bad.onnx: does not run"):
        counts.count(tmp_path / "bad.onnx", np.zeros((1, 3), np.float32), arm("cortex-a72"), tmp_path / "job")
