"""Settings that a target's kernels need: a recipe's own setting wins or is refused by name; one that it leaves open is
the target's."""

import tomllib

import pytest

from edgekd.errors import UsageError
from edgekd.run import plan, resolve
from edgekd.run.dump import dump


@pytest.fixture
def device(tmp_path):
    def write(name, text):
        path = tmp_path / f"{name}.toml"
        path.write_text(f'title = "{name}"\narchitecture = "x86-64"\n{text}\n')
        return str(path)

    return write


def planned(targets, *sets):
    resolved = resolve.resolved(None, sets=sets, targets=targets)
    return resolved, plan.make(resolved)


def settings(made, stage, name):
    return {getattr(s.part, name) for s in made.steps.values() if s.stage == stage}


def refused(targets, *sets):
    with pytest.raises(UsageError) as error:
        planned(targets, *sets)
    return [(p.place.removeprefix("built-in recipe: "), p.message) for p in error.value.problems]


def test_what_a_recipe_leaves_open_is_the_targets(device):
    _, made = planned([device("odd", "channel_multiple = 4\n[int8]\nweight_bits = 7\nper_channel = false")])
    assert settings(made, "prune", "multiple_of") == {4} and made.notes == {}
    assert settings(made, "quantize", "weight_bits") == {7} and settings(made, "quantize", "per_channel") == {False}
    part = next(s.part for s in made.steps.values() if s.stage == "quantize")
    assert (part.weight_bits, part.per_channel) == (7, False)


def test_the_recipes_multiple_wins_with_a_note_on_speed():
    _, made = planned(["host"], "prune.multiple_of=1", "prune.macs=0.7")
    assert settings(made, "prune", "multiple_of") == {1}
    assert made.notes == {
        "host": "prune: widths are multiples of 1, as the recipe says; its kernels run well at multiples of 8"
    }
    assert planned(["host"], "prune.multiple_of=16", "prune.macs=max 0.8")[1].notes == {}
    swept = planned(["host"], "sweep.prune.multiple_of=[2, 8]")[1]
    assert settings(swept, "prune", "multiple_of") == {2, 8} and "multiples of 2" in swept.notes["host"]


def test_a_share_that_cant_be_reached_is_told_with_what_can():
    places = refused(["host"], "prune.macs=0.001", "prune.multiple_of=1")
    assert places[0][0] == "stage 2 (prune): macs" and "multiples of 1" in places[0][1]
    _, made = planned(["host"], "prune.macs=max 0.7")
    assert settings(made, "prune", "macs") == {"max 0.7"}


@pytest.mark.parametrize(
    "said, told",
    [
        (["quantize.weight_bits=8"], [("weight_bits", "is 8, and the kernels of narrow take weights of 7 bits")]),
        (
            ["sweep.quantize.weight_bits=[8, 6]"],
            [("weight_bits", "is 8, and the kernels of narrow take weights of 7 bits")],
        ),
        (
            ["quantize.layer_bits={conv2d = 8}"],
            [("layer_bits.conv2d", "is 8, and the kernels of narrow take weights of 7 bits")],
        ),
        (
            ["quantize.per_channel=true"],
            [("per_channel", "is true, and the kernels of narrow take one scale for a whole weight")],
        ),
    ],
)
def test_what_would_be_wrong_on_a_target_is_refused_by_name(device, said, told):
    targets = ["host", device("narrow", "[int8]\nweight_bits = 7\nper_channel = false")]
    assert refused(targets, *said) == [(f"stage 3 (quantize): {place}", message) for place, message in told]


def test_what_is_narrower_than_a_target_is_the_recipes(device):
    narrow = device("narrow", "[int8]\nweight_bits = 7")
    _, made = planned([narrow], "quantize.weight_bits=4", "quantize.per_channel=false")
    assert settings(made, "quantize", "weight_bits") == {4} and settings(made, "quantize", "per_channel") == {False}


def test_targets_that_want_different_things_share_what_they_can(device):
    targets = [
        device("wide", "channel_multiple = 16"),
        device("small", "channel_multiple = 4\n[int8]\nweight_bits = 7\nper_channel = false"),
    ]
    _, made = planned(targets, "prune.macs=max 0.8")
    found = {p.id: set(p.targets) for p in made.points if not p.reference}
    assert found["distill"] == {"wide", "small"} and found["prune-m16"] == {"wide"} and found["prune-m4"] == {"small"}
    ends = {id: t for id, t in found.items() if id.startswith("quantize")}
    assert ends == {"quantize-m16-w8": {"wide"}, "quantize-m4-w7-per_tensor": {"small"}}
    _, one = planned(
        targets, "prune.multiple_of=4", "quantize.weight_bits=7", "quantize.per_channel=false", "prune.macs=0.7"
    )
    ends = {p.id: set(p.targets) for p in one.points if p.id.startswith(("prune", "quantize"))}
    assert ends == dict.fromkeys(("prune", "quantize"), {"wide", "small"})


def test_the_resolved_recipe_leaves_open_what_was(device, tmp_path):
    target = device("odd", "channel_multiple = 4\n[int8]\nweight_bits = 7")
    for sets in ((), ("prune.multiple_of=2", "prune.macs=max 0.7")):
        resolved, made = planned([target, "host"], *sets)
        (tmp_path / "again.toml").write_text(dump(resolved))
        again = plan.make(resolve.resolved(tmp_path / "again.toml"))
        assert list(again.steps) == list(made.steps) and again.points == made.points
        stages = {s["name"]: s for s in tomllib.loads((tmp_path / "again.toml").read_text())["stage"]}
        assert ("multiple_of" in stages["prune"]) == bool(sets) and "weight_bits" not in stages["quantize"]


def test_quantize_refuses_more_bits_than_a_target_takes(device, tmp_path):
    from edgekd.verbs import quantize

    with pytest.raises(UsageError, match="is 8, and the kernels of narrow take weights of 7 bits"):
        quantize.quantize(
            tmp_path / "m.onnx",
            data=tmp_path / "d.npz",
            out=tmp_path / "o.onnx",
            target=device("narrow", "[int8]\nweight_bits = 7"),
            weight_bits=8,
        )
