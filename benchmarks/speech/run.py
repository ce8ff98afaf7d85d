"""Spoken digits, every speaker held out once: teacher, control, distilled student and its int8 file, all scored in
onnxruntime.

    EDGEKD_SPEECH=/path/to/recordings python benchmarks/speech/run.py [--speakers NAME ...] [--runs FOLDER]
    python benchmarks/speech/run.py --tables

A speaker is one `edgekd compress benchmarks/speech/recipe.toml --set task.speaker=NAME`: about five minutes on one
core. What is finished is found in the store. RESULTS.md is made from result.json."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

HERE = Path(__file__).parent
RESULT, TABLES = HERE / "result.json", HERE / "RESULTS.md"
ROWS = ("teacher", "alone", "distill", "quantize")


def speakers() -> list[str]:
    from edgekd.data.speech import read

    return sorted({s for s in read(Path(os.environ["EDGEKD_SPEECH"])).speakers if s})


def run(names: list[str], runs: Path) -> None:
    import edgekd
    from edgekd import environment

    for name in names:
        outcome = edgekd.compress(HERE / "recipe.toml", sets=[f"task.speaker={name}"], out=runs / name, quiet=False)
        result = (
            json.loads(RESULT.read_text())
            if RESULT.is_file()
            else {"schema": "edgekd.benchmark.speech/1", "speakers": {}}
        )
        result["speakers"][name] = figures(outcome.result)
        result |= {
            "environment": environment.describe(),
            "command": "EDGEKD_SPEECH=... python benchmarks/speech/run.py",
            "seed": 0,
        }
        result["speakers"] = dict(sorted(result["speakers"].items()))
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


def figures(result) -> dict:
    """{candidate: {measurement: value}} of a run, on the held-out speaker."""
    wanted = ("top1", "agreement", "file_bytes", "parameters", "macs")
    found = {}
    for c in result.candidates:
        found[c.id] = {m.name: m.value for m in c.measurements if m.name in wanted and m.split in (None, "test")}
        found[c.id]["samples"] = next(m.n for m in c.measurements if m.name == "top1" and m.split == "test")
    return found


def tables() -> None:
    from edgekd import intervals

    result = json.loads(RESULT.read_text())
    each = result["speakers"]
    lines = [
        "# Spoken digits, a speaker held out: results",
        "",
        "Written by `run.py --tables` from `result.json`; don't edit. Per cent of the held-out speaker's clips, of the "
        "exported file in onnxruntime; seed 0. The teacher heard none of that speaker either.",
        "",
        f"| speaker | clips | {' | '.join(ROWS)} |",
        "|---|---:|" + "---:|" * len(ROWS),
    ]
    for name, found in each.items():
        lines.append(
            f"| {name} | {found['teacher']['samples']} | "
            + " | ".join(f"{found[row]['top1']:.1f}" for row in ROWS)
            + " |"
        )
    means = {row: sum(f[row]["top1"] for f in each.values()) / len(each) for row in ROWS}
    lines.append(f"| mean | | {' | '.join(f'{means[row]:.1f}' for row in ROWS)} |")
    sizes = next(iter(each.values()))
    lines.append("| bytes | | " + " | ".join(f"{sizes[row]['file_bytes']:,.0f}" for row in ROWS) + " |")
    lines.append("| multiply-accumulates | | " + " | ".join(f"{sizes[row]['macs'] / 1e6:.2f} M" for row in ROWS) + " |")
    lines += ["", f"Differences, paired by speaker ({len(each)}), with their 95 % interval by Student's t:", ""]
    for a, b in (("distill", "alone"), ("quantize", "distill"), ("quantize", "teacher")):
        value, low, high = intervals.mean([f[a]["top1"] - f[b]["top1"] for f in each.values()])
        lines.append(f"- {a} - {b}: {value:+.2f} [{low:+.2f}, {high:+.2f}] points")
    facts = result["environment"]
    lines += [
        "",
        f"Again: `{result['command']}`. {facts['cpu']}, "
        f"{', '.join(f'{k} {v}' for k, v in sorted(facts['versions'].items()))}.",
    ]
    TABLES.write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speakers", nargs="+", metavar="NAME")
    parser.add_argument("--runs", type=Path, default=Path("runs/speech"))
    parser.add_argument("--tables", action="store_true")
    given = parser.parse_args()
    if not given.tables:
        run(given.speakers or speakers(), given.runs)
    tables()


if __name__ == "__main__":
    main()
