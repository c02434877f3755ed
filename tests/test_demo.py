"""The demo, in miniature: everything a visitor of `make demo` finds is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from geonorm.demo import Scale, run_demo

MINIATURE = Scale(
    cities=("alder", "brack"), tiles_per_city=2, tile_px=96, large_px=(300, 620), steps=2, patch_px=64, width=4
)


@pytest.mark.slow
def test_the_demo_leaves_a_report_a_summary_and_maps(tmp_path: Path) -> None:
    summary = run_demo(tmp_path, scale=MINIATURE)

    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert summary["norms"]["LCN"]["shifts"][0]["flips"] == 0
    assert page.count("<img alt=") == 3
    assert "http" not in page.replace("http-equiv", "")
    for name in ("map_gn.tif", "map_moved_gn.tif", "map_lcn.tif", "map_moved_lcn.tif"):
        assert (tmp_path / name).is_file()
