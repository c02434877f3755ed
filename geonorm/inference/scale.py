"""Whether a raster's values are what a network was trained on: their scale, and what is taken for a mask."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from geonorm.data.spec import DatasetSpec
from geonorm.errors import GeonormWarning
from geonorm.raster.alpha import alpha_in_words, image_in_alpha
from geonorm.raster.mosaic import Mosaic
from geonorm.raster.read import RasterSource, Reader
from geonorm.raster.window import Window

FAR = 8.0
"""So many deviations a median may lie from the mean of the training; other light, ground and sensors stay within."""
FLAT = 0.05
"""A raster all of whose values lie within this share of a deviation holds one colour, or another scale."""
SAMPLE_PX = 64


def warn_of_values(reader: RasterSource, spec: DatasetSpec) -> None:
    """Warn where some windows of the raster say that its values are not those of the training.

    16-bit values for a network of 8-bit ones, reflectances from 0 to 1 for one of digital numbers, and the like. Only
    where the checkpoint knows mean and deviation of its training data.
    """
    if spec.band_means is None or spec.band_deviations is None:
        return
    values = _sampled(reader)
    if values.shape[1] < SAMPLE_PX:
        return
    means, deviations = np.array(spec.band_means), np.array(spec.band_deviations)
    medians = np.median(values, axis=1)
    spreads = values.max(axis=1) - values.min(axis=1)
    far = np.abs(medians - means) > FAR * deviations
    flat = spreads < FLAT * deviations
    if not (far.all() or (flat.all() and spreads.any())):
        return
    found, known = (", ".join(f"{value:.4g}" for value in numbers) for numbers in (medians, means))
    warnings.warn(
        f"{reader.path} has values about {found} ({reader.dtype}), the model was trained on values about {known} "
        f"(deviation {', '.join(f'{value:.3g}' for value in deviations)}): expect poor labels. Give a raster of that "
        "scale (gdal_translate -scale), or choose other --bands.",
        GeonormWarning,
        stacklevel=4,
    )


def warn_of_alpha(source: RasterSource) -> None:
    """Warn where a band tagged as alpha, which then masks the raster, looks like an image; of several, in the first."""
    first = source.sources[0] if isinstance(source, Mosaic) else source
    if isinstance(first, Reader) and (band := image_in_alpha(first, _windows(first))) is not None:
        warnings.warn(alpha_in_words(first.path, band), GeonormWarning, stacklevel=4)


def _windows(source: RasterSource) -> Iterator[Window]:
    """Yield some windows all over a raster."""
    height, width = source.grid.height, source.grid.width
    for down, across in ((0.5, 0.5), (0.2, 0.3), (0.3, 0.8), (0.7, 0.2), (0.8, 0.7)):
        row, col = (max(0, int(share * size) - SAMPLE_PX // 2) for share, size in ((down, height), (across, width)))
        yield Window(row, col, min(SAMPLE_PX, height - row), min(SAMPLE_PX, width - col))


def _sampled(reader: RasterSource) -> NDArray[np.float64]:
    """Return values ``(C, number)`` of the bands that are read, of pixels with data in windows all over the raster."""
    found = []
    for window in _windows(reader):
        pixels = reader.read(window)
        found.append(pixels.values[:, pixels.valid].astype(np.float64))
    values = np.concatenate(found, axis=1)
    return values[:, np.isfinite(values).all(axis=0)]
