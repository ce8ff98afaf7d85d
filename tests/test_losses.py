"""Loss terms: values by hand, independent oracles, and one contract for every term in the folder."""

import math

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax

from edgekd import components
from edgekd.losses.cross_entropy import cross_entropy
from edgekd.losses.kl import kl
from edgekd.records import Batch, Signals


def batch_of(labels):
    labels = torch.tensor(labels)
    return Batch(None, labels, torch.arange(len(labels)), torch.ones(len(labels)))


def logits(rows, classes, seed, scale=1.0):
    return torch.from_numpy(np.random.default_rng(seed).normal(0, scale, (rows, classes)).astype(np.float32))


def test_cross_entropy_by_hand():
    # softmax([0, ln 3]) = [1/4, 3/4]
    z = torch.tensor([[0.0, math.log(3.0)], [0.0, math.log(3.0)]])
    assert torch.allclose(cross_entropy(Signals(z), None, batch_of([0, 1])), torch.tensor([math.log(4.0), math.log(4 / 3)]))
    smooth = cross_entropy(Signals(z), None, batch_of([0, 0]), smoothing=0.5)  # t = [3/4, 1/4]
    assert torch.allclose(smooth, torch.full((2,), 0.75 * math.log(4.0) + 0.25 * math.log(4 / 3)))


def test_kl_by_hand():
    # p = [1/2, 1/2], q = [1/4, 3/4]: KL = ln 2 - 1/2 ln 3 + 1/2 ln 1 ... = 1/2 ln(4/3)
    student, teacher = torch.tensor([[0.0, math.log(3.0)]]), torch.zeros(1, 2)
    assert torch.allclose(kl(Signals(student), Signals(teacher), batch_of([0]), temperature=1.0), torch.tensor([0.5 * math.log(4 / 3)]))
    assert torch.allclose(kl(Signals(2 * student), Signals(teacher), batch_of([0]), temperature=2.0), torch.tensor([4 * 0.5 * math.log(4 / 3)]))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_kl_is_scipys_sum_over_classes(temperature):
    student, teacher = logits(7, 11, 0, 3.0), logits(7, 11, 1, 3.0)
    p, q = (softmax(z.double().numpy() / temperature, axis=1) for z in (teacher, student))
    expected = temperature**2 * rel_entr(p, q).sum(1)
    assert np.allclose(kl(Signals(student), Signals(teacher), batch_of([0] * 7), temperature=temperature), expected, rtol=1e-4, atol=1e-6)


def test_standardized_kl_by_hand():
    # z = [1, 2, 3]: mean 2, deviation sqrt(2 / 2) = 1, so [-1, 0, 1]; a row of another scale and shift is the same row
    student, teacher = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]]), torch.tensor([[10.0, 30.0, 50.0], [3.0, 2.0, 1.0]])
    value = kl(Signals(student), Signals(teacher), batch_of([0, 0]), temperature=1.0, standardize=True)
    assert torch.equal(value[0], torch.tensor(0.0)) or value[0].abs() < 1e-6
    q, p = softmax(np.array([-1, -1, 2]) / np.sqrt(3)), softmax(np.array([1.0, 0.0, -1.0]))  # deviation of [0, 0, 1] is sqrt(1/3)
    assert value[1].item() == pytest.approx(rel_entr(p, q).sum(), rel=1e-5)
    z = torch.zeros(2, 5, requires_grad=True)  # no deviation at all
    kl(Signals(z), Signals(logits(2, 5, 0)), batch_of([0, 0]), standardize=True).sum().backward()
    assert z.grad.isfinite().all()
    with pytest.raises(ValueError, match="2 classes"):
        kl(Signals(torch.zeros(1, 2)), Signals(torch.zeros(1, 2)), batch_of([0]), standardize=True)


def test_t_squared_keeps_the_gradient():
    """At high temperature T^2 KL has the gradient of half the squared distance of centred logits, over C: independent of T."""
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
    forward, back = kl(Signals(a), Signals(b), batch_of([0]), temperature=1.0), kl(Signals(b), Signals(a), batch_of([0]), temperature=1.0)
    assert forward > 2 * back and kl(Signals(a), Signals(a), batch_of([0])).abs() < 1e-6


@pytest.mark.parametrize("name", components.names("losses"))
class TestContract:
    """What every term keeps: one value per row, finite values and gradients at extreme logits, rows that don't know each other."""

    def call(self, name, student, teacher, labels):
        return components.find("losses", name)(Signals(student), Signals(teacher), batch_of(labels))

    def test_one_value_per_row(self, name):
        assert self.call(name, logits(6, 4, 0), logits(6, 4, 1), [0, 1, 2, 3, 0, 1]).shape == (6,)

    @pytest.mark.parametrize("scale", [0.0, 1e-6, 1e4])
    def test_finite_at_extremes(self, name, scale):
        student = logits(6, 4, 0, scale).requires_grad_()
        value = self.call(name, student, logits(6, 4, 1, scale), [0, 1, 2, 3, 0, 1])
        value.sum().backward()
        assert value.isfinite().all() and student.grad.isfinite().all() and (value > -1e-5).all()

    def test_half_precision_is_computed_in_single(self, name):
        value = self.call(name, logits(4, 4, 0).half(), logits(4, 4, 1).half(), [0, 1, 2, 3])
        assert value.dtype == torch.float32

    def test_rows_are_independent(self, name):
        student, teacher = logits(6, 4, 0), logits(6, 4, 1)
        whole = self.call(name, student, teacher, [0, 1, 2, 3, 0, 1])
        assert torch.allclose(whole[2:5], self.call(name, student[2:5], teacher[2:5], [2, 3, 0]), atol=1e-6)
