"""The front against a brute-force oracle, and the choice by the contract's rule."""

import dataclasses
import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd import intervals
from edgekd.decisions import budget
from edgekd.decisions.choose import choose
from edgekd.decisions.front import front
from edgekd.decisions.int8_speed import slower
from edgekd.records import Candidate, Measurement

SELECT = SimpleNamespace(maximize=("top1",), minimize=("latency_p50_ms", "file_bytes"), slower_int8=False)
numbers = st.one_of(st.integers(0, 4).map(float), st.just(math.nan))
tables = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.lists(numbers, min_size=width, max_size=width), max_size=9)
)


def dominates(a, b):
    pairs = [(math.inf if math.isnan(x) else x, math.inf if math.isnan(y) else y) for x, y in zip(a, b, strict=True)]
    return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)


@given(tables)
@settings(max_examples=300, deadline=None)
def test_front_is_what_nothing_dominates(rows):
    assert front(rows) == tuple(i for i, row in enumerate(rows) if not any(dominates(other, row) for other in rows))


def test_front_by_hand():
    assert front([(1, 5), (2, 4), (3, 4), (1, 5), (math.nan, 1)]) == (0, 1, 3, 4)
    assert front([]) == ()
    assert front([(math.nan,), (math.nan,)]) == (0, 1)


def counted(name, value, unit=""):
    return Measurement(name, unit, value, value, value, 1, None, None, "counted")


def measured(name, value, half=0.0, unit="ms", split=None, target="host"):
    return Measurement(name, unit, value, value - half, value + half, 9, split, target, "measured")


def candidate(id, top1, p50, size, *, half=0.0, seed=0, point=None, test=99.9, macs=1000, quality_half=0.0):
    quality = [measured("top1", top1, quality_half, "%", "validation"), measured("top1", test, 0, "%", "test")]
    cost = [measured("latency_p50_ms", p50, half), counted("file_bytes", size, "B"), counted("macs", macs)]
    return Candidate(id, point or id, seed, (), (), "onnx", None, "00", (*quality, *cost))


def within(lines, **gate):
    rules = budget.rules({"any": lines, **gate}, "host")
    return lambda c: budget.judge(rules, c, target="host", split="validation", point_estimate=True)


def pick(candidates, lines=None, select=SELECT, **more):
    return choose(candidates, target="host", select=select, within=within(lines or {}), **more)


def test_the_fastest_within_the_budgets_is_chosen_on_validation():
    found = pick(
        [candidate("slow", 97, 3, 30), candidate("good", 95, 2, 30), candidate("fast", 80, 1, 30, test=99.99)],
        {"top1": "min 90 %"},
    )
    assert found.chosen == "good"
    assert found.front == ("slow", "good", "fast")
    assert found.reason == "2 of 3 within the budgets; lowest latency_p50_ms"


def test_test_figures_decide_nothing():
    one, two = candidate("one", 95, 2, 30, test=50), candidate("two", 96, 2, 30, test=99)
    turned = [candidate("one", 95, 2, 30, test=99), candidate("two", 96, 2, 30, test=9)]
    turned = [dataclasses.replace(c, measurements=c.measurements[::-1]) for c in turned]
    assert pick(turned).chosen == "two"  # the figures of test come first here, and would decide the tie the other way
    swapped = [dataclasses.replace(one, measurements=candidate("one", 95, 2, 30, test=99).measurements), two]
    assert pick([one, two], {"top1": "min 90 %"}) == pick(swapped, {"top1": "min 90 %"})


@pytest.mark.parametrize(
    "a, b, chosen, how",  # top1, p50, its half interval, bytes, MACs, half interval of top1
    [
        # the intervals overlap
        ((90, 1.00, 0.10, 40), (90, 1.05, 0.10, 30), "b", "lowest file_bytes (tied in latency_p50_ms)"),
        ((90, 1.00, 0.01, 40), (90, 1.05, 0.01, 30), "a", "lowest latency_p50_ms"),  # they don't
        ((91, 1, 0, 30, 9, 0.1), (92, 1, 0, 30, 9, 0.1), "b", "highest top1 (tied in latency_p50_ms, file_bytes)"),
        ((91, 1, 0, 30, 9, 1.0), (92, 1, 0, 30, 8, 1.0), "b", "lowest macs (tied in latency_p50_ms, file_bytes, top1)"),
        ((90, 1, 0, 30), (90, 1, 0, 30), "a", "first by name"),
    ],
)
def test_differences_inside_of_the_intervals_are_ties(a, b, chosen, how):
    def make(id, top1, p50, half, size, macs=1000, quality_half=0.0):
        return candidate(id, top1, p50, size, half=half, macs=macs, quality_half=quality_half)

    found = pick([make("b", *b), make("a", *a)])
    assert found.chosen == chosen
    assert how in found.reason


