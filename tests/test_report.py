"""Reports: what is shown is what the result says, nothing of a name gets through as code, and CI formats are valid."""

import dataclasses
import html.parser
import json
import math
import re
from xml.etree import ElementTree

import pytest

from edgekd import results
from edgekd.records import Candidate, Check, Measurement, Result, TargetResult
from edgekd.report import charts, figures, machine, markdown, notes, numbers, page, rows, terminal

HOSTILE = "<script>alert(1)</script>\x1b[31m&\"'|`"
ENVIRONMENT = {
    "cpu": "Example CPU",
    "features": ["avx2"],
    "virtual": True,
    "governor": None,
    "versions": {"onnxruntime": "1.31.1"},
}


def counted(name, value, unit=""):
    return Measurement(name, unit, value, value, value, 1, None, None, "counted")


def measured(name, unit, value, half, *, split=None, target="host", n=20):
    return Measurement(name, unit, value, value - half, value + half, n, split, target, "measured", 1, "abc123")


def candidate(id, top1, size, macs, p50, *, seed=0, agreement=None, point=None, target="host"):
    quality = [
        measured("top1", "%", top1 + extra, 1.2, split=split, target=target, n=360)
        for split, extra in (("validation", 0.61), ("test", 0))
    ]
    if agreement is not None:
        quality += [
            measured("agreement", "%", agreement, 0.9, split=split, target=target, n=360)
            for split in ("validation", "test")
        ]
    cost = [
        counted("file_bytes", size, "B"),
        counted("parameters", size // 4),
        counted("macs", macs),
        counted("activation_bytes", 5120, "B"),
    ]
    times = [
        measured("latency_p50_ms", "ms", p50, p50 / 20, target=target),
        measured("latency_p90_ms", "ms", p50 * 1.2, p50 / 10, target=target),
    ]
    memory = [measured("peak_rss_over_runtime_bytes", "B", 1.5e6 + size, 1e5, target=target)]
    stages = tuple(id.split("."))
    return Candidate(
        id, point or id, seed, (), stages, "onnx", f"models/{id}.onnx", "ab" * 32, (*quality, *cost, *times, *memory)
    )


@pytest.fixture
def result():
    found = (
        candidate("teacher", 98.33, 812345, 20_123_456, 0.812),
        candidate("alone", 94.17, 98765, 1_234_567, 0.0823, agreement=93.9),
        candidate("distill", 96.94, 98765, 1_234_567, 0.0819, agreement=97.2),
        candidate("prune-0.5", 95.56, 51234, 612_345, 0.0517, agreement=96.1),
        candidate("distill.int8", 96.67, 31234, 1_234_567, 0.0611, agreement=97.0),
        candidate("prune-0.5.int8", 95.28, 17654, 612_345, 0.0388, agreement=95.8),
        candidate("prune-0.35.int8", 88.06, 12345, 423_456, 0.0301, agreement=88.9),
    )
    checks = (
        Check("host", "distill.int8", "top1", "min 88 %", "pass", "error", 96.67, 95.4, 97.9, "%", "measured",
              "recipe.toml: gate.any.top1"),
        Check("host", "distill.int8", "file_bytes", "max 30 kB", "fail", "error", 31234, 31234, 31234, "B", "counted",
              "recipe.toml: gate.any"),
        Check("host", "distill.int8", "latency_p50_ms", "max 0.06 ms", "inconclusive", "error", 0.0611, 0.058, 0.064,
              "ms", "measured", "",
              "the interval holds the limit"),
        Check("host", "distill.int8", "ece", "max 1 %", "fail", "warn", 2.5, 2.0, 3.0, "%", "measured",
              "recipe.toml: gate.any.ece"),
    )  # fmt: skip
    target = TargetResult(
        ("distill.int8", "prune-0.5.int8", "prune-0.35.int8"), "distill.int8", "fail", checks, "best by latency_p50_ms"
    )
    steps = (
        {"step": "teacher", "stage": "train", "reused": False, "seconds": 12.34},
        {"step": "distill", "stage": "distill", "reused": True},
    )
    references = {"teacher": "teacher", "alone": "alone"}
    return Result("digits", "cd" * 32, {"abc123": ENVIRONMENT}, references, found, {"host": target}, steps)


@pytest.fixture
def run(tmp_path, result):
    results.write(result, tmp_path / "result.json")
    (tmp_path / "recipe.toml").write_text('task = "digits"\n# ' + HOSTILE.replace("\x1b", "") + "\n")
    return tmp_path


# ---------------------------------------------------------------- numbers as text


@pytest.mark.parametrize(
    "m, value, interval",
    [
        (measured("top1", "%", 96.9444, 1.2), "96.9", "[95.7, 98.1]"),
        (measured("latency_p50_ms", "ms", 0.061234, 0.0031), "0.0612", "[0.0581, 0.0643]"),
        (measured("latency_p50_ms", "ms", 1234.5, 30.0), "1,234", "[1,204, 1,264]"),
        (counted("file_bytes", 98496), "98,496", ""),
        (measured("peak_rss_bytes", "B", 12_345_678.0, 400_000.0), "12.35", "[11.95, 12.75]"),  # MB
        (measured("top1", "%", 50.0, 0.0), "50", ""),
    ],
)
def test_figures_show_the_digits_that_their_interval_deserves(m, value, interval):
    assert (numbers.value(m), numbers.interval(m)) == (value, interval)


@pytest.mark.parametrize(
    "value, text",
    [
        (1_234_567, "1.23M"),
        (999_999, "1M"),
        (999.6, "1k"),
        (96_200, "96.2k"),
        (0.05, "0.05"),
        (0, "0"),
        (-1500, "-1.5k"),
        (5e9, "5G"),
    ],
)
def test_short_numbers(value, text):
    assert numbers.short(value) == text


def test_numbers_that_are_none_are_shown_as_such():
    assert numbers.number(math.nan) == "nan" and numbers.number(-math.inf) == "-inf" and numbers.number(0) == "0"


# ---------------------------------------------------------------- rows


def test_quality_is_that_of_the_test_split(result):
    shown = {r.candidate.id: r for r in rows.rows(result, "host")}
    assert shown["distill.int8"].figures["top1"].value == 96.67  # validation says 97.28
    only = dataclasses.replace(
        result.candidates[0], measurements=(measured("top1", "%", 99.0, 0.5, split="validation"),)
    )
    assert rows.figures(only, "host") == {}


def test_a_targets_own_figure_goes_before_one_for_all_and_anothers_is_not_shown():
    general, own, other = (
        measured("latency_p50_ms", "ms", v, 0.1, target=t) for v, t in ((1.0, None), (2.0, "host"), (3.0, "pi"))
    )
    for order in ((general, own, other), (other, own, general)):
        found = rows.figures(Candidate("a", "a", 0, (), (), "onnx", None, "", order), "host")
        assert found["latency_p50_ms"].value == 2.0
    nan = dataclasses.replace(own, value=math.nan)
    assert rows.figures(Candidate("a", "a", 0, (), (), "onnx", None, "", (nan,)), "host") == {}


def test_references_stand_first_and_other_targets_candidates_are_left_out(result):
    elsewhere = candidate("prune-0.5.int8-pi", 90.0, 1000, 1000, 1.0, target="pi")
    counts = dataclasses.replace(elsewhere, id="other", point="other", measurements=(counted("file_bytes", 5),))
    twin = candidate("alone-1", 94.0, 98765, 1_234_567, 0.08, seed=1, point="alone")
    result = dataclasses.replace(result, candidates=(elsewhere, counts, *result.candidates[::-1], twin))
    shown = rows.rows(result, "host")
    assert [(r.candidate.id, r.role) for r in shown[:3]] == [
        ("teacher", "teacher"),
        ("alone", "alone"),
        ("alone-1", "alone"),
    ]
    assert not {"prune-0.5.int8-pi", "other"} & {r.candidate.id for r in shown} and len(shown) == 8
    unmeasured = dataclasses.replace(result, targets={"mars": TargetResult((), None, None)})
    assert len(rows.rows(unmeasured, "mars")) == 10 and "top1" not in rows.columns(rows.rows(unmeasured, "mars"))
    assert [r.candidate.id for r in shown if r.chosen] == ["distill.int8"] and sum(r.front for r in shown) == 3


def test_smaller_is_the_teachers_figure_over_ours(result):
    shown = rows.rows(result, "host")
    ratios = {r.candidate.id: rows.smaller(r, shown) for r in shown}
    # 812345 / 98765, / 31234
    assert ratios["distill"] == "8.2x" and ratios["distill.int8"] == "26x" and ratios["teacher"] == ""
    assert rows.smaller(shown[2], shown[1:]) == ""  # no teacher


def test_what_is_slower_or_larger_is_called_so_with_the_interval_of_the_ratio(result):
    """Against a teacher of 0.812 ms +- 5 % and 812345 B, with and without pairs."""
    teacher = rows.rows(result, "host")[0]

    def said(p50, half, name="latency_p50_ms", **pairs):
        time = dataclasses.replace(measured("latency_p50_ms", "ms", p50, half), **pairs)
        ours = rows.Row(
            teacher.candidate, "", True, True, {time.name: time, "file_bytes": counted("file_bytes", p50, "B")}
        )
        return rows.beside(ours, [teacher], name)

    assert said(1.624, 0.0812) == "2x slower (1.81 to 2.21)"  # 1.5428 / 0.8526, 1.7052 / 0.7714
    assert said(0.406, 0.0203) == "2x faster (1.81 to 2.21)"
    assert said(0.877, 0.044) == "not clearly slower or faster (0.98 to 1.19 of its time)"
    paired = dataclasses.replace(
        teacher.figures["latency_p50_ms"], each=(0.8, 0.81, 0.82, 0.83, 0.84, 0.85), pairing="one"
    )
    teacher = dataclasses.replace(teacher, figures={**teacher.figures, "latency_p50_ms": paired})
    each = tuple(x * r for x, r in zip(paired.each, (1.05, 1.07, 1.08, 1.08, 1.09, 1.11), strict=True))
    assert said(0.877, 0.044, each=each, pairing="one") == "1.08x slower (1.05 to 1.11)"
    assert said(0.877, 0.044, each=each, pairing="another").startswith("not clearly")
    assert said(1624690, 0, "file_bytes") == "2x larger" and said(812345 / 8, 0, "file_bytes") == "8x smaller"


def test_the_page_calls_nothing_faster_that_is_slower(result):
    """A choice that takes 1.33 times as long as the teacher and has twice its bytes."""
    made = [
        candidate("distill.int8", 96.67, 1_624_690, 1_234_567, 1.08) if c.id == "distill.int8" else c
        for c in result.candidates
    ]
    text = page.render(dataclasses.replace(result, candidates=tuple(made)))
    assert (
        "2x larger and 1.33x slower (1.2 to 1.47) than the teacher" in text
        and "0.75x" not in text
        and "0.5x smaller" not in text
    )
    assert "| 2 |" in markdown.render(dataclasses.replace(result, candidates=tuple(made)))


# ---------------------------------------------------------------- the table at the end of a run


@pytest.mark.parametrize("width", [140, 120, 100])
def test_the_table_fits_and_says_what_it_left_out(result, width):
    text = terminal.table(result, "runs/digits", width=width)
    table = text.partition("\n\n")[0].splitlines()
    assert max(map(len, table)) <= width
    for id in (c.id for c in result.candidates):
        assert sum(id in line.split() for line in table) == 1, id
    assert (" p90 ms" in table[1]) == (width >= 120) and ("p90" in table[-1])
    assert "\x1b" not in text


def test_the_table_marks_chosen_and_front_and_origins(result):
    lines = {
        line.split()[1]: line
        for line in terminal.table(result, width=300).partition("\n\n")[0].splitlines()
        if line[:1] in (">", "*")
    }
    assert lines["distill.int8"][0] == ">" and lines["prune-0.35.int8"][0] == "*" and len(lines) == 3
    for text in ("96.7 [95.5, 97.9]", "31,234", "26x", "1.23M", "0.0611 [0.0580, 0.0642]", "0.073 [0.067, 0.079]"):
        assert text in lines["distill.int8"]
    text = terminal.table(result, width=300)
    assert "top1 % m" in text and "bytes c" in text and "c counted" in text and "predicted" not in text


def test_a_column_of_two_origins_marks_every_cell(result):
    c = result.candidates[3]
    times = tuple(
        dataclasses.replace(m, origin="predicted") if m.name == "latency_p50_ms" else m for m in c.measurements
    )
    found = tuple(dataclasses.replace(o, measurements=times) if o is c else o for o in result.candidates)
    text = terminal.table(dataclasses.replace(result, candidates=found), width=300)
    assert (
        "0.0517 [0.0491, 0.0543] p" in text
        and "0.0611 [0.0580, 0.0642] m" in text
        and "p predicted" in text
        and "p50 ms m" not in text
    )


def test_the_end_says_verdicts_reasons_and_what_to_do_next(result):
    text = terminal.table(result, "runs/my digits")
    assert "host: FAIL, chosen distill.int8 (best by latency_p50_ms)" in text
    assert "  file_bytes max 30 kB: FAIL at 31,234 B counted" in text
    assert (
        "  latency_p50_ms max 0.06 ms: INCONCLUSIVE at 0.0611 [0.058, 0.064] ms measured: the interval holds the limit"
        in text
    )
    assert "  ece max 1 %: FAIL at 2.5 [2, 3] % measured (warning only)" in text
    assert "report: runs/my digits/report.html" in text and "next: edgekd gate 'runs/my digits' --why" in text
    assert (
        "next: edgekd compare 'runs/my digits/models/teacher.onnx' 'runs/my digits/models/distill.int8.onnx' --target "
        "host" in text
    )


def test_nothing_chosen_is_said_with_its_reason(result):
    check = Check("host", "distill", "top1", "min 99 %", "fail", "error", 96.9, 95.0, 98.0, "%", "measured")
    found = TargetResult((), None, "fail", (check,), "the nearest is distill: top1 is 2.1 % too low")
    text = terminal.table(dataclasses.replace(result, targets={"host": found}))
    assert (
        "host: FAIL, nothing chosen (the nearest is distill: top1 is 2.1 % too low)" in text
        and "  distill: top1 min 99 %: FAIL" in text
    )
    assert "compare" not in text
    assert "nothing chosen: the nearest is distill" in page.render(dataclasses.replace(result, targets={"host": found}))


def test_colour_is_for_terminals_and_a_hostile_name_sends_none(result):
    hostile = dataclasses.replace(result, task=HOSTILE, targets={HOSTILE: result.targets["host"]})
    assert "\x1b" not in terminal.table(hostile, HOSTILE) and "\\x1b[31m" in terminal.table(hostile)
    assert "\x1b[" in terminal.table(result, colour=True)
    strip = re.compile(r"\x1b\[[0-9;]*m")
    assert strip.sub("", terminal.table(result, colour=True)) == terminal.table(result, colour=False)


def test_a_result_with_little_in_it_is_shown():
    bare = Candidate("a", "a", 0, (), (), "onnx", None, "")
    empty = Result("t", "", {}, {}, (bare,), {"host": TargetResult((), None, None)})
    assert "host: nothing chosen" in terminal.table(empty)
    assert "# edgekd: t" in markdown.render(empty) and "no machine with its features" in page.render(empty)
    none = dataclasses.replace(empty, candidates=(), targets={"host": TargetResult((), None, None)})
    assert terminal.table(none) and markdown.render(none) and page.render(none)


# ---------------------------------------------------------------- the page


class Reader(html.parser.HTMLParser):
    """What a browser would see: tags, attributes, visible text; complains where tags don't nest."""

    VOID = {"meta", "br", "hr", "line", "circle", "rect", "polyline"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text, self.cells = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)


def hostile_result(result):
    """The result with markup in every text that a file could bring."""
    m = dataclasses.replace(
        result.candidates[4].measurements[0],
        name=HOSTILE,
        unit=HOSTILE,
        note=HOSTILE,
        environment=HOSTILE,
        split="test",
    )
    texts = dict.fromkeys(("id", "point", "form", "file", "sha256"), HOSTILE)
    bad = dataclasses.replace(
        result.candidates[4], **texts, stages=(HOSTILE,), measurements=(m, *result.candidates[4].measurements)
    )
    texts = dict.fromkeys(("target", "candidate", "name", "rule", "unit", "place", "reason"), HOSTILE)
    check = dataclasses.replace(result.targets["host"].checks[1], **texts)
    target = TargetResult((HOSTILE,), HOSTILE, "fail", (check,), HOSTILE)
    facts = {"abc123": ENVIRONMENT, HOSTILE: {HOSTILE: HOSTILE, "list": [HOSTILE], "map": {HOSTILE: HOSTILE}}}
    steps = ({"step": HOSTILE, "stage": HOSTILE, "seconds": HOSTILE},)
    candidates = (result.candidates[0], result.candidates[1], bad)
    return Result(
        HOSTILE,
        HOSTILE,
        facts,
        {"teacher": "teacher", HOSTILE: "alone"},
        candidates,
        {HOSTILE: target, "host": target},
        steps,
    )


def test_nothing_in_a_name_becomes_markup(result):
    """The same tags and attributes as a harmless run of the same shape has; what was meant as a tag is text."""
    text = page.render(hostile_result(result), f"# {HOSTILE}")
    seen = Reader(text)
    assert "script" not in seen.tags and "\x1b" not in text and text.count("<script") == 0
    assert "".join(seen.text).count("<script>alert(1)</script>") >= 20
    assert not [a for a in seen.attributes if a[0].startswith("on") or a[0] in ("href", "src", "style")]


def test_the_page_needs_nothing_else(result):
    text = page.render(result)
    assert not re.search(r"(?:https?:)?//|url\(|@import|<link|<img|<script|src=|href=", text)
    assert "default-src 'none'" in text and "prefers-color-scheme: dark" in text


def test_the_page_shows_the_figures_checks_recipe_and_machines(run):
    path = page.write(run)
    seen = Reader(path.read_text())
    text = " ".join(" ".join(seen.text).split())
    assert path == run / "report.html" and seen.tags.count("svg") == 2
    assert "distill.int8 , 26x smaller and 13x faster (12 to 15) than the teacher, top1 96.7 % (teacher 98.3)" in text
    assert "<script>alert(1)</script>" in text and "edgekd compress recipe.toml" in text and "cd" * 32 in text
    for part in (
        "[0.0580, 0.0642]",
        "Example CPU",
        "max 30 kB",
        "INCONCLUSIVE",
        "the interval holds the limit",
        "onnxruntime 1.31.1",
    ):
        assert part in text, part
    again = path.read_bytes()
    assert page.write(run).read_bytes() == again and not list(run.glob(".*.part"))


def test_reports_of_a_folder_without_a_run_are_refused(tmp_path):
    from edgekd.errors import UsageError

    for write in (page.write, markdown.write):
        with pytest.raises(UsageError):
            write(tmp_path)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- charts


def points(*values):
    return [charts.Point(f"p{i}", "front", (x, x, x), (y, y, y)) for i, (x, y) in enumerate(values)]


def test_a_chart_places_points_where_the_axes_say():
    """The centre of a value lies between the ticks around it, as far along as the value is."""
    svg = ElementTree.fromstring(charts.tradeoff(points((2.0, 90.0), (4.0, 95.0), (3.0, 91.0)), "ms", "%"))
    circles = {g.find("title").text: g.find("circle") for g in svg.iter("g")}
    at = lambda name: (float(circles[name].get("cx")), float(circles[name].get("cy")))
    assert at("p2")[0] == pytest.approx((at("p0")[0] + at("p1")[0]) / 2, abs=0.11)
    # up is better
    assert (
        at("p2")[1] == pytest.approx(at("p0")[1] + (at("p1")[1] - at("p0")[1]) / 5, abs=0.11)
        and at("p1")[1] < at("p0")[1]
    )
    ticks = {
        float(t.text): float(t.get("x"))
        for t in svg.iter("text")
        if t.get("class") == "tick" and t.get("text-anchor") == "middle"
    }
    assert ticks[2.0] == pytest.approx(at("p0")[0], abs=0.11) and ticks[4.0] == pytest.approx(at("p1")[0], abs=0.11)
    line = svg.find("polyline").get("points").split()
    assert [p.partition(",")[0] for p in line] == sorted((p.partition(",")[0] for p in line), key=float) and len(
        line
    ) == 3


def test_costs_far_apart_stand_on_a_logarithmic_scale():
    text = charts.tradeoff(points((1.0, 90.0), (10.0, 91.0), (100.0, 92.0)), "ms", "%")
    x = [float(c) for c in re.findall(r'cx="([\d.]+)"', text)]
    assert "logarithmic" in text and x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.11)
    assert "logarithmic" not in charts.tradeoff(points((1.0, 90.0), (2.0, 91.0)), "ms", "%")


