"""A gate on evidence that contradicts the figures, or is missing: exit codes 5 and 3, never the stored verdict."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from runs import RECIPE, N, bundled, make, rewrite, right

from edgekd import results
from edgekd.cli import run as main
from edgekd.delivery import bundle
from edgekd.errors import BaselineError
from edgekd.files import sha256
from edgekd.records import Check, Measurement
from edgekd.run import metric_records
from edgekd.run.evaluate import Observed
from edgekd.run.plan import Point
from edgekd.verbs import gate, report

CHOSEN, DROP = "prune-0.5.int8", "drop max 3.0 pt vs teacher"


@pytest.fixture
def run(tmp_path):
    return make(tmp_path / "run")


def altered(folder, name=CHOSEN, **changes):
    """Changes arrays of a file of predictions; a change of None takes the array away."""
    path = folder / "predictions" / f"{name}.npz"
    arrays = results.load_arrays(path) | {key.replace("_records", ".records"): a for key, a in changes.items()}
    results.save_arrays(path, {key: a for key, a in arrays.items() if a is not None})


def resealed(folder):
    """Gives result.json the digests of the predictions that are there now."""
    rewrite(folder, predictions=results.digests(folder / "predictions"))


def changed(folder, *keys, value):
    table = json.loads((folder / "result.json").read_text())
    where = table
    for key in keys[:-1]:
        where = where[key]
    where[keys[-1]] = value
    (folder / "result.json").write_text(json.dumps(table))


def refused(folder, told, **options):
    for verb in (lambda: gate.gate(folder, **options), lambda: report.report(folder)):
        with pytest.raises(BaselineError, match=told) as error:
            verb()
        assert error.value.exit_code == 5


ROWS = {
    "zeroed": np.zeros(N),
    "nan": np.full(N, np.nan),
    "infinite": np.full(N, np.inf),
    "one more is right": np.r_[np.ones(N - 27), np.zeros(27)],
    "a column": np.ones((N, 1)),
    "whole numbers": np.ones(N, np.int64),
    "missing": None,
}


@pytest.mark.parametrize("name", [CHOSEN, "teacher", "alone"])
def test_predictions_that_differ_from_their_digest_end_in_5(run, name):
    altered(run, name, top1_records=np.ones(N))
    refused(run, f"{name}.npz: differs from its digest")
    assert main(["gate", str(run)]) == 5 and main(["report", str(run)]) == 5


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("name", [CHOSEN, "teacher"])
@pytest.mark.parametrize("old", [False, True])
def test_records_that_contradict_a_mean_end_in_5(tmp_path, rows, name, old):
    run = make(tmp_path / "run", old=old)
    altered(run, name, top1_records=rows)
    if old and rows is None:
        assert gate.gate(run).exit_code == 3, "nobody says that there were any"
        return
    if not old:
        resealed(run)  # whoever changes records may change digests
    refused(run, f"{name}.npz: top1.records")


def test_fewer_samples_or_others_than_the_figures_end_in_5(run):
    ids = np.array([f"x{i}" for i in range(N)])
    altered(run, sample_id=ids)
    resealed(run)
    refused(run, "another test set")
    half = {
        k: a[:100] if np.ndim(a) else a for k, a in results.load_arrays(run / "predictions" / f"{CHOSEN}.npz").items()
    }
    results.save_arrays(run / "predictions" / f"{CHOSEN}.npz", half)
    resealed(run)
    refused(run, "of 100 samples, the figure of 900")


def test_a_file_that_was_cut_off_ends_in_5(tmp_path):
    run = make(tmp_path / "run", old=True)
    path = run / "predictions" / f"{CHOSEN}.npz"
    path.write_bytes(path.read_bytes()[:200])
    refused(run, "is not a valid .npz")


def test_a_file_that_the_run_did_not_write_is_not_read(run):
    altered(run, top1_records=np.zeros(N))
    shutil.move(run / "predictions" / f"{CHOSEN}.npz", run / "predictions" / f"{CHOSEN}@host.npz")
    shutil.copy(make(run.parent / "other") / "predictions" / f"{CHOSEN}.npz", run / "predictions")
    assert gate.gate(run).exit_code == 0


@pytest.mark.parametrize(
    "gone, lacking",
    [
        (f"predictions/{CHOSEN}.npz", {"top1", "top1 min"}),
        ("predictions/teacher.npz", {"top1"}),
        ("predictions", {"top1", "top1 min"}),
        (f"models/{CHOSEN}.onnx", {"top1", "top1 min", "file_bytes", "latency_p50_ms"}),
        ("models", {"top1", "top1 min", "file_bytes", "latency_p50_ms"}),
    ],
)
@pytest.mark.parametrize("old", [False, True])
def test_rules_that_need_what_is_missing_are_inconclusive_and_name_it(tmp_path, gone, lacking, old):
    run = make(tmp_path / "run", old=old)
    (tmp_path / "budget.toml").write_text(
        "[any]\n"
        f'top1 = ["{DROP}", "min 90 %"]\n'
        'file_bytes = "max 20 kB"\n'
        'latency_p50_ms = "max 1 ms"\n'
        f'macs = {{ is = "max 1", level = "warn" }}\n'
    )
    judged = Check("host", CHOSEN, "top1", DROP, "pass", "error", 10 / 9, 0.5, 2.0, "pt", "measured")
    result = results.read(run)
    results.write(
        dataclasses.replace(result, targets={"host": dataclasses.replace(result.targets["host"], checks=(judged,))}),
        run / "result.json",
    )
    shutil.rmtree(run / gone) if (run / gone).is_dir() else (run / gone).unlink()
    gated = gate.gate(run, budget=tmp_path / "budget.toml")
    found = {c.name + " min" * c.rule.startswith("min"): c for c in gated.checks if c.name != "macs"}
    assert {name for name, c in found.items() if c.verdict == "inconclusive"} == lacking and gated.exit_code == 3
    assert all(
        gone in found[name].reason and "is missing" in found[name].reason and found[name].value is None
        for name in lacking
    )
    assert gone in report.report(run)


def test_a_run_of_the_old_schema_says_that_it_cant_be_verified(tmp_path):
    old, new = make(tmp_path / "old", old=True), make(tmp_path / "new")
    assert json.loads((old / "result.json").read_text())["schema"] == "edgekd.result/1"
    gated = gate.gate(old, json=tmp_path / "gate.json")
    assert gated.exit_code == 0 and "can't be verified" in str(gated) and "can't be verified" in report.report(old)
    assert "verified" in json.loads((tmp_path / "gate.json").read_text())["notes"][0]
    assert "verified" not in str(gate.gate(new)) and "verified" not in report.report(new)


# ---------------------------------------------------- metrics that are no means, and what result.json itself claims


def no_mean(run, verdict="pass", value=1.5, high=2.5, old=False):
    """Renames the metric to one whose figure is no mean of its records, with the run's own check of it."""
    text = (run / "result.json").read_text().replace('"top1"', '"f1"')
    (run / "result.json").write_text(text)
    for path in (run / "predictions").glob("*.npz"):
        arrays = results.load_arrays(path)
        results.save_arrays(path, {name.replace("top1.", "f1."): a for name, a in arrays.items()})
    result = results.read(run)
    figures = {CHOSEN: 90.0, "teacher": 91.5}
    told = lambda c: tuple(
        dataclasses.replace(m, value=figures[c.id], low=80, high=99) if m.name == "f1" else m for m in c.measurements
    )
    candidates = tuple(
        dataclasses.replace(c, measurements=told(c)) if c.id in figures else c for c in result.candidates
    )
    check = Check("host", CHOSEN, "f1", DROP, verdict, "error", value, 0.5, high, "pt", "measured")
    target = dataclasses.replace(result.targets["host"], checks=(check,), verdict=verdict)
    kept = {} if old else {"predictions": results.digests(run / "predictions"), "means": {}}
    results.write(
        dataclasses.replace(result, candidates=candidates, targets={"host": target}, **kept), run / "result.json"
    )
    (run.parent / "budget.toml").write_text(f'[any]\nf1 = "{DROP}"\n')
    return {"budget": run.parent / "budget.toml"}


