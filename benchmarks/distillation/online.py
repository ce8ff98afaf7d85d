"""A teacher that learns together with its student against a teacher that was trained before: the same student, start,
losses and number of student steps, several seeds, the exported file scored in onnxruntime. Needs no download.

    python benchmarks/distillation/online.py --seeds 0 1 2 [--only WORLD]
    python benchmarks/distillation/online.py --tables

What is finished is found in the store. ONLINE.md is made from online.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
RESULT, TABLES = HERE / "online.json", HERE / "ONLINE.md"
COMMAND = "python benchmarks/distillation/online.py --seeds 0 1 2"
CE, KL = {"use": "cross_entropy", "weight": 1.0}, {"use": "kl", "weight": 1.0, "temperature": 1.0}
KD = [{"use": "cross_entropy", "weight": 0.1}, {"use": "kl", "weight": 0.9, "temperature": 4.0}]
WORLDS = {
    "674 labels": {"task": "worlds:digits", "epochs": 30},
    "60 labels": {"task": "worlds:few", "epochs": 120},
}
TOGETHER = {"learns_with": ["teacher"]}
ONE_WAY = [CE, {**KL, "teacher": "teacher"}]
# name: (settings of the student's stage, whether a teacher is trained before, control)
WAYS = {
    "labels alone": ({"losses": [CE]}, False, None),
    "offline": ({"losses": [CE, KL]}, True, "labels alone"),
    "offline, 0.1 labels and 0.9 teacher at T = 4": ({"losses": KD}, True, "offline"),
    "online": ({"losses": [CE, KL], **TOGETHER}, False, "offline"),
    "online, 0.1 labels and 0.9 teacher at T = 4": (
        {
            "losses": [{**KD[0], "teacher": "teacher"}, {**KD[1], "teacher": "teacher"}, {**CE, "teacher": "student"}],
            **TOGETHER,
        },
        False,
        "offline, 0.1 labels and 0.9 teacher at T = 4",
    ),
    "online, the teacher from labels alone": ({"losses": ONE_WAY, **TOGETHER}, False, "online"),
    "online, from the trained teacher": ({"losses": [CE, KL], **TOGETHER}, True, "offline"),
    "two peers": ({"losses": [CE, KL], "peers": 2}, False, "online"),
}


def recipe(world: str, way: str, seed: int) -> dict:
    shared = {"epochs": WORLDS[world]["epochs"], "lr": 0.004}
    settings, trained, _ = WAYS[way]
    return {
        "task": WORLDS[world]["task"],
        "threads": 1,
        "control": False,
        "stage": [{"use": "distill", **shared, **settings}],
        "model": {"teacher": {"train": shared, "seed": seed}} if trained else {},
        "sweep": {"seed": [seed]},
    }


def made(given: dict) -> tuple[float, dict[str, int]]:
    """(per cent right on test, {model: optimizer steps of all training that the student needed})."""
    from run import figure

    from edgekd.progress import reporter
    from edgekd.run import plan, resolve
    from edgekd.run.steps import run_steps
    from edgekd.store.store import Store

    resolved = resolve.resolved(given)
    planned = plan.make(resolved)
    (point,) = [p for p in planned.points if p.point == "distill"]
    needed, ahead = {}, [point.export]
    while ahead:  # without the reference, which no step of the student's needs where it learns with its teacher
        step = planned.steps[ahead.pop()]
        needed[step.key] = step
        ahead += [key for keys in step.inputs.values() for key in keys]
    planned.steps = {key: step for key, step in planned.steps.items() if key in needed}
    made, _ = run_steps(planned, resolved, Store(), reporter(True), lambda **event: None)
    steps: dict[str, int] = {}
    for step in (s for s in needed.values() if s.stage in ("train", "distill")):
        others = [*(getattr(step.part, "learns_with", None) or ())]
        others += ["student"] * (getattr(step.part, "peers", 1) - 1)
        for model in (step.part.model, *others):
            steps[model] = steps.get(model, 0) + made[step.key].facts["steps"]
    return figure(made[point.export].folder / "model.onnx", resolved.task, "top1"), steps


def run(seeds: list[int], only: str | None) -> None:
    from edgekd import environment

    for seed in seeds:
        for world in WORLDS if only is None else [only]:
            for way, (_, _, control) in WAYS.items():
                value, steps = made(recipe(world, way, seed))
                result = json.loads(RESULT.read_text()) if RESULT.is_file() else {"ways": {}}
                entry = result["ways"].setdefault(f"{world}: {way}", {"seeds": {}})
                entry |= {"control": control and f"{world}: {control}", "steps": steps}
                entry["seeds"][str(seed)] = value
                result |= {"environment": environment.describe(), "command": COMMAND}
                RESULT.write_text(json.dumps({"schema": "edgekd.benchmark.online/1", **result}, indent=1) + "\n")
                print(f"seed {seed}  {world}: {way:50} {value:6.2f} %", flush=True)


def tables() -> None:
    from edgekd import intervals

    result = json.loads(RESULT.read_text())
    ways = result["ways"]
    lines = [
        "# A teacher that learns too: results",
        "",
        "Written by `online.py --tables` from `online.json`; don't edit. Per cent right of the exported file in "
        "onnxruntime on the 899 test images of the built-in digits; differences are paired by seed, with their 95 % "
        "interval by Student's t. *offline*: a teacher that was trained before on the same images, with as many steps. "
        "*online*: `learns_with`, both from their initial weights, those of the offline rows. Unless a row says "
        "otherwise, the losses are cross-entropy and KL at T = 1, each of weight 1. The steps are those of the "
        "optimizer that the student's file needed in all; of the teacher also where it was trained before.",
        "",
        "| labels and way | control | seeds | % | difference in points | steps of student, teacher |",
        "|---|---|---|---|---|---|",
    ]
    for name, entry in ways.items():
        values, control = entry["seeds"], ways.get(entry["control"] or "", {}).get("seeds", {})
        both, gap = [s for s in values if s in control], ""
        if len(both) > 1:
            gap = "{:+.2f} [{:+.2f}, {:+.2f}]".format(*intervals.mean([values[s] - control[s] for s in both]))
        steps = entry["steps"]
        lines.append(
            f"| {name} | {entry['control'] or ''} | {len(values)} | {sum(values.values()) / len(values):.2f} | {gap} | "
            f"{steps['student']}, {steps.get('teacher', 0)} |"
        )
    facts = result["environment"]
    versions = ", ".join(f"{k} {v}" for k, v in sorted(facts["versions"].items()))
    lines += ["", f"Again: `{result['command']}`. {facts['cpu']}, {versions}."]
    TABLES.write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", choices=WORLDS)
    parser.add_argument("--tables", action="store_true")
    given = parser.parse_args()
    sys.path.insert(0, str(HERE))
    if not given.tables:
        run(given.seeds, given.only)
    tables()


if __name__ == "__main__":
    main()
