"""What a machine is: `python facts.py` prints it as one line of JSON. edgekd reads this machine with the same
functions.

Facts say where a figure was measured, without user, host or path names; None where one can't be read. Imports the
standard library alone; Python 3.8.
"""

import importlib.util
import json
import os
import platform
import struct
import subprocess
import sys
from pathlib import Path

LIBRARIES = ("torch", "onnx", "onnxruntime", "numpy")

# the kernel's names of the features that decide between kernels of a runtime -> ours
# (Linux: arch/x86/include/asm/cpufeatures.h; Documentation/arch/arm64/elf_hwcaps.rst)
FEATURES = {
    "avx2": "avx2", "fma": "fma", "avx512f": "avx512f", "avx512_vnni": "avx512_vnni", "avx_vnni": "avx_vnni",
    "amx_int8": "amx_int8", "asimd": "neon", "neon": "neon", "asimdhp": "fp16", "asimddp": "dotprod", "i8mm": "i8mm",
    "bf16": "bf16", "sve": "sve", "sve2": "sve2",
}  # fmt: skip
ARCHITECTURES = {"x86_64": "x86-64", "amd64": "x86-64", "arm64": "aarch64"}

# (implementer, part) of MIDR_EL1 -> core (Linux: arch/arm64/include/asm/cputype.h); Kryo cores are named by what they
# are made from
CORES = {
    ("0x41", "0xd03"): "Cortex-A53", ("0x41", "0xd04"): "Cortex-A35", ("0x41", "0xd05"): "Cortex-A55",
    ("0x41", "0xd07"): "Cortex-A57", ("0x41", "0xd08"): "Cortex-A72", ("0x41", "0xd09"): "Cortex-A73",
    ("0x41", "0xd0a"): "Cortex-A75", ("0x41", "0xd0b"): "Cortex-A76", ("0x41", "0xd0c"): "Neoverse-N1",
    ("0x41", "0xd0d"): "Cortex-A77", ("0x41", "0xd40"): "Neoverse-V1", ("0x41", "0xd41"): "Cortex-A78",
    ("0x41", "0xd42"): "Cortex-A78AE", ("0x41", "0xd44"): "Cortex-X1", ("0x41", "0xd46"): "Cortex-A510",
    ("0x41", "0xd47"): "Cortex-A710", ("0x41", "0xd48"): "Cortex-X2", ("0x41", "0xd49"): "Neoverse-N2",
    ("0x41", "0xd4b"): "Cortex-A78C", ("0x41", "0xd4d"): "Cortex-A715", ("0x41", "0xd4e"): "Cortex-X3",
    ("0x41", "0xd4f"): "Neoverse-V2", ("0x41", "0xd80"): "Cortex-A520", ("0x41", "0xd81"): "Cortex-A720",
    ("0x41", "0xd82"): "Cortex-X4", ("0x51", "0x800"): "Kryo Gold (A73)", ("0x51", "0x801"): "Kryo Silver (A53)",
    ("0x51", "0x802"): "Kryo Gold (A75)", ("0x51", "0x803"): "Kryo Silver (A55)", ("0x51", "0x804"): "Kryo Gold (A76)",
    ("0x51", "0x805"): "Kryo Silver (A55)",
}  # fmt: skip


