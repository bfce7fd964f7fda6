"""WDR and GPG against SciPy and their definitions."""

import numpy as np
import pytest
import torch
from scipy.stats import kurtosis, skew

from eqnet_core.errors import TrainingError
from eqnet_core.training.losses import (
    check_guidance,
    guided_loss,
    skewness_and_kurtosis,
    weight_distribution_loss,
)


def test_moments_agree_with_scipy() -> None:
    weight = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0)).exp()
    skewness, kurt = skewness_and_kurtosis(weight)
    flat = weight.flatten().numpy()
    assert skewness.item() == pytest.approx(skew(flat), rel=1e-4)
    assert kurt.item() == pytest.approx(kurtosis(flat, fisher=False), rel=1e-4)


def test_uniform_weights_cost_nothing_and_gradient_descends() -> None:
    uniform = torch.linspace(-1, 1, 10_001)
    assert weight_distribution_loss([uniform]).item() == pytest.approx(0, abs=1e-5)
    weight = torch.from_numpy(np.random.default_rng(0).gamma(2, size=2000)).requires_grad_()
    before = weight_distribution_loss([weight, uniform])
    before.backward()
    assert weight.grad is not None
    after = weight_distribution_loss([weight - 50 * weight.grad, uniform])
    assert after < before


def test_guidance_mixes_teacher_and_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 6, 10, generator=generator)
    labels = torch.randint(0, 10, (6,), generator=generator)
    hard = torch.nn.functional.cross_entropy(student, labels)
    soft = (teacher.softmax(1) * (teacher.log_softmax(1) - student.log_softmax(1))).sum(1).mean()
    assert guided_loss(student, labels, teacher, 0.0).item() == pytest.approx(hard.item(), rel=1e-5)
    assert guided_loss(student, labels, teacher, 1.0).item() == pytest.approx(soft.item(), rel=1e-5)
    assert guided_loss(student, labels, student, 1.0).item() == pytest.approx(0, abs=1e-6)


def test_a_temperature_softens_both_and_keeps_the_gradient_s_size() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 6, 10, generator=generator)
    labels = torch.randint(0, 10, (6,), generator=generator)
    soft, ours = (teacher / 4).softmax(1), (student / 4).log_softmax(1)
    expected = 16 * (soft * (soft.log() - ours)).sum(1).mean()
    loss = guided_loss(student, labels, teacher, 1.0, temperature=4.0)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)

    def gradient(temperature: float) -> float:
        logits = student.clone().requires_grad_()
        guided_loss(logits, labels, teacher, 1.0, temperature=temperature).backward()  # type: ignore[no-untyped-call]
        assert logits.grad is not None
        return logits.grad.norm().item()

    # At high temperatures it is the logits' difference over the number of classes, whatever T is.
    assert gradient(50.0) == pytest.approx(gradient(100.0), rel=0.05)


def test_labels_may_be_shares_of_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 6, 10, generator=generator)
    one, other = torch.randint(0, 10, (2, 6), generator=generator)
    shares = 0.3 * torch.eye(10)[one] + 0.7 * torch.eye(10)[other]
    expected = 0.3 * guided_loss(student, one, teacher) + 0.7 * guided_loss(student, other, teacher)
    assert guided_loss(student, shares, teacher).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_is_above_zero(temperature: float) -> None:
    with pytest.raises(TrainingError, match="temperature"):
        check_guidance(0.5, temperature)


@pytest.mark.parametrize("guidance", [-0.1, 1.1, float("nan")])
def test_guidance_is_a_share(guidance: float) -> None:
    with pytest.raises(TrainingError, match="guidance"):
        check_guidance(guidance, 1.0)
