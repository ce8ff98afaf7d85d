"""The verb `quantize`: a float ONNX file from anywhere and samples of its inputs become an int8 file that was
checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import click

from edgekd.store.scratch import scratch
from edgekd.verbs import _options

if TYPE_CHECKING:
    from edgekd.report.drop import Held
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
@click.option("--equalize", is_flag=True, help="Make the channels of values equally wide before.")
@click.option("--correct-bias", is_flag=True, help="Let biases make up for the rounding of weights.")
@click.option("--weight-bits", type=click.Choice(["8", "7"]), help="Instead of the target's.")
@click.option(
    "--full-range", is_flag=True, help="Weights take all of int8: x86 with AVX2 and without VNNI may answer otherwise."
)
@click.option("--samples", type=int, default=512, show_default=True, help="Use at most this many samples.")
@click.option(
    "--float-layer", "float_layers", multiple=True, metavar="NAME", help="Keep this layer in float. Repeat for several."
)
@click.option(
    "--like", type=click.Path(), metavar="FILE", help="Keep the layers in float that this int8 FILE of edgekd keeps."
)
@click.option(
    "--slower-int8", is_flag=True, help="All layers in int8, even where that is slower than float; nothing is timed."
)
@click.option("--on", metavar="ADDRESS", help=f"Time on a board. {_options.BOARD}")
@click.option(
    "--max-drop",
    metavar="D",
    help="What may be lost on held-out samples, or nothing is written: '1 pt' of accuracy or of answers equal to "
    "float's, '30 dB', '0.02 package.module:metric'.",
)
@click.option("--input", "input_type", type=click.Choice(["uint8"]), help="The file takes bytes instead of floats.")
@click.option("--layout", type=click.Choice(["nhwc"]), help="The file takes images with the channels last.")
@click.option(
    "--fold-preprocess",
    metavar="P",
    help="The file takes pixels of 0 to 255: imagenet, unit or FILE.json goes into its first layer.",
)
@click.option("--argmax", is_flag=True, help="The file answers with class indices instead of scores.")
@_options.quiet
def command(model, weight_bits, **settings):
    """Quantize a float ONNX MODEL of any making to int8 by samples of its inputs, and check the file.

    Where the target can be timed, here or with --on, int8 is timed against float, and layers whose int8 costs time go
    back to float. They are printed as --float-layer options, and the file names them. With --float-layer, --like or
    --slower-int8 nothing is timed, and the same command makes the same file.
    """
    bits = None if weight_bits is None else int(weight_bits)
    return _options.finish(quantize(model, weight_bits=bits, **settings))


def quantize(
    model: Path | str,
    *,
    data: Path | str,
    out: Path | str,
    target: str = "host",
    ranges: str = "minmax",
    equalize: bool = False,
    correct_bias: bool = False,
    weight_bits: int | None = None,
    full_range: bool = False,
    samples: int = 512,
    float_layers: Sequence[str] = (),
    axes: Mapping[str, int | None] = MappingProxyType({}),
    preprocess: Path | str | None = None,
    states: Mapping[str, str] = MappingProxyType({}),
    like: Path | str | None = None,
    slower_int8: bool = False,
    on: str | None = None,
    max_drop: str | None = None,
    input_type: str | None = None,
    layout: str | None = None,
    fold_preprocess: Path | str | None = None,
    argmax: bool = False,
    quiet: bool = True,
) -> Quantized | Held:
    """Quantizes `model` by up to `samples` of `data`, and writes `out`; `float_layers` (names as the table shows them)
    stay float. `full_range`: weights take all of int8, and the file may answer otherwise on x86 with AVX2 and without
    VNNI.

    `data`: an .npz with `inputs` (or an array per input name) and optionally `labels`, or a folder with one .npz per
    sample, of images or of .wav files, which become arrays by `preprocess`: "imagenet", "unit" or a JSON file. `axes`
    {input: axis of its samples, None: the same array for all}. `states` {input: the output that it takes the value of
    at the next step}: the data are sequences.

    Where this machine, or the board `on`, can time the target, layers whose int8 costs time go back to float, until
    int8 is not shown slower than float. Nothing is timed if `float_layers` are given, if they are taken from the file
    `like`, or if int8 may be slower (`slower_int8`).

    `equalize`: channels of values are made equally wide first; `correct_bias`: biases make up for the rounding of
    weights. `max_drop`, as the option takes it: ranges, these two and then layers in float are tried until held-out
    samples apart from those that select lose no more; else nothing is written, and what is returned says so.

    `input_type` "uint8": the file takes bytes; `layout` "nhwc": images with the channels last; `fold_preprocess`, a
    name or a JSON file as of `preprocess`: pixels of 0 to 255, whose normalization goes into the first layer; `argmax`:
    it answers with class indices. What it answers is otherwise the same, which is checked.

    Raises UsageError with every problem of what was given; RunFailed where onnxruntime computes other outputs than
    it says."""

    from edgekd.files import writing
    from edgekd.onnx_files import external
    from edgekd.progress import reporter
    from edgekd.report.int8 import Quantized
    from edgekd.run import quantize_file, quantize_interface
    from edgekd.run.quantize_inputs import Asked, checked
    from edgekd.run.quantize_interface import Interface
    from edgekd.samples.source import Source

    interface = Interface(input_type == "uint8", layout == "nhwc", argmax, fold_preprocess)
    asked = Asked(
        model,
        Source(data, axes, preprocess, states),
        out,
        target,
        ranges=ranges,
        weight_bits=weight_bits,
        full_range=full_range,
        samples=samples,
        float_layers=float_layers,
        like=like,
        slower_int8=slower_int8,
        on=on,
        max_drop=max_drop,
        equalize=equalize,
        correct_bias=correct_bias,
        interface=interface,
    )
    given = checked(asked)
    before, progress = given, reporter(quiet)
    try:
        with scratch() as folder:
            given = quantize_interface.folded(given, interface, Path(folder))
            made = quantize_file.make(given, ranges, progress)
            made, speed = quantize_file.fast(given, made, ranges, progress)
            timed = speed.float_layers if speed is not None else ()
            given, made, speed, held = quantize_file.held(given, made, speed, ranges, progress)
            if held is not None and not held.held:
                return held
            with progress.task("check the file"):
                found = quantize_file.look(given, made)
                found = quantize_interface.delivered(found, made.model, given, interface)
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
        quantize_file.explained(found.layers, before.scheme.float_layers, timed),
        found.beside.agreements,
        found.differ,
        compared=found.beside.samples,
        unused=given.unused,
        audited=found.audited,
        full_range=" and ".join(wide),
        top1=found.beside.right,
        speed=speed,
        held=held,
        notes=found.notes,
        larger=quantize_file.larger(made, external.size(before.path)),
    )
