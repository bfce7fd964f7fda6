"""The figures of the documentation, drawn from logs and weights: nothing in them is typed in by hand."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file

from eqnet_core.errors import TrainingError
from eqnet_core.files import write_atomically
from eqnet_core.space import Granularity
from eqnet_core.training.ablations import BITS, Ablation
from eqnet_core.training.losses import UNIFORM_KURTOSIS, skewness_and_kurtosis
from eqnet_core.training.starting import WEIGHTS
from eqnet_core.training.trained import load_trained

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SUBNETS = {"H": "highest bits", "R": "random bits", "L": "lowest bits"}


def plot_training(run: Path, target: Path) -> Path:
    """Loss and accuracy of the highest, random and lowest subnets against epochs, and held-out accuracies.

    Raises:
        TrainingError: no supernet was trained in `run`.
    """
    log = run / "supernet" / "log.jsonl"
    try:
        lines = [json.loads(line) for line in log.read_text().splitlines()]
    except FileNotFoundError as error:
        raise TrainingError(f"{log} is missing: run the supernet stage first") from error
    if not lines:
        raise TrainingError(f"{log} is empty: the supernet stage logs at the end of each epoch")
    epochs = [line["epoch"] for line in lines]
    figure, (loss, training, held_out) = draw_figure(3)
    for key, label in _SUBNETS.items():
        loss.plot(epochs, [line["loss"][key] for line in lines], label=label)
        training.plot(epochs, [100 * line["accuracy"][key] for line in lines], label=label)
    loss.plot(epochs, [line["loss"]["WDR"] for line in lines], label="WDR", linestyle="--")
    for name in lines[0]["held_out"]:
        held_out.plot(epochs, [100 * line["held_out"][name] for line in lines], label=name.replace("_", " "))
    for axes, title, unit in (
        (loss, "Loss", ""),
        (training, "Accuracy while training", "%"),
        (held_out, "Held-out images, calibrated", "%"),
    ):
        axes.set(title=title, xlabel="epoch", ylabel=unit)
        _legend_below(axes)
    return write_figure(figure, target)


def plot_weights(run: Path, target: Path, layers: Sequence[str] | None = None) -> Path:
    """Weight distributions of the float network and of the supernet, with skewness and kurtosis (Fig. 2).

    Args:
        run: folder of the training run.
        target: the PNG file to write.
        layers: names of layers to show; None for the first searchable, a middle and the last searchable one.

    Raises:
        TrainingError: an earlier stage is missing, or there is no such layer.
    """
    try:
        float_weights = load_file(run / "float" / WEIGHTS)
    except FileNotFoundError as error:
        raise TrainingError(f"{error.filename} is missing: run the pretrain stage first") from error
    supernet = load_trained(run / "supernet")
    trained = {layer.spec.name: layer.weight.detach() for layer in supernet.layers}
    searchable = [layer.name for layer in supernet.space.searchable]
    shown = layers or [searchable[0], searchable[len(searchable) // 2], searchable[-1]]
    if unknown := [name for name in shown if name not in trained]:
        raise TrainingError(f"no layer {', '.join(unknown)}; there are {', '.join(trained)}")
    figure, rows = draw_figure(len(shown))
    for axes, name in zip(rows, shown, strict=True):
        for label, weight in (("float", float_weights[f"{name}.weight"]), ("supernet", trained[name])):
            skewness, kurtosis = skewness_and_kurtosis(weight)
            values = (weight / weight.std()).flatten()
            axes.hist(
                values.numpy(),
                bins=torch.linspace(-4, 4, 65).tolist(),
                density=True,
                histtype="step",
                label=f"{label}: skew {skewness:.2f}, kurtosis {kurtosis:.2f}",
            )
        axes.set(title=name, xlabel="weight / standard deviation", ylabel="density")
        _legend_below(axes)
    figure.suptitle(
        f"Weights before and after supernet training (a uniform distribution: 0, {UNIFORM_KURTOSIS})"
    )
    return write_figure(figure, target)


def plot_ablations(ablations: Sequence[Ablation], target: Path) -> Path:
    """Accuracy against bits of every variant, one panel per granularity."""
    figure, panels = draw_figure(len(Granularity))
    figure.set_figwidth(12)
    lines = {}
    for axes, granularity in zip(panels, Granularity, strict=True):
        for position, ablation in enumerate(ablations):
            means = [ablation.mean(bits, granularity) for bits in BITS]
            points = {
                str(bits): 100 * mean for bits, mean in zip(BITS, means, strict=True) if mean is not None
            }
            if points:
                # ten colours, solid and then dashed, and the same in both panels
                colour, style = f"C{position % 10}", "-" if position < 10 else "--"
                [lines[ablation.name]] = axes.plot(
                    list(points), list(points.values()), style, color=colour, marker="o", markersize=3
                )
        axes.set(title=granularity.replace("_", " "), xlabel="bits", ylabel="top-1 on held-out images, %")
    figure.legend(lines.values(), lines.keys(), loc="outside right upper", fontsize=8)
    return write_figure(figure, target)


def ablation_table(ablations: Sequence[Ablation]) -> str:
    """The same as a Markdown table: top-1 in %, averaged over the symmetric and the asymmetric form."""
    columns = [
        (granularity, bits)
        for granularity in Granularity
        for bits in BITS
        if any(ablation.mean(bits, granularity) is not None for ablation in ablations)
    ]
    lines = [
        "| variant | " + " | ".join(f"{g.replace('_', ' ')} {bits}" for g, bits in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for ablation in ablations:
        means = [ablation.mean(bits, granularity) for granularity, bits in columns]
        cells = ["" if mean is None else f"{100 * mean:.2f}" for mean in means]
        lines.append(f"| {ablation.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw_figure(panels: int) -> tuple[Figure, list[Axes]]:
    """A figure with `panels` axes side by side."""
    # Imported here: training on a machine without matplotlib must not fail for want of a picture.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * panels, 4), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(1, panels, index + 1) for index in range(panels)]


def _legend_below(axes: Axes) -> None:
    """Below, where no curve can be hidden by it."""
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2))


def write_figure(figure: Figure, target: Path) -> Path:
    """Write the PNG file `target`, whole or not at all, and return it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_atomically(target, buffer.getvalue())
    return target