@pytest.mark.parametrize(
    "values",
    [
        [(1.0, 90.0)],
        [(1.0, 90.0), (1.0, 90.0)],
        [(0.0, 0.0), (1e9, 1e-9)],
        [(1e-9, 5.0), (1e12, 5.0)],
        [(-3.0, -2.0), (4.0, 1.0)],
    ],
)
def test_odd_values_make_a_chart(values):
    text = charts.tradeoff(points(*values), "ms", "%")
    ElementTree.fromstring(text)
    assert "nan" not in text and "inf" not in text
    assert all(0 <= float(v) <= 560 for v in re.findall(r'c[xy]="([-\d.]+)"', text))
    assert charts.tradeoff([], "ms", "%") == ""


@pytest.mark.parametrize(
    "low, high, log, expected",
    [
        (0, 1, False, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (86.3, 99.9, False, [90, 95]),
        (1, 1000, True, [1, 10, 100, 1000]),
        (3, 40, True, [5, 10, 20]),
    ],
)
def test_ticks_are_round(low, high, log, expected):
    assert charts.ticks(low, high, log) == pytest.approx(expected)


def test_labels_cover_neither_each_other_nor_markers():
    crowd = points(*((1.0 + 0.02 * i, 90 + 0.05 * i) for i in range(150)), (5.0, 99.0))
    svg = ElementTree.fromstring(charts.tradeoff(crowd, "ms", "%"))
    labels = [
        (float(t.get("x")), float(t.get("y")), len(t.text) * charts.GLYPH)
        for t in svg.iter("text")
        if "label" in t.get("class")
    ]
    assert 1 < len(labels) < 151
    for i, (x, y, wide) in enumerate(labels):
        assert not any(x < a + w and a < x + wide and abs(y - b) < charts.LINE for a, b, w in labels[:i])


def test_in_a_crowd_the_front_is_labelled_alone():
    for count, shown in ((10, True), (20, False)):
        others = [
            dataclasses.replace(p, kind="dominated") for p in points(*((1.0 + i, 90.0 + i) for i in range(count)))
        ]
        labels = re.findall(r'class="label (\w+)"', charts.tradeoff([*others, *points((30.0, 80.0))], "ms", "%"))
        assert ("dominated" in labels) == shown and labels.count("front") == 1


# ---------------------------------------------------------------- markdown


def test_markdown_tables_hold_together_whatever_the_names(result):
    text = markdown.render(hostile_result(result))
    assert "<script" not in text and "\x1b" not in text
    cells = re.compile(r"(?<!\\)\|")
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({len(cells.findall(line)) for line in block.splitlines()}) == 1, block


def test_markdown_shows_figures_and_checks(run):
    text = markdown.write(run).read_text()
    assert "`distill.int8` **chosen** | 96.7 \\[95.5, 97.9\\] m |" in text and "| 1/26 |" in text
    assert "| host | distill.int8 | file\\_bytes | max 30 kB | 31,234 B counted | FAIL |" in text


# ---------------------------------------------------------------- CI systems


def test_junit_counts_failures_and_errors(result):
    root = ElementTree.fromstring(machine.junit(result.targets["host"].checks))
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("4", "1", "1")
    (suite,) = root
    cases = {case.get("name"): case for case in suite}
    assert suite.get("name") == "host" and cases["top1 min 88 %"].find("failure") is None
    assert (
        "31,234 B" in cases["file_bytes max 30 kB"].find("failure").text
        and cases["latency_p50_ms max 0.06 ms"].find("error") is not None
    )
    assert "warning only" in cases["ece max 1 %"].find("system-out").text


def test_sarif_has_what_the_standard_asks(result):
    run = json.loads(machine.sarif(result.targets["host"].checks))["runs"][0]
    rules = [r["id"] for r in run["tool"]["driver"]["rules"]]
    found = {r["ruleId"]: r for r in run["results"]}
    assert set(found) == {"file_bytes", "latency_p50_ms", "ece"} and all(
        rules[r["ruleIndex"]] == r["ruleId"] for r in run["results"]
    )
    assert [found[n]["level"] for n in ("file_bytes", "latency_p50_ms", "ece")] == ["error", "warning", "warning"]
    assert all(r["level"] == "none" or r.get("kind", "fail") == "fail" for r in run["results"])  # SARIF 2.1.0, 3.27.9
    place = found["file_bytes"]["locations"][0]
    assert (
        place["physicalLocation"]["artifactLocation"]["uri"] == "recipe.toml"
        and place["logicalLocations"][0]["fullyQualifiedName"] == "recipe.toml: gate.any"
    )


def test_machine_formats_take_hostile_names_and_no_checks(result):
    bad = [
        dataclasses.replace(c, candidate=HOSTILE + "\ud800\x00", reason="a | b\n\ufffe", place=HOSTILE)
        for c in result.targets["host"].checks
    ]
    (suite,) = ElementTree.fromstring(machine.junit(bad))
    assert "<script>" in suite[0].get("classname") and json.loads(machine.sarif(bad))["version"] == "2.1.0"
    machine.junit(bad).encode()
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in machine.summary(bad).splitlines()}) == 1
    assert (
        ElementTree.fromstring(machine.junit([])).get("tests") == "0"
        and json.loads(machine.sarif([]))["runs"][0]["results"] == []
    )
    assert len(machine.summary([]).splitlines()) == 2


