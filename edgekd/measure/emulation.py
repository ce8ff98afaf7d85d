"""A file run as another CPU than this one, by emulation: what it answers there, how many instructions it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd import environment, targets
from edgekd.errors import EnvironmentUnfit, Problem
from edgekd.hosts import emulator
from edgekd.inputs import each, length, named
from edgekd.measure import instructions, jobs
from edgekd.records import Measurement, Target
from edgekd.samples.rows import Samples, of

if TYPE_CHECKING:
    from edgekd.progress import Silent

SECONDS = 90.0  # that a file runs under one instruction set: as many samples as fit
Launches = Mapping[str, tuple[Target, Mapping[str, Any]]]  # {name of a target: (the target, how its CPU is emulated)}


@dataclass(frozen=True)
class Answers:
    """What a file answers here and as `target`, an array or {output: array}, to the same `rows` of a split, in the same
    order. `kernels`: which the CPU can reach, as text."""

    target: str
    cpu: str
    rows: np.ndarray
    here: Any
    there: Any
    kernels: str = ""

    def pairs(self) -> list[tuple[str, np.ndarray, np.ndarray]]:
        """(output, what it is here, what it is there) of each output; "" is the only one."""
        there = named(self.there)
        return [(name, here, there[name]) for name, here in named(self.here).items()]


def devices(wanted: Sequence[Target]) -> list[Target]:
    """The targets that need emulation here: this machine does not match them, or has kernels that they don't have."""
    facts = environment.describe()
    return [t for t in wanted if t.emulated_as and (targets.matches(t, facts) or targets.surplus(t, facts))]


def launches(wanted: Sequence[Target]) -> tuple[dict[str, tuple[Target, dict[str, Any]]], list[Problem]]:
    """({name: (target, its launch)}, why the others can't be emulated: targets with the same reason in one problem)."""
    found, reasons = {}, {}
    for target in wanted:
        try:
            found[target.name] = (target, emulator.launch(target))
        except EnvironmentUnfit as error:
            for p in error.problems:
                reasons.setdefault((p.message, p.hint), []).append(target.name)
    return found, [Problem(f"target {', '.join(names)}", message, hint) for (message, hint), names in reasons.items()]


@dataclass(frozen=True)
class Emulation:
    """A file that runs as other CPUs, on the same samples in one random `order`; targets with one CPU share a run.
    `inputs` in that order."""

    path: Path
    runtime: str
    inputs: Samples
    order: np.ndarray
    ready: Launches

    def score(self, folder: Path, launch: Mapping[str, Any] | None = None) -> dict[str, np.ndarray]:
        """{output: what the file answers} here, or under `launch` to as many samples as SECONDS allow."""
        limits = {} if launch is None else {"launch": launch, "cap_s": SECONDS}
        return jobs.score(self.path, self.inputs, runtime=self.runtime, folder=folder, **limits)

    def answers(
        self,
        here: Any,
        answer: Callable[[Target, Mapping[str, Any]], Any],
        advance: Callable[[int, int, str], None],
        say: Callable[[str], None] | None = None,
    ) -> list[Answers]:
        """What the file answers as each target. `answer` gives what it answers to the first samples; `here` is what it
        answers on this machine, in the same order. A target whose run takes too long is left out, where `say` can be
        told so."""
        taken: dict[tuple, Any] = {}
        found = []
        for number, (name, (target, launch)) in enumerate(self.ready.items(), 1):
            cpu = (target.architecture, target.emulated_as)
            try:
                if cpu not in taken:
                    taken[cpu] = answer(target, launch)
            except EnvironmentUnfit as error:
                if say is None:
                    raise
                say(f"not run as {name}: {error}")
                continue
            there, kernels = taken[cpu], _kernels(target, launch)
            count = length(there)
            same = each(here, lambda array, count=count: array[:count])
            found.append(Answers(name, target.emulated_as or "", self.order[:count], same, there, kernels))
            advance(number, len(self.ready), name)
        return found

    def count(self, folder: Path, launch: Mapping[str, Any], inputs: Samples | None = None) -> tuple[Measurement, ...]:
        """The instructions of an inference, over `inputs` (default: the samples in their order)."""
        given = self.inputs if inputs is None else inputs
        return instructions.count(self.path, given, launch, folder, runtime=self.runtime).measurements

    def instructions(
        self, work: Callable[[Target, Mapping[str, Any]], Sequence[Measurement]], progress: Silent
    ) -> dict[str, tuple[Measurement, ...]]:
        """{target: instructions of an inference}, by `work` once per ARM core. Says so where nothing can count."""
        taken: dict[str, tuple[Measurement, ...]] = {}
        arm = {name: pair for name, pair in self.ready.items() if pair[0].architecture == "aarch64"}
        if not arm:
            return {}
        try:
            with progress.task("count instructions") as advance:
                for number, (name, (target, launch)) in enumerate(arm.items(), 1):
                    core = target.emulated_as or ""
                    if core not in taken:
                        taken[core] = tuple(work(target, launch))
                    advance(number, len(arm), name)
        except EnvironmentUnfit as error:
            progress.say(f"instructions are not counted: {error}")
        of = lambda target: taken.get(target.emulated_as or "", ())
        return {name: tuple(replace(m, target=name) for m in of(target)) for name, (target, _) in arm.items()}


def emulation(path: Path, runtime: str, inputs: Mapping[str, np.ndarray] | Samples, ready: Launches) -> Emulation:
    """A file with all samples of `inputs`, in a random order of seed 0."""
    samples = of(inputs)
    order = np.random.default_rng(0).permutation(len(samples))
    return Emulation(path, runtime, samples.take(order), order, ready)


def _kernels(target: Target, launch: Mapping[str, Any]) -> str:
    """Which kernels the emulated CPU has, where that is not the target's own."""
    other = target.core is not None and target.core != target.emulated_as and target.architecture == "aarch64"
    return "; ".join(filter(None, (f"same kernels as {target.core}" if other else "", launch.get("kernels", ""))))
