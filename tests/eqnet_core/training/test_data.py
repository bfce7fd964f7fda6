"""Reading the three layouts, the held-out split, augmentation and batches."""

import io
import pickle
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eqnet_core.errors import TrainingError
from eqnet_core.training.augmentation import crop_and_flip, cutmix
from eqnet_core.training.batches import Batches, ImageSizes, calibration_batches, calibration_count
from eqnet_core.training.data import ImageData, LabelledImages, load_data, normalise

SHAPE = (3, 32, 32)


def test_held_out_images_are_the_same_every_time_and_no_training_images(digits_file: Path) -> None:
    first = load_data(digits_file, input_shape=SHAPE, held_out=64, seed=0)
    again = load_data(digits_file, input_shape=SHAPE, held_out=64, seed=0)
    assert torch.equal(first.held_out.images, again.held_out.images)
    assert (len(first.train), len(first.held_out), len(first.test)) == (96, 64, 40)
    held_out = {image.numpy().tobytes() for image in first.held_out.images}
    assert not held_out & {image.numpy().tobytes() for image in first.train.images}


def test_normalised_training_images_have_mean_0_and_deviation_1(digits: ImageData) -> None:
    images = normalise(digits.train.images, digits.mean, digits.std)
    assert images.mean().item() == pytest.approx(0, abs=1e-3)
    assert images.std().item() == pytest.approx(1, abs=1e-3)


def test_torchvision_cifar10_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        content = {
            "data": generator.integers(0, 256, (4, 3072), dtype=np.uint8),
            "labels": generator.integers(0, 10, 4).tolist(),
        }
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    # Only the checksums of the real download are skipped; torchvision's reader runs.
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    data = load_data(tmp_path, input_shape=SHAPE, held_out=4, seed=0)
    assert (len(data.train), len(data.held_out), len(data.test)) == (16, 4, 4)
    assert data.classes[:2] == ("airplane", "automobile")


def test_image_folder_is_resized_to_the_network(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("val", 1)):
        for label, colour in (("cat", 10), ("dog", 200)):
            (tmp_path / part / label).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (50, 40), (colour, colour, 40 * number)).save(
                    tmp_path / part / label / f"{number}.png"
                )
    data = load_data(tmp_path, input_shape=SHAPE, held_out=2, seed=0)
    assert data.classes == ("cat", "dog")
    assert tuple(data.test.images.shape) == (2, 3, 32, 32)
    assert data.test.images[:, 0].float().mean((1, 2)).tolist() == [10, 200]


def test_unusable_data_says_what_was_expected(tmp_path: Path, digits_file: Path) -> None:
    with pytest.raises(TrainingError, match=r"expected an \.npz"):
        load_data(tmp_path / "nothing", input_shape=SHAPE, held_out=1, seed=0)
    with pytest.raises(TrainingError, match="choose fewer"):
        load_data(digits_file, input_shape=SHAPE, held_out=160, seed=0)
    with pytest.raises(TrainingError, match="the network takes"):
        load_data(digits_file, input_shape=(3, 28, 28), held_out=10, seed=0)
    black, labels = np.zeros((4, 3, 32, 32), np.uint8), np.zeros(4, np.int64)
    np.savez(tmp_path / "black.npz", x_train=black, y_train=labels, x_test=black, y_test=labels)
    with pytest.raises(TrainingError, match="cannot be normalised"):
        load_data(tmp_path / "black.npz", input_shape=SHAPE, held_out=1, seed=0)
    np.savez(tmp_path / "half.npz", x_train=np.zeros((2, 3, 32, 32), np.uint8))
    with pytest.raises(TrainingError, match="y_train"):
        load_data(tmp_path / "half.npz", input_shape=SHAPE, held_out=1, seed=0)


