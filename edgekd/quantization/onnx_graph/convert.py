"""A float ONNX file from elsewhere and samples of its inputs -> a file in QDQ form: no torch, no source code of the
model.

`normalize` brings the file into one form, `placement` says which of its values are quantized, this calibrates them with
onnxruntime, `render` writes them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from edgekd import components
from edgekd.errors import Problem, UsageError, first_line, near
from edgekd.onnx_files import external, subgraphs
from edgekd.quantization.histogram import Extremes, Histogram
from edgekd.quantization.onnx_graph import bias, embeddings, gates, kernels, normalize, render, scales, widened
from edgekd.quantization.onnx_graph import equalize as equalizing
from edgekd.quantization.onnx_graph.placement import Layer, Placement, place
from edgekd.quantization.qdq import graph as graphs
from edgekd.quantization.qdq.graph import Graph
from edgekd.quantization.qdq.values import session
from edgekd.records import Grid, Scheme
from edgekd.samples import rows as samples

if TYPE_CHECKING:
    import onnx

FOLDED = 1e-3  # relative difference (root mean square) that folding batch norms may make: far below int8's
CHUNK = 2**26  # bytes of values that one run shows
MOST = 64  # samples of a run
FEW = 128  # samples that channels are equalized and biases corrected by

Kept = TypeVar("Kept", Extremes, Histogram)


@dataclass(frozen=True)
class Made:
    """`float_model` is the file in normal form, whose value names `placement` and `grid` use; `model` the int8 file.
    `width`: bytes of a float in the file that was given."""

    float_model: onnx.ModelProto
    model: onnx.ModelProto
    placement: Placement
    grid: Grid
    tables: tuple[embeddings.Table, ...] = ()
    width: int = 4


def quantize(
    model: onnx.ModelProto,
    arrays: Mapping[str, np.ndarray] | samples.Samples,
    *,
    scheme: Scheme = Scheme(),  # noqa: B008  (frozen)
    ranges: str = "minmax",
    equalize: bool = False,
    correct_bias: bool = False,
    place_name: str = "",
    fixed: Mapping[str, tuple[float, float]] = {},
    progress: Callable[[int, int], Any] = lambda done, of: None,
) -> Made:
    """Quantizes `model` (as `probes.static.read` returns it) by samples: of arrays {input: [n, ...]} the
    first dimension that the file fixes says how many it takes at once. `fixed` {value: its range}, of those whose range
    is known. `equalize`: channels are made equally wide first; `correct_bias`: biases make up for the rounding of
    weights.

    Raises UsageError for a file that has nothing to quantize or can't be run, and for values or weights that are not
    finite."""
    float_model = normalize.normalized(model, place_name)
    given = samples.fitting(arrays, model)
    first, few = given.some(1).feed(), given.take(slice(0, FEW))
    if equalize:
        float_model = equalizing.equalized(float_model, few)
    shown, outputs = everything(float_model, first, place_name)
    _same(session(widened.widened(model))(dict(first)), outputs, place_name)
    graph, floats = graphs.of(float_model), frozenset(shown)
    placement = _labelled(place(graph, floats), node_names(model))
    wanted: set[str] = set()
    if scheme.float_layers:
        wanted = _asked(placement, scheme.float_layers, place_name)
        placement = _labelled(place(graph, floats, wanted), node_names(model))
    part = components.find("ranges", ranges)
    asked = inspect.signature(part).parameters
    kind = Extremes if next(iter(asked), "") == "extremes" else Histogram
    bits = {"bits": scheme.activation_bits} if "bits" in asked else {}
    seen: dict[str, Extremes | Histogram] = {}
    unfused: set[str] = set()
    while True:
        _possible(graph, placement, place_name)
        new = [n for n in placement.values if n not in seen]
        if new:
            rows = given.rows or min(MOST, max(1, CHUNK // max(1, sum(shown.get(n, 0) for n in placement.values))))
            chunks = _counted(given.batches(rows), -(-len(given) // rows), progress)
            seen |= observe(float_model, new, chunks, kind)
        found = {name: part(seen[name], **bits) for name in placement.values} | dict(fixed)
        found = gates.alive(graph, found) if equalize else found
        sites = scales.sites(graph, placement, found, scheme)
        biases = bias.corrected(graph, placement, sites, few) if correct_bias else {}
        made = render.render(replace(graph, constants={**graph.constants, **biases}), placement, sites)
        if not (still := kernels.in_float(made, placement, graph)):
            break
        unfused |= still  # rounding them would cost accuracy and save no time
        placement = _labelled(place(graph, floats, wanted, unfused), node_names(model))
    grid, width = Grid(_digest(float_model), scheme, sites), 2 if widened.short(model) else 4
    return Made(float_model, made, placement, grid, embeddings.shrink(made), width)


def observe(
    model: onnx.ModelProto,
    names: Sequence[str],
    feeds: Iterable[Mapping[str, np.ndarray]],
    kind: type[Kept] = Histogram,
) -> dict[str, Kept]:
    """{value: what is kept of it over all feeds}. Raises UsageError with every value that is not finite, by name."""
    found, broken = {name: kind() for name in names}, {}
    inputs = {i.name for i in model.graph.input}
    infer = session(model, [n for n in names if n not in inputs])
    for feed in feeds:
        values = {**feed, **infer(dict(feed))}
        for name in names:
            array = values[name]
            # what is not finite shows in an extreme
            if not array.size or np.isfinite([array.min(), array.max()]).all():
                found[name].add(array)
            else:
                broken[name] = int((~np.isfinite(array)).sum()) + broken.get(name, 0)
        del values  # before the next run makes its own
    if broken:
        hint = "look for a layer that overflows, or inputs out of the model's range"
        raise UsageError(
            *(
                Problem(f"value {name}", f"{count} numbers are not finite in calibration", hint)
                for name, count in broken.items()
            )
        )
    return found


def everything(
    model: onnx.ModelProto, feed: Mapping[str, np.ndarray], place_name: str
) -> tuple[dict[str, int], dict[str, np.ndarray]]:
    """({value: bytes} of all float32 tensors that the file computes or takes, its outputs)."""
    names = [o for node in model.graph.node for o in node.output if o]
    try:
        values = {**session(model, names)(dict(feed)), **feed}
    except Exception as error:  # onnxruntime's classes have no common base
        raise UsageError(Problem(place_name, f"onnxruntime can't run it on the samples: {first_line(error)}")) from None
    shown = {n: v.nbytes for n, v in values.items() if isinstance(v, np.ndarray) and v.dtype == np.float32}
    return shown, {o.name: values[o.name] for o in model.graph.output}


def _same(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], place_name: str) -> None:
    """Raises UsageError where the outputs of the normal form are others than the file's."""
    for name, value in before.items():
        # of a sequence a list
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or not np.isfinite(value).all():
            continue
        apart = float(np.linalg.norm(after[name].astype(np.float64) - value)) / max(
            float(np.linalg.norm(value.astype(np.float64))), 1e-30
        )
        if apart > FOLDED:
            message = f"output {name} changes by {apart:.1e} of its size when constants and batch norms are folded"
            raise UsageError(
                Problem(
                    place_name, message, "its weights cancel each other out in float32; scale them to moderate sizes"
                )
            )


