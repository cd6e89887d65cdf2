"""Pictures of the page in the browser, as docs/web.md shows them.

    python tools/page_pictures.py [FOLDER]

Needs what the tests of the page need: Playwright (requirements-dev.txt) and Debian's chromium. Each
tab is shown on a screen of 1280 dots, and on a phone of 380 dots that is set to dark colours.
"""

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, Playwright, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
SCREENS = {1280: "light", 380: "dark"}
PATIENCE = 120_000  # milliseconds: for completions and samples


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    text = "where to write the pictures (default: docs/web)"
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "docs" / "web", help=text)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    with served("pretrained/binary_mnist.pth") as address, sync_playwright() as driver:
        browser = launch(driver)
        for width, scheme in SCREENS.items():
            for name, show in VIEWS.items():
                page = browser.new_page(
                    viewport={"width": width, "height": 900},
                    color_scheme=scheme,  # type: ignore[arg-type]
                )
                page.set_default_timeout(PATIENCE)
                page.goto(address)
                page.locator("#complete .thumb").first.wait_for()
                show(page)
                path = folder / f"{name}_{width}.png"
                page.screenshot(path=path, full_page=True)
                page.close()
                print(path)
        browser.close()


@contextmanager
def served(model: str) -> Iterator[str]:
    """The address of the page with the models of the checkout, this one first, and its examples."""
    command = [sys.executable, "main.py", "--mode", "web", "--port", "0", "--no_browser"]
    command += ["--load_params", model, "-i", "examples"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        found = re.search(r"http://\S+", program.stdout.readline())
        if found is None:
            raise SystemExit("the page did not start: see the message above")
        try:
            yield found[0]
        finally:
            program.terminate()


def launch(driver: Playwright) -> Browser:
    """Start Debian's chromium; its sandbox does not work for root, as in containers."""
    path = shutil.which("chromium")
    return driver.chromium.launch(executable_path=path, args=["--no-sandbox"])


def brush(page: Page, *places: tuple[float, float]) -> None:
    """Draw a line through places on the canvas of a tab, in parts of its sides."""
    canvas = page.locator("[role=tabpanel]:visible .board canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    for number, (across, down) in enumerate(places):
        page.mouse.move(box["x"] + box["width"] * across, box["y"] + box["height"] * down)
        if number == 0:
            page.mouse.down()
    page.mouse.up()


def complete(page: Page) -> None:
    """A zero whose upper half is hidden, and four completions."""
    _hide_upper_half(page, thumb=13)
    _press(page, "Complete")
    page.locator("#complete .command").wait_for()


def classes(page: Page) -> None:
    """The probabilities of classes given the visible part of a digit."""
    page.locator("#model").select_option(label="binary_mnist_classes")
    page.locator("#complete .classes tbody tr").first.wait_for()
    _hide_upper_half(page, thumb=2)
    page.wait_for_timeout(3000)  # the bars follow the brush


def score(page: Page) -> None:
    """The likelihoods of three digits, and the bits of each pixel of one."""
    page.get_by_role("tab", name="Score").click()
    for thumb in (2, 3):  # the first one is there from the start
        page.locator("#score .thumb").nth(thumb).click()
    _press(page, "Score")
    page.locator("#score .command").wait_for()


def sample(page: Page) -> None:
    """Sixteen samples."""
    page.get_by_role("tab", name="Sample").click()
    _press(page, "Sample")
    page.locator("#sample .command").wait_for()


def orders(page: Page) -> None:
    """An order of the family gilbert2d, and what it gives a digit."""
    page.get_by_role("tab", name="Orders").click()
    page.locator("#orders [name=order]").select_option("family gilbert2d")
    page.locator("#orders .thumb").first.click()
    _press(page, "Score in this order")
    page.locator("#orders .command").wait_for()


def model(page: Page) -> None:
    """The file and the card of a model."""
    page.get_by_role("tab", name="Model").click()
    page.locator("#about table").first.wait_for()


VIEWS: dict[str, Callable[[Page], None]] = {
    view.__name__: view for view in (complete, classes, score, sample, orders, model)
}


def _hide_upper_half(page: Page, thumb: int) -> None:
    """Pick an example, and brush over the upper half of it."""
    page.locator("#complete .thumb").nth(thumb).click()
    page.locator("#complete [name=size]").fill("7")
    brush(page, (0.2, 0.3), (0.8, 0.3), (0.2, 0.45), (0.8, 0.45))


def _press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


if __name__ == "__main__":
    main()
