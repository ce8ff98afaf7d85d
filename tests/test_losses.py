"""Loss terms: values by hand, independent oracles, and one contract for every term in the folder."""

import importlib
import inspect
import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import logsumexp, rel_entr, softmax
from scipy.stats import entropy, pearsonr, zscore

from edgekd import components, signatures
from edgekd.losses.cross_entropy import cross_entropy
from edgekd.losses.curriculum_kl import CurriculumKl
from edgekd.losses.dist import dist
from edgekd.losses.dkd import dkd
from edgekd.losses.hard import hard
from edgekd.losses.jsd import jsd
from edgekd.losses.kl import kl
from edgekd.losses.logit_mse import logit_mse
from edgekd.losses.mlkd import mlkd
from edgekd.losses.reverse_kl import reverse_kl
from edgekd.losses.skewed_kl import skewed_kl
from edgekd.losses.soft_cross_entropy import soft_cross_entropy
from edgekd.records import Batch, Signals


def batch_of(labels):
    labels = torch.tensor(labels)
    return Batch(None, labels, torch.arange(len(labels)), torch.ones(len(labels)))


def logits(rows, classes, seed, scale=1.0):
    return torch.from_numpy(np.random.default_rng(seed).normal(0, scale, (rows, classes)).astype(np.float32))


def test_cross_entropy_by_hand():
    # softmax([0, ln 3]) = [1/4, 3/4]
    z = torch.tensor([[0.0, math.log(3.0)], [0.0, math.log(3.0)]])
    assert torch.allclose(
        cross_entropy(Signals(z), None, batch_of([0, 1])), torch.tensor([math.log(4.0), math.log(4 / 3)])
    )
    smooth = cross_entropy(Signals(z), None, batch_of([0, 0]), smoothing=0.5)  # t = [3/4, 1/4]
    assert torch.allclose(smooth, torch.full((2,), 0.75 * math.log(4.0) + 0.25 * math.log(4 / 3)))


def test_kl_by_hand():
    # p = [1/2, 1/2], q = [1/4, 3/4]: KL = ln 2 - 1/2 ln 3 + 1/2 ln 1 ... = 1/2 ln(4/3)
    student, teacher = torch.tensor([[0.0, math.log(3.0)]]), torch.zeros(1, 2)
    assert torch.allclose(
        kl(Signals(student), Signals(teacher), batch_of([0]), temperature=1.0), torch.tensor([0.5 * math.log(4 / 3)])
    )
    assert torch.allclose(
        kl(Signals(2 * student), Signals(teacher), batch_of([0]), temperature=2.0),
        torch.tensor([4 * 0.5 * math.log(4 / 3)]),
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_kl_is_scipys_sum_over_classes(temperature):
    student, teacher = logits(7, 11, 0, 3.0), logits(7, 11, 1, 3.0)
    p, q = (softmax(z.double().numpy() / temperature, axis=1) for z in (teacher, student))
    expected = temperature**2 * rel_entr(p, q).sum(1)
    assert np.allclose(
        kl(Signals(student), Signals(teacher), batch_of([0] * 7), temperature=temperature),
        expected,
        rtol=1e-4,
        atol=1e-6,
    )


def test_standardized_kl_by_hand():
    # z = [1, 2, 3]: mean 2, deviation sqrt(2 / 2) = 1, so [-1, 0, 1]; a row of another scale and shift is the same row
    student, teacher = (
        torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]]),
        torch.tensor([[10.0, 30.0, 50.0], [3.0, 2.0, 1.0]]),
    )
    value = kl(Signals(student), Signals(teacher), batch_of([0, 0]), temperature=1.0, standardize=True)
    assert value[0].abs() < 1e-6
    # deviation of [0, 0, 1] is sqrt(1/3)
    q, p = softmax(np.array([-1, -1, 2]) / np.sqrt(3)), softmax(np.array([1.0, 0.0, -1.0]))
    assert value[1].item() == pytest.approx(rel_entr(p, q).sum(), rel=1e-5)
    z = torch.zeros(2, 5, requires_grad=True)  # no deviation at all
    kl(Signals(z), Signals(logits(2, 5, 0)), batch_of([0, 0]), standardize=True).sum().backward()
    assert z.grad.isfinite().all()
    with pytest.raises(ValueError, match="2 classes"):
        kl(Signals(torch.zeros(1, 2)), Signals(torch.zeros(1, 2)), batch_of([0]), standardize=True)


