"""What the training of a supernet is told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from eqnet_core.errors import TrainingError
from eqnet_core.training.batches import ImageSizes, check_mixed
from eqnet_core.training.forward import Precision
from eqnet_core.training.losses import check_guidance
from eqnet_core.training.starting import check_start_share
from eqnet_core.training.subnets import RandomBits


@dataclass(frozen=True, kw_only=True)
class SupernetSettings:
    """Adam with learning rates of their own for step sizes and zero-points; warm-up, plateau, cosine to 0.

    Attributes:
        epochs: over the training images, all sizes together. A run with a plateau can be given more later.
        cooldown: share of the steps, the last ones, over which the rates fall to 0, (0, 1]. Below 1 there is
            a plateau before them (Hägele et al. 2024, arXiv:2405.18392).
        guidance: share of the next wider subnet's logits in a subnet's loss, [0, 1]; the rest are labels.
        label_smoothing: of the cross entropy, [0, 1).
        float_teacher: a float network guides the highest subnet, as that guides the others.
        teacher: which float network of another run, and the settings it was trained with, or a list of those
            as "members"; None for the one that the supernet is made from.
        temperature: of all guidance, as in `guided_loss`: one for all, as it decides how much each subnet's
            gradient weighs in the weights that they share.
        subnet_weights: of the losses of the highest, the random and the lowest subnet, at least 0 and not all
            of them 0. They decide which bit-widths the shared weights suit; the regularisation of weights is
            not among them, so keep their sum near 3.
        cutmix: share of the batches that are mixed, [0, 1]; their accuracy is that of the larger part.
        sharpness: radius within which weights are moved to where the highest subnet's loss rises most, for
            the gradients of all three; 0 takes those where the weights are. See `training.sharpness`.
        averaging: decay of the exponential moving average that becomes the result, [0, 1); 0 takes the last.
        random_bits: how the bits of a step's random subnet are drawn.
        start: which trained supernet it began with, and that one's settings; None for the float network.
        start_share: share of what it began with in the result, [0, 1): all tensors are interpolated once
            training has ended (WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903). The log has the rest alone.
        precision: of convolutions and linear layers, the teacher's too; accuracies are those of float32.
    """

    architecture: str = "resnet20"
    epochs: int = 30
    batch_size: int = 128
    learning_rate: float = 1e-3
    step_size_learning_rate: float = 2e-3
    zero_point_learning_rate: float = 2e-3
    warmup_steps: int = 100
    cooldown: float = 1.0
    guidance: float = 0.5
    label_smoothing: float = 0.0
    float_teacher: bool = False
    teacher: Mapping[str, Any] | None = None
    temperature: float = 1.0
    subnet_weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    cutmix: float = 0.0
    sharpness: float = 0.0
    averaging: float = 0.0
    random_bits: RandomBits = RandomBits.INDEPENDENT
    start: Mapping[str, Any] | None = None
    start_share: float = 0.0
    skewness_weight: float = 1.0
    kurtosis_weight: float = 0.015
    sizes: ImageSizes = field(default_factory=ImageSizes)
    seed: int = 0
    compile: bool = True
    precision: Precision = Precision.FLOAT32
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        if not 0 < self.cooldown <= 1:
            raise TrainingError(f"cooldown {self.cooldown} is a share of the steps: above 0, at most 1")
        if not 0 <= self.sharpness < math.inf:
            raise TrainingError(f"sharpness {self.sharpness} is a radius: 0 for none, or above, such as 0.5")
        if not 0 <= self.averaging < 1:
            raise TrainingError(f"averaging {self.averaging} is a decay: 0 for none, below 1, such as 0.998")
        check_start_share(self.start_share)
        check_guidance(self.guidance, self.temperature)
        check_mixed(self.cutmix)
        if min(self.subnet_weights) < 0 or not 0 < sum(self.subnet_weights) < math.inf:
            raise TrainingError(
                f"subnet weights {self.subnet_weights} are of the losses of the highest, the random and the "
                "lowest subnet: at least 0, and one of them above"
            )
