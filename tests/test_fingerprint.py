"""Fingerprints: what decides a product changes the key, what doesn't leaves it."""

import functools
import importlib
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from edgekd.errors import UsageError
from edgekd.store import fingerprint

ROOT = Path(__file__).parent.parent
PROJECT = {
    "mine/__init__.py": "",
    "mine/task.py": '''
"""A task."""
from functools import partial
import numpy as np
from . import nets
from .nets import build

def student(width=8):
    """Makes it."""
    from mine.deep import helper  # only here
    return helper.twice(nets.build(width))

class Augment:
    def __init__(self, degrees): self.degrees = degrees
    def __call__(self, x, u): return x
    def method(self, x): return x

small, big = partial(build, 8), partial(build, 16)
gentle, strong = Augment(5), Augment(20)
lazy = lambda: build(3)
more, less, other = lambda x: x + 1, lambda x: x - 1, lambda x: x + 2
def chosen(width):
    def net(x, *, width=width): return x * width
    return net
def preset(width):
    def net(x, width=width): return x * width
    return net
thin, thick = chosen(8), chosen(16)
short, tall = preset(8), preset(16)
def made(width):
    return lambda: build(width)
def made_class(width):
    class Net:
        def __init__(self): self.width = width
    return Net
narrow, wide = made(8), made(16)
Narrow, Wide = made_class(8), made_class(16)
''',
    "mine/nets.py": "from mine.blocks import *\ndef build(width):\n    return block(width)\n",
    "mine/blocks/__init__.py": "from .conv import block\n",
    "mine/blocks/conv.py": "def block(width):\n    return width * 2\n",
    "mine/blocks/other.py": "THIRD = 3\n",
    "mine/deep/helper.py": "import statistics\ndef twice(x):\n    return 2 * x\n",
    "mine/typed.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import mine.hints\ndef f(x): return x\n",
    "mine/hints.py": "A = 1\n",
    "mine/named.py": "import importlib\ndef f(): return importlib.import_module('mine.hints').A\n",
    "mine/unrelated.py": "X = 1\n",
    "mine/alone/__init__.py": "",
    "mine/alone/net.py": "def f(x): return x\n",
}


def code(*objects):
    return fingerprint.code_and_libraries(*objects)[0]


