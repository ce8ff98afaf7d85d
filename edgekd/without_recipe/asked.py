"""What a person asks for without a recipe, and the table of a recipe that follows from it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekd.components import SPEC
from edgekd.decisions import quantities
from edgekd.decisions.rules import parse
from edgekd.errors import Problem, UsageError, gathered, near

WEIGHTS = "teacher.safetensors"
AMOUNT = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*(\S*)\s*")


def is_model(given: Any) -> bool:
    """Whether what stands where a recipe may stand is the name of a model."""
    name = given.partition("@")[0] if isinstance(given, str) else ""
    return SPEC.fullmatch(name) is not None or name.endswith((".onnx", ".safetensors"))


def unfit(model: Any, data: str | None, sets: Iterable[str]) -> list[Problem]:
    """What is wrong with a command that has a model, or options of one."""
    hint = "edgekd compress package.module:model --data data.npz"
    found = []
    if model is None or not isinstance(model, str) or model.endswith(".toml"):
        found.append(
            Problem(
                "", "--data, --preprocess, --max-drop and --max are for a model: a recipe names its data itself", hint
            )
        )
    elif model.endswith(".onnx"):
        quantize = f"edgekd quantize {shlex.quote(model)} --data {shlex.quote(data or 'DATA')} --out int8.onnx"
        found.append(Problem(model, "no student can be trained from an ONNX file; int8 needs no training", quantize))
    elif model.endswith(".safetensors") and "@" not in model:
        text = "weights alone do not say what the network is"
        found.append(Problem(model, text, f"edgekd compress package.module:Net@{model} --data data.npz"))
    if data is None and not found:
        found.append(Problem("--data", "is missing: students are trained and scored by it", hint))
    if tuple(sets):
        found.append(
            Problem("--set", "changes a recipe, and there is none", "edit the recipe.toml of the run, and run it")
        )
    return found


@dataclass(frozen=True)
class Asked:
    """`model`: `package.module:name`, with `@FILE.safetensors` where its weights are in a file; `data`: an .npz file, a
    folder of images, which `preprocess` makes inputs, or a `package.module:name`.

    `max_drop`: what the first metric may lose to the model, such as `1 pt`, of a metric in other units `0.2` or `3 %`;
    None: the default of recipes. `limits` {measurement: its greatest value, with its unit}."""

    model: str
    data: str
    targets: Sequence[str] = ()
    max_drop: str | None = None
    limits: Mapping[str, str] = field(default_factory=dict)
    preprocess: str | None = None

    @property
    def name(self) -> str:
        return self.model.partition("@")[0]

    @property
    def file(self) -> Path | None:
        """The file of the model's weights, where one is given."""
        return Path(self.model.partition("@")[2]) if "@" in self.model else None

    def problems(self) -> list[Problem]:
        """What is wrong with the form of it."""
        found = []
        if not SPEC.fullmatch(self.name):
            hint = "package.module:name, or package.module:name@weights.safetensors"
            found.append(Problem(self.model, "is not the name of a model", hint))
        if self.file is not None and not self.file.is_file():
            found.append(Problem(str(self.file), "there is no such file"))
        if not SPEC.fullmatch(self.data) and not Path(self.data).exists():
            found.append(
                Problem(self.data, "there is no such file", "an .npz file, a folder of images, or package.module:name")
            )
        if self.max_drop is not None and not AMOUNT.fullmatch(self.max_drop):
            found.append(Problem("--max-drop", f"{self.max_drop!r} is not an amount", '"1 pt", "3 %", or "0.2"'))
        return found

    def head(self, weights: Path) -> dict[str, Any]:
        """The recipe without its stages and gate."""
        data = {"data": self.data} if SPEC.fullmatch(self.data) else {"path": self.data}
        data |= {} if self.preprocess is None else {"preprocess": self.preprocess}
        own = {"weights": str(weights)}
        table = {
            "task": {"use": "model_and_data", "model": self.name, **data},
            "model": {"teacher": own, "student": own},
        }
        return table | ({"targets": list(self.targets)} if self.targets else {})

    @property
    def rule(self) -> str | None:
        """The budget on the first metric, where one is given."""
        amount = AMOUNT.fullmatch(self.max_drop) if self.max_drop is not None else None
        if amount is None:
            return None
        number, unit = amount.groups()
        return " ".join([*(["regress max"] if unit == "%" else ["drop max"]), f"{number} {unit}".strip(), "vs teacher"])

    def wrong_rules(self, metric: str, units: Mapping[str, str]) -> list[Problem]:
        """What is wrong with the limits and the drop for a task whose metrics have these units; `metric`: the first."""
        known, found = {**quantities.units(), **units}, list[Problem]()
        for name, text in self.limits.items():
            place = f"--max {name}"
            if name not in known:
                found.append(Problem(place, f"no measurement is named `{name}`", near(name, known)))
            else:
                gathered(lambda name=name, text=text: parse(name, f"max {text}", units=known), found, place)  # type: ignore[misc]
        if self.rule is not None and AMOUNT.fullmatch(self.max_drop or ""):
            unit = known.get(metric, "")
            try:
                parse(metric, self.rule, units=known)
            except UsageError:
                own = "1 pt" if unit == "%" else f"0.2 {unit}".strip()
                text = f"{self.max_drop!r} does not fit {metric}, which is in {unit or 'a unit of its own'}"
                found.append(Problem("--max-drop", text, f'"{own}", or "3 %" of the given model\'s figure'))
        return found

    def gate(self, metric: str) -> dict[str, Any]:
        """The budgets of all targets. Raises UsageError where a limit and the drop are on one measurement."""
        rules: dict[str, Any] = {name: f"max {text}" for name, text in self.limits.items()}
        if self.rule is not None:
            if metric in rules:
                raise UsageError(Problem("--max", f"{metric} is what --max-drop is on", "leave one of them out"))
            # emulation gives a target's outputs where nothing runs it
            rules = {metric: {"is": self.rule, "accept": ["measured", "emulated"]}, **rules}
        return {"any": rules} if rules else {}