def _possible(graph: Graph, placement: Placement, place_name: str) -> None:
    """Raises UsageError with every weight that is not finite, or where no layer can be quantized."""
    integer = [known for known in placement.layers if not known.reason]
    stored = dict.fromkeys(n for known in integer for n in (known.weight, known.bias) if n is not None)
    broken = [n for n in stored if not np.isfinite(graph.constants[n]).all()]
    if broken:
        raise UsageError(
            *(
                Problem(place_name, f"the weight {n} holds numbers that are not finite", "train it again")
                for n in broken
            )
        )
    if not any(known.weight is not None for known in integer):
        reasons = "; ".join(
            dict.fromkeys(f"{known.label}: {known.reason}" for known in placement.layers[:5] if known.reason)
        )
        raise UsageError(
            Problem(
                place_name,
                "no layer can be quantized",
                reasons or "it has no convolution or product of float32 values with stored weights",
            )
        )


def _asked(placement: Placement, names: Sequence[str], place_name: str) -> set[str]:
    """Outputs of the layers of these names. Raises UsageError for every name that is no layer's."""
    known = {k.label: k.name for k in placement.layers}
    unknown = [n for n in names if n not in known]
    if unknown:
        hints = {n: near(n, known, f"its layers are {', '.join(known)}") for n in unknown}
        raise UsageError(*(Problem(place_name, f"has no layer `{n}` to keep in float", hints[n]) for n in unknown))
    return {known[n] for n in names}


def node_names(model: onnx.ModelProto) -> set[str]:
    return {n.name for graph in subgraphs.graphs(model.graph) for n in graph.node}


def _labelled(placement: Placement, names: set[str]) -> Placement:
    return replace(placement, layers=labelled(placement.layers, names))


def labelled(layers: Iterable[Layer], names: set[str]) -> tuple[Layer, ...]:
    """Layers by their `names` in the file; what onnxruntime made of several nodes is called by its output."""
    return tuple(k if k.label in names else replace(k, label=k.name.removesuffix(".made")) for k in layers)


def _counted(
    chunks: Iterable[dict[str, np.ndarray]], count: int, progress: Callable[[int, int], Any]
) -> Iterable[dict[str, np.ndarray]]:
    for number, chunk in enumerate(chunks, 1):
        yield chunk
        progress(number, count)


def _digest(model: onnx.ModelProto) -> str:
    import hashlib

    found = hashlib.sha256()
    for _, data in external.parts(model, "model.onnx"):
        found.update(data)
    return found.hexdigest()


def stored_bytes(made: Made) -> dict[str, tuple[int, int]]:
    """{layer: (float, int8) bytes of its own tensors}: weights, their scales, bias."""
    each = list(subgraphs.graphs(made.float_model.graph))
    sizes = {i.name: int(np.prod(i.dims)) for graph in each for i in graph.initializer}
    reads = {graphs.made(node): node.input for node in made.float_model.graph.node}
    for node in made.float_model.graph.node:
        reads |= {f"{graphs.made(node)}/{graphs.made(n)}": n.input for n in subgraphs.nested(node)}
    found = {}
    for layer in made.placement.layers:
        if layer.weight is None:
            total = made.width * sum(sizes[n] for n in reads.get(layer.name, ()) if n in sizes)
            found[layer.name] = total, total
            continue
        elements, bias = sizes[layer.weight], sizes[layer.bias] if layer.bias else 0
        site = made.grid.sites.get(layer.weight)
        after = 4 * (elements + bias) if site is None else elements + 4 * len(site.scale) + 8 * bias
        found[layer.name] = made.width * (elements + bias), after
    return found
