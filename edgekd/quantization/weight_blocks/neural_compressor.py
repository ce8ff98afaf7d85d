"""neural-compressor's searches for block-wise weights (its documented interface `prepare`, `convert`, `autotune` of
neural_compressor.torch.quantization), on the linear layers of a captured graph.

Its searches want modules named like those of a transformer, so the layers that read one value are given to it as a
block of their own, with what the graph feeds them: any graph will do, and AWQ's scale goes into a module before them,
which `weight_only` folds or keeps as a gain."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.errors import EnvironmentUnfit, Problem, RunFailed, first_line
from edgekd.quantization.weight_blocks.blocks import Blocks, dequantize

if TYPE_CHECKING:
    import torch
    from torch import nn

UNDECLARED = ("tqdm", "accelerate")  # what its GPTQ imports and its package doesn't ask for


def unfit(method: str) -> list[Problem]:
    """What of the machine's packages is missing for a method."""
    wanted = ("neural_compressor", "prettytable", "psutil", "cpuinfo", *(UNDECLARED if method == "gptq" else ()))
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    hint = f"pip install 'neural-compressor[pt]'{' ' + ' '.join(UNDECLARED) if method == 'gptq' else ''}"
    return (
        [Problem("method", f"`{method}` needs {', '.join(missing)}, which can't be imported", hint)] if missing else []
    )


def rtn(layers: Mapping[str, nn.Linear], *, bits: int, group_size: int, symmetric: bool = True) -> dict[str, Blocks]:
    """Round to nearest, block by block: symmetric scale = max|w| / (2^(bits-1) - 1) and zero point 2^(bits-1); else
    scale = (max(w, 0) - min(w, 0)) / (2^bits - 1) (neural_compressor/torch/algorithms/weight_only/utility.py:
    qdq_weight_sym, qdq_weight_asym). Scales are kept to 16 bits."""
    with _quiet(f"rounding {', '.join(layers)}") as library:
        config = _rtn(library, bits, group_size, symmetric)
        return _table(library.convert(library.prepare(_container(layers), config), config))


def awq(
    layers: Mapping[str, nn.Linear],
    values: Sequence[torch.Tensor],
    *,
    bits: int,
    group_size: int,
    symmetric: bool = True,
) -> tuple[dict[str, Blocks], np.ndarray]:
    """(table, gain float32 [K]) of layers that all read `values` ([..., K] per batch): activation-aware scales and
    clipping, Lin et al. 2023, arXiv 2306.00978. The layers are for what they read times the gain."""
    import torch

    names = {name: f"l{number}" for number, name in enumerate(layers)}
    with _quiet(f"AWQ of {', '.join(layers)}") as library:
        config = library.AWQConfig(
            bits=bits, group_size=group_size, use_sym=symmetric, absorb_layer_dict={"gain": tuple(names.values())}
        )
        model = _feed(library, _side_by_side(layers), values, config, True)
        gain, found = model.blocks[0].gain.weight.detach().clone(), _table(model.blocks[0])
    if not torch.isfinite(gain).all():
        raise RunFailed(f"AWQ of {', '.join(layers)} found a scale that is not finite")
    return {name: found[short] for name, short in names.items()}, gain.numpy()


def gptq(
    layers: Mapping[str, nn.Linear],
    values: Sequence[torch.Tensor],
    *,
    bits: int,
    group_size: int,
    symmetric: bool = True,
) -> dict[str, Blocks]:
    """Rounding that makes up for its own errors with the layers' remaining weights: Frantar et al. 2022, arXiv
    2210.17323. `values`: what the layers read, [..., K] per batch.

    A path that exists as `model_path` keeps it from asking a hub for a checkpoint."""
    names = {name: f"l{number}" for number, name in enumerate(layers)}
    with _quiet(f"GPTQ of {', '.join(layers)}") as library:
        config = library.GPTQConfig(
            bits=bits, group_size=group_size, use_sym=symmetric, model_path=".", use_layer_wise=False
        )
        found = _table(_feed(library, _side_by_side(layers), values, config, False).blocks[0])
    return {name: found[short] for name, short in names.items()}


