"""Streaming models: sequences of steps, in which an input takes the value that an output had at the step before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgekd.errors import Problem
from edgekd.samples import axes, values
from edgekd.samples.rows import WHOLE, Axis, Samples
from edgekd.samples.signature import Signature

Infer = Callable[[dict[str, np.ndarray]], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Sequences:
    """`arrays` {input: [n] arrays [steps, ...] of each sequence}, `constants` {input: array}; `states` {input: output},
    each with its value at the start. `axes` as of Samples. `labels` [n] arrays [steps], if there are any."""

    arrays: Mapping[str, np.ndarray]
    constants: Mapping[str, np.ndarray]
    states: Mapping[str, str]
    start: Mapping[str, np.ndarray]
    axes: Mapping[str, Axis]
    answers: Mapping[str, int]
    size: int | None
    labels: np.ndarray | None = None
    names: Sequence[str] = ()

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    @property
    def lengths(self) -> list[int]:
        """Steps of each sequence."""
        return [len(a) for a in next(iter(self.arrays.values()))]

    def steps(self, infer: Infer | None, rows: Sequence[int] | np.ndarray | None = None) -> Samples:
        """The steps of these sequences (default: all) as samples, with the states that a model has in them; of the
        first step of each alone, where there is no model."""
        rows = range(len(self)) if rows is None else rows
        kept: dict[str, list[np.ndarray]] = {name: [] for name in (*self.arrays, *self.states)}
        begins, names, labels = [], [], []
        for row in rows:
            state = dict(self.start)
            for step in range(self.lengths[row] if infer is not None else 1):
                for name in self.arrays:
                    kept[name].append(np.asarray(self.arrays[name][row][step]))
                for name, value in state.items():
                    axis = self.axes[name]
                    kept[name].append(value if axis == WHOLE else np.moveaxis(value, int(axis or 0), 0)[0])
                begins.append(step == 0)
                names.append(f"step {step} of {self.names[row] if len(self.names) else f'sequence {row}'}")
                if self.labels is not None:
                    labels.append(self.labels[row][step])
                if infer is not None:
                    made = infer(self._feed(row, step, state))
                    state = {name: np.asarray(made[output]) for name, output in self.states.items()}
        arrays = {name: np.stack(parts) for name, parts in kept.items()}
        count = len(begins)
        arrays |= {name: np.broadcast_to(a, (count, *a.shape)) for name, a in self.constants.items()}
        more = {"states": self.states, "begins": np.array(begins), "names": names}
        return Samples(arrays, self.axes, self.answers, self.size, np.array(labels) if labels else None, **more)

    def _feed(self, row: int, step: int, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        taken = {
            name: np.expand_dims(np.asarray(a[row][step]), int(self.axes[name] or 0)) for name, a in self.arrays.items()
        }
        return {**taken, **self.constants, **state}


def answered(infer: Infer, samples: Samples, size: int) -> Iterator[Mapping[str, np.ndarray]]:
    """What a model answers, batch by batch; of steps one by one, each sequence with the states that the model makes."""
    if not samples.states:
        yield from (infer(feed) for feed in samples.batches(size))
        return
    state: dict[str, np.ndarray] = {}
    for row, begins in enumerate(samples.begins if samples.begins is not None else ()):
        feed = samples.take(slice(row, row + 1)).feed()
        made = infer(feed if begins else {**feed, **state})
        state = {name: np.asarray(made[output]) for name, output in samples.states.items()}
        yield made


def gathered(
    signature: Signature,
    given: Mapping[str, np.ndarray] | Sequence[Mapping[str, np.ndarray]],
    states: Mapping[str, str],
    asked: Mapping[str, int | None],
    place: str,
    names: Sequence[str] = (),
) -> tuple[Sequences | None, list[Problem]]:
    """(sequences, problems) of arrays [n, steps, ...], or of one dict of arrays [steps, ...] for each."""
    where = axes.expected(signature, asked)
    several = not isinstance(given, Mapping)
    first = given[0] if several else given
    arrays, constants, problems = {}, {}, []
    for name in first:
        tensor, axis = signature.inputs[name], where[name]
        dims = tensor.dims or ()
        if axis is None:
            wrong, fits = values.wrong(name, first[name][None], tensor.dtype, place), axes.fits(first[name].shape, dims)
            constants[name] = first[name] if wrong else first[name].astype(tensor.dtype)
        else:
            step, lead = dims[:axis] + dims[axis + 1 :], 1 if several else 2
            parts = [one[name] for one in given] if several else list(first[name])
            fits = all(p.ndim == len(dims) and len(p) and axes.fits(p.shape[1:], step) for p in parts)
            wrong = values.wrong(name, values.ragged(parts), tensor.dtype, place, names)
            arrays[name] = values.ragged(parts) if wrong else values.changed(values.ragged(parts), tensor.dtype)
            if isinstance(dims[axis], int) and dims[axis] != 1:
                wrong.append(
                    Problem(place, f"{name} takes {dims[axis]} sequences at once, and they are run one by one")
                )
            shape = ", ".join(["n", "steps"][2 - lead :] + ["any" if not isinstance(d, int) else str(d) for d in step])
        problems += wrong
        if not fits:
            takes = axes.dims_of(tensor, axis) if axis is None else f"[{shape}]"
            problems.append(Problem(place, f"{name} has the shape {list(first[name].shape)}, the model takes {takes}"))
    lengths = {name: tuple(len(p) for p in parts) for name, parts in arrays.items()}
    if not arrays:
        problems.append(Problem(place, "has no sequences", "arrays [n, steps, ...] of the inputs that are no states"))
    elif len(set(lengths.values())) > 1:
        text = f"the inputs {', '.join(lengths)} have sequences of different lengths"
        problems.append(Problem(place, text))
    start, kinds = _start(signature, states, where, problems)
    if problems:
        return None, problems
    fixed = any(isinstance((signature.inputs[n].dims or (None,))[int(where[n] or 0)], int) for n in arrays)
    taken: dict[str, Axis] = {**{n: where[n] for n in arrays}, **dict.fromkeys(constants), **kinds}
    return Sequences(
        arrays, constants, states, start, taken, signature.answer_axes(), 1 if fixed else None, None, names
    ), []


def misnamed(signature: Signature, states: Mapping[str, str]) -> list[Problem]:
    """States whose names are not an output's and an input's."""
    problems = []
    for name, output in states.items():
        option = f"--state {output}={name}"
        if name in signature.outputs and output in signature.inputs and name not in signature.inputs:
            text = f"is the wrong way round: {name} is the output, and {output} the input that takes it"
            problems.append(Problem(option, text, f"--state {name}={output}"))
            continue
        if name not in signature.inputs:
            problems.append(Problem(option, f"{name} is not an input", f"inputs: {', '.join(signature.inputs)}"))
        if output not in signature.outputs:
            problems.append(Problem(option, f"{output} is not an output", f"outputs: {', '.join(signature.outputs)}"))
    return problems


def _start(
    signature: Signature, states: Mapping[str, str], where: Mapping[str, int | None], problems: list[Problem]
) -> tuple[dict[str, np.ndarray], dict[str, Axis]]:
    """({state: zeros}, {state: axis of its samples}); adds what is wrong with the states to `problems`."""
    start: dict[str, np.ndarray] = {}
    kinds: dict[str, Axis] = {}
    problems += misnamed(signature, states)
    dim = signature.sample_dim()
    for name, output in states.items():
        tensor, made = signature.inputs.get(name), signature.outputs.get(output)
        option = f"--state {output}={name}"
        if tensor is None or made is None:
            continue
        dims = tensor.dims or ()
        axis = where[name] if dim in dims or (dims and not isinstance(dims[0], int)) else None
        shape = [1 if i == axis else d for i, d in enumerate(dims)]
        left = [str(d or "?") for d in shape if not isinstance(d, int)]
        if left or tensor.dims is None or tensor.dtype is None:
            problems.append(
                Problem(option, f"{name} leaves {', '.join(left) or 'its shape'} open: it can't start at 0")
            )
        elif made.dtype != tensor.dtype:
            problems.append(Problem(option, f"{output} is {made.dtype}, and {name} takes {tensor.dtype}"))
        else:
            start[name] = np.zeros([int(d or 0) for d in shape], tensor.dtype)
            kinds[name] = WHOLE if axis is None else axis
    return start, kinds
