"""Makes what arm.py finds: an arm64 Python with the runtime, from distribution packages and wheels, and an emulator
where the PATH has none.

Everything is fetched into a folder of work beside the set-up, held to the digests of the signed lists and the index,
unpacked there, tried, and renamed. If it is interrupted, downloaded files stay, and the same call resumes. Made before,
it is verified file by file."""

from __future__ import annotations

import os
import platform
import shutil
import stat
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekd.errors import EnvironmentUnfit, Problem, RunFailed, UsageError
from edgekd.files import sealed, sha256, sync, unsealed, write_atomic
from edgekd.hosts import arm, packages
from edgekd.hosts.packages import Apt, Package
from edgekd.store.locks import lease

PLATFORMS = tuple(
    f"{name}_aarch64"
    for name in ("manylinux_2_28", "manylinux_2_27", "manylinux_2_26", "manylinux_2_17", "manylinux2014")
)
LIBRARIES = ("libc6", "libexpat1", "libffi8", "libgcc-s1", "libstdc++6", "zlib1g")
EMULATOR = "qemu-user"
# cores that are made with the set-up; others when they are first asked for
READY = ("cortex-a53", "cortex-a72", "cortex-a76")
# of packages and wheels, what neither Python nor the runtime loads
UNUSED_DEB = (
    "usr/share",
    "usr/lib/aarch64-linux-gnu/gconv",
    "usr/lib/binfmt.d",
    "usr/bin/*",
    "usr/lib/python3*/ensurepip",
    "usr/lib/python3*/idlelib",
)
UNUSED_WHEEL = (
    "onnxruntime/transformers/",
    "onnxruntime/tools/",
    "onnxruntime/quantization/",
    "onnxruntime/datasets/",
    "numpy/f2py/",
)
# starts an emulator with the libraries that came with it: they are none of the programs that it runs (see arm.command)
START = """#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
LD_LIBRARY_PATH="$here/lib" exec "$here/bin/$(basename "$0")" "$@"
"""
TRIAL = "import numpy, onnxruntime; print(onnxruntime.__version__)"


def setup(progress: Any, release: str = "/etc/os-release") -> str:
    """Makes or verifies the set-up for the runtime's version here; returns what is there, as text. Raises
    EnvironmentUnfit where this machine can't (no apt, no pip, no network), BaselineError where a file is not the one
    that was announced. `progress`: a `report.progress` reporter."""
    place = arm.place()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            Problem(str(place.parent), f"can't be made: {error.strerror}", "set EDGEKD_CACHE to another folder")
        ) from None
    with lease(place.with_suffix(".lease"), lambda: progress.say("another process is making the set-up: waiting")):
        if arm.find() is not None:
            fault = verify(place, progress)
            if fault is None:
                return f"{_told(place)}\nverified: all files are as they were made"
            progress.say(f"{fault}: the set-up is made again")
        _make(place, progress, _release(release))
    return _told(place)


def verify(place: Path, progress: Any) -> str | None:
    """What is wrong with a set-up; None where every file is the one that was made, and the runtime starts."""
    try:
        recorded = unsealed(place / "setup.json", arm.SETUP)["files"]
    except (OSError, ValueError) as error:
        return str(error)
    with progress.task("verify the files") as advance:
        for number, (name, digest) in enumerate(recorded.items(), 1):
            if not os.path.lexists(place / name):
                return f"{name} is missing"
            if _digest(place / name) != digest:
                return f"{name} has changed"
            advance(number, len(recorded), "")
    found = arm.find()
    qemu = arm.emulator(place)
    if qemu is None:
        return "there is no emulator"
    try:
        with progress.task("try the runtime"):
            _try(found, qemu, keep=False)
    except EnvironmentUnfit as error:
        return error.problems[0].message
    return None


