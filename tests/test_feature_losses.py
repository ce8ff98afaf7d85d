"""Terms on intermediate layers: values by hand, independent oracles, and one contract for all of them."""

import importlib
import inspect
import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist, pdist, squareform
from scipy.special import log_softmax, logsumexp, rel_entr, softmax

from edgekd import components, signatures
from edgekd.losses.attention import attention
from edgekd.losses.channel_wise import channel_wise
from edgekd.losses.contrastive import Contrastive
from edgekd.losses.heads import Heads
from edgekd.losses.hint import Hint
from edgekd.losses.normalized_features import normalized_features
from edgekd.losses.patient import patient
from edgekd.losses.relational import relational
from edgekd.losses.similarity import similarity
from edgekd.records import Batch, Signals
from edgekd.training.terms import Term

MAPS = ["attention", "channel_wise", "normalized_features"]
FUNCTIONS = ["attention", "channel_wise", "normalized_features", "patient", "relational", "similarity"]
MODULES = ["contrastive", "heads", "hint"]
WHOLE = ["relational", "similarity"]  # one value for the batch
TOGETHER = [*WHOLE, "normalized_features", "contrastive"]  # rows that know their batch


def test_every_term_on_taps_is_in_this_suite():
    inside = {
        n
        for n in components.names("losses")
        if "losses._taps" in inspect.getsource(importlib.import_module(f"edgekd.losses.{n}"))
    }
    assert inside == {*FUNCTIONS, *MODULES}


def batch_of(labels):
    labels = torch.tensor(labels)
    return Batch(None, labels, torch.arange(len(labels)), torch.ones(len(labels)))


def draw(*shape, seed=0, scale=1.0):
    return torch.from_numpy(np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32))


def taps(*tensors, output=None):
    return Signals(output, {f"layer{i}": t for i, t in enumerate(tensors)})


def tensor(*rows):
    return torch.tensor(rows, dtype=torch.float32)


# ---------------------------------------------------------------- attention


def test_attention_by_hand():
    # squares' mean over two channels: [(9 + 9) / 2, (16 + 16) / 2] = [9, 16] -> / sqrt(337); the teacher's [1, 0]
    student, teacher = tensor([[3.0, 4.0]], [[-3.0, 4.0]])[None], tensor([[5.0, 0.0]])[None]
    length = math.sqrt(9**2 + 16**2)
    expected = ((9 / length - 1) ** 2 + (16 / length) ** 2) / 2
    assert attention(taps(student), taps(teacher), batch_of([0])).item() == pytest.approx(expected, rel=1e-6)


def test_attention_by_cosine():
    """|a - b|^2 of unit vectors is 2 - 2 cos."""
    student, teacher = draw(5, 3, 4, 6), draw(5, 7, 4, 6, seed=1)
    a, b = ((x.numpy().astype(np.float64) ** 2).sum(1).reshape(5, -1) for x in (student, teacher))
    expected = np.diag(cdist(a, b, "cosine")) * 2 / 24
    assert np.allclose(attention(taps(student), taps(teacher), batch_of([0] * 5)), expected, rtol=1e-4)


# ---------------------------------------------------------------- similarity


def test_similarity_by_hand():
    # the student's rows are orthogonal: G = I; the teacher's are equal: all entries 1 / sqrt(2)
    student, teacher = tensor([2.0, 0.0], [0.0, 3.0]), tensor([1.0], [1.0])
    r = 1 / math.sqrt(2)
    assert similarity(taps(student), taps(teacher), batch_of([0, 0])).item() == pytest.approx(
        (2 * (1 - r) ** 2 + 2 * r**2) / 4, rel=1e-6
    )


def test_similarity_by_cosine():
    student, teacher = draw(6, 3, 4, 4), draw(6, 11, seed=1)
    g_s, g_t = (np.einsum("ik,jk->ij", *[x.double().flatten(1).numpy()] * 2) for x in (student, teacher))
    expected = sum(2 * cdist(g_s[[i]], g_t[[i]], "cosine").item() for i in range(6)) / 36
    assert similarity(taps(student), taps(teacher), batch_of([0] * 6)).item() == pytest.approx(expected, rel=1e-4)


