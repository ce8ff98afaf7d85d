"""Recipes: strict, every problem at once, each with its place and a hint; the resolved recipe says everything and
repeats the run."""

import dataclasses
import tomllib

import pytest

from edgekd.components import Use
from edgekd.errors import UsageError
from edgekd.run import plan, recipe, resolve
from edgekd.run.dump import dump
from edgekd.run.recipe import stages
from edgekd.tasks import digits
from edgekd.training.terms import Term

GOOD = {"task": "digits", "stage": [{"use": "distill"}]}


def told(source, **more):
    with pytest.raises(UsageError) as caught:
        resolve.resolved(source, **more)
    return [str(p) for p in caught.value.problems]


@pytest.mark.parametrize("use", stages.public())
def test_every_stage_can_be_named(use):
    problems = []
    assert stages.find(use, "here", problems) is not None and problems == []


MANY = """
task = "digits"
targets = []
sede = 3
[[stage]]
use = "distil"
[[stage]]
use = "distill"
epochs = 0
bach = 3
losses = [{ use = "kll" }, { use = "kl", temperature = -1.0 }, { weight = 3 }, { use = "cross_entropy", weight = -2 }]
teacher = "teecher"
[sweep]
"distill.epoch" = [1, 2]
[model.teacher]
weights = "x"
train = { epochs = "many" }
"""


def test_all_problems_at_once(tmp_path):
    path = tmp_path / "many.toml"
    path.write_text(MANY)
    expected = [
        ("targets", "at least 1 item"),
        ("sede: unknown key", "did you mean `seed`?"),
        ("stage 1 (distil)", "did you mean `distill`?"),
        ("stage 2 (distill): epochs", "greater than or equal to 1, not 0"),
        ("stage 2 (distill): bach: unknown key", "did you mean `batch`?"),
        ("losses[0]: no loss is named `kll`", "did you mean `kl`?"),
        ("losses[1]: temperature", "greater than 0, not -1.0"),
        ("losses[2]: `use` is missing", "hint: one of"),
        ("losses[3]: weight", "at least 0, not -2"),
        ("model.teacher: has both", "give one of `train`, `distill` and `weights`"),
        ("model.teacher: weights", "there is no file `x`"),
        ("nothing is named `teecher`", "did you mean `teacher`?"),
        ("sweep.distill.epoch", "did you mean `epochs`?"),
    ]
    problems = told(path)
    for place, message in expected:
        assert sum(place in p and message in p for p in problems) == 1, (place, problems)
    assert len(problems) == len(expected) and all(str(path) in p for p in problems)


POST = [{"use": "train"}, {"use": "quantize", "mode": "ptq"}]


