"""Input that is wrong in unlikely ways is told with exit code 2, and what never ends is ended: no internal error."""

import os
import threading
import zipfile

import numpy as np
import pytest
import torch

from edgekd.cli import run as command
from edgekd.errors import Problem, RunFailed, UsageError, gathered
from edgekd.files import unwritable
from edgekd.models import saved

STAGES = """
import dataclasses
from typing import ClassVar

@dataclasses.dataclass(frozen=True)
class Documented:
    reads: ClassVar = ()
    def check(self, context): return []
    def __call__(self, source, run, *, teacher=(), data=None): ...

@dataclasses.dataclass(frozen=True)
class Plain:
    reads: ClassVar = ()
    def __call__(self, source, run): ...

@dataclasses.dataclass(frozen=True)
class Raises:
    reads: ClassVar = ()
    def check(self, model, example, forward): raise KeyError("x")
    def __call__(self, source, run, *, teacher=(), data=None): ...

@dataclasses.dataclass(frozen=True)
class Objects(Raises):
    def check(self, model, example, forward): return ["it objects"]

@dataclasses.dataclass(frozen=True)
class Silent:
    def __call__(self, source, run, *, teacher=(), data=None): ...

@dataclasses.dataclass(frozen=True)
class Elsewhere(Silent):
    reads = property(lambda self: ("train", "holdout"))

@dataclasses.dataclass(frozen=True)
class Broken(Silent):
    reads = property(lambda self: {}["x"])

def function(source, run): ...
"""


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKD_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def told(stage, capsys, more=""):
    """What `compress` says of a recipe with a stage of these lines, once it ends with 2."""
    with open("recipe.toml", "w") as file:
        file.write(
            f'task = "tiny:task"\nthreads = 1\n{more}\n[[stage]]\n{stage}\n[model.teacher]\ntrain = {{ epochs = 1 }}\n'
        )
    code = command(["compress", "recipe.toml", "--dry-run"])
    err = capsys.readouterr().err
    assert code == 2 and "internal error" not in err, err
    return err


@pytest.mark.parametrize(
    "losses",
    [
        '"kl"', "0.5", "2020-01-01", "[1]", "[[]]", "[{}]", "[{ use = 1 }]", '{ use = "kl" }', "true", "nan",
        '[{ use = "kl", weight = nan }]', '[{ use = "kl", weight = 2020-01-01 }]', '[{ use = "kl", weight = "1" }]',
        '[{ use = "kl", teacher = [[]] }]', '[{ use = "kl", on = 1 }]', '[{ use = "kl", temperature = 2020-01-01 }]',
        '[{ use = "kl", schedule = 1 }]', '[{ use = "kl", schedule = [] }]',
        '[{ use = "kl", schedule = { weight = 1 } }]', '[{ use = "kl", schedule = { weight = [[0, nan], [1, 1]] } }]',
        '[{ use = "kl", schedule = { weight = [[nan, 0], [1, 1]] } }]',
        '[{ use = "kl", schedule = { weight = [[0, inf]] } }]', '[{ use = "kl", schedule = { weight = [[0]] } }]',
        '[{ use = "kl", schedule = { by = [], weight = [[0, 1]] } }]',
        '[{ use = "kl", schedule = { weight = [[0, 2020-01-01]] } }]',
        f'[{{ use = "kl", schedule = {{ temperature = [[0, {10**400}]] }} }}]',
        f'[{{ use = "kl", weight = {10**400} }}]', '[{ use = "tiny:Net" }]', '[{ use = "builtins:dict" }]',
        '[{ use = "builtins:len" }]', '[{ use = "tiny:task" }]', '[{ use = "datetime:date" }]',
    ],
)  # fmt: skip
def test_losses(losses, capsys):
    assert "losses" in told(f'use = "train"\nlosses = {losses}', capsys)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Documented", "check(model, example, forward)"),
        ("Plain", "stage(source, run, *, teacher=(), data=None)"),
        ("Raises", "raises KeyError"),
        ("Objects", "it objects"),
        ("Silent", "does not say which splits it reads"),
        ("Elsewhere", "does not say which splits it reads"),
        ("Broken", "does not say which splits it reads: KeyError"),
        ("function", "is not a stage"),
        ("dataclasses", "is not a stage"),
    ],
)
def test_stages_of_ones_own(name, message, capsys):
    with open("wrongstages.py", "w") as file:
        file.write(STAGES)
    assert message in told(f'use = "train"\nepochs = 1\n[[stage]]\nname = "own"\nuse = "wrongstages:{name}"', capsys)


