"""Models of a folder that Hugging Face's `save_pretrained` writes: config.json, safetensors, and what turns texts or
images into their inputs. Nothing in the folder is executed or unpickled."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd import environment
from edgekd.errors import EnvironmentUnfit, Problem, UsageError
from edgekd.files import content, reading, sha256

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from edgekd.samples.preprocess import Preprocess

PREFIX = "hf:"
NAME = re.compile(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}")
READ = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.json",
    "*.txt",
    "*.model",
    "README.md",
)  # never pickle, nor code
BY_CODE = "the folder's own code is never run"


@dataclass(frozen=True)
class Folder:
    """A model as a task takes it: called, it makes the module with the folder's weights. Keys of steps have `digests`,
    {file: sha256} of config and weights; where the folder lies is not part of them. `source`: the name on the hub, with
    its revision; "" for a folder. `classes`: of a new head; None: the folder's own."""

    config: Path  # <folder>/config.json: a path's name is what keys have
    digests: Mapping[str, str]
    outputs: tuple[str, ...] = ("logits",)
    classes: int | None = None
    source: str = ""

    @property
    def folder(self) -> Path:
        return self.config.parent

    @property
    def facts(self) -> Mapping[str, Any]:
        """The content of config.json."""
        return _table(self.config)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes, in their order."""
        return tuple(name for _, name in sorted(self.facts.get("id2label", {}).items(), key=lambda item: int(item[0])))

    @property
    def licence(self) -> str:
        """What the front matter of README.md says under `license`; "" where it says nothing."""
        path = self.folder / "README.md"
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
        found = re.search(r"^license:\s*([^\n#]+)", front[1], re.MULTILINE) if front else None
        return found[1].strip().strip("\"'") if found else ""

    @property
    def origin(self) -> dict[str, Any]:
        """What a run records of the model."""
        known = {"source": self.source, "architecture": self.facts["architectures"][0], "licence": self.licence}
        return {name: value for name, value in known.items() if value} | {"files": dict(self.digests)}

    def __call__(self) -> nn.Module:
        return wrapped(_loaded(self), self.outputs)

    def tokenize(self, texts: Sequence[str], length: int | None = None) -> dict[str, Any]:
        """Texts as the inputs of the model, {"input_ids", "attention_mask", ...} int64: filled and cut to `length`
        tokens, [n, length]; None: lists of arrays [T], {"input_ids": ...} alone, for inputs of different length. Raises
        UsageError where the folder has no tokenizer."""
        from edgekd.hub import processors

        return processors.tokenize(self.folder, texts, length)

    @property
    def preprocess(self) -> Preprocess:
        """How images become the model's input: size, mean and deviation of preprocessor_config.json."""
        from edgekd.hub import processors

        return processors.preprocess(self.folder)

    def images(self, images: Sequence[Any]) -> np.ndarray:
        """Images (of Pillow, paths, or uint8 [height, width, 3]) as float32 [n, 3, height, width], by `preprocess`."""
        from edgekd.hub import processors

        return processors.images(self.folder, images)


def hf(
    model: Path | str,
    *,
    outputs: str | Sequence[str] = "logits",
    classes: int | None = None,
    beside: Path | str = "",
) -> Folder:
    """A Hugging Face model for `Task.models`: a folder with config.json and safetensors ("hf:FOLDER" too), or a name on
    the hub with the commit that is meant, "ORGANISATION/NAME@COMMIT".

    The class is the first of `architectures` in config.json. It takes the task's inputs by their names (pixel_values,
    input_ids, attention_mask, input_values, ...), one array as its main input, and an input of lengths as the mask of
    its steps. `outputs`: the fields of its answer that the task's outputs are, in their order. `classes`: gives the
    model a new head with so many outputs where its own has another number, to be trained. `beside`: the folder that
    paths are relative to. Raises UsageError for a folder without readable config or safetensors, EnvironmentUnfit
    without the extra `hf`."""
    name = str(model).removeprefix(PREFIX)
    _transformers(name)
    folder, source = Path(beside) / name, ""
    if not folder.is_dir():
        folder, source = _snapshot(name), name
    config = folder / "config.json"
    if not config.is_file():
        raise UsageError(Problem(str(folder), "has no config.json", "give what `save_pretrained` wrote"))
    facts = _table(config)
    _architecture(facts, folder)
    digests = {path.name: sha256(path) for path in (config, *_weights(folder, facts))}
    return Folder(config, digests, (outputs,) if isinstance(outputs, str) else tuple(outputs), classes, source)