def test_an_int8_choice_that_is_slower_than_its_float_parent_is_said():
    def candidate(id, parents, stages, p50):
        figure = Measurement(
            "latency_p50_ms",
            "ms",
            p50,
            p50 - half,
            p50 + half,
            6,
            None,
            "host",
            origin,
            1,
            "e",
            "calibrated: on this board",
        )
        return Candidate(id, id, 0, parents, stages, "onnx", f"models/{id}.onnx", "0" * 64, (figure,))

    def said(p50):
        both = (
            candidate("prune", (), ("prune", "float32"), 0.5),
            candidate("quantize", ("prune",), ("prune", "quantize", "int8"), p50),
        )
        return notes.caution(
            Result("t", "0" * 64, {"e": {}}, {}, both, {"host": TargetResult(("quantize",), "quantize", "pass")}),
            "host",
        )

    half, origin = 0.01, "measured"
    assert "0.60" not in said(0.3) and said(0.3) == "" and said(0.515) == ""  # faster; not told apart
    assert "quantize takes 1.20 x the time of the float prune" in said(0.6)
    half, origin = 0.4, "predicted"  # intervals overlap, and what both are off by they share
    assert (
        "quantize takes 2.40 x the time of the float prune by prediction;" in said(1.2)
        and said(1.0) == said(0.41) == ""
    )


