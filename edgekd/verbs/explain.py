"""The verb `explain`: where a run lost accuracy, stage by stage, and which layers of the chosen int8 file lose it, and
why; or the layers of an int8 file of any making. With `fix`, what mends it (`fixing`)."""

from __future__ import annotations

import dataclasses
import json as jsonlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgekd import results
from edgekd.decisions import gains
from edgekd.errors import FAILED, PASSED, Problem, RunFailed, UsageError, exits, plain
from edgekd.explain import fix as fixing
from edgekd.explain import inputs
from edgekd.files import toml, write_atomic
from edgekd.measure.machine import runnable
from edgekd.progress import reporter
from edgekd.quantization.diagnosis.layers import Finding, Looked, look
from edgekd.quantization.diagnosis.signal_to_noise import SIGNAL
from edgekd.records import Candidate, Measurement, Result
from edgekd.report.figures import columns
from edgekd.report.rows import figures, number
from edgekd.store.store import Store

if TYPE_CHECKING:
    from edgekd.explain.inputs import Subject
    from edgekd.progress import Silent

Split = Literal["test", "validation"]
SAMPLES = 512
NOTHING = "int8 loses nothing here that can be shown: no layer stands out"


@dataclass(frozen=True)
class Explained:
    """What was found per chosen candidate: `findings` {candidate's id: the layers that lose}, empty where there was
    nothing to look at; `fixes` what came of mending each, if that was asked. Prints as tables."""

    findings: Mapping[str, tuple[Finding, ...]]
    text: str
    fixes: tuple[fixing.Fixed, ...] = ()
    lost: Mapping[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    exit_code: int = PASSED

    def __str__(self) -> str:
        return self.text


@exits(RunFailed)
def explain(
    path: Path | str,
    *,
    plain: Path | str | None = None,
    data: Path | str | None = None,
    target: str | None = None,
    fix: bool = False,
    json: Path | str | None = None,
    quiet: bool = True,
) -> Explained:
    """Explains what a run chose for each target, or an int8 file of any making beside the float file `plain` that it
    was made of, with samples of `data` for `target`. `fix` mends it: the exit code is 1 where nothing helps.

    Raises UsageError for a folder that is no run's, files that don't belong together, or data that a recipe no longer
    finds, BaselineError where a file's digest is wrong."""
    place, progress, store = Path(path), reporter(quiet), Store() if fix else None
    try:
        with tempfile.TemporaryDirectory(prefix="edgekd-") as folder:
            if place.is_file():
                given = (None if p is None else Path(p) for p in (plain, data))
                found = _files(inputs.of_files(place, *given, target or "host", Path(folder)), store, progress)
            else:
                extra = [
                    name
                    for name, value in (("--float", plain), ("--data", data), ("--target", target))
                    if value is not None
                ]
                if extra:
                    raise UsageError(
                        *(
                            Problem(name, "is for an int8 file: a run's recipe says it", "leave it out")
                            for name in extra
                        )
                    )
                found = _run(place, store, progress)
    finally:
        progress.close()
        if store is not None:
            store.close()
    if json is not None:
        _write(json, found)
    return found


def _files(subject: Subject, store: Store | None, progress: Silent) -> Explained:
    with runnable(f"{subject.id} or {subject.parent}"):
        text, found, looked = _layers(subject, progress)
    fixes = () if store is None else (fixing.fix(subject, found, looked.order, looked.trained, store, progress),)
    return _explained({subject.id: found}, [text, *map(str, fixes)], fixes, {})


def _run(folder: Path, store: Store | None, progress: Silent) -> Explained:
    if not (folder / "result.json").is_file():
        raise UsageError(
            Problem(str(folder), "is not the folder of a run: it has no result.json", "for example runs/digits")
        )
    result = plain(results.read(folder))
    candidates, chosen = {c.id: c for c in result.candidates}, {}
    parts, findings, fixes, rows = [], {}, [], {}
    recipe = folder / "recipe.toml"
    tapped = gains.looks_inside(toml(recipe.read_text(encoding="utf-8"))) if recipe.is_file() else False
    for target, found in result.targets.items():
        id = found.chosen
        if id is None:
            parts.append(f"{target}: nothing was chosen: {found.reason}")
            id = nearest(result, target)
        elif "int8" not in candidates[id].stages:
            parts.append(f"{target}: {id} was chosen, a float file: there is no int8 to explain in it ({found.reason})")
            id = nearest(result, target) or id
        if id is not None:
            chosen.setdefault(id, []).append(target)
    # of the recipe's own line too, where the control was chosen or is nearest
    bought = gains.nothing_bought(result.candidates, tapped)
    parts += ["\n".join(bought)] if bought else []
    for id, names in chosen.items():
        split, where = _taken(result, candidates[id], names)
        rows[id] = tuple(lost(result, candidates[id], where, split))
        taken = "chosen" if all(result.targets[n].chosen == id for n in names) else "the best int8 file that was kept"
        parts.append(
            f"{id}, {taken} for {', '.join(names)}: accuracy on {_told(split, where, names)}\n{columns(rows[id])}"
        )
        parts += [text for name in names if (text := _emulated(candidates[id], name))]
        if "int8" not in candidates[id].stages:
            findings[id] = ()
            continue
        subject = inputs.of_run(folder, result, candidates[id], names)
        if isinstance(subject, str):
            parts.append(subject)
            findings[id] = ()
            continue
        text, findings[id], looked = _layers(subject, progress)
        parts.append(text)
        if store is not None:
            fixes.append(fixing.fix(subject, findings[id], looked.order, looked.trained, store, progress))
            parts.append(str(fixes[-1]))
    return _explained(findings, parts, fixes, rows)


def _explained(findings: Mapping, parts: Sequence[str], fixes: Sequence[fixing.Fixed], rows: Mapping) -> Explained:
    code = FAILED if any(f.helped is False for f in fixes) else PASSED
    return Explained(findings, "\n\n".join(parts), tuple(fixes), rows, code)


def _write(path: Path | str, found: Explained) -> None:
    record = {
        "schema": "edgekd.explain/1",
        **{k: v for k, v in dataclasses.asdict(found).items() if k not in ("text", "exit_code")},
    }
    try:
        write_atomic(path, (jsonlib.dumps(record, indent=1) + "\n").encode())
    except OSError as error:
        raise UsageError(Problem(str(path), f"can't be written: {error.strerror}")) from None


def nearest(result: Result, target: str) -> str | None:
    """The int8 candidate whose file was kept that is best in the first metric on validation, for a target that none was
    chosen for."""
    kept = {
        c.id: m
        for c in result.candidates
        if "int8" in c.stages and c.file is not None and (m := _validated(c, target)) is not None
    }
    return max(kept, key=lambda id: kept[id].value, default=None)


def _validated(c: Candidate, target: str) -> Measurement | None:
    """Its first metric there: of the target, else of the file itself where no machine stands for the target."""
    found = [m for m in c.measurements if m.split == "validation" and m.target in (target, None)]
    return min(found, key=lambda m: m.target is None, default=None)


def line(candidates: Mapping[str, Candidate], last: Candidate) -> list[Candidate]:
    """A candidate after those that it was made from, the first one (its teacher) first; the first parent where there
    are several."""
    found = [last]
    while found[0].parents and (before := candidates.get(found[0].parents[0])) is not None and before not in found:
        found.insert(0, before)
    return found


def _way(result: Result, last: Candidate) -> tuple[list[Candidate], Candidate | None]:
    """(a candidate's line, with the student that learned alone beside it; that student)."""
    candidates = {c.id: c for c in result.candidates}
    way = line(candidates, last)
    alone = candidates.get(result.references.get("alone", ""))
    if alone is not None and alone not in way:
        way.insert(min(1, len(way) - 1), alone)
    return way, alone


def _taken(result: Result, last: Candidate, names: Sequence[str]) -> tuple[Split, str]:
    """(split, target) by which most of a candidate's line has figures: of a target that is emulated, test knows the
    chosen file alone, and validation what this machine answers."""
    way = _way(result, last)[0]
    ways = [(split, name) for split in ("test", "validation") for name in names]
    # the first of those that have as many
    return max(ways, key=lambda w: sum(_metric(c, w[1], w[0]) is not None for c in way))


def _told(split: Split, where: str, names: Sequence[str]) -> str:
    if split == "validation":
        return f"validation, as the machine of the run answers: as {where} the chosen file alone was run"
    return f"test, of {where}" if len(names) > 1 else "test"


def lost(result: Result, last: Candidate, target: str, split: Split = "test") -> list[tuple[str, ...]]:
    """Rows of the first metric along a candidate's line, with the change at each step; the student that learned alone
    is beside it."""
    way, alone = _way(result, last)
    rows, before = [("step", "metric", "value", "95 % interval", "change")], None
    for c in way:
        m = _metric(c, target, split)
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
                f"(beside: {change})" if c is alone and change else change,
            )
        )
        before = before if c is alone and before is not None else m.value
    return rows


