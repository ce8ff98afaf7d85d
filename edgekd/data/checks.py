"""Checks a task before any training: finds every problem of its data, models and metrics at once."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from edgekd import outputs
from edgekd.data.arrays import PARTS
from edgekd.data.check_frames import frame_problems
from edgekd.data.ragged import Ragged
from edgekd.errors import THEIRS, EdgekdError, Problem, UsageError
from edgekd.inputs import chunks, each, length, named, positional
from edgekd.models.streams import Streaming
from edgekd.records import Metric, Task

ROWS = 2  # samples that models, augmentation and metrics are called with: batch statistics need two
SAME = 0.5  # a test split with this share of samples that equal training samples is a mistake


def check(
    task: Task, load: Callable[[str], Any] | None = None, *, roles: Sequence[str] = ("teacher", "student")
) -> list[Problem]:
    """The problems of `task`; [] if there are none. Reads the three splits and runs every model once on two samples.

    `load(split)` returns loaded columns (`inputs`, `labels`, `ids`); default: read from `task.data`. `roles`: the
    required models, whose outputs must have one shape. The models' weights are drawn from a fixed seed; torch's
    generator is not changed."""
    from edgekd.data import columns

    place = f"task {task.name}"
    problems = list(_record(task, roles, place))
    splits: dict[str, Any] = {}
    for name in PARTS:
        try:
            split = (load or partial(columns.load, task))(name)
        except EdgekdError as error:
            problems += error.problems
            continue
        except THEIRS as error:  # (the task is the user's own code)
            problems.append(Problem(f"{place}: data({name!r})", f"raises {type(error).__name__}: {error}"))
            continue
        found = list(_split(task, split, f"{place}: data({name!r})"))
        problems += found
        if length(split.inputs):
            splits[name] = split
    problems += _together(splits, place)
    if "validation" in splits:
        lengths = [found for s in splits.values() if (found := getattr(s, "lengths", None)) is not None]
        problems += _models(task, roles, splits["validation"], place, any(len(set(f.tolist())) > 1 for f in lengths))
        problems += frame_problems(task, splits, place) if not problems else []
    return problems


def _record(task: Task, roles: Sequence[str], place: str) -> Iterator[Problem]:
    for role in roles:
        if role not in task.models:
            has = ", ".join(task.models) or "none"
            yield Problem(
                f"{place}: models",
                f"has no {role!r} (it has {has})",
                f'models={{"{role}": a function that makes the module, ...}}',
            )
    for name, make in task.models.items():
        if not _makes(make):
            given = type(make).__name__
            yield Problem(
                f"{place}: models[{name!r}]",
                f"is a {given}, not a function that returns a module",
                "give `lambda: MyNet()`, not `MyNet()`",
            )
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", str(task.name)):
        yield Problem(
            f"{place}: name", f"{task.name!r} is not valid as a folder name", "use letters, digits, `.`, `_` and `-`"
        )
    declared = task.outputs if isinstance(task.outputs, Mapping) else {}
    for name, output in declared.items():
        if not isinstance(output, outputs.Output):
            hint = "edgekd.classes(), yes_no(), numbers(), embeddings() or raw()"
            yield Problem(f"{place}: outputs[{name!r}]", f"is a {type(output).__name__}, not what an output is", hint)
    if len(declared) > 1:
        for name in declared:
            if not re.fullmatch(r"[A-Za-z_][\w-]*", str(name)):
                text = f"an output is named {name!r}: its name is part of the names of losses, figures and files"
                yield Problem(f"{place}: outputs", text, "use letters, digits, `_` and `-`")
        if task.classes is not None:
            text = f"is {task.classes}, and the task declares several outputs"
            yield Problem(f"{place}: classes", text, f"leave it out: an output is edgekd.classes({task.classes})")
    yield from _stream(task, place)
    if not task.metrics:
        yield Problem(f"{place}: metrics", "is empty", "metrics=(edgekd.top1(),)")
    names = [m.name for m in task.metrics if isinstance(m, Metric)]
    for name in (n for n in names if not isinstance(n, str) or not n.strip()):
        yield Problem(f"{place}: metrics", f"a metric is named {name!r}", "give it a name, such as top1")
    for name in sorted({n for n in names if names.count(n) > 1}, key=str):
        hint = f'give each its own name, of several outputs such as {name}(output="a", name="a_{name}")'
        yield Problem(f"{place}: metrics", f"two metrics are named {name!r}", hint if task.heads else hint[:22])
    for field, least in (("views", 1), ("draws", 1), ("classes", 2)):
        value = getattr(task, field)
        if not (isinstance(value, int) and value >= least) and not (field == "classes" and value is None):
            yield Problem(f"{place}: {field}", f"is {value!r}", f"give an integer of at least {least}")


def _stream(task: Task, place: str) -> Iterator[Problem]:
    """Problems of what the task says of streaming models."""
    at = f"{place}: stream"
    if task.stream is None:
        return
    if not isinstance(task.stream, Streaming):
        yield Problem(at, f"is a {type(task.stream).__name__}", 'stream=edgekd.streaming({"h_out": "h_in"})')
        return
    states, taken = task.stream.states, tuple(task.stream.states.values())
    if not states or len(set(taken)) < len(taken):
        text = "names no state" if not states else f"two outputs go to {next(n for n in taken if taken.count(n) > 1)}"
        yield Problem(at, text, 'edgekd.streaming({"h_out": "h_in"}) names an output and the input that takes it')
    for name in [*(n for n in states if n in task.outputs), *(n for n in taken if n in (*task.inputs, *states))]:
        yield Problem(at, f"{name!r} is a name of two things", "give states names of their own: h_in, h_out")
    shapes = {}
    for name, make in task.models.items():
        with contextlib.suppress(*THEIRS):  # told where the model is called
            shapes[name] = getattr(make(), "state_shapes", None) if _makes(make) else None
    if shapes and not any(found is not None for found in shapes.values()):
        text = f"none of the models {', '.join(shapes)} has `state_shapes`"
        hint = f"self.state_shapes = {{{taken[0] if taken else 'h_in'!r}: (width,)}} in the one that takes a step"
        yield Problem(at, text, hint)
    for name, found in shapes.items():
        if found is not None and (not isinstance(found, Mapping) or set(found) != set(taken)):
            has = ", ".join(map(str, found)) if isinstance(found, Mapping) else f"a {type(found).__name__}"
            hint = f"{{input that takes a state: its shape without the samples}}, of {', '.join(taken)}"
            yield Problem(f"{place}: models[{name!r}]: state_shapes", f"is of {has}", hint)


def _makes(make: Any) -> bool:
    """Whether it is a function or a class, not a module: every stage needs a new module."""
    return callable(make) and (isinstance(make, type) or not hasattr(make, "state_dict"))


def _split(task: Task, split: Any, place: str) -> Iterator[Problem]:
    count = length(split.inputs)
    if not count:
        yield Problem(place, "the split is empty", "return at least one sample for each of train, validation and test")
        return
    for name, values in named(split.inputs).items():
        if isinstance(values, Ragged) and not values.lengths.all():
            yield Problem(place, f"sample {values.lengths.argmin()} has no steps", "leave out samples of length 0")
        bad = _not_finite(values) if values.dtype.kind == "f" else np.zeros(count, bool)
        if bad.any():
            text = (
                f"{bad.sum()} of {count} samples have NaN or infinite inputs{f' in {name!r}' if name else ''}, the "
                f"first at {bad.argmax()}"
            )
            yield Problem(place, text, "leave these samples out, or fill in the values")
    if task.heads:
        yield from _labels_of_heads(task.heads, split.labels, place)
        return
    if isinstance(split.labels, Mapping):
        text = f"labels are of {', '.join(map(str, split.labels))}, and the task declares no several outputs"
        yield Problem(place, text, "outputs={name: what it is, ...} with a name for each, or one array of labels")
        return
    if split.labels is not None and _no_numbers(split.labels):
        yield Problem(place, *_no_numbers(split.labels))
        return
    if task.output is not None:
        yield from (Problem(place, *said) for said in outputs.label_problems(task.output, split.labels))
        return
    if task.classes is None:
        return
    if split.labels is None:
        yield Problem(
            place, "samples have no label", f"give class numbers 0 to {task.classes - 1}, or leave `classes` out"
        )
        return
    labels = np.asarray(split.labels)
    whole = labels.dtype.kind in "iu" or (labels.dtype.kind == "f" and bool((labels == np.round(labels)).all()))
    if labels.dtype.kind not in "iu":
        hint = (
            "labels.astype(int)"
            if whole
            else "number the classes 0, 1, ...: names, y = numpy.unique(y, return_inverse=True)"
        )
        yield Problem(place, f"labels are {labels.dtype}, not integers", hint)
    elif labels.shape == (count, 1):
        yield Problem(place, f"labels have shape {list(labels.shape)}, not one class number per sample", "y.ravel()")
    else:
        out = (labels < 0) | (labels >= task.classes)
        if out.any():
            first = np.argwhere(out)[0]
            at = first[0] if labels.ndim == 1 else first.tolist()
            text = (
                f"{out.sum()} of {out.size} labels are outside 0 to {task.classes - 1}, the first is "
                f"{labels[tuple(first)]} at {at}"
            )
            below = "labels are numbered from 0: names, y = numpy.unique(y, return_inverse=True)"
            yield Problem(
                place,
                text,
                below if labels.min() < 0 else f"set classes={int(labels.max()) + 1}, or number the classes from 0",
            )


def _not_finite(values: Any) -> np.ndarray:
    """[n] whether a row of an array or column has a value that is NaN or infinite."""
    return np.concatenate([~np.isfinite(part).reshape(len(part), -1).all(1) for part in chunks(values)])


def _labels_of_heads(heads: Mapping[str, outputs.Output], labels: Any, place: str) -> Iterator[Problem]:
    """Problems of the labels {output: [n, ...]} of several outputs."""
    known = dict(labels) if isinstance(labels, Mapping) else {}
    if labels is not None and not isinstance(labels, Mapping):
        text = f"labels are one array, and the task has the outputs {', '.join(heads)}"
        yield Problem(place, text, f"give {{{', '.join(f'{name!r}: labels' for name in heads)}}}")
        return
    for name in (name for name in known if name not in heads):
        yield Problem(f"{place}: labels[{name!r}]", "no output has this name", f"the outputs are {', '.join(heads)}")
    for name, output in heads.items():
        given = known.get(name)
        wrong = _no_numbers(given) if given is not None else None
        for said in [wrong] if wrong else outputs.label_problems(output, given):
            yield Problem(f"{place}: labels[{name!r}]", *said)


def _no_numbers(labels: Any) -> tuple[str, str] | None:
    """(problem, hint) of labels that aren't numbers."""
    kind = np.asarray(labels).dtype
    hint = "number the classes 0, 1, ...: names, y = numpy.unique(y, return_inverse=True)"
    return None if kind.kind in "biuf" else (f"labels are {kind}, not numbers", hint)