def test_nothing_within_budget_shows_the_nearest_and_by_how_much():
    found = pick([candidate("far", 80, 1, 30), candidate("near", 89.5, 1, 30)], {"top1": "min 90 %"})
    assert found.chosen is None
    assert (
        found.reason
        == "none of 2 candidates is within the budgets; on validation the nearest is near: top1 is 0.5 % beyond "
        "`min 90 %`"
    )
    # by their mean
    lone = pick(
        [candidate("p.s0", 80, 1, 30, point="p"), candidate("p.s1", 89, 1, 30, point="p", seed=1)], {"top1": "min 90 %"}
    )
    assert (
        lone.reason
        == "the only candidate is not within the budgets; on validation the nearest is p: top1 is 5.5 % beyond "
        "`min 90 %`"
    )


def test_nearest_counts_shares_of_the_limits():
    # 10 B of 100 B is nearer than 0.5 ms of 1 ms
    near, far = candidate("near", 90, 1, 110), candidate("far", 90, 1.5, 99)
    assert (
        "nearest is near: file_bytes is 10 B beyond"
        in pick([far, near], {"file_bytes": "max 100 B", "latency_p50_ms": "max 1 ms"}).reason
    )


def test_references_are_never_chosen_nor_on_the_front():
    teacher, student = candidate("teacher", 99, 0.1, 1), candidate("s", 90, 2, 30)
    assert pick([teacher, student]).front == ("s",)
    assert pick([student, candidate("gen1", 99, 0.1, 1)], references=("gen1",)).chosen == "s"


def test_the_control_is_chosen_where_it_is_better():
    """It learned from labels alone: what the teacher's answers spoiled must not be delivered in its place."""
    alone, taught = candidate("alone", 92, 1, 30), candidate("distill", 89, 1, 30)
    assert (
        pick([candidate("teacher", 99, 5, 100), alone, taught], {"top1": "min 90 %"}, references=("teacher",)).chosen
        == "alone"
    )
    found = pick(
        [candidate("alone-quantize", 90, 1, 30, quality_half=2), candidate("quantize", 90, 1, 30, quality_half=2)]
    )
    assert found.chosen == "quantize" and "distilled points are preferred to the control (tied in" in found.reason
    found = pick(
        [candidate("alone-quantize", 91, 1, 30, quality_half=2), candidate("quantize", 90, 1, 30, quality_half=2)]
    )
    # at the same cost the worse is not delivered
    assert found.chosen == "alone-quantize" and "highest top1 by its value (tied in" in found.reason
    assert pick([candidate("alone", 91, 1, 30), candidate("alone-q", 91, 1, 30)]).chosen == "alone"


def test_unknown_figures_are_no_reason_to_leave_a_candidate_out():
    found = pick([candidate("a", 90, 1, 30)], {"activation_bytes": "max 5 kB"})
    assert found.chosen == "a" and "not known: activation_bytes" in found.reason


def test_who_is_not_known_to_be_within_loses_to_who_is():
    fast = candidate("fast", 90, 1, 30)
    blind = dataclasses.replace(fast, measurements=tuple(m for m in fast.measurements if m.name != "top1"))
    found = pick([blind, candidate("slow", 95, 2, 40)], {"top1": "min 88 %"})
    assert found.chosen == "slow" and found.reason.startswith("1 of 2 within")
    # but before who is known not to be
    assert pick([blind, candidate("slow", 80, 2, 40)], {"top1": "min 88 %"}).chosen == "fast"
    assert pick([blind, candidate("slow", 95, 2, 40)], {"top1": {"is": "min 88 %", "level": "warn"}}).chosen == "fast"


