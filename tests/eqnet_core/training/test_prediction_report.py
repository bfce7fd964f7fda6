from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from eqnet_core.errors import TrainingError
from eqnet_core.training.prediction_report import LEFT_OUT, write_report
from eqnet_core.training.run import save_tensors


def test_the_report_states_what_the_fit_measured(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="fit stage first"):
        write_report(tmp_path, tmp_path / "docs")
    generator = np.random.default_rng(0)
    measured = generator.uniform(0.85, 0.9, 40)
    save_tensors(
        tmp_path / LEFT_OUT,
        {
            "predicted": measured + generator.normal(0, 0.002, 40),
            "measured": measured,
            "form": np.arange(40, dtype=np.int8) % 8,
            "searched": np.arange(40) >= 30,
        },
    )
    row = dict.fromkeys(
        ("pearson", "kendall", "noise_ceiling", "half_pearson", "mean_error", "interval_coverage"), 0.8
    )
    row |= {"mean_absolute_error": 0.0021, "mean_absolute_error_from_3_bits": 0.0017}
    quality = {**row, "held_out": 30, "samples": 40, "images": 1200}
    quality["half"] = {
        "fitted": {"pearson": 0.95, "mean_absolute_error": 0.0019, "interval_coverage": 0.901},
        "other": {"pearson": 0.91, "mean_absolute_error": 0.0025, "interval_coverage": 0.792},
    }
    quality |= {"forms": {"some form": row}, "searched": {**row, "held_out": 10}}
    (tmp_path / "quality.json").write_text(json.dumps(quality))
    alone = write_report(tmp_path, tmp_path / "docs").read_text()
    assert "views" not in alone
    quality |= {"views": 960, "plain_pearson": 0.7651, "plain_kendall": 0.6412}
    (tmp_path / "quality.json").write_text(json.dumps(quality))
    page = write_report(tmp_path, tmp_path / "docs").read_text()
    assert "1200 held-out images and on 960 mirrored or shifted views of held-out images" in page
    assert "Pearson is 0.765, Kendall 0.641" in page
    assert "| all forms (30) | 0.800 | 0.800 | 0.800 | 0.21 | 0.17 | 80.00 | 80.00 |" in page
    assert "| found by searches (10) |" in page
    assert "about 0.943" in page
    assert "of 0.950 and a mean error of 0.19 points on that half, 0.910 and 0.25 on the other" in page
    assert "covers 90.1 and 79.2 %" in page
    assert (tmp_path / "docs" / "prediction.png").read_bytes().startswith(b"\x89PNG")
