"""edgekd: distil, prune and quantize a teacher for the edge; profile, choose and gate the exported file.

    import edgekd
    run = edgekd.compress("recipe.toml", out="runs/mine")  # what `edgekd compress` does
    run.result, run.verdict, run.to_dataframe()
    edgekd.gate("runs/mine").exit_code

Names are loaded when used: `import edgekd` loads no torch.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

_VERBS = ("compress", "profile", "compare", "quantize", "gate", "report")
_HOME = {
    **{name: f"edgekd.verbs.{name}" for name in _VERBS},
    "arrays": "edgekd.data",
    "from_loader": "edgekd.data",
    "hf": "edgekd.hub.folder",
    **dict.fromkeys(("from_datasets", "from_parquet"), "edgekd.data.tables"),
    **dict.fromkeys(("top1", "mean_error"), "edgekd.metrics"),
    **dict.fromkeys(
        ("pixel_accuracy", "label_accuracy", "mean_iou", "f1", "rmse", "r2", "average_precision", "auc"),
        "edgekd.metrics.kinds",
    ),
    **dict.fromkeys(("top_k", "correlation"), "edgekd.metrics.ranking"),
    **dict.fromkeys(("word_error_rate", "character_error_rate"), "edgekd.metrics.strings"),
    **dict.fromkeys(("classes", "yes_no", "numbers", "embeddings", "raw"), "edgekd.outputs"),
    "streaming": "edgekd.models.streams",
    **dict.fromkeys(
        ("Task", "Sample", "Metric", "Signals", "Batch", "Measurement", "Candidate", "Result"), "edgekd.records"
    ),
    **dict.fromkeys(("EdgekdError", "UsageError", "EnvironmentUnfit", "BaselineError", "RunFailed"), "edgekd.errors"),
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'edgekd' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


class _Package(ModuleType):
    """This package: to import a part of it (`edgekd.report`) does not hide the function of that name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted(__all__)
