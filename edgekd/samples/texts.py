"""Texts as arrays of token numbers, by a tokenizer file of the library tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgekd import environment
from edgekd.errors import EnvironmentUnfit, Problem, UsageError, first_line
from edgekd.files import content
from edgekd.samples.signature import Signature, Tensor


def tokenizer(path: Path) -> Any:
    """The tokenizer of a file (tokenizer.json). Raises UsageError where it is none, EnvironmentUnfit without the
    library."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        unfit = Problem("--tokenizer", "reading texts needs tokenizers", environment.extra("text"))
        raise EnvironmentUnfit(unfit) from None
    try:
        return Tokenizer.from_str(content(path).decode())
    except Exception as error:  # the library raises Exception itself
        reason = first_line(error, 200)
        raise UsageError(Problem(str(path), f"is not a tokenizer file: {reason}", "give its tokenizer.json")) from None


def arrays(text: str, how: Any, signature: Signature, place: str) -> dict[str, np.ndarray]:
    """{input: [1, tokens]} of a text: token numbers, and the mask and the kinds of tokens where inputs are called so. A
    model of fixed length gets the first tokens, or padding. Raises UsageError where it takes something else."""
    wrong = [
        n for n, t in signature.inputs.items() if t.dtype is None or t.dtype.kind not in "iu" or len(t.dims or ()) != 2
    ]
    if wrong or not signature.inputs:
        hint = "a model of texts takes token numbers [n, tokens]; give .npz files for this one"
        raise UsageError(Problem(place, f"is a text, and the input {', '.join(wrong)} takes no token numbers", hint))
    length = next((t.dims[1] for t in signature.inputs.values() if t.dims and isinstance(t.dims[1], int)), None)
    if length is not None:
        how.enable_truncation(length)
        how.enable_padding(length=length)
    found = how.encode(text)
    return {name: _of(name, tensor, found) for name, tensor in signature.inputs.items()}


def _of(name: str, tensor: Tensor, found: Any) -> np.ndarray:
    low = name.lower()
    values = found.attention_mask if "mask" in low else found.type_ids if "type" in low else found.ids
    return np.array([values], tensor.dtype)