def libraries(*objects):
    return fingerprint.code_and_libraries(*objects)[1]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """`project(changes, folder)(\"task:student\")` is the digest of an object in a project of its own."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def lay(changes=None, folder="clone"):
        root = tmp_path / folder
        shutil.rmtree(root, ignore_errors=True)
        for name, text in {**PROJECT, **(changes or {})}.items():
            if text is not None:
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_text(text)

        def digest(*paths, what=code):
            for name in [n for n in sys.modules if n.split(".")[0] == "mine"]:
                del sys.modules[name]
            importlib.invalidate_caches()
            with monkeypatch.context() as patch:
                patch.syspath_prepend(str(root))
                objects = []
                for path in paths:
                    module = importlib.import_module(f"mine.{path.partition(':')[0]}")
                    objects.append(functools.reduce(getattr, filter(None, path.partition(":")[2].split(".")), module))
                return what(*objects)

        return digest

    yield lay
    for name in [n for n in sys.modules if n.split(".")[0] == "mine"]:
        del sys.modules[name]


def test_a_clone_in_another_folder_is_the_same(project):
    one = project(folder="here")("task:student", "task:gentle", "task")
    assert one == project(folder="there/site")("task:student", "task:gentle", "task")
    assert one != project(folder="here")("task:student", "task:strong", "task")


def test_comments_docstrings_and_formatting_do_not_count(project):
    changed = PROJECT["mine/task.py"].replace('"""A task."""', '"""Another text."""\n# a comment\n')
    changed = (
        changed.replace('    """Makes it."""\n', "")
        .replace("x, u", "x,\n        u")
        .replace("partial(build, 8)", "partial(\n    build, 8)")
    )
    changes = {
        "mine/task.py": changed,
        "mine/blocks/conv.py": 'def block(width):\n    "new"\n    return (width*2)  # twice\n',
    }
    assert changed != PROJECT["mine/task.py"] and project()("task:student") == project(changes)("task:student")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mine/task.py", PROJECT["mine/task.py"].replace("width=8", "width=9")),
        ("mine/nets.py", PROJECT["mine/nets.py"].replace("block(width)", "block(width + 1)")),
        # three imports away: relative, `*`, absolute
        ("mine/blocks/conv.py", "def block(width):\n    return width * 3\n"),
        ("mine/blocks/other.py", "THIRD = 4\n"),  # `*` of a package may bring any of its modules
        ("mine/blocks/__init__.py", "from .conv import block\nblock = None\n"),
        # imported inside a function; no __init__
        ("mine/deep/helper.py", "import statistics\ndef twice(x):\n    return 3 * x\n"),
        ("mine/__init__.py", "import os\n"),  # runs before all of them
    ],
)
def test_what_is_imported_counts(project, name, text):
    assert project()("task:student") != project({name: text})("task:student")


def test_the_packages_around_a_module_count(project):
    one, inner, outer = (
        project(),
        project({"mine/alone/__init__.py": "A = 1\n"}, "inner"),
        project({"mine/__init__.py": "A = 1\n"}, "outer"),
    )
    assert len({digest("alone.net:f") for digest in (one, inner, outer)}) == 3


def test_what_is_not_imported_does_not_count(project):
    assert project()("task:student") == project({"mine/unrelated.py": "X = 2\n", "mine/more.py": ""})("task:student")
    assert project()("typed:f") == project({"mine/hints.py": "A = 2\n"})("typed:f")  # under TYPE_CHECKING: never runs
    assert project()("named:f") != project({"mine/hints.py": "A = 2\n"})("named:f")  # import_module("mine.hints")


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("small", "big"), ("gentle", "strong"), ("gentle.method", "strong.method"), ("narrow", "wide"),
        ("Narrow", "Wide"), ("made", "made_class"), ("more", "less"), ("more", "other"), ("thin", "thick"),
        ("short", "tall"),
    ],
)  # fmt: skip
def test_what_an_object_carries_counts(project, one, two):
    """partial, instance, bound method, closure, class in a function, lambdas of one name, defaults: one source, two
    behaviours."""
    digest = project()
    assert digest(f"task:{one}") != digest(f"task:{two}")
    assert digest(f"task:{one}") == digest(f"task:{one}") == project(folder="elsewhere")(f"task:{one}")


@pytest.mark.parametrize("name", ["small", "gentle", "gentle.method", "lazy", "narrow", "Wide", "Augment", "student"])
def test_every_kind_of_object_is_followed(project, name):
    changed = {"mine/blocks/conv.py": "def block(width):\n    return width * 3\n"}
    assert project()(f"task:{name}") != project(changed)(f"task:{name}")


def test_arrays_and_tensors_that_are_carried_count():
    import torch

    def holding(value):
        return lambda: value

    def held(value):
        return code(holding(value))

    for make in (np.array, torch.tensor):
        assert held(make([1.0, 2.0])) == held(make([1.0, 2.0])) != held(make([1.0, 3.0]))
    for dtype in (torch.float32, torch.bfloat16, torch.float8_e4m3fn):  # far too many values for their text to show
        one, other = torch.ones(20000), torch.ones(20000)
        other[10000] = 2.0
        assert held(one.to(dtype)) == held(one.to(dtype)) != held(other.to(dtype))
    assert held(torch.ones(3)) != held(torch.ones(3).bfloat16())
    torch.manual_seed(0)
    one, two = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert held(one) == held(one) != held(two)
    assert held({0, 8}) == held({8, 0}) and held(1) != held(True) != held("1")
    assert held(Path("/a/b.txt")) == held(Path("/c/b.txt")) != held(Path("/a/c.txt"))
    assert held(torch.float32) == held(torch.float32) != held(torch.float16) and held(re.compile("a")) != held(
        re.compile("b")
    )
    assert held(threading.Lock()) == held(threading.Lock()) and held(torch.eye(2).to_sparse()) != held(
        torch.eye(3).to_sparse()
    )
    one, same = [1, 2], [1, 2]
    assert held([one, one]) == held([one, same])  # whether constants are shared differs with a .pyc
    loop = [1]
    loop.append(loop)
    assert held(loop) == held(loop)


def test_wrapped_functions_are_followed():
    def plain(scale):
        return lambda x: x * scale

    assert code(functools.cache(plain(1))) == code(functools.cache(plain(1)))
    assert code(functools.cache(plain(1))) != code(functools.cache(plain(2)))


class Slots:
    __slots__ = ("value", "never", "__weakref__")

    def __init__(self, value):
        self.value = value


class More(Slots):
    __slots__ = "more"

    def __init__(self, value, more):
        super().__init__(value)
        self.more = more


class Both(Slots):
    def __init__(self, value, plain):
        super().__init__(value)
        self.plain = plain


def test_what_an_instance_carries_in_slots_counts():
    for make, one, others in (
        (Slots, (1,), [(2,)]),
        (More, (1, 2), [(2, 2), (1, 3)]),
        (Both, (1, 2), [(2, 2), (1, 3)]),
    ):
        digests = [code(make(*values)) for values in (one, one, *others)]
        assert digests[0] == digests[1] and len(set(digests)) == 1 + len(others), make


def test_each_part_of_what_holds_others_counts():
    class Own:
        def one(self):
            return 1

        def two(self):
            return 2

    of, partial = code, functools.partial
    pairs = [
        (Own().one, Own().two),
        (partial(int, base=2), partial(int, base=3)),
        (partial(int, "1"), partial(int, "2")),
    ]
    pairs += [
        (partial(int), partial(str)),
        ({"a": 1}, {"b": 1}),
        ({"a": 1}, {"a": 2}),
        ({1, 2}, {1, 3}),
        ([1, 2], [2, 1]),
    ]
    pairs += [(functools.cache(Own.one), functools.cache(Own.two))]
    pairs += [(property(Own.one), property(Own.two)), (staticmethod(Own.one), staticmethod(Own.two))]
    pairs += [(np.array([[1], "a"], object), np.array([[2], "a"], object))]
    pairs += [(os.path, sys), (len, print), (Path("a"), Path("b"))]
    for one, other in pairs:
        assert of(one) == of(one) != of(other), one


def test_classes_count_by_name_and_those_made_in_functions_by_their_bases():
    def made(base):
        class Net(base):
            pass

        return Net

    assert code(Slots) == code(Slots) != code(More)
    assert code(made(Slots)) == code(made(Slots)) != code(made(Both))


def run(text, *arguments, cwd=None, name=None):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *(["-c", text] if name is None else [name]), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=True).stdout.split()


def test_a_prompt_or_notebook_counts_by_what_its_functions_use():
    """No source file: names that functions use, values that these have, classes and their bases."""
    text = """
