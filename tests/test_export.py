"""The stages `quantize` and `export`: what they write reads back to the bit, resumes to the bit, and is refused where
it is not the model."""

import dataclasses
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgekd import Task, arrays, quantization, signatures
from edgekd.data.columns import load, take
from edgekd.errors import RunFailed, UsageError
from edgekd.formats import onnx as format
from edgekd.formats._qdq import pool
from edgekd.models import saved
from edgekd.quantization import grid as grids
from edgekd.quantization.torch_graph import exact, fake, modules
from edgekd.quantization.torch_graph.capture import capture
from edgekd.records import Artifact, Run
from edgekd.runtimes.onnxruntime import load as open_file
from edgekd.stages.export import Export
from edgekd.stages.quantize import Quantize
from edgekd.stages.train import Train
from edgekd.training.terms import Term

LABELS = (Term("cross_entropy"),)


class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, width, 3, bias=False), nn.BatchNorm2d(width)
        self.deep, self.drop, self.head = (
            nn.Conv2d(width, width, 3, 1, 1, groups=width),
            nn.Dropout(0.2),
            nn.Linear(width, 3),
        )

    def forward(self, x):
        x = F.relu6(self.norm(self.stem(x)))
        return self.head(self.drop(F.relu(self.deep(x) + x).mean((2, 3))))


class Pair(nn.Module):
    """Two named inputs, two outputs."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head, self.side = nn.Linear(5, 6), nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 2)

    def forward(self, inputs):
        x = F.relu(self.a(inputs["left"]) + self.b(inputs["right"]))
        return self.head(x), self.side(x)


def own(count=420):
    """Noise with horizontal stripes, vertical stripes, or none."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, count)
    x = rng.normal(0, 0.4, (count, 1, 8, 8)).astype(np.float32)
    stripes = np.arange(8) % 2
    x[y == 0] += stripes[:, None]
    x[y == 1] += stripes[None, :]
    return Task("own", "1", {"student": Net}, arrays(x[:200], y[:200], x[200:], y[200:], validation=0.2), (), classes=3)


def run_in(folder, task, **more):
    (folder / "out").mkdir(parents=True, exist_ok=True)
    return Run(task, 0, 1, folder / "out", folder / "scratch", lambda split: load(task, split), **more)