def test_t_squared_keeps_the_gradient():
    """At high temperature T^2 KL has the gradient of half the squared distance of centred logits, over C: independent
    of T."""
    teacher, z = logits(5, 10, 2), logits(5, 10, 3)
    grads = {}
    for temperature in (100.0, 1000.0):
        student = z.clone().requires_grad_()
        kl(Signals(student), Signals(teacher), batch_of([0] * 5), temperature=temperature).sum().backward()
        grads[temperature] = student.grad
    centred = lambda t: t - t.mean(1, keepdim=True)
    for temperature, tolerance in ((100.0, 2e-2), (1000.0, 2e-3)):
        assert torch.allclose(grads[temperature], centred(z - teacher) / 10, atol=tolerance, rtol=tolerance)


def test_kl_direction_is_teacher_to_student():
    a, b = torch.tensor([[0.0, 5.0]]), torch.tensor([[0.0, 0.0]])
    forward, back = (
        kl(Signals(a), Signals(b), batch_of([0]), temperature=1.0),
        kl(Signals(b), Signals(a), batch_of([0]), temperature=1.0),
    )
    assert forward > 2 * back and kl(Signals(a), Signals(a), batch_of([0])).abs() < 1e-6


def value(term, student, teacher, labels=None, weight=None, **hyper):
    """A term of logits [B, C], tensors or lists."""
    student, teacher = (torch.as_tensor(z, dtype=torch.float32) for z in (student, teacher))
    batch = batch_of([0] * len(student) if labels is None else labels)
    if weight is not None:
        batch.weight = torch.as_tensor(weight, dtype=torch.float32)
    return term(Signals(student), Signals(teacher), batch, **hyper)


def probabilities(z, temperature=1.0):
    return softmax(z.double().numpy() / temperature, axis=1)


LN2, LN3 = math.log(2.0), math.log(3.0)
HALF, QUARTER = [[0.0, 0.0]], [[0.0, LN3]]  # softmax [1/2, 1/2] and [1/4, 3/4]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
class TestByHand:
    """Teacher [1/2, 1/2], student [1/4, 3/4] once divided by the temperature; each value written out."""

    def at(self, term, temperature, **hyper):
        student = temperature * torch.tensor(QUARTER)
        return value(term, student, HALF, temperature=temperature, **hyper).item() / temperature**2

    def test_reverse_kl(self, temperature):
        assert self.at(reverse_kl, temperature) == pytest.approx(
            0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2), rel=1e-5
        )

    def test_jsd(self, temperature):
        # beta 1/2: m = [3/8, 5/8]; beta 1/4: m = [5/16, 11/16]
        even = 0.5 * (0.5 * math.log(4 / 3) + 0.5 * math.log(4 / 5)) + 0.5 * (
            0.25 * math.log(2 / 3) + 0.75 * math.log(6 / 5)
        )
        assert self.at(jsd, temperature) == pytest.approx(even, rel=1e-4)
        to_p, to_q = 0.5 * math.log(8 / 5) + 0.5 * math.log(8 / 11), 0.25 * math.log(4 / 5) + 0.75 * math.log(12 / 11)
        assert self.at(jsd, temperature, beta=0.25) == pytest.approx(0.25 * to_p + 0.75 * to_q, rel=1e-4)

    def test_skewed_kl(self, temperature):
        # alpha 1/4: [5/16, 11/16], reversed [7/16, 9/16]
        assert self.at(skewed_kl, temperature, alpha=0.25) == pytest.approx(
            0.5 * math.log(8 / 5) + 0.5 * math.log(8 / 11), rel=1e-4
        )
        back = 0.25 * math.log(4 / 7) + 0.75 * math.log(4 / 3)
        assert self.at(skewed_kl, temperature, alpha=0.25, reverse=True) == pytest.approx(back, rel=1e-4)

    def test_soft_cross_entropy(self, temperature):
        assert self.at(soft_cross_entropy, temperature) == pytest.approx(
            0.5 * math.log(4) + 0.5 * math.log(4 / 3), rel=1e-5
        )

    def test_dkd(self, temperature):
        # teacher [1/2, 1/4, 1/4], student [1/4, 1/4, 1/2], label 0: [1/2, 1/2] to [1/4, 3/4], and [1/2, 1/2] to [1/3,
        # 2/3]
        student, teacher = temperature * torch.tensor([[0.0, 0.0, LN2]]), temperature * torch.tensor([[LN2, 0.0, 0.0]])
        parts = [
            value(dkd, student, teacher, alpha=a, beta=b, temperature=temperature).item()
            for a, b in ((1, 0), (0, 1), (2, 3))
        ]
        target, rest = temperature**2 * 0.5 * math.log(4 / 3), temperature**2 * 0.5 * math.log(9 / 8)
        assert parts == pytest.approx([target, rest, 2 * target + 3 * rest], rel=1e-4)


