"""ARM cores under emulation: the set-up that `edgekd doctor --setup arm-emulator` made (see arm_setup), and how a
process is started as a core.

    ROOT/emulators/arm64-onnxruntime-VERSION/
        setup.json        digests of everything below but cores/, versions of what it is made of
        sysroot/          the arm64 Python and the libraries that it and the runtime load
        site/             the runtime and numpy for arm64
        qemu/             an emulator with its libraries, where the PATH had none
        cores/NAME-QEMU/  what a guest sees as /: links into sysroot/, and a /proc/cpuinfo of this core;
                          core.json: what the core says of itself

ROOT is EDGEKD_CACHE, else `edgekd` in the user's cache. A core is what the emulator makes of qemu's `-cpu`: the kernels
of a runtime are chosen by the capabilities that the guest is told (getauxval), and by /proc/cpuinfo, which a guest
would otherwise read of this machine."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from edgekd import files
from edgekd.environment import FEATURES, needs
from edgekd.errors import EnvironmentUnfit, Problem
from edgekd.files import sealed, unsealed
from edgekd.records import Target

PROGRAMS = ("qemu-aarch64", "qemu-aarch64-static")
SETUP, CORE = "edgekd.emulator/1", "edgekd.core/1"
HINT = "edgekd doctor --setup arm-emulator"
HAS = ("onnxruntime", "numpy")  # libraries for files, in every set-up
NO_DEVICE = ("max",)  # every feature that the emulator knows: no core that anybody has

# the kernel's names of the bits of AT_HWCAP and AT_HWCAP2, from bit 0 (Linux, arch/arm64/include/uapi/asm/hwcap.h and
# kernel/cpuinfo.c)
HWCAP = (
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc dcpop sha3 sm3 "
    "sm4 asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs sb paca pacg"
)
HWCAP2 = (
    "dcpodp sve2 sveaes svepmull svebitperm svesha3 svesm4 flagm2 frint svei8mm svef32mm svef64mm svebf16 i8mm bf16 "
    "dgh rng bti mte ecv afp rpres mte3 sme smei16i64 smef64f64 smei8i32 smef16f32 smeb16f32 smef32f32 smefa64 wfxt"
)

# what a guest says of its core: the two capability words, and the main ID register (`mrs x0, midr_el1; ret`), which
# Linux lets programs read
_ASK = """
import ctypes, json, mmap
libc = ctypes.CDLL(None)
libc.getauxval.restype, libc.getauxval.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
page = mmap.mmap(-1, mmap.PAGESIZE, prot=7)
page.write(bytes.fromhex("000038d5c0035fd6"))
midr = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
print(json.dumps({"hwcap": libc.getauxval(16), "hwcap2": libc.getauxval(26), "midr": midr()}))
"""


@dataclass(frozen=True)
class Setup:
    """A finished set-up: its folder, the guest's Python (relative to it), the runtime's version."""

    folder: Path
    python: str
    runtime: str


@dataclass(frozen=True)
class Emulator:
    """qemu's program for aarch64, and its version as it says."""

    program: str
    version: str


@dataclass(frozen=True)
class Core:
    """A core as a guest sees it: `root` for qemu's -L, `flags` in the kernel's words, `features` in ours, the main ID
    register."""

    name: str
    root: Path
    flags: tuple[str, ...]
    features: tuple[str, ...]
    midr: int


def home() -> Path:
    """The folder of all set-ups."""
    return files.home("XDG_CACHE_HOME", ".cache", "EDGEKD_CACHE") / "emulators"


def runtime() -> str:
    """The version of onnxruntime here, which a set-up has too: what differs between here and there is the kernels
    alone."""
    return metadata.version("onnxruntime")


def place() -> Path:
    return home() / f"arm64-onnxruntime-{runtime()}"


