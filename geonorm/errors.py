"""What a user can put right: the command line prints these as one line and exits with code 2."""

from collections.abc import Sequence

MOST_NAMES = 8
"""So many files or values are named in a message about data."""


class GeonormError(Exception):
    """Base of all errors whose cause lies in the input, not in geonorm."""

    def __str__(self) -> str:
        """Return the message, without the traceback that a DataLoader's worker process puts around it."""
        message = super().__str__()
        if message.startswith("Caught ") and "\nOriginal " in message:
            return message.rstrip().rpartition(f"{type(self).__name__}: ")[2]
        return message


class InvalidConfigError(GeonormError, ValueError):
    """A setting, or a combination of settings, that cannot work."""


class RasterError(GeonormError, OSError):
    """A raster that cannot be opened, read or written."""


class TargetExistsError(GeonormError, FileExistsError):
    """A file in the way of an output."""


class DatasetError(GeonormError, ValueError):
    """A data folder that cannot be used as it lies."""


class CheckpointError(GeonormError, ValueError):
    """A checkpoint that geonorm did not write, or cannot trust."""


class GeonormWarning(UserWarning):
    """Something the user should know before trusting a result; the command line prints it as one line."""


def name_some(names: Sequence[str], most: int = 3) -> str:
    """Return the first few names, and how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def naming(file: str, error: BaseException) -> str:
    """Return what an error says, with the name of the file it is about where it does not say it."""
    text = str(error)
    return text if file in text else f"{file}: {text}"


def geonorm_error_in(error: BaseException | None) -> GeonormError | None:
    """Return the first error of ours in a chain of causes, None where there is none."""
    while error is not None and not isinstance(error, GeonormError):
        error = error.__cause__ or error.__context__
    return error


def one_line(said: BaseException | str, most: int = 200) -> str:
    """Return the first part of what an error of another library, or a text, says, as one line."""
    return " ".join(str(said).split())[:most]
