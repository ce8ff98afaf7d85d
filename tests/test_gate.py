"""The verb `gate` on the folder of a run, copied elsewhere, and on a bundle: exit codes, baselines, machine outputs."""

import dataclasses
import json
import shutil
from xml.etree import ElementTree

import numpy as np
import pytest
from runs import WRONG, N, bundled, make, right

from edgekd import intervals, results
from edgekd.decisions import budget as budgets
from edgekd.decisions import judged_on
from edgekd.errors import BaselineError, UsageError
from edgekd.metrics import top1
from edgekd.records import Candidate, Check, Measurement
from edgekd.verbs import gate, report


@pytest.fixture
def run(tmp_path):
    return make(tmp_path / "run")


def budget(tmp_path, text):
    path = tmp_path / "budget.toml"
    path.write_text(text)
    return path


def verdicts(gated):
    return {c.name: c.verdict for c in gated.checks}


def test_a_run_passes_by_its_own_gate(run):
    gated = gate.gate(run)
    assert verdicts(gated) == {"top1": "pass", "file_bytes": "pass"}
    assert (gated.verdict, gated.exit_code) == ("pass", 0)
    drop = gated.checks[0]
    assert drop.value == pytest.approx(100 * 10 / N)  # 28 wrong, the teacher's 18
    expected = 100 * intervals.paired(right(WRONG["teacher"]), right(WRONG["prune-0.5.int8"]), 0.9)[2]
    assert drop.high == pytest.approx(expected)
    assert str(gated).splitlines()[0] == "edgekd gate  PASS  2 checks: all passed"


def test_a_copied_run_suffices(run, tmp_path):
    shutil.copytree(run, tmp_path / "there")
    before = gate.gate(run).checks
    shutil.rmtree(run)
    assert [dataclasses.replace(c, place="") for c in gate.gate(tmp_path / "there").checks] == [
        dataclasses.replace(c, place="") for c in before
    ]


@pytest.mark.parametrize(
    "text, expected, code",
    [
        ('top1 = "drop max 0.2 pt vs teacher"', "fail", 1),
        ('top1 = "drop max 1.5 pt vs teacher"', "inconclusive", 3),
        ('top1 = "min 90 %"', "pass", 0),
        ('top1 = "min 97 %"', "inconclusive", 3),
        ('file_bytes = "max 14999 B"', "fail", 1),
        ('file_bytes = "max 15 kB"', "pass", 0),
        ('file_bytes = { is = "max 1 kB", level = "warn" }', "fail", 0),
        ('latency_p50_ms = "max 0.2 ms"', "pass", 0),
        ('latency_p50_ms = "max 10 us"', "fail", 1),
        ('latency_p50_ms = { is = "max 1 ms", accept = ["predicted"] }', "inconclusive", 3),
        ('macs = "max 5 M"', "inconclusive", 3),
    ],
)
def test_budgets_of_a_file_replace_the_runs(run, tmp_path, text, expected, code):
    gated = gate.gate(run, budget=budget(tmp_path, f"[any]\n{text}\n"))
    assert [c.verdict for c in gated.checks] == [expected]
    assert gated.exit_code == code
    assert gate.gate(run, budget=tmp_path / "budget.toml", inconclusive="warn").exit_code == (0 if code == 3 else code)


def test_a_failure_counts_more_than_what_is_open(run, tmp_path):
    path = budget(tmp_path, '[gate.any]\ntop1 = "min 97 %"\n[gate.host]\nfile_bytes = "max 1 kB"\n')
    assert gate.gate(run, budget=path).exit_code == 1


def test_wrong_budgets_are_refused_with_every_problem(run, tmp_path):
    path = budget(tmp_path, '[any]\ntop1 = "min 97"\nfile_byts = "max 1 kB"\n[hots]\ntop1 = "min 9 %"\n')
    with pytest.raises(UsageError) as error:
        gate.gate(run, budget=path)
    told = str(error.value)
    assert len(error.value.problems) == 3
    assert "has no unit" in told and "did you mean `file_bytes`" in told and "did you mean `host`" in told


