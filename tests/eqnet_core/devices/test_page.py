"""docs/devices.md says what the entries say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from eqnet_core.devices import load_catalogue
from eqnet_core.devices.page import devices_page

PAGE = Path(__file__).parents[3] / "docs" / "devices.md"


def test_the_page_is_the_one_that_the_command_prints() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "eqnet_core.devices"], capture_output=True, text=True, check=True
    ).stdout
    assert printed == devices_page(load_catalogue())
    assert PAGE.read_text(encoding="utf-8") == printed, "run python -m eqnet_core.devices > docs/devices.md"


def test_every_entry_is_on_it_with_its_sources_and_doubts() -> None:
    catalogue = load_catalogue()
    page = devices_page(catalogue)
    for entry in catalogue.entries:
        assert f"\n## {entry.name}\n" in page
        for text in (*entry.origin.source, *entry.origin.unverified, *entry.origin.notes):
            assert text in page
    assert "| [tensorrt](#tensorrt) | 8 | 8 | per channel, symmetric | symmetric, signed only |" in page
    assert "| [fpga-mixed](#fpga-mixed) | 2, 3, 4, 5, 6, 7, 8 | 2, 3, 4, 5, 6, 7, 8 |" in page
