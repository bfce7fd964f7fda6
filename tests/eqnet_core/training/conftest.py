"""A data set small enough to train on in seconds: scikit-learn's digits, enlarged to 32 x 32 RGB."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from eqnet_core.training.data import ImageData, load_data
from tests.support.brief_training import FLOAT, SUPERNET, trained_run


@pytest.fixture(scope="session")
def digits_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An .npz in the layout that training reads: 160 training and 40 test images."""
    digits = load_digits()
    images = (digits.images * 15).astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    images = np.repeat(images[:, None], 3, axis=1)
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    np.savez(
        path,
        x_train=images[:160],
        y_train=digits.target[:160],
        x_test=images[160:200],
        y_test=digits.target[160:200],
    )
    return path


@pytest.fixture(scope="session")
def digits(digits_file: Path) -> ImageData:
    """96 training, 64 held-out, 40 test images."""
    return load_data(digits_file, input_shape=(3, 32, 32), held_out=64, seed=0)


@pytest.fixture(scope="session")
def trained(digits: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken run of the first two stages."""
    return trained_run(digits, tmp_path_factory.mktemp("run"), FLOAT, SUPERNET)