def test_a_budget_may_name_targets_of_other_runs_but_not_only_those(run, tmp_path):
    from edgekd import targets

    other = next(name for name in targets.names() if name != "host")
    passed = gate.gate(run, budget=budget(tmp_path, f'[{other}]\ntop1 = "min 99 %"\n[any]\ntop1 = "min 90 %"\n'))
    assert passed.exit_code == 0 and f"also has budgets for {other}, which" in str(passed)
    assert "also has budgets" not in str(gate.gate(run, budget=budget(tmp_path, '[any]\ntop1 = "min 90 %"\n')))
    with pytest.raises(UsageError, match="nothing is judged"):
        gate.gate(run, budget=budget(tmp_path, f'[{other}]\ntop1 = "min 99 %"\n'))


def test_nothing_chosen_fails(tmp_path):
    gated = gate.gate(make(tmp_path / "run", chosen=None))
    assert gated.exit_code == 1
    # which would tell the same
    assert "none of 3 candidates is within the budgets" in str(gated) and "--why" not in str(gated)
    other = str(gate.gate(tmp_path / "run", budget=budget(tmp_path, '[any]\ntop1 = "min 1 %"\n')))
    assert "to choose by others" in other and "to choose by others" not in str(gated)


def test_one_target_of_two_that_fails_fails(tmp_path):
    run = make(tmp_path / "run", targets=("host", "pi"))
    gated = gate.gate(run, budget=budget(tmp_path, '[any]\ntop1 = "min 90 %"\n[host]\nfile_bytes = "max 1 kB"\n'))
    assert {(c.target, c.name): c.verdict for c in gated.checks} == {
        ("host", "top1"): "pass",
        ("host", "file_bytes"): "fail",
        ("pi", "top1"): "pass",
    }
    assert gated.exit_code == 1


def test_only_deterministic_judges_counted_figures_and_says_what_it_leaves_out(run, tmp_path):
    gated = gate.gate(run, only="deterministic")
    assert verdicts(gated) == {"file_bytes": "pass"}
    assert gated.skipped == ("host: top1 drop max 3.0 pt vs teacher",)
    assert gated.skipped[0] in str(gated)
    with pytest.raises(UsageError, match="nothing is judged"):
        gate.gate(run, only="deterministic", budget=budget(tmp_path, '[any]\ntop1 = "min 1 %"\n'))


def test_missing_predictions_are_inconclusive(run):
    (run / "predictions" / "teacher.npz").unlink()
    gated = gate.gate(run)
    assert verdicts(gated)["top1"] == "inconclusive" and gated.exit_code == 3
    (run / "predictions" / "prune-0.5.int8.npz").unlink()
    assert gate.gate(run).exit_code == 3


def test_a_model_that_is_not_the_one_measured_is_refused(run):
    path = run / "models" / "prune-0.5.int8.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(BaselineError, match="differs from its digest") as error:
        gate.gate(run)
    assert error.value.exit_code == 5


@pytest.mark.parametrize("what", ["nothing", "empty", "file"])
def test_what_is_no_run_is_refused(tmp_path, what):
    path = tmp_path / what
    if what == "empty":
        path.mkdir()
    elif what == "file":
        path.write_text("x")
    for verb in (gate.gate, report.report):
        with pytest.raises(UsageError, match="run"):
            verb(path)


def test_a_recipe_that_was_edited_since_is_not_the_runs_own_gate(run):
    path = run / "recipe.toml"
    path.write_text(path.read_text().replace("3.0 pt", "50 pt"))
    with pytest.raises(BaselineError, match="not the recipe of this run") as error:
        gate.gate(run)
    assert error.value.exit_code == 5 and "--budget" in str(error.value)
    assert gate.gate(run, budget=path).exit_code == 0  # said aloud, it is a budget like any other


def test_a_run_without_a_recipe_needs_a_budget(run, tmp_path):
    (run / "recipe.toml").unlink()
    with pytest.raises(UsageError, match="--budget"):
        gate.gate(run)
    assert gate.gate(run, budget=budget(tmp_path, '[any]\ntop1 = "min 90 %"\n')).exit_code == 0