def test_logit_mse_by_hand():
    # (1 + 4 + 4) / 3, 9 / 3
    assert value(logit_mse, [[1.0, 2.0, 4.0], [0.0, 0.0, 0.0]], [[0.0, 4.0, 2.0], [3.0, 0.0, 0.0]]).tolist() == [
        3.0,
        3.0,
    ]


def test_hard_by_hand():
    # the teacher says 0, 1, 0; labels are not read
    rows = value(hard, QUARTER * 3, [[9.0, 0.0], [-1.0, 0.0], [2.0, 2.0]], labels=[1, 1, 1])
    assert torch.allclose(rows, torch.tensor([math.log(4), math.log(4 / 3), math.log(4)]))


def test_hard_takes_a_label_that_is_shown_alone():
    batch = batch_of([1, 1])
    shown = Signals(None, label=torch.tensor([0, 1], dtype=torch.int32))
    assert torch.allclose(
        hard(Signals(torch.tensor(QUARTER * 2)), shown, batch), torch.tensor([math.log(4), math.log(4 / 3)])
    )
    # what it shows counts, not what it would have said
    both = Signals(torch.tensor([[9.0, 0.0], [9.0, 0.0]]), label=torch.tensor([0, 1]))
    assert torch.equal(
        hard(Signals(torch.tensor(QUARTER * 2)), both, batch), hard(Signals(torch.tensor(QUARTER * 2)), shown, batch)
    )


def test_dist_by_hand():
    # rows [1/2, 1/4, 1/4], [1/4, 1/2, 1/4] against a teacher's [1/2, 1/4, 1/4], [1/4, 1/4, 1/2]: correlations of rows 1
    # and -1/2; of classes 1 for the first, 0 for the second (the teacher's has no spread) and for the third (the
    # student's has none)
    student, teacher = [[LN2, 0.0, 0.0], [0.0, LN2, 0.0]], [[LN2, 0.0, 0.0], [0.0, 0.0, LN2]]
    inter, intra = 1 - 0.25, 1 - 1 / 3
    for (beta, gamma), expected in {(1, 0): inter, (0, 1): intra, (2, 3): 2 * inter + 3 * intra}.items():
        assert value(dist, student, teacher, beta=beta, gamma=gamma).item() == pytest.approx(expected, abs=1e-5)
        warm = value(dist, 4 * torch.tensor(student), 4 * torch.tensor(teacher), beta=beta, gamma=gamma, tau=4.0)
        assert warm.item() == pytest.approx(16 * expected, abs=1e-4)


def test_mlkd_by_hand():
    # P = [1/2 1/2; 1/2 1/2], Q = [1/4 3/4; 3/4 1/4]
    # rows:    PP' = [1/2 1/2; 1/2 1/2], QQ' = [5/8 3/8; 3/8 5/8]: four squares of 1/8, over 2 rows
    # classes: P'P = [1/2 1/2; 1/2 1/2], Q'Q = [5/8 3/8; 3/8 5/8]: the same here, over 2 classes
    student, teacher = [[0.0, LN3], [LN3, 0.0]], [[0.0, 0.0]] * 2
    only = lambda i, **more: value(
        mlkd, student, teacher, **dict(zip(LEVELS, (float(i == k) for k in range(3)), strict=True)), **more
    ).item()
    assert [only(i, temperatures=(1.0,)) for i in range(3)] == pytest.approx(
        [0.5 * math.log(4 / 3), 1 / 32, 1 / 32], rel=1e-5
    )
    # a third row, like the first, tells rows from classes: QQ' has 5 of 9 entries 5/8, all off by 1/8; Q'Q = [11/16
    # 9/16; 9/16 19/16], P'P = 3/4
    student, teacher = [*student, student[0]], [*teacher, teacher[0]]
    assert only(1, temperatures=(1.0,)) == pytest.approx(9 / 64 / 3, rel=1e-5)
    assert only(2, temperatures=(1.0,)) == pytest.approx((1 + 9 + 9 + 49) / 256 / 2, rel=1e-5)


