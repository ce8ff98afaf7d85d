"""The verb `quantize`: a float ONNX file from anywhere and samples of its inputs become an int8 file that was
checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import click

from edgekd.verbs import _options

if TYPE_CHECKING:
    from edgekd.report.int8 import Quantized


@click.command()
@click.argument("model", type=click.Path())
@_options.samples(
    "Samples: an .npz with `inputs` (or an array per input name) and optionally `labels`, or a folder with one .npz "
    "per sample, of images or of .wav files.",
    required=True,
)
@click.option("--out", required=True, type=click.Path(), help="The int8 file to write.")
@click.option(
    "--target",
    default="host",
    show_default=True,
    metavar="T",
    help="A target's name or file: use this target's int8 scheme.",
)
@click.option(
    "--ranges",
    default="minmax",
    show_default=True,
    metavar="R",
    help="How ranges are taken: minmax, percentile, entropy, mse.",
)
@click.option("--weight-bits", type=click.Choice(["8", "7"]), help="Instead of the target's.")
@click.option(
    "--full-range", is_flag=True, help="Weights take all of int8: x86 with AVX2 and without VNNI may answer otherwise."
)
@click.option("--samples", type=int, default=512, show_default=True, help="Use at most this many samples.")
@click.option(
    "--float-layer", "float_layers", multiple=True, metavar="NAME", help="Keep this layer in float. Repeat for several."
)
@click.option("--input", "input_type", type=click.Choice(["uint8"]), help="The file takes bytes instead of floats.")
@click.option("--layout", type=click.Choice(["nhwc"]), help="The file takes images with the channels last.")
@click.option(
    "--fold-preprocess",
    metavar="P",
    help="The file takes pixels of 0 to 255: imagenet, unit or FILE.json goes into its first layer.",
)
@click.option("--argmax", is_flag=True, help="The file answers with class numbers instead of scores.")
@_options.quiet
def command(model, weight_bits, **settings):
    """Quantize a float ONNX MODEL of any making to int8 by samples of its inputs, and check the file."""
    bits = None if weight_bits is None else int(weight_bits)
    return _options.finish(quantize(model, weight_bits=bits, **settings))


def quantize(
    model: Path | str,
    *,
    data: Path | str,
    out: Path | str,
    target: str = "host",
    ranges: str = "minmax",
    weight_bits: int | None = None,
    full_range: bool = False,
    samples: int = 512,
    float_layers: Sequence[str] = (),
    axes: Mapping[str, int | None] = MappingProxyType({}),
    preprocess: Path | str | None = None,
    states: Mapping[str, str] = MappingProxyType({}),
    input_type: str | None = None,
    layout: str | None = None,
    fold_preprocess: Path | str | None = None,
    argmax: bool = False,
    quiet: bool = True,
) -> Quantized:
    """Quantizes `model` by up to `samples` of `data`, and writes `out`; `float_layers` (names as the table shows them)
    stay float. `full_range`: weights take all of int8, and the file may answer otherwise on x86 with AVX2 and without
    VNNI.

    `data`: an .npz with `inputs` (or an array per input name) and optionally `labels`, or a folder with one .npz per
    sample, of images or of .wav files, which become arrays by `preprocess`: "imagenet", "unit" or a JSON file. `axes`
    {input: axis of its samples, None: the same array for all}. `states` {input: the output that it takes the value of
    at the next step}: the data are sequences.

    `input_type` "uint8": the file takes bytes; `layout` "nhwc": images with the channels last; `fold_preprocess`, a
    name or a JSON file as of `preprocess`: pixels of 0 to 255, whose normalization goes into the first layer; `argmax`:
    it answers with class numbers. What it answers is otherwise the same, which is checked.

    Raises UsageError with every problem of what was given; RunFailed where onnxruntime computes other outputs than
    it says."""
    import tempfile

    from edgekd.files import writing
    from edgekd.onnx_files import external
    from edgekd.progress import reporter
    from edgekd.report.int8 import Quantized
    from edgekd.run import quantize_file, quantize_interface
    from edgekd.run.quantize_inputs import checked
    from edgekd.run.quantize_interface import Interface
    from edgekd.samples.source import Source

    given = checked(
        model,
        Source(data, axes, preprocess, states),
        out,
        target,
        ranges=ranges,
        weight_bits=weight_bits,
        full_range=full_range,
        samples=samples,
        float_layers=float_layers,
        interface=(interface := Interface(input_type == "uint8", layout == "nhwc", argmax, fold_preprocess)),
    )
    before, progress = given, reporter(quiet)
    try:
        with tempfile.TemporaryDirectory(prefix="edgekd-") as folder:
            given = quantize_interface.folded(given, interface, Path(folder))
            made = quantize_file.make(given, ranges, progress)
            with progress.task("check the file"):
                found = quantize_interface.delivered(quantize_file.look(given, made), given, interface)
    finally:
        progress.close()
    with writing(out):
        external.put(found.content, Path(out).parent)
    wide = ["--full-range"] * full_range + [f"pairs16 = false in {target}"] * (not given.target.int8.pairs16)
    return Quantized(
        given.path.name,
        str(out),
        external.size(before.path),
        sum(len(data) for _, data in found.content),
        target,
        given.scheme.weight_bits,
        given.samples,
        found.layers,
        found.beside.agreements,
        found.differ,
        compared=found.beside.samples,
        unused=given.unused,
        audited=found.audited,
        full_range=" and ".join(wide),
        top1=found.beside.right,
        notes=found.notes,
    )