def test_what_an_int8_choice_does_on_other_cpus_is_told(run):
    """Where layers can saturate; nothing where none can."""
    result = results.read(run / "result.json")
    chosen = result.targets["host"].chosen
    for count, told in ((3, True), (0, False)):
        m = Measurement(
            "saturable_layers",
            "",
            count,
            count,
            count,
            1,
            None,
            None,
            "counted",
            note="up to 12 % of a layer's outputs change",
        )
        made = [
            dataclasses.replace(c, measurements=(*c.measurements, m)) if c.id == chosen else c
            for c in result.candidates
        ]
        text = terminal.table(dataclasses.replace(result, candidates=tuple(made)), run)
        assert ("3 layers can saturate (up to 12 % of a layer's outputs change in samples)" in text) == told
        assert ("without VNNI" in markdown.render(dataclasses.replace(result, candidates=tuple(made)))) == told


def test_how_figures_of_a_target_without_its_machine_came_about(run):
    """A prediction's basis, the instructions, and that the chosen file alone was run as the target."""
    result = results.read(run / "result.json")
    chosen, made = result.targets["host"].chosen, []
    for c in result.candidates:
        kept = [m for m in c.measurements if m.origin == "counted"]
        kept.append(
            Measurement(
                "latency_p50_ms",
                "ms",
                2.0,
                1.0,
                4.0,
                1,
                None,
                "host",
                "predicted",
                1,
                note="transferred: from 6 boards",
            )
        )
        if c.id == chosen:
            kept += [
                dataclasses.replace(m, origin="emulated")
                for m in c.measurements
                if m.name == "top1" and m.split == "test"
            ]
            kept.append(
                Measurement(
                    "instructions",
                    "",
                    372_103,
                    370_275,
                    376_091,
                    8,
                    None,
                    "host",
                    "emulated",
                    1,
                    note="5 % multiply and add",
                )
            )
        made.append(dataclasses.replace(c, measurements=tuple(kept)))
    there = dataclasses.replace(result, candidates=tuple(made))
    for text in (terminal.table(there, run), markdown.render(there).replace("\\", ""), page.render(there)):
        assert (
            "transferred: from 6 boards" in text
            and "372,103 per inference" in text
            and "only the chosen file was run" in text
        )
    assert "faster by prediction than" in page.render(there) and "not measured for this target" not in page.render(
        there
    )
    assert "by prediction" not in page.render(result) and "only the chosen file was run" not in terminal.table(
        result, run
    )
    none = [
        dataclasses.replace(c, measurements=tuple(m for m in c.measurements if "latency" not in m.name)) for c in made
    ]
    assert "latency: none: no machine that matches host" in terminal.table(
        dataclasses.replace(there, candidates=tuple(none)), run
    )


