"""Run the command line: ``python -m geonorm``."""

from geonorm.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