def test_a_metric_that_is_no_mean_keeps_the_runs_verdict_while_its_digest_holds(run):
    options = no_mean(run)
    gated = gate.gate(run, **options)
    assert (gated.exit_code, gated.checks[0].value) == (0, 1.5)
    options["budget"].write_text('[any]\nf1 = "drop max 5 pt vs teacher"\n')
    gated = gate.gate(run, **options)
    assert gated.exit_code == 3 and "only the task's code" in str(gated)
    no_mean(run)
    (run / "predictions" / f"{CHOSEN}.npz").write_bytes(b"")
    refused(run, "differs from its digest", **options)
    (run / "predictions" / f"{CHOSEN}.npz").unlink()
    assert gate.gate(run, **options).exit_code == 3


def test_a_metric_that_is_no_mean_of_an_old_run_is_inconclusive(tmp_path):
    run = make(tmp_path / "run", old=True)
    gated = gate.gate(run, **no_mean(run, old=True))
    assert gated.exit_code == 3 and "can't be verified" in gated.checks[0].reason


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"value": 0.1}, "the stored value is 0.1, and the figures give 1.5"),
        ({"high": 4.0}, "the stored verdict is pass, and its own figures give inconclusive"),
        ({"verdict": "fail"}, "the stored verdict is fail"),
    ],
)
def test_stored_checks_that_dont_follow_from_the_figures_end_in_5(run, wrong, told):
    refused(run, told, **no_mean(run, **wrong))


