"""Marks of tests that train through the command line."""

from __future__ import annotations

import pytest

TRAINING_MARKS = [
    # LightningCLI uses four things of jsonargparse that are on their way out.
    pytest.mark.filterwarnings(r"ignore:\s*By default only one JsonargparseDeprecationWarning"),
    pytest.mark.filterwarnings(r"ignore:\s*``ArgumentParser.add_instantiator`` was deprecated"),
    pytest.mark.filterwarnings(r"ignore:\s*``instantiate_classes`` was deprecated"),
    pytest.mark.filterwarnings(r"ignore:\s*skip_none parameter was deprecated"),
    # Lightning advises workers where the machine has more than two cores; tiny scenes need none.
    pytest.mark.filterwarnings("ignore:The '.*' does not have many workers"),
    # It advises a GPU where there is one; tiny networks train on the CPU, to the same bits everywhere.
    pytest.mark.filterwarnings("ignore:GPU available but not used"),
    # A resumed run is a new version, and keeps its checkpoints in a folder of its own.
    pytest.mark.filterwarnings("ignore:The dirpath has changed from"),
]