def find() -> Setup | None:
    """The set-up for the runtime's version here, if it was made (not verified: arm_setup does)."""
    try:
        record = unsealed(place() / "setup.json", SETUP)
    except (OSError, ValueError):
        return None
    return Setup(place(), record["python"], record["runtime"])


def emulator(folder: Path | None = None) -> Emulator | None:
    """The emulator of the PATH, else the one in a set-up's folder; None where there is neither, or it doesn't start."""
    own = [str(folder / "qemu" / p) for p in PROGRAMS if (folder / "qemu" / p).is_file()] if folder else []
    for program in [*filter(None, map(shutil.which, PROGRAMS)), *own]:
        try:
            said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            continue
        version = re.search(r"version (\d[\w.+~-]*)", said.stdout)
        if said.returncode == 0 and version:
            return Emulator(program, version[1])
    return None


def cores(qemu: Emulator) -> list[str]:
    """The ARM cores that an emulator can be."""
    said = subprocess.run([qemu.program, "-cpu", "help"], capture_output=True, text=True, timeout=60)
    return [name for name in re.findall(r"^\s+(\S+)", said.stdout, re.M) if name not in NO_DEVICE]


def core(setup: Setup, qemu: Emulator, name: str) -> Core:
    """The facts of a core, read once under this emulator. Raises EnvironmentUnfit if the emulator does not have it."""
    folder = setup.folder / "cores" / f"{name}-{qemu.version}"
    try:
        record = unsealed(folder / "core.json", CORE)
    except (OSError, ValueError):
        known = cores(qemu)
        if name not in known:
            problem = Problem(
                name,
                f"qemu {qemu.version} has no such ARM core",
                f"it has {', '.join(known)}; later versions have more",
            )
            raise EnvironmentUnfit(problem) from None
        record = _ask(setup, qemu, name)
        try:
            _show(setup, folder, record)
        except OSError as error:
            raise EnvironmentUnfit(
                Problem(name, f"{folder} can't be written: {error.strerror}", "set EDGEKD_CACHE to another folder")
            ) from None
    flags = tuple(flags_of(record["hwcap"], record["hwcap2"]))
    return Core(
        name,
        folder,
        flags,
        tuple(FEATURES[f] for f in flags if f in FEATURES and FEATURES[f] != "neon" or f == "asimd"),
        record["midr"],
    )


def command(setup: Setup, qemu: Emulator, name: str, root: Path) -> list[str]:
    """How the guest's Python is started as a core; the host's libraries are none of the guest's."""
    guest = ["-L", str(root), str(setup.folder / setup.python), "-s"]
    return [qemu.program, "-cpu", name, "-U", "LD_LIBRARY_PATH", "-U", "LD_PRELOAD", *guest]


def variables(setup: Setup) -> dict[str, str]:
    """OpenBLAS, which comes with numpy, starts a thread per core of the host otherwise."""
    return {"PYTHONPATH": str(setup.folder / "site"), "PYTHONHOME": "", "OPENBLAS_NUM_THREADS": "1"}


def launch(target: Target) -> dict[str, Any]:
    """How a job's processes are started as on `target`: {command, variables, kernels}. Raises EnvironmentUnfit without
    the set-up."""
    where = f"target {target.name}"
    if target.emulated_as is None or target.emulated_as in NO_DEVICE:
        said = (
            "can't be emulated"
            if target.emulated_as is None
            else f"is emulated as `{target.emulated_as}`, which is not a device's core"
        )
        raise EnvironmentUnfit(
            Problem(where, said, "targets whose `emulated_as` names a core that qemu has can be emulated")
        )
    setup = find()
    qemu = emulator(setup.folder if setup else None)
    if setup is None or qemu is None:
        lacking = "there is no arm64 runtime" if setup is None else "there is no qemu-aarch64"
        raise EnvironmentUnfit(Problem(where, f"{lacking} to emulate it with", HINT))
    missing = [need for need in needs(target.runtime.name) if need not in HAS]
    if missing:
        said = f"the arm64 set-up has no {' and no '.join(missing)}, which {target.runtime.name} needs"
        raise EnvironmentUnfit(Problem(where, said, "run it on the device: --on ssh://user@host"))
    try:
        found = core(setup, qemu, target.emulated_as)
    except EnvironmentUnfit as error:
        raise EnvironmentUnfit(
            *(Problem(where, f"is emulated as {p.place}, and {p.message}", p.hint) for p in error.problems)
        ) from None
    identity = f"qemu {qemu.version}, onnxruntime {setup.runtime} arm64"
    return {
        "command": command(setup, qemu, found.name, found.root),
        "variables": variables(setup),
        "identity": identity,
        "kernels": kernels(found.features),
    }


