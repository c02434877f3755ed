"""Fixtures of the tests that train."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tasks.trainings import draw_scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four scenes of two cities."""
    return draw_scenes(tmp_path_factory.mktemp("scenes"))
