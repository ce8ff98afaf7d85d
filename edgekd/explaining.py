"""The verb `explain`: where a run lost accuracy, stage by stage, and which layers of the chosen int8 file lose it, and why. It reads the folder of a
run and the validation data that its recipe names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekd import results, targets
from edgekd.errors import PASSED, BaselineError, Problem, UsageError
from edgekd.files import sha256
from edgekd.quantization.diagnose import Finding, diagnose, overall
from edgekd.records import Candidate, Measurement, Result
from edgekd.report.rows import figures, number

if TYPE_CHECKING:
    from edgekd.resolving import Resolved

SAMPLES = 512
KEEP = (
    "a run keeps the files of the front, the choice and the references: let [select] name a figure that the float parent is better in, "
    'such as maximize = ["top1"], and run again; finished work is reused'
)
NOTHING = "int8 loses nothing here that can be shown: no layer stands out"


@dataclass(frozen=True)
class Explained:
    """What was found per chosen candidate: `findings` {candidate's id: the layers that lose}, empty where there was nothing to look at. Prints as
    tables."""

    findings: Mapping[str, tuple[Finding, ...]]
    text: str
    exit_code: int = PASSED

    def __str__(self) -> str:
        return self.text


def explain(run: Path | str) -> Explained:
    """Explains what a run chose for each target. Raises UsageError for a folder that is no run's, or data that its recipe no longer finds,
    BaselineError where a file's digest is wrong."""
    folder = Path(run)
    if not (folder / "result.json").is_file():
        raise UsageError(Problem(str(folder), "is not the folder of a run: it has no result.json", "for example runs/digits"))
    result = results.read(folder)
    candidates, chosen = {c.id: c for c in result.candidates}, {}
    for target, found in result.targets.items():
        chosen.setdefault(found.chosen, []).append(target)
    parts, findings = [], {}
    for id, names in chosen.items():
        if id is None:
            parts += [f"{name}: nothing was chosen: {result.targets[name].reason}" for name in names]
            continue
        parts.append(f"{id}, chosen for {', '.join(names)}: accuracy on test\n{_table(lost(result, candidates[id], names[0]))}")
        parts += [text for name in names if (text := _emulated(candidates[id], name))]
        text, found = _layers(folder, result, candidates, candidates[id], names)
        parts.append(text)
        findings[id] = found
    return Explained(findings, "\n\n".join(parts))


def line(candidates: Mapping[str, Candidate], last: Candidate) -> list[Candidate]:
    """A candidate after those that it was made from, the first one (its teacher) first; the first parent where there are several."""
    found = [last]
    while found[0].parents and (before := candidates.get(found[0].parents[0])) is not None and before not in found:
        found.insert(0, before)
    return found


def lost(result: Result, last: Candidate, target: str) -> list[tuple[str, ...]]:
    """Rows of the first metric along a candidate's line, with the change at each step; the student that learned alone is beside it."""
    candidates = {c.id: c for c in result.candidates}
    way = line(candidates, last)
    alone = candidates.get(result.references.get("alone", ""))
    if alone is not None and alone not in way:
        way.insert(min(1, len(way) - 1), alone)
    rows, before = [("step", "metric", "value", "95 % interval", "change")], None
    for c in way:
        m = _metric(figures(c, target))
        if m is None:
            rows.append((c.id, "", "not measured", "", ""))
            continue
        unit = "pt" if m.unit == "%" else m.unit
        change = "" if before is None else f"{m.value - before:+.2f} {unit}"
        rows.append(
            (
                c.id,
                m.name,
                f"{number(m.value, 2)} {m.unit}",
                f"[{number(m.low, 2)}, {number(m.high, 2)}]",
                f"(beside: {change})" if c is alone else change,
            )
        )
        before = before if c is alone and before is not None else m.value
    return rows


def _metric(found: Mapping[str, Measurement]) -> Measurement | None:
    """The first metric of the test split."""
    return next((m for m in found.values() if m.split == "test"), None)


def _emulated(c: Candidate, target: str) -> str:
    """What it answers as the target's CPU, where that was emulated."""
    found = [m for m in c.measurements if m.origin == "emulated" and m.target == target]
    if not found:
        return ""
    return (
        f"as {target}, emulated\n{_table([('', 'value', 'n', ''), *((m.name, f'{number(m.value, 2)} {m.unit}', str(m.n), m.note) for m in found)])}"
    )


def _layers(folder: Path, result: Result, candidates: Mapping[str, Candidate], c: Candidate, names: Sequence[str]) -> tuple[str, tuple[Finding, ...]]:
    """The layers of an int8 file that lose."""
    if "int8" not in c.stages:
        return f"{c.id} is a float file: there is no int8 to explain", ()
    parent = candidates.get(c.parents[0]) if c.parents else None
    missing = next((x for x in (c, parent) if x is not None and (x.file is None or not (folder / x.file).is_file())), None)
    if parent is None or missing is not None:
        name = missing.id if missing is not None else "its float parent"
        return f"the layers can't be looked at: the file of {name} was not kept in models/\n  hint: {KEEP}", ()
    for x in (c, parent):
        if sha256(folder / x.file) != x.sha256:
            raise BaselineError(Problem(str(folder / x.file), "differs from its digest in result.json: not the file that was measured"))
    resolved = _resolved(folder, result)
    feed, labels = _samples(resolved)
    files = folder / parent.file, folder / c.file
    found = diagnose(*files, feed, labels, saturates=any(_saturates(name, resolved) for name in names))
    snr, same, trained = overall(*files, feed)
    count = len(next(iter(feed.values())))
    head = f"{c.id} beside {parent.id}, {count} samples of validation: {snr:.1f} dB of signal to noise"
    head += f", {100 * same:.2f} % of the answers equal" if labels is not None else ""
    if trained:
        head += "\nits weights were trained in int8: what follows is of the lattices of values only"
    if not found:
        return f"{head}\n{NOTHING}", ()
    rows = [("layer", "cause", "given back in float", "evidence", "fix")]
    rows += [(f.layer, f.cause, _given(f), f.evidence, f.fix) for f in found]
    return f"{head}\n{_table(rows)}", found


def _given(f: Finding) -> str:
    if f.lost.snr is None:
        return "not measured here"
    return f"{f.lost.snr:.1f} dB" + ("" if f.lost.points is None else f", {f.lost.points:+.2f} pt")


def _resolved(folder: Path, result: Result) -> Resolved:
    from edgekd import recipe, resolving

    file = folder / "recipe.toml"
    if not file.is_file():
        raise UsageError(Problem(str(folder), "has no recipe.toml to find the validation data by"))
    if sha256(file) != result.recipe_sha256:
        raise BaselineError(Problem(str(file), "differs from its digest in result.json: not the recipe of this run"))
    return resolving.resolve(recipe.read(file))


def _samples(resolved: Resolved) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """({input: validation samples}, class numbers or None), at most SAMPLES in a fixed shuffled order."""
    columns = resolved.data("validation")
    rows = np.random.default_rng(0).permutation(len(columns))[:SAMPLES]
    inputs = columns.inputs if isinstance(columns.inputs, Mapping) else {resolved.task.inputs[0]: columns.inputs}
    labels = columns.labels if resolved.task.classes is not None and len(resolved.task.outputs) == 1 else None
    known = labels is not None and labels.ndim == 1 and labels.dtype.kind in "iu"
    return {name: a[rows] for name, a in inputs.items()}, labels[rows] if known else None


def _saturates(name: str, resolved: Resolved) -> bool:
    """Whether int8 products saturate on a target: AVX2 and nothing newer for them."""
    target = next((t for t in resolved.targets if t.name == name), None) or targets.load(name)
    return "avx2" in target.features and not {"avx512_vnni", "avx_vnni", "amx_int8"} & set(target.features)


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