# ---------------------------------------------------------------- bundles and baselines


def test_a_bundle_alone_comes_to_what_its_run_came_to(run, tmp_path):
    shutil.move(bundled(run), tmp_path / "bundle")
    expected = gate.gate(run).checks
    shutil.rmtree(run)
    gated = gate.gate(tmp_path / "bundle")
    assert {(c.name, c.verdict, c.value, c.high) for c in gated.checks} == {
        (c.name, c.verdict, c.value, c.high) for c in expected
    }


def test_a_bundle_that_was_changed_is_refused(run):
    folder = bundled(run)
    (folder / "model.onnx").write_bytes(b"x")
    with pytest.raises(BaselineError) as error:
        gate.gate(folder)
    assert error.value.exit_code == 5


REGRESS = (
    "[any]\n"
    'file_bytes = "regress max 3 % vs baseline"\n'
    'top1 = "drop max 2 pt vs baseline"\n'
    'latency_p50_ms = "regress max 50 % vs baseline"\n'
)


def test_a_run_is_compared_with_a_bundle(run, tmp_path):
    path, last = budget(tmp_path, REGRESS), bundled(run)
    same = gate.gate(run, budget=path, baseline=last)
    assert verdicts(same) == {"file_bytes": "pass", "top1": "pass", "latency_p50_ms": "pass"}
    assert [c.value for c in same.checks][:2] == [0, 0]
    worse = make(
        tmp_path / "worse", wrong={"prune-0.5.int8": range(100, 170)}, sizes={"prune-0.5.int8": 15_451}, p50=0.09
    )
    assert verdicts(gate.gate(worse, budget=path, baseline=last)) == {
        "file_bytes": "fail",
        "top1": "fail",
        "latency_p50_ms": "fail",
    }
    elsewhere = make(tmp_path / "elsewhere", environment="other", sizes={"prune-0.5.int8": 15_450})
    assert verdicts(gate.gate(elsewhere, budget=path, baseline=last)) == {
        "file_bytes": "pass",
        "top1": "pass",
        "latency_p50_ms": "inconclusive",
    }
    assert gate.gate(bundled(worse), budget=path, baseline=last).exit_code == 1


def test_a_baseline_that_is_missing_or_of_another_test_set_ends_in_5(run, tmp_path):
    path = budget(tmp_path, REGRESS)
    other = bundled(make(tmp_path / "other", digest="e" * 64))
    broken = bundled(make(tmp_path / "broken"))
    (broken / "predictions.npz").unlink()
    foreign = bundled(make(tmp_path / "foreign", targets=("pi",)), "pi")
    bare = make(tmp_path / "bare")
    shutil.rmtree(bare / "predictions")
    cases = {
        None: "no baseline is given",
        tmp_path / "none": "can't be read",
        other: "another test set",
        broken: "is missing",
        foreign: "is for pi",
    }
    for baseline, told in {**cases, bundled(bare): "has no predictions"}.items():
        with pytest.raises(BaselineError, match=told) as error:
            gate.gate(run, budget=path, baseline=baseline)
        assert error.value.exit_code == 5
    counted = budget(tmp_path, '[any]\nfile_bytes = "regress max 3 % vs baseline"\n')
    assert gate.gate(run, budget=counted, baseline=other).exit_code == 0  # bytes need no test set