def artifact(run, form):
    files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in run.folder.iterdir()}
    return Artifact("key", form, files, {}, "", {}, 0, {}, run.folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A student trained a little."""
    task = own()
    run = run_in(tmp_path_factory.mktemp("trained"), task)
    Train(epochs=12, batch=32, lr=0.02)(None, run)
    return task, artifact(run, "torch")


def scored(outputs, task):
    return float((outputs.argmax(1) == load(task, "test").labels).mean())


class TestStages:
    def test_a_float_file_is_the_model_with_its_batch_norms(self, trained, tmp_path):
        task, source = trained
        run = run_in(tmp_path, task)
        made = Export()(source, run)
        model, x = saved.load(source, task), load(task, "test").inputs
        theirs = open_file(str(run.folder / "model.onnx"), 1)({"input": x})["output"]
        assert made.form == "onnx" and made.facts["float"]["relative_difference"] < 1e-5
        assert np.allclose(theirs, model(torch.from_numpy(x)).detach().numpy(), atol=1e-5)
        kinds = {n.op_type for n in onnx.load(run.folder / "model.onnx").graph.node}
        assert "BatchNormalization" not in kinds and "QuantizeLinear" not in kinds and "Dropout" not in kinds

    @pytest.mark.parametrize(
        "how",
        [
            {"mode": "ptq"},
            {"mode": "ptq", "ranges": "mse", "weight_bits": 7},
            {"mode": "qat", "epochs": 2},
            {"mode": "qat", "epochs": 2, "observer": "learned", "ranges": "percentile"},
        ],
        ids=lambda how: "-".join(map(str, how.values())),
    )
    def test_an_int8_file_is_the_model_that_was_made(self, trained, tmp_path, how):
        task, source = trained
        run = run_in(tmp_path / "q", task)
        made = signatures.changed(Quantize(batch=32, losses=LABELS, samples=100), how)(source, run)
        quantized = artifact(run, made.form)
        graph, module, grid = quantization.load(quantized, task, quantization.example_of(load(task, "test")))
        assert grid == grids.read(run.folder / "grid.json") and grid.scheme.weight_bits == how.get("weight_bits", 8)
        end = run_in(tmp_path / "e", task)
        facts = Export()(quantized, end).facts
        assert (
            facts["equality"]["equal"] == 1.0 and facts["equality"]["samples"] == 220 and facts["float_kernels"] == []
        )
        assert facts["fake_quantized"]["reasons"] == () and facts["fake_quantized"]["equal"] > 0.99
        columns = load(task, "test")
        theirs = open_file(str(end.folder / "model.onnx"), 1)({"input": columns.inputs})["output"]
        assert np.array_equal(theirs, exact.Settled(module)(torch.from_numpy(columns.inputs)).numpy())
        plain = saved.load(source, task)(torch.from_numpy(columns.inputs)).detach().numpy()
        assert scored(theirs, task) > scored(plain, task) - 0.03
        head = grid.sites["linear"]
        # no grid coarser than it must be
        assert head.scale[0] <= (max(plain.max(), theirs.max()) - min(plain.min(), theirs.min())) / 255 * 1.2

    def test_quantization_aware_training_learns(self, trained, tmp_path):
        """With 2-bit weights calibration alone ruins the model and training repairs it."""
        task, source = trained
        loss = {}
        for mode in ("ptq", "qat"):
            run = run_in(tmp_path / mode, task)
            Quantize(mode=mode, epochs=12, batch=32, lr=5e-3, losses=LABELS, weight_bits=2)(source, run)
            columns = load(task, "train")
            module = quantization.load(artifact(run, "quantized"), task, quantization.example_of(columns))[1]
            outputs = module(torch.from_numpy(columns.inputs))
            loss[mode] = F.cross_entropy(outputs, torch.from_numpy(columns.labels)).item()
        assert loss["qat"] < 0.5 * loss["ptq"], loss

    @pytest.mark.parametrize("observer", ["averaged", "learned"])
    def test_divergence_is_named_with_its_cure(self, trained, tmp_path, observer):
        task, source = trained
        with pytest.raises(RunFailed, match="diverged.*(?s:.*)lower `lr`"):
            Quantize(epochs=6, batch=16, lr=1e30, optimizer="sgd", observer=observer, losses=LABELS)(
                source, run_in(tmp_path, task)
            )

    def test_learned_ranges_move_and_the_outputs_step_does_not_widen(self, trained, tmp_path):
        task, source = trained
        found = {}
        for observer, lr in (("averaged", 0.0001), ("learned", 0.05)):
            run = run_in(tmp_path / observer, task)
            Quantize(epochs=3, batch=16, lr=lr, observer=observer, losses=LABELS)(source, run)
            found[observer] = grids.read(run.folder / "grid.json").sites
        run = run_in(tmp_path / "ptq", task)
        Quantize(mode="ptq")(source, run)
        start = grids.read(run.folder / "grid.json").sites
        moved = [n for n in start if start[n] != found["learned"][n]]
        assert len(moved) > len(start) / 2
        assert found["learned"]["linear"].scale[0] <= start["linear"].scale[0] * (1 + 1e-6)
        assert found["learned"]["relu6"].scale[0] <= 6 / 255 * (1 + 1e-6)  # a ReLU6 that its grid would no longer do

    @pytest.mark.parametrize("observer", ["averaged", "learned"])
    @pytest.mark.parametrize("stop_at", [2, 8])
    def test_resumed_is_bit_equal_to_undisturbed(self, trained, tmp_path, monkeypatch, observer, stop_at):
        """Also in the middle of an epoch whose ranges stand still: that they do is part of the state."""
        monkeypatch.setattr("edgekd.training.loop.CHECKPOINT_SECONDS", -1.0)
        task, source = trained
        # 5 steps an epoch, the second one frozen
        stage = Quantize(epochs=2, batch=32, observer=observer, losses=LABELS, samples=64)
        whole, cut = run_in(tmp_path / "whole", task), run_in(tmp_path / "cut", task, progress=_stop_at(stop_at))
        stage(source, whole)
        with pytest.raises(KeyboardInterrupt):
            stage(source, cut)
        stage(source, dataclasses.replace(cut, progress=lambda *a: None))
        for name in ("weights.safetensors", "grid.json", "model.json"):
            assert (whole.folder / name).read_bytes() == (cut.folder / name).read_bytes(), name

    def test_named_inputs_and_outputs(self, tmp_path):
        rng = np.random.default_rng(1)
        x = {"right": rng.normal(size=(90, 4)).astype(np.float32), "left": rng.normal(size=(90, 5)).astype(np.float32)}
        cut = lambda rows: {n: a[rows] for n, a in x.items()}
        data = arrays(cut(slice(50)), None, cut(slice(50, 90)), None, validation=0.2)
        task = Task("pair", "1", {"student": Pair}, data, (), inputs=("left", "right"), outputs=("main", "side"))
        run = run_in(tmp_path / "t", task)
        model = saved.create(task, "student", 0)
        saved.save(run.folder, model, model="student")
        source = artifact(run, "torch")
        q = run_in(tmp_path / "q", task)
        Quantize(mode="ptq")(source, q)
        for artefact, folder in ((source, "float"), (artifact(q, "quantized"), "int8")):
            end = run_in(tmp_path / folder, task)
            Export()(artefact, end)
            infer = open_file(str(end.folder / "model.onnx"), 1)
            assert set(infer.inputs) == {"left", "right"} and infer.outputs == ("main", "side")
            theirs, ours = infer(x), model({n: torch.from_numpy(a) for n, a in x.items()})
            for name, value in zip(("main", "side"), ours, strict=True):
                assert np.abs(theirs[name] - value.detach().numpy()).mean() < 0.03 * value.std()
        with pytest.raises(UsageError, match="2 outputs, but the task names 1: output"):
            Export()(source, run_in(tmp_path / "wrong", dataclasses.replace(task, outputs=("output",))))

    def test_a_file_that_is_not_the_model_is_refused(self, trained, tmp_path, monkeypatch):
        task, source = trained
        written = format.export

        def wrong(graph, grid, example, path, **more):
            names = written(graph, grid, example, path, **more)
            model = onnx.load(path)
            for tensor in model.graph.initializer:
                array = onnx.numpy_helper.to_array(tensor)
                if array.ndim == 4 and array.shape[1] == 1 and array.shape[0] == 8 and array.dtype != np.uint8:
                    tensor.CopyFrom(onnx.numpy_helper.from_array(-array, tensor.name))
            onnx.save(model, path)
            return names

        run = run_in(tmp_path / "q", task)
        Quantize(mode="ptq")(source, run)
        monkeypatch.setattr(format, "export", wrong)
        with pytest.raises(
            RunFailed, match="is not the model that was trained.*first at `relu6`.*in the model.*in the file"
        ):
            Export()(artifact(run, "quantized"), run_in(tmp_path / "e", task))
        with pytest.raises(RunFailed, match="exported file differs from the model: outputs differ"):
            Export()(source, run_in(tmp_path / "f", task))


def _stop_at(step):
    def progress(done, total, text=""):
        if done == step:
            raise KeyboardInterrupt

    return progress


MAKE = """
import sys, torch
sys.path[:0] = {path!r}
from pathlib import Path
from test_quantization import Depthwise, data, exported, stirred
print(exported(stirred(Depthwise()), data((3, 16, 16), 32), Path(sys.argv[1]))[3])
"""


def test_same_bytes_from_another_process_in_another_folder(tmp_path):
    here = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    found = []
    for seed, folder in (("1", tmp_path / "one"), ("2", tmp_path / "another" / "deeper")):
        folder.mkdir(parents=True)
        environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1", "USER": "someone"}
        subprocess.run(
            [sys.executable, "-c", MAKE.format(path=here), str(folder)],
            cwd=folder,
            env=environment,
            check=True,
            capture_output=True,
        )
        found.append((folder / "model.onnx").read_bytes())
    assert found[0] == found[1]


def test_nothing_of_the_machine_or_the_source_is_in_a_file(trained, tmp_path, monkeypatch):
    task, source = trained
    run = run_in(tmp_path, task)
    monkeypatch.setattr(format.export, "__kwdefaults__", {**format.export.__kwdefaults__, "opset": 18})
    Export()(source, run)
    model = onnx.load(run.folder / "model.onnx")
    words = onnx.ModelProto()
    words.CopyFrom(model)
    for tensor in words.graph.initializer:
        tensor.ClearField("raw_data")  # numbers spell anything
    blob = words.SerializeToString()
    for word in (
        "/",
        "\\",
        ".py",
        "torch",
        "pkg",
        "Net",
        "stack",
        "forward",
        "norm",
        "stem",
        os.environ.get("USER") or "nobody-at-all",
    ):
        assert word.encode() not in blob.replace(b"edgekd.onnx/1", b""), word
    assert {p.key: p.value for p in model.metadata_props} == {
        "edgekd.schema": "edgekd.onnx/1",
        "edgekd.form": "float32",
        "edgekd.task": "own",
        "edgekd.weights": source.files["weights.safetensors"],
    }
    assert [p.key for p in model.metadata_props] == sorted(p.key for p in model.metadata_props)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    assert (model.graph.input[0].name, model.graph.output[0].name) == ("input", "output")
    assert [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == ["batch", 1, 8, 8]
    assert not model.graph.value_info and not any(n.name or n.doc_string or n.metadata_props for n in model.graph.node)


def test_a_mean_that_drops_its_dimensions_is_no_pooling():
    """Global average pooling keeps height and width: a mean over both that does not, and one over others, stay what
    they are."""
    from onnx import helper, numpy_helper

    value = lambda name, shape: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
    kept = {}
    for axes, keep in (([2, 3], 1), ([-1, -2], 1), ([2, 3], 0), ([1, 2], 1), ([3], 1)):
        node = helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=keep)
        constants = [numpy_helper.from_array(np.array(axes, np.int64), "axes")]
        graph = helper.make_graph([node], "g", [value("x", ["n", 4, 5, 6])], [value("y", None)], constants)
        pool(graph)
        kept[tuple(axes), keep] = graph.node[0].op_type
    assert [k for k, kind in kept.items() if kind == "GlobalAveragePool"] == [((2, 3), 1), ((-1, -2), 1)]


def test_float_kernels_are_told(trained, tmp_path):
    task, source = trained
    run = run_in(tmp_path, task)
    Export()(source, run)
    kernels = [name.partition("(")[0] for name in format.float_kernels(run.folder / "model.onnx")]
    assert sorted(kernels) in (
        ["Conv", "FusedConv", "Gemm"],
        ["Conv", "Conv", "Gemm"],
        ["FusedConv", "FusedConv", "Gemm"],
    ), kernels


def test_calibration_reads_no_more_than_it_was_told(trained, tmp_path):
    task, source = trained
    columns = load(task, "train")
    seen = []
    module = fake.insert(capture(saved.load(source, task), take(columns, np.arange(2)).inputs))
    part = next(v for v in fake.parts(module, modules.Value) if v.name == "x")
    part.register_forward_pre_hook(lambda part, x: seen.append(len(x[0])))
    from edgekd.quantization.torch_graph.calibrate import calibrate
    from edgekd.stages.quantize import calibration

    calibrate(module, calibration(columns, 100))
    assert seen == [64, 36]


class Turned(nn.Module):
    """Positions that do not depend on the input, computed where they are used: exporters store them as constants."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        angle = torch.arange(8) / 8
        return self.last(self.first(x) * angle.cos())


def test_a_value_that_depends_on_no_input_keeps_its_own_scale(tmp_path):
    model, x = Turned().eval(), torch.randn(64, 6)
    module = quantization.calibrated(model, [x])
    table = fake.settle(module.eval())
    format.export(capture(model, x[:2]), table, x[:2], tmp_path / "model.onnx")
    (theirs,) = open_file(tmp_path / "model.onnx")({"input": x.numpy()}).values()
    with torch.no_grad():
        assert 10 * np.log10(np.square(theirs).mean() / np.square(theirs - model(x).numpy()).mean()) > 25