def facts() -> dict[str, str]:
    """{name: what there is}, for people."""
    found = find()
    qemu = emulator(found.folder if found else None)
    if found is None:
        return {"arm-emulator": f"not set up ({HINT})"}
    if qemu is None:
        return {"arm-emulator": f"no qemu-aarch64 ({HINT})"}
    return {"arm-emulator": f"qemu {qemu.version}, onnxruntime {found.runtime}, cores {', '.join(cores(qemu))}"}


def kernels(features: tuple[str, ...]) -> str:
    """Which integer kernels of a runtime the core can reach, by what the guest is told of it."""
    has = lambda feature: "yes" if feature in features else "no"
    return f"dot product: {has('dotprod')}, i8mm: {has('i8mm')}"


def flags_of(hwcap: int, hwcap2: int) -> list[str]:
    """The words of the two capability words, as the kernel writes them into /proc/cpuinfo."""
    return [
        name
        for names, word in ((HWCAP, hwcap), (HWCAP2, hwcap2))
        for bit, name in enumerate(names.split())
        if word >> bit & 1
    ]


def cpuinfo(flags: list[str], midr: int) -> str:
    """A /proc/cpuinfo of one core (Linux, arch/arm64/kernel/cpuinfo.c; the fields of the main ID register: Arm
    Architecture Reference Manual, MIDR_EL1)."""
    rows = {
        "processor": "0",
        "BogoMIPS": "108.00",
        "Features": " ".join(flags),
        "CPU implementer": f"0x{midr >> 24 & 0xFF:02x}",
        "CPU architecture": "8",
        "CPU variant": f"0x{midr >> 20 & 0xF:x}",
        "CPU part": f"0x{midr >> 4 & 0xFFF:03x}",
        "CPU revision": f"{midr & 0xF}",
    }
    return "".join(f"{name}\t: {value}\n" for name, value in rows.items()) + "\n"


def _ask(setup: Setup, qemu: Emulator, name: str) -> dict[str, int]:
    command_ = [*command(setup, qemu, name, setup.folder / "sysroot"), "-c", _ASK]
    environment = {**os.environ, **variables(setup)}
    try:
        done = subprocess.run(command_, env=environment, capture_output=True, text=True, timeout=120)
        return json.loads(done.stdout)
    except (ValueError, OSError, subprocess.TimeoutExpired):
        raise EnvironmentUnfit(Problem(name, f"qemu {qemu.version} does not run the arm64 Python", HINT)) from None


def _show(setup: Setup, folder: Path, record: Mapping[str, int]) -> None:
    """Writes what a guest on this core sees as /. The folder appears whole."""
    part = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    (part / "proc").mkdir(parents=True)
    for inner in (setup.folder / "sysroot").iterdir():
        (part / inner.name).symlink_to(Path("../../sysroot") / inner.name)
    (part / "proc/cpuinfo").write_text(cpuinfo(flags_of(record["hwcap"], record["hwcap2"]), record["midr"]))
    (part / "core.json").write_bytes(sealed(CORE, record))
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # another process may have been faster
        os.replace(part, folder)
    shutil.rmtree(part, ignore_errors=True)