from edgekd.store.fingerprint import code_and_libraries
code = lambda *objects: code_and_libraries(*objects)[0]
def world(factor=2, body="return x * width", base="pass", doc="Makes it.", word="a"):
    import sys
    space = {"__name__": "__main__"}
    exec(f'''
import numpy as np
width = {factor}
unused = object()
class Base:
    {base}
class Net(Base):
    def forward(self, x): return helper(x)
def helper(x):
    # comment
    {body}
def build():
    "{doc}"
    return Net() if helper != "{word}" else None
''', space)
    sys.modules["__main__"].__dict__.update({k: v for k, v in space.items() if k[0] != "_"})
    return space["build"]
print(code(world()), code(world()), code(world(factor=3)), code(world(body="return x + width")),
      code(world(base="y = 1")), code(world(word="b")), code(world(doc="Makes one.")))
"""
    one, same, *others, documented = run(text)
    assert one == same == documented and len({one, *others}) == 5
    assert run(text)[0] == one  # in another process


def test_a_script_is_the_same_run_or_imported(tmp_path):
    script = "from helper import f\nfrom edgekd.store.fingerprint import code_and_libraries as code\n"
    script += "class A:\n    pass\ndef g(): return f()\n"
    script += "if __name__ == '__main__':\n    print(code(g, A)[0])\n"
    digests = []
    for folder, number in (("one", 1), ("two", 1), ("three", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "script.py").write_text(script)
        (tmp_path / folder / "helper.py").write_text(f"def f():\n    return {number}\n")
        digests += run("", cwd=tmp_path / folder, name="script.py")
    digests += run(
        "import sys; sys.path.insert(0, '.'); import script; print(script.code(script.g, script.A)[0])",
        cwd=tmp_path / "one",
    )
    assert digests[0] == digests[1] == digests[3] != digests[2]


# ---------------------------------------------------------------- edgekd's own modules

EDGEKD = """
import sys
sys.path.insert(0, sys.argv[1])
import edgekd, pathlib
assert pathlib.Path(edgekd.__file__).is_relative_to(sys.argv[1])
from edgekd.store import fingerprint
from edgekd.stages.distill import Distill
print(fingerprint.code_and_libraries(Distill)[0], *fingerprint.Walk().all([Distill])["modules"])
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """`clone(changes, folder)`: digest and modules of the distill stage in a copy of edgekd."""

    def copy(changes=None, folder="clone"):
        root = tmp_path_factory.mktemp("x") / folder
        shutil.copytree(ROOT / "edgekd", root / "edgekd", ignore=shutil.ignore_patterns("__pycache__"))
        (root / "edgekd-9.9.dist-info").mkdir()
        (root / "edgekd-9.9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: edgekd\nVersion: 9.9\n")
        (root / "edgekd-9.9.dist-info" / "top_level.txt").write_text("edgekd\n")
        for name, text in (changes or {}).items():
            path = root / "edgekd" / name
            path.write_text(path.read_text() + text)
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        command = [sys.executable, "-c", EDGEKD, str(root)]
        digest, *modules = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, text=True, check=True
        ).stdout.split()
        return digest, set(modules)

    return copy


