"""The page of a consistency report in a real browser: what is drawn, what is said, with mouse and with keys."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from geonorm.evaluation.consistency_page import Scene, write_consistency_page
from tests.evaluation.consistency_reports import comparison, report, run, scene

pytestmark = pytest.mark.slow

HEIGHT, WIDTH = 120, 170
GREY, HOUSE, FLIP = (128, 128, 128), (191, 162, 64), (214, 20, 20)
"""The image, a house half over it, and a label that differs."""
NASTY = "<img src=x onerror=alert(1)>"
REST, MOVED = "GN, at rest", "GN, moved by 128 px"


@pytest.fixture(scope="module")
def chromium() -> Iterator[WebDriver]:
    """Debian's Chromium without a window."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("no Chromium and its driver; on Debian: apt-get install chromium chromium-driver")
    options = Options()
    options.binary_location = browser
    for argument in ("--headless=new", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium refuses to run as root with it
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = WebDriver(options=options, service=Service(driver))
    yield found
    found.quit()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two models, one of which changes, with two places of one raster and one of another."""
    runs = [run("GN", [comparison(flips=300)]), run("LCN", [comparison()])]
    other = scene(source="images/kampala.tif", models={"GN": 3, "LCN": 0}, names=(NASTY, "building"))
    scenes = [scene(), worst(), other]
    target = tmp_path_factory.mktemp("page") / "report.html"
    write_consistency_page(target, report(runs), scenes)
    return target


def worst() -> Scene:
    """Return the place of most changes, of half a house."""
    place = scene("Worst seam 1", models={"GN": 25, "LCN": 0})
    cut = np.s_[:, 80:]
    layers = [replace(layer, pixels=layer.pixels[cut]) for layer in place.layers]
    return replace(place, col=80, width=WIDTH - 80, image=place.image[cut], layers=layers)


@pytest.fixture
def page(chromium: WebDriver, path: Path) -> Iterator[WebDriver]:
    """The page, opened anew at 1280 pixels; it must not have complained when the test ends."""
    resize(chromium, 1280)
    chromium.get_log("browser")
    chromium.get(path.as_uri())
    settle(chromium)
    stage(chromium)
    yield chromium
    complaints = [entry for entry in chromium.get_log("browser") if entry["level"] in ("SEVERE", "ERROR")]
    assert complaints == []


def resize(page: WebDriver, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def settle(page: WebDriver) -> None:
    """Wait until the viewer shows what was chosen, and two frames more."""
    WebDriverWait(page, 20).until(
        lambda page: page.execute_script("return document.querySelector('#stage[aria-busy=false]') !== null")
    )
    page.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")


def stage(page: WebDriver) -> WebElement:
    """Return the two maps, scrolled into the window."""
    element = page.find_element(By.ID, "stage")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    return element


def picture(page: WebDriver) -> NDArray[np.int64]:
    """Return what is seen of the two maps, ``(h, w, 3)``."""
    settle(page)
    with Image.open(BytesIO(stage(page).screenshot_as_png)) as seen:
        return np.asarray(seen.convert("RGB")).astype(int)


def color_at(
    seen: NDArray[np.int64], row: int, col: int, *, height: int = HEIGHT, width: int = WIDTH
) -> tuple[int, ...]:
    """Return the colour in the middle of a cell where the whole place is shown."""
    scale = min(seen.shape[0] / height, seen.shape[1] / width)
    y = seen.shape[0] / 2 + (row + 0.5 - height / 2) * scale
    x = seen.shape[1] / 2 + (col + 0.5 - width / 2) * scale
    return tuple(map(int, seen[int(y), int(x)]))


def area(seen: NDArray[np.int64], color: tuple[int, ...]) -> int:
    """Return how many pixels of the screen have a colour."""
    return int((np.abs(seen - color).max(-1) <= 6).sum())


def near(color: tuple[int, ...]) -> object:
    return pytest.approx(color, abs=6)  # JPEG and blending round


def choose(page: WebDriver, select: str, words: str) -> None:
    Select(page.find_element(By.ID, select)).select_by_visible_text(words)
    settle(page)


def status(page: WebDriver) -> str:
    settle(page)
    return page.find_element(By.ID, "status").text


def drag(page: WebDriver, start: tuple[float, float], by: tuple[int, int]) -> None:
    """Drag with the mouse from a place in the stage, as shares of its size."""
    element = stage(page)
    x, y = round((start[0] - 0.5) * element.size["width"]), round((start[1] - 0.5) * element.size["height"])
    actions = ActionChains(page, duration=50).move_to_element_with_offset(element, x, y).click_and_hold()
    actions.move_by_offset(*(offset // 2 for offset in by)).move_by_offset(*(offset - offset // 2 for offset in by))
    actions.release().perform()
    settle(page)


# The line between the maps


def test_each_side_of_the_line_shows_its_own_map(page: WebDriver) -> None:
    choose(page, "left", "LCN, at rest")
    choose(page, "right", "The image")

    seen = picture(page)

    assert color_at(seen, 60, 60) == near(HOUSE)
    assert color_at(seen, 60, 100) == near(GREY)


def test_dragging_the_line_uncovers_the_other_map(page: WebDriver) -> None:
    choose(page, "left", "LCN, at rest")
    choose(page, "right", "The image")

    drag(page, (0.5, 0.3), (300, 0))
    wider = picture(page)
    drag(page, (0.5 + 300 / wider.shape[1], 0.3), (-600, 0))
    narrower = picture(page)

    assert color_at(wider, 60, 100) == near(HOUSE)
    assert color_at(narrower, 60, 60) == near(GREY)


def test_the_range_below_moves_the_line_by_keys_and_says_where_it_is(page: WebDriver) -> None:
    choose(page, "left", "LCN, at rest")
    choose(page, "right", "The image")
    swipe = page.find_element(By.ID, "swipe")

    swipe.send_keys(Keys.END)
    all_left = picture(page)
    words = swipe.get_attribute("aria-valuetext")
    swipe.send_keys(Keys.HOME)
    all_right = picture(page)
    swipe.send_keys(Keys.ARROW_RIGHT * 3)
    settle(page)

    assert words == "100 % LCN, at rest; 0 % The image"
    assert color_at(all_left, 60, 100) == near(HOUSE)
    assert area(all_right, HOUSE) == 0
    assert swipe.get_attribute("aria-valuetext") == "3 % LCN, at rest; 97 % The image"


# Zoom and place


def test_zooming_in_by_button_enlarges_the_house(page: WebDriver) -> None:
    page.find_element(By.ID, "flips").click()
    before = area(picture(page), HOUSE)

    page.find_element(By.ID, "in").click()
    larger = area(picture(page), HOUSE)
    page.find_element(By.ID, "out").click()

    assert larger == pytest.approx(1.5**2 * before, rel=0.03)
    assert area(picture(page), HOUSE) == before


def test_the_wheel_zooms_where_the_mouse_is_once_the_map_was_clicked(page: WebDriver) -> None:
    page.find_element(By.ID, "flips").click()
    element = stage(page)
    before = picture(page)
    wheel = ScrollOrigin.from_element(element, 0, 0)

    ActionChains(page).scroll_from_origin(wheel, 0, -60).perform()
    untouched = picture(page)
    stage(page)
    ActionChains(page).move_to_element_with_offset(element, 100, 100).click().perform()
    ActionChains(page).scroll_from_origin(wheel, 0, -400).perform()

    assert area(untouched, HOUSE) == pytest.approx(area(before, HOUSE), rel=0.03)  # a hint lies over it
    assert area(picture(page), HOUSE) > 1.5 * area(before, HOUSE)


def test_zooming_by_wheel_leaves_in_place_what_is_under_the_mouse(page: WebDriver) -> None:
    element = stage(page)
    before = picture(page)
    scale = min(before.shape[0] / HEIGHT, before.shape[1] / WIDTH)
    corner = round((WIDTH // 3 - WIDTH / 2) * scale), round((HEIGHT // 3 - HEIGHT / 2) * scale)

    ActionChains(page).move_to_element_with_offset(element, *corner).click().perform()
    ActionChains(page).scroll_from_origin(ScrollOrigin.from_element(element, *corner), 0, -300).perform()

    after = picture(page)
    x, y = corner[0] + after.shape[1] // 2, corner[1] + after.shape[0] // 2
    assert area(after, HOUSE) > 1.3 * area(before, HOUSE)
    assert tuple(after[y + 6, x + 6]) == near(HOUSE)
    assert tuple(after[y - 6, x + 6]) != near(HOUSE)
    assert tuple(after[y + 6, x - 6]) != near(HOUSE)


def test_two_fingers_that_part_zoom_in(page: WebDriver) -> None:
    page.find_element(By.ID, "flips").click()
    before = area(picture(page), HOUSE)
    box = page.execute_script("return arguments[0].getBoundingClientRect().toJSON()", stage(page))
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    for kind, apart in (("touchStart", 50), ("touchMove", 60), ("touchMove", 75), ("touchEnd", None)):
        fingers = [] if apart is None else [{"x": x + side * apart, "y": y, "id": side} for side in (-1, 1)]
        page.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": fingers})

    assert area(picture(page), HOUSE) == pytest.approx(1.5**2 * before, rel=0.03)


def test_keys_zoom_move_and_show_the_whole_again(page: WebDriver) -> None:
    element = stage(page)
    whole = picture(page)

    element.send_keys("+++")
    zoomed = picture(page)
    element.send_keys(Keys.ARROW_RIGHT)
    moved = picture(page)
    element.send_keys("0")

    eighth = zoomed.shape[1] // 8
    band = np.s_[zoomed.shape[0] // 2 - 100 : zoomed.shape[0] // 2 - 50]
    assert area(zoomed, HOUSE) > 2 * area(whole, HOUSE)
    np.testing.assert_allclose(moved[band, 100:400], zoomed[band, 100 + eighth : 400 + eighth], atol=6)
    np.testing.assert_array_equal(picture(page), whole)


def test_dragging_the_map_moves_it_with_the_mouse(page: WebDriver) -> None:
    element = stage(page)
    element.send_keys("+++")
    before = picture(page)

    drag(page, (0.2, 0.7), (80, -30))

    after = picture(page)
    np.testing.assert_allclose(after[100:200, 180:480], before[130:230, 100:400], atol=6)


# What is shown


def test_labels_that_differ_are_red_until_they_are_switched_off(page: WebDriver) -> None:
    with_flips = picture(page)
    page.find_element(By.ID, "flips").click()
    without = picture(page)

    scale = min(with_flips.shape[0] / HEIGHT, with_flips.shape[1] / WIDTH)
    assert area(with_flips, FLIP) == pytest.approx(40 * 10 * scale**2, rel=0.03)
    assert area(without, FLIP) == 0


def test_tile_borders_are_those_of_each_map_s_own_grid(page: WebDriver) -> None:
    page.find_element(By.ID, "seams").click()
    choose(page, "left", "LCN, at rest")
    choose(page, "right", "LCN, moved by 128 px")

    seen = picture(page)
    scale = min(seen.shape[0] / HEIGHT, seen.shape[1] / WIDTH)
    rows = {at: round(seen.shape[0] / 2 + (at - HEIGHT / 2) * scale) for at in (20, 60)}
    quarter, others = seen.shape[1] // 4, 3 * seen.shape[1] // 4 + 40
    white = {(at, x): bool(seen[row, x].min() > 250) for at, row in rows.items() for x in (quarter, others)}

    assert white == {(20, quarter): False, (20, others): True, (60, quarter): True, (60, others): False}


def test_without_opacity_the_image_alone_is_seen(page: WebDriver) -> None:
    page.find_element(By.ID, "flips").click()

    page.find_element(By.ID, "opacity").send_keys(Keys.HOME)

    assert area(picture(page), HOUSE) == 0


# What is said


def test_the_live_text_counts_what_differs_between_the_chosen_maps(page: WebDriver) -> None:
    first = status(page)
    choose(page, "left", "LCN, at rest")
    choose(page, "right", "LCN, moved by 128 px")
    second = status(page)
    choose(page, "right", "The image")

    pixels = (HEIGHT - 2) * WIDTH
    assert first == f"{REST} against {MOVED}: 400 of {pixels:,} pixels differ ({100 * 400 / pixels:.1f} %)."
    assert second.endswith(f"0 of {pixels:,} pixels differ – the maps are the same here.")  # noqa: RUF001 as in text
    assert status(page) == "LCN, at rest beside the image."
    assert page.find_element(By.ID, "status").aria_role == "status"


def test_the_label_under_the_mouse_is_named(page: WebDriver) -> None:
    ActionChains(page).move_to_element_with_offset(stage(page), -100, 2).perform()

    words = page.find_element(By.ID, "here").text

    assert words.startswith("row 60, column ")
    assert words.endswith(f"{REST}: building · {MOVED}: building")


def test_the_worst_seam_is_one_press_away_and_keeps_the_chosen_maps(page: WebDriver) -> None:
    choose(page, "right", "GN, moved by 128 px")
    page.find_element(By.CSS_SELECTOR, "#places summary").click()
    page.find_element(By.CSS_SELECTOR, "[data-scene='1']").click()

    assert "1,000 of 10,620 pixels differ (9.4 %)" in status(page)
    assert Select(page.find_element(By.ID, "scene")).first_selected_option.text == "Worst seam 1"
    assert color_at(picture(page), 60, 20, width=WIDTH - 80) == near(HOUSE)


def test_places_follow_each_other_and_end(page: WebDriver) -> None:
    following, previous = page.find_element(By.ID, "next"), page.find_element(By.ID, "previous")
    assert not previous.is_enabled()

    following.click()
    settle(page)
    following.click()
    settle(page)

    assert Select(page.find_element(By.ID, "scene")).first_selected_option.text == "Whole raster"
    assert "120 of" in status(page)
    assert not following.is_enabled()
    assert page.find_element(By.CSS_SELECTOR, "#legend li").text == NASTY


def test_the_place_that_was_chosen_last_is_shown_even_if_another_comes_in_later(page: WebDriver) -> None:
    page.execute_script(
        """
        const decode = Image.prototype.decode;
        let late = 400;
        Image.prototype.decode = function () {
          const wait = late;
          late = 0;
          return new Promise((done) => setTimeout(done, wait)).then(() => decode.call(this));
        };
        document.getElementById("next").click();
        document.getElementById("next").click();
        """
    )
    settle(page)
    page.execute_async_script("setTimeout(arguments[0], 800)")

    assert "120 of" in status(page)
    assert Select(page.find_element(By.ID, "scene")).first_selected_option.get_attribute("value") == "2"


def test_the_table_can_be_read(page: WebDriver) -> None:
    rows = page.find_elements(By.CSS_SELECTOR, "#figures table:first-of-type tbody:first-of-type tr")

    words = rows[1].text.replace("\N{NO-BREAK SPACE}", " ").split()

    assert words[:5] == ["Grid", "moved", "by", "128", "px"]
    assert "3.0" in words
    assert "✓" in words


# The page around it


@pytest.mark.parametrize("width", [320, 375, 1280])
def test_the_page_never_scrolls_sideways(page: WebDriver, width: int) -> None:
    resize(page, width)
    for details in page.find_elements(By.TAG_NAME, "details"):
        page.execute_script("arguments[0].open = true", details)
    settle(page)

    page.execute_script("window.scrollTo(200, 0)")

    assert page.execute_script("return [scrollX, document.documentElement.scrollWidth]") == [0, width]
    line = page.find_element(By.CSS_SELECTOR, ".divider").rect
    assert line["x"] + line["width"] / 2 == pytest.approx(width / 2, abs=1)


def test_a_resized_window_still_shows_the_whole_place(page: WebDriver) -> None:
    at_first = picture(page)

    resize(page, 400)
    narrow = picture(page)
    resize(page, 1280)

    assert color_at(narrow, 60, 60) == near(HOUSE)
    assert color_at(narrow, 118, 5) == near((80, 80, 84))
    np.testing.assert_array_equal(picture(page), at_first)


def test_keys_alone_reach_every_control_and_show_where_they_are(page: WebDriver) -> None:
    page.execute_script("window.scrollTo(0, 0)")
    reached = set()
    for _ in range(100):
        ActionChains(page).send_keys(Keys.TAB).perform()
        active = page.switch_to.active_element
        if active.tag_name == "body":  # once round
            break
        assert active.value_of_css_property("outline-style") != "none"
        reached.add(active.get_attribute("id"))

    assert {
        "scene",
        "next",
        "left",
        "right",
        "stage",
        "swipe",
        "in",
        "out",
        "fit",
        "full",
        "flips",
        "seams",
        "opacity",
    } <= (reached)


def test_dark_and_light_follow_the_reader(page: WebDriver) -> None:
    found = {}
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        found[scheme] = page.execute_script("return getComputedStyle(document.body).backgroundColor")
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})

    assert found["light"] == "rgb(255, 255, 255)"
    assert found["dark"] != found["light"]


def test_nothing_is_loaded(page: WebDriver) -> None:
    loaded = page.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")

    assert all(name.startswith("data:") for name in loaded)


def test_without_javascript_all_but_the_viewer_is_there(chromium: WebDriver, path: Path) -> None:
    chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        chromium.get(path.as_uri())
        shown = {
            name: chromium.find_element(By.CSS_SELECTOR, name).is_displayed()
            for name in (".headline", "#figures table", ".curve svg", ".still svg", "noscript p", "#viewer", "button")
        }
    finally:
        chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})

    assert [name for name, seen in shown.items() if not seen] == ["#viewer", "button"]
