"""Targets: facts of kinds of devices, from `targets/*.toml`, a user's file, or, for `host`, from this machine."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from edgekd import components, environment, runtimes
from edgekd.errors import Problem, UsageError, closest, meant, near
from edgekd.files import read_toml
from edgekd.records import Architecture, Cache, Deployment, Feature, Int8, Runtime, Target

# features that runtimes choose int8 and float kernels by
KERNELS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "dotprod", "i8mm")
HOST = "host"
NO_RUNTIME = "none"  # names a runtime that edgekd does not have
MOST = 8  # runtimes of one target
# the start of the note of a figure from the reference runtime, for a target without a runtime
REFERENCE = "reference runtime"
FEATURES: Mapping[str, tuple[str, ...]] = {
    "x86-64": ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8"),
    "aarch64": ("neon", "fp16", "dotprod", "i8mm", "bf16", "sve", "sve2"),
    "armv7e-m": (),
}


def names() -> list[str]:
    """`host` and the targets that come with edgekd."""
    folder = _folder()
    return [HOST, *sorted(p.stem for p in folder.glob("*.toml"))] if folder else [HOST]


def load(name_or_path: str | Path) -> Target:
    """A target by name, or from a .toml file (whose stem is its name). Raises UsageError with every problem of the
    file."""
    text = str(name_or_path)
    if text == HOST:
        return host(environment.describe())
    if isinstance(name_or_path, Path) or text.endswith(".toml") or "/" in text:
        return _parse(Path(name_or_path))
    folder = _folder()
    if folder is None or text not in names():
        begun = [n for n in names() if text and n.startswith(text)][:3]
        ours = "`edgekd list targets` shows all; for your own target, give the path of a .toml file"
        hint = meant(begun or closest(text, names()), ours)
        raise UsageError(Problem("", f"no target is named `{text}`", hint))
    return _parse(folder / f"{text}.toml")


def host(facts: Mapping[str, Any]) -> Target:
    """This machine as a target, from `environment.describe()`, with one thread."""
    if facts["architecture"] not in get_args(Architecture):
        raise UsageError(
            Problem(
                HOST,
                f"the architecture `{facts['architecture']}` is not known",
                f"known: {', '.join(get_args(Architecture))}",
            )
        )
    features = tuple(f for f in get_args(Feature) if f in facts["features"])
    here = "read from this machine"
    given = {
        "features": features,
        "cores": facts["cores"],
        "clock_mhz": facts["max_mhz"] or facts["mhz"],
        "caches": dict(facts["caches"]),
        "ram_bytes": facts["ram_bytes"],
        "runtime": _filled(Runtime(version=facts["versions"].get(Runtime().name, ""))),
    }
    return Target(
        name=HOST,
        title=facts["cpu"],
        architecture=facts["architecture"],
        sources={fact: here for fact, v in given.items() if v},
        **given,
    )


def saturates(target: Target) -> bool:
    """Whether onnxruntime's kernels add products of unsigned and signed bytes in pairs at 16 bits (vpmaddubsw), which
    saturate: on x86 with AVX2 and no VNNI (core/mlas/lib/platform.cpp). Below AVX2 they don't."""
    return (
        target.architecture == "x86-64"
        and "avx2" in target.features
        and not {"avx512_vnni", "avx_vnni"} & set(target.features)
    )


def runs(target: Target) -> bool:
    """Whether edgekd has a runtime for the target. Without one, only figures counted on the file exist, and budgets on
    them."""
    return target.runtime.name != NO_RUNTIME


def each(target: Target) -> tuple[Target, ...]:
    """The target with one runtime alone, for each of its runtimes."""
    every = (target.runtime, *target.others)
    return tuple(dataclasses.replace(target, runtime=_filled(r), others=()) for r in every)


def deployment(target: Target) -> Deployment:
    """How a model goes to a target of one runtime; the files of one that nothing here runs are opened by the reference
    runtime of their format."""
    wanted = _filled(target.runtime)
    return Deployment(wanted.format, wanted.name if runs(target) else reference(wanted.format))


def deployed(target: Target, how: Deployment) -> Target | None:
    """The target with the runtime that takes files that are made so; None where none does."""
    return next((t for t in each(target) if deployment(t) == how), None)


