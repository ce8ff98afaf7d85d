"""The verb `quantize`: a float ONNX file from anywhere and samples of its inputs become an int8 file that was
checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekd.verbs import _options

if TYPE_CHECKING:
    from edgekd.report.int8 import Quantized


@click.command()
@click.argument("model", type=click.Path())
@click.option(
    "--data",
    required=True,
    type=click.Path(),
    help="An .npz with `inputs` (or an array per input name) and optionally `labels`.",
)
@click.option("--out", required=True, type=click.Path(), help="The int8 file to write.")
@click.option(
    "--target",
    default="host",
    show_default=True,
    metavar="T",
    help="A target's name or file: the weights' lattices suit it.",
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
    quiet: bool = True,
) -> Quantized:
    """Quantizes `model` by up to `samples` of `data`, an .npz with `inputs` (or an array per input name) and optionally
    `labels`, and writes `out`; `float_layers` (names as the table shows them) stay float. `full_range`: weights take
    all of int8, and the file may answer otherwise on x86 with AVX2 and without VNNI.

    Raises UsageError with every problem of what was given; RunFailed where onnxruntime computes the file otherwise than
    it says."""
    import tempfile

    from edgekd import targets
    from edgekd.files import write_atomic, writing
    from edgekd.measure import jobs
    from edgekd.measure.machine import runnable, user_error
    from edgekd.progress import reporter
    from edgekd.quantization.diagnosis import signal_to_noise
    from edgekd.quantization.onnx_graph import convert
    from edgekd.report.int8 import Quantized
    from edgekd.run.quantize_file import FEW, affordable, checked, finished, simulated, table

    path, parsed, given, labels, scheme, counts = checked(
        model, data, out, target, ranges, weight_bits, full_range, samples
    )
    scheme = dataclasses.replace(scheme, float_layers=tuple(float_layers))
    progress, notes = reporter(quiet), []
    count, unused = counts[0], counts[1] > 0
    arrays = {name: a[:count] for name, a in given.items()}
    judged = {name: a[count:] for name, a in given.items()} if unused else arrays
    try:
        with tempfile.TemporaryDirectory(prefix="edgekd-") as folder, user_error():
            jobs.tried({str(path): path}, arrays, folder=Path(folder))
        with progress.task("calibrate") as advance, runnable(str(path)):
            made = convert.quantize(
                parsed,
                arrays,
                scheme=scheme,
                ranges=ranges,
                place_name=str(path),
                progress=lambda done, of: advance(done, of, ""),
            )
        with tempfile.TemporaryDirectory(prefix="edgekd-") as folder, progress.task("check the file"):
            place = Path(folder) / "int8.onnx"
            content = finished(made.model)
            place.write_bytes(content)
            few = {
                name: a[: affordable(made.float_model, convert.fixed_rows(parsed), count)] for name, a in arrays.items()
            }
            differ = simulated(place, few, notes)
            layers, audited = table(made, place, few, notes)
            found = signal_to_noise.files(path, place, judged, labels, convert.fixed_rows(parsed))
    finally:
        progress.close()
    with writing(out):
        write_atomic(out, content)
    if count < FEW:
        few_samples = "1 sample" if count == 1 else f"{count} samples"
        notes.append(
            f"calibrated on {few_samples} only: values outside the ranges seen will be clipped; give {FEW} or more"
        )
    notes += [f"output {text}: it is not compared" for text in found.left]
    if any(a.snr_db is not None and a.snr_db < 20 for a in found.agreements):
        notes.append("less than 20 dB: try --ranges percentile or mse, or keep this model in float")
    sizes = path.stat().st_size, len(content)
    return Quantized(
        path.name,
        str(out),
        *sizes,
        target,
        scheme.weight_bits,
        count,
        layers,
        found.agreements,
        differ,
        compared=found.samples,
        unused=unused,
        audited=audited,
        full_range=" and ".join(
            ["--full-range"] * full_range + [f"pairs16 = false in {target}"] * (not targets.load(target).int8.pairs16)
        ),
        top1=found.right,
        notes=tuple(notes),
    )
