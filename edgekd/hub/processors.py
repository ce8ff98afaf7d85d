"""What turns texts and images into the inputs of a Hugging Face folder's model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekd import environment
from edgekd.errors import EnvironmentUnfit, Problem, UsageError
from edgekd.samples.preprocess import Preprocess

TOKENIZER = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")


def tokenize(folder: Path, texts: Sequence[str], length: int | None) -> dict[str, Any]:
    """See `Folder.tokenize`."""
    if not any((folder / name).is_file() for name in TOKENIZER):
        hint = "save it beside the model: tokenizer.save_pretrained(folder)"
        raise UsageError(Problem(str(folder), f"has no tokenizer ({', '.join(TOKENIZER)})", hint))
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if length is None:
        most = min(tokenizer.model_max_length, 2**31)
        rows = tokenizer(list(texts), truncation=True, max_length=most)["input_ids"]
        return {"input_ids": [np.array(row, np.int64) for row in rows]}
    if tokenizer.pad_token is None:
        raise UsageError(
            Problem(str(folder), "its tokenizer has no token to fill with", "tokenize(texts) fills nothing")
        )
    found = tokenizer(list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="np")
    return {name: np.asarray(values, np.int64) for name, values in found.items()}


def preprocess(folder: Path) -> Preprocess:
    """See `Folder.preprocess`."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        hint = "save it beside the model: processor.save_pretrained(folder)"
        raise UsageError(Problem(str(folder), "has no preprocessor_config.json", hint))
    facts = json.loads(path.read_text(encoding="utf-8"))
    scaled = facts.get("do_normalize", True) and "image_mean" in facts
    size = _size(facts.get("size")) if facts.get("do_resize", True) else None
    cut = _size(facts.get("crop_size")) if facts.get("do_center_crop", "crop_size" in facts) else None
    return Preprocess(
        resize=size,
        crop=cut or (size if isinstance(size, tuple) else None),
        scale=facts.get("rescale_factor", 1 / 255) if facts.get("do_rescale", True) else 1.0,
        mean=tuple(facts["image_mean"]) if scaled else (0.0,),
        deviation=tuple(facts["image_std"]) if scaled else (1.0,),
        layout="nchw",
    )


def _size(said: Any) -> int | tuple[int, int] | None:
    """The shorter side, or (height, width)."""
    if isinstance(said, Mapping):
        if "shortest_edge" in said:
            return int(said["shortest_edge"])
        return (int(said["height"]), int(said["width"])) if "height" in said else None
    return None if said is None else (int(said), int(said))


def images(folder: Path, given: Sequence[Any]) -> np.ndarray:
    """See `Folder.images`."""
    return np.stack([_image(preprocess(folder), image) for image in given])


def _image(how: Preprocess, image: Any) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError:
        raise EnvironmentUnfit(Problem("", "reading images needs Pillow", environment.extra("images"))) from None
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    picture = (Image.open(image) if isinstance(image, str | Path) else image).convert("RGB")
    if isinstance(how.resize, tuple):
        picture = picture.resize(how.resize[::-1], Image.Resampling.BILINEAR)
    elif how.resize is not None:
        share = how.resize / min(picture.size)
        width, height = (round(side * share) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    if how.crop is not None:
        high, wide = how.crop if isinstance(how.crop, tuple) else (how.crop, how.crop)
        left, top = (picture.width - wide) // 2, (picture.height - high) // 2
        picture = picture.crop((left, top, left + wide, top + high))
    values = np.asarray(picture, np.float32) * np.float32(how.scale if how.scale is not None else 1 / 255)
    values = (values - np.array(how.mean, np.float32)) / np.array(how.deviation, np.float32)
    return np.ascontiguousarray(values.transpose(2, 0, 1))