def test_edgekd_counts_by_syntax_wherever_it_lies_but_for_ground_and_tools(clone):
    (one, modules), (two, _) = clone(), clone(folder="lib/python3.11/site-packages")
    assert (
        one == two
        and {"edgekd.training.loop", "edgekd.stages.train", "edgekd.models.saved", "edgekd.data.epochs"} <= modules
    )
    assert (
        not {
            f"edgekd.{name}"
            for name in ("errors", "records", "store.store", "components", "store.fingerprint", "run.plan", "cli")
        }
        & modules
    )
    line = "\nADDED = 1\n"
    assert (
        clone(
            dict.fromkeys(
                ("errors.py", "store/store.py", "components.py", "records.py", "__init__.py", "run/plan.py"), line
            )
        )[0]
        == one
    )
    assert clone({"training/loop.py": "\n# a comment\n"})[0] == one
    assert clone({"training/loop.py": line})[0] != one
    assert clone({"data/epochs.py": line})[0] != one  # imported inside a function


# ---------------------------------------------------------------- libraries


def test_libraries_are_those_that_the_code_imports(project):
    from importlib.metadata import version

    found = project()("task:student", what=libraries)
    assert found == {"numpy": version("numpy"), "python": f"{sys.version_info[0]}.{sys.version_info[1]}"}
    changes = {"mine/blocks/conv.py": "def block(width):\n    import sklearn.datasets, no_such_module\n"}
    more = project(changes)("task:student", what=libraries)
    assert more == found | {"scikit-learn": version("scikit-learn")}
    assert project()("unrelated", what=libraries) == {"python": found["python"]}
    import torch

    assert libraries(torch.nn.Linear)["torch"] == version("torch")


# ---------------------------------------------------------------- keys

PARTS = {
    "stage": "train",
    "settings": {"lr": 0.1, "losses": ({"use": "kl", "weight": 1.0},), "clip": None, "on": True},
    "inputs": {"source": ("k1",), "teacher": []},
    "seed": 0,
    "code": "c",
    "data": {"train": "d"},
    "threads": 2,
    "device": "cpu",
    "dtype": "float32",
    "libraries": {"torch": "2.13.0"},
}


def test_a_key_is_of_everything_that_decides():
    key = fingerprint.key(**PARTS)
    changed = {
        "stage": "prune",
        "settings": {},
        "inputs": {},
        "seed": None,
        "code": "",
        "data": {},
        "threads": 1,
        "device": "cuda",
    }
    changed |= {"dtype": "float16", "libraries": {"torch": "2.13.1"}}
    assert changed.keys() == PARTS.keys() and len(key) == 64
    assert len({key} | {fingerprint.key(**{**PARTS, name: value}) for name, value in changed.items()}) == 11


def test_a_key_knows_values_not_spelling():
    key = fingerprint.key(**PARTS)
    settings = {"on": True, "clip": None, "losses": [{"weight": 1.0, "use": "kl"}], "lr": float("0.1")}
    assert fingerprint.key(**{**PARTS, "settings": settings}) == key
    for name, value in (("on", 1), ("lr", 0.1 + 1e-17 * 2), ("lr", 0.10000000000000002), ("clip", "None")):
        same = value == PARTS["settings"][name] and type(value) is type(PARTS["settings"][name])
        assert (fingerprint.key(**{**PARTS, "settings": {**PARTS["settings"], name: value}}) == key) == same


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), Path("x"), {1: 2}, {1, 2}, b"x", np.int64(1), np.zeros(2), object(), len]
)
def test_a_key_refuses_what_json_cannot_say(value):
    with pytest.raises(TypeError, match=r"key\.settings\.a\[1\]"):
        fingerprint.key(**{**PARTS, "settings": {"a": [0, value]}})


# ---------------------------------------------------------------- data


def test_a_digest_by_hand():
    import hashlib

    array = np.array([[1, 2], [3, 4]], "<i2")
    head = repr((None, "int16", "<i2", (2, 2))).encode()
    assert fingerprint.array_digest(array) == hashlib.sha256(head + b"\1\0\2\0\3\0\4\0").hexdigest()
    assert fingerprint.array_digest(array.T) == fingerprint.array_digest(array.T.copy())
    assert fingerprint.array_digest(array[::-1]) == fingerprint.array_digest(np.array([[3, 4], [1, 2]], "<i2"))


