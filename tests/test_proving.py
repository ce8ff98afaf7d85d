"""The same score on every CPU: what is made of answers here and there, and files that really run as another CPU."""

import dataclasses
import itertools
import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekd import intervals, targets
from edgekd.decisions import budget
from edgekd.errors import EnvironmentUnfit
from edgekd.hosts import emulator
from edgekd.measure import instructions, jobs
from edgekd.metrics import top1
from edgekd.progress import Silent
from edgekd.records import Candidate, Deployment, Measurement
from edgekd.run import cross_cpu

AVX2, SSE = targets.load("x86-64-avx2"), targets.load("x86-64-sse42")
EMULATED = shutil.which("qemu-x86_64") is None and shutil.which("qemu-x86_64-static") is None
needs_qemu = pytest.mark.skipif(EMULATED, reason="there is no qemu-x86_64")


def logits(answers, classes=3):
    return np.eye(classes, dtype=np.float32)[np.asarray(answers)]


def test_figures_by_hand():
    """Ten samples, the targets saw eight and six of them; one answer differs, and a value that changes no answer."""
    labels = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
    rows = np.array([9, 1, 2, 3, 4, 5, 6, 7])
    here = logits(labels)[rows]  # all right
    a, b = here.copy(), here[:6].copy()
    a[0] = [0, 1, 0]  # wrong now
    b[1, 2] = 0.25
    found = [cross_cpu.Answers("one", "A", rows, here, a), cross_cpu.Answers("two", "B", rows[:6], here[:6], b)]
    made = cross_cpu.figures(found, labels, [top1()])
    one, two = ({m.name: m for m in made[name]} for name in ("one", "two"))
    assert (
        one["top1"].value == one["host_agreement"].value == 87.5
        and two["top1"].value == two["host_agreement"].value == 100
    )
    assert one["host_agreement"].low == one["host_agreement"].high == 87.5 and one["top1"].low < 87.5 < one["top1"].high
    assert (
        one["target_spread"].value == pytest.approx(100 / 6)
        and one["target_spread"].n == 6
        and one["target_spread"].unit == "pt"
    )
    assert {m.origin for m in (*made["one"], *made["two"])} == {"emulated"} and one["top1"].target == "one"
    assert "91.67 % of the outputs equal" in one["top1"].note and "all outputs" not in two["top1"].note
    assert "here 100.00, one 83.33, two 100.00" in one["target_spread"].note
    assert [m.name for m in made[""]] == ["target_spread"] and cross_cpu.figures([], labels, [top1()]) == {}


def test_the_spread_is_over_boards_too():
    labels, right = np.zeros(10, int), np.array([[1.0, 0.0]] * 10)
    wrong, rows = np.array([[0.0, 1.0]] * 2 + [[1.0, 0.0]] * 8), np.arange(10)
    emulated, board = (
        cross_cpu.Answers("a", "Haswell", rows, right, right),
        cross_cpu.Answers("b", "the board of b", rows, right, wrong),
    )
    made = cross_cpu.figures([emulated], labels, [top1()], boards=[board])
    assert made.keys() == {"", "a"} and [m.value for m in made[""]] == [20.0] and "b 80.00" in made[""][0].note
    assert cross_cpu.figures([], labels, [top1()], boards=[board]) == {}


def test_counts_of_another_counter_are_not_taken_for_this_ones(tmp_path, monkeypatch):
    """What is kept goes by the counter's source and the emulator's version."""
    from types import SimpleNamespace

    from edgekd.hosts import counter

    pi, kept, made = targets.load("raspberry-pi-4"), {}, []
    columns = SimpleNamespace(inputs=np.zeros((4, 2), np.float32), digest="d")
    resolved = SimpleNamespace(data=lambda split: columns, task=SimpleNamespace(inputs=("x",)))
    store = SimpleNamespace(
        observed=lambda key, name: kept.get(name), observe=lambda key, name, value: kept.update({name: value})
    )
    o = SimpleNamespace(
        point=SimpleNamespace(targets=(pi.name,), deployment=Deployment()),
        artifact=SimpleNamespace(key="k" * 64, facts={}),
        file=tmp_path / "m.onnx",
    )
    one = Measurement("instructions", "", 5, 5, 5, 8, None, None, "emulated")
    monkeypatch.setattr(cross_cpu, "launches", lambda wanted: ({t.name: (t, {}) for t in wanted}, []))
    monkeypatch.setattr(instructions, "count", lambda *_, **__: made.append(1) or SimpleNamespace(measurements=(one,)))
    for _ in range(2):
        cross_cpu.instructions(o, [pi], resolved, store, tmp_path, Silent())
    assert len(made) == 1
    (tmp_path / "counter.c").write_text("another")
    monkeypatch.setattr(counter, "SOURCE", tmp_path / "counter.c")
    cross_cpu.instructions(o, [pi], resolved, store, tmp_path, Silent())
    assert len(made) == 2


def test_what_other_answers_disprove_is_no_figure_of_the_target():
    def m(name, target, origin="measured", split="test", value=99.0):
        return Measurement(name, "%", value, value, value, 10, split, target, origin)

    measured = (
        m("top1", "same"),
        m("top1", "other"),
        m("top1", "other", split="validation"),
        m("file_bytes", None, "counted", None),
        m("left", "other", "counted"),
    )
    taken = {t: (m("host_agreement", t, "emulated", value=v),) for t, v in (("same", 100.0), ("other", 99.0))}
    proven = cross_cpu.Proven(taken, {"other": cross_cpu.Answers("other", "A", np.arange(1), logits([0]), logits([1]))})
    kept = cross_cpu.added(measured, proven)
    assert [(k.name, k.target, k.split) for k in kept if k.origin != "emulated"] == [
        ("top1", "same", "test"),
        ("top1", "other", "validation"),
        ("file_bytes", None, None),
        ("left", "other", "test"),
    ]
    assert len(kept) == 6


