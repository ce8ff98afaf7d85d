"""Another x86-64 CPU than this machine's, by qemu's user-mode emulation (https://www.qemu.org/docs/master/user/main.html): the target's kernels
on this machine, for what a file answers. What takes how long under emulation tells nothing, and is never shown."""

from __future__ import annotations

import shutil
import sys
from typing import Any

from edgekd.errors import EnvironmentUnfit, Problem
from edgekd.records import Target

PROGRAMS = ("qemu-x86_64", "qemu-x86_64-static")


def launch(target: Target) -> dict[str, Any]:
    """How a job's processes are started as on `target`: {command, variables}. Raises EnvironmentUnfit without an emulator or a way to be it."""
    if target.emulated_as is None:
        hint = "qemu has no AVX512 and no AVX-VNNI; targets with `emulated_as` can be emulated" if target.architecture == "x86-64" else ""
        raise EnvironmentUnfit(Problem(f"target {target.name}", "can't be emulated", hint))
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        raise EnvironmentUnfit(
            Problem(f"target {target.name}", "there is no qemu-x86_64 on the PATH", "apt install qemu-user, or your system's package")
        )
    # OpenBLAS, which comes with numpy, guesses the core by family and model, and takes AVX for granted on some: it is told
    return {"command": [program, "-cpu", target.emulated_as, sys.executable], "variables": {"OPENBLAS_CORETYPE": target.emulated_as}}
