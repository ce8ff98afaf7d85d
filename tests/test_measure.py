"""Measuring files as jobs, what is made of the results, and the verbs `profile` and `compare`."""

import dataclasses
import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper as nh

from edgekd import cli, environment, results, targets
from edgekd.errors import EnvironmentUnfit, RunFailed, UsageError
from edgekd.hosts import local
from edgekd.measure import jobs, noise, session
from edgekd.probes import times
from edgekd.records import Target
from edgekd.report.figures import figure
from edgekd.runtimes import onnxruntime as runtime
from edgekd.runtimes import worker
from edgekd.samples import generated
from edgekd.samples.read import read
from edgekd.samples.rows import of
from edgekd.samples.signature import Signature, Tensor, of_model
from edgekd.samples.source import Source
from edgekd.verbs import compare, profile

X = np.random.default_rng(0).normal(size=(150, 8)).astype(np.float32)
TINY = session.Effort(processes=6, most=6, warmup_s=0.0, runs=10, steady_s=0.01, memory=2, warmup_cap_s=0.05, cap_s=0.5)


def network(path, width=16, batch="batch", kind=T.FLOAT, outside=False):
    """Two matrix products on 8 numbers, into 3 classes."""
    generator = np.random.default_rng(width)
    constants = [
        nh.from_array(generator.normal(size=s).astype(np.float32), n) for n, s in (("w", (8, width)), ("v", (width, 3)))
    ]
    nodes = [
        h.make_node("Cast", ["x"], ["f"], to=T.FLOAT),
        h.make_node("MatMul", ["f", "w"], ["a"]),
        h.make_node("Relu", ["a"], ["b"]),
    ]
    nodes.append(h.make_node("MatMul", ["b", "v"], ["y"]))
    inputs, outputs = (
        [h.make_tensor_value_info("x", kind, [batch, 8])],
        [h.make_tensor_value_info("y", T.FLOAT, [batch, 3])],
    )
    made = h.make_model(
        h.make_graph(nodes, "g", inputs, outputs, constants), opset_imports=[h.make_opsetid("", 20)], ir_version=10
    )
    if outside:
        tensor = made.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = T.EXTERNAL
        tensor.external_data.add(key="location", value="../secret.bin")
    path.write_bytes(made.SerializeToString())
    return path


SIGNATURE = Signature({"x": Tensor(np.dtype("float32"), ("batch", 8))})


def on(run):
    """This machine, by another way."""
    return dataclasses.replace(local.host(), run=run)


