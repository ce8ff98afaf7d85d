"""One file for all targets: when, when not, and what is said of it."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from edgekd import targets
from edgekd.decisions.shared_file import one_file
from edgekd.hosts import local
from edgekd.measure import jobs
from edgekd.progress import Silent
from edgekd.records import Candidate, Deployment, Measurement, TargetResult
from edgekd.run import evaluate
from edgekd.run.plan import Point
from edgekd.store.store import Store


def candidate(id, **targets):
    """targets: {name: (top1 on validation, p50 in ms or None)}"""
    found = []
    for target, (top1, p50) in targets.items():
        found.append(Measurement("top1", "%", top1, top1 - 1, top1 + 1, 100, "validation", target, "measured"))
        if p50 is not None:
            found.append(
                Measurement("latency_p50_ms", "ms", p50, 0.999 * p50, 1.001 * p50, 6, None, target, "measured")
            )
    return Candidate(id, id, 0, (), ("int8",), "onnx", None, "", tuple(found))


def timed(candidates, given, metric, within):
    """The times of a pair as they stand beside the candidates."""
    pair = lambda a, b, t: (
        next(m.value for m in a.measurements if m.unit == "ms")
        / next(m.value for m in b.measurements if m.unit == "ms")
    )
    return one_file(candidates, given, metric, within, pair)


def results(**chosen):
    return {target: TargetResult((), id, None, (), "own") for target, id in chosen.items()}


def test_a_file_that_costs_next_to_nothing_serves_all():
    free, safe = candidate("free", host=(90.0, 1.0)), candidate("safe", host=(89.95, 1.01), old=(89.95, None))
    made = timed([free, safe], results(host="free", old="safe"), "top1", lambda c, t: True)
    assert {t: r.chosen for t, r in made.items()} == {"host": "safe", "old": "safe"}
    assert (
        made["host"].reason
        == "one file for all targets: -0.05 points of top1 on validation against free, 1.01 of its time"
    )
    assert made["old"].reason == "own"


def test_a_file_that_costs_too_much_or_does_not_fit_does_not():
    given = results(host="free", old="safe")
    free = candidate("free", host=(90.0, 1.0))
    for safe in (
        candidate("safe", host=(89.8, 1.0), old=(89.8, None)),
        candidate("safe", host=(90.0, 1.05), old=(90.0, None)),
    ):
        assert timed([free, safe], given, "top1", lambda c, t: True) == given
    safe = candidate("safe", host=(90.0, 1.0), old=(90.0, None))
    assert timed([free, safe], given, "top1", lambda c, t: t != "host") == given
    assert timed([free, candidate("safe", old=(90.0, None))], given, "top1", lambda c, t: True) == given
    alone = results(host="free", old=None)
    assert timed([free], alone, "top1", lambda c, t: True) == alone


def test_for_a_target_without_figures_of_its_own_the_files_count():
    free, safe = candidate("free", host=(90.0, 1.0)), candidate("safe", host=(89.95, 1.01))
    free, safe = (
        replace(c, measurements=(*c.measurements, replace(c.measurements[0], target=None))) for c in (free, safe)
    )
    made = timed([free, safe], results(host="free", board="safe"), "top1", lambda c, t: True)
    assert {t: r.chosen for t, r in made.items()} == {"host": "free", "board": "free"}
    free = replace(free, measurements=tuple(m for m in free.measurements if m.target is not None))
    given = results(host="safe", board="free")
    assert timed([safe, free], given, "top1", lambda c, t: c is safe) == given, (
        "what free answers is not known for the board"
    )


def test_predicted_times_are_held_to_the_share_too():
    def board(id, p50):
        c = candidate(id, pi=(90.0, p50))
        guess = [
            replace(m, origin="predicted", low=m.value / 2, high=2 * m.value) if m.unit == "ms" else m
            for m in c.measurements
        ]
        return replace(c, measurements=(*guess, *candidate(id, host=(90.0, 1.0)).measurements))

    given = results(host="a", pi="b")
    assert timed([board("a", 1.8), board("b", 1.0)], given, "top1", lambda c, t: c.id == "a") == given
    made = timed([board("a", 1.01), board("b", 1.0)], given, "top1", lambda c, t: c.id == "a")
    assert made["pi"].chosen == "a" and "time" not in made["pi"].reason


def test_the_pair_decides_whatever_the_intervals_say():
    """Two files whose own times can't be told apart: their ratio, interleaved, is what counts."""
    free, safe = candidate("free", host=(90.0, 1.0)), candidate("safe", host=(90.0, 1.03), old=(90.0, None))
    wide = [replace(c, measurements=tuple(replace(m, low=0.1, high=9) for m in c.measurements)) for c in (free, safe)]
    given, asked = results(host="free", old="safe"), []

    def pair(a, b, target, ratio=1.021):
        asked.append((a.id, b.id, target))
        return ratio

    assert one_file(wide, given, "top1", lambda c, t: True, pair) == given and asked == [("safe", "free", "host")]
    # the control excluded 1
    assert one_file(wide, given, "top1", lambda c, t: True, lambda a, b, t: float("nan")) == given
    made = one_file(wide, given, "top1", lambda c, t: True, lambda a, b, t: pair(a, b, t, 1.02))
    assert made["host"].chosen == "safe" and made["host"].reason.endswith("1.02 of its time")


def test_a_pair_that_noise_hid_is_timed_again_and_one_that_was_told_is_kept(tmp_path, monkeypatch):
    told = [("inconclusive", (1.5, 1.4, 1.6)), ("slower", (1.1, 1.0, 1.2))]

    def compare(a, b, inputs, session):
        assert not session.folder.exists()
        session.folder.mkdir(parents=True)
        verdict, ratio = told.pop(0)
        return SimpleNamespace(verdict=verdict, ratio=ratio)

    monkeypatch.setattr(jobs, "compare", compare)
    point = lambda id: Point(id, id, 0, (), (), "step", "export", ("host",))
    a, b = (SimpleNamespace(artifact=SimpleNamespace(key=k * 64, facts={}), file=k, point=point(k)) for k in "ab")
    task = SimpleNamespace(inputs=("x",))
    resolved = SimpleNamespace(task=task, data=lambda split: SimpleNamespace(inputs={"x": np.zeros((2, 3))}))
    host = local.host()
    given = (a, b, targets.host(host.facts), resolved, Store(tmp_path / "store"), host, tmp_path, Silent())
    assert (
        math.isnan(evaluate.ratio(*given)) and [evaluate.ratio(*given) for _ in range(2)] == [1.1, 1.1] and told == []
    )
    other = SimpleNamespace(
        artifact=a.artifact, file="c", point=replace(a.point, deployment=Deployment("onnx", "other"))
    )
    assert math.isnan(evaluate.ratio(other, *given[1:])) and math.isnan(evaluate.ratio(a, other, *given[2:]))