def test_a_stored_verdict_that_is_not_that_of_the_checks_ends_in_5(run):
    options = no_mean(run)
    changed(run, "targets", "host", "verdict", value="inconclusive")
    refused(run, "is inconclusive, and the checks give pass", **options)


def test_figures_that_result_json_was_given_later_end_in_5(run):
    at = next(
        i for i, m in enumerate(results.read(run).candidates[-1].measurements) if m.name == "top1" and m.split == "test"
    )
    changed(run, "candidates", 4, "measurements", at, "value", value=97.0)
    refused(run, "come to 96.8889 %, the figure is 97")
    make(run.parent / "bytes")
    for key in ("value", "low", "high"):
        changed(run.parent / "bytes", "candidates", 4, "measurements", 0, key, value=100)
    refused(run.parent / "bytes", "has 15000 bytes, and the figure is 100")


def test_an_interval_that_result_json_was_given_later_is_not_judged_on(run, tmp_path):
    at = next(
        i for i, m in enumerate(results.read(run).candidates[-1].measurements) if m.name == "top1" and m.split == "test"
    )
    changed(run, "candidates", 4, "measurements", at, "low", value=96.85)
    (tmp_path / "budget.toml").write_text('[any]\ntop1 = "min 96.8 %"\n')
    assert gate.gate(run, budget=tmp_path / "budget.toml").exit_code == 3


# ---------------------------------------------------------------- files executed as another CPU, bundles


def executed(run, **changes):
    """Gives the chosen file answers as the target's own CPU to 300 samples, in an order of their own."""
    rows = np.random.default_rng(0).permutation(N)[:300]
    arrays = {
        name: a[rows] if np.ndim(a) else a
        for name, a in results.load_arrays(run / "predictions" / f"{CHOSEN}.npz").items()
    }
    arrays["top1.teacher"] = results.load_predictions(run / "predictions" / "teacher.npz").records["top1"][rows]
    figure = Measurement("top1", "%", 100 * arrays["top1.records"].mean(), 80, 99, 300, "test", "host", "emulated")
    result = results.read(run)
    kept = tuple(m for m in result.candidates[-1].measurements if m.split != "test")
    candidates = (*result.candidates[:-1], dataclasses.replace(result.candidates[-1], measurements=(*kept, figure)))
    results.save_arrays(run / "predictions" / f"{CHOSEN}@host.npz", {**arrays, **changes})
    digests = results.digests(run / "predictions")
    results.write(dataclasses.replace(result, candidates=candidates, predictions=digests), run / "result.json")
    (run.parent / "budget.toml").write_text(f'[any]\ntop1 = {{ is = "{DROP}", accept = ["emulated"] }}\n')
    return {"budget": run.parent / "budget.toml"}


def test_what_was_executed_as_another_cpu_is_held_to_its_own_figures(run):
    options = executed(run)
    gated = gate.gate(run, **options)
    assert gated.checks[0].value is not None and gated.checks[0].origin == "emulated"
    for wrong in (np.zeros(300), np.full(300, np.nan)):
        refused(run, "host.npz: top1.records", **executed(run, **{"top1.records": wrong}))
    refused(run, "differ from the teacher's own records", **executed(run, **{"top1.teacher": np.zeros(300)}))
    refused(run, "another test set", **executed(run, sample_id=np.array([f"x{i}" for i in range(300)])))
    executed(run)
    (run / "predictions" / f"{CHOSEN}@host.npz").unlink()
    gated = gate.gate(run, **options)
    assert gated.exit_code == 3 and f"{CHOSEN}@host.npz is missing" in gated.checks[0].reason