def reference(form: str) -> str:
    """The runtime that tells what files of a format compute; "" for a format that names none."""
    return getattr(components.find("formats", form), "REFERENCE", "")


def kernels(target: Target) -> str:
    """The instructions of onnxruntime's int8 kernels on the target (core/mlas/lib/platform.cpp), in a word or two."""
    if target.architecture == "x86-64":
        wide = {"avx512_vnni": "VNNI (AVX512)", "avx_vnni": "VNNI (AVX)", "avx2": "AVX2, 16 bits"}
        return next((text for feature, text in wide.items() if feature in target.features), "SSE")
    if target.architecture == "aarch64":
        return "i8mm" if "i8mm" in target.features else "dot product" if "dotprod" in target.features else "NEON"
    return "DSP"


def figures(target: Target, facts: Mapping[str, Any]) -> str:
    """The best figures of the target that a machine with `facts` can give: `measured` (times and outputs), `answers`
    (measured outputs without times: the machine uses other kernels, or has fewer cores), `emulated` (outputs by
    emulation), `counted` (from the file alone)."""
    if not runs(target):
        return "counted"
    more = surplus(target, facts)
    if not matches(target, facts) and not (more and target.emulated_as):
        return "measured" if times(target, facts) else "answers"
    return "emulated" if target.emulated_as else "counted"


def matches(target: Target, facts: Mapping[str, Any]) -> list[str]:
    """The features of a target that a machine lacks. With none, the machine's outputs count as measured for the target.
    For times, see `lacking`."""
    if target.name == HOST:
        return []
    if facts["architecture"] != target.architecture:
        return [target.architecture]
    missing: list[str] = [feature for feature in target.features if feature not in facts["features"]]
    return missing if runs(target) else [*missing, "a runtime for it"]


def lacking(target: Target, facts: Mapping[str, Any]) -> list[str]:
    """What a machine lacks for the target's times: features, and cores for its threads."""
    few = target.name != HOST and (facts.get("cores") or target.threads) < target.threads
    return [*matches(target, facts), *([f"{target.threads} cores"] if few else [])]


def times(target: Target, facts: Mapping[str, Any]) -> bool:
    """Whether a time on the machine counts as measured for the target: the machine lacks nothing, and uses no other
    kernels."""
    return not lacking(target, facts) and not surplus(target, facts)


def differing(target: Target, facts: Mapping[str, Any]) -> str:
    """A note that a machine's runtime library has another version than the target's; "" if it has the same."""
    library = next(iter(runtimes.needs(target.runtime.name)), "")
    wanted, here = target.runtime.version, facts.get("versions", {}).get(library)
    return f"with {library} {here}, the target has {wanted}" if here and wanted and wanted != here else ""


def surplus(target: Target, facts: Mapping[str, Any]) -> list[str]:
    """Features that a machine has, the target lacks, and kernels are chosen by: a time measured there is not the
    target's."""
    return [] if target.name == HOST else [f for f in facts["features"] if f in KERNELS and f not in target.features]


def _filled(runtime: Runtime) -> Runtime:
    """A runtime with the format of its files."""
    if runtime.format:
        return runtime
    read = runtimes.formats(Runtime().name if runtime.name == NO_RUNTIME else runtime.name)
    return dataclasses.replace(runtime, format=next(iter(read), ""))


def _folder() -> Path | None:
    """The folder of the target files: inside an installed package, or beside the package in a source tree."""
    package = Path(__file__).resolve().parent
    for folder in (package / "_targets", package.parent / "targets"):
        if folder.is_dir():
            return folder
    return None