@pytest.mark.parametrize(
    "change, text",
    [
        ({"stage": []}, "stage"),
        ({"stage": [{"use": "distill"}, {"use": "distill"}]}, "the name `distill` is taken"),
        ({"stage": [{"use": "distill", "name": "a/b"}]}, "letters, digits"),
        ({"stage": [{"use": "prune"}]}, "needs a trained student"),
        ({"stage": [{"use": "quantize"}, {"use": "distill"}]}, "must be the last"),
        ({"stage": [{"use": "distill", "losses": []}]}, "is empty"),
        ({"stage": [{"use": "distill", "augment_seed": 3}]}, "is filled in by edgekd"),
        ({"stage": [{"use": "distill", "epochs": True}]}, "epochs"),
        ({"stage": [{"use": "nowhere.to:find"}]}, "there is no module `nowhere.to`"),
        ({"stage": [{"use": "distill", "losses": [{"use": "math:cosine"}]}]}, "`math` has no `cosine`"),
        ({"stage": [{"use": "../nowhere:find"}]}, "`../nowhere` is not a module's name"),
        ({"stage": [{"use": "prune", "criterion": ":find"}]}, "`` is not a module's name"),
        ({"task": "../nowhere:find"}, "`../nowhere` is not a module's name\n  hint: write `package.module:name`"),
        ({"stage": [{"use": "prune", "keep": 0.5}]}, 'names of layers, not 0.5\n  hint: keep = ["stem"]'),
        ({"targets": "host"}, "must be a list, not 'host'\n  hint: targets = [...]"),
        ({"stage": [{"use": "quantize", "ranges": {"use": "minmax", "share": 1}}]}, "`minmax` takes no settings"),
        ({"sweep": {"seed": [1, "two"]}}, "'two' is not an integer"),
        ({"sweep": {"distill.epochs": []}}, "is empty"),
        ({"sweep": {"seed": list(range(101)), "distill.epochs": list(range(1, 101))}}, "comes to 10100 combinations"),
        ({"sweep": {"distill.epochs": [3, 3]}}, "names a value twice"),
        ({"stage": POST, "sweep": {"quantize.ranges": ["minmax", {"use": "minmax"}]}}, "names a value twice"),
        (
            {"stage": POST, "sweep": {"quantize.ranges": ["percentile", {"use": "percentile", "share": 99.99}]}},
            "names a value twice",
        ),
        ({"sweep": {"distil.epochs": [3]}}, "did you mean `distill.epochs`?"),
        ({"seed": 1.5}, "seed"),
        ({"threads": 0}, "threads"),
    ],
)
def test_each_mistake_is_named(change, text):
    problems = told({**GOOD, **change})
    assert any(text in p for p in problems), problems


@pytest.mark.parametrize(
    "sets, text",
    [
        (["epochs"], "STAGE.KEY=VALUE"),
        (["distil.epochs=3"], "did you mean `distill`?"),
        (["distill.epochs=x"], "epochs"),
    ],
)
def test_wrong_settings_are_named(sets, text):
    assert any(text in p for p in told(GOOD, sets=sets))


def test_settings_reach_their_place():
    read, _ = recipe.parsed(
        {**GOOD, "sweep": {"distill.epochs": [1, 2]}},
        sets=["distill.epochs=7", "seed=3", "model.teacher.train.epochs=9", 'distill.losses=[{use="cross_entropy"}]'],
        targets=["a"],
    )
    assert read.stages[0].stage.epochs == 7 and read.sweep.choices == {}
    assert read.seed == 3 and read.models["teacher"].stage.epochs == 9 and read.targets == ("a",)
    assert read.stages[0].stage.losses == (Term("cross_entropy", 1.0, {"smoothing": 0.0, "weights": ()}),)
    swept = recipe.parsed(GOOD, sets=["sweep.distill.epochs=[1, 2]"])[0].sweep
    assert [c.value for c in swept.choices["distill", "epochs"]] == [1, 2]


@pytest.mark.parametrize("ranges", [{}, {"ranges": "percentile"}, {"ranges": {"use": "percentile", "share": 99.9}}])
def test_a_setting_of_a_part_reaches_it_however_the_part_is_named(ranges):
    """Here of the default, `minmax`, which has none."""
    table = {**GOOD, "stage": [{"use": "train"}, {"use": "quantize", "mode": "ptq", **ranges}]}
    read, problems = recipe.parsed(table, sets=["quantize.ranges.share=99.5"])
    if ranges:
        assert read.stages[1].stage.ranges == Use("ranges", "percentile", {"share": 99.5}) and problems == []
    else:
        assert [p.hint for p in problems] == ["`minmax` takes no settings"]


def test_a_setting_of_a_task_reaches_it():
    read, _ = recipe.parsed({**GOOD, "task": "image_folder"}, sets=["task.path=photos"])
    assert read.task == {"use": "image_folder", "path": "photos"}
    table = {**GOOD, "stage": [{"use": "train", "epochs": 1}]}
    assert "`train.epochs` is not a table and has no keys" in told(table, sets=["train.epochs.x=1"])[0]