def _together(splits: Mapping[str, Any], place: str) -> Iterator[Problem]:
    forms = {name: {k: (v.dtype.name, _form(v)) for k, v in named(s.inputs).items()} for name, s in splits.items()}
    if len({str(f) for f in forms.values()}) > 1:
        text = "; ".join(
            f"{name} " + ", ".join(f"{k or 'input'} {t} {s}" for k, (t, s) in f.items()) for name, f in forms.items()
        )
        yield Problem(f"{place}: data", f"the splits' inputs differ: {text}", "give all splits one shape and type")
    # ids that equal positions do not identify samples
    ids = {name: {i for p, i in enumerate(s.ids) if i != p} for name, s in splits.items() if s.ids}
    for one, two in (("train", "validation"), ("train", "test"), ("validation", "test")):
        both = ids.get(one, set()) & ids.get(two, set())
        if both:
            text = f"{len(both)} ids are in both {one} and {two}, such as {min(both, key=str)!r}"
            yield Problem(f"{place}: data", text, "make the splits disjoint, or give different samples different ids")
    content = {name: _digests(s.inputs) for name, s in splits.items()}
    for late, early, hint in (
        ("test", ("train", "validation"), "test on samples that are not used for training or for the choice"),
        ("validation", ("train",), "use validation samples that are not trained on"),
    ):
        given = [content[name] for name in early if name in content]
        again = int(np.isin(content[late], np.concatenate(given)).sum()) if late in content and given else 0
        if again and again >= SAME * len(content[late]):
            text = f"{again} of {len(content[late])} {late} samples are also in {' or '.join(early)}, with equal values"
            yield Problem(f"{place}: data", text, hint)


