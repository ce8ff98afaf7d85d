"""Counting instructions under qemu's emulation of arm64: the plugin (`counter.c`) is compiled on first use, tried on a
program whose counts are known, kept in the user's cache, and added to the command that starts a job's processes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekd.errors import EnvironmentUnfit, Problem
from edgekd.files import home

SOURCE = Path(__file__).with_name("counter.c")
COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O2", "-std=gnu11", "-fPIC", "-shared", "-fvisibility=hidden")
WITH_PLUGINS = "a qemu 6 to 8 that takes plugins: apt install qemu-user (of Debian 12, not qemu-user-static)"

# A program of 29 instructions in a marked region and what must be counted of it. Encodings: Arm ARM (DDI 0487), C6 and
# C7.
_BEGIN = (0x528D6C80, 0x72ACAC80, 0xD2800021, 0xD28000E2, 0xD28014E8, 0xD4000001)  # prctl(0x65646b64, 1, 7)
_END = (0x528D6C80, 0x72ACAC80, 0xD2800001, 0xD4000001)  # movz w0; movk w0; mov x1, #0; svc 0: prctl(0x65646b64, 0, 7)
_EXIT = (0xD2800000, 0xD2800BA8, 0xD4000001)  # exit(0)
_KNOWN = (
    0xD2800063,  # mov x3, #3
    0x4E22CC20,  # again: fmla v0.4s, v1.4s, v2.4s
    0x4EA48463,  # add v3.4s, v3.4s, v4.4s
    0x3C9F03E0,  # stur q0, [sp, #-16]
    0xA97F17E4,  # ldp x4, x5, [sp, #-16]
    0x385FF3E6,  # ldurb w6, [sp, #-1]
    0xF1000463,  # subs x3, x3, #1
    0x54FFFF41,  # b.ne again
    0xD503201F,  # nop
)
_COUNTS = {
    "multiply_add": 3,
    "dot_product": 0,
    "simd": 3,
    "integer": 1 + 3 + 3,
    "load": 6,
    "store": 3,
    "branch": 3,
    "scalable": 0,
    "other": 2,
}
_EXPECTED = {
    "region": 7,
    "others": 0,
    "classes": _COUNTS,
    "instructions": 27,
    "loaded_bytes": 3 * 17,
    "stored_bytes": 3 * 16,
}


def counting(launch: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """`launch` (hosts.emulator) of an arm64 target, with the counter writing to `out`: see `counter.c` for its lines,
    `read` for reading them.

    Raises EnvironmentUnfit where the emulator can't count, or nothing compiles the counter."""
    command = list(launch.get("command", ()))
    if not command or "aarch64" not in Path(command[0]).name:
        raise EnvironmentUnfit(
            Problem(
                "instructions", "are counted under qemu-aarch64 alone", "for a target with the architecture aarch64"
            )
        )
    # qemu writes a comma as two
    option = f"{library(command[0])},out={Path(out).absolute()}".replace(",", ",,").replace(",,out=", ",out=")
    # what depends on addresses or seeds should not differ from run to run
    variables = {**launch.get("variables", {}), "PYTHONHASHSEED": "0"}
    return {**launch, "command": [command[0], "-plugin", option, *command[1:]], "variables": variables}


def read(out: Path) -> list[dict[str, Any]]:
    """The regions that the counter wrote, in their order: {region, others (system calls of other threads), classes
    {class: instructions}, instructions, loaded_bytes, stored_bytes}. What a killed process left behind the last whole
    line is left out."""
    lines = out.read_bytes().split(b"\n")[:-1]
    return [line for line in map(json.loads, lines) if "region" in line]


def library(qemu: str) -> Path:
    """The compiled counter for this qemu, from the user's cache, or made. Raises EnvironmentUnfit."""
    version = _version(qemu)
    key = hashlib.sha256(SOURCE.read_bytes() + b"\0" + version.encode()).hexdigest()[:16]
    kept = _cache() / f"counter-{key}.so"
    if kept.is_file():
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".counter-") as folder:
        made = Path(folder) / "counter.so"
        _compile(made)
        found = run(qemu, made, program(_KNOWN), Path(folder))
        if found != [_EXPECTED]:
            raise EnvironmentUnfit(
                Problem(
                    version,
                    f"counted {found} of a program with {_EXPECTED}",
                    f"another version may count correctly: {WITH_PLUGINS}",
                )
            )
        os.replace(made, kept)
    return kept


def run(qemu: str, plugin: Path, elf: bytes, folder: Path, options: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The regions of a static arm64 program (the bytes of an ELF file). Raises EnvironmentUnfit where qemu refuses the
    plugin or the program."""
    path, out = folder / "program", folder / "regions.jsonl"
    path.write_bytes(elf)
    path.chmod(0o755)
    option = f"{plugin},out={out}".replace(",", ",,").replace(",,out=", ",out=")
    done = subprocess.run(
        [qemu, *options, "-plugin", option, str(path)], stdin=subprocess.DEVNULL, capture_output=True, timeout=60
    )
    if done.returncode != 0 or not out.is_file():
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or [f"ended with {done.returncode}"]
        raise EnvironmentUnfit(Problem(qemu, f"can't count instructions: {said[0]}", WITH_PLUGINS))
    return read(out)


def program(words: Sequence[int]) -> bytes:
    """A static arm64 ELF file (System V ABI, chapter 4 and 5) that runs these instructions as a marked region, number
    7, and ends."""
    code = struct.pack(f"<{len(_BEGIN) + len(words) + len(_END) + len(_EXIT)}I", *_BEGIN, *words, *_END, *_EXIT)
    base, start = 0x400000, 64 + 56
    header = struct.pack(
        "<4sBBBB8xHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, 0, 2, 183, 1, base + start, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    # one, to be read and executed
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, start + len(code), start + len(code), 0x1000)
    return header + segment + code


def _version(qemu: str) -> str:
    """`qemu-aarch64 version 7.2.22 (Debian ...)`, the first line of what it says."""
    path = shutil.which(qemu)
    if path is None:
        raise EnvironmentUnfit(Problem(qemu, "is not there", "apt install qemu-user, or your system's package"))
    done = subprocess.run([path, "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    return (done.stdout.decode("utf-8", "replace").strip().splitlines() or [path])[0]


def _compile(made: Path) -> None:
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    hint = "apt install gcc libc6-dev, or your system's packages"
    if compiler is None:
        raise EnvironmentUnfit(
            Problem("instructions", f"no C compiler is there to make their counter: {', '.join(COMPILERS)}", hint)
        )
    done = subprocess.run(
        [compiler, *FLAGS, "-o", str(made), str(SOURCE)], stdin=subprocess.DEVNULL, capture_output=True, timeout=300
    )
    if done.returncode != 0:
        said = [line for line in done.stderr.decode("utf-8", "replace").splitlines() if "error" in line] or [
            f"ended with {done.returncode}"
        ]
        raise EnvironmentUnfit(Problem(compiler, f"can't compile the counter: {said[0]}", hint))


def _cache() -> Path:
    """The user's cache folder, which the store is in too."""
    return home("XDG_CACHE_HOME", ".cache", "EDGEKD_CACHE")
