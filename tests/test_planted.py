"""A change planted in a part of any kind changes the key of the steps that it has a part in, and of no others."""

import sys
from pathlib import Path

import pytest
import tiny  # noqa: F401  (the recipe's task)

import edgekd
from edgekd import components, probes, runtimes
from edgekd.run import plan, resolve
from edgekd.store import parsed

PACKAGE = Path(edgekd.__file__).parent
SHORT = {"epochs": 1}
RECIPE = {
    "task": "digits",
    "threads": 1,
    "control": False,
    "model": {"teacher": {"train": SHORT}, "other": {"train": {"model": "teacher", "epochs": 2}}},
    "stage": [
        {
            "use": "distill",
            "teacher": ["teacher", "other"],
            "combine": "confidence",
            "losses": [{"use": "jsd"}],
            **SHORT,
        },
        {"use": "prune", "criterion": "random", "losses": [{"use": "cross_entropy"}], **SHORT},
        {"use": "quantize", "mode": "ptq", "ranges": "mse", "losses": [{"use": "cross_entropy"}]},
    ],
}


def keys(table):
    """{label of a step: its key}, as planned; what needs a training to be checked is not."""
    planner = plan._Planner(resolve.resolved(table))
    planner.run()
    return {step.label: key for key, step in planner.plan.steps.items()}


@pytest.fixture(scope="module")
def before():
    return keys(RECIPE)


LINE = ["distill", "prune", "quantize", "export quantize"]  # each is made from the one before
EXPORTS = ["export teacher", "export quantize"]
# {file: the steps whose keys have to change, of those that the test looks at}
BUILT_IN = {
    "losses/jsd.py": LINE,
    "losses/cross_entropy.py": ["teacher", "other", *LINE, "export teacher"],
    "losses/kl.py": [],  # no step names it
    "ensembles/confidence.py": LINE,
    "ensembles/mean.py": [],
    "criteria/random.py": LINE[1:],
    "criteria/magnitude.py": [],
    "ranges/mse.py": LINE[2:],
    "ranges/minmax.py": [],
    "stages/prune.py": LINE[1:],
    "tasks/digits.py": ["teacher", "other", *LINE, "export teacher"],
    "formats/onnx.py": EXPORTS,
}


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_change_of_a_built_in_part(name, before, monkeypatch, tmp_path):
    """Keys are asked for as if an edited copy of the file stood in its place."""
    path = PACKAGE / name
    copy = tmp_path / path.name
    copy.write_text(path.read_text() + "\nADDED = 1\n")
    tree = parsed.tree
    monkeypatch.setattr(parsed, "tree", lambda p: tree(copy if p == path else p))
    after, looked_at = keys(RECIPE), ["teacher", "other", *LINE, "export teacher"]
    assert {label for label in looked_at if after[label] != before[label]} == set(BUILT_IN[name])


def test_a_change_of_a_built_in_runtime(before, monkeypatch, tmp_path):
    """Its file is read as a file: comments count."""
    source, copy = runtimes.source, tmp_path / "onnxruntime.py"
    copy.write_text(source("onnxruntime").read_text() + "# a comment\n")
    monkeypatch.setattr(runtimes, "source", lambda name: copy if name == "onnxruntime" else source(name))
    after = keys(RECIPE)
    assert {label for label in ["teacher", "other", *LINE, "export teacher"] if after[label] != before[label]} == set(
        EXPORTS
    )


@pytest.mark.parametrize("name, kept", [("times", False), ("static", True), ("ece", True)])
def test_a_change_of_a_probe(name, kept, monkeypatch, tmp_path):
    """Kept figures of where a file ran are those of the probes that took them; others are computed every time."""
    probe, before = components.find("probes", name), probes.timed()
    copy = tmp_path / f"{name}.py"
    copy.write_text(Path(probe.__file__).read_text() + "\nADDED = 1\n")
    monkeypatch.setattr(probe, "__file__", str(copy))
    assert (probes.timed() == before) == kept