def test_a_prediction_that_is_wider_than_a_factor_of_two_is_a_range_with_advice(run):
    """In the terminal, on the page and in Markdown: words and no point, no ratio to the teacher, and what makes a
    figure of it."""
    result, made = results.read(run / "result.json"), []
    for c in result.candidates:
        kept = [m for m in c.measurements if m.name != "latency_p50_ms"]
        kept.append(
            Measurement(
                "latency_p50_ms",
                "ms",
                31.7,
                12.34,
                81.4,
                1,
                None,
                "host",
                "predicted",
                1,
                note="transferred: from 6 boards",
            )
        )
        made.append(dataclasses.replace(c, measurements=tuple(kept)))
    there = dataclasses.replace(result, candidates=tuple(made))
    html = page.render(there).partition("<h2>All figures</h2>")[0]  # below it stands what the record holds, as it is
    for text in (terminal.table(there, run), markdown.render(there).replace("\\", ""), html):
        assert "12 to 81" in text and "31.7" not in text
        assert "edgekd targets calibrate host --on ssh://" in " ".join(text.split()) and "a few minutes" in " ".join(
            text.split()
        )
    assert "faster by prediction" not in html
    text = figures.table([m for m in made[0].measurements if m.name == "latency_p50_ms"])
    assert (
        "12 to 81 ms" in text
        and "a range" in text
        and "31.7" not in text
        and "targets calibrate host --on ssh://user@host" in text
    )


