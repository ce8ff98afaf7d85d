"""Recurrent cells as the linear layers and products that they are made of: these have integer kernels, and a cell has
none."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@contextlib.contextmanager
def written_out() -> Iterator[None]:
    """Within it, RNNCell, GRUCell and LSTMCell compute the same by layers of their own."""
    import torch
    from torch.overrides import TorchFunctionMode

    functions = {getattr(torch._C._VariableFunctions, name): how for name, how in CELLS.items()}

    class Cells(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return functions.get(function, function)(*args, **(kwargs or {}))

    with Cells():
        yield


def _products(x: Tensor, h: Tensor, w: Tensor, u: Tensor, b: Any = None, c: Any = None) -> tuple[Tensor, Tensor]:
    from torch.nn import functional as F

    return F.linear(x, w, b), F.linear(h, u, c)


def _gru(x: Tensor, h: Tensor, *weights: Any) -> Tensor:
    (r, z, n), (from_r, from_z, from_n) = (product.chunk(3, 1) for product in _products(x, h, *weights))
    new, keep = (n + (r + from_r).sigmoid() * from_n).tanh(), (z + from_z).sigmoid()
    return new + keep * (h - new)


def _lstm(x: Tensor, states: Any, *weights: Any) -> tuple[Tensor, Tensor]:
    h, c = states
    given, kept = _products(x, h, *weights)
    i, f, g, o = (given + kept).chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _tanh(x: Tensor, h: Tensor, *weights: Any) -> Tensor:
    given, kept = _products(x, h, *weights)
    return (given + kept).tanh()


def _relu(x: Tensor, h: Tensor, *weights: Any) -> Tensor:
    given, kept = _products(x, h, *weights)
    return (given + kept).relu()


CELLS = {"gru_cell": _gru, "lstm_cell": _lstm, "rnn_tanh_cell": _tanh, "rnn_relu_cell": _relu}
