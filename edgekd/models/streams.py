"""Streaming models: called with one step of a sequence and their state, they give an answer and the next state. Such a
model has `state_shapes`, {input that takes a state: its shape without the samples}. Other models of the same task get
whole sequences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from edgekd.inputs import named, positional

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgekd.records import Task

STATE = (
    "edgekd.state"  # of an exported file's metadata: {input: the output that it takes the value of at the next step}
)
Step = Callable[[dict[str, Any]], Sequence[Any]]


@dataclass(frozen=True)
class Streaming:
    """What a task says of its streaming models: `states` {output that gives a state: the input that takes it at the
    next step}; `last_step`: whether the answer to a sequence is that of its last step."""

    states: Mapping[str, str]
    last_step: bool = False

    def call(self, task: Task, model: nn.Module, inputs: Any) -> Any:
        """The answers of a streaming model to whole sequences; None for a model that takes them whole."""
        if (stream := of(task, model)) is None:
            return None
        answers = stream.over(stream.called(task, model), inputs)
        return dict(zip(task.heads, answers, strict=True)) if task.heads else answers[0]


def streaming(states: Mapping[str, str], *, last_step: bool = False) -> Streaming:
    """Of a task whose models with `state_shapes`, such as {"h_in": (16,)}, take one step and their state: they are
    called as `model(x, h)`, and give `(answer, h)`. `states` {output: the input that takes it at the next step}, for
    example {"h_out": "h_in"}; a state is zeros where a sequence begins. `last_step`: the answer to a sequence is that
    of its last step; else every step has one."""
    return Streaming(dict(states), last_step)


@dataclass(frozen=True)
class Stream:
    """How sequences go through a model that takes one step.

    `states` {input: the output that it takes the value of at the next step}, `shapes` {input: shape of a sample's
    state}; `outputs`: the others; `name` of the only input; `steps`: the inputs [n, T, ...], () for all: others are the
    same at each step; `lengths`: the input with the number of steps of each sequence, "" where all have as many;
    `last`: whether the answer to a sequence is that of its last step."""

    states: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    outputs: tuple[str, ...]
    name: str = "input"
    steps: tuple[str, ...] = ()
    lengths: str = ""
    last: bool = False

    @property
    def given(self) -> tuple[str, ...]:
        """The outputs of an exported file."""
        return (*self.outputs, *self.states.values())

    @property
    def bytes(self) -> int:
        """Of the states of one sequence, which are float32."""
        return sum(4 * math.prod(shape) for shape in self.shapes.values())

    @property
    def fact(self) -> dict[str, Any]:
        """What is kept of it beside an exported file."""
        return {**asdict(self), "bytes": self.bytes}

    def sequences(self, inputs: Any) -> dict[str, Any]:
        """{input of a step, in their order: sequences [n, T, ...], or what is the same at each step}"""
        return {name: values for name, values in named(inputs, self.name).items() if name != self.lengths}

    def moves(self, name: str) -> bool:
        """Whether an input has steps."""
        return name in self.steps or not self.steps

    def example(self, inputs: Any) -> dict[str, Tensor]:
        """The first step of sequences, with the state there."""
        given = self.sequences(inputs)
        return {**self._at(given, 0), **self._start(given)}

    def over(self, step: Step, inputs: Any) -> tuple[Tensor, ...]:
        """The answers to sequences, [n, T, ...] or, of the last steps, [n, ...]. `step` takes {input: tensor} and gives
        the tensors of `given`."""
        import torch

        kept = [made[: len(self.outputs)] for _, made in self.run(step, inputs)]
        answers = [torch.stack(list(steps), 1) for steps in zip(*kept, strict=True)]
        lengths = named(inputs, self.name).get(self.lengths)
        return tuple(_last(answer, lengths) for answer in answers) if self.last else tuple(answers)

    def run(self, step: Step, inputs: Any, ends: bool = False) -> Iterator[tuple[dict[str, Tensor], Sequence[Tensor]]]:
        """(what `step` got, what it gave) of each step in turn. `ends`: without the sequences that have ended before;
        those that go on come first."""
        given, lengths = self.sequences(inputs), named(inputs, self.name).get(self.lengths) if ends else None
        state = self._start(given)
        for number in range(next(values.shape[1] for name, values in given.items() if self.moves(name))):
            feed = {**self._at(given, number), **state}
            if lengths is not None:
                feed = {name: values[: int((lengths > number).sum())] for name, values in feed.items()}
            made = step(feed)
            yield feed, made
            state = dict(zip(self.states, made[len(self.outputs) :], strict=True))

    def called(self, task: Task, model: nn.Module) -> Step:
        """A model of the task as a step. Raises ValueError where what it gives is not an answer and its states."""

        def step(feed: dict[str, Any]) -> tuple[Any, ...]:
            made = model(*feed.values())
            if not isinstance(made, tuple | list) or len(made) != 1 + len(self.states):
                what = f"{len(made)} values" if isinstance(made, tuple | list) else f"a {type(made).__name__}"
                raise ValueError(f"a step gives {what}, not (answer, {', '.join(self.states.values())})")
            for (name, shape), state in zip(self.shapes.items(), made[1:], strict=True):
                if tuple(state.shape[1:]) != tuple(shape):
                    text = f"a step gives {self.states[name]} of shape {list(state.shape)}"
                    raise ValueError(f"{text}, and state_shapes says [n, {', '.join(map(str, shape))}] of {name}")
            return (*positional(task.by_name(made[0])), *made[1:])

        return step

    def _at(self, given: Mapping[str, Any], number: int) -> dict[str, Any]:
        return {name: values[:, number] if self.moves(name) else values for name, values in given.items()}

    def _start(self, given: Mapping[str, Any]) -> dict[str, Tensor]:
        import torch

        like = next(iter(given.values()))
        return {name: torch.zeros(len(like), *shape, device=like.device) for name, shape in self.shapes.items()}


def of(task: Task, model: nn.Module) -> Stream | None:
    """How sequences go through a model of the task; None where it takes them whole."""
    shapes = getattr(model, "state_shapes", None)
    if task.stream is None or shapes is None:
        return None
    states = {given: made for made, given in task.stream.states.items()}
    return Stream(
        states,
        {name: tuple(shapes[name]) for name in states},
        tuple(task.outputs),
        task.inputs[0],
        tuple(task.lengths),
        next(iter(task.lengths.values()), ""),
        task.stream.last_step,
    )


def of_fact(facts: Mapping[str, Any]) -> Stream | None:
    """How sequences go through an exported file, by its facts; None where it takes whole samples."""
    if (said := facts.get("stream")) is None:
        return None
    shapes = {name: tuple(shape) for name, shape in said["shapes"].items()}
    names = {name: tuple(said[name]) for name in ("outputs", "steps")}
    return Stream(said["states"], shapes, **names, **{name: said[name] for name in ("name", "lengths", "last")})


def _last(steps: Tensor, lengths: Tensor | None) -> Tensor:
    """[n, ...] of steps [n, T, ...]"""
    import torch

    if lengths is None:
        return steps[:, -1]
    return steps[torch.arange(len(steps), device=steps.device), lengths.to(steps.device) - 1]