def _form(values: Any) -> list[Any]:
    """The shape of a sample."""
    return ["any", *values.flat.shape[1:]] if isinstance(values, Ragged) else list(values.shape[1:])


def _digests(inputs: Any) -> np.ndarray:
    """[n] int64: a hash of each sample's values."""
    found = np.zeros(length(inputs), np.int64)
    for values in named(inputs).values():
        start = 0
        for part in (values[i : i + 1] for i in range(len(values))) if isinstance(values, Ragged) else chunks(values):
            rows = np.ascontiguousarray(part)
            found[start : start + len(rows)] = [
                hash((int(before), row.tobytes())) for before, row in zip(found[start:], rows, strict=False)
            ]
            start += len(rows)
    return found


def _models(task: Task, roles: Sequence[str], split: Any, place: str, differ: bool = False) -> list[Problem]:
    """Problems of the models. `differ`: whether samples differ in length."""
    import torch

    rows = np.arange(ROWS) % length(split.inputs)
    inputs = each(split.inputs, lambda values: torch.from_numpy(np.ascontiguousarray(values[rows])))
    problems = list(_augmentation(task, inputs, place))
    shapes: dict[str, dict[str, list[int]]] = {}
    output, unfit, heads = None, list[Problem](), task.heads
    labels = None if split.labels is None else each(split.labels, lambda column: np.asarray(column)[rows])
    if labels is not None and getattr(split, "stepwise", False) and not split.strings:  # as far as these samples go
        labels = labels[:, : named(split.inputs)[next(iter(task.lengths.values()))][rows].max()]
    for name, make in task.models.items():
        where = f"{place}: models[{name!r}]"
        if not _makes(make):
            continue
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.manual_seed(0)
                model = make()
                if not isinstance(model, torch.nn.Module):
                    problems.append(Problem(where, f"makes a {type(model).__name__}, not a torch.nn.Module"))
                    continue
                answer = task.call(model.eval(), inputs)
                longer = task.call(model, _longer(task, inputs)) if differ else answer
        except UsageError as error:  # of a model that edgekd loads
            problems += [p.within(where) for p in error.problems]
            continue
        except THEIRS as error:  # (the model is the user's own code)
            given = ", ".join(f"{k or 'input'} {v.dtype} {list(v.shape)}" for k, v in named(inputs).items())
            text = f"raises {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
            problems.append(Problem(where, text, f"it was called with {given}, that is {ROWS} samples of validation"))
            continue
        other = next((z for z in positional(answer) if not isinstance(z, torch.Tensor)), None)
        if other is not None or isinstance(answer, Mapping) and not heads:
            text = f"gives a {type(answer if other is None else other).__name__}, not a tensor"
            problems.append(Problem(where, text, _several(answer)))
            continue
        shapes[name] = {of: list(z.shape) for of, z in named(answer).items()}
        for of, z in named(answer).items():
            at = f"{where}: {of}" if of else where
            problems += _answer(task, z, at)
            declared, beside = heads.get(of, task.output), labels.get(of) if isinstance(labels, Mapping) else labels
            if z.shape[1:] != named(longer)[of].shape[1:] and (declared is None or not declared.scored):
                text = "gives an output for each step, samples differ in length, and no label says which steps count"
                unfit.append(Problem(at, text, "one output for each sample, or classes or yes-or-no labels of steps"))
            elif declared is not None:
                soft = beside is not None and outputs.soft(declared, beside)
                fits = outputs.fit_problems(declared, z.shape, None if beside is None else beside.shape, soft=soft)
                unfit += [Problem(at, *said) for said in fits]
        output = each(answer, lambda z: z.numpy()) if name == "student" else output
    told = [k for k in roles if k in shapes]
    for of in heads or ("",):
        if len({tuple(shapes[k][of][1:]) for k in told}) > 1:
            text = ", ".join(f"{k} gives [B{''.join(f', {n}' for n in shapes[k][of][1:])}]" for k in told)
            hint = "give both the same output shape: the student is trained on its teacher's outputs"
            problems.append(Problem(f"{place}: models", f"{of}: {text}" if of else text, hint))
    problems += unfit
    if output is not None and labels is not None and not unfit:
        for metric in task.metrics:
            problems += _metric(metric, output, labels, f"{place}: metrics[{getattr(metric, 'name', metric)!r}]")
    return problems