LEVELS = ("instance_weight", "batch_weight", "class_weight")


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
class TestOracle:
    """float64 values by scipy's own functions, or by loops."""

    student, teacher, labels = logits(7, 11, 0, 3.0), logits(7, 11, 1, 3.0), [0, 3, 10, 5, 5, 1, 9]

    def close(self, got, expected, atol=1e-5):
        assert np.allclose(got.numpy(), expected, rtol=2e-4, atol=atol)

    def test_divergences(self, temperature):
        p, q = probabilities(self.teacher, temperature), probabilities(self.student, temperature)
        of = lambda term, **hyper: (
            value(term, self.student, self.teacher, temperature=temperature, **hyper) / temperature**2
        )
        self.close(of(reverse_kl), rel_entr(q, p).sum(1))
        self.close(of(jsd), jensenshannon(p, q, axis=1) ** 2)
        for share in (0.1, 0.5, 0.9):
            m = share * p + (1 - share) * q
            # the divergence is the entropy that mixing adds
            self.close(
                of(jsd, beta=share), entropy(m, axis=1) - share * entropy(p, axis=1) - (1 - share) * entropy(q, axis=1)
            )
            self.close(of(skewed_kl, alpha=share), rel_entr(p, m).sum(1))
            self.close(of(skewed_kl, alpha=1 - share, reverse=True), rel_entr(q, m).sum(1))
        self.close(of(soft_cross_entropy), rel_entr(p, q).sum(1) + entropy(p, axis=1))

    def test_dkd(self, temperature):
        target, rest = np.zeros(7), np.zeros(7)
        for i, y in enumerate(self.labels):
            p, q = (probabilities(z, temperature)[i] for z in (self.teacher, self.student))
            target[i] = rel_entr([p[y], 1 - p[y]], [q[y], 1 - q[y]]).sum()
            others_p, others_q = np.delete(p, y), np.delete(q, y)
            rest[i] = rel_entr(others_p / others_p.sum(), others_q / others_q.sum()).sum()
        for alpha, beta in ((1.0, 8.0), (2.0, 0.0), (0.0, 0.5)):
            got = value(dkd, self.student, self.teacher, self.labels, temperature=temperature, alpha=alpha, beta=beta)
            self.close(got / temperature**2, alpha * target + beta * rest, atol=1e-4)

    def test_dist(self, temperature):
        tau = max(temperature, 1.0)  # below, some classes have almost no spread, and the 1e-8 beside it shows
        p, q = probabilities(self.teacher, tau), probabilities(self.student, tau)
        inter = 1 - np.mean([pearsonr(p[i], q[i]).statistic for i in range(7)])
        intra = 1 - np.mean([pearsonr(p[:, c], q[:, c]).statistic for c in range(11)])
        got = value(dist, self.student, self.teacher, tau=tau, beta=1.5, gamma=0.5)
        self.close(got / tau**2, 1.5 * inter + 0.5 * intra, atol=1e-3)

    def test_mlkd(self, temperature):
        expected = np.zeros(3)
        for t in (temperature, 3.0):
            p, q = probabilities(self.teacher, t), probabilities(self.student, t)
            expected[0] += t**2 * rel_entr(p, q).sum(1).mean()
            expected[1] += sum((p[i] @ p[j] - q[i] @ q[j]) ** 2 for i in range(7) for j in range(7)) / 7
            expected[2] += sum((p[:, c] @ p[:, d] - q[:, c] @ q[:, d]) ** 2 for c in range(11) for d in range(11)) / 11
        weights = (1.5, 2.0, 0.25)
        got = value(
            mlkd, self.student, self.teacher, temperatures=(temperature, 3.0), **dict(zip(LEVELS, weights, strict=True))
        )
        self.close(got, expected @ weights)