def _metric(c: Candidate, target: str, split: Split) -> Measurement | None:
    """The first metric of a split."""
    found = (
        figures(c, target).values() if split == "test" else [m for m in c.measurements if m.target in (None, target)]
    )
    return next((m for m in found if m.split == split), None)


def _emulated(c: Candidate, target: str) -> str:
    """What it answers as the target's CPU, where that was emulated."""
    found = [m for m in c.measurements if m.origin == "emulated" and m.target == target]
    if not found:
        return ""
    rows = [(m.name, f"{number(m.value, 2 if m.unit else None)} {m.unit}", str(m.n), m.note) for m in found]
    return f"as {target}, emulated\n{columns([('', 'value', 'n', ''), *rows])}"


def _layers(subject: Subject, progress: Silent) -> tuple[str, tuple[Finding, ...], Looked]:
    """The layers of an int8 file that lose."""
    few = subject.looked.first(SAMPLES)
    labels = few.labels if subject.classes else None
    files = subject.float_file, subject.int8_file
    with progress.task(f"look at the layers of {subject.id}") as advance:
        looked = look(
            *files, few.inputs, labels, saturates=subject.saturates, progress=lambda done, of: advance(done, of, "")
        )
    head = f"{plain(subject.id)} beside {plain(subject.parent)}, {len(few)} samples of {few.split}; {SIGNAL}"
    head += "".join(f"\n  {plain(a)}" for a in looked.agreements)
    if looked.trained:
        head += "\nits weights were trained in int8: what follows is of the lattices of values only"
    if not looked.findings:
        return f"{head}\n{NOTHING}", (), looked
    rows = [("layer", "cause", "given back in float", "evidence", "fix")]
    rows += [(f.layer, f.cause, _given(f), f.evidence, f.fix) for f in looked.findings]
    return f"{head}\n{columns(rows)}", looked.findings, looked


def _given(f: Finding) -> str:
    if f.lost.snr is None:
        return "not measured here"
    return f"{f.lost.snr:.1f} dB" + ("" if f.lost.points is None else f", {f.lost.points:+.2f} pt")