def test_digests_tell_apart():
    x = np.arange(12, dtype=np.float32)
    others = [
        x,
        x.reshape(3, 4),
        x.reshape(4, 3),
        x.astype(">f4"),
        x.view(np.int32),
        x.astype(np.float64),
        x[:11],
        x[::-1],
    ]
    others += [
        np.zeros(0),
        np.zeros((0, 3)),
        np.zeros((3, 0)),
        np.float32(3),
        np.array(["a", "b"]),
        np.zeros(1, "M8[s]"),
        np.zeros(1, [("a", "i8")]),
    ]
    others += [{"a": x}, {"b": x}, {"a": x, "b": x}]
    digests = [fingerprint.array_digest(value) for value in others]
    assert len(set(digests)) == len(digests)
    assert fingerprint.array_digest({"a": x, "b": x + 1}) == fingerprint.array_digest({"b": x + 1, "a": x})
    with pytest.raises(TypeError, match="no digest"):
        fingerprint.array_digest(np.array([None, "x"]))


def test_data_is_inputs_labels_ids_and_weights():
    x, y, ids, weight = np.ones((3, 2), np.float32), np.arange(3), [0, "b", None], np.ones(3, np.float32)
    one = fingerprint.data(x, y, ids, weight)
    assert one == fingerprint.data(x.copy(), y.copy(), [np.int64(0), "b", None], weight)
    changed = [
        (x + 1, y, ids, weight),
        (x, y[::-1], ids, weight),
        (x, None, ids, weight),
        (x, y, ["0", "b", None], weight),
        (x, y, ids, weight * 2),
    ]
    changed += [({"image": x}, y, ids, weight), (x, y, ["b", 0, None], weight)]
    assert len({one, *(fingerprint.data(*c) for c in changed)}) == 8
    tagged = [
        fingerprint.data(x, y, ids, weight, tags)
        for tags in (None, [("a",), (), ()], [(), ("a",), ()], [("a", "b"), (), ()])
    ]
    assert tagged[0] == one and len(set(tagged)) == 4


def test_a_split_by_hand():
    """Keys that were made stay those of the same data: a change here makes everything that anybody has finished be done
    again."""
    import hashlib

    digest = lambda value: hashlib.sha256(value.encode()).hexdigest()
    x, y = np.ones((2, 1), np.float32), np.arange(2)
    ids, tags = digest('[0,"b"]'), digest('[["t"],[]]')
    for inputs, named in ((x, {"inputs": x}), ({"image": x}, {"inputs.image": x})):
        parts = [fingerprint.array_digest({**named, "labels": y, "weight": x[:, 0]}), ids, tags]
        wanted = digest("[" + ",".join(f'"{p}"' for p in parts) + "]")
        assert fingerprint.data(inputs, y, [0, "b"], x[:, 0], [("t",), ()]) == wanted


def test_assets_count_by_name_and_content(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder / "words" / "more").mkdir(parents=True)
        (tmp_path / folder / "words" / "more" / "a.txt").write_text("a")
        (tmp_path / folder / "table.csv").write_text("1,2")

    def digest(folder):
        return fingerprint.files([str(tmp_path / folder / "table.csv"), tmp_path / folder / "words"])

    one = digest("one")
    assert one == digest("two")
    (tmp_path / "two" / "words" / "more" / "a.txt").write_text("b")
    assert digest("two") != one
    (tmp_path / "two" / "words" / "more" / "a.txt").write_text("a")
    (tmp_path / "two" / "words" / "more" / "a.txt").rename(tmp_path / "two" / "words" / "a.txt")
    assert digest("two") != one
    with pytest.raises(UsageError) as caught:
        fingerprint.files([tmp_path / "no", tmp_path / "none"])
    hint = "assets are files that the task reads"
    assert [str(p) for p in caught.value.problems] == [
        f"{tmp_path / name}: there is no such file or folder\n  hint: {hint}" for name in ("no", "none")
    ]


def test_a_class_that_was_computed_counts_by_what_it_holds(tmp_path, monkeypatch):
    """What `type(...)` makes stands in no source: two of one name may differ."""
    monkeypatch.syspath_prepend(str(tmp_path))
    lines = "class Base: pass\ndef made(width): return type('Net', (Base,), {'width': width, '__module__': __name__})\n"
    (tmp_path / "computedclass.py").write_text(lines)
    module = importlib.import_module("computedclass")
    one, two, same = module.made(8), module.made(16), module.made(8)
    told = lambda x: fingerprint.code_and_libraries(x)[0]
    assert told(one) == told(same) != told(two) and told(module.Base) == told(module.Base)