def test_answers_are_the_same_where_every_one_is():
    def answers(here, there):
        return cross_cpu.Answers("t", "A", np.arange(len(here)), np.asarray(here), np.asarray(there))

    nearly = logits([0, 1]) + np.float32(0.25)
    assert cross_cpu._same(answers(logits([0, 1]), nearly)) and not cross_cpu._same(
        answers(logits([0, 1]), logits([0, 2]))
    )
    assert cross_cpu._same(answers([[1.0], [2.0]], [[1.0], [2.0]])) and not cross_cpu._same(
        answers([[1.0], [2.0]], [[1.0], [2.5]])
    )


def test_the_spreads_interval_holds_for_all_pairs_at_once():
    labels = np.arange(60) % 3
    there = {name: logits((labels + (np.arange(60) % n == 0)) % 3) for name, n in (("one", 5), ("two", 10))}
    found = [cross_cpu.Answers(name, name, np.arange(60), logits(labels), a) for name, a in there.items()]
    records = [top1().records(a, labels) for a in (logits(labels), *there.values())]
    limits = [intervals.paired_of(top1(), a, b, 1 - 0.05 / 3)[1:] for a, b in itertools.combinations(records, 2)]
    alone = [intervals.paired_of(top1(), a, b, 0.95)[1:] for a, b in itertools.combinations(records, 2)]
    told, less = (f"at most {max(abs(v) for pair in way for v in pair):.2g} pt" for way in (limits, alone))
    assert told != less and told in cross_cpu.figures(found, labels, [top1()])[""][0].note


def test_a_budget_on_the_spread_takes_emulated_figures_and_no_other_rule_does():
    spread = Measurement("target_spread", "pt", 0.05, 0.05, 0.05, 2000, "test", "t", "emulated")
    quality = Measurement("top1", "%", 99.0, 98.0, 99.5, 2000, "test", "t", "emulated")
    candidate = Candidate("c", "c", 0, (), ("int8",), "onnx", None, "", (spread, quality))
    lines = [
        budget.parse("target_spread", "max 0.1 pt"),
        budget.parse("target_spread", "max 0.01 pt"),
        budget.parse("top1", "min 90 %"),
    ]
    found = budget.judge(lines, candidate, target="t", split="test", records={}, teacher=None, metrics={"top1": top1()})
    assert [c.verdict for c in found] == ["pass", "fail", "inconclusive"]


def test_devices_are_those_that_this_machine_has_more_than(monkeypatch):
    facts = {"architecture": "x86-64", "features": ["avx2", "fma", "avx512f", "avx512_vnni"]}
    monkeypatch.setattr("edgekd.environment.describe", lambda: facts)
    vnni, own = targets.load("x86-64-avx512-vnni"), dataclasses.replace(AVX2, emulated_as=None)
    assert cross_cpu.devices([vnni, AVX2, own, SSE]) == [AVX2, SSE]
    facts["features"] = ["avx2", "fma"]
    assert cross_cpu.devices([vnni, AVX2, SSE]) == [SSE]


def test_without_an_emulator_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(EnvironmentUnfit, match="qemu-x86_64 on the PATH"):
        emulator.launch(AVX2)
    with pytest.raises(EnvironmentUnfit, match="can't be emulated"):
        emulator.launch(targets.load("x86-64-avx512-vnni"))


def saturating(path, bits):
    """A fully connected int8 layer whose neighbouring weights are as great as they get: pairs of products leave 16 bits
    at 8."""
    greatest = 2 ** (bits - 1) - 1
    weights = np.full((8, 4), greatest, np.int8)
    tensors = {
        "s": np.float32(0.02),
        "z": np.uint8(0),
        "w": weights,
        "ws": np.full(4, 0.01, np.float32),
        "wz": np.zeros(4, np.int8),
    }
    tensors |= {"ys": np.float32(0.2), "yz": np.uint8(0)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=1),
        helper.make_node("MatMul", ["xd", "wd"], ["m"]),
        helper.make_node("QuantizeLinear", ["m", "ys", "yz"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "ys", "yz"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", w]) for n, w in (("x", 8), ("y", 4))]
    constants = [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in tensors.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "g", values[:1], values[1:], constants), opset_imports=[helper.make_opsetid("", 20)]
    )
    model.ir_version = 10
    onnx.save(model, path)
    return path


@needs_qemu
def test_a_file_that_saturates_is_found_out_and_seven_bits_are_not(tmp_path):
    x = np.random.default_rng(0).uniform(0, 5, (40, 8)).astype(np.float32)
    for target, bits, equal in ((AVX2, 8, False), (AVX2, 7, True), (SSE, 8, True)):
        path = saturating(tmp_path / f"{bits}.onnx", bits)
        here = jobs.score(path, x, folder=tmp_path / f"here{bits}")["y"]
        there = jobs.score(path, x, folder=tmp_path / f"{target.name}{bits}", launch=emulator.launch(target))["y"]
        assert (here == there).all() == equal


@needs_qemu
def test_answers_are_kept_by_the_emulators_version():
    assert "version" in emulator.launch(AVX2)["identity"]


@needs_qemu
def test_under_a_cap_the_first_samples_are_answered(tmp_path):
    path, x = saturating(tmp_path / "m.onnx", 7), np.random.default_rng(0).uniform(0, 5, (40, 8)).astype(np.float32)
    (few,) = jobs.score(path, x, folder=tmp_path / "few", launch=emulator.launch(SSE), cap_s=1e-9).values()
    (all_,) = jobs.score(path, x, folder=tmp_path / "all").values()
    assert len(few) == 16 and (few == all_[:16]).all()
