"""Block-wise weights: the table, neural-compressor's searches, and the file that holds their integers."""

import dataclasses
import importlib.util

import numpy as np
import onnx
import pytest
import torch
from encoder import Encoder, encoder_task
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from toys import run_in

from edgekd import signatures
from edgekd.errors import EnvironmentUnfit, RunFailed
from edgekd.formats import _nbits
from edgekd.models import saved
from edgekd.probes import Subject, static
from edgekd.quantization.torch_graph.capture import capture
from edgekd.quantization.weight_blocks import awq, blocks, check, neural_compressor
from edgekd.quantization.weight_blocks.blocks import Blocks
from edgekd.records import Artifact
from edgekd.runtimes.onnxruntime import load
from edgekd.stages.export import Export
from edgekd.stages.train import Train
from edgekd.stages.weight_only import WeightOnly
from edgekd.store import fingerprint

needs_gptq = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in neural_compressor.UNDECLARED),
    reason="neural-compressor's GPTQ needs tqdm and accelerate",
)


def made(run, form, facts):
    return Artifact("key", form, {"weights.safetensors": "0"}, {}, "", {}, 0, facts, run.folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trained encoder whose first layer norm hides outliers: four of its features are small, and the weights that
    read them large."""
    task, folder = encoder_task(count=2048, model=lambda width: Encoder(width, 1)), tmp_path_factory.mktemp("trained")
    run = run_in(folder, task)
    facts = Train(epochs=12, batch=64, lr=3e-3)(None, run).facts
    module = saved.load(made(run, "torch", facts), task)
    layer = module.layers[0]
    with torch.no_grad():
        for parameter in (layer.norm1.weight, layer.norm1.bias):
            parameter[:4] /= 40
        for linear in (layer.q, layer.k, layer.v):
            linear.weight[:, :4] *= 40
    saved.save(run.folder, module, model="student")
    return task, made(run, "torch", facts)


def rounded(trained, folder, **settings):
    task, source = trained
    run = run_in(folder, task)
    return made(run, "weight_only", WeightOnly(**settings)(source, run).facts)


def exported(task, artifact, folder):
    run = run_in(folder, task)
    return Export()(artifact, run).facts, run.folder / "model.onnx"


@pytest.fixture(scope="module")
def nearest(trained, tmp_path_factory):
    """(artifact of `rtn`, facts of its export, file)"""
    folder = tmp_path_factory.mktemp("nearest")
    artifact = rounded(trained, folder / "table", method="rtn")
    return artifact, *exported(trained[0], artifact, folder / "file")


def linear(rows, bias=False):
    layer = nn.Linear(len(rows[0]), len(rows), bias=bias)
    layer.weight.data = torch.tensor(rows)
    return layer


def random_blocks(bits=4, block=32, outputs=6, inputs=80, seed=0):
    rng, count = np.random.default_rng(seed), -(-inputs // block)
    draw = lambda shape: rng.integers(0, 2**bits, shape).astype(np.uint8)
    return Blocks(
        bits,
        block,
        draw((outputs, inputs)),
        rng.uniform(0.01, 0.1, (outputs, count)).astype(np.float32),
        draw((outputs, count)),
    )


# ---------------------------------------------------------------- the table


def test_rounding_is_as_worked_out_by_hand():
    first, second = [7.0, -7.0, -3.4, 0.5, 1.5, 2.0] + [0.0] * 10, [0.5, -0.3] + [0.0] * 14
    table = neural_compressor.rtn({"one": linear([first + second])}, bits=4, group_size=16)["one"]
    assert table.integers[0, :6].tolist() == [15, 1, 5, 8, 10, 10]  # scale 7 / 7, halves to the even one, 8 is zero
    # -0.3 / (0.5 / 7) = -4.2
    assert table.integers[0, 16:19].tolist() == [15, 4, 8] and table.zero_points.tolist() == [[8, 8]]
    assert table.scales.tolist() == [[1.0, float(np.float16(0.5 / 7))]]
    table = neural_compressor.rtn(
        {"one": linear([[2.0, -1.0, 0.4] + [0.0] * 13])}, bits=4, group_size=16, symmetric=False
    )["one"]
    assert table.integers[0, :4].tolist() == [15, 0, 7, 5]  # scale 3 / 15, zero point 1 / 0.2
    assert table.scales.tolist() == [[float(np.float16(0.2))]] and table.zero_points.tolist() == [[5]]
    table = neural_compressor.rtn({"one": linear([[12.7, -0.1, 3.0] + [0.0] * 13])}, bits=8, group_size=16)["one"]
    assert table.integers[0, :4].tolist() == [255, 127, 158, 128]  # scale 12.7 / 127


def test_packing_is_as_worked_out_by_hand():
    table = Blocks(
        4, 16, np.arange(18, dtype=np.uint8)[None] % 16, np.ones((1, 2), np.float32), np.array([[8, 3]], np.uint8)
    )
    integers, scales, zeros = blocks.packed(table)
    assert integers.shape == (1, 2, 8) and integers[0, 0].tolist() == [0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE]
    assert integers[0, 1].tolist() == [0x10] + [0] * 7 and zeros.tolist() == [[0x38]] and scales.shape == (1, 2)
    assert blocks.dequantize(dataclasses.replace(table, scales=np.array([[1.0, 2.0]], np.float32)))[
        0, [0, 15, 16, 17]
    ].tolist() == [-8, 7, -6, -4]


@pytest.mark.parametrize("bits, block, inputs", [(4, 16, 64), (4, 32, 80), (8, 32, 80), (4, 64, 24), (8, 128, 128)])
def test_onnxruntime_reads_the_table_as_we_do(tmp_path, bits, block, inputs):
    table, x = (
        random_blocks(bits, block, 6, inputs),
        np.random.default_rng(1).normal(size=(3, inputs)).astype(np.float32),
    )
    arrays = dict(zip(("q", "s", "z"), blocks.packed(table), strict=True))
    assert sum(a.nbytes for a in arrays.values()) == blocks.bytes_of(table)
    attributes = {"K": inputs, "N": 6, "bits": bits, "block_size": block, "accuracy_level": 1}
    node = helper.make_node("MatMulNBits", ["x", *arrays], ["y"], domain="com.microsoft", **attributes)
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", w]) for n, w in (("x", inputs), ("y", 6))]
    graph = helper.make_graph(
        [node], "g", values[:1], values[1:], [numpy_helper.from_array(a, n) for n, a in arrays.items()]
    )
    domains = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=10), tmp_path / "m.onnx")
    ours = x.astype(np.float64) @ blocks.dequantize(table).astype(np.float64).T
    assert np.abs(load(str(tmp_path / "m.onnx"), 1)({"x": x})["y"] - ours).max() <= 1e-5 * np.abs(ours).max()


def test_a_table_is_read_as_it_was_written(tmp_path):
    table = {
        "a": random_blocks(),
        "b": dataclasses.replace(random_blocks(8), gain=np.linspace(0, 1, 80, dtype=np.float32)),
    }
    blocks.write(table, "digest", tmp_path)
    found, digest = blocks.read(tmp_path)
    assert digest == "digest" and list(found) == ["a", "b"] and found["a"].gain is None
    for name, given in table.items():
        for key in ("integers", "scales", "zero_points"):
            assert (
                np.array_equal(getattr(found[name], key), getattr(given, key))
                and getattr(found[name], key).dtype == getattr(given, key).dtype
            )
    assert np.array_equal(found["b"].gain, table["b"].gain) and found["b"].bits == 8
    (tmp_path / "blocks.json").write_text('{"schema": "edgekd.blocks/9"}')
    with pytest.raises(RunFailed, match="blocks/9"):
        blocks.read(tmp_path)


def test_weights_that_the_library_would_compute_otherwise_are_refused():
    with pytest.raises(RunFailed, match="`one` are not those that it stored"):  # its 8-bit differences wrap around
        neural_compressor.rtn({"one": linear([[12.0, -1.0] + [0.0] * 14])}, bits=8, group_size=16, symmetric=False)


# ---------------------------------------------------------------- searches


def test_tuning_takes_the_first_bits_that_lose_little_enough():
    layers = {"one": nn.Linear(64, 8)}
    loss = lambda table: {4: 3.0, 8: 0.2}[table["one"].bits] if table else 0.0
    tune = lambda tolerable: neural_compressor.autotune(layers, (4, 8), loss, group_size=32, tolerable_loss=tolerable)
    assert [(t["one"].bits, [x["bits"] for x in trials]) for t, trials in map(tune, (3.0, 2.9, 0.1))] == [
        (4, [4]),
        (8, [4, 8]),
        (8, [4, 8]),
    ]


def test_the_stage_falls_back_to_8_bits_where_4_lose_too_much(trained, tmp_path):
    low = rounded(trained, tmp_path / "low", group_size=64, tolerable_loss=100.0).facts
    assert low["bits"] == 4 and low["tolerable"] and low["loss"] > 1.0, low
    high = rounded(trained, tmp_path / "high", group_size=64, tolerable_loss=low["loss"] / 2).facts
    assert high["bits"] == 8 and high["trials"][0] == {"bits": 4, "loss": low["loss"]} and high["loss"] < low["loss"]


def test_scales_move_into_the_norm_or_stay_as_a_gain(trained, tmp_path):
    task, source = trained
    x = torch.from_numpy(task.data("test").inputs[:64])
    before = capture(saved.load(source, task), x[:2])
    artifact = rounded(trained, tmp_path / "awq", method="awq", samples=128)
    graph, table = blocks.load(artifact, task, x[:2])
    assert torch.allclose(graph(x), before(x), atol=1e-4)  # what moved makes no difference
    names = {n.args[1].target: name for name, n in blocks.linears(graph).items()}
    kept = {
        target.removesuffix("__weight")
        for target, name in names.items()
        if name in table and table[name].gain is not None
    }
    assert kept == {"layers__0__o", "layers__0__down", "head"}  # all others read a norm of their own, as it is
    assert artifact.facts["nearest"] == [names["embed__weight"]]
    facts, path = exported(task, artifact, tmp_path / "file")
    assert sum(n.op_type == "MatMulNBits" for n in onnx.load(path).graph.node) == 8


def test_a_gain_is_undone_by_the_weights():
    graph = capture(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2)), torch.randn(2, 3, 4))
    ((value, names),) = awq.groups(graph, ["linear"]).items()
    node = next(n for n in graph.graph.nodes if n.name == value)
    was, x = graph.state_dict(), torch.randn(5, 3, 4)
    answer, weight = graph(x), was["1__weight"].clone()
    table = awq.absorbed(
        graph, node, {names[0]: random_blocks(inputs=4, outputs=2)}, np.array([0.5, 1, 2, 4], np.float32)
    )
    assert table["linear"].gain is None and torch.allclose(graph(x), answer, atol=1e-6)
    assert torch.equal(graph.state_dict()["1__weight"], weight / torch.tensor([0.5, 1, 2, 4]))


@needs_gptq
def test_gptq_works_on_any_graph(trained, tmp_path):
    artifact = rounded(trained, tmp_path / "gptq", method="gptq", samples=128)
    facts, _ = exported(trained[0], artifact, tmp_path / "file")
    assert facts["float"]["relative_difference"] < 1e-4 and artifact.facts["bits"] == 4


def test_packages_that_are_missing_are_named(monkeypatch, trained):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("tqdm", "accelerate") else found(name)
    )
    with pytest.raises(EnvironmentUnfit, match="`gptq` needs tqdm, accelerate.*\n.*pip install"):
        WeightOnly(method="gptq").check(nn.Linear(64, 8), torch.randn(2, 64))
    assert WeightOnly(method="rtn").check(nn.Linear(64, 8), torch.randn(2, 64)) == []


# ---------------------------------------------------------------- the file


def test_the_file_holds_the_integers_and_answers_as_the_model(trained, nearest, tmp_path):
    (task, source), (artifact, facts, path) = trained, nearest
    graph, table = blocks.load(artifact, task, torch.randn(2, 8, 8))
    _, plain = exported(task, source, tmp_path / "float")
    # an oracle without graphs: the task's own module with the weights that the integers stand for
    module = saved.load(source, task)
    for name, node in blocks.linears(graph).items():
        module.get_submodule(
            node.args[1].target.replace("__", ".").removesuffix(".weight")
        ).weight.data = torch.from_numpy(blocks.dequantize(table[name]))
    x = task.data("test").inputs
    with torch.no_grad():
        ours = module(torch.from_numpy(x)).numpy()
    assert np.abs(load(str(path), 1)({"input": x})["output"] - ours).max() <= 1e-4 * np.abs(ours).max()
    model = onnx.load(path)
    levels = [
        {a.name: a.i for a in n.attribute}["accuracy_level"] for n in model.graph.node if n.op_type == "MatMulNBits"
    ]
    assert levels == [1] * 8 and not any(
        n.op_type in ("MatMul", "Gemm") and n.input[1].startswith("w") for n in model.graph.node
    )
    assert max(len(i.raw_data) for i in model.graph.initializer if i.data_type == TensorProto.FLOAT) <= 4 * 8 * 64 * 2
    assert (
        facts["bytes"] == path.stat().st_size < 0.35 * plain.stat().st_size
        and artifact.facts["weight_bytes"] < 0.2 * artifact.facts["float_bytes"]
    )
    ours, theirs = ({m.name: m.value for m in static.measure(Subject(file=p))} for p in (path, plain))
    assert {**ours, "file_bytes": 0} == {**theirs, "file_bytes": 0}  # the same multiplications of as many weights


def test_a_file_that_is_not_the_model_is_refused_with_the_layer(trained, nearest, tmp_path, monkeypatch):
    artifact, packed, count = nearest[0], blocks.packed, []

    def wrong(table):
        integers, scales, zeros = packed(table)
        count.append(table)
        return integers, scales * (1.05 if len(count) == 3 else 1), zeros

    monkeypatch.setattr(_nbits, "packed", wrong)
    with pytest.raises(RunFailed, match=rf"first at `{artifact.facts['layers'][2]}`: the file does not hold"):
        exported(trained[0], artifact, tmp_path / "file")


def test_the_first_layer_that_differs_is_named(trained, nearest, tmp_path):
    artifact, path = nearest[0], tmp_path / "model.onnx"
    x = torch.from_numpy(trained[0].data("test").inputs[:8])
    graph, table = blocks.load(artifact, trained[0], x[:2])
    path.write_bytes(nearest[2].read_bytes())
    where = lambda: check.first_difference(blocks.apply(graph, table), table, path, x, {"input": x.numpy()})
    assert where() == "; no single layer differs"
    model = onnx.load(path)
    fourth = [n for n in model.graph.node if n.op_type == "MatMulNBits"][3]
    bias = next(i for i in model.graph.initializer if i.name == fourth.input[5])
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 1, bias.name))
    onnx.save(model, path)
    assert where().startswith(f"; first at `{artifact.facts['layers'][3]}`: ")


# ---------------------------------------------------------------- settings


def test_all_that_is_wrong_is_told_at_once():
    problems = WeightOnly(method="awq", bits=(4, 8), symmetric=False, float_layers=("linaer",)).check(
        nn.Linear(64, 8), torch.randn(2, 64)
    )
    assert [p.place for p in problems] == ["bits", "symmetric", "bits", "float_layers"] and "`linear`?" in problems[
        -1
    ].hint
    (problem,) = WeightOnly(method="rtn").check(nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8))
    assert "no linear layer" in problem.message
    settings, problems = signatures.settings_of(WeightOnly, {"bits": [4, 8], "group_size": 64}, "weight_only")
    assert (
        not problems
        and WeightOnly(**settings).tried == (4, 8)
        and WeightOnly(method="rtn", bits=8).tried == (8,)
        and WeightOnly().tried == (4, 8)
    )
    assert signatures.settings_of(WeightOnly, {"bits": 5, "group_size": 33}, "weight_only")[1]


def test_an_embedding_is_not_stored_twice():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.inner = nn.Embedding(96, 64), nn.Linear(64, 64)

        def forward(self, x):
            return nn.functional.linear(self.inner(self.embed(x)), self.embed.weight)

    assert list(blocks.linears(capture(Tied(), torch.zeros(2, 5, dtype=torch.int64)))) == ["linear"]


def test_the_library_counts_where_it_is_used():
    assert any("neural" in name for name in fingerprint.code_and_libraries(WeightOnly)[1])
    assert not any("neural" in name for name in fingerprint.code_and_libraries(Export)[1])
