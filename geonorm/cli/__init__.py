"""The command line; `main` is the command ``geonorm``."""

from geonorm.cli.entry import main

__all__ = ["main"]