def _longer(task: Task, inputs: Any) -> Any:
    """The inputs with one more step, which no sample has."""
    from torch.nn import functional as F

    more = lambda x: F.pad(x, (*(0,) * (2 * x.ndim - 3), 1))
    return {name: more(x) if name in task.lengths else x for name, x in inputs.items()}


def _several(answer: Any) -> str:
    """A hint on what a model gives that is no tensor."""
    if isinstance(answer, Mapping | tuple | list) and len(answer) > 1:
        return "declare what each output is: outputs={name: edgekd.classes(...), name: edgekd.numbers(...)}"
    return "give the task a `forward(model, inputs)` that returns the logits"


def _answer(task: Task, answer: Any, where: str) -> Iterator[Problem]:
    if not answer.ndim or answer.shape[0] != ROWS:
        yield Problem(
            where,
            f"gives shape {list(answer.shape)} for {ROWS} samples",
            "the first axis of the outputs must be the samples",
        )
    elif (
        task.classes is not None
        and answer.ndim == 2
        and answer.shape[1] not in (task.classes, 1 if task.classes == 2 else task.classes)
    ):
        yield Problem(
            where,
            f"gives [B, {answer.shape[1]}] for {task.classes} classes",
            f"make its last layer give {task.classes}",
        )
    if answer.dtype.is_floating_point and not bool(answer.isfinite().all()):
        yield Problem(
            where, "gives NaN or infinite outputs before any training", "look for divisions and logarithms of 0"
        )