def autotune(
    layers: Mapping[str, nn.Linear],
    bits: Sequence[int],
    score: Callable[[Mapping[str, Blocks]], float],
    *,
    group_size: int,
    tolerable_loss: float,
) -> tuple[dict[str, Blocks], list[dict[str, float]]]:
    """(table, trials) of the first of `bits` whose weights lose at most `tolerable_loss`, or of the best where none
    does, by neural-compressor's accuracy-driven `autotune`.

    `score(table)` is what the model loses in points with these weights ({}: the float model, 0). Its criterion is
    relative to the float model's figure; it is told 100 - loss, so that a share of a hundred is a point."""
    trials: list[dict[str, float]] = []

    def evaluated(model: nn.Module) -> float:
        if table := _table(model):
            trials.append({"bits": next(iter(table.values())).bits, "loss": score(table)})
        return 100.0 - (trials[-1]["loss"] if table else 0.0)

    with _quiet(f"tuning {', '.join(layers)}") as library:
        configs = [_rtn(library, each, group_size, True) for each in bits]
        tuning = library.TuningConfig(config_set=configs, tolerable_loss=tolerable_loss / 100, max_trials=len(configs))
        return _table(library.autotune(_container(layers), tune_config=tuning, eval_fn=evaluated)), trials


# ---------------------------------------------------------------- what it is given, and what comes back


def _rtn(library: Any, bits: int, group_size: int, symmetric: bool) -> Any:
    return library.RTNConfig(bits=bits, group_size=group_size, use_sym=symmetric, use_layer_wise=False)


def _container(layers: Mapping[str, nn.Linear]) -> nn.Module:
    from torch import nn

    return nn.ModuleDict({name: _linear(layer.weight, layer.bias) for name, layer in layers.items()})


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """A copy: the searches write into what they are given."""
    from torch import nn

    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    made.weight.data = weight.detach().clone()
    if bias is not None:
        made.bias.data = bias.detach().clone()
    return made


def _side_by_side(layers: Mapping[str, nn.Linear]) -> nn.Module:
    """A model of one block, `blocks.0`: a gain, and after it the layers `l0`, `l1`, ... side by side."""
    import torch
    from torch import nn

    class Gain(nn.Module):
        def __init__(self, width: int):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(width))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.weight

    class Side(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = Gain(next(iter(layers.values())).in_features)
            for number, layer in enumerate(layers.values()):
                self.add_module(f"l{number}", _linear(layer.weight, layer.bias))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.gain(x)
            return torch.cat([getattr(self, f"l{number}")(x) for number in range(len(layers))], -1)

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([Side()])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.blocks[0](x)

    return Whole().eval()


def _feed(library: Any, model: nn.Module, values: Sequence[torch.Tensor], config: Any, example: bool) -> nn.Module:
    import torch

    with torch.no_grad():
        prepared = library.prepare(model, config, **({"example_inputs": values[0][:1]} if example else {}))
        for value in values:
            prepared(value)
        return library.convert(prepared)


def _table(model: nn.Module) -> dict[str, Blocks]:
    """The layers of a model that it has packed. Raises RunFailed where the weights that it computes with are not those
    that it stored."""
    found = {}
    for name, layer in model.named_modules():
        if type(layer).__name__ != "INCWeightOnlyLinear":
            continue
        parts = layer.unpack()
        integers, scales, zeros = (parts[key].numpy() for key in ("int_weight", "scales", "zp"))
        found[name] = Blocks(
            layer.bits, layer.group_size, integers.astype(np.uint8), scales.astype(np.float32), zeros.astype(np.uint8)
        )
        ours, theirs = dequantize(found[name]), layer.recover().float().numpy()
        if not np.abs(ours - theirs).max() <= 2.0**-10 * np.abs(ours).max() + 1e-6:  # theirs are products in 16 bits
            raise RunFailed(f"neural-compressor's weights of `{name}` are not those that it stored")
    return found


@contextlib.contextmanager
def _quiet(doing: str) -> Iterator[Any]:
    """The library, silent, with its workspace in a folder that goes away. What fails inside becomes RunFailed; what
    can't be imported EnvironmentUnfit."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            tempfile.TemporaryDirectory() as folder,
        ):
            warnings.simplefilter("ignore")
            try:
                from neural_compressor.common import set_workspace
                from neural_compressor.torch import quantization

                set_workspace(folder)
                yield quantization
            except ImportError as error:
                hint = f"pip install 'neural-compressor[pt]' {error.name or ''}".strip()
                raise EnvironmentUnfit(
                    Problem("weight_only", f"neural-compressor can't be used: {error}", hint)
                ) from error
            except (AssertionError, RuntimeError, ValueError, AttributeError, IndexError) as error:
                text = first_line(error)
                raise RunFailed(
                    Problem("weight_only", f"{doing} failed: {text}", 'method = "rtn", or leave these layers in float')
                ) from error
    finally:
        logging.disable(before)