def test_a_sweep_is_the_only_list_of_choices():
    assert any("epochs" in p for p in told({**GOOD, "stage": [{"use": "distill", "epochs": [1, 2]}]}))


def test_the_teacher_is_named_where_a_term_needs_one():
    alone = {"use": "train", "losses": [{"use": "cross_entropy"}]}
    lines = recipe.parsed({**GOOD, "stage": [alone, {"use": "prune"}]})[0].stages
    assert [line.teacher for line in lines] == [(), ("teacher",)]
    labels = {"use": "distill", "losses": [{"use": "cross_entropy"}]}
    assert recipe.parsed({**GOOD, "stage": [labels]})[0].stages[0].teacher == ()


def test_files_that_are_no_recipes(tmp_path):
    (tmp_path / "broken.toml").write_text("task = ")
    (tmp_path / "latin.toml").write_bytes(b'task = "\xff"')
    assert "is not valid TOML" in told(tmp_path / "broken.toml")[0]
    assert "can't be read" in told(tmp_path / "latin.toml")[0]
    assert "did you mean" in told(tmp_path / "brocken.toml")[0]


def test_resolved_recipe_says_everything_and_repeats_the_run(tmp_path):
    from edgekd.run import plan

    first = resolve.resolved(None, sets=["quantize.epochs=3"])
    text = dump(first)
    (tmp_path / "recipe.toml").write_text(text)
    second = resolve.resolved(tmp_path / "recipe.toml")
    assert dump(second) == text
    assert list(plan.make(first).steps) == list(plan.make(second).steps)
    table = tomllib.loads(text)
    assert table["threads"] >= 1 and table["stage"][0]["lr"] > 0 and table["gate"]["any"]["top1"]