def test_logit_terms_against_numpy():
    student, teacher = logits(7, 11, 0, 3.0), logits(7, 11, 1, 3.0)
    s, t = student.double().numpy(), teacher.double().numpy()
    assert np.allclose(value(logit_mse, student, teacher), np.linalg.norm(s - t, axis=1) ** 2 / 11, rtol=1e-5)
    assert np.allclose(
        value(hard, student, teacher), [logsumexp(row) - row[t[i].argmax()] for i, row in enumerate(s)], rtol=1e-5
    )
    # shows only its labels
    assert torch.equal(value(hard, student, torch.eye(11)[teacher.argmax(1)]), value(hard, student, teacher))


def test_directions_agree():
    """reverse_kl is kl with the roles changed; jsd and skewed_kl lie between them and tend to them."""
    a, b = logits(6, 9, 4, 2.0), logits(6, 9, 5, 2.0)
    assert torch.allclose(value(reverse_kl, a, b), value(kl, b, a))
    assert torch.allclose(value(jsd, a, b, beta=0.3), value(jsd, b, a, beta=0.7), atol=1e-5)
    assert torch.allclose(value(skewed_kl, a, b, alpha=0.3, reverse=True), value(skewed_kl, b, a, alpha=0.3), atol=1e-5)
    hyper = {"temperature": 1.0}
    assert torch.allclose(value(skewed_kl, a, b, alpha=1e-5, **hyper), value(kl, a, b, **hyper), rtol=1e-2)
    assert torch.allclose(
        value(skewed_kl, a, b, alpha=1e-5, reverse=True, **hyper), value(reverse_kl, a, b, **hyper), rtol=1e-2
    )
    assert torch.allclose(value(jsd, a, b, beta=1e-4, **hyper) / 1e-4, value(kl, a, b, **hyper), rtol=5e-2)
    assert torch.allclose(value(jsd, a, b, beta=1 - 1e-4, **hyper) / 1e-4, value(reverse_kl, a, b, **hyper), rtol=5e-2)


def test_jsd_and_skewed_kl_are_bounded():
    apart = torch.tensor([[1e4, 0.0, 0.0]]), torch.tensor([[0.0, 1e4, 0.0]])  # no mass in common
    assert value(jsd, *apart, temperature=1.0).item() == pytest.approx(LN2, rel=1e-5)
    for reverse in (False, True):
        assert value(skewed_kl, *apart, temperature=1.0, alpha=0.1, reverse=reverse).item() == pytest.approx(
            math.log(10), rel=1e-5
        )


def test_soft_cross_entropy_has_the_gradient_of_kl():
    grads = []
    for term in (soft_cross_entropy, kl):
        z = logits(5, 10, 3, 3.0).requires_grad_()
        value(term, z, logits(5, 10, 2, 3.0), temperature=2.0).sum().backward()
        grads.append(z.grad)
    assert torch.allclose(*grads, atol=1e-6)


def test_kl_at_high_temperature_is_half_the_logit_mse():
    student, teacher = (z - z.mean(1, keepdim=True) for z in (logits(5, 10, 3), logits(5, 10, 2)))
    assert torch.allclose(
        value(kl, student, teacher, temperature=100.0), value(logit_mse, student, teacher) / 2, rtol=3e-2
    )


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kl_is_the_sum_of_dkds_parts(temperature):
    """KL = TCKD + (1 - p_y) NCKD, p_y the teacher's softened probability of the label."""
    student, teacher, labels = logits(8, 6, 0, 3.0), logits(8, 6, 1, 3.0), [0, 1, 2, 3, 4, 5, 0, 1]
    doubt = 1 - probabilities(teacher, temperature)[np.arange(8), labels]
    hyper = {"alpha": 1.0, "temperature": temperature}
    rows = [value(dkd, student[[i]], teacher[[i]], [y], beta=float(doubt[i]), **hyper) for i, y in enumerate(labels)]
    assert torch.allclose(torch.cat(rows), value(kl, student, teacher, temperature=temperature), rtol=1e-4, atol=1e-5)


