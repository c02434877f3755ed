"""The states of the drawn land cover: six looks, and when and where each was photographed.

Names, zones and years are those of the real ones, so that tools written for these find what they expect. Streets,
fields and light are invented.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from geonorm.data.drawing.cities import CITIES
from geonorm.data.drawing.styles import (
    ASPHALT,
    CROP,
    GRASS,
    LITTER,
    MEADOW,
    PAVING,
    SOIL,
    TRACK,
    WATER,
    City,
    Colour,
    Light,
)

_CITY = {city.name: city for city in CITIES}


@dataclass(frozen=True, kw_only=True)
class State:
    """One state: its look, and how its tiles are named and placed."""

    name: str
    year: int
    """Of the land cover, as in the names of the folders."""
    zone: int
    """UTM zone, north."""
    south: int
    west: int
    """Corner of the square degree in which its tiles lie, in degrees north and west."""
    look: City
    older: Light
    """Light of the imagery a few years before."""


def _ground(city: str, changes: dict[int, tuple[Colour, Colour]]) -> dict[int, tuple[Colour, Colour]]:
    return {**_CITY[city].ground, **changes}


_LIGHT = _CITY["alder"].light
_GREY = _CITY["ostmere"].light
_WARM = _CITY["brack"].light

STATES: tuple[State, ...] = (
    # A flat coast: large pale fields, sandy soil, wide water, haze.
    State(
        name="de",
        year=2013,
        zone=18,
        south=39,
        west=75,
        look=replace(
            _CITY["ostmere"],
            zones={"fields": 5, "houses": 2.4, "halls": 0.8, "forest": 1.2, "park": 0.5},
            light=replace(_GREY, gain=1.06, haze=0.16, sun_elevation_deg=56),
            ground=_ground(
                "ostmere",
                {
                    SOIL: ((196, 178, 146), (176, 156, 124)),
                    CROP: ((124, 140, 84), (164, 158, 108)),
                    WATER: ((62, 84, 86), (72, 92, 88)),
                },
            ),
            river=0.9,
        ),
        older=replace(_LIGHT, gain=1.12, saturation=0.6, sun_azimuth_deg=215),
    ),
    # Suburbs among deciduous woods, lawns, a clear sun.
    State(
        name="md",
        year=2013,
        zone=18,
        south=39,
        west=76,
        look=replace(
            _CITY["alder"],
            zones={"houses": 5, "forest": 2.6, "fields": 1.2, "halls": 1.1, "park": 1, "slabs": 0.6},
            light=replace(_LIGHT, sun_elevation_deg=60),
            river=0.8,
        ),
        older=replace(_GREY, gain=0.92, saturation=0.95, sun_azimuth_deg=120),
    ),
    # Hills under cool, flat, bright light: hay and maize, dark firs, wooden houses far apart.
    State(
        name="ny",
        year=2013,
        zone=18,
        south=42,
        west=77,
        look=replace(
            _CITY["firnau"],
            zones={"fields": 4, "forest": 2.4, "houses": 2.2, "halls": 0.6, "park": 0.4},
            light=replace(_LIGHT, sun_elevation_deg=44, sky=(0.22, 0.27, 0.36), gain=1.12, contrast=0.9, haze=0.14),
            ground=_ground(
                "firnau",
                {
                    GRASS: ((84, 118, 70), (104, 130, 78)),
                    MEADOW: ((142, 140, 84), (162, 152, 98)),
                    CROP: ((96, 132, 60), (122, 142, 72)),
                    TRACK: ((158, 148, 130), (140, 130, 112)),
                },
            ),
            species={"broadleaf": 3, "conifer": 2},
            snow=0.0,
            river=0.7,
        ),
        older=replace(_WARM, gain=0.9, sun_elevation_deg=52, contrast=1.08),
    ),
    # Towns of brick rows and yards around mills, a low sun, dim.
    State(
        name="pa",
        year=2013,
        zone=17,
        south=40,
        west=80,
        look=replace(
            _CITY["corvel"],
            zones={"terraces": 4, "halls": 2, "forest": 2, "fields": 1.4, "slabs": 0.8, "park": 0.6},
            light=replace(_GREY, gain=0.82, haze=0.1, sun_elevation_deg=40, contrast=1.16),
            ground=_ground(
                "corvel",
                {
                    ASPHALT: ((84, 84, 88), (104, 102, 102)),
                    PAVING: ((128, 116, 108), (112, 104, 98)),
                    GRASS: ((82, 104, 56), (104, 116, 70)),
                },
            ),
            river=0.7,
        ),
        older=replace(_LIGHT, gain=1.05, contrast=0.95),
    ),
    # Red clay, pine plantations, yellowing pasture, warm light.
    State(
        name="va",
        year=2014,
        zone=17,
        south=37,
        west=79,
        look=replace(
            _CITY["alder"],
            zones={"houses": 3, "forest": 3.4, "fields": 2.6, "halls": 0.9, "park": 0.5},
            species={"conifer": 3, "broadleaf": 2},
            light=replace(_WARM, sun_elevation_deg=52, contrast=1.1, gain=0.95, saturation=0.9),
            ground=_ground(
                "alder",
                {
                    SOIL: ((178, 116, 84), (152, 94, 66)),
                    TRACK: ((186, 130, 96), (160, 110, 82)),
                    MEADOW: ((156, 146, 92), (172, 156, 106)),
                    LITTER: ((104, 82, 56), (122, 96, 66)),
                },
            ),
            river=0.6,
        ),
        older=replace(_LIGHT, haze=0.22, gain=0.95),
    ),
    # Forest on mountains, deep greens and shadows, a few houses along the valley.
    State(
        name="wv",
        year=2014,
        zone=17,
        south=37,
        west=80,
        look=replace(
            _CITY["alder"],
            zones={"forest": 7, "houses": 2, "fields": 1, "park": 0.5},
            leaf=((48, 76, 36), (58, 84, 40), (44, 70, 38), (66, 88, 44)),
            light=replace(_LIGHT, sun_elevation_deg=34, gain=0.84, contrast=1.2, saturation=0.9, haze=0.02),
            ground=_ground("alder", {WATER: ((52, 62, 48), (64, 72, 54)), MEADOW: ((96, 118, 64), (122, 132, 82))}),
            tree_radius_px=(9, 22),
            river=0.8,
        ),
        older=replace(_GREY, gain=1.0, sun_elevation_deg=50),
    ),
)