def test_a_point_is_known_by_any_of_its_seeds():
    seeds = [candidate("p.s0", 90, 1, 30, point="p"), candidate("p.s1", 90, 1, 30, point="p", seed=1)]
    seeds[1] = dataclasses.replace(seeds[1], measurements=tuple(m for m in seeds[1].measurements if m.name != "top1"))
    assert pick([*seeds, candidate("slow", 95, 2, 40)], {"top1": "min 88 %"}).chosen == "p.s0"


def test_warnings_leave_no_candidate_out():
    assert pick([candidate("a", 80, 1, 30)], {"top1": {"is": "min 90 %", "level": "warn"}}).chosen == "a"


def test_candidates_of_another_target_do_not_compete():
    other = dataclasses.replace(
        candidate("w8", 99, 1, 1),
        measurements=(counted("file_bytes", 1, "B"), measured("latency_p50_ms", 0.1, target="pi")),
    )
    found = pick([candidate("w7", 90, 2, 30), other])
    assert (found.front, found.chosen) == (("w7",), "w7")


def test_nothing_was_made():
    assert pick([candidate("teacher", 99, 1, 1)]).reason == "no candidate was made for host"


def test_a_key_that_nobody_has_is_passed_over():
    select = SimpleNamespace(maximize=("top1",), minimize=("instructions", "file_bytes"), slower_int8=False)
    found = pick([candidate("a", 95, 1, 40), candidate("b", 90, 2, 30)], select=select)
    assert (found.front, found.chosen) == (("a", "b"), "b")


def test_who_lacks_a_figure_that_others_have_is_last():
    bare = dataclasses.replace(
        candidate("bare", 99, 0.1, 1),
        measurements=candidate("bare", 99, 0.1, 1).measurements[:2] + (measured("load_ms", 1),),
    )
    assert pick([bare, candidate("b", 90, 2, 30)]).chosen == "b"


def test_of_several_figures_what_was_measured_on_the_target_counts():
    """Before what was predicted, and before the file's own; one without finite limits is none."""
    a, b = candidate("a", 90, 2, 30), candidate("b", 90, 3, 20)
    predicted = dataclasses.replace(measured("latency_p50_ms", 1), origin="predicted")
    for more in (predicted, measured("latency_p50_ms", 1, target=None), measured("latency_p50_ms", 1, math.inf)):
        for measurements in ((*b.measurements, more), (more, *b.measurements)):
            assert pick([a, dataclasses.replace(b, measurements=measurements)]).chosen == "a"


def test_the_front_is_of_values_whatever_their_intervals():
    a, wide = (
        candidate("a", 90, 1.0, 30, half=0.01, quality_half=0.2),
        candidate("wide", 89.9, 1.1, 30, half=0.5, quality_half=5),
    )
    assert pick([a, wide, candidate("narrow", 89.95, 1.2, 30)]).front == ("a",)


def test_the_best_value_sets_the_tie_and_the_best_seed_is_delivered_whatever_their_intervals():
    wide, narrow = candidate("wide", 91, 1, 30, quality_half=1), candidate("narrow", 90.5, 1, 30, quality_half=0.1)
    # reaches into that of the highest
    assert pick([wide, narrow, candidate("third", 90.2, 1, 30, macs=8, quality_half=0.1)]).chosen == "third"
    near, loose = candidate("near", 90, 1.0, 30, half=0.01), candidate("loose", 90, 1.05, 40, half=0.3)
    # a wide interval opens no tie to who is slower
    assert pick([near, loose, candidate("small", 90, 1.2, 20, half=0.01)]).chosen == "near"
    seeds = [
        candidate("p.s0", 90, 1, 30, point="p", quality_half=0.1),
        candidate("p.s1", 91, 1, 30, point="p", seed=1, quality_half=3),
    ]
    assert pick(seeds).chosen == "p.s1"


def test_a_seed_without_quality_is_delivered_last():
    seeds = [candidate(f"p.s{i}", 90, 1, 30, point="p", seed=i) for i in range(3)]
    seeds[0] = dataclasses.replace(seeds[0], measurements=tuple(m for m in seeds[0].measurements if m.name != "top1"))
    assert pick(seeds).chosen == "p.s1"