# ---------------------------------------------------------------- relational


def test_relational_by_hand():
    # distances 3, 4, 5 (mean 4) against 1, 1, 2 on a line (mean 4/3): 3/4, 1, 5/4 against 3/4, 3/4, 3/2, each twice of
    # nine
    student, teacher = tensor([0.0, 0.0], [3.0, 0.0], [0.0, 4.0]), tensor([0.0], [1.0], [-1.0])
    call = lambda **hyper: relational(taps(student), taps(teacher), batch_of([0] * 3), **hyper).item()
    assert call(distance=1.0, angle=0.0) == pytest.approx(2 * (0 + 0.25**2 / 2 + 0.25**2 / 2) / 9, rel=1e-5)
    # cosines at the corners 0, 3/5, 4/5 against -1, 1, 1 on the line, each twice of 27; those of a row with itself are
    # 1 on both sides
    assert call(distance=0.0, angle=1.0) == pytest.approx(2 * (1**2 / 2 + 0.4**2 / 2 + 0.2**2 / 2) / 27, rel=1e-5)
    assert call() == pytest.approx(call(distance=25.0, angle=0.0) + call(distance=0.0, angle=50.0), rel=1e-6)


def test_relational_by_loops():
    student, teacher = draw(5, 2, 2, 2), draw(5, 3, seed=1)
    huber = lambda x: x**2 / 2 if abs(x) < 1 else abs(x) - 0.5
    x, y = (f.double().flatten(1).numpy() for f in (student, teacher))
    d_x, d_y = (squareform(pdist(f) / pdist(f).mean()) for f in (x, y))
    distance = sum(huber(a - b) for a, b in zip(d_x.flat, d_y.flat, strict=True)) / 25

    def cosine(f, i, j, k):
        a, b = f[i] - f[j], f[k] - f[j]
        return 0.0 if j in (i, k) else a @ b / math.sqrt((a @ a) * (b @ b))

    triples = [(i, j, k) for i in range(5) for j in range(5) for k in range(5)]
    angle = sum(huber(cosine(x, *ijk) - cosine(y, *ijk)) for ijk in triples) / 125
    value = relational(taps(student), taps(teacher), batch_of([0] * 5), distance=2.0, angle=3.0).item()
    assert value == pytest.approx(2 * distance + 3 * angle, rel=1e-4)


# ---------------------------------------------------------------- channel-wise


