"""A bundle's card as a Markdown page: what it was trained on, how, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eqnet_core.bundle import CALIBRATION, Bundle

STAGES: Mapping[str, str] = {
    "float": "pretrain",
    "supernet": "supernet",
    "statistics": "statistics",
    "samples": "sample",
    "accuracies": "accuracies",
}
"""Folders whose settings the card tells, and the stages that write them."""

_START = "start"
_TEACHER = "teacher"
_NOT_SHOWN = ("stage", "data", "float", "supernet", "statistics", "predictor", "checkpoint_seconds", _START)


def told_once(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's settings, in which no network that it began with, or that taught it, is described twice.

    Networks that teach and start each other would double the card with every training. Where one comes again,
    deeper, it has its architecture and its digest alone (`float` or `supernet`).
    """
    result = dict(settings)
    seen: set[str] = set()
    waiting = [result]
    for owner in waiting:  # grows; the nearest description is the whole one
        for key in (_START, _TEACHER):
            if not (described := owner.get(key)):
                continue
            members = [_named_again(network, seen) for network in described.get("members", [described])]
            owner[key] = {**described, "members": members} if "members" in described else members[0]
            waiting += members
    return result


def _named_again(network: Mapping[str, Any], seen: set[str]) -> dict[str, Any]:
    own = "supernet" if "supernet" in network else "float"
    digest = network.get(own)
    if digest not in seen:
        if digest is not None:
            seen.add(digest)
        return dict(network)
    return {key: network[key] for key in ("stage", "architecture", own) if key in network}


def card_page(bundle: Bundle) -> str:
    """The page, from nothing but what `bundle.json` states."""
    document = bundle.document
    accuracy, predictor, card = document["accuracy"], document["predictor"], document["card"]
    statistics = document["statistics"]
    bits = sorted({int(bit) for row in accuracy["uniform"].values() for bit in row})
    calibrated = CALIBRATION in document["files"]
    size = sum(entry["bytes"] for entry in document["files"].values())
    lines = [
        f"# Bundle `{bundle.name}`",
        "",
        "Written by the `bundle` stage of training from the bundle's `bundle.json`; change that, not this.",
        "",
        f"- Architecture: `{bundle.architecture}`, {len(bundle.space.layers)} quantised layers "
        f"({len(bundle.space.searchable)} searchable), {len(bundle.classes)} classes.",
        f"- Data: {card['data']}. The bundle holds {'some of its images' if calibrated else 'no image'}.",
        f"- Size: {size / 1e6:.2f} MB.",
        f"- Digest: `{bundle.digest}`.",
        "",
        "## Accuracy",
        "",
        f"Top-1 in % on {accuracy['images']} test images, BatchNorm calibrated with training images; "
        "weights and activations at the same bits, first and last layer at 8.",
        "",
        f"Float network: **{100 * accuracy['float']:.2f}**.",
        "",
        "| form (weight granularity - weights - activations) | "
        + " | ".join(f"{b} bits" for b in bits)
        + " |",
        "|---|" + "---|" * len(bits),
    ]
    for form, row in accuracy["uniform"].items():
        cells = " | ".join(f"{100 * row[str(b)]:.2f}" if str(b) in row else "" for b in bits)
        lines.append(f"| {form} | {cells} |")
    lines += [
        "",
        "## Predictors",
        "",
        f"CQAP, fitted to {predictor['samples']} subnets as delivered, each measured on a panel of "
        f"{predictor['images']} held-out images{of_views(predictor)}. "
        f"{predictor['held_out']} of the subnets are spread over the space; each predicted by a fit to "
        "others only:",
        "",
        "| | |",
        "|---|---|",
        f"| Pearson | {predictor['pearson']:.3f} |",
        f"| Kendall | {predictor['kendall']:.3f} |",
        *_plain(predictor),
        f"| Kendall between two halves of the images | {predictor['noise_ceiling']:.3f} |",
        f"| mean absolute error | {100 * predictor['mean_absolute_error']:.2f} points |",
        f"| mean absolute error, averages of 3 bits and more | "
        f"{100 * predictor['mean_absolute_error_from_3_bits']:.2f} points |",
        f"| coverage of the 90 % interval | {100 * predictor['interval_coverage']:.1f} % |",
        *_searched(predictor.get("searched")),
        "",
        "Subnets are calibrated with the bundle's images; samples had BatchNorm statistics predicted by"
        if calibrated
        else "BatchNorm statistics are predicted by",
        f"a model fitted to {statistics['samples']} calibrated subnets; leave-one-out, means are off by "
        f"{statistics['mean_error']:.3f} of the channel's standard deviation and variances by "
        f"{100 * statistics['log_variance_error']:.0f} %, noise of the calibration included.",
        "",
        *_integer(document.get("integer")),
        "## How it was trained",
        "",
        "| stage | settings |",
        "|---|---|",
        *(row for stage, settings in card["stages"].items() for row in _stage(stage, settings)),
        "",
    ]
    return "\n".join(lines)