@pytest.mark.parametrize(
    ("value", "low", "high", "told"),
    [(10, 5, 20, False), (10, 4.9, 20, True), (10, 5, 20.1, True), (10, 10, 10, False), (0.01, 0.0, 0.015, True)],
)
def test_what_a_range_is_by_hand(value, low, high, told):
    m = Measurement("latency_p50_ms", "ms", value, low, high, 1, None, "pi", "predicted", 1)
    assert numbers.ranged(m) == told and not numbers.ranged(dataclasses.replace(m, origin="measured"))
    assert (" to " in numbers.value(m)) == told and (numbers.interval(m) == "") == (told or low == high)


def test_the_next_command_is_one_that_works(run):
    """What was timed on a board, or for a target of one's own, is not compared by the target's name alone."""
    result = results.read(run / "result.json")
    assert "next: edgekd compare" in terminal.table(result, run)
    renamed = {
        c.id: tuple(dataclasses.replace(m, target=m.target and "mine") for m in c.measurements)
        for c in result.candidates
    }
    made = tuple(dataclasses.replace(c, measurements=renamed[c.id]) for c in result.candidates)
    mine = dataclasses.replace(result, candidates=made, targets={"mine": result.targets["host"]})
    assert "next: edgekd gate" in terminal.table(mine, run) and "edgekd compare" not in terminal.table(mine, run)