def on_board(run, loss=False):
    """Makes the figures those of a board, on which the teacher misses one sample more; of real numbers where `loss`."""
    environment, name, times = {"board": {"cpu": "Cortex-A72"}}, "loss" if loss else "top1", 1.0 if loss else 100.0
    noise = 1e-4 * np.random.default_rng(0).random(N) if loss else np.zeros(N)
    here, there = {}, {}
    for id in ("teacher", CHOSEN):
        path = run / "predictions" / f"{id}.npz"
        arrays = {key: a for key, a in results.load_arrays(path).items() if not key.startswith("top1.")}
        here[id] = noise + results.load_predictions(path).records["top1"]
        there[id] = here[id] + noise
        there[id][100] = 0
        arrays |= {f"{name}.better": np.array("higher")}
        results.save_arrays(path, arrays | {f"{name}.records": here[id]})
        apart = path.with_name(results.executed(id, "host"))
        results.save_arrays(apart, arrays | {f"{name}.records": there[id], f"{name}.teacher": here["teacher"]})
    result, candidates = results.read(run), []
    for c in result.candidates:
        told = c.measurements
        if c.id in there:
            figure = Measurement(
                name, "" if loss else "%", times * there[c.id].mean(), 0, 100, N, "test", "host", "measured", 1, "board"
            )
            told = (*(m for m in told if m.name != "top1"), figure)
        candidates.append(dataclasses.replace(c, measurements=told))
    drop = times * (here["teacher"] - there[CHOSEN]).mean()
    rule = "drop max 0.5 vs teacher" if loss else DROP
    check = Check("host", CHOSEN, name, rule, "pass", "error", drop, 0.0, 0.4, "" if loss else "pt", "measured")
    found = dataclasses.replace(result.targets["host"], checks=(check,), verdict="pass")
    kept = {
        "predictions": results.digests(run / "predictions"),
        "means": {name: times},
        "environment": {**result.environment, **environment},
    }
    results.write(
        dataclasses.replace(result, candidates=tuple(candidates), targets={"host": found}, **kept), run / "result.json"
    )
    (run.parent / "budget.toml").write_text(f'[any]\n{name} = "{rule}"\n')
    return run.parent / "budget.toml", drop


@pytest.mark.parametrize("loss", [False, True])
def test_figures_of_a_board_are_held_to_what_was_answered_there(run, loss):
    budget, drop = on_board(run, loss)
    gated = gate.gate(run, budget=budget)
    assert gated.exit_code == 0 and gated.checks[0].value == pytest.approx(drop)
    assert "note" not in report.report(run)
    own = run / "predictions" / "teacher@host.npz"
    kept = own.read_bytes()
    own.unlink()
    assert gate.gate(run, budget=budget).exit_code == 0 and f"{own} is missing" in report.report(run)
    own.write_bytes(kept)
    altered(run, "teacher@host", **{f"{'loss' if loss else 'top1'}_records": np.zeros(N)})
    refused(run, "teacher@host.npz: differs from its digest")
    resealed(run)
    refused(run, "teacher@host.npz: .*.records")
    own.write_bytes(kept)
    resealed(run)
    changed(run, "targets", "host", "checks", 0, "value", value=drop + 0.1)
    refused(run, "the stored value is")


def test_a_board_may_answer_in_several_outputs():
    outputs = {split: {"a": np.zeros((5, 2)), "b": np.ones(5)} for split in ("validation", "test")}
    o = Observed(Point("c", "c", 0, (), (), "step", "export", ("pi",)), None, outputs, there={"pi": outputs})
    (found,) = metric_records._on_boards([o], "test").values()
    assert found.rows.tolist() == [0, 1, 2, 3, 4] and found.there is outputs["test"]


def manifest(folder, **changes):
    path = folder / bundle.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def bundle_of(run):
    folder = bundled(run)
    files = lambda: {
        p.name: {"sha256": sha256(p), "bytes": p.stat().st_size} for p in folder.iterdir() if p.name != bundle.MANIFEST
    }
    return folder, files


