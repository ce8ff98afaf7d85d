"""Names from files are shown, never obeyed: no control characters, no ANSI, no change of direction, no forged line,
whatever the verb."""

import json

import numpy as np
import onnx
import pytest
import tiny
from onnx import TensorProto, helper, numpy_helper

from edgekd.cli import run as command
from edgekd.errors import Problem, plain
from edgekd.run import sanity_check

EVIL = "x\x1b[31m\r\nerror: forged\u202e\x07"
TOML = json.dumps(EVIL)


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKD_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    from edgekd.measure import jobs

    monkeypatch.setattr(jobs, "EFFORTS", dict(jobs.EFFORTS))
    tiny.hurry()
    monkeypatch.setattr(sanity_check, "check", lambda *given: None)  # it takes seconds


def written(name, prefix=EVIL):
    """A convolution, a relu and a linear layer, every name of which begins with `prefix`."""
    rng = np.random.default_rng(0)
    weights = {f"{prefix}w": rng.normal(size=(4, 1, 3, 3)), f"{prefix}v": rng.normal(size=(3, 4 * 64))}
    shapes = [(f"{prefix}in", ["n", 1, 10, 10]), (f"{prefix}out", ["n", 3])]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes]
    nodes = [
        helper.make_node("Conv", [f"{prefix}in", f"{prefix}w"], [f"{prefix}a"], name=f"{prefix}conv"),
        helper.make_node("Relu", [f"{prefix}a"], [f"{prefix}b"], name=f"{prefix}relu"),
        helper.make_node("Flatten", [f"{prefix}b"], [f"{prefix}c"], name=f"{prefix}flat"),
        helper.make_node("Gemm", [f"{prefix}c", f"{prefix}v"], [f"{prefix}out"], name=f"{prefix}gemm", transB=1),
    ]
    tensors = [numpy_helper.from_array(w.astype(np.float32), n) for n, w in weights.items()]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), name)
    np.savez(f"{name}.npz", **{f"{prefix}in": rng.normal(size=(40, 1, 10, 10)).astype(np.float32)})


def shown(capfd):
    """All that was printed, once it is found to be harmless."""
    out, err = capfd.readouterr()
    lines = (out + err).split("\n")
    assert all(line.isprintable() for line in lines), [line for line in lines if not line.isprintable()]
    assert not any(line.startswith("error: forged") for line in lines)
    return out + err


@pytest.mark.parametrize(
    "line",
    [
        ["quantize", "a.onnx", "--data", "a.onnx.npz", "--out", "b.onnx"],
        ["quantize", "a.onnx", "--data", "wrong.npz", "--out", "b.onnx"],
        ["profile", "a.onnx", "--preset", "quick", "--trace", "trace.json"],
        ["profile", "a.onnx", "--preset", "quick", "--data", "wrong.npz"],
        ["explain", "int8.onnx", "--float", "a.onnx", "--data", "a.onnx.npz"],
        ["explain", "int8.onnx", "--float", "a.onnx", "--data", "a.onnx.npz", "--fix"],
        ["profile", f"{EVIL}.onnx"],
        ["compress", f"{EVIL}.toml"],
        ["gate", EVIL],
        ["report", EVIL],
        ["compress", "--target", EVIL],
        ["compress", "--set", f"{EVIL}=1"],
        ["list", "targets", EVIL],
    ],
    ids=lambda line: " ".join(line).encode("unicode_escape").decode(),
)
def test_names_of_an_onnx_file_and_of_files(line, capfd):
    written("a.onnx")
    np.savez("wrong.npz", **{f"{EVIL}in2": np.zeros((40, 3), np.float32), "another": np.zeros(2)})
    if "int8.onnx" in line:
        assert command(["quantize", "a.onnx", "--data", "a.onnx.npz", "--out", "int8.onnx", "--quiet"]) == 0
    code = command(line)
    text = shown(capfd)
    assert code in (0, 1, 2) and "\\x1b[31m" in text, text


RECIPES = [
    f"{TOML} = 1",
    f"[{TOML}]\nx = 1",
    f"[model.{TOML}]\ntrain = {{ epochs = 1 }}",
    f"[model.{TOML}]\nweights = {TOML}",
    f"[model.teacher]\ntrain = {{ {TOML} = 1 }}",
    f"[sweep]\n{TOML} = [1]",
    f'[gate.any]\n{TOML} = "max 1"',
    f"[gate.{TOML}]\nfile_bytes = {TOML}",
    f"[mixed]\n{TOML} = [0.1]",
    f"[select]\nmaximize = [{TOML}]",
    f'[[stage]]\nname = {TOML}\nuse = "prune"',
    f"[[stage]]\nuse = {TOML}",
    f'[[stage]]\nuse = "quantize"\nlosses = [{{ use = {TOML} }}]',
]


@pytest.mark.parametrize("lines", RECIPES)
def test_names_of_a_recipe(lines, capfd):
    with open("recipe.toml", "w") as file:
        file.write(
            f'task = "tiny:task"\n{lines if lines.startswith(TOML) else ""}\n[[stage]]\nuse = "train"\nepochs = 1\n'
        )
        file.write("" if lines.startswith(TOML) else lines)
    code = command(["compress", "recipe.toml", "--dry-run"])
    text = shown(capfd)
    assert code == 2 or "answers" not in text
    assert code == 0 or "\\x1b[31m" in text, text


@pytest.mark.parametrize("text", ['title = "x"\narchitecture = {0}', "{0} = 1"])
def test_names_of_a_target(text, capfd):
    with open("mine.toml", "w") as file:
        file.write(text.format(TOML))
    assert command(["compress", "--target", "mine.toml", "--dry-run"]) == 2
    assert "\\x1b[31m" in shown(capfd)


def test_names_of_weights(capfd):
    import torch
    from safetensors.torch import save_file

    save_file({EVIL: torch.zeros(2)}, "w.safetensors")
    with open("recipe.toml", "w") as file:
        file.write(
            'task = "tiny:task"\n[[stage]]\nuse = "train"\nepochs = 1\n[model.teacher]\nweights = "w.safetensors"'
        )
    assert command(["compress", "recipe.toml", "--out", "run"]) == 2
    assert "\\x1b[31m" in shown(capfd)


def test_an_error_is_one_line_and_its_hint():
    assert str(Problem(EVIL, EVIL, EVIL)).split("\n  hint: ") == [f"{plain(EVIL)}: {plain(EVIL)}", plain(EVIL)]
    assert plain("µ × 95 % – größer") == "µ × 95 % – größer"
