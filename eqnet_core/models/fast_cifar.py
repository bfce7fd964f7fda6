"""A network for 32 x 32 images that trains in few epochs (after Jordan 2024, arXiv:2404.00498)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class ConvolutionGroup(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm and ReLU, pooled to half the side between them."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        for convolution in (self.conv1, self.conv2):
            # The first channels pass their input on, as a residual network does.
            nn.init.dirac_(convolution.weight[: convolution.in_channels])

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(functional.relu(self.bn1(self.conv1(x))))
        return functional.relu(self.bn2(self.conv2(x)))


class FastCifarNet(nn.Module):
    """Jordan's airbench networks: a 2 x 2 convolution, then three groups of two convolutions.

    Teachers for a ResNet-20. With the widths 64, 256, 256 (airbench94) it has three times the multiplications
    and seven times the weights of one, with 128, 384, 384 (airbench95) seven and eighteen times. Unlike the
    original it has ReLU, BatchNorm before pooling and global average pooling, all of which integer runtimes
    have, and a first layer that is learned.

    Args:
        classes: how many logits.
        widths: channels of each of the three groups.

    Input [N, 3, H, W] normalised images, output [N, classes] logits.
    """

    def __init__(self, classes: int, *, widths: tuple[int, int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 24, 2)
        self.layer1 = ConvolutionGroup(24, widths[0])
        self.layer2 = ConvolutionGroup(widths[0], widths[1])
        self.layer3 = ConvolutionGroup(widths[1], widths[2])
        self.fc = nn.Linear(widths[2], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.conv1(x))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits
