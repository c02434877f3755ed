"""Both ways through the network."""

from __future__ import annotations

import math

import pytest

from geonorm.inference import Options, engines


@pytest.fixture(params=["rows", "tiles"])
def both_engines(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Label in rows wherever that can be, and then in tiles, unless a test says otherwise."""
    if request.param == "tiles":
        defaults = {**(Options.__init__.__kwdefaults__ or {}), "engine": "tiles"}
        monkeypatch.setattr(Options.__init__, "__kwdefaults__", defaults)
    else:
        monkeypatch.setattr(engines, "WORTH_IT", math.inf)
        monkeypatch.setattr(engines, "STEP_PX", 16)
