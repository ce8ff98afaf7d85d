"""The scores of a model's output as tensors with the classes last, by what the task says of the output. A yes-or-no
label is two classes with logits 0 and z: sigmoid(z) = softmax([0, z])[1], so losses on classes are its binary forms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgekd.outputs import Output

if TYPE_CHECKING:
    import torch


def classes_last(output: Output | None, values: torch.Tensor) -> torch.Tensor:
    """Scores [n, ..., classes] of an output [n, ...]; unchanged where the task says nothing of it."""
    import torch

    if output is None:
        return values
    if output.kind == "yes_no":
        return torch.stack((torch.zeros_like(values), values), -1)
    return values.movedim(output.axis, -1)


def as_given(output: Output | None, scores: torch.Tensor) -> torch.Tensor:
    """The output [n, ...] that has these scores [n, ..., classes]; the inverse of `classes_last`."""
    if output is None:
        return scores
    return scores[..., 1] - scores[..., 0] if output.kind == "yes_no" else scores.movedim(-1, output.axis)


def rows(output: Output, values: torch.Tensor) -> torch.Tensor:
    """Scores [n * positions, classes] of an output [n, ...]."""
    scores = classes_last(output, values)
    return scores.reshape(-1, scores.shape[-1])


def predicted(output: Output | None, values: torch.Tensor) -> torch.Tensor:
    """The class of every position [n, ...] of an output; of a yes-or-no label 0 or 1, yes where the logit is above
    0."""
    return classes_last(output, values).argmax(-1)


def shown(output: Output | Mapping[str, Output] | None, values: Any) -> dict[str, torch.Tensor]:
    """{name: predicted classes [n, ...]} of those of several outputs that have classes; {"": ...} of the only one."""
    if not isinstance(output, Mapping):
        return {"": predicted(output, values)}
    return {name: predicted(one, values[name]) for name, one in output.items() if one.scored}


def steps_of(output: Output | None) -> int:
    """The axis of the steps of a sequence in an output: [n, C, steps] where the classes come first, else [n, steps,
    ...]."""
    return 2 if output is not None and output.kind == "classes" and output.axis in (1, -2) else 1


def file_of(what: str, name: str) -> str:
    """The name of the file that holds a teacher's `logits` or what is shown of them, of one of several outputs."""
    return f"{what}.{name}.npy" if name else f"{what}.npy"
