"""What is wrong with a data set: collected, or raised at once."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from geonorm.errors import DatasetError, GeonormError, naming

Severity = Literal["error", "warning"]

logger = logging.getLogger("geonorm.data")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong."""

    severity: Severity
    """``"error"``: training could not work, or would mean nothing."""
    kind: str
    """A few words that all findings of its kind share, such as ``label values``."""
    files: tuple[str, ...]
    """The files it is about, or the folder or the settings."""
    text: str
    """What is wrong, with the file's name, and what to do; one line."""


@dataclass
class Findings:
    """What is wrong with a data set.

    Args:
        strict: Raise the first error instead of collecting it.
    """

    strict: bool = False
    found: list[Finding] = field(default_factory=list)
    _known: set[Finding] = field(default_factory=set, init=False, repr=False)

    @property
    def errors(self) -> list[Finding]:
        """Those that training could not work with."""
        return [finding for finding in self.found if finding.severity == "error"]

    @property
    def warnings(self) -> list[Finding]:
        """The others."""
        return [finding for finding in self.found if finding.severity == "warning"]

    def error(self, kind: str, files: str | Sequence[str], text: str) -> None:
        """Add an error.

        Raises:
            DatasetError: The same, where these findings are strict.
        """
        self._add("error", kind, files, text)
        if self.strict:
            raise DatasetError(self.found[-1].text)

    def warning(self, kind: str, files: str | Sequence[str], text: str) -> None:
        """Add a warning."""
        self._add("warning", kind, files, text)

    @contextmanager
    def catching(self, kind: str, file: str) -> Iterator[None]:
        """Take what is raised inside as an error of a file."""
        try:
            yield
        except GeonormError as error:
            self.error(kind, file, naming(file, error))

    def raise_errors(self) -> None:
        """Raise the first error, if there is one, and say how many more there are.

        Raises:
            DatasetError: There is one.
        """
        errors = self.errors
        if errors:
            more = f" ({len(errors) - 1} more: geonorm check_data lists all)" if len(errors) > 1 else ""
            raise DatasetError(f"{errors[0].text}{more}")

    def log_warnings(self, most: int = 3) -> None:
        """Say the first warning of each kind, of a few kinds.

        They are logged, not warned of: a job that treats warnings as errors should not end over them.
        """
        first = {finding.kind: finding for finding in reversed(self.warnings)}
        kinds = sorted(first, key=lambda kind: self.found.index(first[kind]))
        for kind in kinds[:most]:
            logger.warning("geonorm: warning: %s", first[kind].text)
        more = len(self.warnings) - len(kinds[:most])
        if more > 0:
            logger.warning("geonorm: warning: %d more about the data; geonorm check_data lists all", more)

    def _add(self, severity: Severity, kind: str, files: str | Sequence[str], text: str) -> None:
        names = (files,) if isinstance(files, str) else tuple(files)
        finding = Finding(severity=severity, kind=kind, files=names, text=" ".join(text.split()))
        if finding not in self._known:  # one file of polygons may serve thousands of images
            self._known.add(finding)
            self.found.append(finding)