def describe(system="/", libraries=LIBRARIES):
    """Facts as JSON values: cpu, architecture, features, cores, clocks (MHz), caches and RAM (bytes), governor,
    temperature (degrees C), throttling, versions of those `libraries` that are installed; on ARM clusters {core:
    [numbers of the CPUs]}. `system`: the root that the kernel's files are read below."""
    system = Path(system)
    text = read(system / "proc/cpuinfo")
    flags = set((field(text, "flags") or field(text, "Features") or "").split())
    kinds = clusters(text)
    return {
        "cpu": _cpu(system, text, kinds),
        **({"clusters": kinds} if kinds else {}),
        "architecture": architecture(platform.machine(), struct.calcsize("P")),
        "features": sorted({ours for theirs, ours in FEATURES.items() if theirs in flags}),
        "virtual": "hypervisor" in flags,
        "cores": cores(),
        "max_mhz": max(clocks(system, "cpuinfo_max_freq"), default=None),
        "mhz": number(field(text, "cpu MHz") or "", 1.0) or max(clocks(system, "scaling_cur_freq"), default=None),
        "governor": governor(system),
        "celsius": celsius(system),
        "throttled": throttled(system),
        "caches": _caches(system),
        "ram_bytes": _ram(system),
        "system": platform.system(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {name: found for name, found in ((name, version(name)) for name in libraries) if found},
    }


def architecture(machine, pointer):
    """Of a process: a 32-bit Python on a 64-bit kernel is a 32-bit machine to all that it can load. `pointer`:
    bytes."""
    name = ARCHITECTURES.get(machine.lower(), machine.lower())
    return {"aarch64": "armv7l", "x86-64": "i686"}.get(name, name) if pointer == 4 else name


def cores():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def governor(system="/"):
    """The governor of the clocks; several, where clusters have different ones. What the drivers of x86 call `powersave`
    takes the highest clock at need, and is told as `powersave (driver)`; elsewhere it is the lowest clock (Linux:
    Documentation/admin-guide/pm/intel_pstate.rst)."""
    found = {read(path).strip() for path in _cpus(Path(system), "cpufreq/scaling_governor")} - {""}
    driver = read(Path(system) / "sys/devices/system/cpu/cpu0/cpufreq/scaling_driver").strip()
    own = driver in ("intel_pstate", "amd-pstate-epp")
    return ", ".join(f"{name} ({driver})" if own and name == "powersave" else name for name in sorted(found)) or None


def celsius(system="/"):
    """The warmest zone."""
    texts = [read(path).strip() for path in (Path(system) / "sys/class/thermal").glob("thermal_zone*/temp")]
    return max((int(text) / 1000 for text in texts if text.lstrip("-").isdigit()), default=None)


def throttled(system="/"):
    """The firmware's flags on a Raspberry Pi (documentation of `vcgencmd get_throttled`): bits 0 to 3 for now (voltage
    low, clock capped, throttled, soft temperature limit), 16 to 19 for since the start; None on other machines."""
    text = read(Path(system) / "sys/devices/platform/soc/soc:firmware/get_throttled").strip()
    if not text and "Raspberry" in read(Path(system) / "proc/device-tree/model"):
        try:
            text = subprocess.run(
                ["vcgencmd", "get_throttled"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=5
            ).stdout.decode()
        except (OSError, subprocess.SubprocessError):
            return None
    try:
        return int(text.strip().rpartition("=")[2], 16)
    except ValueError:
        return None


def clusters(text):
    """{core: numbers of its CPUs} of an ARM machine's /proc/cpuinfo; {} elsewhere."""
    found, maker, number_of = {}, "", 0
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "processor" and value.isdigit():
            number_of = int(value)
        elif key == "CPU implementer":
            maker = value.lower()
        elif key == "CPU part":
            name = CORES.get((maker, value.lower()), f"ARM {maker} {value.lower()}")
            found.setdefault(name, []).append(number_of)
    return found


def _cpu(system, text, kinds):
    """The model of the processor; on ARM the board and its kinds of cores, as `Raspberry Pi 4 Model B Rev 1.2 (4 x
    Cortex-A72)`."""
    x86 = field(text, "model name")
    counted = " + ".join(f"{len(numbers)} x {name}" for name, numbers in kinds.items())
    board = read(system / "proc/device-tree/model").strip("\x00 \n")
    if kinds:
        return f"{board} ({counted})" if board else counted
    return x86 or board or platform.processor() or "unknown"


def _cpus(system, name):
    return sorted((system / "sys/devices/system/cpu").glob("cpu[0-9]*/" + name))


def clocks(system, name):
    """MHz of every core that tells."""
    found = (number(read(path), 1e-3) for path in _cpus(Path(system), "cpufreq/" + name))
    return [clock for clock in found if clock]


def _caches(system):
    """{l1d, l1i, l2, l3: bytes} of the first core's caches."""
    found = {}
    for folder in sorted((system / "sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (read(folder / name).strip() for name in ("level", "type", "size"))
        if level.isdigit() and size[:-1].isdigit():
            found["l" + level + {"Data": "d", "Instruction": "i"}.get(kind, "")] = int(size[:-1]) * {
                "K": 1024,
                "M": 1024**2,
            }.get(size[-1], 1)
    return found


def _ram(system):
    line = field(read(system / "proc/meminfo"), "MemTotal")
    if line:
        return int(line.split()[0]) * 1024
    names = ("SC_PAGE_SIZE", "SC_PHYS_PAGES")
    return (
        os.sysconf(names[0]) * os.sysconf(names[1])
        if all(n in getattr(os, "sysconf_names", {}) for n in names)
        else None
    )


def version(name):
    """Of an installed library; None without it. A runtime may come under another name (`onnxruntime-gpu` on a Jetson):
    the module counts."""
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        module = name.replace("-", "_")
        found = importlib.util.find_spec(module) if module.isidentifier() else None
        if found is None or found.origin is None:  # (a folder of that name is no library)
            return None
    others = (d for d in metadata.distributions() if str(d.metadata["Name"]).lower().startswith(name))
    return next((d.version for d in others), "unknown")


def read(path):
    try:
        with open(str(path), encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def field(text, name):
    """The value of the first `name : value` of a text."""
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon and key.strip() == name:
            return value.strip()
    return None


def number(text, times):
    try:
        return round(float(text) * times, 3)
    except ValueError:
        return None


if __name__ == "__main__":
    sys.path[:] = sys.path[1:]  # `onnxruntime.py` beside this file is not the library
    print(json.dumps(describe()))
