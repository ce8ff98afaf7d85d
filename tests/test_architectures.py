"""Common architectures, each distilled a step, pruned, quantized, exported, and run in onnxruntime."""

import pytest
from architectures import ARCHITECTURES, chain

WHOLE = {  # name: part of the reason why nothing goes
    "shufflenet_v2": "can't be traced",
    "unet": "GroupNorm) normalises",
    "yolo": "can't be traced",
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_through_the_chain(name, tmp_path):
    result = chain(name, tmp_path)
    if name in WHOLE:
        assert WHOLE[name] in result.failed["pruned"]
    else:
        assert not result.failed and result.macs <= 0.75 and result.parameters > 0
    integer, layers = result.int8
    assert integer >= layers - len(result.floats) and integer > 0 and result.db > 20
