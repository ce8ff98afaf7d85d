"""A setting that names a part: by its name, by a table with settings, or by the path to one's own."""

import sys
from dataclasses import dataclass
from typing import Annotated

import pytest

from edgekd import components, signatures
from edgekd.components import Part, Use
from edgekd.errors import near
from edgekd.stages.prune import Prune
from edgekd.stages.quantize import Quantize

RANGES = ", ".join(components.names("ranges"))


def mine(histogram, *, share: float = 0.5, bits: int = 8):
    """A range of one's own."""
    return share, bits


def read(stage, table):
    settings, problems = signatures.settings_of(stage, table, "here")
    return settings, [str(p) for p in problems]


@pytest.mark.parametrize(
    "said, settings",
    [
        ("minmax", {}),
        ({"use": "minmax"}, {}),
        ("percentile", {"share": 99.99}),
        ({"use": "percentile", "share": 99.9}, {"share": 99.9}),
        ({"use": "mse", "tries": 7}, {"tries": 7}),  # `bits` are the value's own: calibration gives them
        (f"{__name__}:mine", {"share": 0.5}),
        ({"use": f"{__name__}:mine", "share": 0.25}, {"share": 0.25}),
    ],
)
def test_a_part_is_read_with_its_settings(said, settings):
    found, problems = read(Quantize, {"ranges": said})
    assert problems == []
    assert found["ranges"] == Use("ranges", said if isinstance(said, str) else said["use"], settings)
    again, _ = read(Quantize, {"ranges": signatures.plain(found["ranges"])})
    assert again["ranges"] == found["ranges"]


@pytest.mark.parametrize(
    "said, place, text",
    [
        ("minmix", "here: ranges", "no range is named `minmix`\n  hint: did you mean `minmax`?"),
        (
            "zzz",
            "here: ranges",
            f"one of {RANGES}, or `package.module:name` of your own",
        ),
        (3, "here: ranges", "must be a name, or a table with `use`, not 3"),
        ({"share": 1}, "here: ranges", "`use` is missing"),
        ({"use": "percentile", "sharp": 1}, "here: ranges: sharp", "unknown key\n  hint: did you mean `share`?"),
        ({"use": "percentile", "share": 120.0}, "here: ranges: share", "less than or equal to 100, not 120.0"),
        ({"use": "mse", "bits": 4}, "here: ranges: bits", "unknown key"),
        ("math:pi", "here: ranges", "`math:pi` is float, not a function"),
        ("math:cosine", "here: ranges", "`math` has no `cosine`"),
    ],
)
def test_what_is_wrong_with_a_part_is_told_at_its_place(said, place, text):
    (problem,) = read(Quantize, {"ranges": said})[1]
    assert problem.startswith(f"{place}: ") and text in problem


def test_parts_are_checked_even_where_other_settings_are_wrong():
    problems = read(Prune, {"epochs": 0, "criterion": "magnitud", "combine": "mien"})[1]
    assert len(problems) == 3 and "epochs" in problems[0]
    assert {p.partition("did you mean ")[2] for p in problems[1:]} == {"`magnitude`?", "`mean`?"}


@dataclass(frozen=True)
class Own:
    """A stage of one's own needs the annotation and no more."""

    first: Annotated[Use, Part("criteria")] = Use("criteria", "magnitude")
    second: Annotated[Use | None, Part("ranges")] = None


def test_a_part_of_a_stage_of_ones_own():
    settings, problems = read(Own, {"second": "mse"})
    assert problems == [] and settings["first"] == Use("criteria", "magnitude")
    assert [p.__name__ for p in components.parts_of(Own(**settings))] == ["magnitude", "mse"]
    assert components.parts_of(Own()) == [components.find("criteria", "magnitude")]


def test_a_changed_setting_is_read_like_a_recipes():
    assert signatures.changed(Own(), {"second": "percentile"}).second == Use("ranges", "percentile", {"share": 99.99})
    with pytest.raises(components.UsageError, match="did you mean `mse`"):
        signatures.changed(Own(), {"second": "mze"})


def test_a_part_is_called_with_its_settings():
    assert Use("ranges", f"{__name__}:mine", {"share": 0.25})(None, bits=4) == (0.25, 4)


def test_the_list_says_which_settings_name_a_part():
    from edgekd.verbs import list as listed

    told = listed._settings(Prune, "stages")
    assert "criterion = 'magnitude' (one of criteria), " in told and "combine = None (one of ensembles), " in told
    assert listed._settings(components.find("ranges", "mse"), "ranges") == "tries = 100"


def test_the_hint_on_a_name():
    assert near("epoch", ["epochs", "lr"]) == "did you mean `epochs`?"
    assert near("zzz", ["epochs", "lr", "lr"]) == "known: epochs, lr"
    assert near("zzz", ["epochs"], "see the list") == "see the list"
    assert near("aab", ["aaa", "aac"], count=2) in ("did you mean `aaa` or `aac`?", "did you mean `aac` or `aaa`?")


def test_modules_are_found_though_a_folder_on_the_way_is_gone(tmp_path, monkeypatch):
    """Another process of a run reads the recipe in the folder of a step, which is moved when the step is finished."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "work" / "key").mkdir(parents=True)
    components.look_beside(tmp_path / "work" / "key" / ".." / "..")
    assert str(tmp_path) in sys.path and not any(".." in place for place in sys.path)
