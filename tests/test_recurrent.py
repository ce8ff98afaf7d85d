"""Recurrent layers and convolutions over time through the chain: as ONNX operators, counted by hand, beside int8."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import edgekd
from edgekd.errors import UsageError
from edgekd.formats import onnx as form
from edgekd.quantization import calibrated
from edgekd.quantization.torch_graph import fake, sites
from edgekd.quantization.torch_graph.capture import capture
from edgekd.runtimes.onnxruntime import ort


class Layers(nn.Module):
    def __init__(self, kind, *, every=False, **more):
        super().__init__()
        self.rnn, self.every = kind(8, 16, batch_first=True, **more), every
        self.head = nn.Linear(32 if more.get("bidirectional") else 16, 10)

    def forward(self, x):
        steps = self.rnn(x)[0]
        return self.head(steps if self.every else steps[:, -1])


class Last(nn.Module):
    """Steps first, and the state at the end, of a state that does not begin at zero."""

    def __init__(self):
        super().__init__()
        self.rnn, self.head, self.start = nn.LSTM(8, 16, num_layers=2), nn.Linear(16, 10), nn.Parameter(torch.ones(16))

    def forward(self, x):
        start = self.start.expand(2, x.shape[0], 16)
        return self.head(self.rnn(x.transpose(0, 1), (start, 0.5 * start))[1][1][-1])


class Time(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv1d(8, 16, 3, padding=1), nn.BatchNorm1d(16), nn.Linear(16, 10)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x.transpose(1, 2)))).mean(2))


MODELS = {
    "gru": lambda: Layers(nn.GRU),
    "lstm": lambda: Layers(nn.LSTM, num_layers=2),
    "tanh": lambda: Layers(nn.RNN, every=True),
    "relu": lambda: Layers(nn.RNN, nonlinearity="relu", bidirectional=True),
    "both": lambda: Layers(nn.GRU, num_layers=2, bidirectional=True, every=True, bias=False),
    "last": Last,
    "time": Time,
}


def written(model, x, path, grid=None, lengths=None):
    form.export(capture(model, x[:2], None, lengths), grid, x[:2], path)
    return onnx.load(path)


def answer(path, x):
    return ort.InferenceSession(str(path)).run(None, {"input": x.numpy()})[0]


@pytest.mark.parametrize("name", MODELS)
def test_file_computes_what_the_model_does(tmp_path, name):
    torch.manual_seed(0)
    model, x = MODELS[name]().eval(), torch.randn(5, 7, 8)
    file = written(model, x, tmp_path / "model.onnx")
    ours = model(x).detach().numpy()
    assert np.abs(answer(tmp_path / "model.onnx", x) - ours).max() < 1e-6
    wanted = {"gru": ["GRU"], "lstm": ["LSTM"] * 2, "both": ["GRU"] * 2, "last": ["LSTM"] * 2, "time": []}
    kinds = [n.op_type for n in file.graph.node]
    assert [k for k in kinds if k in ("GRU", "LSTM", "RNN")] == wanted.get(name, ["RNN"])
    assert not {"Shape", "Expand", "Loop", "Scan"} & set(kinds) or name == "last"


@pytest.mark.parametrize(
    ("name", "macs", "parameters"),
    [
        # 7 steps of 3 gates of 16 units over 8 inputs and 16 states, then 16 x 10
        ("gru", 7 * 3 * 16 * (8 + 16) + 160, 3 * 16 * (8 + 16 + 2) + 170),
        ("lstm", 7 * 4 * 16 * (8 + 16 + 16 + 16) + 160, 4 * 16 * (8 + 16 + 2 + 16 + 16 + 2) + 170),
        ("relu", 7 * 2 * 16 * (8 + 16) + 320, 2 * 16 * (8 + 16 + 2) + 330),
        ("time", 7 * 16 * 8 * 3 + 160, 16 * 8 * 3 + 16 + 170),
    ],
)
def test_counts_are_those_by_hand(tmp_path, name, macs, parameters):
    x = torch.randn(2, 7, 8)
    file = written(MODELS[name]().eval(), x, tmp_path / "model.onnx")
    found = {m.name: m.value for m in edgekd.probes.measure(static_subject(tmp_path / "model.onnx"))}
    assert (found["macs"], found["parameters"]) == (macs, parameters)
    assert found["file_bytes"] >= 4 * parameters
    assert file.graph.node


def static_subject(path):
    from edgekd.probes import Subject

    return Subject(file=path, format="onnx", facts={}, sample={"input": (1, 7, 8)})


def test_a_projected_lstm_is_refused():
    model, x = Projected().eval(), torch.randn(2, 7, 8)
    with pytest.raises(UsageError, match="proj_size"):
        form.export(capture(model, x), None, x, "never.onnx")


class Projected(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(8, 16, proj_size=4, batch_first=True)

    def forward(self, x):
        return self.rnn(x)[0][:, -1]


def test_steps_are_open_where_the_task_says_so(tmp_path):
    torch.manual_seed(0)
    model, x = Layers(nn.GRU, every=True).eval(), torch.randn(3, 7, 8)
    named = {"input": x[:2]}
    forward = lambda m, inputs: m(inputs["input"])
    form.export(capture(model, named, forward, {"input": "lengths"}), None, named, tmp_path / "model.onnx")
    dims = onnx.load(tmp_path / "model.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims][0] == "batch" and dims[1].dim_param
    kinds = [n.op_type for n in onnx.load(tmp_path / "model.onnx").graph.node]
    assert kinds.count("GRU") == kinds.count("Gemm") == 1
    for steps in (1, 4, 19):
        x = torch.randn(3, steps, 8)
        assert np.abs(answer(tmp_path / "model.onnx", x) - model(x).detach().numpy()).max() < 1e-6


@pytest.mark.parametrize("name", ["gru", "both", "time"])
def test_int8_around_recurrent_layers(tmp_path, name):
    torch.manual_seed(0)
    model, x = MODELS[name]().eval(), torch.randn(64, 7, 8)
    grid = fake.settle(calibrated(model, [x]))
    graph = capture(model, x[:2])
    form.export(graph, grid, x[:2], tmp_path / "int8.onnx")
    assert np.abs(answer(tmp_path / "int8.onnx", x) - model(x).detach().numpy()).max() < 0.05
    floats = form.float_kernels(tmp_path / "int8.onnx")
    assert [f.split("(")[0] for f in floats] == {"gru": ["GRU"], "both": ["GRU"] * 2, "time": []}[name]
    assert sites.recurrent(graph) == ([] if name == "time" else ["rnn"])
    kinds = [n.op_type for n in onnx.load(tmp_path / "int8.onnx").graph.node]
    assert "Slice" not in kinds  # steps[:, -1] is no slice over all samples