def _parse(path: Path) -> Target:
    raw = read_toml(path, "`edgekd list targets` shows the known ones")
    from pydantic import TypeAdapter, ValidationError

    several = raw.get("runtime") if isinstance(raw.get("runtime"), list) else None
    problems, target = _unknown(path.name, raw), None
    if several is not None:
        if not 0 < len(several) <= MOST:
            problems.append(Problem(f"{path.name}: runtime", f"has {len(several)} tables", f"write 1 to {MOST}"))
        alone = {k: v for k, v in raw.items() if k != "runtime"}
        raw = {**alone, "runtime": several[0], "others": several[1:]} if several else alone
    if path.parent != _folder():
        components.look_beside(path.resolve().parent)  # a runtime or a format of one's own
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", path.stem):
        problems.append(
            Problem(path.name, "a target's name is made of letters, digits, `.`, `_` and `-`", "rename the file")
        )
    if path.stem == HOST:
        problems.append(Problem(path.name, "`host` is this machine", "give the file another name"))
    try:
        target = TypeAdapter(Target).validate_json(json.dumps({**raw, "name": path.stem}, default=str), strict=True)
    except ValidationError as error:
        problems += [_problem(path.name, e) for e in error.errors()]
    problems += [] if target is None else _contradictions(path.name, target)
    if problems or target is None:
        raise UsageError(*problems)
    first, *others = (t.runtime for t in each(target))
    return dataclasses.replace(target, runtime=first, others=tuple(others))


def _contradictions(file: str, target: Target) -> list[Problem]:
    """Problems of facts that contradict each other, sources of facts that aren't given, and control characters."""
    found = [
        Problem(f"{file}: {place}", "has control characters", "write one line of text")
        for place, text in (
            ("title", target.title),
            ("runtime", f"{target.runtime}{target.others}"),
            ("emulated_as", target.emulated_as or ""),
        )
        if not text.isprintable()
    ]
    found += [
        Problem(
            f"{file}: features",
            f"{target.architecture} has no `{feature}`",
            near(feature, sorted(FEATURES[target.architecture]) or ["none"]),
        )
        for feature in target.features
        if feature not in FEATURES[target.architecture]
    ]
    if target.core and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", target.core):
        hint = "write it in lower case, such as cortex-a72"
        found.append(Problem(f"{file}: core", f"{target.core!r} is not a core's name", hint))
    found += _runtimes(file, (target.runtime, *target.others))
    if target.int8.activation_bits != 8:
        text = f"is {target.int8.activation_bits}, but edgekd writes files with 8-bit activations"
        found.append(Problem(f"{file}: int8.activation_bits", text, "leave it out"))
    if target.cores is not None and target.threads > target.cores:
        found.append(
            Problem(
                f"{file}: threads",
                f"is {target.threads}, but there are {target.cores} cores",
                "give at most one thread per core",
            )
        )
    if target.architecture == "armv7e-m" and runs(target):
        found.append(
            Problem(
                f"{file}: runtime",
                f"{target.runtime.name} does not run on {target.architecture}",
                f'write name = "{NO_RUNTIME}"',
            )
        )
    if target.emulated_as and not runs(target):
        found.append(Problem(f"{file}: emulated_as", "there is no runtime to emulate", "leave it out"))
    if not target.int8.pairs16 and target.int8.weight_bits == 8 and saturates(target):
        text = "full-range weights saturate: AVX2 without VNNI adds the products of two bytes in 16 bits"
        found.append(Problem(f"{file}: int8.pairs16", text, "leave it out, or write weight_bits = 7"))
    empty = [name for name in target.sources if getattr(target, name, True) in (None, {}, "")]
    return found + [
        Problem(
            f"{file}: sources.{name}", f"the fact `{name}` is not given", f"write {name} = ..., or remove its source"
        )
        for name in empty
    ]


def _runtimes(file: str, given: Sequence[Runtime]) -> list[Problem]:
    """Runtimes that are not there, formats that they don't read, and one named twice."""
    found, seen = [], []
    for number, runtime in enumerate(given):
        place = f"{file}: runtime" if len(given) == 1 else f"{file}: runtime.{number}"
        wrong = _runtime(place, runtime)
        if len(given) > 1 and runtime.name == NO_RUNTIME:
            wrong = [Problem(f"{place}.name", "stands beside other runtimes", "leave it out")]
        if not wrong and (twice := _filled(dataclasses.replace(runtime, version=""))) in seen:
            wrong = [Problem(place, f"{runtime.name} with {twice.format} files stands twice", "name it once")]
        seen += [] if wrong else [_filled(dataclasses.replace(runtime, version=""))]
        found += wrong
    return found


def _formats(runtime: str) -> tuple[str, ...]:
    try:
        return tuple(runtimes.formats(runtime))
    except ValueError:
        return ()


