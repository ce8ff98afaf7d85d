"""The tree is the architecture: imports point down, part folders don't know each other, light things stay light."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "edgekd"
LAYERS = (  # low to high; a module may import its own layer and those before it
    ("ground", set()),  # every file directly in edgekd/, but for ENTRIES
    ("tools", {"store", "onnx_files", "metrics"}),
    ("inputs", {"data", "pruning", "models", "tasks", "samples", "hub"}),
    ("parts", {"losses", "teachers", "ensembles", "criteria", "ranges", "formats", "probes"}),
    ("engines", {"training", "quantization", "hosts", "measure", "predicting"}),
    ("steps", {"stages", "decisions", "report", "delivery"}),
    ("flow", {"run"}),
    ("explain", {"explain"}),
    ("search", {"without_recipe"}),
    ("surface", {"verbs"}),
)
ENTRIES = {"__init__", "__main__", "cli"}  # above all
AT_MOST = 16  # Python files directly in edgekd/
DEVICE = {"runtimes"}  # copied to devices: knows nothing of edgekd; anybody may load it
PARTS = {"losses", "teachers", "ensembles", "criteria", "ranges", "formats", "probes", "stages", "decisions", "report"}
# a stage brings parts together
BRING = {
    "stages": {"losses", "teachers", "ensembles", "criteria", "ranges", "formats"},
    # what there is to judge and to show is what probes declare
    "decisions": {"probes"},
    "report": {"probes"},
}


def unit(path: Path) -> str:
    """The module or folder under edgekd that a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def layer(name: str) -> int:
    """The rank of a file or folder under edgekd. Parts and engines share one."""
    if name in ENTRIES:
        return len(LAYERS)
    if (ROOT / f"{name}.py").is_file():
        return 0
    for rank, (title, folders) in enumerate(LAYERS):
        if name in folders:
            return rank - (title == "engines")
    raise LookupError(
        f"edgekd/{name}/ is in no layer: add it to LAYERS in {Path(__file__).name}, above all that it imports and "
        "below all that imports it, and to the tree in edgekd/README.md"
    )


def imports(path: Path, text: str) -> set[str]:
    """The units of edgekd that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{a.name}" if node.module == "edgekd" else str(node.module) for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"edgekd.{unit(path)}"]
        else:
            continue
        found |= {n.split(".")[1] for n in names if n.startswith("edgekd.")}
    return found - {"__version__", unit(path)}


def offences(files: dict[Path, str]) -> list[str]:
    found = []
    for path, text in files.items():
        here = unit(path)
        for name in sorted(imports(path, text)):
            if here in DEVICE:
                found.append(f"{path}: {here} imports {name}, but is copied to devices")
            elif name in DEVICE:
                continue
            elif layer(name) > layer(here):
                found.append(f"{path}: {here} imports {name}, which is above it")
            elif here in PARTS and name in PARTS and name not in BRING.get(here, ()):
                found.append(f"{path}: {here} imports {name}, another kind of part")
    return found


def cycle(files: dict[Path, str]) -> list[str]:
    """A circle of imports among files and folders, wherever in a file they stand; [] if there is none."""
    graph: dict[str, set[str]] = {}
    for path, text in files.items():
        if unit(path) not in ENTRIES:
            graph.setdefault(unit(path), set()).update(imports(path, text) - ENTRIES)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def sources() -> dict[Path, str]:
    return {p: p.read_text() for p in ROOT.rglob("*.py")}


def test_every_module_has_a_layer():
    for name in {unit(p) for p in sources()} - DEVICE:
        layer(name)


def test_few_files_lie_directly_in_the_package():
    found = sorted(p.name for p in ROOT.glob("*.py"))
    assert len(found) <= AT_MOST, f"{len(found)} files: put the new one into the folder of what it is part of"


def test_imports_point_down():
    assert offences(sources()) == []


def test_imports_make_no_circle():
    """Also among folders of one layer, where each may import the other."""
    assert cycle(sources()) == []


@pytest.mark.parametrize(
    "place, line",
    [("hosts/ssh.py", "import edgekd.measure.jobs"), ("errors.py", "def f():\n    from edgekd import files")],
)
def test_a_planted_circle_is_found(place, line):
    files = sources()
    assert offences({ROOT / place: line}) == []
    path = ROOT / place
    assert {unit(path)} < set(cycle({**files, path: f"{files[path]}\n{line}\n"}))


@pytest.mark.parametrize(
    "place, line",
    [
        ("records.py", "from edgekd.store.store import Store"),
        ("losses/kl.py", "import edgekd.run.plan"),
        ("losses/kl.py", "def f():\n    from edgekd.run import recipe"),
        ("probes/static.py", "from edgekd.formats.onnx import export"),
        ("runtimes/worker.py", "from edgekd import errors"),
    ],
)
def test_a_planted_import_is_found(place, line):
    assert offences({ROOT / place: line})


def loaded_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(' '.join(sorted({{m.partition('.')[0] for m in sys.modules}})))"
    return set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )


def test_import_edgekd_is_light():
    assert not loaded_by("import edgekd; edgekd.Task; edgekd.UsageError") & {
        "torch",
        "onnx",
        "onnxruntime",
        "sklearn",
        "numpy",
        "pydantic",
        "rich",
    }


def test_help_is_light():
    code = (
        "from edgekd.cli import run\n"
        "import io, contextlib\n"
        "with contextlib.redirect_stdout(io.StringIO()): run(['--help'])"
    )
    assert not loaded_by(code) & {"torch", "onnx", "onnxruntime", "sklearn", "numpy", "pydantic", "rich"}


def test_what_probes_declare_is_light():
    """`gate` and `list` read it, on machines that run no network."""
    code = "import edgekd.verbs.gate, edgekd.probes\nassert 'macs' in edgekd.probes.declared()"
    assert not loaded_by(code) & {"torch", "onnx", "onnxruntime", "sklearn", "scipy"}


def test_public_names_resolve():
    import edgekd

    assert all(getattr(edgekd, name) is not None for name in edgekd.__all__)
