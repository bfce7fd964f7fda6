"""The report on CQAP: measured against predicted accuracy (EQ-Net, Fig. 4), and the figures in a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from eqnet_core.files import write_atomically
from eqnet_core.space import FORMS, Granularity
from eqnet_core.training.card import of_views
from eqnet_core.training.plots import draw_figure, write_figure
from eqnet_core.training.run import load_tensors, read_json

LEFT_OUT = "left_out.npz"

_COLUMNS = {
    "pearson": "Pearson",
    "kendall": "Kendall",
    "noise_ceiling": "Kendall of the halves",
    "mean_absolute_error": "mean abs. error",
    "mean_absolute_error_from_3_bits": "from 3 bits",
    "mean_error": "mean error",
    "interval_coverage": "coverage",
}
_PERCENT = ("mean_absolute_error", "mean_absolute_error_from_3_bits", "mean_error", "interval_coverage")


def write_report(prediction: Path, out: Path) -> Path:
    """Write `prediction.md` and `prediction.png` into `out` from a run's `prediction` folder.

    Raises:
        TrainingError: the fit stage has not run.
    """
    left_out = load_tensors(prediction / LEFT_OUT, stage="fit")
    quality = read_json(prediction / "quality.json", stage="fit")
    _plot(left_out, out / "prediction.png")
    page = out / "prediction.md"
    write_atomically(page, _page(quality).encode())
    return page


def _page(quality: dict[str, Any]) -> str:
    agreement = max(float(quality["half_pearson"]), 0.0)
    rows = [("all forms", quality, quality["held_out"])]
    rows += [(name, row, None) for name, row in quality["forms"].items()]
    if "searched" in quality:
        rows.append(("found by searches", quality["searched"], quality["searched"]["held_out"]))
    lines = [
        "# How good the accuracy predictor is",
        "",
        f"Written by the `report` stage of training. {quality['samples']} subnets as delivered, with "
        f"predicted BatchNorm statistics, each measured on a panel of {quality['images']} held-out images"
        f"{of_views(quality)} and predicted by a fit to others only. Measurements are noisy too: Kendall of "
        "the halves is that between the same subnets' accuracies on two halves of the panel. Errors in "
        "points, coverage of the 90 % interval in %.",
        "",
        f"Halves of the panel agree with a Pearson of {agreement:.3f}, so that the noise of the measurements "
        f"leaves a predictor that knows nothing of these images about "
        f"{(2 * agreement / (1 + agreement)) ** 0.5:.3f} (Spearman-Brown).",
        *_plain(quality),
        *_halves(quality),
        "",
        "| subnets | " + " | ".join(_COLUMNS.values()) + " |",
        "|---|" + "---|" * len(_COLUMNS),
    ]
    for name, row, count in rows:
        cells = [f"{100 * row[key]:.2f}" if key in _PERCENT else f"{row[key]:.3f}" for key in _COLUMNS]
        label = name if count is None else f"{name} ({count})"
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "![measured against predicted accuracy](prediction.png)", ""])


def _plain(quality: dict[str, Any]) -> list[str]:
    if not quality.get("views"):
        return []
    return [
        "",
        "Pearson and Kendall are of accuracies over images and views, errors and coverage of those on the "
        "images as they are, which is what others can measure; there single images count more: Pearson is "
        f"{quality['plain_pearson']:.3f}, Kendall {quality['plain_kendall']:.3f}.",
    ]


def _halves(quality: dict[str, Any]) -> list[str]:
    if "half" not in quality:  # fitted by an older version
        return []
    halves = [quality["half"][name] for name in ("fitted", "other")]
    pearson = [half["pearson"] for half in halves]
    error = [100 * half["mean_absolute_error"] for half in halves]
    coverage = [100 * half["interval_coverage"] for half in halves]
    return [
        "",
        "Images that subnets are fitted by share their luck with what is left out. Fitted by one half of the "
        f"panel alone, left-out subnets are predicted with a Pearson of {pearson[0]:.3f} and a mean error of "
        f"{error[0]:.2f} points on that half, {pearson[1]:.3f} and {error[1]:.2f} on the other (as difficult "
        f"on average), and the interval covers {coverage[0]:.1f} and {coverage[1]:.1f} %: it is of the "
        "accuracy on these images, and others differ by more.",
    ]


def _plot(left_out: dict[str, Any], target: Path) -> None:
    figure, panels = draw_figure(3)
    predicted, measured = 100 * left_out["predicted"], 100 * left_out["measured"]
    searched, form = left_out["searched"], left_out["form"]
    per_tensor = np.array([f.weight_granularity is Granularity.PER_TENSOR for f in FORMS])[form]
    symmetries = np.array([f.name.split("-", 1)[1] for f in FORMS])[form]
    granularities = np.where(per_tensor, "per tensor", "per channel")
    ends = [min(predicted.min(), measured.min()) - 0.3, max(predicted.max(), measured.max()) + 0.3]
    for axes, title, rows, labels, legend in (
        (panels[0], "per tensor", ~searched & per_tensor, symmetries, "weights-activations"),
        (panels[1], "per channel", ~searched & ~per_tensor, symmetries, "weights-activations"),
        (panels[2], "found by searches", searched, granularities, "weights"),
    ):
        for label in np.unique(labels[rows]):
            here = rows & (labels == label)
            axes.scatter(measured[here], predicted[here], s=7, label=label)
        axes.plot(ends, ends, linewidth=0.8, color="black")
        axes.set(
            title=f"{title}: {int(rows.sum())}",
            xlabel="measured, %",
            ylabel="predicted by a fit to others, %",
            xlim=ends,
            ylim=ends,
        )
        if rows.any():
            axes.legend(fontsize=7, loc="upper left", title=legend, title_fontsize=7)
    write_figure(figure, target)
