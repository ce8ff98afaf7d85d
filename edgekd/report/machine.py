"""Gate checks for CI systems: JUnit XML, SARIF 2.1.0 (OASIS), and a markdown summary."""

from __future__ import annotations

import json
from collections.abc import Sequence
from xml.etree import ElementTree as xml

from edgekd.errors import plain
from edgekd.records import Check
from edgekd.report import notes, numbers

SARIF = "https://json.schemastore.org/sarif-2.1.0.json"


def junit(checks: Sequence[Check]) -> str:
    """A test suite per target, a test case per check. An inconclusive check is an error; a failed warning passes, with
    its text in system-out."""
    root = xml.Element("testsuites", name="edgekd gate")
    for target in dict.fromkeys(c.target for c in checks):
        mine = [c for c in checks if c.target == target]
        suite = xml.SubElement(root, "testsuite", name=_xml(target), tests=str(len(mine)), skipped="0", time="0")
        suite.set("failures", str(sum(c.verdict == "fail" and c.level == "error" for c in mine)))
        suite.set("errors", str(sum(c.verdict == "inconclusive" and c.level == "error" for c in mine)))
        for c in mine:
            case = xml.SubElement(
                suite,
                "testcase",
                classname=_xml(".".join(filter(None, [c.target, c.candidate]))),
                name=_xml(f"{c.name} {c.rule}"),
                time="0",
            )
            text = _xml(notes.check(c))
            if c.level == "error" and c.verdict != "pass":
                xml.SubElement(
                    case, "failure" if c.verdict == "fail" else "error", message=text, type=c.verdict
                ).text = text
            else:
                xml.SubElement(case, "system-out").text = text
    for name in ("tests", "failures", "errors"):
        root.set(name, str(sum(int(suite.get(name, "0")) for suite in root)))
    xml.indent(root)
    return xml.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def sarif(checks: Sequence[Check]) -> str:
    """SARIF 2.1.0: a rule per measurement, a result per check that did not pass. An inconclusive check is a warning,
    since few tools show the kind `open`."""
    names = list(dict.fromkeys(c.name for c in checks))
    rules = [{"id": name, "shortDescription": {"text": f"budget of {name}"}} for name in names]
    results = [
        {
            "ruleId": c.name,
            "ruleIndex": names.index(c.name),
            "level": "error" if c.level == "error" and c.verdict == "fail" else "warning",
            "message": {"text": f"{c.target}: {notes.check(c)}"},
            "locations": [_location(c)],
            "properties": {"target": c.target, "candidate": c.candidate, "verdict": c.verdict},
        }
        for c in checks
        if c.verdict != "pass"
    ]
    driver = {"name": "edgekd", "rules": rules}
    return (
        json.dumps(
            {"$schema": SARIF, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}, indent=1
        )
        + "\n"
    )


def summary(checks: Sequence[Check]) -> str:
    """A markdown table of all checks."""
    lines = ["| target | candidate | measurement | rule | value | verdict |", "|---|---|---|---|---|---|"]
    for c in checks:
        cells = (
            c.target,
            c.candidate,
            c.name,
            c.rule,
            figure(c),
            notes.VERDICTS[c.verdict] + (f": {c.reason}" if c.reason else ""),
        )
        lines.append("| " + " | ".join(markdown(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def figure(c: Check) -> str:
    """`97.2 [95.1, 98.4] % measured`."""
    if c.value is None:
        return "-"
    exact = c.low is None or c.high is None or c.low == c.value == c.high
    limits = "" if exact else f"[{numbers.number(c.low)}, {numbers.number(c.high)}]"
    return " ".join(filter(None, [numbers.number(c.value), limits, c.unit, c.origin]))


def markdown(text: str) -> str:
    """Text escaped for a cell of a markdown table."""
    text = plain(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join("\\" + ch if ch in "\\`*_{}[]|~#" else ch for ch in text)


def _location(c: Check) -> dict:
    place = plain(c.place)
    path = place.partition(":")[0] or "recipe.toml"
    return {
        "physicalLocation": {"artifactLocation": {"uri": _uri(path)}},
        "logicalLocations": [{"fullyQualifiedName": place or c.name}],
    }


def _uri(path: str) -> str:
    from urllib.parse import quote

    return quote(path.lstrip("/"))


def _xml(text: str) -> str:
    """Text for XML 1.0, which allows no control characters, even escaped."""
    return plain(text)
