"""Awkward and damaged files of real life, by name."""

from __future__ import annotations

DAMAGED = [
    "corrupt-from-rasterio.tif",
    "damaged-empty.tif",
    "damaged-header-only.tif",
    "damaged-truncated-60pct.tif",
    "damaged-truncated-strips.tif",
]
VALID = [
    "drone-rgba-holes-0.35m.tif",
    "esri-crs-2x2.tif",
    "float32-nan-3x2-no-crs.tif",
    "float32-nodata-europa-crs.tif",
    "float64-global-nodata.tif",
    "gcps-only.tif",
    "int16-2band-scale-offset.tif",
    "jpeg-named-png.png",
    "palette-non-square-pixels.tif",
    "palette-unknown-datum.tif",
    "rgb-51x51-smaller-than-a-patch.tif",
    "rgb-external-mask.tif",
    "rgb-internal-mask.tif",
    "rgb-jpeg-rd-new-0.25m.tif",
    "rgb-mars-crs.tif",
    "rgb-no-crs-512.tif",
    "rgb-nodata0.tif",
    "rgb-plain-utm-0.15m.tif",
    "rgb-webp-compression.tif",
    "rgba-alpha-band.tif",
    "rotated-10x15-no-crs.tif",
    "rotated-float32-albers.tif",
    "south-up-float32.tif",
    "uint16-4band-all-nodata.tif",
    "uint16-bgr-order-alpha.tif",
    "uint16-rgb-undefined-interp.tif",
    "uint8-20x20-smaller-than-a-patch.tif",
]