def wrapped(model: Any, outputs: Sequence[str]) -> nn.Module:
    """A model of transformers as a module that takes an array or {name: array}, and gives a tensor, or {name:
    tensor} of several `outputs`."""
    import inspect

    from torch import nn

    from edgekd.models import sequences

    taken, main = list(inspect.signature(model.forward).parameters), model.main_input_name

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, inputs: Any) -> Any:
            named = inputs if isinstance(inputs, Mapping) else {main: inputs}
            given = {name: value for name, value in named.items() if name in taken}
            first = given.get(main)
            for name in (n for n in named if n not in given):
                if first is None or named[name].dim() != 1:
                    raise ValueError(f"{type(model).__name__} takes no input {name!r}: it takes {', '.join(taken)}")
                given["attention_mask"] = sequences.mask(first, named[name]).to(named[name].dtype)
            answer = self.model(**given, return_dict=True)
            lacking = [name for name in outputs if name not in answer]
            if lacking:
                raise ValueError(f"{type(model).__name__} gives no {', '.join(lacking)}: it gives {', '.join(answer)}")
            return answer[outputs[0]] if len(outputs) == 1 else {name: answer[name] for name in outputs}

    return Wrapped()


def _loaded(made: Folder) -> Any:
    """The model of transformers in float32. Raises UsageError where the folder's tensors are not all of the model's."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    head = {} if made.classes is None else {"num_labels": made.classes, "ignore_mismatched_sizes": True}
    try:
        model, told = _architecture(made.facts, made.folder).from_pretrained(
            made.folder,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
            **head,
        )
    except Exception as error:  # transformers', safetensors' and the file's own classes
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(Problem(str(made.folder), f"can't be loaded: {text}")) from None
    lacking = [] if made.classes is not None else [*sorted(told["missing_keys"]), *map(str, told["mismatched_keys"])]
    if lacking:
        hint = "its head is new: give `classes`, and train it" if len(lacking) < 5 else "save it with `save_pretrained`"
        raise UsageError(Problem(str(made.folder), f"has no weights for {', '.join(lacking[:5])}", hint))
    model.config.use_cache = False  # keys and values of earlier tokens: empty tensors in every graph
    return model


def _architecture(facts: Mapping[str, Any], folder: Path) -> Any:
    """The class of transformers that config.json names."""
    named = (facts.get("architectures") or [""])[0]
    found = getattr(_transformers(str(folder)), named, None) if named else None
    if found is None or not hasattr(found, "from_pretrained") or not hasattr(found, "main_input_name"):
        text = f"names the class {named!r}, which transformers doesn't have" if named else "names no `architectures`"
        hint = BY_CODE if "auto_map" in facts else 'such as "architectures": ["ViTForImageClassification"]'
        raise UsageError(Problem(str(folder / "config.json"), text, hint))
    return found


def _weights(folder: Path, facts: Mapping[str, Any]) -> list[Path]:
    """All files that decide the weights: those of tensors, and the index of several. Raises UsageError where some lie
    elsewhere: keys would not have them."""
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        pickled = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
        text = f"has {', '.join(pickled)} only: loading pickle can run code" if pickled else "has no weights"
        raise UsageError(Problem(str(folder), text, "give safetensors: `model.save_pretrained(folder)` writes them"))
    index = sorted(folder.glob("*.safetensors.index.json"))
    if (folder / "adapter_config.json").is_file():
        hint = "save the whole model: `model.merge_and_unload().save_pretrained(folder)`"
        raise UsageError(Problem(str(folder), "is an adapter of a model that lies elsewhere", hint))
    told = [_table(path).get("weight_map") for path in index] if not (folder / "model.safetensors").is_file() else []
    named = {str(name) for each in told if isinstance(each, Mapping) for name in each.values()}
    named |= {str(facts["transformers_weights"])} if facts.get("transformers_weights") else set()
    if elsewhere := sorted(named - {path.name for path in (*found, *index)}):
        raise UsageError(
            Problem(str(folder), f"has no {', '.join(elsewhere[:5])}, which its weights are said to be in")
        )
    return [*found, *index]


def _table(path: Path) -> dict[str, Any]:
    with reading(path):
        text = content(path)
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(Problem(str(path), f"is not valid JSON: {error}")) from None
    if not isinstance(table, dict):
        raise UsageError(Problem(str(path), "is not a JSON object"))
    return table


def _transformers(place: str) -> Any:
    try:
        import transformers
    except ImportError:
        text = "models of Hugging Face need transformers"
        raise EnvironmentUnfit(Problem(place, text, environment.extra("hf"))) from None
    return transformers


def _snapshot(name: str) -> Path:
    """The folder of a model of the hub, at the commit that its name has."""
    if not NAME.fullmatch(name):
        hint = "give a folder, or ORGANISATION/NAME@COMMIT with the 40 digits of a commit: a branch may change"
        raise UsageError(Problem(name, "there is no such folder", hint))
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(READ)))
    except Exception as error:  # of the hub's client, of the network, of the disk
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        hint = "where the hub can't be reached, give a folder"
        raise EnvironmentUnfit(Problem(name, f"can't be fetched from the hub: {text}", hint)) from None
