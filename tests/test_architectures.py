"""Common architectures, each distilled a step, pruned, quantized, exported, and run in onnxruntime; and what is left
after pruning against the whole network."""

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES, RMSNorm, chain
from torch import nn

from edgekd import pruning
from edgekd.pruning.check import randomised
from edgekd.pruning.coupling import removals

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.fixture(scope="module")
def page():
    spec = importlib.util.spec_from_file_location("make_architectures", DOCS / "make_architectures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_through_the_chain_as_the_page_says(name, tmp_path, page):
    result = chain(name, tmp_path)
    assert not result.failed and result.macs <= 0.75 and result.parameters > 0.1
    integer, layers = result.int8
    assert integer == layers - len(result.floats) > 0 and result.db > 18
    line = page.row(ARCHITECTURES[name].shown, result)
    assert line in page.PAGE.read_text("utf-8").splitlines(), (
        f"write it again: python docs/make_architectures.py {name}"
    )


def test_the_page_has_no_other_rows(page):
    lines = page.PAGE.read_text("utf-8").removeprefix(page.HEAD).splitlines()
    assert [line.split(" | ")[0] for line in lines] == [f"| {a.shown}" for a in ARCHITECTURES.values()]


# ---------------------------------------------------------------- the channels that are left


class Rest(nn.Module):
    """A norm over the channels that are kept, written out."""

    def __init__(self, norm, gone):
        super().__init__()
        self.norm, self.gone = norm, gone

    def forward(self, x):
        norm = self.norm
        axis = 1 if isinstance(norm, nn.GroupNorm) else x.ndim - 1
        if getattr(norm, "turned", False):
            axis = 1
        kept = torch.ones(x.shape[axis], dtype=torch.bool)
        kept[self.gone] = False
        parts = x.movedim(axis, -1)
        out = torch.zeros_like(parts)
        if isinstance(norm, nn.GroupNorm):
            step = parts.shape[-1] // norm.num_groups
            for start in range(0, parts.shape[-1], step):
                here = kept.clone()
                here[:start], here[start + step :] = False, False
                y = parts[..., here]
                axes = tuple(range(1, y.ndim))
                y = (y - y.mean(axes, keepdim=True)) / (y.var(axes, unbiased=False, keepdim=True) + norm.eps).sqrt()
                out[..., here] = y * norm.weight[here] + norm.bias[here]
        elif isinstance(norm, RMSNorm):
            y = parts[..., kept]
            out[..., kept] = norm.weight[kept] * y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        else:
            y = parts[..., kept]
            y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
            out[..., kept] = y * norm.weight[kept] + norm.bias[kept]
        return out.movedim(-1, axis)


def without(model, history):
    """The whole model, 0 for the weights on channels that `history` removes, with norms over the others."""
    for step in history:
        layer, side, removed = step["layer"], step["side"], step["removed"]
        with torch.no_grad():
            if side == "axis 1":
                model.get_parameter(layer)[:, removed] = 0
            elif side == "in":
                weight = model.get_submodule(layer).weight
                weight.transpose(0, 1)[removed if not getattr(model.get_submodule(layer), "transposed", 0) else []] = 0
                if getattr(model.get_submodule(layer), "transposed", False):
                    weight[removed] = 0
        if side == "axis 0" and isinstance(owner := model.get_submodule(layer.rpartition(".")[0]), RMSNorm):
            set_in(model, layer.rpartition(".")[0], Rest(owner, removed))
        elif side == "out" and isinstance(norm := model.get_submodule(layer), (nn.LayerNorm, nn.GroupNorm)):
            norm.turned = type(norm).__name__ == "LayerNorm2d"
            set_in(model, layer, Rest(norm, removed))
    return model


def set_in(model, path, module):
    owner, _, name = path.rpartition(".")
    setattr(model.get_submodule(owner), name, module)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_is_left_computes_what_the_whole_does_without_the_rest(name):
    """All groups at once; the other weights as they were. Fewer parameters and MACs, to the number predicted."""
    torch.manual_seed(0)
    a = ARCHITECTURES[name]
    model, inputs = randomised(a.make().eval()), a.inputs(torch.Generator().manual_seed(1), 2)
    found, _ = pruning.groups(model, inputs)
    gone = [sorted(torch.randperm(g.units)[: g.units // 2].tolist()) for g in found]
    history = removals(found, gone)
    pruned = pruning.apply(copy.deepcopy(model), history)
    whole = pruning.macs_and_parameters(model, inputs)
    left = pruning.macs_and_parameters(pruned, inputs)
    assert left[0] < 0.6 * whole[0] and left[1] < 0.65 * whole[1]
    with torch.no_grad():
        ours, theirs, before = pruned(inputs), without(copy.deepcopy(model), history)(inputs), model(inputs)
    effect = (theirs - before).abs().max()
    assert effect > 1e-3 and (ours - theirs).abs().max() <= 1e-4 * max(effect, theirs.abs().max())


HEADS = {"vit": "blocks.0.attn", "swin": "a.attn", "bert": "layers.0", "llama": "layers.0", "conformer": "attention"}


@pytest.mark.parametrize("name", HEADS)
def test_an_attention_head_goes_whole_and_the_module_counts_one_less(name):
    a = ARCHITECTURES[name]
    model, inputs = a.make().eval(), a.inputs(torch.Generator().manual_seed(1), 2)
    found, _ = pruning.groups(model, inputs)
    (group,) = [g for g in found if any(m.layer == HEADS[name] for m in g.attributes)]
    pruned = pruning.apply(copy.deepcopy(model), removals([group], [[0]]))
    before, after = (m.get_submodule(HEADS[name]) for m in (model, pruned))
    number = next(k for k in vars(before) if k in ("num_heads", "num_attention_heads"))
    assert getattr(after, number) == getattr(before, number) * (group.units - 1) // group.units
    assert pruned(inputs).shape == model(inputs).shape
