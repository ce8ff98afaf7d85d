"""The tree is the architecture: imports point down, part folders don't know each other, light things stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "edgekd"
LAYERS = [  # low to high; a module may import its own layer and those before it
    {"records", "errors"},
    {"components", "store", "fingerprint", "intervals", "environment", "results", "files", "locks", "syntax"},
    {"tasks", "data", "metrics", "networks", "augmentation", "targets"},
    {"losses", "teachers", "ensembles", "sources", "criteria", "ranges", "formats", "probes", "pruning", "quantization", "train", "models"}
    | {"predicting", "terms", "trials", "taps", "guides", "balance", "agreement", "checkpoints", "measure", "counts", "hosts"},
    {"stages", "decisions", "report", "delivery"},
    {
        *("recipe", "settings", "resolving", "asked", "wants", "checking", "plan", "rehearsing"),
        *("pipeline", "observing", "outcome", "proving", "mixing"),
        *("gating", "evidence", "baselines"),
        *("measuring", "emulating", "standing", "calibrating"),
        *("quantizing", "explaining", "subjects", "fixing", "remaking", "listing", "sizing", "samples"),
    },
    {"__init__", "__main__", "cli"},
]
DEVICE = {"runtimes"}  # copied to devices: knows nothing of edgekd; anybody may load it
PARTS = {"losses", "teachers", "ensembles", "criteria", "ranges", "formats", "probes", "stages", "decisions", "report", "delivery"}
BRING = {"stages": {"losses", "teachers", "ensembles", "criteria", "ranges", "formats"}}  # a stage brings parts together


def unit(path: Path) -> str:
    """The module or folder under edgekd that a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


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


def rank(name: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if name in layer)


def offences(files: dict[Path, str]) -> list[str]:
    found = []
    for path, text in files.items():
        here = unit(path)
        for name in sorted(imports(path, text)):
            if here in DEVICE:
                found.append(f"{path}: {here} imports {name}, but is copied to devices")
            elif name in DEVICE:
                continue
            elif rank(name) > rank(here):
                found.append(f"{path}: {here} imports {name}, which is above it")
            elif here in PARTS and name in PARTS and name not in BRING.get(here, ()):
                found.append(f"{path}: {here} imports {name}, another kind of part")
    return found


def sources() -> dict[Path, str]:
    return {p: p.read_text() for p in ROOT.rglob("*.py")}


def test_every_module_has_a_layer():
    known = set().union(*LAYERS) | DEVICE
    assert {unit(p) for p in sources()} <= known


def test_imports_point_down():
    assert offences(sources()) == []


@pytest.mark.parametrize(
    "place, line",
    [
        ("records.py", "from edgekd.store import Store"),
        ("losses/kl.py", "import edgekd.plan"),
        ("losses/kl.py", "def f():\n    from edgekd import recipe"),
        ("probes/static.py", "from edgekd.formats.onnx import export"),
        ("runtimes/worker.py", "from edgekd import errors"),
    ],
)
def test_a_planted_import_is_found(place, line):
    assert offences({ROOT / place: line})


def loaded_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(' '.join(sorted({{m.partition('.')[0] for m in sys.modules}})))"
    return set(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split())


def test_import_edgekd_is_light():
    assert not loaded_by("import edgekd; edgekd.Task; edgekd.UsageError") & {"torch", "onnx", "onnxruntime", "sklearn", "numpy", "pydantic", "rich"}


def test_help_is_light():
    code = "from edgekd.cli import run\nimport io, contextlib\nwith contextlib.redirect_stdout(io.StringIO()): run(['--help'])"
    assert not loaded_by(code) & {"torch", "onnx", "onnxruntime", "sklearn", "numpy", "pydantic", "rich"}


def test_public_names_resolve():
    import edgekd

    assert all(getattr(edgekd, name) is not None for name in edgekd.__all__)