def _make(place: Path, progress: Any, release: dict[str, str]) -> None:
    problems = packages.unfit()
    if platform.system() != "Linux":
        problems.insert(
            0,
            Problem(
                "arm-emulator",
                f"qemu's user-mode emulation runs on Linux, this is {platform.system()}",
                "use a Linux container",
            ),
        )
    if problems:
        raise EnvironmentUnfit(*problems)
    work = place.with_name(f"{place.name}.work")
    (work / "files").mkdir(parents=True, exist_ok=True)
    guest = Apt(work / "apt-arm64", "arm64")
    wanted, version, sources = _plan(work, guest, progress, release)
    progress.say(f"fetching into {place} (there, unpacked: some 150 MB)\n{_announced(wanted)}")
    with progress.task("fetch") as advance:
        for number, package in enumerate(wanted):
            advance(
                number,
                len(wanted),
                f"{package.file} {f'{package.bytes / 1e6:.1f} MB' if package.bytes else ''}".strip(),
            )
            packages.fetch(package, work / "files", sources.get(package.file, guest), version, PLATFORMS)
        advance(len(wanted), len(wanted), f"{len(wanted)} files, as announced")
    tree = work / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    with progress.task("unpack") as advance:
        for number, package in enumerate(wanted, 1):
            _unpack(package, work, tree, own=package.file in sources)
            advance(number, len(wanted), package.name)
        _trim(tree, version)
    with progress.task("try the runtime"):
        _finish(tree, version, wanted)
    shutil.rmtree(place, ignore_errors=True)
    os.replace(tree, place)
    sync(place.parent)
    shutil.rmtree(work, ignore_errors=True)


def _announced(wanted: Sequence[Package]) -> str:
    """What is to be fetched, with sizes as far as they are known."""
    rows = [f"  {p.name} {p.version}{'' if p.bytes is None else f', {p.bytes / 1e6:.2g} MB'}" for p in wanted]
    known, unknown = sum(p.bytes or 0 for p in wanted), sum(p.bytes is None for p in wanted)
    return "\n".join(
        [*rows, f"  together {known / 1e6:.0f} MB{f' and {unknown} files of unknown size' if unknown else ''}"]
    )


def _plan(work: Path, guest: Apt, progress: Any, release: dict[str, str]) -> tuple[list[Package], str, dict[str, Apt]]:
    """(files to fetch, the guest's Python, {file: apt of this machine's architecture}: the emulator's, where the PATH
    has none)."""
    own: list[Package] = []
    host = Apt(work / "apt-host", _architecture(), installed=True)
    with progress.task("read the package lists"):
        packages.update(guest, release)
        version = packages.python(guest)
        python = (f"python{version}-minimal", f"libpython{version}-minimal", f"libpython{version}-stdlib")
        wanted = packages.debs(guest, [*LIBRARIES, *python])
        if arm.emulator() is None:
            packages.update(host, release)
            own = packages.debs(host, [EMULATOR])
        wheels = packages.wheels([f"onnxruntime=={arm.runtime()}"], version, PLATFORMS, work)
    return [*own, *wanted, *wheels], version, {p.file: host for p in own}


def _unpack(package: Package, work: Path, tree: Path, own: bool) -> None:
    path = work / "files" / package.file
    if package.kind == "wheel":
        with zipfile.ZipFile(path) as archive:
            archive.extractall(
                tree / "site", [n for n in archive.namelist() if not n.startswith(UNUSED_WHEEL) and "/tests/" not in n]
            )
    elif not own:
        packages.unpack_deb(path, tree / "sysroot")
    else:  # of the emulator's packages: one program of many, and libraries
        scratch = work / "own"
        shutil.rmtree(scratch, ignore_errors=True)
        packages.unpack_deb(path, scratch)
        for part in ("qemu/lib", "qemu/bin"):
            (tree / part).mkdir(parents=True, exist_ok=True)
        for file in sorted(scratch.rglob("*")):
            if file.name in arm.PROGRAMS and "bin" in file.parts and not file.is_dir():
                shutil.copy2(file, tree / "qemu/bin" / file.name)
                (tree / "qemu" / file.name).write_text(START)
                (tree / "qemu" / file.name).chmod(0o755)
            elif (
                file.name.startswith("lib")
                and ".so" in file.name
                and file.parent.name.endswith("-linux-gnu")
                and not file.is_dir()
            ):
                shutil.copy2(file, tree / "qemu/lib" / file.name)
        shutil.rmtree(scratch)