def test_a_path_that_is_none(capsys):
    assert "modules" in told('use = "train"', capsys, more='modules = "\\u0000"')


@pytest.mark.parametrize("kind", ["float8", "sparse", "bool", "int8", "complex"])
def test_weights_of_other_kinds(kind, tmp_path):
    module = torch.nn.Linear(3, 2)
    weight = {
        "float8": lambda w: w.to(torch.float8_e4m3fn), "sparse": lambda w: w.to_sparse(), "bool": lambda w: w > 0,
        "int8": lambda w: w.to(torch.int8), "complex": lambda w: w.to(torch.complex64),
    }[kind](module.weight.detach())  # fmt: skip
    torch.save({"weight": weight, "bias": module.bias.detach()}, tmp_path / "w.pt")
    with pytest.raises(UsageError, match="weight: has .*, but the model needs"):
        saved.bring(tmp_path / "w.pt", torch.nn.Linear(3, 2))


def test_halves_and_doubles_are_weights(tmp_path):
    module = torch.nn.Linear(3, 2)
    torch.save({"weight": module.weight.detach().half(), "bias": module.bias.detach().double()}, tmp_path / "w.pt")
    assert saved.bring(tmp_path / "w.pt", torch.nn.Linear(3, 2)).weight.dtype == torch.float32


def test_a_member_that_is_no_array(capsys):
    tiny_file()
    np.savez("data.npz", inputs=np.zeros((4, 3), np.float32))
    with zipfile.ZipFile("data.npz", "a") as archive:
        archive.writestr("notes.txt", "hello")
    assert (
        command(["profile", "model.onnx", "--data", "data.npz"]) == 2
        and "holds notes.txt, which is not an array" in capsys.readouterr().err
    )
    table = 'task = { use = "npz", path = "data.npz" }\n[[stage]]\nuse = "train"\n'
    with open("recipe.toml", "w") as file:
        file.write(table)
    assert (
        command(["compress", "recipe.toml"]) == 2
        and "notes.txt: can't be read: it is not an array" in capsys.readouterr().err
    )