def test_dkd_is_finite_where_the_label_is_certain():
    """Of a teacher's or student's 1 - p_y that float32 has as 0, the log is still told."""
    certain = torch.tensor([[200.0, 1.0, 0.0]])
    for student, teacher, expected in (
        (certain, torch.zeros(1, 3), True),
        (torch.zeros(1, 3), certain, True),
        (certain, certain, False),
    ):
        z = student.clone().requires_grad_()
        got = value(dkd, z, teacher, temperature=1.0)
        got.sum().backward()
        assert got.isfinite().all() and z.grad.isfinite().all() and (z.grad.abs().max() > 1e-3) == expected
    # student sure of 0, teacher undecided: TCKD = 1/3 ln(1/3) + 2/3 (ln(2/3) - ln(e^-199 + e^-200))
    tckd = math.log(1 / 3) / 3 + 2 / 3 * (math.log(2 / 3) + 199 - math.log1p(math.exp(-1)))
    assert value(dkd, certain, torch.zeros(1, 3), alpha=1.0, beta=0.0, temperature=1.0).item() == pytest.approx(
        tckd, rel=1e-5
    )


def test_dist_sees_neither_scale_nor_shift_of_probabilities():
    """Row by row, q = a p + b has inter 0; the intra part compares rows, so that a shared a, b keeps it 0 as well."""
    p = torch.from_numpy(np.random.default_rng(0).dirichlet(np.ones(5), 6)).float()
    assert value(dist, (0.4 * p + 0.6 / 5).log(), p.log()).item() == pytest.approx(0, abs=1e-5)
    own = torch.linspace(0.2, 0.8, 6)[:, None]
    mixed = (own * p + (1 - own) / 5).log()
    assert (
        value(dist, mixed, p.log(), gamma=0.0).item() == pytest.approx(0, abs=1e-5)
        and value(dist, mixed, p.log(), beta=0.0) > 1e-3
    )


@pytest.mark.parametrize("term, levels", [(dist, ("beta", "gamma")), (mlkd, LEVELS)])
def test_weights_count_rows(term, levels):
    """The loop has no rows to weigh in one value per batch: the term does. Weight 2 is the row twice, weight 0 the row
    left out."""
    student, teacher = logits(6, 4, 0, 2.0), logits(6, 4, 1, 2.0)
    times = torch.tensor([3, 0, 1, 2, 4, 0])
    for level in levels:  # each alone: they differ in size
        hyper = {other: float(other == level) for other in levels}
        repeated = value(term, student.repeat_interleave(times, 0), teacher.repeat_interleave(times, 0), **hyper)
        assert torch.allclose(value(term, student, teacher, weight=times, **hyper), repeated, rtol=1e-4), level
        assert not torch.allclose(value(term, student, teacher, **hyper), repeated, rtol=1e-2), level


@pytest.mark.parametrize("term", [dist, mlkd])
def test_one_row_trains(term):
    z = logits(1, 4, 0).requires_grad_()
    value(term, z, logits(1, 4, 1)).backward()
    assert z.grad.isfinite().all() and z.grad.abs().max() > 1e-3


@pytest.mark.parametrize("term", [kl, reverse_kl, jsd, skewed_kl, soft_cross_entropy, logit_mse, dkd, dist, mlkd])
def test_the_teachers_own_logits_are_the_minimum(term):
    teacher = logits(6, 5, 1, 2.0)
    z = teacher.clone().requires_grad_()
    least = value(term, z, teacher, [0, 1, 2, 3, 4, 0])
    least.sum().backward()
    assert z.grad.abs().max() < 1e-5
    assert term is soft_cross_entropy or least.abs().max() < 1e-4
    other = value(term, teacher + 0.3 * logits(6, 5, 2), teacher, [0, 1, 2, 3, 4, 0])
    assert (other > least + 1e-4).all()


@pytest.mark.parametrize(
    "term, hyper", [(kl, {}), (reverse_kl, {}), (dkd, {}), (mlkd, {"batch_weight": 0.0, "class_weight": 0.0})]
)
def test_standardized_rows_have_no_scale_or_shift(term, hyper):
    student, teacher, labels = logits(6, 5, 0), logits(6, 5, 1), [0, 1, 2, 3, 4, 0]
    scale, shift = torch.linspace(0.5, 9, 6)[:, None], torch.linspace(-3, 3, 6)[:, None]
    plain = value(term, student, teacher, labels, standardize=True, **hyper)
    assert torch.allclose(
        value(term, scale * student + shift, teacher, labels, standardize=True, **hyper), plain, atol=1e-5
    )
    assert torch.allclose(
        value(term, student, scale * teacher + shift, labels, standardize=True, **hyper), plain, atol=1e-5
    )
    by_hand = [torch.from_numpy(zscore(z.double().numpy(), axis=1, ddof=1)) for z in (student, teacher)]
    assert torch.allclose(value(term, *by_hand, labels, **hyper), plain, atol=1e-5)
    assert not torch.allclose(value(term, student, teacher, labels, **hyper), plain, atol=1e-3)
    z = torch.zeros(6, 5, requires_grad=True)  # no deviation at all
    value(term, z, teacher, labels, standardize=True, **hyper).sum().backward()
    assert z.grad.isfinite().all()
    with pytest.raises(ValueError, match="2 classes"):
        value(term, torch.zeros(1, 2), torch.zeros(1, 2), standardize=True, **hyper)