@pytest.mark.parametrize(
    "old, new, first",
    [
        (
            "activation_bits: Annotated[int, Ge(2), Le(8)] = 8",
            "activation_bits: Annotated[int, Ge(2), Le(8)] = 7",
            True,
        ),
        ("draws: int = 8", "draws: int = 9", True),
        ("emulated_as: Annotated[str, MinLen(1)] | None = None", 'emulated_as: str | None = "x"', False),
        ("# ------------------------------------------------------------", "# -----", False),
    ],
)
def test_a_changed_default_of_a_record_that_stages_use(old, new, first, before, monkeypatch, tmp_path):
    """Those of what is measured and judged are no stage's."""
    path, copy = PACKAGE / "records.py", tmp_path / "records.py"
    assert old in path.read_text()
    copy.write_text(path.read_text().replace(old, new))
    definitions = parsed.definitions
    monkeypatch.setattr(parsed, "definitions", lambda p: definitions(copy if p == path else p))
    assert (keys(RECIPE)["quantize"] != before["quantize"]) == first


OWN = {
    "loss": "def own(student, teacher, batch):\n    return student.output.sum(1)\n",
    "ensemble": "def own(signals, batch):\n    return next(iter(signals.values()))\n",
    "criterion": "def own(group):\n    return helper.NUMBER\n",
    "range": "def own(histogram):\n    return histogram.low, histogram.high\n",
    "stage": "import dataclasses\n@dataclasses.dataclass(frozen=True)\nclass own:\n    reads = ()\n"
    "    def __call__(self, source, run, *, teacher=(), data=None): ...\n",
    "task": "import dataclasses, tiny\ndef student():\n    return tiny.Net(helper.NUMBER)\ndef own():\n"
    "    return dataclasses.replace(tiny.task, models={'teacher': student, 'student': student})\n",
}


def of_own(kind):
    """The recipe with one's own part in place of the built-in one, and the step that it decides."""
    distill, prune, quantize = RECIPE["stage"]
    where = {
        "loss": ([{**distill, "losses": [{"use": "planted:own"}]}], "distill"),
        "ensemble": ([{**distill, "combine": "planted:own"}], "distill"),
        "criterion": ([distill, {**prune, "criterion": "planted:own"}], "prune"),
        "range": ([distill, {**quantize, "ranges": {"use": "planted:own"}}], "quantize"),
        "stage": ([distill, {"use": "planted:own", "name": "mine"}], "mine"),
    }
    stages, label = where.get(kind, ([distill], "teacher"))
    task = {"use": "planted:own"} if kind == "task" else "tiny:task"
    return {**RECIPE, "task": task, "stage": stages}, label


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize("file", ["planted.py", "planted_helper.py"])
def test_a_change_of_ones_own_part(kind, file, monkeypatch, tmp_path):
    """By the path of its module; a change of what that module imports counts too."""
    monkeypatch.syspath_prepend(str(tmp_path))
    text = "import planted_helper as helper\n" + OWN[kind]
    table, label = of_own(kind)

    def key(changed=None):
        for name, lines in (("planted.py", text), ("planted_helper.py", "NUMBER = 4\n")):
            (tmp_path / name).write_text(lines + ("\nADDED = 1\n" if name == changed else ""))
            sys.modules.pop(name.removesuffix(".py"), None)
        return keys(table)[label]

    first = key()
    assert key() == first
    assert key(file) != first


READER = 'FORMAT = "planted"\nNEEDS = ()\n\ndef load(path, threads=1): ...\n'
FORMAT = "import planted_helper as helper\nSUFFIX = '.planted'\n\ndef export(*given, **named): ...\n"


@pytest.mark.parametrize("file", ["planted.py", "planted_helper.py", "reader.py"])
def test_a_change_of_ones_own_format_or_runtime(file, monkeypatch, tmp_path):
    """It decides the exports, and no other step; so does what a format's module imports."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(components, "look_beside", lambda folder: None)
    target = tmp_path / "mine.toml"
    target.write_text('title = "mine"\narchitecture = "x86-64"\n[runtime]\nname = "reader"\n')
    table = {**RECIPE, "task": "tiny:task", "targets": [str(target)]}

    def made(changed=None):
        texts = {"planted.py": FORMAT, "planted_helper.py": "NUMBER = 4\n", "reader.py": READER}
        for name, text in texts.items():
            (tmp_path / name).write_text(text + ("\nADDED = 1\n" if name == changed else ""))
            sys.modules.pop(name.removesuffix(".py"), None)
        return keys(table)

    first, other = made(), made(file)
    assert made() == first
    changed = {label for label in first if other[label] != first[label]}
    assert changed == {label for label in first if label.startswith("export")} != set()