def tiny_file(endless=False):
    """A linear layer as model.onnx; or one behind a loop without an end."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    info = helper.make_tensor_value_info
    nodes = [helper.make_node("Gemm", ["y" if endless else "x", "w"], ["z"], name="gemm")]
    tensors = [numpy_helper.from_array(np.ones((3, 2), np.float32), "w")]
    if endless:
        inner = [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Add", ["v", "one"], ["u"])]
        given = [
            info("i", TensorProto.INT64, []),
            info("c", TensorProto.BOOL, []),
            info("v", TensorProto.FLOAT, ["n", 3]),
        ]
        body = helper.make_graph(
            inner, "body", given, [info("d", TensorProto.BOOL, []), info("u", TensorProto.FLOAT, ["n", 3])]
        )
        nodes.insert(0, helper.make_node("Loop", ["many", "true", "x"], ["y"], body=body, name="loop"))
        more = {"many": np.array(2**62), "true": np.array(True), "one": np.ones(1, np.float32)}
        tensors += [numpy_helper.from_array(array, name) for name, array in more.items()]
    seen = [info("y", TensorProto.FLOAT, ["n", 3])] if endless else []
    ends = [info("x", TensorProto.FLOAT, ["n", 3])], [info("z", TensorProto.FLOAT, ["n", 2])]
    graph = helper.make_graph(nodes, "g", *ends, tensors, value_info=seen)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), "model.onnx")


@pytest.mark.parametrize("verb", ["profile", "compare", "quantize"])
def test_a_model_without_an_end(verb, monkeypatch, capsys):
    from edgekd.measure import jobs

    monkeypatch.setattr(jobs.tried, "__kwdefaults__", {**jobs.tried.__kwdefaults__, "seconds": 2.0})
    tiny_file(endless=True)
    np.savez("data.npz", inputs=np.zeros((4, 3), np.float32))
    more = {"profile": [], "compare": ["model.onnx"], "quantize": ["--data", "data.npz", "--out", "int8.onnx"]}[verb]
    assert command([verb, "model.onnx", *more, "--quiet"]) == 2
    assert "took longer than 2 s" in capsys.readouterr().err


LINES = {
    "model": ["profile", "{}"],
    "compared": ["compare", "{}", "{}"],
    "quantized": ["quantize", "{}", "--data", "data.npz", "--out", "o.onnx"],
    "data": ["profile", "model.onnx", "--data", "{}"],
    "samples": ["quantize", "model.onnx", "--data", "{}", "--out", "o.onnx"],
    "explained": ["explain", "{}", "--float", "model.onnx", "--data", "data.npz"],
    "float": ["explain", "model.onnx", "--float", "{}", "--data", "data.npz"],
    "recipe": ["compress", "{}"],
    "target": ["compress", "--target", "{}.toml", "--dry-run"],
    "run": ["gate", "run"],
}


@pytest.mark.parametrize("what", LINES)
@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "folder"])
def test_what_is_no_regular_file(what, kind, capsys):
    tiny_file()
    np.savez("data.npz", inputs=np.zeros((4, 3), np.float32))
    names = ["odd", "odd.toml", "run/result.json"]
    os.mkdir("run")
    for name in names:
        {"pipe": os.mkfifo, "folder": os.mkdir, "/dev/zero": lambda n: os.symlink("/dev/zero", n)}[kind](name)
    ended = threading.Timer(60, os._exit, [9])
    ended.start()
    try:
        code = command([part.format("odd") for part in LINES[what]])
    finally:
        ended.cancel()
    err = capsys.readouterr().err
    assert code == 2 and "internal" not in err, err


@pytest.mark.parametrize("option", ["--json", "--junit", "--sarif", "--markdown"])
def test_a_report_without_a_name(option):
    from edgekd.verbs import gate

    with pytest.raises(UsageError, match="can't be written"):
        gate._machines(
            gate.Gated((), "pass", 0),
            *("" if option == name else None for name in ("--junit", "--markdown", "--sarif", "--json")),
        )


def test_without_a_home(tmp_path, monkeypatch, capsys):
    import pwd

    from edgekd.hosts import arm, counter
    from edgekd.predicting import of_file
    from edgekd.store.store import Store

    def nobody(uid):
        raise KeyError(uid)

    for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "EDGEKD_CACHE", "EDGEKD_CALIBRATIONS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert Store().root == tmp_path / "store"
    assert all(place.is_relative_to(tmp_path) for place in (of_file.folder(), arm.home(), counter._cache()))
    monkeypatch.delenv("EDGEKD_STORE")
    assert command(["compress", "--dry-run"]) == 2 and "no home" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["artifact.json", "file"])
def test_a_folder_where_a_file_of_the_store_was(name, tmp_path):
    from edgekd.records import Made
    from edgekd.store.store import Store

    def build(folder, scratch):
        (folder / "file").write_text("x")
        return Made("torch", {})

    store = Store(tmp_path / "store")
    make = lambda: store.make("k" * 64, stage="s", settings={}, seed=0, inputs={}, parents={}, build=build)
    place = make().folder
    (place / name).unlink()
    (place / name).mkdir()
    assert store.find("k" * 64, {}) is None
    assert (make().folder / "file").read_text() == "x"


def test_a_folder_that_cant_be_written_is_told_before_anything_is_made(tmp_path, monkeypatch):
    assert unwritable(tmp_path) == unwritable(tmp_path / "a" / "b") == []
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "a"):
        assert list(map(str, unwritable(folder, "copy it"))) == [
            f"{tmp_path / 'file'}: is a file, not a folder\n  hint: copy it"
        ]
    monkeypatch.setattr("os.access", lambda path, mode: False)  # who runs the tests may write everywhere
    assert [str(p) for p in unwritable(tmp_path / "a")] == [f"{tmp_path}: can't be written: Permission denied"]


def test_problems_of_several_checks_are_gathered():
    def wrong():
        raise UsageError(Problem("macs", "is missing"), "and more")

    problems = [Problem("", "the first")]
    assert gathered(lambda: 3, problems) == 3 and gathered(wrong, problems, "stage 2") is None
    assert list(map(str, problems)) == ["the first", "stage 2: macs: is missing", "stage 2: and more"]
    with pytest.raises(RunFailed):
        gathered(lambda: (_ for _ in ()).throw(RunFailed("it broke")), problems)
