"""The verb `explain`: where a run lost accuracy, stage by stage, and which layers of the chosen int8 file lose it, and
why; or the layers of an int8 file of any making. With `fix`, the settings that fix it (`explain/fix.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import click

from edgekd.errors import FAILED, PASSED, Problem, RunFailed, UsageError, exits, plain
from edgekd.store.scratch import scratch
from edgekd.verbs import _options

if TYPE_CHECKING:
    from edgekd.explain.fix import Fixed
    from edgekd.explain.inputs import Subject
    from edgekd.progress import Silent
    from edgekd.quantization.diagnosis.layers import Finding
    from edgekd.store.store import Store


@click.command()
@click.argument("path", type=click.Path())
@click.option(
    "--fix", is_flag=True, help="Fix it: try what could help, keep the cheapest fix in fixed/, and measure it."
)
@click.option("--float", "plain", type=click.Path(), help="For an int8 file: the float file that it was made of.")
@_options.samples(
    "For an int8 file: an .npz with `inputs` and optionally `labels`, or a folder with one .npz per sample, of images "
    "or of .wav files."
)
@click.option("--target", metavar="T", help="For an int8 file: a target's name or file [default: host].")
@_options.json_file("Write what was found as JSON.")
@_options.quiet
def command(path, **settings):
    """Say where a RUN lost accuracy: stage by stage, then which layers of the chosen int8 file lose it, why, and what
    would help.

    PATH is the folder of a run, or an int8 file of any making with --float and --data. With --fix the exit code is 1
    where nothing helps.
    """
    return _options.finish(explain(path, **settings))


@dataclass(frozen=True)
class Explained:
    """What was found per chosen candidate: `findings` {candidate's id: the layers that lose}, empty where there was
    nothing to look at; `fixes` the result of fixing each, if that was requested. Prints as tables."""

    findings: Mapping[str, tuple[Finding, ...]]
    text: str
    fixes: tuple[Fixed, ...] = ()
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
    axes: Mapping[str, int | None] = MappingProxyType({}),
    preprocess: Path | str | None = None,
    states: Mapping[str, str] = MappingProxyType({}),
    target: str | None = None,
    fix: bool = False,
    json: Path | str | None = None,
    quiet: bool = True,
) -> Explained:
    """Explains what a run chose for each target, or an int8 file of any making beside the float file `plain` that it
    was made of, with samples of `data` for `target` (`axes`, `preprocess`, `states`: as in `quantize`). `fix` tries
    fixes: the exit code is 1 where none helps.

    Raises UsageError for a folder that is not a run's, files that don't belong together, or data that a recipe no
    longer finds, BaselineError where a file's digest is wrong."""

    from edgekd.explain import inputs
    from edgekd.files import write_found
    from edgekd.progress import reporter
    from edgekd.samples.source import Source, spared
    from edgekd.store.store import Store

    source = Source(data, axes, preprocess, states)
    run = {"of the run": Path(path) / "result.json", "the recipe of the run": Path(path) / "recipe.toml"}
    spared(json, [path, *([] if plain is None else [plain])], source, run)
    place, progress, store = Path(path), reporter(quiet), Store() if fix else None
    try:
        with scratch() as folder:
            if place.is_file():
                float_file = None if plain is None else Path(plain)
                with progress.task("open both files"):
                    subject = inputs.of_files(place, float_file, source, target or "host", Path(folder))
                found = _files(subject, store, progress)
            else:
                extra = [
                    name
                    for name, value in (
                        ("--float", plain),
                        ("--data", data),
                        ("--target", target),
                        ("--axis", axes),
                        ("--preprocess", preprocess),
                        ("--state", states),
                    )
                    if value not in (None, {})
                ]
                if extra and not place.exists():
                    raise UsageError(Problem(str(place), "there is no such file", "the int8 file, or a run's folder"))
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
    write_found(json, "edgekd.explain/1", found, "text", "exit_code")
    return found


def _files(subject: Subject, store: Store | None, progress: Silent) -> Explained:
    from edgekd.explain import fix, layers
    from edgekd.measure.machine import runnable

    with runnable(f"{subject.id} or {subject.parent}"):
        text, found, looked = layers.found(subject, progress)
    fixes = () if store is None else (fix.fix(subject, looked.findings, looked.order, looked.trained, store, progress),)
    return _explained({subject.id: found}, [text, *map(str, fixes)], fixes, {})


def _run(folder: Path, store: Store | None, progress: Silent) -> Explained:
    from edgekd import results
    from edgekd.decisions import gains
    from edgekd.explain import accuracy, fix, inputs, layers
    from edgekd.files import toml
    from edgekd.report.tables import aligned

    if not (folder / "result.json").is_file():
        raise UsageError(
            Problem(str(folder), "is not the folder of a run: it has no result.json", "for example runs/digits")
        )
    result = plain(results.read(folder))
    candidates, chosen = {c.id: c for c in result.candidates}, {}
    parts, findings, fixes, rows = [], {}, [], {}
    recipe = folder / "recipe.toml"
    tapped = gains.taps_layers(toml(recipe.read_text(encoding="utf-8"))) if recipe.is_file() else False
    for target, found in result.targets.items():
        id = found.chosen
        if id is None:
            parts.append(f"{target}: nothing was chosen: {found.reason}")
            id = accuracy.nearest(result, target)
        elif "int8" not in candidates[id].stages:
            parts.append(f"{target}: {id} was chosen, a float file: there is no int8 to explain in it ({found.reason})")
            id = accuracy.nearest(result, target) or id
        if id is not None:
            chosen.setdefault(id, []).append(target)
    # of the recipe's own line too, where the control was chosen or is nearest
    bought = gains.without_gain(result.candidates, tapped)
    parts += ["\n".join(bought)] if bought else []
    for id, names in chosen.items():
        split, where = accuracy.split_of(result, candidates[id], names)
        rows[id] = tuple(accuracy.lost(result, candidates[id], where, split))
        taken = "chosen" if all(result.targets[n].chosen == id for n in names) else "the best int8 file that was kept"
        measured = accuracy.described(split, where, names)
        parts.append(f"{id}, {taken} for {', '.join(names)}: accuracy on {measured}\n{aligned(rows[id])}")
        parts += [text for name in names if (text := accuracy.emulated(candidates[id], name))]
        if "int8" not in candidates[id].stages:
            findings[id] = ()
            continue
        subject = inputs.of_run(folder, result, candidates[id], names)
        if isinstance(subject, str):
            parts.append(subject)
            findings[id] = ()
            continue
        text, findings[id], looked = layers.found(subject, progress)
        parts.append(text)
        if store is not None:
            fixes.append(fix.fix(subject, findings[id], looked.order, looked.trained, store, progress))
            parts.append(str(fixes[-1]))
    return _explained(findings, parts, fixes, rows)


def _explained(findings: Mapping, parts: Sequence[str], fixes: Sequence[Fixed], rows: Mapping) -> Explained:
    code = FAILED if any(f.helped is False for f in fixes) else PASSED
    return Explained(findings, "\n\n".join(parts), tuple(fixes), rows, code)
