"""`compress MODEL --data DATA`: no recipe is written; a result is there after every step, whatever ends the command."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import one_line
import onnxruntime
import pytest

import edgekd
from edgekd import results
from edgekd.errors import UsageError
from edgekd.without_recipe import cost, publish, rungs
from edgekd.without_recipe.asked import Asked
from edgekd.without_recipe.seen import Seen

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, its data, and a store."""
    folder = tmp_path_factory.mktemp("one-line")
    one_line.write(folder)
    return folder


@pytest.fixture(autouse=True)
def surroundings(place, monkeypatch):
    monkeypatch.setenv("EDGEKD_STORE", str(place / "store"))
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", [str(HERE), str(place), *sys.path])
    one_line.hurry(monkeypatch)


def compress(model="onenet:trained", data="digits.npz", **more):
    return edgekd.compress(model, **{"data": data, "threads": 1, **more})


def top1(file, place):
    """Of a file in onnxruntime, in percent of the test samples."""
    with np.load(place / "digits.npz") as held:
        x, y = held["x_test"], held["y_test"]
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (name,) = [given.name for given in session.get_inputs()]
    answers = [session.run(None, {name: x[i : i + 1]})[0].argmax() for i in range(len(x))]
    return 100 * float(np.mean(np.array(answers) == y))


