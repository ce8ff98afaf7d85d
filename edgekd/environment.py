"""What this machine is: facts that tell where a figure was measured, without user, host or path names."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "onnx", "onnxruntime", "numpy")
VOLATILE = ("mhz",)

# the kernel's names of the features that decide between kernels of a runtime -> ours
FEATURES = {
    "avx2": "avx2", "fma": "fma", "avx512f": "avx512f", "avx512_vnni": "avx512_vnni", "avx_vnni": "avx_vnni", "amx_int8": "amx_int8",
    "asimd": "neon", "neon": "neon", "asimdhp": "fp16", "asimddp": "dotprod", "i8mm": "i8mm", "bf16": "bf16", "sve": "sve", "sve2": "sve2",
}  # fmt: skip
_ARCHITECTURES = {"x86_64": "x86-64", "amd64": "x86-64", "arm64": "aarch64"}
_SYSTEM = Path("/")


def describe() -> dict[str, Any]:
    """Facts of this machine as JSON values: cpu, architecture, features, cores, clocks (MHz), caches and RAM (bytes), governor, versions.

    None where a fact can't be read. `mhz` (now) changes from call to call; everything else is the machine's."""
    text = _read("proc/cpuinfo")
    flags = set((_field(text, "flags") or _field(text, "Features") or "").split())
    machine = platform.machine().lower()
    return {
        "cpu": _cpu(text),
        "architecture": _ARCHITECTURES.get(machine, machine),
        "features": sorted({ours for theirs, ours in FEATURES.items() if theirs in flags}),
        "virtual": "hypervisor" in flags,
        "cores": cores(),
        "max_mhz": _number(_read("sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq"), 1e-3),
        "mhz": _number(_field(text, "cpu MHz") or "", 1.0),
        "governor": _read("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip() or None,
        "caches": _caches(),
        "ram_bytes": _ram(),
        "system": platform.system(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {name: version for name in LIBRARIES if (version := _version(name))},
    }


def environment_id(facts: Mapping[str, Any]) -> str:
    """Twelve hex digits that are the same for the same kind of machine with the same software."""
    steady = {name: value for name, value in facts.items() if name not in VOLATILE}
    if steady.get("ram_bytes"):
        steady["ram_bytes"] = round(steady["ram_bytes"] / 2**30)  # what the firmware keeps for itself differs from boot to boot
    return hashlib.sha256(json.dumps(steady, sort_keys=True).encode()).hexdigest()[:12]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu(text: str) -> str:
    model = _read("proc/device-tree/model").strip("\x00 \n")
    part = " ".join(v for v in (_field(text, "CPU implementer"), _field(text, "CPU part")) if v)
    return _field(text, "model name") or model or (f"ARM {part}" if part else platform.processor() or "unknown")


def _caches() -> dict[str, int]:
    """{l1d, l1i, l2, l3: bytes} of one core's caches."""
    found = {}
    for folder in sorted((_SYSTEM / "sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((folder / name).read_text().strip() if (folder / name).is_file() else "" for name in ("level", "type", "size"))
        if level.isdigit() and size[:-1].isdigit():
            found[f"l{level}" + {"Data": "d", "Instruction": "i"}.get(kind, "")] = int(size[:-1]) * {"K": 1024, "M": 1024**2}.get(size[-1], 1)
    return found


def _ram() -> int | None:
    line = _field(_read("proc/meminfo"), "MemTotal")
    if line:
        return int(line.split()[0]) * 1024
    names = ("SC_PAGE_SIZE", "SC_PHYS_PAGES")
    return os.sysconf(names[0]) * os.sysconf(names[1]) if all(n in getattr(os, "sysconf_names", {}) for n in names) else None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _read(path: str) -> str:
    try:
        return (_SYSTEM / path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _field(text: str, name: str) -> str | None:
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon and key.strip() == name:
            return value.strip()
    return None


def _number(text: str, times: float) -> float | None:
    try:
        return round(float(text) * times, 3)
    except ValueError:
        return None


def forget_peak() -> None:
    """Begins to count this process's peak memory anew, where the system can (Linux: proc(5), clear_refs)."""
    with contextlib.suppress(OSError):
        (_SYSTEM / "proc/self/clear_refs").write_text("5")


def peak_rss() -> int | None:
    """Bytes that this process had in memory at most since `forget_peak`; None where the system doesn't tell."""
    line = _field(_read("proc/self/status"), "VmHWM")
    return 1024 * int(line.split()[0]) if line else None
