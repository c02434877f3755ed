"""Light: sun and shadow, cloud and haze, lens and sensor."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from geonorm.data.drawing.cover import near_infrared
from geonorm.data.drawing.noise import Field, blur, smooth_noise, wide_mean
from geonorm.data.drawing.styles import Light
from geonorm.data.drawing.terrain import Canvas, linear

_STEEPEST = 1.3  # a slope, so that the edges of roofs do not blaze
_PENUMBRA_PX = 1.2
_WEATHER_PX = 2600.0  # from one bright district to the next
_STRIP_PX = 1500.0  # width of a flight strip
_INFRARED_SKY = 0.06  # air scatters little of it, so shadows are deep
_INFRARED_HAZE = 0.4  # and haze veils less


def photograph(canvas: Canvas, light: Light, rng: np.random.Generator, *, infrared: bool = False) -> NDArray[np.uint8]:
    """Return what a camera sees of the canvas: 8 bits, red, green and blue, ``(3, H, W)``.

    Sun and haze change over the scene, so that bright and dim districts lie in one image.

    Args:
        canvas: What lies there.
        light: Sun, sky and sensor.
        rng: Draws the weather and the noise.
        infrared: Add near infrared as a fourth band.
    """
    azimuth = math.radians(light.sun_azimuth_deg + rng.uniform(-14, 14))
    elevation = math.radians(light.sun_elevation_deg + rng.uniform(-4, 4))
    sunlit = _sunlit(canvas.relief, azimuth, elevation)
    open_sky = _open_sky(canvas.relief)
    sun_share, veil = _weather(canvas.relief.shape, rng)
    exposure = np.float32(light.gain) * _strips(canvas.relief.shape, rng)

    haze = np.clip(light.haze * (0.35 + 1.5 * veil), 0, 0.75)
    air = linear(light.haze_colour)
    grey = canvas.albedo.mean(axis=0) * np.float32(1 - light.saturation)
    image = np.empty((3 + infrared, *canvas.relief.shape), dtype=np.uint8)
    for band in range(3):
        arriving = np.float32(light.sun[band]) * sunlit * sun_share
        arriving += np.float32(light.sky[band]) * open_sky * (1.15 - 0.15 * sun_share)
        glow = (canvas.albedo[band] * np.float32(light.saturation) + grey) * arriving
        glow += haze * (air[band] - glow)
        image[band] = _develop(glow, exposure, light.contrast, rng)
    if infrared:
        arriving = sunlit * sun_share + np.float32(_INFRARED_SKY) * open_sky
        glow = near_infrared(canvas.albedo, canvas.cover) * arriving
        glow += np.float32(_INFRARED_HAZE) * haze * (air[0] - glow)
        image[3] = _develop(glow, exposure, light.contrast, rng)
    return image


def _sunlit(relief: Field, azimuth: float, elevation: float) -> Field:
    """Return how much direct light a pixel gets: 0 in shadow, 1 on open ground, more on a face to the sun."""
    towards = (-math.cos(azimuth), math.sin(azimuth))  # rows, columns per pixel of way
    shade = _shade_height(relief, towards, math.tan(elevation))
    free = 1 - np.clip((shade - relief) / _PENUMBRA_PX, 0, 1)
    down, right = _slope(relief, axis=0), _slope(relief, axis=1)
    facing = math.sin(elevation) - math.cos(elevation) * (down * towards[0] + right * towards[1])
    facing /= np.sqrt(1 + down * down + right * right) * math.sin(elevation)
    return (free * np.clip(facing, 0.0, 1.7)).astype(np.float32)


def _shade_height(relief: Field, towards: tuple[float, float], fall: float) -> Field:
    """Return up to which height the light is cut off: the highest thing towards the sun, less the fall.

    Looking one step, then two, four, ... further each time covers all steps between.
    """
    highest = float(relief.max())
    shade = relief
    step = 1
    while step * fall < highest:
        shift = (round(step * towards[0]), round(step * towards[1]))
        shade = np.maximum(shade, _moved(shade, shift) - np.float32(step * fall))
        step *= 2
    return shade


def _moved(field: Field, shift: tuple[int, int]) -> Field:
    """Return the field as seen from each pixel ``shift`` away; beyond the edge is nothing."""
    height, width = field.shape
    result = np.zeros_like(field)
    down, right = shift
    if abs(down) >= height or abs(right) >= width:
        return result
    to_rows, from_rows = (
        slice(max(0, -down), height - max(0, down)),
        slice(max(0, down), height + min(0, down)),
    )
    to_cols, from_cols = (
        slice(max(0, -right), width - max(0, right)),
        slice(max(0, right), width + min(0, right)),
    )
    result[to_rows, to_cols] = field[from_rows, from_cols]
    return result


def _slope(relief: Field, *, axis: int) -> Field:
    """Return the rise per pixel, taken from the flatter side, so that a wall tilts no roof."""
    step = np.diff(relief, axis=axis)
    pad = [(0, 0), (0, 0)]
    pad[axis] = (1, 0)
    before = np.pad(step, pad)
    pad[axis] = (0, 1)
    after = np.pad(step, pad)
    flatter = np.where(np.abs(before) < np.abs(after), before, after)
    return np.clip(np.where(before * after > 0, flatter, 0), -_STEEPEST, _STEEPEST)


def _open_sky(relief: Field) -> Field:
    """Return how much of the sky a pixel sees: less at the foot of a wall and between trees."""
    deep = np.maximum(wide_mean(relief, reach_px=8) - relief, 0)
    return np.exp(-deep / 22).astype(np.float32)


def _weather(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[Field, Field]:
    """Return the share of sun that passes the clouds, and the density of haze, about 0 to 1."""
    height, width = shape
    rows, cols = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)[None, :]
    heading = rng.uniform(0, 2 * math.pi)
    way = (rows * math.sin(heading) + cols * math.cos(heading)).astype(np.float32)
    wave = np.sin(way * np.float32(2 * math.pi / _WEATHER_PX) + np.float32(rng.uniform(0, 2 * math.pi)))
    cloud = 0.75 * wave + 0.45 * smooth_noise(rng, height, width, cell_px=420)
    haze = 0.5 + 0.32 * wave + 0.2 * smooth_noise(rng, height, width, cell_px=650)
    dim = 1 / (1 + np.exp(-(cloud - 0.35) * 4.5))
    return (1.06 - 0.55 * dim).astype(np.float32), np.clip(haze, 0, 1.3).astype(np.float32)


def _strips(shape: tuple[int, ...], rng: np.random.Generator) -> Field:
    """Return the exposure of flight strips: each a little different, and darker towards its edges."""
    height, width = shape
    rows, cols = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)[None, :]
    tilt = rng.uniform(-0.15, 0.15)
    way = cols + np.float32(tilt) * rows if rng.random() < 0.5 else rows + np.float32(tilt) * cols
    way = way / np.float32(_STRIP_PX) + np.float32(rng.uniform(0.2, 1.0))
    gains = rng.uniform(0.93, 1.07, size=64).astype(np.float32)
    middle = 2 * (way - np.floor(way)) - 1
    number = np.floor(way).astype(np.int_)
    inner = gains[number % 64] * (1 - 0.14 * middle * middle)
    other = gains[(number + np.sign(middle).astype(np.int_)) % 64] * np.float32(0.86)
    seam = np.clip((np.abs(middle) - 0.985) / 0.03, 0, 0.5)
    return np.broadcast_to(inner + seam * (other - inner), (height, width)).astype(np.float32)


def _develop(glow: Field, exposure: Field, contrast: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return one band in grey levels: blurred by the lens, exposed, with the noise of the sensor."""
    level = np.sqrt(np.maximum(blur(glow, 0.62), 0)) * exposure
    level = 0.42 + (level - 0.42) * np.float32(contrast)
    noise = rng.standard_normal(glow.shape, dtype=np.float32)
    noise = 0.7 * noise + 0.5 * blur(noise, 0.7)
    level += noise * np.float32(0.011)
    return np.clip(np.rint(level * 255), 0, 255).astype(np.uint8)
