"""The page in a real browser: Debian's chromium, driven by Playwright."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import run
from helpers.paths import ROOT
from PIL import Image

playwright = pytest.importorskip(
    "playwright.sync_api", reason="the browser is driven by playwright: pip install playwright"
)
pytest.importorskip("uvicorn", reason="the page is an extra: pip install -r requirements-web.txt")

from tools.page_pictures import brush, launch, served  # noqa: E402  (it needs the two above)

CHROMIUM = shutil.which("chromium")
TABS = ("complete", "score", "sample", "orders", "about")
PATIENCE = 20_000  # milliseconds: the machine may be busy

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no chromium (Debian: apt-get install chromium)"
)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The address of the page with the shipped models."""
    with served("pretrained/binary_mnist_small.pth") as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        yield launch(driver)


@pytest.fixture
def new_page(address, browser):
    """A function that opens the page in a new window; nothing in it may go wrong."""
    pages, problems = [], []

    def open_page(width=1280, **settings):
        page = browser.new_page(viewport={"width": width, "height": 900}, **settings)
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda each: each.type == "error" and problems.append(each.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(address)
        page.locator("#complete .thumb").first.wait_for()
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert not problems


def complete(page):
    page.get_by_role("button", name="Complete", exact=True).click()
    page.locator(".completion").first.wait_for()


def pixels_of(canvas):
    """The red of each dot of a canvas."""
    return canvas.evaluate(
        "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    )[::4]


def saved(page, name, folder):
    with page.expect_download() as download:
        page.get_by_role("button", name=name, exact=True).click()
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


def test_a_hole_is_brushed_and_completed_as_by_the_command_line(new_page, tmp_path, monkeypatch):
    page = new_page()
    page.locator("#complete .thumb").nth(1).click()
    page.locator("#complete [name=size]").fill("6")
    brush(page, (0.2, 0.7), (0.8, 0.7), (0.2, 0.85), (0.8, 0.85))
    complete(page)
    hole = Image.open(saved(page, "hole.png", tmp_path)).convert("L")
    picture = Image.open(saved(page, "picture.png", tmp_path)).convert("L")
    hidden = [value > 0 for value in hole.getdata()]
    assert 100 < sum(hidden) < 400
    assert len(page.locator(".completion").all()) == 4
    canvases = [card.locator("canvas") for card in page.locator(".completion").all()]
    for canvas in canvases:
        for ours, original, is_hidden in zip(
            pixels_of(canvas), picture.getdata(), hidden, strict=True
        ):
            assert is_hidden or ours == original
    nats = [float(text.split()[0]) for text in page.locator(".completion .nats").all_inner_texts()]
    assert nats == sorted(nats)

    command = shlex.split(page.locator("#complete pre").inner_text())
    command[command.index("--load_params") + 1] = str(ROOT / "pretrained/binary_mnist_small.pth")
    monkeypatch.chdir(tmp_path)
    run(shlex.join(command[2:]))
    files = sorted(Path("runs/page").glob("*/00000_picture_?.png"))
    assert [list(Image.open(file).getdata()) for file in files] == list(map(pixels_of, canvases))
    second = Image.open(saved(page, "Download completion 2 as PNG", tmp_path)).convert("L")
    assert list(second.getdata()) == pixels_of(canvases[1])


def test_classes_follow_what_is_hidden(new_page):
    page = new_page()
    page.locator("#model").select_option(label="binary_mnist_classes")
    rows = page.locator("#complete .classes tbody tr")
    rows.first.wait_for()
    shown = rows.all_inner_texts()
    assert len(shown) == 10
    brush(page, (0.3, 0.3), (0.7, 0.3), (0.3, 0.6), (0.7, 0.6))
    page.wait_for_function(
        "shown => [...document.querySelectorAll('#complete .classes tr')]"
        ".some((row, place) => row.innerText !== shown[place])",
        arg=shown,
    )
    percentages = [float(text.split()[-1].rstrip("%")) for text in rows.all_inner_texts()]
    assert sum(percentages) == pytest.approx(100, abs=1)
    assert percentages == sorted(percentages, reverse=True)
    page.get_by_role("tab", name="Sample").click()
    page.locator("#sample [name=class]").select_option("7")
    page.locator("#sample [name=number]").fill("4")
    page.get_by_role("button", name="Sample", exact=True).click()
    page.locator("#sample .command").wait_for()
    assert "--sample_class 7" in page.locator("#sample pre").inner_text()


def test_the_generation_is_played_in_its_order(new_page):
    page = new_page(reduced_motion="reduce")
    brush(page, (0.2, 0.5), (0.8, 0.5))
    complete(page)
    player = page.locator("#complete .player")
    finished = pixels_of(player.locator("canvas"))
    player.get_by_role("button", name="One pixel back").click()
    different = [a != b for a, b in zip(finished, pixels_of(player.locator("canvas")), strict=True)]
    assert sum(different) == 1
    player.get_by_role("button", name="Play").click()
    player.get_by_role("button", name="Pause").wait_for()
    player.get_by_role("button", name="Play").wait_for()
    assert pixels_of(player.locator("canvas")) == finished


def test_a_drawn_digit_can_be_completed(new_page):
    page = new_page()
    page.get_by_role("button", name="Blank, to draw on").click()
    brush(page, (0.5, 0.2), (0.5, 0.8))
    page.get_by_text("Hide", exact=True).click()
    brush(page, (0.4, 0.5), (0.6, 0.5))
    page.get_by_text("Erase", exact=True).click()
    brush(page, (0.42, 0.5), (0.43, 0.5))
    complete(page)
    original = pixels_of(page.get_by_label("The original"))
    assert 20 < original.count(255) < 200 and original.count(0) + original.count(255) == 784


def test_a_broken_file_is_said_to_be_broken_and_another_is_taken(new_page, tmp_path):
    page = new_page()
    page.get_by_role("tab", name="Score").click()
    chooser = page.locator("#score input[type=file]")
    broken, good = tmp_path / "broken.png", tmp_path / "good.png"
    Image.new("L", (50, 60), 255).save(good)
    broken.write_bytes(good.read_bytes()[:40])
    chooser.set_input_files(broken)
    problem = page.locator("#score .picker .problem")
    playwright.expect(problem).to_contain_text("The file cannot be read as an image")
    before = page.locator("#score .chosen li").count()
    chooser.set_input_files(good)
    playwright.expect(page.locator("#score .chosen li")).to_have_count(before + 1)
    playwright.expect(problem).to_be_empty()
    page.get_by_role("button", name="Score", exact=True).click()
    playwright.expect(page.locator("#score tbody tr")).to_have_count(before + 1)


def sample(page, seed, number=4):
    page.get_by_role("tab", name="Sample").click()
    page.locator("#sample [name=number]").fill(str(number))
    page.locator("#sample [name=seed]").fill(str(seed))
    page.get_by_role("button", name="Sample", exact=True).click()


def samples(page):
    page.locator("#sample .command").wait_for()
    return [pixels_of(canvas) for canvas in page.locator("#sample .samples canvas").all()]


def test_two_pages_at_once_get_their_own_images(new_page):
    first, second = new_page(), new_page()
    for page, seed in ((first, 1), (second, 2)):
        sample(page, seed)
    images = samples(first), samples(second)
    assert images[0] != images[1] and all(len(each) == 4 for each in images)
    for page, expected in ((second, images[0]), (first, images[1])):
        sample(page, 1 if page is second else 2)
        page.wait_for_function("document.querySelector('#sample .command') === null")
        assert samples(page) == expected


def test_a_long_request_shows_progress_lets_others_go_first_and_is_stopped(new_page):
    page, other = new_page(), new_page()
    page.get_by_role("tab", name="Sample").click()
    page.locator("#sample [name=size]").select_option("64x64")
    sample(page, 1, 64)
    page.locator("#sample progress[value]").wait_for()
    brush(other, (0.3, 0.6), (0.7, 0.6))
    complete(other)
    assert page.get_by_role("button", name="Stop").is_visible()
    page.get_by_role("button", name="Stop").click()
    playwright.expect(page.locator("#sample .status")).to_have_text("Stopped.")
    sample(other, 1, 1)  # a long request would wait for another
    assert len(samples(other)) == 1


def test_all_of_it_can_be_done_with_the_keyboard(new_page):
    page = new_page()
    page.keyboard.press("Tab")

    def tab_to(selector):
        for _ in range(60):
            if page.evaluate(f"document.activeElement.matches('{selector}')"):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"{selector} is not reached")

    tab_to("#tab-complete")
    page.keyboard.press("ArrowRight")
    assert page.locator("#score").is_visible()
    page.keyboard.press("ArrowLeft")
    tab_to(".board canvas")
    page.keyboard.press("ArrowDown")
    page.keyboard.down(" ")
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    page.keyboard.up(" ")
    page.keyboard.press("ArrowLeft")
    assert page.locator("#complete .where").inner_text().endswith(", hidden")
    tab_to("#complete button[type=submit]")
    page.keyboard.press("Enter")
    page.locator(".completion").first.wait_for()
    assert "likeliest" in page.locator("#complete [role=status]").first.inner_text()


def test_an_order_is_drawn_shown_and_tried(new_page):
    page = new_page()
    page.get_by_role("tab", name="Orders").click()
    page.locator(".masks figure").first.wait_for()
    page.locator("#orders [name=order]").select_option("family hilbert")
    problem = page.locator("#orders .stage .problem")
    playwright.expect(problem).to_contain_text("try gilbert2d")
    assert page.locator(".masks figure").count() == 0
    page.locator("#orders [name=order]").select_option("own")
    brush(page, (0.5, 0.1), (0.5, 0.9))
    page.get_by_role("button", name="Use this order").click()
    page.locator(".masks figure").first.wait_for()
    assert page.locator(".masks figure").count() == 3
    brush(page, (0.51, 0.05))  # the pixel above the line is not among the first
    assert "number" in page.locator("#orders .where").inner_text()
    page.get_by_role("button", name="Score in this order").click()
    page.locator(".outcome table").wait_for()
    assert page.locator(".outcome tbody tr").count() == 10
    page.get_by_role("button", name="Sample in this order").click()
    page.locator(".outcome .player").wait_for()


@pytest.mark.parametrize(("width", "color_scheme"), [(380, "dark"), (1600, "light")])
def test_nothing_is_wider_than_the_screen_and_everything_has_a_name(new_page, width, color_scheme):
    page = new_page(width, color_scheme=color_scheme)
    brush(page, (0.2, 0.7), (0.8, 0.7))
    complete(page)
    sample(page, 1)
    samples(page)
    page.get_by_role("tab", name="Score").click()
    page.get_by_role("button", name="Score", exact=True).click()
    page.locator("#score table").wait_for()
    for tab in TABS:
        page.locator(f"#tab-{tab}").click()
        assert page.evaluate("document.documentElement.scrollWidth") == width, tab
    page.evaluate("document.querySelectorAll('[hidden]').forEach(each => each.hidden = false)")
    nameless = page.evaluate(
        """[...document.querySelectorAll('button, input:not([type=file]), select, canvas')].filter(
            each => !each.getAttribute('aria-label') && !each.labels?.length
                && !each.textContent.trim() && !each.querySelector('canvas[aria-label]')
        ).map(each => each.outerHTML)"""
    )
    assert nameless == []


def test_every_model_can_be_chosen_and_is_described(new_page):
    page = new_page()
    page.get_by_role("tab", name="Model").click()
    for name in ("grey_mnist", "photographs"):
        page.locator("#model").select_option(label=name)
        playwright.expect(page.locator("#about dl")).to_contain_text(f"{name}.pth")
        playwright.expect(page.locator("#about .card")).to_contain_text("Data and licence")


def test_the_pictures_of_the_documentation_can_be_drawn(tmp_path):
    tool = [sys.executable, ROOT / "tools" / "page_pictures.py", tmp_path]
    subprocess.run(tool, check=True, stdout=subprocess.DEVNULL)
    drawn = {path.name: Image.open(path).width for path in tmp_path.iterdir()}
    shown = [path.name for path in (ROOT / "docs" / "web").iterdir()]
    assert sorted(drawn) == sorted(shown)
    assert all(str(width) in name for name, width in drawn.items())