def test_seeds_are_one_point_that_counts_by_its_mean():
    # mean 89
    lucky = [candidate("lucky.s0", 96, 1, 30, point="lucky"), candidate("lucky.s1", 82, 1, 30, point="lucky", seed=1)]
    steady = [
        candidate("steady.s0", 91, 2, 30, point="steady"),
        candidate("steady.s1", 92, 2, 30, point="steady", seed=1),
    ]
    found = pick([*lucky, *steady], {"top1": "min 90 %"})
    assert found.chosen == "steady.s1"  # of the point's seeds, the best on validation
    assert found.reason.startswith("1 of 2 within the budgets")
    assert set(found.front) == {"lucky.s0", "lucky.s1", "steady.s0", "steady.s1"}


def test_of_a_point_within_by_its_mean_a_seed_that_breaks_nothing_is_delivered():
    seeds = [candidate("p.s0", 89, 1, 30, point="p"), candidate("p.s1", 95, 1, 30, point="p", seed=1)]
    assert pick(seeds, {"top1": "min 90 %"}).chosen == "p.s1"
    select = SimpleNamespace(maximize=(), minimize=("latency_p50_ms",), slower_int8=False)
    assert pick(seeds, {"top1": "min 90 %"}, select=select).chosen == "p.s1"


def both(float_ms, int8_ms, *, half=0.05, float_top1=95):
    """A float model and the int8 file made of it, a fourth of its size."""
    whole = dataclasses.replace(
        candidate("prune", float_top1, float_ms, 40, half=half), stages=("distill", "prune", "float32")
    )
    small = candidate("quantize", 95, int8_ms, 10, half=half)
    return [whole, dataclasses.replace(small, stages=("distill", "prune", "quantize", "int8"), parents=("prune",))]


def test_int8_that_is_slower_than_its_float_parent_is_not_chosen_for_its_bytes():
    bytes_first = SimpleNamespace(maximize=("top1",), minimize=("file_bytes",), slower_int8=False)
    found = pick(both(1.0, 1.4), select=bytes_first)
    assert found.chosen == "prune"
    late = "int8 is not faster here: quantize takes 1.40 of the time (1.29 to 1.53) of prune"
    assert found.reason == f"2 of 2 within the budgets; the others are slower as int8; {late}"
    assert pick(both(1.0, 0.6), select=bytes_first).chosen == "quantize"
    # their intervals overlap: slower is not shown
    assert pick(both(1.0, 1.04), select=bytes_first).chosen == "quantize"


def test_slower_int8_is_chosen_where_the_recipe_accepts_it_or_float_is_not_within_the_budgets():
    accepting = SimpleNamespace(maximize=("top1",), minimize=("file_bytes",), slower_int8=True)
    found = pick(both(1.0, 1.4), select=accepting)
    assert found.chosen == "quantize" and found.reason.endswith(
        "; as int8 it takes 1.40 of the time (1.29 to 1.53) of its float parent prune"
    )
    bytes_first = SimpleNamespace(maximize=("top1",), minimize=("file_bytes",), slower_int8=False)
    assert pick(both(1.0, 1.4), {"file_bytes": "max 20 B"}, select=bytes_first).chosen == "quantize"


def test_of_predicted_times_the_ratio_decides_as_far_as_it_can_be_known():
    """On a board that was timed from a factor on; on one that wasn't, which of both is faster isn't known, and int8
    stays."""
    bytes_first = SimpleNamespace(maximize=("top1",), minimize=("file_bytes",), slower_int8=False)

    def guessed(float_ms, int8_ms, kind="calibrated", half=0.9):
        found = both(float_ms, int8_ms, half=half * float_ms)
        as_predicted = lambda m: (
            dataclasses.replace(m, origin="predicted", note=f"{kind}: ...") if m.unit == "ms" else m
        )
        return [dataclasses.replace(c, measurements=tuple(map(as_predicted, c.measurements))) for c in found]

    clear = intervals.CLEAR["calibrated"]
    assert pick(guessed(1.0, clear + 0.01), select=bytes_first).chosen == "prune"
    assert pick(guessed(1.0, clear - 0.01), select=bytes_first).chosen == "quantize"
    assert pick(guessed(1.0, clear + 0.5, "transferred"), select=bytes_first).chosen == "quantize"
    # what it rests on isn't known
    assert pick(guessed(1.0, clear + 0.5, "of another edgekd"), select=bytes_first).chosen == "quantize"
    # their intervals are apart
    assert pick(guessed(1.0, 3.0, "transferred", half=0.1), select=bytes_first).chosen == "prune"
    assert pick(both(1.0, 1.4, half=0.9), select=bytes_first).chosen == "quantize"  # measured so badly, it isn't shown


