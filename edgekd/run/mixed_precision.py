"""Mixed precision: besides an int8 file, files in which some layers stay in float, those that lose most for the time
that int8 saves there. Each is trained or calibrated, exported and measured like any other candidate, and chosen by the
same rules."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd import environment, quantization, targets
from edgekd.measure import jobs, operators
from edgekd.models import streams
from edgekd.probes import static
from edgekd.quantization.diagnosis import mixed_precision
from edgekd.quantization.diagnosis.sensitivity import SAMPLES, sensitivity
from edgekd.records import Deployment
from edgekd.run import feeds
from edgekd.run import plan as planning
from edgekd.run.plan import Plan
from edgekd.stages.quantize import calibration, steps

if TYPE_CHECKING:
    import onnx

    from edgekd.progress import Silent
    from edgekd.records import Artifact
    from edgekd.run.evaluate import Observed
    from edgekd.run.resolve import Resolved
    from edgekd.store.store import Store

CONVERSIONS = ("QuantizeLinear", "DequantizeLinear", "Transpose", "ReorderInput", "ReorderOutput")


def extend(
    resolved: Resolved,
    plan: Plan,
    made: Mapping[str, Artifact],
    observed: Sequence[Observed],
    store: Store,
    folder: Path,
    progress: Silent,
) -> Plan:
    """The plan with the mixed files of the recipe's `[mixed]`: for every int8 point of a stage named there and every
    share, one file that gives up at most this share of the time that int8 saves. A set of layers that is empty, or
    equal to that of another share, adds no file.

    A layer's loss is the noise that disappears if it stays in float. The time that int8 saves there is measured on this
    machine if it is one of the point's targets, else multiply-accumulates are counted. Both are kept with the artifact,
    so that a resumed run finds the same layers."""
    wanted = [
        (o, resolved.recipe.mixed[o.point.stages[-1]]) for o in observed if o.point.stages[-1] in resolved.recipe.mixed
    ]
    by_id, found = {o.point.id: o for o in observed}, plan
    with progress.task("find the layers that lose most with int8") as advance:
        for number, (o, shares) in enumerate(wanted, 1):
            parent = next((by_id[p] for p in o.point.parents if p in by_id and not by_id[p].point.reference), None)
            if not o.point.deployment.is_onnx:
                progress.say(f"{o.point.id}: layers of {o.point.deployment.format} files are not timed one by one")
                continue
            if parent is None or plan.steps[o.point.step].part.float_layers:
                continue
            noise, saved, sharing, unit = _known(o, parent, resolved, made[o.point.step], store, folder).values()
            whole, known = sum(s for s in saved.values() if s > 0), set()
            for share in sorted(shares):
                # always in the same order
                layers = tuple(
                    sorted(
                        name for first in mixed_precision.choose(noise, saved, share * whole) for name in sharing[first]
                    )
                )
                if layers and len(layers) < sum(map(len, sharing.values())) and layers not in known:
                    known.add(layers)
                    found = planning.extended(
                        resolved, found, o.point, {"float_layers": layers}, f"-float{len(layers)}", store
                    )
            if not known:
                progress.say(
                    f"{o.point.id}: every layer stays in int8: none loses enough for the time that int8 saves there"
                )
            elif unit != "us":
                progress.say(
                    f"{o.point.id}: no target can be timed on this machine; layers were weighed by their "
                    "multiply-accumulates"
                )
            advance(number, len(wanted), o.point.id)
    return found


def _known(
    o: Observed, parent: Observed, resolved: Resolved, source: Artifact, store: Store, folder: Path
) -> dict[str, Any]:
    """{noise: {layer: noise that disappears if it stays in float}, saved: {layer: cost that int8 saves there}, sharing:
    {layer: the layers with its weight, itself first}, unit}, from the store or computed. Layers that share a weight are
    one entry, under the name of the first."""
    from edgekd.quantization.torch_graph.sites import layers

    facts = environment.describe()
    timed = [t for t in resolved.targets if t.name in o.point.targets and targets.times(t, facts)]
    here = timed if o.point.deployment == Deployment() else []  # the clock of operators is onnxruntime's
    name = (
        f"layers-{environment.environment_id(facts)}-{here[0].threads}-{parent.artifact.key[:16]}"
        if here
        else "layers-macs"
    )
    kept = store.observed(o.artifact.key, name)
    if kept is None:
        columns = resolved.data("train")
        graph, module, _ = quantization.load(source, resolved.task, quantization.example_of(columns))
        sharing: dict[str, list[str]] = {}
        for layer, weight in layers(graph).items():
            sharing.setdefault(weight, []).append(layer)
        stream = streams.of_fact(o.artifact.facts)
        stepped = None if stream is None else partial(steps, stream, graph)
        costs = sensitivity(module, graph, calibration(columns, min(SAMPLES, len(columns)), stepped))
        each = _times(o, parent, graph, resolved, here[0].threads, folder) if here else _macs(o, graph)
        noise = {names[0]: costs[names[0]].gain for names in sharing.values()}
        saved = {names[0]: sum(each[n] for n in names) for names in sharing.values() if all(n in each for n in names)}
        kept = {
            "noise": noise,
            "saved": saved,
            "sharing": {names[0]: names for names in sharing.values()},
            "unit": "us" if here else "MACs",
        }
        store.observe(o.artifact.key, name, kept)
    return kept


def _times(
    o: Observed, parent: Observed, graph: Any, resolved: Resolved, threads: int, folder: Path
) -> dict[str, float]:
    """{layer: microseconds that int8 saves}, from both files with their layers named, measured interleaved. A float
    layer among integer ones also needs its input and output converted: that time is estimated from the int8 file's own
    conversions."""
    import onnx

    place, columns = folder / "profile" / "mixed", resolved.data("test")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    files = {"float": place / "float.onnx", "int8": place / "int8.onnx"}
    for file, of in zip(files.values(), (parent, o), strict=True):
        onnx.save(mixed_precision.named(onnx.load(of.file), graph), file)
    inputs = feeds.of(resolved.task, columns, stream=streams.of_fact(o.artifact.facts))
    timed, found = jobs.profile(files, inputs, jobs.Session(threads=threads, folder=place / "job")), []
    for name in files:
        raw = jobs.raw(place / "job", name)
        p50 = next(m.value for m in timed[name] if m.name == "latency_p50_ms")
        found.append(
            operators.measure(raw["out"] / raw["operators"]["trace"], warmup=raw["operators"]["warmup"], p50_ms=p50)
        )
    conversions = sum(op.ms for op in found[1].operators if op.kind in CONVERSIONS)
    return with_conversions(mixed_precision.saved(*found, *files.values()), onnx.load(files["float"]), conversions)


def with_conversions(saved: Mapping[str, float], model: onnx.ModelProto, conversions_ms: float) -> dict[str, float]:
    """{layer: microseconds that int8 saves there, plus those to convert its input and output if it alone stays in
    float}, at batch 1. `model`: the float file with its layers named; `conversions_ms`: the time in which the int8 file
    converts its own inputs and outputs."""
    shapes = static.value_shapes(model)
    size = lambda *names: sum(math.prod(shapes[name]) for name in names if name in shapes)
    ends = size(*(v.name for v in (*model.graph.input, *model.graph.output)))
    moved = {node.name: size(node.input[0], node.output[0]) for node in model.graph.node if node.name}
    return {layer: us + 1000 * conversions_ms * moved[layer] / max(1, ends) for layer, us in saved.items()}


def _macs(o: Observed, graph: Any) -> dict[str, float]:
    """{layer: multiply-accumulates}, where no time can be measured."""
    import onnx

    model = mixed_precision.named(onnx.load(o.file), graph)
    try:
        counted = static.node_macs(model)
    except static.Open:  # a shape that depends on the samples: nothing is known of what int8 saves
        return {}
    return {node.name: float(counted[i]) for i, node in enumerate(model.graph.node) if node.name and i in counted}