def of_views(predictor: Mapping[str, Any]) -> str:
    """What else each sample was measured on, after the number of held-out images; nothing without views."""
    views = predictor.get("views", 0)  # older versions had none
    return f" and on {views} mirrored or shifted views of held-out images" if views else ""


def _plain(predictor: Mapping[str, Any]) -> list[str]:
    if not predictor.get("views"):
        return []
    return [
        f"| Pearson on the images as they are alone | {predictor['plain_pearson']:.3f} |",
        f"| Kendall on the images as they are alone | {predictor['plain_kendall']:.3f} |",
    ]


def _searched(quality: dict[str, Any] | None) -> list[str]:
    if quality is None:
        return []
    return [
        f"| {quality['held_out']} subnets that searches found: mean error | "
        f"{100 * quality['mean_error']:+.2f} points |",
        f"| the same, mean absolute error | {100 * quality['mean_absolute_error']:.2f} points |",
    ]


def _integer(measured: dict[str, Any] | None) -> list[str]:
    if measured is None:
        return []
    return [
        "## `model.integer.onnx`",
        "",
        f"Top-1 of {len(measured['subnets'])} subnets of mixed bits on {measured['images']} held-out images, "
        "less that of `model.onnx`, in points:",
        "",
        "| average bits | mean difference |",
        "|---|---|",
        *(f"| {band} | {-100 * cost:+.2f} |" for band, cost in measured["cost"].items()),
        "",
    ]


def _stage(stage: str, settings: dict[str, Any]) -> list[str]:
    """Its rows: one for each run of it, where it began with the result of another run of the same stage."""
    runs = [settings]
    while (before := runs[0].get(_START)) is not None and before.get("stage") == settings.get("stage"):
        runs.insert(0, before)
    rows = [_settings(run) for run in runs]
    if before is not None:  # a float network that began with a supernet's weights
        rows[0] = f"start supernet {before['supernet'][:15]}…, {rows[0]}"
    if len(rows) == 1:
        return [f"| {stage} | {rows[0]} |"]
    return [f"| {stage}, run {number} | {row} |" for number, row in enumerate(rows, 1)]


def _settings(settings: dict[str, Any]) -> str:
    # Of float networks, only a teacher is listened to; a supernet's subnets guide each other.
    unguided = settings.get("stage") == "PretrainSettings" and not settings.get(_TEACHER)
    hidden = {*_NOT_SHOWN, *((_TEACHER, "guidance", "temperature") if unguided else ())}
    shown = {key: value for key, value in settings.items() if key not in hidden}
    return ", ".join(
        f"{key} ({_teacher(value)})" if key == _TEACHER and value else f"{key} {value}"
        for key, value in shown.items()
    )


def _teacher(settings: dict[str, Any]) -> str:
    if (members := settings.get("members")) is None:
        return _settings(settings)
    return "mean of " + " and ".join(f"({_settings(member)})" for member in members)
