"""JSON Schemas of the files that edgekd reads and writes. Probes declare the names of measurements."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from edgekd.components import imported
from edgekd.decisions import quantities
from edgekd.decisions.tables import Tables
from edgekd.errors import Problem, UsageError
from edgekd.probes import declared
from edgekd.records import Quantity
from edgekd.results import VERSIONS
from edgekd.targets import MOST

KINDS = {  # {kind of file: the class that describes it}
    "result": "edgekd.records:Result",
    "manifest": "edgekd.delivery.bundle:Manifest",
    "budget": "edgekd.decisions.budget:Budget",
    "target": "edgekd.records:Target",
    "recipe": "edgekd.run.recipe.form:Form",
    "preprocess": "edgekd.samples.preprocess:Preprocess",
}


def schema(kind: str) -> dict[str, Any]:
    """JSON Schema (2020-12) of a file: result, manifest, budget, target, recipe or preprocess."""
    import pydantic

    if kind not in KINDS:
        raise UsageError(Problem("", f"no file is called `{kind}`", f"one of {', '.join(KINDS)}"))
    made = pydantic.TypeAdapter(imported(KINDS[kind])).json_schema()
    if kind in VERSIONS:
        made["properties"]["schema"] = {"const": f"edgekd.{kind}/{VERSIONS[kind]}"}
        made["required"] = [*made["required"], "schema"]
    if kind == "recipe":
        tables = pydantic.TypeAdapter(Tables).json_schema()
        made["$defs"] |= tables.pop("$defs")
        made["properties"]["gate"] |= tables
    if kind == "target":
        _as_in_a_file(made)
    if kind == "preprocess":
        made["additionalProperties"] = False
    if "Measurement" in made.get("$defs", {}):
        made["$defs"]["Measurement"]["properties"]["name"] = _names()
    _name_measurements(made)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made, "title": f"edgekd {kind}"}


def _as_in_a_file(target: dict[str, Any]) -> None:
    """A target's name is that of its file, and several runtimes are tables of one key."""
    for name in ("name", "others"):
        del target["properties"][name]
    target["required"].remove("name")
    one = {"$ref": target["properties"]["runtime"]["$ref"]}
    several = {"type": "array", "items": one, "minItems": 1, "maxItems": MOST}
    target["properties"]["runtime"] = {"anyOf": [one, several]}


def _name_measurements(made: dict[str, Any]) -> None:
    """What budgets may be on, into all tables of rules: a definition that they share."""
    for table in list(_tables_of_rules(made)):
        value, known = {"$ref": "#/$defs/Value"}, quantities.known().items()
        named = {name: {**value, "description": _told(quantity)} for name, quantity in known}
        made["$defs"]["Rules"] = {"type": "object", "properties": named, "additionalProperties": value}
        made["$defs"]["Value"] = table["additionalProperties"]
        table.clear()
        table["$ref"] = "#/$defs/Rules"


def _names() -> dict[str, Any]:
    """The schema of a measurement's name: one that a probe declares, or a metric of the task."""
    known = [{"const": q.name, "description": _told(q)} for q in declared().values()]
    return {"title": "Name", "anyOf": [*known, {"type": "string", "description": "a metric of the task"}]}


def _told(quantity: Quantity) -> str:
    """`size of the file, in B; lower is better; counted`."""
    unit = f", in {quantity.unit}" if quantity.unit else ""
    better = f"; {quantity.better} is better" if quantity.better else ""
    return f"{quantity.title}{unit}{better}; {quantity.origin}"


def _tables_of_rules(node: Any) -> Iterator[dict[str, Any]]:
    """The schemas of all tables {measurement: rules}, recognized by their values, which may be a `Line`."""
    if isinstance(node, list):
        for part in node:
            yield from _tables_of_rules(part)
    elif isinstance(node, Mapping):
        more = node.get("additionalProperties")
        if isinstance(more, Mapping) and {"$ref": "#/$defs/Line"} in more.get("anyOf", ()):
            yield node
        else:
            for part in list(node.values()):
                yield from _tables_of_rules(part)