def test_mlkd_standardizes_the_instance_level_only():
    student, teacher = logits(6, 5, 0), logits(6, 5, 1)
    assert value(mlkd, student, teacher, standardize=True, instance_weight=0.0) == value(
        mlkd, student, teacher, instance_weight=0.0
    )


def test_settings_are_bounded():
    bad = {name: {"temperature": 0.0} for name in ("kl", "reverse_kl", "soft_cross_entropy")}
    bad |= {"jsd": {"beta": 1.0}, "skewed_kl": {"alpha": 0.0}, "dist": {"tau": 0.0}}
    bad |= {"dkd": {"beta": -1.0}, "mlkd": {"temperatures": []}, "logit_mse": {"x": 1}, "hard": {"x": 1}}
    for name, table in bad.items():
        part = components.find("losses", name)
        assert len(signatures.settings_of(part, table, name, components.KINDS["losses"])[1]) == 1, name
        assert not signatures.settings_of(part, {}, name, components.KINDS["losses"])[1]
    assert len(signatures.settings_of(mlkd, {"temperatures": [1.0, -1.0]}, "", components.KINDS["losses"])[1]) == 1
    assert signatures.settings_of(mlkd, {"temperatures": [1.0, 4.0]}, "", components.KINDS["losses"])[0][
        "temperatures"
    ] == (1.0, 4.0)


def test_curriculum_temperature_by_hand_and_against_the_student():
    student, teacher, batch = Signals(logits(5, 4, 0).requires_grad_()), Signals(logits(5, 4, 1)), batch_of([0] * 5)
    term = CurriculumKl(student, teacher, batch, start=3.0, span=8.0)
    # 1 + 8 sigmoid(theta) = 3
    assert torch.allclose(term(student, teacher, batch), kl(student, teacher, batch, temperature=3.0), atol=1e-6)
    gradients = []
    for share in (0.0, 0.025, 0.05, 1.0):  # lambda is 0, 1/2, 1, 1
        term.share, term.theta.grad = share, None
        term(student, teacher, batch).sum().backward()
        gradients.append(term.theta.grad.item())
    step = 1e-2
    with torch.no_grad():
        start = term.theta.item()
        values = []
        for move in (step, -step):
            term.theta.fill_(start + move)
            values.append(term(student, teacher, batch).sum().item())
    slope = (values[0] - values[1]) / (2 * step)
    assert gradients[0] == 0 and gradients[1] == pytest.approx(-slope / 2, rel=2e-2)
    assert gradients[2] == gradients[3] == pytest.approx(-slope, rel=2e-2)  # descending it climbs the loss
    with pytest.raises(ValueError, match="start 5.0 is not between 1 and 1 [+] span = 4.0"):
        CurriculumKl(student, teacher, batch, start=5.0, span=3.0)
    for start in (1.0, 4.0):  # a temperature at either end would never move
        with pytest.raises(ValueError, match="between"):
            CurriculumKl(student, teacher, batch, start=start, span=3.0)
    assert CurriculumKl(student, teacher, batch, start=1.5, span=1.0).share == 0.0