def test_a_baseline_of_the_same_samples_in_another_order_is_compared(run, tmp_path):
    """Emulation goes through the samples at random, a machine of the target's kind in their order."""
    path = budget(tmp_path, '[any]\ntop1 = "drop max 2 pt vs baseline"\n')
    whole = results.load_arrays(run / "predictions" / "prune-0.5.int8.npz")
    for count in (len(whole["sample_id"]), 150):
        rows = np.random.default_rng(0).permutation(len(whole["sample_id"]))[:count]
        arrays = {name: a if a.ndim == 0 else a[rows] for name, a in whole.items()}
        last = make(tmp_path / f"last-{count}")
        name = results.executed("prune-0.5.int8", "host")
        results.save_arrays(last / "predictions" / name, arrays)
        result = results.read(last)
        share = 100 * arrays["top1.records"].mean()
        told = Measurement("top1", "%", share, share - 9, share, count, "test", "host", "emulated")
        figures = (*(m for m in result.candidates[-1].measurements if m.split != "test"), told)
        candidates = (*result.candidates[:-1], dataclasses.replace(result.candidates[-1], measurements=figures))
        digests = results.digests(last / "predictions")
        results.write(dataclasses.replace(result, candidates=candidates, predictions=digests), last / "result.json")
        (check,) = gate.gate(run, budget=path, baseline=bundled(last)).checks
        same = intervals.paired_of(top1(), *[arrays["top1.records"]] * 2, 0.9)
        assert (check.verdict, check.value, check.low, check.high) == ("pass", *same), "no answer differs"


def test_samples_in_another_order_are_not_paired(tmp_path):
    run = make(tmp_path / "run", old=True)
    path = run / "predictions" / "teacher.npz"
    results.save_arrays(path, {**results.load_arrays(path), "sample_id": results.load_predictions(path).ids[::-1]})
    with pytest.raises(BaselineError, match="another test set"):
        gate.gate(run)


def test_a_warning_is_not_paired_with_other_samples(run, tmp_path):
    path = budget(tmp_path, '[any]\ntop1 = { is = "drop max 9 pt vs baseline", level = "warn" }\n')
    with pytest.raises(BaselineError, match="another test set"):
        gate.gate(run, budget=path, baseline=bundled(make(tmp_path / "other", digest="e" * 64)))


def test_without_predictions_of_its_own_a_run_is_not_compared_by_quality(run, tmp_path):
    last = bundled(run)
    shutil.rmtree(run / "predictions")
    path = budget(
        tmp_path, '[any]\ntop1 = "regress max 50 % vs baseline"\nfile_bytes = "regress max 3 % vs baseline"\n'
    )
    assert verdicts(gate.gate(run, budget=path, baseline=last)) == {"top1": "inconclusive", "file_bytes": "pass"}


def test_a_warning_without_a_baseline_is_no_error(run, tmp_path):
    path = budget(
        tmp_path, '[any]\nfile_bytes = { is = "regress max 3 % vs baseline", level = "warn" }\ntop1 = "min 90 %"\n'
    )
    gated = gate.gate(run, budget=path)
    assert verdicts(gated)["file_bytes"] == "inconclusive" and gated.exit_code == 0


# ---------------------------------------------------------------- what is said


def test_why_says_what_every_line_was_judged_on(run):
    text = str(gate.gate(run, why=True))
    assert "900 samples of the test split" in text
    assert "the teacher is right alone on 15, the candidate on 5" in text  # 18..32 and 0..4
    assert "exact, read from the file, 5000 B left" in text
    assert "Example CPU" in text
    assert "Example CPU" not in str(gate.gate(run))


def test_machine_outputs(run, tmp_path):
    files = {name: tmp_path / name for name in ("junit", "sarif", "json", "markdown")}
    files["markdown"].write_text("before\n")
    gated = gate.gate(run, budget=budget(tmp_path, '[any]\ntop1 = "min 97 %"\nfile_bytes = "max 1 kB"\n'), **files)
    suite = ElementTree.parse(files["junit"]).getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "1", "1")
    assert len(json.loads(files["sarif"].read_text())["runs"][0]["results"]) == 2
    table = json.loads(files["json"].read_text())
    assert (table["schema"], table["verdict"], table["exit_code"]) == ("edgekd.gate/1", "fail", 1)
    assert [c["name"] for c in table["checks"]] == [c.name for c in gated.checks]
    assert files["markdown"].read_text().startswith("before\n### edgekd gate: FAIL")
    before = files["json"].read_bytes()
    gate.gate(run, budget=tmp_path / "budget.toml", json=files["json"])
    assert files["json"].read_bytes() == before
    with pytest.raises(UsageError, match="can't be written"):
        gate.gate(run, json=tmp_path / "none" / "x.json")