def _augmentation(task: Task, inputs: Any, place: str) -> Iterator[Problem]:
    if task.augment is None:
        return
    import torch

    where = f"{place}: augment"
    u = (torch.arange(ROWS * max(1, task.draws), dtype=torch.float32).reshape(ROWS, -1) * 0.37 + 0.05) % 1
    values = {k: v.clone() for k, v in named(inputs).items()}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            one = task.augment(inputs, u)
            torch.manual_seed(1)
            two = task.augment(inputs, u)
    except THEIRS as error:  # (the augmentation is the user's own code)
        yield Problem(
            where,
            f"raises {type(error).__name__}: {error}",
            f"it was called with {ROWS} samples and u of shape [{ROWS}, {task.draws}]",
        )
        return
    first, second, kept = map(named, (one, two, inputs))
    if any(not torch.equal(values[k], kept[k]) for k in values):
        yield Problem(where, "changes its inputs in place", "return new tensors: inputs.clone()")
    elif first.keys() != second.keys() or any(not torch.equal(first[k], second[k]) for k in first):
        yield Problem(where, "gives different results for the same u", "use `u` only, not torch.rand, numpy or random")
    for k in kept:
        if k not in first or first[k].shape != kept[k].shape or first[k].dtype != kept[k].dtype:
            given = f"{first[k].dtype} {list(first[k].shape)}" if k in first else "nothing"
            hint = "an augmented sample must have the shape and type of the sample"
            yield Problem(where, f"gives {given} for {kept[k].dtype} {list(kept[k].shape)}", hint)


def _metric(metric: Metric, outputs: Any, labels: Any, where: str) -> Iterator[Problem]:
    if not isinstance(metric, Metric):
        yield Problem(where, f"is a {type(metric).__name__}, not a Metric", "metrics=(edgekd.top1(),)")
        return
    if metric.better not in ("higher", "lower"):
        yield Problem(where, f"better is {metric.better!r}", "higher or lower")
    try:
        records = np.asarray(metric.records(outputs, labels))
        fits = records.shape[:1] == (ROWS,)
        try:
            value = metric.value(records) if fits else math.nan
        except (
            ValueError,
            ArithmeticError,
        ):  # not defined for two samples, such as an AUC with one class: run/sanity_check calls it with many
            value = math.nan
    except THEIRS as error:  # (the metric is the user's own code)
        form = lambda values: ", ".join(f"{k} {list(v.shape)}".lstrip() for k, v in named(values).items())
        hint = f"it was called with outputs {form(outputs)}, labels {form(labels)}"
        yield Problem(where, f"raises {type(error).__name__}: {error}", hint)
        return
    if not fits:
        yield Problem(
            where, f"gives records of shape {list(records.shape)} for {ROWS} samples", "one record per sample"
        )
    elif not np.isscalar(value) or not np.isreal(value):
        yield Problem(where, f"its value is {'None' if value is None else f'a {type(value).__name__}'}", "a float")
