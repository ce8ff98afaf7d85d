"""Losses, ensembles and what follows them make no tensor on the CPU, and read none, where their inputs lie elsewhere:
here on the `meta` device, whose tensors have no values."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import edgekd
from edgekd import components
from edgekd.errors import THEIRS
from edgekd.losses.kl import kl
from edgekd.records import Batch, Signals
from edgekd.training.positions import rows_of
from edgekd.training.read_terms import terms
from edgekd.training.terms import bind, is_module, parts, total

ROWS, CLASSES = 6, 4
OUTPUTS = {"classes": edgekd.classes(), "numbers": edgekd.numbers(), "embeddings": edgekd.embeddings()}


class Strays(TorchDispatchMode):
    """Notes operators that give tensors on the CPU; a number, of no axis, goes to a GPU with its kernel."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        given = [t for t in tree_leaves(made) if isinstance(t, torch.Tensor)]
        self.found += [str(function) for t in given if t.device.type == "cpu" and t.ndim]
        return made


def signals(on, kind):
    taps = {name: torch.ones(ROWS, 8, 4, 4, device=on, requires_grad=True) for name in ("one", "two")}
    return Signals(torch.ones(ROWS, CLASSES, device=on, requires_grad=True), taps, kind=kind)


def batch(on, kind):
    labels = torch.zeros(ROWS, dtype=torch.long, device=on)
    if kind != "classes":
        labels = torch.zeros(ROWS, CLASSES, device=on)
    return Batch(None, labels, torch.arange(ROWS, device=on), torch.ones(ROWS, device=on))


def computed(use, kind):
    """Operators that left the device while a term of this loss is computed; None where it takes other inputs."""
    taps = ["one", "two"]
    for on in ([], taps, taps[:1]):
        (term,) = terms([{"use": use, **({"on": on} if on else {})}])
        try:
            (bound,) = bind([term], lambda: (signals("cpu", kind), {"": signals("cpu", kind)}, batch("cpu", kind)))
            bound.rows(signals("cpu", kind), signals("cpu", kind), batch("cpu", kind), 0.0)
        except THEIRS:
            continue
        if is_module(bound.call):
            bound.call.to("meta")
        given = signals("meta", kind), {"": signals("meta", kind)}
        with Strays() as strays:
            rows = rows_of(OUTPUTS[kind], batch("meta", kind), given[0])
            seen, taught = rows.of(given[0]), {"": rows.of(given[1][""])}
            total(parts([bound], seen, taught, rows)).backward()
        return strays.found
    return None


KNOWN = sorted(components.names("losses"))


@pytest.mark.parametrize("use", KNOWN)
def test_a_loss_stays_where_its_inputs_are(use):
    found = [f for f in (computed(use, kind) for kind in OUTPUTS) if f is not None]
    if not found:
        pytest.skip("takes other inputs than these")
    assert not any(found), found


def test_most_losses_take_these_inputs():
    taken = [use for use in KNOWN if any(computed(use, kind) is not None for kind in OUTPUTS)]
    assert len(taken) >= 0.8 * len(KNOWN)


def strayed(student, teacher, batch):
    """A loss that makes a tensor on the CPU."""
    rows = torch.arange(len(student.output))
    return kl(student, teacher, batch)[rows]


def waited(student, teacher, batch):
    """A loss that reads a value."""
    return kl(student, teacher, batch) * (2.0 if bool(student.output.max() > 0) else 1.0)


def test_a_loss_that_leaves_its_device_is_found():
    assert computed(f"{__name__}:strayed", "classes") != []
    with pytest.raises(RuntimeError):
        computed(f"{__name__}:waited", "classes")


@pytest.mark.parametrize("use", sorted(components.names("ensembles")))
def test_an_ensemble_stays_where_its_teachers_are(use):
    settings = {"routed": {"classes": {"a": (0, 1), "b": (2, 3)}}}.get(use, {})
    part = components.find("ensembles", use)
    ensemble = part(("a", "b"), CLASSES).to("meta") if is_module(part) else part
    given = {name: Signals(torch.zeros(ROWS, CLASSES, device="meta")) for name in "ab"}
    with Strays() as strays:
        made = ensemble(given, batch("meta", "classes"), **settings)
    assert made.output.device.type == "meta"
    # the table of classes is made once per call, [classes] long, and copied without waiting
    assert use == "routed" or not strays.found