@pytest.fixture(scope="module")
def made(place):
    """One undisturbed run for two targets, and the text that it ends with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKD_STORE", str(place / "store"))
        patch.chdir(place)
        patch.setattr(sys, "path", [str(HERE), str(place), *sys.path])
        one_line.hurry(patch)
        wanted = {"targets": ["host", "x86-64-avx2"], "max_drop": "5 pt", "limits": {"file_bytes": "8 kB"}}
        return compress(out=place / "run", **wanted)


def test_each_target_gets_a_bundle_whose_file_scores_what_is_said(made, place):
    assert set(made.result.targets) == {"host", "x86-64-avx2"}
    by_id = {c.id: c for c in made.result.candidates}
    for target, found in made.result.targets.items():
        file = place / "run/bundles" / target / "model.onnx"
        chosen = by_id[found.chosen]
        said = next(m.value for m in chosen.measurements if m.name == "top1" and m.split == "test")
        assert top1(file, place) == pytest.approx(said) and file.stat().st_size <= 8000
        assert "int8" in chosen.stages or "half" in chosen.stages or "quarter" in chosen.stages


def test_it_says_what_each_step_bought(made):
    lines = made.text.splitlines()
    bought = lines[lines.index("what each step bought:") + 1 :]
    assert any("int8 by calibration" in line and "host: int8 (" in line for line in bought)
    assert any("half of the MACs, short recovery" in line for line in bought)
    logged = [json.loads(line) for line in (made.folder / "log.jsonl").read_text().splitlines()]
    assert any(event["event"] == "rung" and event["target"] == "x86-64-avx2" for event in logged)


def test_its_recipe_repeats_the_run(made, place):
    again = edgekd.compress(made.folder / "recipe.toml", out=place / "again")
    assert all(step["reused"] for step in again.result.steps)
    assert {c.id: c.sha256 for c in again.result.candidates} == {c.id: c.sha256 for c in made.result.candidates}


def test_the_same_command_finds_all_finished(made, place):
    wanted = {"targets": ["host", "x86-64-avx2"], "max_drop": "5 pt", "limits": {"file_bytes": "8 kB"}}
    again, text = compress(out=place / "run", **wanted), made.text.splitlines()
    assert all(step["reused"] for step in again.result.steps)
    chosen = lambda run: {target: found.chosen for target, found in run.result.targets.items()}
    assert chosen(again) == chosen(made)
    bought = text[text.index("what each step bought:") :]
    assert again.text.splitlines()[-len(bought) :] == bought


def test_a_model_that_knows_nothing_of_the_data_is_told(made):
    known = Seen(edgekd.top1(), 1.0, result=made.result)
    assert known.hardly_better_than_chance(10) == ""
    teacher = made.result.references["teacher"]
    low = lambda c: tuple(dataclasses.replace(m, value=12.0) if m.name == "top1" else m for m in c.measurements)
    worse = [dataclasses.replace(c, measurements=low(c)) if c.id == teacher else c for c in made.result.candidates]
    known.result = dataclasses.replace(made.result, candidates=tuple(worse))
    assert "the given model scores 12 % on the validation split, and chance 10 %" in known.hardly_better_than_chance(10)


def test_a_time_too_short_to_train_delivers_int8_by_calibration(place):
    found = compress(out=place / "short", limits={"file_bytes": "9 kB"}, time_budget=0.1)
    assert {step["stage"] for step in found.result.steps} == {"load", "quantize", "export"}
    assert found.result.targets["host"].chosen == "int8"
    assert "the time is over; next: half of the MACs, short recovery" in found.text
    assert top1(place / "short/bundles/host/model.onnx", place) > 50


def test_a_goal_out_of_reach_shows_the_nearest_and_what_is_missing(place):
    found = compress(out=place / "far", limits={"file_bytes": "1 kB"}, time_budget=0.1)
    assert found.exit_code == 1 and found.result.targets["host"].chosen is None
    assert "the nearest is int8: file_bytes is" in found.text and "beyond `max 1 kB`" in found.text
    assert "the next step that buys most: half of the MACs, short recovery" in found.text
    assert "least file_bytes of those that lose no more than allowed" in found.text


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model": "onenet"}, ["onenet: is not the name of a model", "package.module:name"]),
        ({"model": "onenet:nothing"}, ["has no `nothing`"]),
        ({"model": "onenet:Net"}, ["returns other weights at each call", "onenet:Net@weights.safetensors"]),
        ({"model": "onenet:Net@lost.safetensors"}, ["lost.safetensors: there is no such file"]),
        ({"data": "lost.npz", "max_drop": "much"}, ["lost.npz: there is no such file", "'much' is not an amount"]),
        ({"max_drop": "0.2"}, ["--max-drop: '0.2' does not fit top1, which is in %", '"1 pt"']),
        (
            {"targets": ["hosst"], "limits": {"macz": "3"}, "max_drop": "2 dB"},
            ["--target", "--max macz: no measurement", "--max-drop: '2 dB' does not fit"],
        ),
        (
            {"limits": {"latency": "5 ms"}},
            ["--max latency: no measurement is named `latency`", "did you mean `latency_p"],
        ),
        ({"limits": {"latency_p50_ms": "5"}}, ["has no unit"]),
        ({"targets": ["hosst"]}, ["hosst", "did you mean"]),
        ({"data": None}, ["--data: is missing"]),
        ({"model": "net.onnx"}, ["no student can be trained", "edgekd quantize net.onnx --data digits.npz --out"]),
        ({"model": "net.safetensors"}, ["weights alone", "package.module:Net@net.safetensors"]),
        ({"sets": ["int8.mode=qat"]}, ["--set", "there is none"]),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_made(given, words, place):
    with pytest.raises(UsageError) as caught:
        compress(out=place / "wrong", **given)
    text = "\n".join(map(str, caught.value.problems))
    assert all(word in text for word in words), text
    assert not (place / "wrong/result.json").exists()


def test_options_of_a_model_are_refused_for_a_recipe():
    for given in ({"max_drop": "1 pt"}, {"data": "digits.npz"}, {"limits": {"macs": "1 M"}}):
        with pytest.raises(UsageError, match="--max are for a model: a recipe names its data itself"):
            edgekd.compress("recipe.toml", **given)


def test_killed_it_leaves_a_complete_result_and_goes_on(place, tmp_path):
    environment = {**os.environ, "EDGEKD_STORE": str(tmp_path / "store"), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parent)])
    line = [sys.executable, str(HERE / "one_line.py"), "compress", "onenet:Net@net.safetensors", "--data", "digits.npz"]
    line += ["--out", str(tmp_path / "killed"), "--threads", "1", "--max-drop", "30 pt", "--quiet"]
    process = subprocess.Popen(line, env=environment, cwd=place, stdout=subprocess.DEVNULL, start_new_session=True)
    while not (tmp_path / "killed/result.json").exists() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    first = results.read(tmp_path / "killed/result.json")
    assert first.targets["host"].chosen and edgekd.gate(tmp_path / "killed").exit_code in (0, 3)
    ended = subprocess.run(line, env=environment, cwd=place, capture_output=True, text=True)
    assert ended.returncode in (0, 3), ended.stderr
    assert "half of the MACs, short recovery" in ended.stdout
    assert {"half", "half-int8"} <= {c.id for c in results.read(tmp_path / "killed/result.json").candidates}


def test_weights_of_something_else_are_kept(place, tmp_path):
    (tmp_path / "teacher.safetensors").write_bytes(b"other")
    with pytest.raises(UsageError, match="weights of something else"):
        compress(out=tmp_path)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("teacher.safetensors", b"other")]


def test_a_command_that_cannot_work_leaves_no_weights(place, tmp_path):
    with pytest.raises(UsageError):
        compress(out=tmp_path, device="gpu")
    assert not list(tmp_path.iterdir())


def test_a_rung_that_fails_leaves_nothing_beside_the_folder(place, tmp_path, monkeypatch):
    from edgekd.errors import RunFailed
    from edgekd.without_recipe import climb

    def fail(*given, **more):
        raise RunFailed("no")

    monkeypatch.setattr(climb, "carry_out", fail)
    with pytest.raises(RunFailed):
        compress(out=tmp_path / "run")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_goes_on_with_its_own_device_and_threads(place, tmp_path, monkeypatch, fresh):
    from edgekd.without_recipe import climb

    (tmp_path / "recipe.toml").write_text('threads = 3\ndevice = "mps"\n')
    monkeypatch.setattr(climb, "_ladder", lambda made: (rungs.rungs(1000, True, ())[:1], None))
    asked, given = Asked("onenet:trained", "digits.npz"), (tmp_path, None, None, None, None)
    made = climb.prepared(asked, *given, fresh=fresh)
    resolved = made.resolved(list(made.ladder))
    assert (resolved.threads, resolved.devices) == ((2, ("cpu",)) if fresh else (3, ("mps",)))


# ---------------------------------------------------------------- the ladder


class Known:
    """What is known in a ladder: the stages that were made, and those of them that lose too much."""

    def __init__(self, made, losing):
        self.made, self.losing = set(made), set(losing)

    def loses(self, stage):
        return stage not in self.made or stage in self.losing


def climbed(losing):
    """The stages that are made where these lose too much, in their order."""
    known, order = Known((), losing), []
    for rung in rungs.rungs(1000, True, [{"use": "cross_entropy"}]):
        if known.made.issuperset(rung.needs) and rung.worth(known):
            known.made |= rung.names
            order += [stage["name"] for stage in rung.stages]
    return order


def test_what_loses_too_little_to_be_worth_it_is_not_tried():
    order = climbed(())
    sizes = ["half", "quarter", "eighth", "half-labels"]
    assert order == ["int8", *(name for size in sizes for name in (size, f"{size}-int8"))]


def test_where_int8_loses_it_is_equalized_then_tuned():
    order = climbed({"int8", "int8-equalized"})
    assert order[:2] == ["int8", "int8-equalized"] and order.index("int8-tuned") > order.index("quarter")


def test_where_a_student_loses_it_recovers_longer_and_then_with_quantization():
    order = climbed({"half", "half-int8", "half-longer-int8"})
    assert order.index("quarter") < order.index("half-longer") < order.index("half-tuned")
    assert "three-quarters" not in order and "three-quarters" in climbed({"half", "half-longer"})


def test_stages_name_stages_that_come_before_them():
    for samples in (1, 1000, 10**6):
        known = {"student"}
        for rung in rungs.rungs(samples, True, ()):
            for stage in rung.stages:
                assert stage.get("source") in {None, *known} and stage.get("epochs", 2) >= 2
                known.add(stage["name"])


def test_without_losses_for_the_outputs_only_number_formats_are_tried():
    assert [r.title.split()[0] for r in rungs.rungs(1000, False, ())] == ["int8", "int8"]


def test_the_time_of_a_rung_follows_what_was_measured():
    (rung,) = [r for r in rungs.rungs(64 * 20, True, ()) if "half" in r.names]
    costs, epochs = cost.Cost(epoch=1.0), rung.stages[0]["epochs"]
    assert costs.of(rung) == pytest.approx(cost.AROUND + epochs * cost.FIRST["prune"])
    record = lambda step, stage, seconds: {"step": step, "stage": stage, "seconds": seconds, "reused": False}
    costs.seen(rung, [record("half", "prune", 60.0), record("half-int8", "quantize", 1.0)], 71.0)
    assert costs.of(rung) == pytest.approx(60 + 10)


def test_a_frozen_model_has_a_time_too(place):
    from edgekd.run.resolve import resolved

    frozen = "import onenet\nnet = onenet.trained().requires_grad_(False)\n"
    (place / "frozennet.py").write_text(frozen)
    recipe = Asked("frozennet:net", "digits.npz").head(Path("net.safetensors"))
    assert cost.epoch_of(resolved({**recipe, "stage": [{"use": "quantize", "mode": "ptq"}]})) > 0


def test_a_folder_goes_on_with_its_stages_in_their_order(tmp_path):
    """A rung that was too long for one command comes after shorter ones in the next."""
    from edgekd.without_recipe.climb import Climb

    ladder = tuple(rungs.rungs(1000, True, ()))
    order = [ladder[0], ladder[3], ladder[2]]
    tables = [f'[[stage]]\nname = "{stage["name"]}"\n' for rung in order for stage in rung.stages]
    (tmp_path / "recipe.toml").write_text("".join(tables))
    given = {"asked": None, "task": None, "weights": None, "checked": None, "store": None, "progress": None}
    assert Climb(folder=tmp_path, ladder=ladder, **given).begun() == order


# ---------------------------------------------------------------- the folder


def written(folder, mark):
    for name in ("result.json", "recipe.toml", "report.md"):
        (folder / name).write_text(mark)
    (folder / "models").mkdir()
    (folder / "models" / mark).write_text(mark)


@pytest.mark.parametrize("cut", range(5))
def test_a_move_that_was_cut_off_is_finished(tmp_path, cut, monkeypatch):
    run, moves = tmp_path / "run", []
    run.mkdir()
    written(run, "old")
    (run / "log.jsonl").write_text("kept")
    written(publish.begin(run), "new")

    def counted(real):
        def move(*given):
            if len(moves) == cut:
                raise KeyboardInterrupt
            moves.append(given)
            return real(*given)

        return move

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(publish.os, "rename", counted(os.rename))
        patch.setattr(publish.os, "replace", counted(os.replace))
        publish.publish(run)
    publish.finish(run)
    mark = "old" if cut == 0 else "new"  # the first move is what makes it complete
    assert {p.read_text() for p in (run / "result.json", run / "recipe.toml", run / "models" / mark)} == {mark}
    assert (run / "log.jsonl").read_text() == "kept"
    assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".next")] == ["run"]


def test_the_folder_may_be_the_one_that_one_is_in(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    written(publish.begin(Path(".")), "new")
    publish.publish(Path("."))
    assert (tmp_path / "run/models/new").read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["run"]


# ---------------------------------------------------------------- init


def test_init_writes_files_that_pass_at_once(place, tmp_path, capsys):
    from test_docs import parse

    from edgekd.cli import run
    from edgekd.decisions import budget

    line = ["init", "onenet:trained", "--data", "digits.npz", "--target", "host", "--max-drop", "2 pt"]
    line += ["--max", "file_bytes=9 kB", "--out", str(tmp_path / "project"), "--quiet"]
    assert run(line) == 0, capsys.readouterr().err
    said, project = capsys.readouterr().out, tmp_path / "project"
    assert f"next: edgekd compress {project / 'recipe.toml'}" in said
    shown = edgekd.compress(project / "recipe.toml", dry_run=True, out=tmp_path / "run")
    assert "half-int8" in shown and "to do" in shown
    assert "eighth" not in shown  # small models can't be cut so far, which would end the recipe
    root = Path(edgekd.__file__).resolve().parent.parent
    there = {**os.environ, "PYTHONPATH": str(root)}  # the model's module is found from the project alone
    subprocess.run([sys.executable, "-c", "import edgekd_task"], cwd=project, env=there, check=True)
    tables, _ = budget.read(project / "budget.toml")
    assert tables["any"]["top1"]["is"] == "drop max 2 pt vs teacher" and tables["any"]["file_bytes"] == "max 9 kB"
    steps = re.findall(r"^      - run: (.*)$", (project / ".github/workflows/edgekd.yml").read_text(), re.M)
    assert [words.split()[:2] for words in steps[1:]] == [["edgekd", "compress"], ["edgekd", "gate"]]
    for words in steps:
        parse(words.split())
    found = edgekd.compress(project / "recipe.toml", out=tmp_path / "run", time_budget=1e-3)
    assert found.result.task == "digits"
    assert run(line) == 2 and "recipe.toml: is there already" in capsys.readouterr().err