@pytest.mark.parametrize("labels", [np.zeros((4, 1), np.int64), np.zeros(4), np.zeros(3, np.int64)])
def test_labels_must_be_one_whole_number_an_image(tmp_path: Path, labels: np.ndarray) -> None:
    images = np.zeros((4, 3, 32, 32), np.uint8)
    np.savez(tmp_path / "a.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    with pytest.raises(TrainingError, match=r"y_train integers \[N\]"):
        load_data(tmp_path / "a.npz", input_shape=SHAPE, held_out=1, seed=0)


def test_classes_are_named_by_the_file_alone(tmp_path: Path, digits_file: Path) -> None:
    assert load_data(digits_file, input_shape=SHAPE, held_out=4, seed=0).classes == tuple("0123456789")
    with np.load(digits_file) as arrays:
        for names in (list("abcdefghiß"), np.array([name.encode() for name in "abcdefghiß"])):
            np.savez(tmp_path / "named.npz", classes=names, **arrays)
            named = load_data(tmp_path / "named.npz", input_shape=SHAPE, held_out=4, seed=0)
            assert named.classes == tuple("abcdefghiß")


@pytest.mark.parametrize(
    "names",
    ["abcdefghij", ["a"] * 10, [*"abcdefghi", ""], [["a", "b"]] * 10, [b"a", b""] * 5],
    ids=["one text", "all the same", "an empty one", "two each", "bytes"],
)
def test_names_of_classes_must_be_told_apart(tmp_path: Path, digits_file: Path, names: object) -> None:
    with np.load(digits_file) as arrays:
        np.savez(tmp_path / "named.npz", classes=np.array(names), **arrays)
    with pytest.raises(TrainingError, match="must be a list of names, none of them empty and none twice"):
        load_data(tmp_path / "named.npz", input_shape=SHAPE, held_out=4, seed=0)


def encoded(image: Image.Image) -> bytes:
    """As TIFF, which has all of Pillow's modes."""
    file = io.BytesIO()
    image.save(file, format="tiff")
    return file.getvalue()


HUGE = b"BM" + struct.pack("<IIIIiiHHIIIIII", 58, 0, 54, 40, 20_000, 20_000, 1, 24, 0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"no image", "cannot be read"),
        (HUGE, r"cannot be read: Image size \(400000000 pixels\) exceeds"),
        (encoded(Image.new("I;16", (50, 40), 999)), "more than 8 bits a channel: convert it to 8"),
        (encoded(Image.new("F", (50, 40), 0.5)), "more than 8 bits a channel: convert it to 8"),
    ],
    ids=["no image", "huge", "16 bits", "32 bits"],
)
def test_an_image_that_cannot_be_used_is_named(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "train" / "cat" / "1.tiff"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    (tmp_path / "test" / "cat").mkdir(parents=True)
    with pytest.raises(TrainingError, match=f"the image {path} .*{problem}"):
        load_data(tmp_path, input_shape=SHAPE, held_out=1, seed=0)


def test_the_digest_is_that_of_images_and_split(digits_file: Path, digits: ImageData) -> None:
    again, other = (load_data(digits_file, input_shape=SHAPE, held_out=n, seed=0) for n in (64, 63))
    assert again.digest == digits.digest != other.digest
    unmirrored = load_data(digits_file, input_shape=SHAPE, held_out=64, seed=0, mirror=False)
    assert unmirrored.digest not in (digits.digest, other.digest)


@pytest.mark.parametrize("mirror", [True, False])
def test_only_images_that_may_be_mirrored_are(digits: ImageData, mirror: bool) -> None:
    """In training and in calibration: bright to the left, dark to the right, as long as nothing mirrors."""
    ramp = torch.arange(255, -1, -8).to(torch.uint8).expand(96, 3, 32, 32)
    data = replace(digits, train=LabelledImages(images=ramp, labels=digits.train.labels), mirror=mirror)
    batches = Batches(data, batch_size=96, seed=0, device=torch.device("cpu"))
    calibrating = calibration_batches(data, images=96, seed=0, index=0, device=torch.device("cpu"))
    for images in (batches.at(0)[0], *calibrating):
        falling = images[:, 0, 8, 8] > images[:, 0, 8, 24]
        assert falling.all() == (not mirror)
        assert falling.any()


def test_crops_are_shifted_copies_half_of_them_mirrored() -> None:
    image = torch.arange(32 * 32, dtype=torch.int64).remainder(251).to(torch.uint8).view(1, 1, 32, 32)
    padded = torch.nn.functional.pad(image, (4,) * 4)[0, 0]
    shifts = [padded[top : top + 32, left : left + 32] for top in range(9) for left in range(9)]
    plain = {shift.numpy().tobytes() for shift in shifts}
    mirrored = {shift.flip(1).numpy().tobytes() for shift in shifts}
    found = crop_and_flip(image.expand(200, 1, 32, 32), torch.Generator().manual_seed(0))
    kinds = [result[0].numpy().tobytes() for result in found]
    assert all(kind in plain or kind in mirrored for kind in kinds)
    assert 60 < sum(kind in mirrored for kind in kinds) < 140
    assert len(set(kinds)) > 80


def test_cutmix_pastes_a_rectangle_and_shares_the_labels_by_its_size() -> None:
    labels = torch.tensor([3, 0, 2, 1])
    images = labels.float().view(4, 1, 1, 1).expand(4, 3, 16, 16)
    before = torch.get_rng_state()
    areas = set()
    for seed in range(8):
        mixed, shares = cutmix(images, labels, 5, seed)
        assert torch.equal(mixed, cutmix(images, labels, 5, seed)[0])
        assert shares.shape == (4, 5)
        # every pixel is its class: the shares of the image are those of the labels
        for image, share in zip(mixed, shares, strict=True):
            counts = image[0].flatten().long().bincount(minlength=5) / 256
            torch.testing.assert_close(counts, share)
            assert (counts > 0).sum() <= 2
        pasted = (mixed[0, 0] != 3).nonzero()
        if len(pasted):
            height, width = (pasted.max(0).values - pasted.min(0).values + 1).tolist()
            assert height * width == len(pasted)
        areas.add(len(pasted))
    assert len(areas) > 4
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_share_of_the_batches_is_mixed(digits: ImageData, share: float) -> None:
    batches = Batches(digits, batch_size=32, seed=0, device=torch.device("cpu"), mixed=share)
    plain = Batches(digits, batch_size=32, seed=0, device=torch.device("cpu"))
    mixed = 0
    for step in range(60):
        images, labels = batches.at(step)
        if labels.ndim == 2:
            mixed += 1
            torch.testing.assert_close(labels.sum(1), torch.ones(32))
        else:
            assert torch.equal(images, plain.at(step)[0])
    assert abs(mixed / 60 - share) <= (0.15 if 0 < share < 1 else 0)
    again, shares = batches.at(7)
    assert torch.equal(batches.at(7)[0], again)
    assert torch.equal(batches.at(7)[1], shares)


def test_a_batch_depends_on_its_step_alone(digits: ImageData) -> None:
    def batches() -> Batches:
        return Batches(digits, batch_size=32, seed=1, device=torch.device("cpu"))

    going_on, fresh = batches(), batches()
    for step in range(5):
        images, labels = going_on.at(step)
    again, labels_again = fresh.at(4)
    assert torch.equal(images, again)
    assert torch.equal(labels, labels_again)
    assert not torch.equal(images, fresh.at(1)[0])


@pytest.mark.parametrize(("asked", "there", "given"), [(64, 96, 64), (2048, 96, 96), (300, 400, 256)])
def test_calibration_has_whole_batches_of_the_images_there_are(
    digits: ImageData, asked: int, there: int, given: int
) -> None:
    data = replace(digits, train=digits.train.subset(torch.arange(there) % 96))
    batches = list(calibration_batches(data, images=asked, seed=0, index=0, device=torch.device("cpu")))
    assert len({len(batch) for batch in batches}) == 1
    assert sum(len(batch) for batch in batches) == calibration_count(data, asked) == given


def test_every_image_comes_once_an_epoch_at_the_epochs_size(digits: ImageData) -> None:
    batches = Batches(
        digits, batch_size=32, seed=0, device=torch.device("cpu"), sizes=ImageSizes(stages=((16, 1),))
    )
    epoch = [batches.at(step) for step in range(batches.steps_per_epoch)]
    assert torch.cat([labels for _, labels in epoch]).bincount().tolist() == (
        digits.train.labels.bincount().tolist()
    )
    assert {tuple(images.shape[2:]) for images, _ in epoch} == {(16, 16)}
    assert tuple(batches.at(3)[0].shape[2:]) == (32, 32)


def test_a_damaged_file_says_so(digits_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    whole = digits_file.read_bytes()
    with np.load(digits_file) as arrays:
        np.savez_compressed(path, **arrays)
        compressed = bytearray(path.read_bytes())
        array = io.BytesIO()
        np.save(array, arrays["x_train"])
    compressed[1000:1040] = b"\xff" * 40
    encrypted = whole.replace(b"PK\x01\x02\x2d\x03\x2d\x00\x00", b"PK\x01\x02\x2d\x03\x2d\x00\x01")
    header = whole.replace(b"(160, 3, 32, 32)", b"(160, 3, 32, 32(")
    for content in (whole[:-50], b"no zip", b"", array.getvalue(), bytes(compressed), encrypted, header):
        assert content != whole
        path.write_bytes(content)
        with pytest.raises(TrainingError, match="is damaged"):
            load_data(path, input_shape=SHAPE, held_out=4, seed=0)


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_part_without_images_is_refused(digits_file: Path, tmp_path: Path, part: str) -> None:
    with np.load(digits_file) as arrays:
        none = {name: arrays[name][:0] for name in (f"x_{part}", f"y_{part}")}
        np.savez(tmp_path / "a.npz", **{**arrays, **none})
    with pytest.raises(TrainingError, match="at least one to train on and one to test on"):
        load_data(tmp_path / "a.npz", input_shape=SHAPE, held_out=4, seed=0)