def test_a_bundle_whose_records_contradict_its_figures_ends_in_5(run, tmp_path):
    folder, files = bundle_of(run)
    assert gate.gate(folder).exit_code == 0
    whole = (folder / "predictions.npz").read_bytes()
    for wrong in (np.zeros(N), np.full(N, np.nan)):
        results.save_arrays(
            folder / "predictions.npz", results.load_arrays(folder / "predictions.npz") | {"top1.records": wrong}
        )
        manifest(folder, files=files())
        for options in ({}, {"baseline": folder}):
            with pytest.raises(BaselineError, match="top1.records"):
                gate.gate(run if options else folder, **options)
    (folder / "predictions.npz").write_bytes(whole)
    manifest(folder, files=files())
    assert gate.gate(folder).exit_code == 0


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"test_digest": "0" * 64}, "another test set"),
        ({"outputs": [{"name": "output", "dtype": "float64", "shape": [11]}]}, "golden.npz: has other arrays"),
        ({"inputs": []}, "golden.npz: has other arrays"),
        (
            {"measurements": [dataclasses.asdict(Measurement("file_bytes", "B", 1, 1, 1, 1, None, None, "counted"))]},
            "has 15000 bytes",
        ),
    ],
)
def test_what_a_manifest_claims_is_held_to_its_files(run, changes, told):
    folder, _ = bundle_of(run)
    manifest(folder, **changes)
    with pytest.raises(BaselineError, match=told):
        gate.gate(folder)


def test_a_bundle_without_predictions_is_inconclusive_about_quality(run):
    folder, files = bundle_of(run)
    (folder / "predictions.npz").unlink()
    manifest(folder, files=files())
    gated = gate.gate(folder)
    assert {c.name: c.verdict for c in gated.checks} == {
        "top1": "inconclusive",
        "file_bytes": "pass",
    } and "predictions.npz is missing" in str(gated)


def test_no_bundle_is_made_of_predictions_that_were_changed(run):
    altered(run, "teacher", top1_records=np.ones(N))
    with pytest.raises(BaselineError, match="differs from its digest"):
        bundled(run)


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json", "golden.npz", "predictions.npz"])
def test_a_runs_own_bundle_is_held_to_what_was_judged(run, name):
    path = bundled(run) / name
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    for damaged in (None, b"", bytes(flipped)):
        path.unlink() if damaged is None else path.write_bytes(damaged)
        refused(run, name)
    path.write_bytes(whole)
    assert gate.gate(run).exit_code == 0
    shutil.rmtree(run / "bundles")
    assert gate.gate(run).exit_code == 0, "a run may be kept without them"


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"gate": {"any": {"file_bytes": "max 90 kB"}}}, "gate"),
        ({"candidate": "alone"}, "candidate"),
        ({"verdict": "fail"}, "verdict"),
        ({"measurements": []}, "measurements"),
    ],
)
def test_a_bundle_that_claims_other_than_its_run_ends_in_5(run, changes, told):
    manifest(bundled(run), **changes)
    refused(run, rf"manifest.json: {told}: .*result.json")


def test_a_bundle_of_another_model_than_was_judged_ends_in_5(run):
    folder, files = bundle_of(run)
    (folder / "model.onnx").write_bytes(b"other".ljust(15_000))
    manifest(folder, files=files())
    refused(run, "model.onnx: .*not the file that was measured")


def test_a_recipe_that_was_changed_is_not_what_its_bundle_is_held_to(run, tmp_path):
    bundled(run)
    budget = tmp_path / "budget.toml"
    budget.write_text('[any]\nfile_bytes = "max 20 kB"\n')
    for change in (lambda: (run / "recipe.toml").write_text("# another"), lambda: (run / "recipe.toml").unlink()):
        change()
        assert gate.gate(run, budget=budget).exit_code == 0


@pytest.mark.parametrize("rule", ["drop max 3.0 pt vs teacher", "regress max 3 % vs teacher"])
def test_a_bundles_records_of_the_teacher_are_held_to_its_stored_checks(tmp_path, rule):
    run = make(tmp_path / "run", recipe=RECIPE.replace(DROP, rule))
    checks = gate.gate(run).checks
    changed(run, "targets", "host", "checks", value=[dataclasses.asdict(c) for c in checks])
    folder, files = bundle_of(run)
    assert gate.gate(folder).exit_code == 0
    path = folder / "predictions.npz"
    results.save_arrays(path, results.load_arrays(path) | {"top1.teacher": right(range(100, N))})
    manifest(folder, files=files())
    refused(run, rf"manifest.json.checks \(top1 {rule}\): the stored value")
    with pytest.raises(BaselineError, match="the stored value"):
        gate.gate(folder)
