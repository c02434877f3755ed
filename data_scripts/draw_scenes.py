"""Draw a data set in the layout of INRIA Aerial Image Labeling or Chesapeake Land Cover.

Everything in it is invented; it is for trying configurations and for tests, without a download. The same options draw
the same bytes. Each city and state has its own streets, roofs, plants and light, so that a network trained on some
and tested on others meets a domain shift.

    python data_scripts/draw_scenes.py --layout inria --out data --tiles 8 --size_px 1024
    python data_scripts/draw_scenes.py --layout chesapeake --out data --places md va --tiles 8 --size_px 512

INRIA: data/AerialImageDataset, red, green, blue at 0.3 m, masks 0/255. Tiles 1 to 5 of each city are for validation
where a configuration names no others, so take 6 or more.
Chesapeake: data/cvpr_chesapeake_landcover, red, green, blue, near infrared at 1 m, land cover 1 to 6.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from _script import Parser, run

from geonorm.data import write_chesapeake_layout, write_inria_layout
from geonorm.data.drawn import CITY_NAMES
from geonorm.data.drawn_land import STATE_NAMES
from geonorm.errors import InvalidConfigError
from geonorm.files import check_space

TRAIN_CITIES = 4
"""So many of the cities are for training where none are named; the rest are for testing."""
INRIA_BYTES, CHESAPEAKE_BYTES = 3.2, 10.0
"""Per pixel of a tile, all its files together: measured, rounded up."""


def main(argv: Sequence[str] | None = None) -> int:
    """Draw what the options ask for."""
    parser = Parser(__doc__)
    parser.add_argument("--layout", choices=("inria", "chesapeake"), required=True, help="whose folders and files")
    parser.add_argument("--out", type=Path, required=True, help="folder in which the data set's own is made")
    parser.add_argument("--seed", type=int, default=0, help="another one draws other tiles")
    parser.add_argument("--tiles", type=int, default=8, help="tiles of each city, or of each state for training")
    parser.add_argument("--val_tiles", type=int, default=2, help="of each state (chesapeake)")
    parser.add_argument("--test_tiles", type=int, default=2, help="of each test city, or of each state")
    parser.add_argument("--size_px", type=int, nargs="+", default=[512], help="side of a tile, or height and width")
    parser.add_argument(
        "--places",
        nargs="+",
        help=f"cities to train on ({', '.join(CITY_NAMES)}; the first {TRAIN_CITIES} where not given) or "
        f"states ({', '.join(STATE_NAMES)}; all)",
    )
    parser.add_argument("--test_places", nargs="*", help="cities to test on (inria; all others where not given)")
    parser.add_argument("--test_masks", action="store_true", help="masks of the test cities too, in test/gt (inria)")
    return run(_draw, parser, argv)


def _draw(options: argparse.Namespace) -> None:
    if len(options.size_px) > 2:
        raise InvalidConfigError(
            f"--size_px takes a side, or a height and a width, got {len(options.size_px)} numbers."
        )
    height, width = options.size_px[0], options.size_px[-1]
    settings = {"size_px": (height, width), "seed": options.seed, "progress": True}
    if options.layout == "chesapeake":
        if options.test_places is not None or options.test_masks:
            raise InvalidConfigError(
                "--test_places and --test_masks are for --layout inria: every state has a test part."
            )
        states = options.places or list(STATE_NAMES)
        count = len(states) * (options.tiles + options.val_tiles + options.test_tiles) + 1
        check_space(options.out, int(count * height * width * CHESAPEAKE_BYTES), what=f"a drawing of {count} tiles")
        folder = write_chesapeake_layout(
            options.out,
            states=states,
            train_tiles=options.tiles,
            val_tiles=options.val_tiles,
            test_tiles=options.test_tiles,
            **settings,
        )
    else:
        cities = options.places or list(CITY_NAMES[:TRAIN_CITIES])
        rest = [name for name in CITY_NAMES if name not in cities]
        tests = rest if options.test_places is None else options.test_places
        count = len(cities) * options.tiles + len(tests) * options.test_tiles
        check_space(options.out, int(count * height * width * INRIA_BYTES), what=f"a drawing of {count} tiles")
        folder = write_inria_layout(
            options.out,
            cities=cities,
            tiles_per_city=options.tiles,
            test_cities=tests,
            test_tiles_per_city=options.test_tiles,
            test_masks=options.test_masks,
            **settings,
        )
    print(folder)


if __name__ == "__main__":
    raise SystemExit(main())