def test_predicted_times_are_as_clear_as_the_benchmark_says():
    ways = json.loads((Path(__file__).parent.parent / "benchmarks" / "latency" / "result.json").read_text())["ways"]
    found = {
        w: ways[w]["signs"]["all"]["clear"] for w in ("boards 0, networks", "boards 3, networks", "boards 5, networks")
    }
    assert (
        max(found["boards 3, networks"], found["boards 5, networks"])
        <= intervals.CLEAR["calibrated"]
        <= 1.2 * max(v for v in found.values() if v)
    )


def test_pairs_of_one_session_show_what_intervals_apart_can_not():
    """Both drift by a third through the session, and int8 takes 5 % longer in each of six pairs; in another session
    they are no pairs."""
    drift = (1.0, 1.06, 1.12, 1.18, 1.24, 1.3)

    def timed(float_session, int8_session):
        each = {"prune": (drift, float_session), "quantize": (tuple(1.05 * x for x in drift), int8_session)}
        pairs = lambda c, m: dataclasses.replace(m, each=each[c.id][0], pairing=each[c.id][1]) if m.unit == "ms" else m
        return [
            dataclasses.replace(c, measurements=tuple(pairs(c, m) for m in c.measurements))
            for c in both(1.15, 1.2, half=0.2)
        ]

    bytes_first = SimpleNamespace(maximize=("top1",), minimize=("file_bytes",), slower_int8=False)
    found = pick(timed("monday", "monday"), select=bytes_first)
    assert found.chosen == "prune" and found.reason.endswith("quantize takes 1.05 of the time (1.05 to 1.05) of prune")
    assert pick(timed("monday", "tuesday"), select=bytes_first).chosen == "quantize"
    assert pick(timed("", ""), select=bytes_first).chosen == "quantize"


def test_an_int8_file_made_of_another_is_slower_than_nothing():
    """Beside int8 there is no float to go back to."""
    (_, int8), figures = both(1.0, 1.4), {"quantize": (1.0, 0.9, 1.1), "again": (2.0, 1.9, 2.1)}
    again = dataclasses.replace(int8, id="again", point="again", parents=("quantize",))
    points = {"quantize": [dataclasses.replace(int8, parents=())], "again": [again]}
    assert slower(points, "host", lambda seeds, name, target: figures[seeds[0].id]) == {}


def test_a_target_without_times_is_none_where_int8_can_be_slower():
    untimed = [
        dataclasses.replace(c, measurements=tuple(m for m in c.measurements if m.unit != "ms")) for c in both(1.0, 1.4)
    ]
    assert pick(untimed).chosen == "quantize"


values = st.tuples(st.integers(80, 99), st.integers(1, 4), st.integers(10, 13), st.integers(0, 1))


def oracle(entries, floor):
    """The contract's rule for exact ties, by sorting; intervals by elimination."""
    left = [e for e in entries if e[1] >= floor]
    for key, half in ((2, lambda e: e[4] / 2), (3, lambda e: 0)):
        if left:
            best = min(left, key=lambda e: (e[key], e[key] + half(e)))
            left = [e for e in left if e[key] - half(e) <= best[key] + half(best)]
    return min(left, key=lambda e: (-e[1], e[3], e[0]))[0] if left else None


@given(st.lists(values, min_size=1, max_size=6))
@settings(max_examples=200, deadline=None)
def test_choice_is_the_oracles_in_any_order(rows):
    entries = [(f"c{i}", *row) for i, row in enumerate(rows)]
    made = [candidate(id, top1, p50, size, half=half / 2) for id, top1, p50, size, half in entries]
    expected = oracle(entries, 90)
    for order in itertools.islice(itertools.permutations(made), 4):
        found = pick(order, {"top1": "min 90 %"})
        assert found.chosen == expected
