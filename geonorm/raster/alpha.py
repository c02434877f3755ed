"""A band that is tagged as alpha and holds something else: near infrared, as a rule."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from geonorm.raster.read import Reader, open_raster
from geonorm.raster.window import Window

VARIED = 0.5
"""Share of the values that are neither 0 nor the largest; in a mask those are soft edges at most."""


def image_in_alpha(reader: Reader, windows: Iterable[Window]) -> int | None:
    """Return the alpha band that masks what `reader` reads, if it holds an image by the look of some windows.

    GDAL tags the fourth band of 8 bits so where nobody says what it is; its zeros, deep water in near infrared, are
    then pixels without data.
    """
    band = reader.alpha_band
    if band is None:
        return None
    with open_raster(reader.path, bands=[band]) as alpha:
        found = [alpha.read(window).values.ravel() for window in windows]
    values = np.concatenate(found) if found else np.zeros(0)
    if not values.size:
        return None
    return band if np.mean((values != 0) & (values != values.max())) > VARIED else None


def alpha_in_words(path: str, band: int) -> str:
    """Return what `image_in_alpha` has found, for a user."""
    return (
        f"Band {band} of {path} is tagged as alpha, so its zeros count as pixels without data, but it looks like an "
        f"image (near infrared?). Mend the tag with gdal_edit.py -colorinterp_{band} undefined, or name {band} among "
        "the bands."
    )