def test_a_loss_of_ones_own_needs_no_settings_and_may_have_some(tmp_path, monkeypatch):
    (tmp_path / "ownloss.py").write_text(
        "def plain(student, teacher, batch):\n    return student.output\n"
        "def tuned(student, teacher: 'Signals', batch, sharp: float = 2.0):\n    return student.output\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    losses = [{"use": "ownloss:plain"}, {"use": "ownloss:tuned", "sharp": 3.0}]
    (line,) = recipe.parsed({**GOOD, "stage": [{"use": "distill", "losses": losses}]})[0].stages
    assert line.stage.losses == (Term("ownloss:plain"), Term("ownloss:tuned", 1.0, {"sharp": 3.0}))
    assert line.teacher == ("teacher",)
    assert any(
        "sharpp" in p and "did you mean `sharp`" in p
        for p in told({**GOOD, "stage": [{"use": "train", "losses": [{**losses[1], "sharpp": 1}]}]})
    )


OWN = """
import numpy as np
from torch import nn
import edgekd
x, y = np.random.default_rng(0).normal(size=(60, 4)).astype("float32"), np.arange(60) % 3
class N(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.a, self.act, self.b = nn.Linear(4, 8), act, nn.Linear(8, 3)
    def forward(self, x):
        return self.b(self.act(self.a(x)))
def make(models, **more):
    data = edgekd.arrays(x[:40], y[:40], x[40:], y[40:])
    return edgekd.Task(name="mine", version="1", models=models, data=data, metrics=(edgekd.top1(),), classes=3,
                       augment=lambda x, u: x + u[:, :1], **more)
one = make({"teacher": lambda: N(nn.ReLU()), "student": lambda: N(nn.ReLU())})
two = make({"teacher": lambda: N(nn.Tanh()), "student": lambda: N(nn.Tanh())})
mixed = make({"teacher": lambda: N(nn.ReLU()), "student": lambda: N(nn.Tanh())})
swapped = make({"teacher": lambda: N(nn.Tanh()), "student": lambda: N(nn.ReLU())})
fewer = make({"teacher": lambda: N(nn.ReLU()), "student": lambda: N(nn.ReLU())}, views=2)
named = make({"teacher": lambda: N(nn.ReLU()), "student": lambda: N(nn.ReLU())}, outputs=("logits",))
"""


def keys_of(source, **more):
    from edgekd.run import plan

    return {s.label: k for k, s in plan.make(resolve.resolved(source, **more)).steps.items()}


def test_keys_know_what_decides_the_product(tmp_path, monkeypatch):
    (tmp_path / "keytask.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    stages = [{"use": "distill", "epochs": 4}, {"use": "quantize", "epochs": 1}]
    keys = {
        name: keys_of({"task": f"keytask:{name}", "stage": stages})
        for name in ("one", "two", "mixed", "swapped", "fewer", "named")
    }
    for name in ("two", "mixed", "swapped"):  # lambdas of one module are told apart, and which model is which
        assert not set(keys["one"].values()) & set(keys[name].values()), name
    assert keys["mixed"]["teacher"] != keys["swapped"]["teacher"]
    assert keys["one"]["alone"] != keys["fewer"]["alone"] and keys["one"]["distill"] != keys["fewer"]["distill"]
    assert (
        keys["one"]["distill"] == keys["named"]["distill"]
        and keys["one"]["export distill"] != keys["named"]["export distill"]
    )
    ranges = [
        keys_of({"task": "keytask:one", "stage": stages}, sets=[f"quantize.ranges={r}"])["quantize"]
        for r in ("mse", "minmax")
    ]
    assert ranges[0] != ranges[1] == keys["one"]["quantize"]


def test_a_dumped_recipe_gives_the_same_keys_from_its_own_folder(tmp_path, monkeypatch):
    (tmp_path / "project").mkdir()
    (tmp_path / "project/dumptask.py").write_text(OWN)
    text = (
        'task = "dumptask:mixed"\n'
        "[[stage]]\n"
        'use = "distill"\n'
        "epochs = 2\n"
        "[model.teacher]\n"
        'train = { model = "student", epochs = 1 }\n'
    )
    (tmp_path / "project/recipe.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    first = resolve.resolved(tmp_path / "project/recipe.toml")
    run = tmp_path / "elsewhere/run"
    run.mkdir(parents=True)
    (run / "recipe.toml").write_text(dump(first, run))
    assert keys_of(tmp_path / "project/recipe.toml") == keys_of(run / "recipe.toml")
    assert tomllib.loads((run / "recipe.toml").read_text())["modules"] == "../../project"


def test_weights_of_the_full_range_are_honoured_unless_a_target_saturates(tmp_path):
    """By all targets, whoever asked: one training serves them."""
    from edgekd.run import plan

    own = tmp_path / "own.toml"
    own.write_text('title = "x"\narchitecture = "aarch64"\nint8 = { pairs16 = false }\n')

    def planned(*names, **more):
        steps = plan.make(resolve.resolved(None, targets=list(names), **more)).steps.values()
        return {s.part.pairs16 for s in steps if s.stage == "quantize"}

    def refused(*names, **more):
        with pytest.raises(UsageError, match="saturate") as error:
            planned(*names, **more)
        return [(p.place.rpartition("recipe: ")[2], p.message.partition(":")[0]) for p in error.value.problems]

    free, vnni, avx2 = {"sets": ["quantize.pairs16=false"]}, "x86-64-avx512-vnni", "x86-64-avx2"
    assert planned(vnni, avx2, "raspberry-pi-4") == planned(vnni) == {True}
    assert planned(vnni, "raspberry-pi-4", **free) == planned(vnni, str(own)) == {False}
    assert planned(avx2, sets=["quantize.pairs16=false", "quantize.weight_bits=7"]) == {False}
    ((place, named),) = refused(vnni, avx2, **free)
    assert place.endswith("stage 3 (quantize): pairs16") and named == avx2
    assert len(refused(avx2, sets=["sweep.quantize.pairs16=[true, false]"])) == 1
    assert (
        len(
            refused(avx2, sets=["quantize.pairs16=false", "quantize.weight_bits=4", 'quantize.layer_bits={"conv2d"=8}'])
        )
        == 1
    )
    ((place, named),) = refused(str(own), avx2)
    assert place.endswith("target own: int8.pairs16") and named == avx2


GRIDDED = """
import dataclasses
@dataclasses.dataclass(frozen=True)
class Own:
    pairs16: bool = False
    weight_bits: int = 8
    reads = ()
    def __call__(self, source, run, *, teacher=(), data=None): ...
"""


def test_a_default_that_no_key_can_hold_is_told():
    stages = [{"use": "distill"}, {"use": "quantize", "ranges": "numpy:max"}]
    with pytest.raises(UsageError, match="keepdims"):
        plan.make(resolve.resolved({"task": "digits", "stage": stages}))


def test_a_stage_of_ones_own_may_have_some_of_the_settings_of_grids(tmp_path, monkeypatch):
    from edgekd.run import plan

    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "owngrid.py").write_text(GRIDDED)
    table = {
        **GOOD,
        "stage": [{"use": "distill"}, {"use": "owngrid:Own", "name": "own"}],
        "targets": ["x86-64-avx2"],
    }
    with pytest.raises(UsageError, match="saturate"):
        plan.make(resolve.resolved(table))
    made = plan.make(resolve.resolved(table, sets=["own.pairs16=true"], targets=["x86-64-avx2", "cortex-m4-stm32l4r5"]))
    assert any(p.id.startswith("own") for p in made.points)


def test_a_swept_mode_gets_the_teacher_that_it_needs():
    from edgekd.run import plan

    made = plan.make(resolve.resolved(None, sets=["quantize.mode=ptq", 'sweep.quantize.mode=["ptq", "qat"]']))
    teachers = {s.part.mode: bool(s.teacher) for s in made.steps.values() if s.stage == "quantize"}
    assert teachers == {"ptq": False, "qat": True}


@pytest.mark.parametrize(
    "sets, text",
    [
        (["task.x=1"], "`digits` takes no settings, but x is given"),
        (["sweep=3"], "sweep"),
        (["distill.lr=inf"], "lr"),
        (["seed=99999999999999999999"], "seed"),
        (["distill.name=[1]"], "letters, digits"),
        (['distill.losses=[{use="math:pi"}]'], "not a function"),
    ],
)
def test_odd_settings_are_problems_not_errors(sets, text):
    assert any(text in p for p in told(GOOD, sets=sets))


@pytest.mark.parametrize(
    "name", ["latency_p50_ms", "agreement", "ece", "gain", "file_bytes", "equal_outputs", "instructions"]
)
def test_a_metric_named_like_a_figure_of_edgekd_is_refused(name):
    task = dataclasses.replace(digits.task, metrics=(dataclasses.replace(digits.task.metrics[0], name=name),))
    problems = [str(p) for p in resolve.metric_problems(task)]
    assert problems == [
        f"task digits: metrics: {name!r} is the name of a measurement of edgekd\n  hint: another name, such as "
        f"my_{name}"
    ]


def test_names_of_metrics_that_tasks_measure_are_free():
    named = [dataclasses.replace(digits.task.metrics[0], name=n) for n in ("top1", "map50", "mine")]
    assert resolve.metric_problems(dataclasses.replace(digits.task, metrics=(*named, len))) == []


def test_budgets_are_on_the_tasks_own_metrics_and_on_all_that_edgekd_measures():
    gate = {"any": {"instructions": "max 8 M", "target_spread": "max 1 pt", "mine": "min 1 %", "top1": "min 88 %"}}
    found = resolve._unmeasured(gate, {"mine": "%"}, "gate")
    assert [(p.place, p.message) for p in found] == [("gate.any.top1", "the task does not measure `top1`")]


def test_a_run_with_such_a_metric_ends_before_it_begins(monkeypatch):
    metric = dataclasses.replace(digits.task.metrics[0], name="latency_p50_ms")
    monkeypatch.setattr(digits, "task", dataclasses.replace(digits.task, metrics=(metric,)))
    monkeypatch.setattr(resolve, "_task_problems", lambda *given: [])  # reads all data
    with pytest.raises(UsageError) as caught:
        resolve.resolved(GOOD)
    # and of no budget that the recipe hasn't got
    assert [p.place for p in caught.value.problems] == ["task digits: metrics"]


BRANCHED = {
    "task": "digits",
    "threads": 1,
    "model": {"teacher": {"train": {"epochs": 1}}},
    "stage": [
        {"use": "distill", "epochs": 1},
        {"use": "quantize", "name": "int8", "mode": "ptq"},
        {"use": "prune", "source": "distill", "epochs": 1},
        {"use": "quantize", "name": "small8", "mode": "ptq"},
        {"use": "quantize", "name": "small8-tuned", "source": "prune", "epochs": 1},
    ],
    "sweep": {"prune.macs": [0.7, 0.5]},
}


def test_stages_go_on_from_the_stage_that_they_name():
    made = plan.make(resolve.resolved(BRANCHED))
    by_id = {p.id: p for p in made.points}
    sources = {p.id: made.steps[p.step].source for p in made.points}
    step = {id: p.step for id, p in by_id.items()}
    assert sources["int8"] == step["distill"] == sources["prune-0.7"] == sources["prune-0.5"]
    assert sources["small8-0.5"] == sources["small8-tuned-0.5"] == step["prune-0.5"]
    assert by_id["small8-tuned-0.7"].stages == ("distill", "prune", "small8-tuned")
    assert by_id["int8"].stages == ("distill", "int8") and "int8-0.7" not in by_id


def test_a_branch_does_not_change_the_keys_of_the_others():
    alone = BRANCHED | {"stage": [BRANCHED["stage"][0], *BRANCHED["stage"][2:4]]}
    alone["stage"][1] = {k: v for k, v in alone["stage"][1].items() if k != "source"}
    keys = lambda table: {p.id: (p.step, p.export) for p in plan.make(resolve.resolved(table)).points}
    assert {id: keys(BRANCHED)[id] for id in ("prune-0.5", "small8-0.7")} == {
        id: keys(alone)[id] for id in ("prune-0.5", "small8-0.7")
    }


def test_a_branched_recipe_is_written_as_it_was_read(tmp_path):
    resolved = resolve.resolved(BRANCHED)
    (tmp_path / "recipe.toml").write_text(dump(resolved, tmp_path))
    again = resolve.resolved(tmp_path / "recipe.toml")
    assert list(plan.make(again).steps) == list(plan.make(resolved).steps)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("distil", ("stage 3 (prune): source", "no earlier stage is named `distil`", "did you mean `distill`?")),
        ("small8", ("source", "no earlier stage is named `small8`")),
        ("int8", ("source", "`int8` quantizes, and nothing can follow that")),
        (3, ("source", "must be the name of an earlier stage")),
        ("student", ("stage 3 (prune)", "needs a trained student")),
    ],
)
def test_a_source_that_is_no_earlier_stage_is_refused(source, words):
    table = BRANCHED | {"stage": [dict(s) for s in BRANCHED["stage"]]}
    table["stage"][2]["source"] = source
    (line, *_) = [p for p in told(table) if "stage 3" in p]
    assert all(w in line for w in words)


def test_a_teacher_of_another_branch_is_refused():
    table = BRANCHED | {"stage": [dict(s) for s in BRANCHED["stage"]]}
    table["stage"][4] |= {"source": "distill", "teacher": "prune"}
    assert any("stage 5 (small8-tuned): teacher" in p and "nothing is named `prune`" in p for p in told(table))