def answers(path, x=X):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    for preset in ("quick", "standard"):
        monkeypatch.setitem(jobs.EFFORTS, preset, TINY)


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    """One profile of two files: (folder, models, what `profile` returned, progress)."""
    folder, seen = tmp_path_factory.mktemp("profile"), []
    models = {"small": network(folder / "small.onnx", 16), "a file's name": network(folder / "b.onnx", 4000)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(jobs.EFFORTS, "quick", TINY)
        found = jobs.profile(
            models,
            X,
            jobs.Session(
                folder=folder / "p",
                target=targets.load("host"),
                progress=lambda done, total, text: seen.append((done, total, text)),
            ),
        )
    return folder / "p", models, found, seen


# ---------------------------------------------------------------- the runtime file


def test_the_runtime_answers_as_the_library_does(tmp_path):
    infer = runtime.load(network(tmp_path / "m.onnx"), 1)
    assert infer.inputs == {"x": ("float32", (None, 8))} and infer.outputs == ("y",)
    assert np.array_equal(infer({"x": X})["y"], answers(tmp_path / "m.onnx"))


def test_the_runtime_uses_the_threads_it_is_told():
    options = runtime._options(3)
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


# ---------------------------------------------------------------- score


@pytest.mark.parametrize("inputs", [X, {"x": X}], ids=["array", "by name"])
def test_score_is_what_the_runtime_says_of_every_sample(tmp_path, inputs):
    path = network(tmp_path / "m.onnx")
    found = jobs.score(path, inputs, folder=tmp_path / "s")
    assert list(found) == ["y"] and np.allclose(found["y"], answers(path), atol=1e-6)


def test_score_of_a_file_that_fixes_its_batch(tmp_path):
    path = network(tmp_path / "m.onnx", batch=7)
    assert np.allclose(
        jobs.score(path, X, folder=tmp_path / "s")["y"], answers(network(tmp_path / "open.onnx")), atol=1e-6
    )


def test_score_is_not_taken_again_but_for_other_data_or_another_file(tmp_path):
    path, runs = network(tmp_path / "m.onnx"), []

    def run(folder, timeout, progress):
        runs.append(folder)
        return local.run(folder, timeout, progress)

    first = jobs.score(path, X, folder=tmp_path / "s", host=on(run))
    assert np.array_equal(jobs.score(path, X, folder=tmp_path / "s", host=on(run))["y"], first["y"]) and len(runs) == 1
    assert len(jobs.score(path, X[:10], folder=tmp_path / "s", host=on(run))["y"]) == 10 and len(runs) == 2
    network(path, width=17)
    assert (
        not np.array_equal(jobs.score(path, X[:10], folder=tmp_path / "s", host=on(run))["y"], first["y"][:10])
        and len(runs) == 3
    )


@pytest.mark.parametrize(
    "inputs, message",
    [(X.astype(np.float64), "takes float32"), ({"z": X}, "inputs x, the data has z"), (X[:, :3], "shape")],
)
def test_data_that_do_not_fit_end_in_one_error(tmp_path, inputs, message):
    with pytest.raises(RunFailed, match=message):
        jobs.score(network(tmp_path / "m.onnx"), inputs, folder=tmp_path / "s")
    with pytest.raises(RunFailed, match="plain arrays"):
        jobs.score(tmp_path / "m.onnx", np.array([{}, []], object), folder=tmp_path / "s")


def test_a_file_that_the_runtime_refuses_is_named(tmp_path):
    path = tmp_path / "strange.onnx"
    made = h.make_model(
        h.make_graph([h.make_node("Strange", ["x"], ["y"], domain="org.nobody")], "g",
                     [h.make_tensor_value_info("x", T.FLOAT, ["n", 8])],
                     [h.make_tensor_value_info("y", T.FLOAT, ["n", 8])]),
        opset_imports=[h.make_opsetid("", 20), h.make_opsetid("org.nobody", 1)], ir_version=10,
    )  # fmt: skip
    path.write_bytes(made.SerializeToString())
    with pytest.raises(RunFailed, match="strange.onnx: does not run in onnxruntime") as caught:
        jobs.score(path, X, folder=tmp_path / "s")
    assert len(caught.value.problems) == 1


# ---------------------------------------------------------------- profile


def test_profile_gives_every_figure_with_interval_and_origin(profiled):
    _, models, found, _ = profiled
    assert list(found) == list(models)
    names = ["latency_p50_ms", "latency_p90_ms", "load_ms", "first_ms", "peak_rss_bytes", "peak_rss_over_runtime_bytes"]
    for figures in found.values():
        assert [m.name for m in figures] == names
        for m in figures:
            assert m.low <= m.value <= m.high and m.origin == "measured" and m.target == "host" and m.threads == 1
            assert m.environment == environment.environment_id(environment.describe()) and m.split is None
        assert figures[0].n == 6 and figures[0].value <= figures[1].value and figures[4].value > figures[5].value
    small, large = found.values()
    assert small[0].value < large[0].value  # 250 times the work


def test_profile_figures_are_those_of_the_raw_times(profiled):
    folder, _, found, _ = profiled
    recorded = jobs.raw(folder, "small")
    medians = [np.median(np.load(recorded["out"] / line["times"])) / 1e6 for line in recorded["time"]]
    p50 = found["small"][0]
    assert (p50.value, p50.low, p50.high) == pytest.approx((np.median(medians), min(medians), max(medians)))
    assert p50.note.startswith(f"{sum(line['n'] for line in recorded['time'])} inferences")
    assert len(recorded["memory"]) == 2 and (recorded["out"] / recorded["operators"]["trace"]).is_file()


def test_a_folder_that_lost_files_is_made_anew(tmp_path):
    """As where it was being cleared up, and the process was killed in the middle."""
    path = network(tmp_path / "m.onnx")
    found = jobs.score(path, X, folder=tmp_path / "f")
    shutil.rmtree(tmp_path / "f/job/out")
    (tmp_path / "f/job/worker.py").unlink()
    again = jobs.score(path, X, folder=tmp_path / "f")
    assert all((again[name] == array).all() for name, array in found.items())


def test_profile_is_read_again_without_measuring(profiled):
    folder, models, found, _ = profiled

    def run(*_):
        raise AssertionError("measured again")

    assert jobs.profile(models, X, jobs.Session(folder=folder, target=targets.load("host"), host=on(run))) == found


def test_profile_goes_on_where_it_was_cut_off(profiled, tmp_path):
    folder, models, found, _ = profiled
    shutil.copytree(folder, tmp_path / "p")
    out = tmp_path / "p" / "job" / "out"
    (out / "done.json").unlink()
    lines = (out / "results.jsonl").read_bytes().splitlines(keepends=True)
    (out / "results.jsonl").write_bytes(b"".join(lines[:-2]) + lines[-2][:40])
    again = jobs.profile(models, X, jobs.Session(folder=tmp_path / "p", target=targets.load("host")))
    assert (out / "results.jsonl").read_bytes().splitlines(keepends=True)[:-2] == lines[:-2]
    for name in models:
        assert again[name][4:] == found[name][4:]  # memory was finished before


def test_progress_names_the_file_at_work(profiled):
    _, models, _, seen = profiled
    assert [done for done, _, _ in seen] == list(range(1, seen[0][1] + 1))
    assert {text for _, _, text in seen} == set(models)


def test_the_schedule_goes_forth_and_back_with_a_control():
    entries = session.schedule(["s0", "s1", "control"], 4, TINY)
    timed = [e["subject"] for e in entries if e["pass"] == "time"]
    forth = ["s0", "s1", "control"]
    assert timed == [*forth, *forth[::-1], *forth, *forth[::-1]]
    assert not any(e["subject"] == "control" for e in entries if e["pass"] != "time")
    assert len({e["id"] for e in entries}) == len(entries)
    assert sum(e["pass"] == "bare" for e in entries) == 2


def test_a_job_holds_no_name_of_the_users(profiled):
    folder, _, _, _ = profiled
    text = (folder / "job" / "job.json").read_text()
    assert "a file's name" not in text and str(folder) not in text and "b.onnx" not in text
    assert sorted(p.name for p in (folder / "job" / "models").iterdir()) == ["s0.onnx", "s1.onnx"]


def test_timing_goes_through_samples_of_the_whole_set():
    some = lambda count: jobs.some(of(np.arange(count))).arrays[""].tolist()
    few = some(1000)
    assert len(few) == 64 and few[0] == 0 and few[-1] == 999 and len(set(few)) == 64
    assert some(5) == [0, 1, 2, 3, 4]


def process(p50=1.0, cpu=1.0, mhz=2000.0, stable=True):
    return {"p50_ms": p50, "cpu_share": cpu, "after": {"mhz": [mhz, mhz]}, "warmup": {"runs": 20, "stable": stable}}


QUIET, STILL = (1.0, 0.99, 1.01), [process(1 + i / 1000) for i in range(6)]


@pytest.mark.parametrize(
    "processes, control, said",
    [
        (STILL, QUIET, ""),
        (STILL, (1.01, 1.005, 1.015), ""),  # significant but small: layouts differ by as much
        (STILL, (1.05, 0.97, 1.1), ""),  # large but not shown
        (STILL, (1.05, 1.03, 1.08), "the same file took +5.0 % in the A/A control"),
        ([process(p) for p in (1, 1, 1, 1, 1, 1.2)], QUIET, "p50 varies by 10 % between processes"),
        ([process(cpu=0.8)] * 6, QUIET, "the process had 80 % of a core"),
        ([*STILL[:5], process(mhz=1500.0)], QUIET, "clocks between 1500 and 2000 MHz"),
        ([process(stable=i < 2) for i in range(6)], QUIET, "the warm-up did not settle in 4 of 6 processes"),
    ],
)
def test_noise_is_flagged(processes, control, said):
    note = noise.noise(processes, control, threads=1)
    assert note == (f"noisy: {said}" if said else "")


def test_waiting_for_a_core_says_nothing_where_several_threads_share_the_work():
    assert noise.noise([process(cpu=0.8)] * 6, QUIET, threads=2) == ""


def test_memory_over_the_runtime_by_hand():
    """Peaks 10, 12 and bare 4, 6: means 11 and 5, each +- t(0.975, 1) * sqrt(2) / sqrt(2) = 12.706; the difference +-
    12.706 sqrt(2)."""
    peak, over = times._memory([10, 12], [4, 6])
    assert (peak.value, peak.low, peak.high) == pytest.approx((11, 11 - 12.706, 11 + 12.706), abs=1e-3)
    assert (over.value, over.low, over.high) == pytest.approx((6, 6 - 17.969, 6 + 17.969), abs=1e-3)


def fake_host(p50):
    """A host that finishes every entry at once; p50(subject, round) in ms."""

    def run(folder, timeout, progress):
        out = folder / "out"
        out.mkdir(exist_ok=True)
        found = worker.finished_lines(out / "results.jsonl")
        entries = json.loads((folder / "job.json").read_text())["schedule"]
        for e in entries:
            line = {
                "id": e["id"],
                "subject": e["subject"],
                "pass": e["pass"],
                "peak_rss_bytes": 5,
                "load_ms": 1.0,
                "first_ms": 1.0,
                "n": 9,
            }
            ms = p50(e["subject"], int(e["id"][-3:]))
            if e["id"] not in found:
                worker.append(out / "results.jsonl", json.dumps({**line, **process(ms), "p90_ms": ms}))
        worker.write(out / "done.json", json.dumps({"finished": [e["id"] for e in entries], "failed": {}}).encode())
        runs.append(len(entries))

    runs: list[int] = []
    run.runs = runs
    return run


def test_rounds_are_added_until_the_p50_is_known(tmp_path, monkeypatch):
    """Noise in the first rounds alone: rounds are added in twos until the interval is within 1 %."""
    monkeypatch.setitem(jobs.EFFORTS, "standard", dataclasses.replace(TINY, most=20))
    path = network(tmp_path / "m.onnx")
    run = fake_host(lambda subject, round: 1.0 + (0.1 if round == 0 else 0))
    found = jobs.profile({"m": path}, X, jobs.Session(preset="standard", folder=tmp_path / "p", host=on(run)))
    assert found["m"][0].n == 10  # with 10 the second smallest to the second largest remain: the odd one is out
    again = fake_host(lambda subject, round: 99.0)
    assert (
        jobs.profile({"m": path}, X, jobs.Session(preset="standard", folder=tmp_path / "p", host=on(again))) == found
        and again.runs == []
    )
    # cut off while rounds were added: a round without its control
    results = tmp_path / "p" / "job" / "out" / "results.jsonl"
    results.write_bytes(b"".join(results.read_bytes().splitlines(keepends=True)[:-1]))
    (results.parent / "done.json").unlink()
    assert jobs.profile({"m": path}, X, jobs.Session(preset="standard", folder=tmp_path / "p", host=on(run))) == found
    endless = fake_host(lambda subject, round: 1.0 + round % 2)
    assert (
        jobs.profile({"m": path}, X, jobs.Session(preset="standard", folder=tmp_path / "q", host=on(endless)))["m"][0].n
        == 20
    )


def test_compare_gives_the_ratio_of_neighbours(tmp_path):
    """Both drift by a factor of three through the session; b takes 1.5 times as long as a."""
    a, b = network(tmp_path / "a.onnx"), network(tmp_path / "b.onnx", 32)
    run = fake_host(lambda subject, round: (1 + 0.4 * round) * (1.5 if subject == "s1" else 1.0))
    found = jobs.compare(a, b, X, jobs.Session(folder=tmp_path / "c", host=on(run), preset="standard"))
    assert (
        found.ratio == pytest.approx((1.5, 1.5, 1.5))
        and found.control == pytest.approx((1, 1, 1))
        and found.processes == 6
    )
    assert "p50 varies" in found.note


def test_compare_runs_one_job(tmp_path, monkeypatch):
    calls, run = [], jobs.folders.run
    monkeypatch.setattr(jobs.folders, "run", lambda *given: calls.append(given[0]) or run(*given))
    a, b = network(tmp_path / "a.onnx"), network(tmp_path / "b.onnx", 32)
    jobs.compare(a, b, X, jobs.Session(tmp_path / "c", "quick", host=on(fake_host(lambda subject, round: 1.0))))
    assert calls == [tmp_path / "c" / "job"]


def test_a_control_that_excludes_1_makes_a_comparison_inconclusive(tmp_path, monkeypatch, capsys):
    """The session that finds a file 1.38 times as slow as itself finds B slower than A as well."""
    control, ratio = (1.379, 1.080, 1.772), (1.339, 1.007, 1.670)
    a, b = network(tmp_path / "a.onnx"), network(tmp_path / "b.onnx", 32)
    for given, says, code in (
        (control, "inconclusive", 3),
        ((1.02, 0.99, 1.05), "slower", 0),
        ((0.7, 0.6, 0.9), "inconclusive", 3),
    ):
        monkeypatch.setattr(jobs, "compare", lambda *a, given=given: jobs.Comparison(ratio, given, (), (), 10))
        assert cli.run(["compare", str(a), str(b), "--quiet", "--json", str(tmp_path / "c.json")]) == code
        out = capsys.readouterr().out
        assert ("B is slower" in out) == (code == 0) and (
            "hint: " in out and "slower or faster than itself" in out
        ) == (code == 3)
        assert json.loads((tmp_path / "c.json").read_text())["verdict"] == says
    shown = {
        r: jobs.Comparison(r, (1.0, 0.99, 1.01), (), (), 10).verdict for r in (ratio, (0.8, 0.7, 0.9), (1.1, 0.9, 1.2))
    }
    assert list(shown.values()) == ["slower", "faster", "no difference shown"]


@pytest.mark.parametrize("off", [1.0, 1.5, 0.5])
def test_times_of_a_session_whose_control_excludes_1_are_as_wide_as_it_is_off_and_no_pairs(tmp_path, off):
    run = fake_host(lambda subject, round: (1 + round / 1000) * (off if subject == "control" else 1.0))
    figures = {
        m.name: m
        for m in jobs.profile(
            {"m": network(tmp_path / "m.onnx")}, X, jobs.Session(preset="quick", folder=tmp_path / "p", host=on(run))
        )["m"]
    }
    p50, wide = figures["latency_p50_ms"], max(off, 1 / off)
    assert (p50.low, p50.high) == pytest.approx((1.0 / wide, 1.005 * wide)) and p50.value == pytest.approx(1.0025)
    assert p50.each == (() if wide > 1 else pytest.approx((1, 1.001, 1.002, 1.003, 1.004, 1.005))) and bool(
        p50.pairing
    ) == (wide == 1)
    assert (figures["load_ms"].low, figures["load_ms"].each) == (1.0, ())


def test_compare_says_who_is_faster(tmp_path):
    found = jobs.compare(
        network(tmp_path / "a.onnx"),
        network(tmp_path / "b.onnx", 20000),
        X,
        jobs.Session(folder=tmp_path / "c", preset="standard"),
    )
    assert found.ratio[1] > 1


def test_presets_follow_the_rules():
    quick, standard, certify = (
        dict(jobs.EFFORTS, quick=QUICK, standard=STANDARD)[n] for n in ("quick", "standard", "certify")
    )
    assert quick.processes >= 6 and quick.processes * quick.runs >= 64 and quick.processes * quick.steady_s >= 3
    assert standard.processes * standard.runs >= 100 and standard.processes * standard.steady_s >= 5
    assert certify.processes * certify.runs >= 1024 and certify.processes * certify.steady_s >= 60
    assert all(e.warmup_runs >= 10 for e in (quick, standard, certify))


QUICK, STANDARD = jobs.EFFORTS["quick"], jobs.EFFORTS["standard"]


# ---------------------------------------------------------------- the verbs


def test_profile_of_a_file(tmp_path):
    path = network(tmp_path / "m.onnx")
    labels = answers(path).argmax(1)
    labels[:15] = (labels[:15] + 1) % 3
    np.savez(tmp_path / "d.npz", inputs=X, labels=labels)
    found = profile.profile(path, data=tmp_path / "d.npz", json=tmp_path / "p.json", trace=tmp_path / "t.json")
    figures = {m.name: m for m in found.measurements}
    assert figures["top1"].value == pytest.approx(90) and figures["top1"].n == 150
    assert figures["macs"].value == 8 * 16 + 16 * 3 and figures["file_bytes"].value == path.stat().st_size
    assert {m.target for m in found.measurements} == {"host"} and found.exit_code == 0
    written = json.loads((tmp_path / "p.json").read_text())
    assert (
        written["schema"] == "edgekd.profile/1" and results.measurements(written["measurements"]) == found.measurements
    )
    kinds = {e.get("cat") for e in json.loads((tmp_path / "t.json").read_text())["traceEvents"]}
    assert {"operator", "process", "inference"} <= kinds
    assert str(tmp_path) not in (tmp_path / "t.json").read_text() + (tmp_path / "p.json").read_text()
    text = str(found)
    assert (
        all(word in text for word in ("latency_p50_ms", "MatMul", "counted", "exact", "1 thread"))
        and "random" not in text
    )


def test_labels_that_are_no_classes_give_the_mean_error(tmp_path):
    path = network(tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=X, labels=answers(path) + 0.5)
    found = {m.name: m for m in profile.profile(path, data=tmp_path / "d.npz").measurements}
    assert found["mean_error"].value == pytest.approx(0.5, abs=1e-5)
    np.savez(tmp_path / "d.npz", x=X, labels=np.zeros((150, 2)))
    with pytest.raises(UsageError, match="labels: mean_error takes outputs and labels of one size"):
        profile.profile(path, data=tmp_path / "d.npz")


@pytest.mark.parametrize(
    "kind, values", [(T.UINT8, 256), (T.INT8, 256), (T.INT64, 2), (T.BOOL, 2), (T.FLOAT16, None), (T.FLOAT, None)]
)
def test_random_inputs_have_the_files_type_and_repeat(tmp_path, kind, values):
    model = onnx.load(network(tmp_path / "m.onnx", kind=kind))
    (x,) = generated.random(of_model(model)).arrays.values()
    assert x.shape == (16, 8) and x.dtype == h.tensor_dtype_to_np_dtype(kind) and len(np.unique(x)) > 1
    assert values is None or len(np.unique(x)) <= values
    assert np.array_equal(x, generated.random(of_model(model)).arrays["x"])


def test_random_inputs_are_refused_where_the_shape_is_open_or_absurd(tmp_path):
    for shape, message in (
        (["n", "length", 8], "leaves length open"),
        (["n", 2**20, 2**20], "samples of shape"),
    ):
        graph = h.make_graph(
            [h.make_node("Relu", ["x"], ["y"])], "g", [h.make_tensor_value_info("x", T.FLOAT, shape)], []
        )
        with pytest.raises(UsageError, match=message):
            generated.random(of_model(h.make_model(graph)))


def test_compare_takes_data(tmp_path, capsys):
    a, b = network(tmp_path / "a.onnx"), network(tmp_path / "b.onnx")
    np.savez(tmp_path / "d.npz", inputs=X[:, :5])
    assert cli.run(["compare", str(a), str(b), "--data", str(tmp_path / "d.npz"), "--quiet"]) == 2
    assert "the model takes [n, 8]" in capsys.readouterr().err
    np.savez(tmp_path / "d.npz", inputs=X)
    assert cli.run(["compare", str(a), str(b), "--data", str(tmp_path / "d.npz"), "--quiet"]) in (0, 3)


def test_wrong_files_end_in_an_error_of_use(tmp_path):
    good, path = network(tmp_path / "good.onnx"), tmp_path / "m.onnx"
    path.write_bytes(good.read_bytes()[:200])
    with pytest.raises(UsageError, match="not an ONNX file"):
        profile.profile(path)
    with pytest.raises(UsageError, match="leads out of the model's folder"):
        profile.profile(network(path, outside=True))
    with pytest.raises(UsageError) as caught:
        compare.compare(tmp_path / "none.onnx", path)
    assert len(caught.value.problems) == 2
    np.savez(tmp_path / "d.npz", inputs=X[:, :5])
    with pytest.raises(UsageError, match=r"the model takes \[n, 8\]"):
        profile.profile(good, data=tmp_path / "d.npz")


@pytest.mark.parametrize(
    "arrays, messages",
    [
        ({"labels": np.zeros(3)}, ["has no `inputs`"]),
        ({"inputs": X, "labels": np.zeros(3)}, ["same number of rows, at least one \\(x: 150, labels: 3\\)"]),
        (
            {"inputs": X, "x": X[:3], "labels": np.float32(0)},
            ["has `inputs` and also x"],
        ),
        ({"inputs": X[:0]}, ["x: 0"]),
        ({"inputs": np.array([{}, {}], object)}, ["not a valid .npz of plain arrays: inputs.npy holds Python objects"]),
    ],
)
def test_wrong_data_files(tmp_path, arrays, messages):
    path = tmp_path / "d.npz"
    np.savez(path, **arrays)
    with pytest.raises(UsageError) as caught:
        read(Source(path), SIGNATURE)
    assert len(caught.value.problems) == len(messages)
    for message in messages:
        assert caught.match(message)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 no archive", "cut", "flip"])
def test_damaged_data_files(tmp_path, damage):
    path = tmp_path / "d.npz"
    np.savez_compressed(path, inputs=X)
    data = path.read_bytes()
    path.write_bytes(
        data[: len(data) // 2]
        if damage == "cut"
        else data[:200] + b"\0" * 50 + data[250:]
        if damage == "flip"
        else damage
    )
    with pytest.raises(UsageError, match="d.npz"):
        read(Source(path), SIGNATURE)
    with pytest.raises(UsageError, match="No such file"):
        read(Source("nowhere.npz"), SIGNATURE)


def test_a_machine_that_lacks_a_targets_features_measures_nothing_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(
        targets,
        "load",
        lambda name: Target(name="board", title="t", architecture="x86-64", features=("amx_int8", "sve2")),
    )
    facts = environment.describe()
    monkeypatch.setattr(environment, "describe", lambda: {**facts, "architecture": "x86-64", "features": ["avx2"]})
    with pytest.raises(EnvironmentUnfit, match="this machine lacks amx_int8, sve2"):
        profile.profile(network(tmp_path / "m.onnx"), target="board")


def test_the_verbs_on_the_command_line(tmp_path, capsys):
    a, b = str(network(tmp_path / "a.onnx")), str(network(tmp_path / "b.onnx", 8000))
    code = cli.run(["compare", a, b, "--quiet", "--json", str(tmp_path / "c.json")])
    out, written = capsys.readouterr(), json.loads((tmp_path / "c.json").read_text())
    # a control of 95 % excludes 1 in one session of twenty
    assert (code, written["verdict"]) in ((0, "slower"), (3, "inconclusive"))
    assert "B / A" in out.out and ("B is slower" in out.out) == (code == 0) and "A / A" in out.out and out.err == ""
    assert written["comparison"]["ratio"][0] > 1
    assert cli.run(["profile", str(tmp_path / "none.onnx")]) == 2
    assert "can't be read" in capsys.readouterr().err
    assert cli.run(["profile", a, "--target", "hosd"]) == 2
    assert "did you mean `host`?" in capsys.readouterr().err


def test_figures_are_readable():
    shown = [figure(x) for x in (0.0065042, 12.3456, 59049301.4, 8192.0, 3.0, float("inf"))]
    assert shown == ["0.006504", "12.35", "59,049,301", "8,192", "3", "inf"]
