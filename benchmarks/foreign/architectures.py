"""Common architectures with random weights, small, as ONNX files: `python benchmarks/foreign/architectures.py FOLDER`.

Each function below makes one: (module, inputs as samples.py makes them, open dimensions). Batch norms have the
statistics of their inputs, with scales that differ from channel to channel as trained ones do. Opsets go round from 11
to 21; what torch's exporter can't write is converted. What is there already is left alone."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
import blocks
import samples
from blocks import Seq, conv, head

Made = tuple[nn.Module, Mapping[str, Any]]
NEWEST = 17  # opset that torch's TorchScript exporter writes well; newer ones are converted


def picture(size: int = 32, channels: int = 3) -> dict[str, Any]:
    return {"x": {"make": "image", "shape": [channels, size, size]}}


def words(length: int = 32, high: int = 500) -> dict[str, Any]:
    return {"ids": {"make": "integers", "shape": [length], "high": high, "dtype": "int64"}}


def frames(length: int = 96, bands: int = 40) -> dict[str, Any]:
    return {"x": {"make": "spectrum", "shape": [length, bands]}}


# ---------------------------------------------------------------- images


def resnet() -> Made:
    r = blocks.Residual
    return Seq(conv(3, 16), r(16, 16), r(16, 32, 2), r(32, 64, 2), head(64)), picture()


def resnet_bottleneck() -> Made:
    b = blocks.Bottleneck
    return Seq(conv(3, 32), b(32, 64), b(64, 128, 2), b(128, 128), head(128)), picture()


def resnext() -> Made:
    b = blocks.Bottleneck
    return Seq(conv(3, 32), b(32, 64, 1, 8), b(64, 128, 2, 8), b(128, 128, 1, 8), head(128)), picture()


def vgg() -> Made:
    layers = [conv(3, 32), conv(32, 32), nn.MaxPool2d(2), conv(32, 64), conv(64, 64), nn.MaxPool2d(2), conv(64, 128)]
    tail = [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2048, 128), nn.ReLU(), nn.Dropout(), nn.Linear(128, 10)]
    return Seq(*layers, *tail), picture()


def alexnet() -> Made:
    layers = [nn.Conv2d(3, 32, 5, 2, 2), nn.ReLU(), nn.LocalResponseNorm(5), nn.MaxPool2d(3, 2)]
    tail = [nn.Conv2d(32, 64, 3, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 225, 64), nn.ReLU(), nn.Linear(64, 10)]
    return blocks.lively(Seq(*layers, *tail)), picture(64)


def mobilenet_v1() -> Made:
    d = blocks.separable
    return Seq(conv(3, 16, 2), d(16, 32), d(32, 64, 2), d(64, 64), d(64, 128, 2), d(128, 128), head(128)), picture(64)


def mobilenet_v2() -> Made:
    i = blocks.Inverted
    act = nn.ReLU6
    return Seq(
        conv(3, 16, 2, act=act), i(16, 24, 2, act), i(24, 24, 1, act), i(24, 48, 2, act), i(48, 48, 1, act), head(48)
    ), picture(64)


def mobilenet_v3() -> Made:
    i, act = blocks.Inverted, nn.Hardswish
    squeeze = {"squeeze": nn.Hardsigmoid}
    return Seq(
        conv(3, 16, 2, act=act),
        i(16, 24, 2, act, **squeeze),
        i(24, 24, 1, act, **squeeze),
        i(24, 48, 2, act, **squeeze),
        i(48, 48, 1, act, **squeeze),
        head(48),
    ), picture(64)


def efficientnet() -> Made:
    i, act, squeeze = blocks.Inverted, nn.SiLU, {"squeeze": nn.Sigmoid}
    return Seq(
        conv(3, 16, 2, act=act), i(16, 24, 2, act, **squeeze), i(24, 24, 1, act, **squeeze), i(24, 48, 2, act), head(48)
    ), picture(64)


def shufflenet() -> Made:
    return Seq(conv(3, 32, 2), blocks.Shuffled(32), blocks.Shuffled(32), blocks.Shuffled(32), head(32)), picture(64)


def squeezenet() -> Made:
    f = blocks.Fire
    layers = [conv(3, 32, 2, norm=False), f(32, 8, 32), f(64, 16, 32), nn.MaxPool2d(2), f(64, 16, 64), head(128)]
    return blocks.lively(Seq(*layers)), picture(64)


def densenet() -> Made:
    return Seq(conv(3, 16), blocks.Dense(16, 12, 4), nn.AvgPool2d(2), blocks.Dense(64, 12, 4), head(112)), picture()


def inception() -> Made:
    return Seq(conv(3, 32, 2), blocks.Inception(32), blocks.Inception(96), nn.MaxPool2d(2), head(96)), picture(64)


def convnext() -> Made:
    return Seq(nn.Conv2d(3, 32, 4, 4), blocks.ConvNext(32), blocks.ConvNext(32), nn.Conv2d(32, 64, 2, 2), head(64)), (
        picture(64)
    )


def ghostnet() -> Made:
    return Seq(conv(3, 16, 2), blocks.Ghost(16, 32), blocks.Ghost(32, 64), nn.MaxPool2d(2), head(64)), picture(64)


def group_norm() -> Made:
    layers = [nn.Conv2d(3, 32, 3, 2, 1), nn.GroupNorm(8, 32), nn.SiLU(), nn.Conv2d(32, 64, 3, 2, 1)]
    return Seq(*layers, nn.GroupNorm(8, 64), nn.SiLU(), head(64)), picture(64)


def strided_only() -> Made:
    """All convolutions, no norm, leaky: as an embedded detector of the first kind."""
    layers = [nn.Conv2d(1, 16, 3, 2, 1), nn.LeakyReLU(0.1), nn.Conv2d(16, 32, 3, 2, 1), nn.LeakyReLU(0.1)]
    return Seq(*layers, nn.Conv2d(32, 64, 3, 2, 1), nn.PReLU(64), head(64)), picture(48, 1)


# ---------------------------------------------------------------- images out of images


def unet() -> Made:
    return blocks.UNet(transposed=True), picture(48)


def unet_resize() -> Made:
    return blocks.UNet(transposed=False), picture(48)


def super_resolution() -> Made:
    layers = [nn.Conv2d(1, 32, 5, 1, 2), nn.Tanh(), nn.Conv2d(32, 32, 3, 1, 1), nn.Tanh(), nn.Conv2d(32, 4, 3, 1, 1)]
    return Seq(*layers, nn.PixelShuffle(2)), picture(48, 1)


def autoencoder() -> Made:
    down = [conv(3, 16, 2), conv(16, 32, 2), nn.Conv2d(32, 8, 1)]
    up = [nn.ConvTranspose2d(8, 32, 2, 2), nn.ReLU(), nn.ConvTranspose2d(32, 16, 2, 2), nn.ReLU()]
    return Seq(*down, *up, nn.Conv2d(16, 3, 3, 1, 1), nn.Sigmoid()), picture()


def generator() -> Made:
    layers = [nn.Linear(32, 512), nn.ReLU(), nn.Unflatten(1, (32, 4, 4)), nn.ConvTranspose2d(32, 32, 4, 2, 1)]
    more = [nn.BatchNorm2d(32), nn.ReLU(), nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 3, 3, 1, 1)]
    return Seq(*layers, *more, nn.Tanh()), {"z": {"make": "normal", "shape": [32]}}


def style_transfer() -> Made:
    return blocks.Style(), picture(48)


def detector_head() -> Made:
    return blocks.Detector(), picture(64)


def ssd() -> Made:
    return blocks.Ssd(), picture(64)


# ---------------------------------------------------------------- transformers


def vit() -> Made:
    return blocks.Vit(), picture(32)


def swin() -> Made:
    return blocks.Windowed(), picture(32)


def mixer() -> Made:
    return blocks.Mixer(), picture(32)


def bert() -> Made:
    return blocks.Bert(), words() | {"mask": {"make": "ones", "shape": [32], "dtype": "int64"}}


def gpt() -> Made:
    return blocks.Gpt(), words()


def translator() -> Made:
    given = words()["ids"]
    return blocks.Translator(), {"source": given, "target": given}


def torch_encoder() -> Made:
    layer = nn.TransformerEncoderLayer(64, 4, 128, 0.0, "gelu", batch_first=True, norm_first=True)
    return Seq(nn.Linear(40, 64), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(64, 12)), (
        frames(48)
    )


def conformer() -> Made:
    return blocks.Conformer(), frames(64)


# ---------------------------------------------------------------- sequences, sounds, tables


def lstm() -> Made:
    return blocks.Recurrent(nn.LSTM), frames(48)


def gru() -> Made:
    return blocks.Recurrent(nn.GRU), frames(48)


def crnn() -> Made:
    return blocks.Crnn(), {"x": {"make": "text", "shape": [1, 32, 96]}}


def tcn() -> Made:
    return blocks.Tcn(), frames()


def wavenet() -> Made:
    return blocks.lively(blocks.Wavenet()), {"x": {"make": "sound", "shape": [1, 2048]}}


def keywords() -> Made:
    d = blocks.separable
    return Seq(nn.Unflatten(1, (1, 96)), conv(1, 48, 2), d(48, 48), d(48, 48), d(48, 48), head(48)), frames()


def tabular() -> Made:
    layers = [nn.BatchNorm1d(24), nn.Linear(24, 128), nn.ReLU(), nn.BatchNorm1d(128), nn.Linear(128, 64), nn.ELU()]
    return Seq(*layers, nn.Linear(64, 5), nn.Softmax(1)), {"x": {"make": "normal", "shape": [24], "scale": 2.0}}


def dense_autoencoder() -> Made:
    widths, layers = [640, 128, 128, 8, 128, 128], []
    for a, b in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()]
    return Seq(nn.Flatten(), *layers, nn.Linear(128, 640)), frames(16)


def siamese() -> Made:
    return blocks.Siamese(), {"a": picture()["x"], "b": picture()["x"]}


def recommender() -> Made:
    return blocks.Recommender(), {
        "user": {"make": "integers", "shape": [1], "high": 500, "dtype": "int64"},
        "items": {"make": "integers", "shape": [8], "high": 800, "dtype": "int64"},
        "facts": {"make": "normal", "shape": [12]},
    }


def video() -> Made:
    layers = [nn.Conv3d(3, 16, 3, 1, 1), nn.BatchNorm3d(16), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(16, 32, 3, 1, 1)]
    tail = [nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(32, 6)]
    return Seq(*layers, *tail), {"x": {"make": "spectrum", "shape": [3, 8, 24, 24]}}


def points() -> Made:
    return blocks.Points(), {"x": {"make": "normal", "shape": [3, 128]}}


ARCHITECTURES: tuple[Callable[[], Made], ...] = (
    resnet, resnet_bottleneck, resnext, vgg, alexnet, mobilenet_v1, mobilenet_v2, mobilenet_v3, efficientnet,
    shufflenet, squeezenet, densenet, inception, convnext, ghostnet, group_norm, strided_only, unet, unet_resize,
    super_resolution, autoencoder, generator, style_transfer, detector_head, ssd, vit, swin, mixer, bert, gpt,
    translator, torch_encoder, conformer, lstm, gru, crnn, tcn, wavenet, keywords, tabular, dense_autoencoder, siamese,
    recommender, video, points,
)  # fmt: skip


def settled(module: nn.Module, inputs: tuple[Tensor, ...], generator: torch.Generator) -> nn.Module:
    """With scales and statistics of batch norms as after training."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.momentum = None  # the mean of all batches
            nn.init.uniform_(part.weight, 0.3, 1.7, generator=generator)
            nn.init.normal_(part.bias, 0, 0.3, generator=generator)
    with torch.no_grad():
        module.train()(*inputs)
    return module.eval()


def write(number: int, make: Callable[[], Made], folder: Path) -> None:
    import onnx

    torch.manual_seed(number)
    module, inputs = make()
    opset = 11 + number % 11
    told = {
        "inputs": inputs,
        "opset": opset,
        "batch": 2 if number % 4 == 0 else 1,
        "about": (make.__doc__ or "").strip(),
    }
    data = samples.made(told | {"samples": 16})
    given = tuple(torch.from_numpy(a) for a in data.rows(0, 16).values())
    module = settled(module, given, torch.Generator().manual_seed(number))
    path, open_ = folder / f"{make.__name__}.onnx", {name: {0: "batch"} for name in inputs}
    torch.onnx.export(
        module,
        tuple(g[:2] for g in given),
        path,
        input_names=list(inputs),
        dynamic_axes=None if number % 4 == 0 else open_,  # every fourth file takes two samples at once
        opset_version=min(opset, NEWEST),
        dynamo=False,
    )
    if opset > NEWEST:
        onnx.save(onnx.version_converter.convert_version(onnx.load(path), opset), path)
    path.with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n")


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, make in enumerate(ARCHITECTURES):
        if (folder / f"{make.__name__}.json").is_file():
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            write(number, make, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