def test_names_of_a_run_are_shown_not_sent_to_the_terminal(tmp_path):
    run = make(tmp_path / "run", chosen=None)
    table = json.loads((run / "result.json").read_text())
    table["targets"]["host"]["reason"] = "\x1b[31mred"
    (run / "result.json").write_text(json.dumps(table))
    assert "\x1b" not in str(gate.gate(run))


def test_report_writes_both_files(run):
    text = report.report(run)
    assert (run / "report.html").is_file() and (run / "report.md").is_file()
    assert text.splitlines() == [str(run / "report.html"), str(run / "report.md")]


@pytest.mark.parametrize(
    "arguments, code",
    [
        ([], 0),
        (["--only", "deterministic"], 0),
        (["--budget", "none.toml"], 2),
        (["--baseline", "none"], 5),
        (["--why"], 0),
    ],
)
def test_the_verb_exits_with_the_contracts_codes(run, arguments, code, capsys):
    from edgekd.cli import run as main

    assert main(["gate", str(run), *arguments]) == code
    out = capsys.readouterr()
    assert ("PASS" in out.out) == (code == 0) and ("error:" in out.err) == (code != 0)


def test_why_of_a_prediction_and_of_large_counts():
    check = Check(
        "pi", "a", "instructions", "max 1 M", "pass", "error", 372_103.0, 370_275.0, 376_091.0, "", "emulated", "", ""
    )
    figures = (
        Measurement("instructions", "", 372_103, 370_275, 376_091, 8, None, "pi", "emulated", 1),
        Measurement("latency_p50_ms", "ms", 0.3, 0.07, 1.3, 1, None, "pi", "predicted", 1, note="transferred: ..."),
    )
    made = Candidate("a", "a", 0, (), (), "onnx", None, None, figures)
    rules = [
        budgets.rules({"any": {name: text}}, "pi", "")[0]
        for name, text in (("instructions", "max 1 M"), ("latency_p50_ms", "max 1 ms"))
    ]
    assert "627,897 left" in judged_on.of(check, rules[0], made, {}, None, {})
    guessed = dataclasses.replace(
        check, name="latency_p50_ms", rule="max 1 ms", value=0.3, low=0.07, high=1.3, unit="ms", origin="predicted"
    )
    text = judged_on.of(guessed, rules[1], made, {}, None, {})
    assert "process" not in text and text.startswith("1 thread, 0.3 ms beyond the limit, transferred")


def test_instructions_are_paired_with_those_of_a_baselines_bundle(tmp_path):
    """Per input they travel with the run and the bundle. Inputs are 2 % apart: only in pairs is half a per cent
    told."""

    def counted(name, times):
        folder = make(tmp_path / name)
        each = tuple(round(times * n) for n in (275_285, 273_443, 272_717, 272_640, 276_560, 271_335, 270_774, 270_755))
        figure = Measurement(
            "instructions", "", 271_335, min(each), max(each), 8, None, "host", "emulated", 1, each=each, pairing="ab"
        )
        result = results.read(folder)
        found = tuple(dataclasses.replace(c, measurements=(*c.measurements, figure)) for c in result.candidates)
        results.write(dataclasses.replace(result, candidates=found), folder / "result.json")
        return folder

    before, after = counted("before", 1.0), counted("after", 1.01)
    rule, base = budget(tmp_path, '[any]\ninstructions = "regress max 0.5 % vs baseline"\n'), bundled(before)
    same = gate.gate(before, budget=rule, baseline=base, why=True)
    assert (
        same.exit_code == 0
        and (same.checks[0].value, same.checks[0].high) == (0, 0)
        and "paired by input, one-sided at 95 %" in str(same)
    )
    assert gate.gate(after, budget=rule, baseline=base).exit_code == 1
    assert gate.gate(bundled(after), budget=rule, baseline=base).checks[0].value == pytest.approx(1.0, abs=0.001)