def test_channel_wise_by_hand():
    # p = [1/2, 1/2], q = [1/4, 3/4] in one channel, equal in the other: half of 1/2 ln(4/3)
    student, teacher = tensor([[0.0, math.log(3.0)]], [[7.0, 7.0]])[None], torch.zeros(1, 2, 1, 2)
    assert channel_wise(taps(student), taps(teacher), batch_of([0]), temperature=1.0).item() == pytest.approx(
        math.log(4 / 3) / 4, rel=1e-5
    )
    assert channel_wise(taps(2 * student), taps(teacher), batch_of([0]), temperature=2.0).item() == pytest.approx(
        math.log(4 / 3), rel=1e-5
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_channel_wise_is_scipys_sum_over_positions(temperature):
    student, teacher = draw(4, 3, 5, 2, scale=3.0), draw(4, 3, 5, 2, seed=1, scale=3.0)
    p, q = (softmax(x.double().numpy() / temperature, axis=(2, 3)) for x in (teacher, student))
    expected = temperature**2 * rel_entr(p, q).sum((2, 3)).mean(1)
    assert np.allclose(
        channel_wise(taps(student), taps(teacher), batch_of([0] * 4), temperature=temperature),
        expected,
        rtol=1e-4,
        atol=1e-6,
    )


# ---------------------------------------------------------------- normalized features


def test_normalized_features_by_hand():
    # [0, 2 | 2, 0]: mean 1, deviation 1: [-1, 1 | 1, -1]; the teacher's [1, 1 | 9, 9]: [-1, -1 | 1, 1]; differences 0,
    # 2 | 0, -2
    student, teacher = (
        tensor([0.0, 2.0], [2.0, 0.0]).reshape(2, 1, 1, 2),
        tensor([1.0, 1.0], [9.0, 9.0]).reshape(2, 1, 1, 2),
    )
    assert torch.allclose(normalized_features(taps(student), taps(teacher), batch_of([0, 0])), tensor(1.0, 1.0))


def test_normalized_features_is_one_minus_correlation():
    student, teacher = draw(6, 3, 4, 5), draw(6, 3, 4, 5, seed=1) + 0.5 * draw(6, 3, 4, 5)
    columns = [
        (s.numpy().ravel(), t.numpy().ravel())
        for s, t in zip(student.double().unbind(1), teacher.double().unbind(1), strict=True)
    ]
    expected = np.mean([1 - np.corrcoef(s, t)[0, 1] for s, t in columns])
    value = normalized_features(taps(student), taps(teacher), batch_of([0] * 6))
    assert value.mean().item() == pytest.approx(expected, rel=1e-4)
    scale, shift = (
        torch.tensor([0.1, 3.0, 50.0]).reshape(1, 3, 1, 1),
        torch.tensor([5.0, -2.0, 0.0]).reshape(1, 3, 1, 1),
    )
    assert torch.allclose(
        normalized_features(taps(scale * student + shift), taps(teacher), batch_of([0] * 6)), value, rtol=1e-3
    )


# ---------------------------------------------------------------- patient


def test_patient_by_hand():
    # [3, 4] / 5 - [0, 1] = [0.6, -0.2]; the second tokens are opposite: [2, 0]
    student, teacher = tensor([[3.0, 4.0], [2.0, 0.0]]), tensor([[0.0, 9.0], [-1.0, 0.0]])
    assert patient(taps(student), taps(teacher), batch_of([0])).item() == pytest.approx(0.2, rel=1e-5)
    assert patient(taps(student), taps(teacher), batch_of([0]), tokens="all").item() == pytest.approx(
        (0.2 + 2.0) / 2, rel=1e-5
    )
    assert patient(taps(student[:, 0]), taps(teacher[:, 0]), batch_of([0])).item() == pytest.approx(0.2, rel=1e-5)
    # the first tokens are all it sees
    assert patient(taps(student), taps(teacher[:, :1]), batch_of([0])).item() == pytest.approx(0.2, rel=1e-5)


def test_patient_by_cosine():
    student, teacher = draw(5, 3, 8), draw(5, 3, 8, seed=1)
    cosines = np.array(
        [np.diag(cdist(s, t, "cosine")) for s, t in zip(student.double(), teacher.double(), strict=True)]
    )
    assert np.allclose(patient(taps(student), taps(teacher), batch_of([0] * 5)), 2 * cosines[:, 0] / 8, rtol=1e-4)
    assert np.allclose(
        patient(taps(student), taps(teacher), batch_of([0] * 5), tokens="all"), 2 * cosines.mean(1) / 8, rtol=1e-4
    )


# ---------------------------------------------------------------- hint


def test_hint_by_hand():
    # equal shapes: no projector. [1, 2] - [0, 4]: (1 + 4) / 2
    student, teacher = tensor([1.0, 2.0]), tensor([0.0, 4.0])
    term = Hint(taps(student), taps(teacher), batch_of([0]))
    assert not list(term.parameters()) and term(taps(student), taps(teacher), batch_of([0])).item() == pytest.approx(
        2.5
    )
    # Linear from 2 to 1: 3 * 1 - 1 * 2 + 0.5 = 1.5; 1.5 - 5 = -3.5
    teacher = tensor([5.0])
    term = Hint(taps(student), taps(teacher), batch_of([0]))
    with torch.no_grad():
        term.projectors[0].weight.copy_(tensor([3.0, -1.0]))
        term.projectors[0].bias.fill_(0.5)
    assert term(taps(student), taps(teacher), batch_of([0])).item() == pytest.approx(3.5**2)


def test_hint_by_numpy():
    """Convolution 1x1 and BatchNorm of the batch, then the mean square; where sizes differ, means of the larger's
    blocks."""
    student, teacher = draw(4, 3, 4, 4), draw(4, 5, 2, 2, seed=1)
    torch.manual_seed(0)
    term = Hint(taps(student), taps(teacher), batch_of([0] * 4))
    blocks = student.double().numpy().reshape(4, 3, 2, 2, 2, 2).mean((3, 5))
    mixed = np.einsum("bchw,oc->bohw", blocks, term.projectors[0][0].weight.detach().double().numpy()[:, :, 0, 0])
    axes = (0, 2, 3)
    normal = (mixed - mixed.mean(axes, keepdims=True)) / np.sqrt(mixed.var(axes, keepdims=True) + 1e-5)
    expected = ((normal - teacher.numpy()) ** 2).mean((1, 2, 3))
    assert np.allclose(term(taps(student), taps(teacher), batch_of([0] * 4)).detach(), expected, rtol=1e-4)


@pytest.mark.parametrize(
    "ours, theirs",
    [((4, 3, 6, 6), (4, 3, 3, 3)), ((4, 3, 3, 6), (4, 5, 6, 3)), ((4, 7, 3), (4, 7, 5)), ((4, 3), (4, 5))],
)
def test_hint_projects_only_what_differs(ours, theirs):
    term = Hint(taps(draw(*ours)), taps(draw(*theirs)), batch_of([0] * 4))
    assert bool(list(term.parameters())) == (ours[-1 if len(ours) < 4 else 1] != theirs[-1 if len(theirs) < 4 else 1])
    assert term(taps(draw(*ours)), taps(draw(*theirs)), batch_of([0] * 4)).shape == (4,)


def test_hint_learns():
    """A teacher that is a linear function of the student is matched in the end."""
    student = draw(32, 4)
    teacher = student @ draw(4, 6, seed=1)
    torch.manual_seed(0)
    term = Hint(taps(student), taps(teacher), batch_of([0] * 32))
    optimizer = torch.optim.Adam(term.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        loss = term(taps(student), taps(teacher), batch_of([0] * 32)).mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-4


# ---------------------------------------------------------------- contrastive


def plain(term):
    """The embeddings of a contrastive term as identities."""
    with torch.no_grad():
        for linear in (*term.student, *term.teacher):
            linear.weight.copy_(torch.eye(*linear.weight.shape))
            linear.bias.zero_()
    return term


def test_contrastive_by_hand():
    # orthogonal rows, equal on both sides: cosine 1 with the own row, 0 with the other; T = 1/ln 3: ln(1 + 1/3)
    x = tensor([2.0, 0.0], [0.0, 5.0])
    term = plain(Contrastive(taps(x), taps(x), batch_of([0, 1]), dim=2, temperature=1 / math.log(3)))
    assert torch.allclose(term(taps(x), taps(x), batch_of([0, 1])), torch.full((2,), math.log(4 / 3)))
    assert torch.allclose(term(taps(x), taps(x.flip(0)), batch_of([0, 1])), torch.full((2,), math.log(4.0)))
    assert torch.equal(term(taps(x), taps(x), batch_of([1, 1])), torch.zeros(2))  # no negatives left
    # both teacher rows are [1, 0]: cosines [1, 1] and [0, 0]; of two equal ones ln 2; down the columns the own one has
    # 3 of 3 + 1, or 1 of them
    y = tensor([1.0, 0.0], [1.0, 0.0])
    across, down = math.log(2.0), (math.log(4 / 3), math.log(4.0))
    assert torch.allclose(
        term(taps(x), taps(y), batch_of([0, 1])), tensor((across + down[0]) / 2, (across + down[1]) / 2)
    )


def test_contrastive_by_scipy():
    student, teacher, labels = draw(6, 3, 2, 2), draw(6, 4, 5, seed=1), [0, 1, 2, 0, 1, 0]
    torch.manual_seed(0)
    term = Contrastive(taps(student), taps(teacher), batch_of(labels), dim=7, temperature=0.2)
    arrays = [
        p.detach().double().numpy()
        for p in (term.student[0].weight, term.student[0].bias, term.teacher[0].weight, term.teacher[0].bias)
    ]
    a, b = (
        student.double().mean((2, 3)).numpy() @ arrays[0].T + arrays[1],
        teacher.double().mean(1).numpy() @ arrays[2].T + arrays[3],
    )
    near = (1 - cdist(a, b, "cosine")) / 0.2
    others = [[j for j in range(6) if j == i or labels[j] != labels[i]] for i in range(6)]
    expected = [(logsumexp(near[i, others[i]]) + logsumexp(near[others[i], i])) / 2 - near[i, i] for i in range(6)]
    assert np.allclose(term(taps(student), taps(teacher), batch_of(labels)).detach(), expected, rtol=1e-4)
    without = Batch(None, None, torch.arange(6), torch.ones(6))
    expected = [(logsumexp(near[i]) + logsumexp(near[:, i])) / 2 - near[i, i] for i in range(6)]
    for batch in (without, batch_of([float(x) for x in labels])):  # labels that are no classes say nothing about rows
        assert np.allclose(term(taps(student), taps(teacher), batch).detach(), expected, rtol=1e-4)


# ---------------------------------------------------------------- heads


def test_heads_by_hand():
    # a head that gives [0, ln 3] -> q = [1/4, 3/4]; own output [0, 0] -> p = [1/2, 1/2]; KL = 1/2 ln(4/3)
    student = taps(tensor([1.0]), output=torch.zeros(1, 2))
    term = Heads(student, None, batch_of([0]), labels=2.0, output=3.0, temperature=1.0)
    with torch.no_grad():
        term.classifiers[0].weight.copy_(tensor([0.0], [math.log(3.0)]))
        term.classifiers[0].bias.zero_()
    assert term(student, None, batch_of([0])).item() == pytest.approx(
        2 * math.log(4.0) + 3 * 0.5 * math.log(4 / 3), rel=1e-5
    )
    term.temperature = 2.0  # the softened head is softmax([0, ln(3) / 2])
    q = softmax([0.0, math.log(3.0) / 2])
    assert term(student, None, batch_of([0])).item() == pytest.approx(
        2 * math.log(4.0) + 12 * rel_entr([0.5, 0.5], q).sum(), rel=1e-5
    )


def test_heads_by_scipy():
    first, last, output, labels = draw(5, 3, 4, 2), draw(5, 6, seed=1), draw(5, 4, seed=2, scale=3.0), [0, 1, 2, 3, 0]
    student = taps(first, last, output=output)
    torch.manual_seed(0)
    term = Heads(student, None, batch_of(labels), labels=0.7, output=0.3, hint=0.05, temperature=3.0)
    affine = lambda x, layer: x @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()
    features = first.double().numpy().mean((2, 3)), last.double().numpy()
    expected = 0.0
    for feature, layer in zip(features, term.classifiers, strict=True):
        z = affine(feature, layer)
        divergence = rel_entr(softmax(output.double().numpy() / 3, axis=1), softmax(z / 3, axis=1)).sum(1)
        expected += (-0.7 * log_softmax(z, axis=1)[range(5), labels] + 0.3 * 9 * divergence) / 2
    (adapter,) = term.adapters
    expected += 0.05 * ((affine(features[0], adapter) - features[1]) ** 2).mean(1)
    assert np.allclose(term(student, None, batch_of(labels)).detach(), expected, rtol=1e-4)


def test_heads_leave_the_output_alone():
    """The output teaches the heads and learns nothing from them; nor does the last tap from the hint."""
    first, last, output = (
        draw(4, 3).requires_grad_(),
        draw(4, 5, seed=1).requires_grad_(),
        draw(4, 2, seed=2).requires_grad_(),
    )
    student, batch = taps(first, last, output=output), batch_of([0, 1, 0, 1])
    term = Heads(student, None, batch, hint=1.0)
    term(student, None, batch).sum().backward()
    assert output.grad is None and first.grad.abs().sum() > 0 and last.grad.abs().sum() > 0
    first.grad = last.grad = None
    term = Heads(student, None, batch, labels=0.0, output=0.0, hint=1.0)
    term(student, None, batch).sum().backward()
    assert first.grad.abs().sum() > 0 and (last.grad is None or not last.grad.any())


def test_heads_tell_what_is_missing():
    student, unlabelled = taps(draw(2, 3), output=draw(2, 4)), Batch(None, None, torch.arange(2), torch.ones(2))
    with pytest.raises(ValueError, match="labels"):
        Heads(student, None, unlabelled)
    assert Heads(student, None, unlabelled, labels=0.0)(student, None, unlabelled).shape == (2,)
    with pytest.raises(ValueError, match="two or more"):
        Heads(student, None, batch_of([0, 1]), hint=0.1)
    with pytest.raises(ValueError, match="tap"):
        Heads(taps(output=draw(2, 4)), None, batch_of([0, 1]))


# ---------------------------------------------------------------- what all of them keep


def features(name, seed, scale=1.0, rows=6):
    """Taps that the term `name` takes."""
    if name in MAPS:
        tensors = draw(rows, 3, 4, 4, seed=seed, scale=scale), draw(rows, 5, 2, 2, seed=seed + 10, scale=scale)
    elif name == "patient":
        tensors = draw(rows, 3, 8, seed=seed, scale=scale), draw(rows, 5, seed=seed + 10, scale=scale)
    else:
        width = 5 + seed  # the teacher's differs
        maps = draw(rows, width, 4, 4, seed=seed, scale=scale), draw(rows, width, seed=seed + 10, scale=scale)
        tensors = *maps, draw(rows, 3, width, seed=seed + 20, scale=scale)
    return tensors


LABELS = [0, 1, 2, 3, 0, 1]


def called(name, student, teacher, logits=None, **hyper):
    """(value, term): functions called, classes made and called."""
    part, batch = components.find("losses", name), batch_of(LABELS)
    student = taps(*student, output=draw(6, 4, seed=5) if logits is None else logits)
    teacher = taps(*teacher)
    if name in FUNCTIONS:
        return part(student, teacher, batch, **hyper), None
    torch.manual_seed(0)
    term = part(student, teacher, batch, **hyper)
    return term(student, teacher, batch), term


def test_every_term_is_here():
    on_taps = {
        n
        for n in components.names("losses")
        if "edgekd.losses._taps" in inspect.getsource(inspect.getmodule(components.find("losses", n)))
    }
    assert on_taps == {*FUNCTIONS, *MODULES}


@pytest.mark.parametrize("name", [*FUNCTIONS, *MODULES])
class TestContract:
    def test_one_value_per_row_or_one(self, name):
        value, _ = called(name, features(name, 0), features(name, 1))
        assert value.shape == (() if name in WHOLE else (6,)) and value.dtype == torch.float32 and (value > 0).all()

    @pytest.mark.parametrize("scale", [0.0, 1e-6, 1e4])
    @pytest.mark.parametrize("other", [0.0, 1.0, 1e4])
    def test_finite_at_extremes(self, name, scale, other):
        student = [t.requires_grad_() for t in features(name, 0, scale)]
        value, term = called(name, student, features(name, 1, other))
        value.sum().backward()
        grads = [t.grad for t in student] + ([] if term is None else [p.grad for p in term.parameters()])
        assert value.isfinite().all() and all(g.isfinite().all() for g in grads) and (value > -1e-5).all()

    def test_rows_of_zeros_and_equal_rows(self, name):
        """What a dead layer gives: finite, and no gradient out of all proportion."""
        for change in ("zero", "equal"):
            student = [t.clone() for t in features(name, 0)]
            for t in student:
                t[1] = 0.0 if change == "zero" else t[2]
                t.requires_grad_()
            value, _ = called(name, student, features(name, 1))
            value.sum().backward()
            assert value.isfinite().all() and all(t.grad.isfinite().all() and t.grad.abs().max() < 1e4 for t in student)

    def test_half_precision_is_computed_in_single(self, name):
        student, teacher = ([t.half() for t in features(name, seed)] for seed in (0, 1))
        value, _ = called(name, student, teacher, logits=draw(6, 4, seed=5).half())
        single, _ = called(
            name, [t.float() for t in student], [t.float() for t in teacher], logits=draw(6, 4, seed=5).half()
        )
        assert value.dtype == torch.float32 and torch.equal(value, single)

    def test_the_student_learns_and_the_teacher_does_not(self, name):
        student, teacher = ([t.requires_grad_() for t in features(name, seed)] for seed in (0, 1))
        value, term = called(name, student, teacher)
        value.sum().backward()
        assert all(t.grad is not None and t.grad.abs().sum() > 0 for t in student) and all(
            t.grad is None for t in teacher
        )
        assert (term is None) == (name in FUNCTIONS)
        for label, parameter in [] if term is None else term.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), label
            # a bias before BatchNorm or one that moves all cosines alike may have little to do; kernels and matrices
            # never
            assert parameter.ndim == 1 or parameter.grad.abs().sum() > 0, label

    def test_the_gradient_is_the_slope(self, name):
        """Central differences along one direction."""
        student, teacher = [t.requires_grad_() for t in features(name, 0)], features(name, 1)
        value, _ = called(name, student, teacher)
        grads = torch.autograd.grad(value.sum(), student)
        steps = [draw(*t.shape, seed=7 + i) for i, t in enumerate(student)]
        h = 1e-2
        ends = [
            called(name, [t.detach() + sign * h * d for t, d in zip(student, steps, strict=True)], teacher)[0].sum()
            for sign in (1, -1)
        ]
        slope = sum((g * d).sum() for g, d in zip(grads, steps, strict=True))
        assert slope.item() == pytest.approx(
            ((ends[0] - ends[1]) / (2 * h)).item(), rel=2e-2, abs=1e-3 * value.sum().item()
        )

    def test_a_pair_is_a_mean(self, name):
        """Two pairs of taps are worth the mean of each alone."""
        if name in MODULES:
            pytest.skip("a module draws other projectors for other taps")
        student, teacher = features(name, 0), features(name, 1)
        both, _ = called(name, student, teacher)
        each = [called(name, [s], [t])[0] for s, t in zip(student, teacher, strict=True)]
        assert torch.allclose(both, torch.stack(each).mean(0), rtol=1e-5)

    def test_rows_are_independent(self, name):
        if name in TOGETHER:
            pytest.skip("its rows know their batch")
        student, teacher, part, batch = (
            features(name, 0),
            features(name, 1),
            components.find("losses", name),
            batch_of(LABELS),
        )
        output = draw(6, 4, seed=5)
        # BatchNorm stands still
        term = part if name in FUNCTIONS else part(taps(*student, output=output), taps(*teacher), batch).eval()
        whole = term(taps(*student, output=output), taps(*teacher), batch)
        some = term(
            taps(*(t[2:5] for t in student), output=output[2:5]),
            taps(*(t[2:5] for t in teacher)),
            batch_of(LABELS[2:5]),
        )
        assert torch.allclose(whole[2:5], some, atol=1e-6)

    def test_layout_in_memory_does_not_matter(self, name):
        student, teacher = features(name, 0), features(name, 1)
        last = [t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for t in student]
        assert torch.allclose(called(name, last, teacher)[0], called(name, student, teacher)[0], rtol=1e-5)

    def test_a_recipe_can_name_it(self, name):
        part = components.find("losses", name)
        settings, problems = signatures.settings_of(part, {}, "here", components.KINDS["losses"])
        assert not problems and called(name, features(name, 0), features(name, 1), **settings)[0].isfinite().all()
        _, problems = signatures.settings_of(part, {"nonsense": 1}, "here", components.KINDS["losses"])
        assert len(problems) == 1
        for number in (s for s in settings if isinstance(settings[s], float | int)):
            assert signatures.settings_of(part, {number: -1}, "here", components.KINDS["losses"])[1], number
        assert Term(name, 1.0).needs_teacher() == (name != "heads")


@pytest.mark.parametrize("name", MODULES)
def test_parameters_come_from_the_one_generator(name):
    state = np.random.get_state()[1].tolist()
    weights = [called(name, features(name, 0), features(name, 1))[1].state_dict() for _ in range(2)]
    assert weights[0].keys() == weights[1].keys() and all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    assert np.random.get_state()[1].tolist() == state
    generator = torch.get_rng_state()
    part, student, teacher = (
        components.find("losses", name),
        taps(*features(name, 0), output=draw(6, 4)),
        taps(*features(name, 1)),
    )
    part(student, teacher, batch_of(LABELS))
    assert not torch.equal(generator, torch.get_rng_state())


@pytest.mark.parametrize("name", [n for n in (*FUNCTIONS, *MODULES) if n != "heads"])
def test_taps_that_do_not_pair_are_told(name):
    with pytest.raises(ValueError, match="1 of the student, 2 of the teacher"):
        called(name, features(name, 0)[:1], features(name, 1)[:2])
    with pytest.raises(ValueError, match="0 of the student"):
        called(name, [], [])
    with pytest.raises(ValueError, match=r"student \[6, .*teacher \[5, "):
        called(name, features(name, 0), features(name, 1, rows=5))


@pytest.mark.parametrize(
    "name, ours, theirs",
    [
        ("attention", (6, 3), (6, 4, 2, 2)),
        ("attention", (6, 3, 8), (6, 3, 8)),
        ("channel_wise", (6, 3, 4, 4), (6, 4, 4, 4)),
        ("channel_wise", (6, 3), (6, 3)),
        ("normalized_features", (6, 3, 4, 4), (6, 4, 4, 4)),
        ("normalized_features", (6, 3, 4, 4), (6, 3)),
        ("patient", (6, 3), (6, 4)),
        ("patient", (6, 3, 8), (6, 8)),
        ("patient", (6, 3, 4, 4), (6, 3, 4, 4)),
        ("hint", (6, 3, 4, 4), (6, 3)),
        ("hint", (6, 3, 8), (6, 4, 8)),
        ("hint", (6, 3, 8, 2, 2), (6, 3, 8, 2, 2)),
    ],
)
def test_shapes_that_do_not_pair_are_told(name, ours, theirs):
    with pytest.raises(ValueError) as told:
        called(name, [draw(*ours)], [draw(*theirs)])
    assert f"student {list(ours)}" in str(told.value) and f"teacher {list(theirs)}" in str(told.value)


def test_all_tokens_need_as_many():
    with pytest.raises(ValueError, match=r"student \[6, 3, 8\], teacher \[6, 4, 8\]"):
        called("patient", [draw(6, 3, 8)], [draw(6, 4, 8)], tokens="all")


def test_a_tap_without_features_is_told():
    with pytest.raises(ValueError, match=r"\[6, 2, 2, 2, 2\]"):
        called("contrastive", [draw(6, 2, 2, 2, 2)], [draw(6, 2)])


@pytest.mark.parametrize("name", MAPS)
def test_sizes_meet_at_the_smaller(name):
    """Blocks of the larger map are averaged, whichever side is larger, height and width apart."""
    wide, tall = draw(6, 3, 2, 8), draw(6, 3, 4, 4, seed=1)
    blocks = wide.reshape(6, 3, 2, 4, 2).mean(4), tall.reshape(6, 3, 2, 2, 4).mean(3)
    assert torch.allclose(called(name, [wide], [tall])[0], called(name, [blocks[0]], [blocks[1]])[0], rtol=1e-4)
    assert torch.allclose(called(name, [tall], [wide])[0], called(name, [blocks[1]], [blocks[0]])[0], rtol=1e-4)
