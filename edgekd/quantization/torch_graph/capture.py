"""A model as one graph: torch.export with a dynamic batch, batch norms folded into the layer before them. Sites are
named in this graph."""

from __future__ import annotations

import copy
import hashlib
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgekd.errors import THEIRS, Problem, UsageError, first_line
from edgekd.inputs import positional
from edgekd.models import streams
from edgekd.quantization.torch_graph import cells
from edgekd.quantization.torch_graph.recurrent import original, whole
from edgekd.quantization.torch_graph.rewrite import by_rows, pooled, without_neutral, written_out
from edgekd.quantization.torch_graph.sites import WEIGHTED, operator

if TYPE_CHECKING:
    import torch
    from torch import fx, nn

    from edgekd.records import Task


def capture(
    model: nn.Module,
    example: Any,
    forward: Callable[[nn.Module, Any], torch.Tensor] | None = None,
    lengths: Mapping[str, str] | None = None,
) -> fx.GraphModule:
    """The model in evaluation mode as a graph over its parameters. `example`: inputs tensor [2 or more, ...] or {name:
    tensor}; `lengths`: a task's, whose inputs [n, T, ...] have an open T.

    Raises UsageError where torch.export can't trace the model (control flow on values, a fixed batch size)."""
    import torch
    from torch import fx, nn

    class Called(nn.Module):
        """The task's `forward` with inputs as plain arguments."""

        def __init__(self, model: nn.Module):
            super().__init__()
            self.model = model

        def forward(self, *tensors: torch.Tensor) -> Any:
            inputs = dict(zip(example, tensors, strict=True)) if isinstance(example, Mapping) else tensors[0]
            return forward(self.model, inputs) if forward is not None else self.model(inputs)

    tensors = positional(example)
    plain = forward is None and not isinstance(example, Mapping)
    module = copy.deepcopy(model).eval().requires_grad_(True)
    module = module if plain else Called(module).eval()
    shapes = _open(example, lengths or {})
    try:
        with warnings.catch_warnings(), torch.no_grad(), whole():
            warnings.simplefilter("ignore")
            program = written_out(exported(module, tensors, shapes, packed=not plain))
    except THEIRS as error:
        reason = first_line(error)
        raise UsageError(
            Problem(
                "model",
                f"can't be captured as a graph: {reason}",
                "avoid Python control flow on values, and fixed sizes of batches and of lengths",
            )
        ) from error
    graph = fx.GraphModule(*_unlifted(program))
    without_neutral(graph.graph)
    fold(graph)
    by_rows(graph.graph)
    pooled(graph.graph)
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    _drop_unused(graph)
    graph.recompile()
    return graph


def exported(
    module: nn.Module, tensors: tuple[torch.Tensor, ...], dims: Sequence[Mapping[int, Any]], packed: bool = False
) -> torch.export.ExportedProgram:
    """`torch.export` with open dimensions, {axis: dimension} of each input; `packed`: the module takes them as
    *tensors. Steps begin at 1, or at the least number that the layers take: strides over them need more in a graph,
    where 1 is special."""
    import torch

    sizes = {d.__name__: x.shape[axis] for x, each in zip(tensors, dims, strict=True) for axis, d in each.items()}
    first, given = None, dims
    while True:
        try:
            return torch.export.export(
                module, tensors, dynamic_shapes=(tuple(given),) if packed else tuple(given), strict=False
            )
        except THEIRS as error:
            first = first or error
            known = {d.__name__: d for each in given for d in each.values()}
            wrong = [n for n in known if n != "batch" and re.search(rf"\b{n}\b", str(error))]
            more = {n: torch.export.Dim(n, min=2 * known[n].min + 1) for n in wrong if 2 * known[n].min < sizes[n]}
            if "Constraints violated" not in str(error) or not more:
                raise first from None
            given = [{axis: more.get(d.__name__, d) for axis, d in each.items()} for each in given]


def of_task(task: Task, model: nn.Module, inputs: Any) -> fx.GraphModule:
    """A model of the task as a graph; a streaming one as that of a step. `inputs`: a few samples, as the task has
    them."""
    if (stream := streams.of(task, model)) is None:
        return capture(model, inputs, task.traced, task.lengths)
    graph = capture(model, stream.example(inputs), step_of(task, stream))
    answers, states = (found := ends(graph))[: len(stream.outputs)], found[len(stream.outputs) :]
    for node in states:
        node.meta["state"] = node not in answers
    return graph


def step_of(task: Task, stream: streams.Stream) -> Callable[[nn.Module, Any], Any]:
    """How a streaming model is called where its step becomes a graph."""

    def step(model: nn.Module, feed: Any) -> Any:
        with cells.written_out():
            return stream.called(task, model)(feed)

    return step


def ends(graph: fx.GraphModule) -> list[fx.Node]:
    """The values that a graph gives."""
    (given,) = (node.args[0] for node in graph.graph.nodes if node.op == "output")
    return list(given) if isinstance(given, tuple | list) else [given]


def _open(example: Any, lengths: Mapping[str, str]) -> tuple[dict[int, Any], ...]:
    """({axis: its dimension}) of each input: samples are open, and steps of what has `lengths`, which share theirs
    where they share these."""
    import torch

    batch = torch.export.Dim("batch", min=1)
    if not isinstance(example, Mapping):
        return ({0: batch},)
    steps = {of: torch.export.Dim(f"steps{i}", min=1) for i, of in enumerate(dict.fromkeys(lengths.values()))}
    return tuple({0: batch, **({1: steps[lengths[name]]} if name in lengths else {})} for name in example)


