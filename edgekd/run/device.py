"""Which device a run trains on: chosen once, kept by its folder, and refused before anything long where it is not here.

A run that goes on elsewhere keeps what is finished. Its recipe then lists its devices, and unfinished steps are made on
the last."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgekd.errors import EnvironmentUnfit, Problem
from edgekd.models.device import CPU, kind
from edgekd.run.recipe.form import DEVICE

if TYPE_CHECKING:
    from edgekd.run.plan import Plan
    from edgekd.run.resolve import Resolved
    from edgekd.store.store import Store

VARIABLE, AUTO = "EDGEKD_DEVICE", "auto"


def best() -> str:
    """The device of `auto` on this machine."""
    return next((name for name in ("cuda", "mps") if not missing(name)), CPU)


def missing(device: str) -> str:
    """Why the device can't be used here; "" if it can."""
    import torch

    if kind(device) == "cuda":
        if not torch.cuda.is_available():
            return f"torch {torch.__version__} finds no GPU" + (
                "" if torch.version.cuda else ": it is built without CUDA"
            )
        count, number = torch.cuda.device_count(), int(device.partition(":")[2] or 0)
        return "" if number < count else f"there {'are' if count > 1 else 'is'} only {count}, counted from 0"
    if kind(device) == "mps" and not torch.backends.mps.is_available():
        return f"torch {torch.__version__} finds no GPU with Metal"
    return ""


def title(device: str) -> str:
    """The device with the GPU's own name: `cuda (NVIDIA H100)`."""
    import torch

    return f"{device} ({torch.cuda.get_device_name(device)})" if kind(device) == "cuda" else device


def chosen(said: Any, problems: list[Problem]) -> tuple[str, ...]:
    """The devices of a recipe that says `said`: a name, a list of them, or None. EDGEKD_DEVICE decides where it says
    nothing or `auto`; without it, nothing is the CPU."""
    names = [said] if isinstance(said, str) else list(said or ())
    variable = os.environ.get(VARIABLE, "")
    if variable and not DEVICE.fullmatch(variable):
        problems.append(Problem(VARIABLE, f"`{variable}` is no device", "one of auto, cpu, cuda, cuda:1 or mps"))
        variable = ""
    names = [variable or name if name == AUTO else name for name in names or [variable or CPU]]
    return tuple(dict.fromkeys(best() if name == AUTO else name for name in names))


def going_on(resolved: Resolved, begun: Sequence[str], asked: bool) -> Resolved:
    """The recipe of a run that was begun on these devices: it goes on with the last, or with the one that is `asked`
    for, and keeps what is finished."""
    if not begun:
        return resolved
    last = resolved.devices[-1] if asked else begun[-1]
    return dataclasses.replace(resolved, devices=(*(d for d in begun if d != last), last))


def used(resolved: Resolved, plan: Plan) -> Resolved:
    """Without the earlier devices that none of the plan's steps was made on."""
    kinds = {step.device for step in plan.steps.values()}
    earlier = tuple(d for d in resolved.devices[:-1] if kind(d) in kinds and kind(d) != kind(resolved.device))
    return dataclasses.replace(resolved, devices=(*earlier, resolved.device))


def check(resolved: Resolved, plan: Plan, store: Store) -> None:
    """Raises EnvironmentUnfit where unfinished steps need a device, or a compiler, that this machine doesn't have."""
    from edgekd.run.steps import finished

    device, problems = resolved.device, []
    why, uncompiled = missing(device), _compiler(device)
    needing = [s for s in plan.steps.values() if s.device == kind(device) != CPU] if why else []
    compiled = [s for s in plan.steps.values() if getattr(s.part, "compile", False)] if uncompiled else []
    made = finished(plan, store) if needing or compiled else {}
    if any(step.key not in made for step in needing):
        hint = "--device cpu makes the unfinished steps there, and keeps the finished ones"
        problems.append(Problem(f"device {device}", f"is not on this machine: {why}", hint))
    labels = list(dict.fromkeys(step.label for step in compiled if step.key not in made))
    if labels:
        hint = f"{uncompiled}, or compile = false"
        problems.append(Problem(", ".join(labels), f"`compile` needs a compiler for {kind(device)}", hint))
    if problems:
        raise EnvironmentUnfit(*problems)


def _compiler(device: str) -> str:
    """How torch.compile gets what it needs for the device; "" if it is there."""
    import importlib.util

    if kind(device) == "cuda" and importlib.util.find_spec("triton") is None:
        return "install triton"
    names = [os.environ.get("CXX", ""), "g++", "clang++", "c++"]
    return "" if any(name and shutil.which(name.split()[0]) for name in names) else "install g++ (apt install g++)"


def told(resolved: Resolved, begun: Sequence[str]) -> str:
    """What is worth knowing of the device before the run; empty where nothing is."""
    device, said = resolved.device, resolved.recipe.device
    if begun and device == begun[-1] and said not in (None, AUTO, device) and isinstance(said, str):
        return f"training on {device}, as the run was begun: --device {said} makes the unfinished steps there"
    if kind(device) != CPU:
        return "" if missing(device) else f"training on {title(device)}"
    there = best() if said is None and not begun and not os.environ.get(VARIABLE) else CPU
    return "" if there == CPU else f"training on the CPU: --device {there} trains on {title(there)}"


def mixed(steps: Iterable[Mapping[str, Any]]) -> str:
    """Says which steps were made where, if trained steps of a run were made on several devices; else ""."""
    kinds: dict[str, int] = {}
    for step in steps:
        if step.get("device"):
            kinds[step["device"]] = kinds.get(step["device"], 0) + 1
    if len(kinds) < 2:
        return ""
    counts = " and ".join(f"{count} on {name}" for name, count in kinds.items())
    return f"steps were made on several devices, {counts}: made on one, their bytes may differ"
