"""How images and sounds become arrays: built in by name, or a JSON file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, MinLen

from edgekd import signatures
from edgekd.errors import Problem, UsageError, near
from edgekd.files import content, reading

Side = Annotated[int, Ge(1), Le(16384)]
LEAST = 1e-9  # factor by which samples may be made smaller or larger
HINT = "`edgekd schema preprocess` prints what it may hold"


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How images or sounds become the input of a model.

    Images: the shorter side is scaled to `resize`, or the image to [height, width]; without it, so that what is cut out
    fits in `margin` times. The middle is cut out to `crop`, by default to the size that the model takes. Values of 0 to
    255 are multiplied by `scale` (default 1 / 255; 1 where the model takes integers), less `mean`, divided by
    `deviation`: one number, or one per channel. `layout`: where the channels are, by default as the model's shape says;
    `order` of the colours.

    Sounds: values of -1 to 1 (multiplied by `scale` and so on) at `rate` Hz, by default the files' own; the middle
    `length` values are cut out, or zeros added after the end, by default to what the model takes.
    """

    resize: Side | tuple[Side, Side] | None = None
    margin: Annotated[float, Ge(1), Le(16)] = 1.0
    crop: Side | tuple[Side, Side] | None = None
    scale: float | None = None
    mean: Annotated[tuple[float, ...], MinLen(1)] = (0.0,)
    deviation: Annotated[tuple[Annotated[float, Gt(0)], ...], MinLen(1)] = (1.0,)
    layout: Literal["nchw", "nhwc"] | None = None
    order: Literal["rgb", "bgr"] = "rgb"
    rate: Annotated[int, Ge(1), Le(768_000)] | None = None
    length: Annotated[int, Ge(1), Le(2**26)] | None = None


BUILT_IN = {
    "unit": Preprocess(),
    "imagenet": Preprocess(margin=256 / 224, mean=(0.485, 0.456, 0.406), deviation=(0.229, 0.224, 0.225)),
}


def load(name: Path | str) -> Preprocess:
    """The one of this name, or of a JSON file. Raises UsageError with every problem."""
    if str(name) in BUILT_IN:
        return BUILT_IN[str(name)]
    path = Path(name)
    if path.suffix != ".json":
        hint = near(str(name), BUILT_IN, f"imagenet, unit, or a .json file; {HINT}")
        raise UsageError(Problem("--preprocess", f"there is no `{name}`", hint))
    with reading(path):
        text = content(path, 2**20)
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(Problem(str(path), f"is not valid JSON: {error}", HINT)) from None
    if not isinstance(table, dict):
        raise UsageError(Problem(str(path), "is not a JSON object", HINT))
    model = signatures.model_of(Preprocess)
    made, problems = signatures.check(model, table, str(path))
    if problems:
        raise UsageError(*problems)
    found = Preprocess(**{name: getattr(made, name) for name in model.model_fields})
    scale = 1.0 if found.scale is None else abs(found.scale)
    if not all(
        LEAST <= factor <= 1 / LEAST for factor in (scale, *(scale / max(d, LEAST**2) for d in found.deviation))
    ):
        text = "scale, or scale / deviation, is 0 or too large: every sample would be the same, or not finite"
        raise UsageError(Problem(str(path), text, "for images the values behind it are mostly of the size 1"))
    return found
