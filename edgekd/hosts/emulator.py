"""Another CPU than this machine's, by qemu's user-mode emulation (https://www.qemu.org/docs/master/user/main.html): the
target's kernels on this machine, for what a file answers. What takes how long under emulation tells nothing, and is
never shown.

x86-64 runs this Python as it is; ARM needs an arm64 Python and runtime, which a set-up brings (see arm, arm_setup)."""

from __future__ import annotations

import functools
import platform
import shutil
import subprocess
import sys
from typing import Any

from edgekd import environment
from edgekd.errors import EnvironmentUnfit, Problem
from edgekd.hosts import arm
from edgekd.records import Target

PROGRAMS = ("qemu-x86_64", "qemu-x86_64-static")
X86 = ("x86_64", "amd64")  # as platform.machine() calls it


def launch(target: Target) -> dict[str, Any]:
    """How a job's processes are started as on `target`: {command, variables, identity}, for ARM also {kernels}. Raises
    EnvironmentUnfit without an emulator or a way to be it."""
    if target.architecture == "aarch64":
        return arm.launch(target)
    if target.emulated_as is None:
        hint = "qemu has no AVX512 and no AVX-VNNI; targets with `emulated_as` can be emulated"
        raise EnvironmentUnfit(Problem(f"target {target.name}", "can't be emulated", hint))
    if platform.machine().lower() not in X86:
        raise EnvironmentUnfit(
            Problem(f"target {target.name}", "can be emulated on x86-64 only: this Python is for another architecture")
        )
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        raise EnvironmentUnfit(
            Problem(
                f"target {target.name}",
                "there is no qemu-x86_64 on the PATH",
                "apt install qemu-user, or your system's package",
            )
        )
    missing = environment.lacking(target.runtime.name)
    if missing:
        raise EnvironmentUnfit(*missing)
    # OpenBLAS, which comes with numpy, guesses the core by family and model, and takes AVX for granted on some: it is
    # told
    command, variables = (
        [program, "-cpu", target.emulated_as, sys.executable],
        {"OPENBLAS_CORETYPE": target.emulated_as},
    )
    return {"command": command, "variables": variables, "identity": _said(program)}


@functools.cache
def _said(program: str) -> str:
    """The emulator's version as it says: another may answer otherwise."""
    return subprocess.run(
        [program, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    ).stdout.split("\n")[0]
