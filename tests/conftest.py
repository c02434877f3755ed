"""Fixtures that several parts share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Triton decides when it is first imported whether its kernels run in its interpreter, which needs no GPU.
os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch
from hypothesis import settings

# Two processes on two shared cores: how long an example takes says nothing.
settings.register_profile("geonorm", deadline=None)
settings.load_profile("geonorm")


@pytest.fixture(scope="session", autouse=True)
def _own_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what tests measure out of the user's caches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images (see CONTRIBUTING.md); tests that need it skip where it is absent."""
    folder = Path(os.environ.get("GEONORM_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real images in {folder}; set GEONORM_REAL_DATA to their folder")
    return folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch with one thread: workers of several each would wait for one another, and sum up in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