# settings that a recipe leaves out: a change of one is a change of every run
DEFAULTS = {
    "channel_wise": {"temperature": 4.0}, "contrastive": {"dim": 128, "temperature": 0.07},
    "cross_entropy": {"smoothing": 0.0, "weights": ()}, "focal": {"gamma": 2.0, "weights": ()}, "huber": {"delta": 1.0},
    "bounded": {"margin": 0.0},
    "curriculum_kl": {"start": 4.0, "span": 20.0, "ramp": 0.05, "force": 1.0},
    "dist": {"beta": 1.0, "gamma": 1.0, "tau": 1.0},
    "dkd": {"alpha": 1.0, "beta": 8.0, "temperature": 4.0, "standardize": False},
    "heads": {"labels": 0.7, "output": 0.3, "hint": 0.0, "temperature": 3.0}, "jsd": {"beta": 0.5, "temperature": 4.0},
    "kl": {"temperature": 4.0, "standardize": False},
    "mlkd": {"temperatures": (2.0, 3.0, 4.0, 5.0, 6.0), **dict.fromkeys(LEVELS, 1.0), "standardize": False},
    "patient": {"tokens": "first"}, "relational": {"distance": 25.0, "angle": 50.0},
    "reverse_kl": {"temperature": 4.0, "standardize": False},
    "skewed_kl": {"alpha": 0.1, "reverse": False, "temperature": 4.0}, "soft_cross_entropy": {"temperature": 4.0},
}  # fmt: skip


@pytest.mark.parametrize("name", components.names("losses"))
def test_settings_that_are_left_out(name):
    taken, problems = signatures.settings_of(components.find("losses", name), {}, name, components.KINDS["losses"])
    assert taken == DEFAULTS.get(name, taken) and not problems


def test_parts_of_losses_are_not_listed():
    assert "_standardize" not in components.names("losses") and {"kl", "dkd", "dist"} <= set(components.names("losses"))


def looks_inside(name):
    """Terms on taps have a suite of their own: test_feature_losses."""
    return "losses._taps" in inspect.getsource(importlib.import_module(f"edgekd.losses.{name}"))


# `ctc` takes strings: tests/test_strings.py
@pytest.mark.parametrize("name", [n for n in components.names("losses") if not looks_inside(n) and n != "ctc"])
class TestContract:
    """What every term keeps: one value per row, finite values and gradients at extreme logits, rows that don't know
    each other.

    A term may give one value per batch instead, if its rows don't separate."""

    def call(self, name, student, teacher, labels):
        given = Signals(student), Signals(teacher), batch_of(labels)
        if "losses._values import labels" in inspect.getsource(importlib.import_module(f"edgekd.losses.{name}")):
            given[2].labels = student.detach().float().flip(-1)  # numbers, of the output's size
        part = components.find("losses", name)
        return part(*given)(*given) if isinstance(part, type) else part(*given)

    def test_one_value_per_row(self, name):
        student, teacher, labels = logits(6, 4, 0), logits(6, 4, 1), [0, 1, 2, 3, 0, 1]
        whole = self.call(name, student, teacher, labels)
        if whole.ndim:
            assert whole.shape == (6,)
        else:  # a mean of rows would be told as rows: the loop weighs them
            halves = [self.call(name, student[part], teacher[part], labels[part]) for part in (slice(3), slice(3, 6))]
            assert not torch.allclose(whole, sum(halves) / 2, rtol=1e-3) and not torch.allclose(
                whole, sum(halves), rtol=1e-3
            )

    @pytest.mark.parametrize("scale", [0.0, 1e-6, 1e4])
    def test_finite_at_extremes(self, name, scale):
        student = logits(6, 4, 0, scale).requires_grad_()
        value = self.call(name, student, logits(6, 4, 1, scale), [0, 1, 2, 3, 0, 1])
        value.sum().backward()
        # a divergence of 0 is as exact as float32's sums of logs, times T^2 and the term's own factors
        assert value.isfinite().all() and student.grad.isfinite().all() and (value > -1e-4).all()

    def test_half_precision_is_computed_in_single(self, name):
        student, teacher = logits(4, 4, 0).half(), logits(4, 4, 1).half()
        got = self.call(name, student, teacher, [0, 1, 2, 3])
        assert got.dtype == torch.float32 and torch.equal(
            got, self.call(name, student.float(), teacher.float(), [0, 1, 2, 3])
        )

    def test_rows_are_independent(self, name):
        student, teacher = logits(6, 4, 0), logits(6, 4, 1)
        whole = self.call(name, student, teacher, [0, 1, 2, 3, 0, 1])
        if whole.ndim == 0:
            return
        assert torch.allclose(whole[2:5], self.call(name, student[2:5], teacher[2:5], [2, 3, 0]), atol=1e-6)
