"""The ablation runs on digits: variants differ, what is done stays done, the table has every number."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from eqnet_core.errors import TrainingError
from eqnet_core.space import FORMS, Granularity
from eqnet_core.training.ablations import BITS, Ablation, replace_per_tensor_steps, run_ablations
from eqnet_core.training.batches import ImageSizes
from eqnet_core.training.data import ImageData
from eqnet_core.training.plots import ablation_table, plot_ablations, plot_training, plot_weights
from eqnet_core.training.pretrain import PretrainSettings
from eqnet_core.training.supernet_settings import SupernetSettings
from eqnet_core.training.trained import load_trained
from eqnet_core.training.trainer import train_supernet
from tests.support.brief_training import trained_run

CPU = torch.device("cpu")
SMALL = ImageSizes(stages=((8, 1),))
FLOAT = PretrainSettings(epochs=1, batch_size=96, compile=False, sizes=SMALL)
SUPERNET = SupernetSettings(
    epochs=1, batch_size=48, compile=False, warmup_steps=1, sizes=SMALL, float_teacher=True, averaging=0.5
)


@pytest.fixture(scope="module")
def run(digits: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_run(digits, tmp_path_factory.mktemp("run"), FLOAT, SUPERNET)


def test_variants_are_trained_once_and_compared(digits: ImageData, run: Path, tmp_path: Path) -> None:
    weights = run / "float" / "float.safetensors"
    settings = SupernetSettings(epochs=1, batch_size=96, compile=False, warmup_steps=1, sizes=SMALL)
    names = ["EQ-Net's recipe", "hard labels"]
    first = run_ablations(digits, weights, tmp_path, settings, CPU, names=names, images=32)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert len(written) == 2
    assert run_ablations(digits, weights, tmp_path, settings, CPU, names=names, images=32) == first
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    others = (
        (replace(settings, seed=1), 32, "other settings .seed."),
        (replace(settings, epochs=2), 32, "other settings .epochs."),
        (settings, 16, "is of 32 images, not 16"),
    )
    for other, images, problem in others:
        with pytest.raises(TrainingError, match=problem):
            run_ablations(digits, weights, tmp_path, other, CPU, names=names, images=images)
    recipe, labels = (load_trained(path.parent).tensors() for path in sorted(written))
    assert any((recipe[name] != labels[name]).any() for name in recipe if name.endswith("conv1.weight"))
    rows = {ablation.name: ablation for ablation in first}
    assert set(names) < rows.keys()
    learned = rows["per-tensor steps: learned"]
    assert learned.mean(2, Granularity.PER_CHANNEL) is None
    table = ablation_table(first)
    mean = rows["hard labels"].mean(8, Granularity.PER_CHANNEL)
    assert mean is not None
    assert next(line for line in table.splitlines() if "hard labels" in line).endswith(
        f"| {100 * mean:.2f} |"
    )
    assert plot_ablations(first, tmp_path / "ablations.png").read_bytes().startswith(b"\x89PNG")


def test_bits_that_a_network_does_not_have_have_no_column(tmp_path: Path) -> None:
    rows = {form.name: {"3": 0.5, "4": 0.625, "8": 0.75} for form in FORMS}
    measured = [Ablation(name="EQ-Net's recipe", accuracy=rows)]
    head, _, cells = ablation_table(measured).splitlines()
    assert head.startswith("| variant | per tensor 3 | per tensor 4 |")
    assert cells.split(" | ")[1:4] == ["50.00", "62.50", "75.00"]
    assert plot_ablations(measured, tmp_path / "ablations.png").exists()


@pytest.mark.parametrize(("how", "worst"), [("min", 0), ("max", 1)])
def test_replaced_steps_are_an_extreme_channel_s(run: Path, how: str, worst: int) -> None:
    supernet = load_trained(run / "supernet")
    replace_per_tensor_steps(supernet, how)
    quantizer = supernet.layers[3].weight_quantizer
    channels = quantizer.log_step_per_channel[0, len(BITS)]
    expected = channels.max() if worst else channels.min()
    torch.testing.assert_close(quantizer.log_step_per_tensor[0, len(BITS)], expected)


def test_figures_are_drawn_from_the_run(run: Path, tmp_path: Path) -> None:
    assert plot_training(run, tmp_path / "figures" / "training.png").stat().st_size > 5000
    assert plot_weights(run, tmp_path / "weights.png", ["fc"]).stat().st_size > 5000


def test_the_average_and_the_float_teacher_change_the_result(
    digits: ImageData, run: Path, tmp_path: Path
) -> None:
    weights = run / "float" / "float.safetensors"
    results = [load_trained(run / "supernet").tensors()]
    for number, changed in enumerate(({"averaging": 0.0}, {"float_teacher": False})):
        settings = SupernetSettings(**{**vars(SUPERNET), **changed})
        train_supernet(digits, weights, tmp_path / str(number), settings, CPU)
        results.append(load_trained(tmp_path / str(number)).tensors())
    name = "layer3.2.conv2.weight"
    assert not (results[0][name] == results[1][name]).all()
    assert not (results[0][name] == results[2][name]).all()