def _trim(tree: Path, version: str) -> None:
    """Takes away what is not loaded, and gives systems with a merged /usr their /lib."""
    sysroot = tree / "sysroot"
    for pattern in UNUSED_DEB:
        for path in sorted(sysroot.glob(pattern)):
            if path.name != f"python{version}":
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    if not (sysroot / "lib").exists():
        (sysroot / "lib").symlink_to("usr/lib")


def _finish(tree: Path, version: str, wanted: Sequence[Package]) -> None:
    """Tries the runtime as every core that is made at once, and writes down what there is."""
    made = arm.Setup(tree, f"sysroot/usr/bin/python{version}", arm.runtime())
    qemu = arm.emulator(tree)
    if qemu is None:
        raise EnvironmentUnfit(
            Problem("arm-emulator", "the emulator does not start here", f"install your system's package, {EMULATOR}")
        )
    said = _try(made, qemu, keep=True)
    if said != made.runtime:
        raise RunFailed(Problem("arm-emulator", f"the runtime says that it is {said or 'nothing'}, not {made.runtime}"))
    shutil.rmtree(tree / "cores", ignore_errors=True)
    for name in [n for n in READY if n in arm.cores(qemu)]:
        arm.core(made, qemu, name)
    files = {
        str(p.relative_to(tree)): _digest(p)
        for p in sorted(tree.rglob("*"))
        if (p.is_symlink() or p.is_file()) and _counts(p, tree)
    }
    record = {
        "python": made.python,
        "runtime": made.runtime,
        "files": files,
        "packages": [f"{p.name} {p.version} {p.sha256}" for p in wanted],
    }
    write_atomic(tree / "setup.json", sealed(arm.SETUP, record))


def _try(made: arm.Setup, qemu: arm.Emulator, keep: bool) -> str:
    """The version that the runtime says it has, as the first of the cores; `keep`: with the modules' compiled code,
    which later starts need."""
    name = next((n for n in READY if n in arm.cores(qemu)), None)
    if name is None:
        raise EnvironmentUnfit(
            Problem("arm-emulator", f"qemu {qemu.version} has none of {', '.join(READY)}", "a later qemu has")
        )
    command = arm.command(made, qemu, name, arm.core(made, qemu, name).root)
    environment = {**os.environ, **arm.variables(made), "PYTHONDONTWRITEBYTECODE": "" if keep else "1"}
    done = subprocess.run(
        [*command, "-c", TRIAL],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise EnvironmentUnfit(
            Problem(
                "arm-emulator",
                f"the runtime does not start under qemu {qemu.version}: {last}",
                "another version of qemu may work",
            )
        )
    return done.stdout.strip()


def _counts(path: Path, tree: Path) -> bool:
    """Whether a file is verified. Files of cores are not: they depend on the emulator, and another one makes them
    again."""
    return path.relative_to(tree).parts[0] != "cores"


def _digest(path: Path) -> str:
    return f"-> {os.readlink(path)}" if stat.S_ISLNK(os.lstat(path).st_mode) else sha256(path)


def _architecture() -> str:
    return subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True).stdout.strip() or "amd64"


def _release(path: str) -> dict[str, str]:
    """/etc/os-release (os-release(5))."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return {}
    return {name: value.strip("\"'") for name, found, value in (line.partition("=") for line in lines) if found}


def _told(place: Path) -> str:
    found, qemu = arm.find(), arm.emulator(place)
    size = sum(p.lstat().st_size for p in place.rglob("*") if not p.is_dir())
    have = ", ".join(arm.cores(qemu)) if qemu else "none"
    return (
        f"arm-emulator: onnxruntime {found.runtime} for arm64 in {place} ({size / 1e6:.0f} MB)\n"
        f"emulator: {qemu.program if qemu else 'none'} {qemu.version if qemu else ''}\ncores: {have}"
    )