def opened(graph: fx.GraphModule) -> tuple[dict[int, Any], ...]:
    """({axis: its dimension}) of each input of a captured graph, to export it again."""
    import torch

    known: dict[str, Any] = {}
    return tuple(
        {
            axis: known.setdefault(str(size), torch.export.Dim(f"open{len(known)}", min=1))
            for axis, size in enumerate(node.meta["val"].shape)
            if not isinstance(size, int)
        }
        for node in graph.graph.nodes
        if node.op == "placeholder"
    )


def _unlifted(program: torch.export.ExportedProgram) -> tuple[dict[str, Any], fx.Graph]:
    """({name: tensor}, graph) with parameters as attributes again and one tensor (or a tuple) as output."""
    from torch import fx, nn

    signature = program.graph_signature
    named = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    tensors = {**program.constants, **program.state_dict}
    used, graph, values, first = {}, fx.Graph(), {}, {}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in named:
            tensor = tensors[named[node.name]]
            # tied weights stay one
            target = first.setdefault((tensor.data_ptr(), tuple(tensor.shape)), named[node.name])
            values[node] = graph.get_attr(_attribute(target))
            used[_attribute(target)] = (
                nn.Parameter(tensor.detach().clone())
                if node.name in signature.inputs_to_parameters
                else tensor.detach().clone()
            )
        elif node.op == "output":
            outputs = [
                values[n]
                for n in node.args[0]
                if n is not None and getattr(n, "name", "") not in signature.buffers_to_mutate
            ]
            graph.output(outputs[0] if len(outputs) == 1 else tuple(outputs))
        elif node.op == "call_function" and operator(node) in ("_assert_tensor_metadata", "_guards_fn"):
            continue
        else:
            values[node] = graph.node_copy(node, lambda n: values[n])
            values[node].target, values[node].args = original(values[node].target, values[node].args)
        if node in values:
            values[node].meta = {k: v for k, v in node.meta.items() if k == "val"}
            values[node].meta["stack"] = str(node.meta.get("nn_module_stack", ""))
    return used, graph


def _attribute(name: str) -> str:
    """A flat attribute name for a parameter's dotted path: nothing in the graph then depends on how modules nest."""
    return name.replace(".", "__")


def readable(name: str) -> str:
    """The dotted path that an attribute of the graph was made from."""
    return name.replace("__", ".")


def fold(module: fx.GraphModule) -> None:
    """Folds each batch norm into the convolution or linear layer whose only reader it is: w' = w g / sqrt(v + eps),
    b' = (b - m) g / sqrt(v + eps) + beta (Jacob et al. 2018, section 3.2). A pair that is called twice stays one
    pair."""
    import torch
    from torch import nn

    done: dict[tuple, tuple[str, str]] = {}
    for node in list(module.graph.nodes):
        if operator(node) != "batch_norm":
            continue
        layer = node.args[0]
        axis = WEIGHTED.get(operator(layer))
        arguments = [
            a if a is None or isinstance(a, (int, float, bool)) else getattr(module, a.target, None)
            for a in node.args[1:]
        ]
        if axis is None or len(layer.users) > 1 or layer.args[1].op != "get_attr" or arguments[4] is True:
            continue
        gamma, beta, mean, variance, eps = arguments[0], arguments[1], arguments[2], arguments[3], arguments[6]
        weight_name = layer.args[1].target
        bias_node = layer.args[2] if len(layer.args) > 2 else None
        identity = (weight_name, bias_node.target if bias_node is not None else None, node.args[3].target)
        weight = getattr(module, weight_name).detach()
        groups = layer.args[6] if operator(layer).startswith("conv_transpose") and len(layer.args) > 6 else 1
        if identity not in done:
            factor = torch.rsqrt(variance + eps) * (gamma.detach() if gamma is not None else 1.0)
            shift = (beta.detach() if beta is not None else 0.0) - mean * factor
            if axis == 0:
                folded = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
            else:  # transposed: [in, out / groups, ...]
                folded = weight * factor.reshape(groups, -1).repeat_interleave(weight.shape[0] // groups, 0).reshape(
                    *weight.shape[:2], *[1] * (weight.ndim - 2)
                )
            bias = shift if bias_node is None else getattr(module, bias_node.target).detach() * factor + shift
            names = (_free(module, f"{weight_name}__folded"), _free(module, f"{weight_name}__folded_bias"))
            setattr(module, names[0], nn.Parameter(folded))
            setattr(module, names[1], nn.Parameter(bias))
            done[identity] = names
        names = done[identity]
        with module.graph.inserting_before(layer):
            new_weight, new_bias = module.graph.get_attr(names[0]), module.graph.get_attr(names[1])
        args = list(layer.args) + [None] * (3 - len(layer.args))
        args[1], args[2] = new_weight, new_bias
        layer.args = tuple(args)
        node.replace_all_uses_with(layer)
        module.graph.erase_node(node)


def _free(module: nn.Module, name: str) -> str:
    number, found = 0, name
    while hasattr(module, found):
        number, found = number + 1, f"{name}_{number}"
    return found


def _drop_unused(module: fx.GraphModule) -> None:
    used = {n.target for n in module.graph.nodes if n.op == "get_attr"}
    for store in (module._parameters, module._buffers):
        for name in [n for n in store if n not in used]:
            del store[name]


def graph_digest(module: fx.GraphModule) -> str:
    """A digest of the graph's structure: names, operators, constants and shapes of parameters; not of weights or
    paths."""
    lines = []
    for node in module.graph.nodes:
        shape = tuple(getattr(module, node.target).shape) if node.op == "get_attr" else ""
        # no address of a function
        target = (
            node.target if isinstance(node.target, str) or hasattr(node.target, "overloadpacket") else operator(node)
        )
        lines.append(
            f"{node.op} {node.name} {target if node.op != 'placeholder' else ''} {node.args} {dict(node.kwargs)} "
            f"{shape}"
        )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