def _runtime(place: str, runtime: Runtime) -> list[Problem]:
    known = [*runtimes.names(), NO_RUNTIME]
    try:
        read, _ = runtimes.formats(runtime.name), runtimes.needs(runtime.name)
    except ValueError as error:
        return [Problem(f"{place}.name", f"{error}", "edgekd/runtimes/onnxruntime.py shows what a runtime's file says")]
    if read and not runtimes.offers(runtime.name, "load"):
        return [Problem(f"{place}.name", f"`{runtime.name}` has no function `load`", "load(path, threads) -> infer")]
    if runtime.name not in known and not read:
        own = runtimes.source(runtime.name)
        hint = (
            near(runtime.name, sorted(known)) + f'; name = "{NO_RUNTIME}": what is counted on files, and budgets of it'
        )
        text = f"edgekd has no runtime `{runtime.name}`"
        if own is not None:
            text += f", and {own.name} declares no FORMAT that it reads"
        return [Problem(f"{place}.name", text, hint)]
    wanted = _filled(runtime).format
    if runtime.name != NO_RUNTIME and wanted not in read:
        text = f"{runtime.name} reads {' and '.join(read)}, not {wanted}"
        return [Problem(f"{place}.format", text, "leave it out, or name another runtime")]
    try:
        form = components.find("formats", wanted)
    except UsageError as error:
        return [Problem(f"{place}.format", p.message, p.hint) for p in error.problems]
    ending = str(getattr(form, "SUFFIX", ""))
    if not ending or Path(f"model{ending}").suffix != ending or not callable(getattr(form, "export", None)):
        hint = 'SUFFIX = ".name", and a function `export`'
        return [Problem(f"{place}.format", f"`{wanted}` is not a format: it lacks SUFFIX or `export`", hint)]
    reference = getattr(form, "REFERENCE", None)
    if reference is not None and not (isinstance(reference, str) and wanted in _formats(reference)):
        text = f"the REFERENCE of `{wanted}`, {reference!r}, is not a runtime that reads it"
        return [Problem(f"{place}.format", text, "name a runtime, or leave REFERENCE out")]
    if runtime.name == NO_RUNTIME and reference is None:
        text = f"nothing tells what {wanted} files compute: the format names no reference runtime"
        return [Problem(f"{place}.format", text, "name a runtime that reads it")]
    return []


def _unknown(file: str, raw: Mapping[str, Any]) -> list[Problem]:
    """Problems of unknown keys: a misspelt fact must not be taken for an absent one."""
    facts, given = {f.name for f in dataclasses.fields(Target)} - {"name", "others"}, raw.get("runtime")
    known = {f.name for f in dataclasses.fields(Runtime)}
    each = [(f"runtime.{i}.", table) for i, table in enumerate(given)] if isinstance(given, list) else []
    tables = [("", raw, facts)] + [(prefix, table, known) for prefix, table in each or [("runtime.", given)]]
    tables += [
        ("int8.", raw.get("int8"), {f.name for f in dataclasses.fields(Int8)}),
        ("sources.", raw.get("sources"), facts),
    ]
    given = [
        (prefix, key, known)
        for prefix, table, known in tables
        if isinstance(table, Mapping)
        for key in table
        if key not in known
    ]
    return [
        Problem(f"{file}: {prefix}{key}", f"there is no fact `{key}`", near(key, sorted(known)))
        for prefix, key, known in given
    ]


def _problem(file: str, error: Mapping[str, Any]) -> Problem:
    loc, last, given = error["loc"], str(error["loc"][-1]), error.get("input")
    if loc[0] == "others":  # the second and later ones of several
        loc = ("runtime", *(part + 1 if isinstance(part, int) else part for part in loc[1:]))
    place = ".".join(str(part) for part in loc)
    if error["type"] == "missing":
        return Problem(f"{file}: {place}", "is missing", f"write {last} = ...")
    if error["type"] == "literal_error":
        known = get_args(Architecture if last == "architecture" else Cache if place.startswith("caches") else Feature)
        place = place.removesuffix(".[key]")
        return Problem(f"{file}: {place}", f"{given!r} is not known", near(str(given), sorted(known)))
    message = error["msg"]
    return Problem(f"{file}: {place}", f"{message[0].lower()}{message[1:]}, not {given!r}")
