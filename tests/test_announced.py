"""How long something takes is said before, where it is long: by what the first run took."""

import numpy as np
import pytest
from test_measure import TINY, network

from edgekd import cli, progress
from edgekd.measure import jobs, session
from edgekd.measure.session import CONTROL, EFFORTS, Ran, entry


class Said(progress.Silent):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def test_seconds_of_a_process_by_hand():
    slow = Ran(open_s=2.0, run_s=0.5)
    assert session.seconds(entry("s0", "memory", 0, runs=5), slow) == pytest.approx(0.2 + 2 + 2.5)
    assert session.seconds(entry("s0", "bare", 0, runs=5), slow) == pytest.approx(0.2)
    operators = entry("s0", "operators", 0, warmup_runs=3, runs=100, seconds=0.3)
    assert session.seconds(operators, slow) == pytest.approx(0.2 + 2 + 4 * 0.5)
    # first inference, warm-up: 20 inferences, cut off after 5 s; 20 inferences
    timed = entry("s0", "time", 0, **EFFORTS["standard"].steady)
    assert session.seconds(timed, slow) == pytest.approx(0.2 + 2 + 0.5 + 5 + 10)
    # a fast file: 0.5 s of warm-up, 1 s of steady state
    assert session.seconds(timed, Ran(0.1, 1e-6)) == pytest.approx(0.2 + 0.1 + 1.5, abs=1e-3)


def test_a_long_session_is_announced_with_the_sum_of_its_processes():
    said, ran = Said(), [Ran(2.0, 0.5), Ran(1.0, 0.25)]
    session.announce(said, ran, "quick")
    of = {"s0": ran[0], "s1": ran[1], CONTROL: ran[0]}
    entries = session.schedule(list(of), EFFORTS["quick"].processes, EFFORTS["quick"])
    least = sum(session.seconds(e, of[e["subject"]]) for e in entries)
    assert said.lines == [f"timing will take about {least:.0f} s (500 ms an inference, 6 processes or more)"]
    session.announce(said, ran, "standard")
    assert said.lines[1].startswith("timing will take about ") and said.lines[1].endswith("; --preset quick takes less")


def test_a_short_session_is_not_announced(monkeypatch):
    monkeypatch.setitem(EFFORTS, "quick", TINY)
    said = Said()
    session.announce(said, [Ran(0.01, 1e-5)], "quick")
    session.announce(said, [], "quick")
    assert said.lines == []


def test_both_verbs_say_it_before_they_time(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(jobs.EFFORTS, "quick", TINY)
    monkeypatch.setattr(session, "TOLD", 0.0)
    file = str(network(tmp_path / "a.onnx"))
    for words, timed in ((["profile", file], "time the file"), (["compare", file, file], "time both files")):
        cli.run([*words, "--preset", "quick"])
        lines = capsys.readouterr().err.splitlines()
        (told,) = [i for i, line in enumerate(lines) if line.startswith("timing will take about")]
        (after,) = [i for i, line in enumerate(lines) if line.startswith(timed)]
        assert told < after and "6 processes or more" in lines[told]


def test_what_a_file_takes_is_measured(tmp_path):
    (one,) = jobs.tried({"a": network(tmp_path / "a.onnx")}, {"x": np.zeros((1, 8), np.float32)},
                        folder=tmp_path / "job")  # fmt: skip
    assert 0 < one.run_s < one.open_s


@pytest.mark.parametrize("total, told", [(4, []), (40, ["looking will take about 78 s (40 of them)"])])
def test_work_of_many_parts_is_announced_after_the_first(monkeypatch, total, told):
    clock = iter([5.0, 7.0, 9.0, 11.0])  # the first part takes 2 s
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    said, steps = Said(), []
    advance = progress.foretold(said, lambda *step: steps.append(step), "looking")
    for done in range(4):
        advance(done, total)
    assert said.lines == told and steps == [(d, total, "") for d in range(4)]
