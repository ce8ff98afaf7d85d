"""The files of a project, from what a person asks for without a recipe."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.components import SPEC
from edgekd.errors import Problem, UsageError
from edgekd.files import write_atomic
from edgekd.run import plan, resolve
from edgekd.run.dump import dump
from edgekd.without_recipe import climb
from edgekd.without_recipe.asked import WEIGHTS, Asked, unfit

if TYPE_CHECKING:
    from edgekd.progress import Silent

TASK, RECIPE, BUDGET, WORKFLOW = "edgekd_task.py", "recipe.toml", "budget.toml", ".github/workflows/edgekd.yml"

CODE = '''"""The task: what edgekd compresses, by which data and metrics."""

import dataclasses
{imports}from pathlib import Path

from edgekd.tasks.model_and_data import model_and_data

HERE = Path(__file__).resolve().parent
{beside}
task = dataclasses.replace(
    model_and_data({arguments}),
    name="{name}",
    # what else a task may say: metrics, augment, forward, outputs, licences, models of your own
)
'''
CI = """name: edgekd
on: [push]
jobs:
  compress:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with:
          python-version: "3.12"
      - run: pip install edgekd
      - run: edgekd compress {recipe} --out {run} --time-budget 30m --quiet
      - run: edgekd gate {run} --budget {budget} --inconclusive warn --junit gate.xml
"""


def write(asked: Asked, out: Path, progress: Silent) -> str:
    """Writes them into `out`, and checks that the recipe can be run; returns what to do next. Raises UsageError with
    every problem; files that are there are not replaced."""
    import tomli_w

    from edgekd.store.store import Store

    wrong = unfit(asked.model, asked.data, ())
    names = (TASK, RECIPE, BUDGET, WORKFLOW, *([] if asked.file else [WEIGHTS]))
    there = [name for name in names if (out / name).exists()]
    wrong += [Problem(str(out / name), "is there already", "remove it, or choose another --out") for name in there]
    if wrong:
        raise UsageError(*wrong)
    store = Store()
    try:
        with progress.task("check the model and the data"):
            made = climb.prepared(asked, out, None, store, progress, None)
            code = CODE.format(name=made.task.name, arguments=_arguments(asked, out), **_modules(asked, out))
            write_atomic(out / TASK, code.encode())
            ladder = [rung for rung in made.ladder if not rung.deepest]
            table = {**made.table(ladder), "task": "edgekd_task:task", "modules": str(out)}
            resolved = resolve.resolved(table, store=store)
            plan.make(resolved, store, made.checked)
    finally:
        progress.close()
        store.close()
    run = f"runs/{made.task.name}"
    write_atomic(out / RECIPE, dump(resolved, out).encode())
    write_atomic(out / BUDGET, tomli_w.dumps({name: dict(rules) for name, rules in resolved.gate.items()}).encode())
    (out / WORKFLOW).parent.mkdir(parents=True, exist_ok=True)
    shown = {"recipe": RECIPE, "run": run, "budget": BUDGET}
    write_atomic(out / WORKFLOW, CI.format(**{k: shlex.quote(v) for k, v in shown.items()}).encode())
    wrote = "\n".join(f"wrote {out / name}" for name in names)
    wrote += "\nfor the workflow, the repository needs the model's module and its data too"
    return f"{wrote}\n\nnext: edgekd compress {shlex.quote(str(out / RECIPE))} --time-budget 30m"


def _modules(asked: Asked, out: Path) -> dict[str, str]:
    """The lines by which the task file finds the model's module, where it does not lie beside it."""
    spec = importlib.util.find_spec(asked.name.partition(":")[0].partition(".")[0])
    if spec is None or spec.origin is None or "site-packages" in spec.origin:
        return {"imports": "", "beside": ""}
    place = Path(spec.origin).parent.parent if spec.submodule_search_locations else Path(spec.origin).parent
    way = Path(os.path.relpath(place, out.resolve())).as_posix()
    if way == ".":
        return {"imports": "", "beside": ""}
    line = f"sys.path.insert(0, str(HERE / {json.dumps(way)}))  # where the model's module is\n"
    return {"imports": "import sys\n", "beside": line}


def _arguments(asked: Asked, out: Path) -> str:
    """Those of the task's function, with paths relative to the folder of the files."""
    text = lambda value: json.dumps(value, ensure_ascii=False)
    at = lambda path: f"HERE / {text(Path(os.path.relpath(path, out)).as_posix())}"
    told = [f"model={text(asked.name)}"]
    told += [f"data={text(asked.data)}" if SPEC.fullmatch(asked.data) else f"path={at(asked.data)}"]
    if asked.preprocess is not None:
        own = Path(asked.preprocess)
        told += [f"preprocess={at(own) if own.is_file() else f'Path({text(asked.preprocess)})'}"]
    return ", ".join(told)
