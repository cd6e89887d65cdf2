"""Pictures hold what they should, pixel by pixel, and are written whole or not at all."""

import math
import subprocess
import sys
import textwrap
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lmconv.data.image_files import read_image, suffix_for
from lmconv.pixel_values import from_levels
from lmconv.plots import (
    completion_tiles,
    near_square_columns,
    plot_masks,
    plot_orders,
    save_animation,
    save_image,
    save_image_grid,
    what_is_shown,
)
from masking import (
    diagonal_idx,
    generation_orders,
    get_unfolded_masks,
    gilbert2d_idx,
    kernel_masks,
    random_idx,
    raster_scan_idx,
    s_curve_idx,
    zipper_idx,
)


def read(path: Path) -> np.ndarray:
    """H x W x 3, uint8."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).copy()


# Single images and animations


@pytest.mark.parametrize("channels", [1, 3])
def test_a_single_image_is_written_exactly(tmp_path, channels):
    levels = torch.arange(256).view(1, 16, 16).expand(channels, 16, 16)
    save_image(2 * levels / 255 - 1, tmp_path / "new" / "image.png")
    with Image.open(tmp_path / "new" / "image.png") as picture:
        assert picture.mode == ("L" if channels == 1 else "RGB")
        got = np.asarray(picture)
    np.testing.assert_array_equal(got.reshape(16, 16, -1)[:, :, 0], levels[0].numpy())


@pytest.mark.parametrize(("channels", "shown"), [(2, [0, 0, 0]), (4, [0, 1, 2]), (8, [0, 1, 2])])
def test_grids_show_the_first_channels(tmp_path, channels, shown):
    levels = torch.randint(0, 65536, (1, channels, 96, 96))
    save_image_grid(from_levels(levels, 65536), tmp_path / "grid.png")
    expected = levels[0, shown].permute(1, 2, 0).numpy() / 257
    assert np.abs(read(tmp_path / "grid.png") - expected).max() <= 0.51
    words = what_is_shown(channels, 65536)
    assert words.startswith("each value rounded to 8 bits and only the first")
    assert (
        words.endswith(f"of {channels}") and what_is_shown(1, 256) is what_is_shown(3, 32) is None
    )


@pytest.mark.parametrize("channels", [1, 4, 5])
def test_a_single_deep_image_is_written_exactly(tmp_path, channels):
    levels = torch.randint(0, 4096, (channels, 4, 5))
    path = tmp_path / f"image{suffix_for(channels)}"
    save_image(from_levels(levels, 4096), path, 4096)
    found = np.load(path) if channels > 4 else read_image(path, channels, np.uint16)
    assert found.dtype == np.uint16 and np.array_equal(found >> 4, levels)


def test_an_animation_shows_hidden_pixels_in_their_order_and_visible_ones_from_the_start(tmp_path):
    images = torch.ones(2, 1, 4, 4)
    hidden = torch.zeros(4, 4, dtype=torch.bool)
    hidden[2:] = True
    order = s_curve_idx(4, 4)
    save_animation(images, hidden, order, tmp_path / "new.gif", nrow=2, padding=0, num_frames=100)
    with Image.open(tmp_path / "new.gif") as animation:
        assert animation.n_frames == 1 + 8
        scale = animation.width // 8
        assert animation.size == (8 * scale, 4 * scale) and animation.height >= 96
        for frame in range(animation.n_frames):
            animation.seek(frame)
            small = animation.convert("L").resize((8, 4), Image.Resampling.NEAREST)
            known = np.asarray(small) > 200
            expected = ~hidden.numpy()
            for row, col in order[8 : 8 + frame]:
                expected[row, col] = True
            np.testing.assert_array_equal(known, np.tile(expected, (1, 2)))


# Grids of images


def grid_of_constants(values: list[float], channels: int = 1) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, channels, 2, 3)


def test_a_grid_places_images_row_by_row_between_black_lines(tmp_path):
    scale = save_image_grid(
        grid_of_constants([-1, 0, 1, 1, 1]), tmp_path / "grid.png", nrow=3, padding=2
    )
    grid = read(tmp_path / "grid.png")
    height, width = 2 * scale, 3 * scale
    assert height >= 96 and grid.shape == (2 + 2 * (height + 2), 2 + 3 * (width + 2), 3)
    expected = np.zeros(grid.shape[:2])
    for index, grey in enumerate([0, 128, 255, 255, 255]):
        top, left = 2 + (height + 2) * (index // 3), 2 + (width + 2) * (index % 3)
        expected[top : top + height, left : left + width] = grey
    np.testing.assert_array_equal(grid, np.repeat(expected[:, :, None], 3, axis=2))


def test_every_grey_level_is_written_exactly(tmp_path):
    levels = torch.arange(256).view(1, 1, 16, 16)
    images = (2 * levels / 255 - 1).expand(2, 1, 16, 16)
    scale = save_image_grid(images, tmp_path / "grid.png", nrow=2, padding=0)
    grid = read(tmp_path / "grid.png")[:, :, 0]
    expected = np.tile(levels[0, 0].numpy(), (1, 2))
    np.testing.assert_array_equal(grid, np.kron(expected, np.ones((scale, scale))))


@given(st.integers(1, 3000), st.sampled_from([1, 4]))
def test_grids_are_nearly_square_and_leave_no_image_alone_in_a_row(number, images_wide):
    columns = near_square_columns(number, images_wide)
    rows = -(-number // columns)
    assert columns == 1 or number % columns != 1
    assert rows <= columns * images_wide or columns == number
    # Four numbers of columns in succession cannot all leave one image alone.
    less = max(1, columns - 4)
    assert columns <= 4 or less * images_wide < -(-number // less)


def test_large_images_and_large_grids_are_not_enlarged(tmp_path):
    path = tmp_path / "grid.png"
    assert save_image_grid(torch.zeros(2, 1, 96, 200), path) == 1
    assert save_image_grid(torch.zeros(300, 1, 48, 400), path) == 1
    assert save_image_grid(torch.zeros(900, 1, 28, 28), path) == 4
    assert save_image_grid(torch.zeros(2500, 1, 28, 28), path, nrow=50) == 2


def test_colours_stay_in_their_channels_and_in_range(tmp_path):
    images = torch.tensor([[1.0, -1.0, 0.2], [9.0, -9.0, -1.0]]).view(2, 3, 1, 1)
    save_image_grid(images.expand(2, 3, 100, 100), tmp_path / "grid.png", nrow=1, padding=1)
    grid = read(tmp_path / "grid.png")
    assert grid.shape == (203, 102, 3)
    assert grid[1, 1].tolist() == [255, 0, 153]
    assert grid[102, 1].tolist() == [255, 0, 0]


def test_half_precision_images_are_written(tmp_path):
    images = grid_of_constants([1, -1]).to(torch.bfloat16)
    scale = save_image_grid(images, tmp_path / "grid.png", padding=0)
    grid = read(tmp_path / "grid.png")[::scale, ::scale, 0]
    assert grid.tolist() == [[255] * 3 + [0] * 3] * 2


@pytest.mark.parametrize("channels", [1, 3])
def test_a_single_image_gets_no_frame_in_a_grid(channels, tmp_path):
    levels = torch.arange(256).view(1, 1, 16, 16).expand(1, channels, 16, 16)
    scale = save_image_grid(2 * levels / 255 - 1, tmp_path / "grid.png", padding=2)
    expected = np.kron(levels[0, 0].numpy(), np.ones((scale, scale)))[:, :, None]
    expected = np.broadcast_to(expected, (16 * scale, 16 * scale, 3))
    np.testing.assert_array_equal(read(tmp_path / "grid.png"), expected)


# Completions


def test_four_tiles_per_image_in_order_with_their_values():
    hidden = torch.tensor([[True, False], [False, False]])
    originals = torch.tensor([[[[1.0, -1.0], [0.5, 0.0]]], [[[-1.0, 1.0], [1.0, 1.0]]]])
    completions = originals.clone()
    completions[:, 0, 0, 0] = torch.tensor([-1.0, -0.5])
    tiles = completion_tiles(hidden, originals, completions)
    assert tiles.shape == (8, 1, 2, 2)
    assert tiles[0, 0].tolist() == [[0.0, -1.0], [0.5, 0.0]]
    assert torch.equal(tiles[1], completions[0])
    assert torch.equal(tiles[2], originals[0])
    assert tiles[3, 0].tolist() == [[1.0, -1.0], [-1.0, -1.0]]  # white minus black is white
    assert tiles[4, 0].tolist() == [[0.0, 1.0], [1.0, 1.0]]
    assert torch.equal(tiles[5], completions[1])
    assert torch.equal(tiles[6], originals[1])
    assert tiles[7, 0].tolist() == [[-0.5, -1.0], [-1.0, -1.0]]


def test_tiles_stay_in_range_and_leave_their_inputs_alone():
    originals, completions = torch.rand(2, 5, 3, 4, 6) * 2 - 1
    before = originals.clone(), completions.clone()
    hidden = torch.rand(4, 6) < 0.5
    tiles = completion_tiles(hidden, originals, completions)
    assert tiles.shape == (20, 3, 4, 6)
    assert tiles.abs().max() <= 1
    assert (tiles[0::4][:, :, hidden] == 0).all()
    assert torch.equal(tiles[0::4][:, :, ~hidden], originals[:, :, ~hidden])
    assert torch.equal(originals, before[0])
    assert torch.equal(completions, before[1])


# Orders


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 8, 16])
def test_any_number_of_orders_gets_one_panel_each(number, tmp_path):
    families = ["s_curve", "gilbert2d"]
    orders = generation_orders(families, (1, 4, 4), all_variants=True)[:number]
    plot_orders(orders, (1, 4, 4), tmp_path / "orders.png")
    picture = read(tmp_path / "orders.png").astype(int)
    columns, rows = min(4, number), math.ceil(number / 4)
    assert picture.shape[0] % rows == picture.shape[1] % columns == 0
    panels = [
        panel
        for strip in np.array_split(picture, rows)
        for panel in np.array_split(strip, columns, axis=1)
    ]
    # A panel is filled with colours; the places left over stay white.
    filled = [((panel.max(axis=2) - panel.min(axis=2)) > 30).mean() > 0.3 for panel in panels]
    assert filled == [index < number for index in range(len(panels))]


def cut_out(picture: np.ndarray) -> np.ndarray:
    """The only panel, without its title and margin."""
    coloured = (picture.max(axis=2).astype(int) - picture.min(axis=2)) > 30
    down, across = np.flatnonzero(coloured.any(axis=1)), np.flatnonzero(coloured.any(axis=0))
    return picture[down[0] : down[-1] + 1, across[0] : across[-1] + 1]


def colours(picture: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """The colour of each pixel's cell, read off its corner where no path runs."""
    panel = cut_out(picture)
    y = len(panel) * (np.arange(rows) + 0.15) / rows
    x = panel.shape[1] * (np.arange(cols) + 0.15) / cols
    return panel[y.astype(int)][:, x.astype(int)]


def viridis(number: int) -> np.ndarray:
    """``number x 3``, from 0 to 255: matplotlib has 256 colours, and others between are linear."""
    table = matplotlib.colormaps["viridis"](np.arange(256))[:, :3] * 255
    places = np.linspace(0, 255, number)
    return np.stack([np.interp(places, np.arange(256), levels) for levels in table.T], axis=1)


@pytest.mark.parametrize(("rows", "cols"), [(4, 4), (3, 6), (5, 2), (28, 28)])
def test_pixels_are_coloured_by_their_time_in_the_order(rows, cols, tmp_path):
    order = gilbert2d_idx(rows, cols)
    plot_orders([order], (1, rows, cols), tmp_path / "order.png")
    shown = colours(read(tmp_path / "order.png"), rows, cols)
    scale = viridis(rows * cols)
    in_time = shown[order[:, 0], order[:, 1]]
    np.testing.assert_allclose(in_time, scale, rtol=0, atol=3)
    brightness = in_time @ [0.299, 0.587, 0.114]
    assert (np.diff(brightness) > -1).all()  # which is as much as rounding can take


@pytest.mark.parametrize(
    "order",
    [gilbert2d_idx(6, 5), diagonal_idx(6, 5), zipper_idx(6, 5), random_idx(6, 5, seed=1)],
    ids=["gilbert2d", "diagonal", "zipper", "random"],
)
def test_lines_join_successive_pixels_that_touch_and_no_others(order, tmp_path):
    plot_orders([order], (1, 6, 5), tmp_path / "order.png")
    panel = cut_out(read(tmp_path / "order.png"))
    pixels = [tuple(pixel) for pixel in order.tolist()]
    for time, (row, col) in enumerate(pixels):
        successive = {pixels[other] for other in (time - 1, time + 1) if 0 <= other < len(pixels)}
        for down, across in [(0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)]:
            # A third of the way, where no other line passes.
            y = (row + 0.5 + 0.3 * down) * len(panel) / 6
            x = (col + 0.5 + 0.3 * across) * panel.shape[1] / 5
            is_white = panel[int(y), int(x)].min() > 200
            assert is_white == ((row + down, col + across) in successive)


@pytest.mark.parametrize("first", [(0, 0), (3, 2), (5, 4)])
def test_a_red_dot_lies_in_the_middle_of_the_first_pixel(first, tmp_path):
    order = gilbert2d_idx(6, 5)
    order = np.roll(order, -order.tolist().index(list(first)), axis=0)
    plot_orders([order], (1, 6, 5), tmp_path / "order.png")
    panel = cut_out(read(tmp_path / "order.png")).astype(int)
    red = np.argwhere((panel[:, :, 0] > 150) & (panel[:, :, 1:].max(axis=2) < 100))
    middle = (np.array(first) + 0.5) * len(panel) / 6
    np.testing.assert_allclose(red.mean(axis=0) + 0.5, middle, atol=0.01)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 9), (3, 40, 2), (3, 64, 64)])
def test_orders_of_extreme_sizes_are_drawn(shape, tmp_path):
    order = raster_scan_idx(*shape[1:])
    plot_orders([order, order[::-1]], shape, tmp_path / "orders.png")
    assert read(tmp_path / "orders.png").std() > 0


@pytest.mark.parametrize("shape", [(1, 500, 400), (1, 1, 1000), (1, 700, 2)])
def test_a_pixel_of_a_large_image_has_a_dot_of_its_own(shape, tmp_path):
    _, rows, cols = shape
    order = raster_scan_idx(rows, cols)
    plot_orders([order], shape, tmp_path / "order.png")
    panel = cut_out(read(tmp_path / "order.png"))
    assert panel.shape == (rows, cols, 3)
    scale = viridis(rows * cols)
    far = np.abs(order).max(axis=1) > 10  # from the red dot
    np.testing.assert_allclose(panel.reshape(-1, 3)[far], scale[far], rtol=0, atol=3)


def test_no_orders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no orders to draw"):
        plot_orders([], (1, 4, 4), tmp_path / "orders.png")
    assert list(tmp_path.iterdir()) == []


# Masks


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize(("rows", "cols"), [(4, 4), (3, 5), (1, 1)])
def test_each_mask_is_drawn_tap_by_tap_at_its_pixel(k, rows, cols, tmp_path):
    order = s_curve_idx(rows, cols)
    plot_masks(get_unfolded_masks(order, rows, cols, k), (1, rows, cols), tmp_path / "m.png")
    picture = read(tmp_path / "m.png")[:, :, 0]
    tall, wide = rows * (k + 1) + 1, cols * (k + 1) + 1
    scale = 800 // max(tall, wide)
    assert picture.shape == (tall * scale, wide * scale)
    taps = picture[scale // 2 :: scale, scale // 2 :: scale]
    masks = kernel_masks(order, rows, cols, k).numpy()
    expected = np.full((tall, wide), 128)
    for n, mask in enumerate(masks):
        top, left = 1 + (k + 1) * (n // cols), 1 + (k + 1) * (n % cols)
        expected[top : top + k, left : left + k] = 255 * mask
    np.testing.assert_allclose(taps, expected, atol=1)
    # Every dot of a tap has its value: nothing was resampled.
    np.testing.assert_array_equal(np.kron(taps, np.ones((scale, scale), dtype=int)), picture)


def test_both_layouts_of_masks_give_the_same_picture(tmp_path):
    order = gilbert2d_idx(3, 3)  # 9 pixels and 9 taps, so that shapes alone could mislead
    plot_masks(get_unfolded_masks(order, 3, 3), (1, 3, 3), tmp_path / "unfolded.png")
    plot_masks(kernel_masks(order, 3, 3), (1, 3, 3), tmp_path / "kernels.png")
    np.testing.assert_array_equal(read(tmp_path / "unfolded.png"), read(tmp_path / "kernels.png"))


def test_a_title_stands_above_the_masks_and_changes_nothing_below(tmp_path):
    masks = get_unfolded_masks(s_curve_idx(4, 4), 4, 4)
    plot_masks(masks, (1, 4, 4), tmp_path / "bare.png")
    plot_masks(masks, (1, 4, 4), tmp_path / "titled.png", "init, order 0")
    bare, titled = read(tmp_path / "bare.png"), read(tmp_path / "titled.png")
    above = len(titled) - len(bare)
    assert above > 0
    np.testing.assert_array_equal(titled[above:], bare)
    assert titled[:above].min() < 100 < titled[:above].max()


def test_large_masks_keep_a_dot_for_every_tap(tmp_path):
    masks = torch.rand(1, 9, 210 * 3).round()
    plot_masks(masks, (1, 210, 3), tmp_path / "masks.png")
    picture = read(tmp_path / "masks.png")
    assert picture.shape == (210 * 4 + 1, 3 * 4 + 1, 3)
    np.testing.assert_array_equal(picture[1:4, 1:4, 0].ravel() / 255, masks[0, :, 0].numpy())


def test_the_suffix_gives_the_format(tmp_path):
    masks = get_unfolded_masks(s_curve_idx(4, 4), 4, 4)
    plot_masks(masks, (1, 4, 4), tmp_path / "masks.pdf", "init")
    plot_orders([s_curve_idx(4, 4)], (1, 4, 4), tmp_path / "orders.pdf")
    for name in ("masks.pdf", "orders.pdf"):
        assert (tmp_path / name).read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("suffix", [".PNG", ".tif"])
def test_orders_look_the_same_in_other_formats(suffix, tmp_path):
    for name in ("orders.png", f"other{suffix}"):
        plot_orders([gilbert2d_idx(5, 7)] * 5, (1, 5, 7), tmp_path / name)
    other = read(tmp_path / f"other{suffix}")
    np.testing.assert_array_equal(other, read(tmp_path / "orders.png"))


def test_orders_are_drawn_as_svg(tmp_path):
    plot_orders([s_curve_idx(4, 4)], (1, 4, 4), tmp_path / "orders.svg")
    assert "<svg" in (tmp_path / "orders.svg").read_text()


@pytest.mark.parametrize("name", ["orders.nonsense", "orders"])
def test_unknown_formats_are_refused_by_name(name, tmp_path):
    with pytest.raises(ValueError, match=f"Format '{Path(name).suffix[1:]}' is not supported"):
        plot_orders([s_curve_idx(4, 4)], (1, 4, 4), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "shape", [(1, 9, 15), (15, 3, 3), (1, 8, 16), (2, 9, 16), (16, 9), (16, 2, 2, 4)]
)
def test_masks_of_another_image_are_refused(shape, tmp_path):
    with pytest.raises(ValueError, match=r"masks of a 4x4 image must be 1 x k\*k x 16"):
        plot_masks(torch.zeros(shape), (1, 4, 4), tmp_path / "masks.png")
    assert list(tmp_path.iterdir()) == []


# Modules


def test_orders_and_images_are_written_without_slow_imports(tmp_path):
    code = """
        import sys
        from pathlib import Path
        import torch
        from lmconv.plots import plot_orders, save_animation, save_image, save_image_grid
        from masking import s_curve_idx

        folder, order = Path(sys.argv[1]), s_curve_idx(4, 4)
        plot_orders([order], (1, 4, 4), folder / "orders.png")
        images, hidden = torch.zeros(2, 1, 4, 4), torch.ones(4, 4, dtype=torch.bool)
        save_image(images[0], folder / "image.png")
        save_image_grid(images, folder / "grid.png")
        save_animation(images, hidden, order, folder / "animation.gif")
        print(*{"matplotlib", "torchvision", "torch._dynamo"} & sys.modules.keys())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
    assert len(list(tmp_path.iterdir())) == 4


# Files


WRITERS = {
    "orders": lambda path: plot_orders([s_curve_idx(4, 4)], (1, 4, 4), path),
    "masks": lambda path: plot_masks(kernel_masks(s_curve_idx(4, 4), 4, 4), (1, 4, 4), path),
    "grid": lambda path: save_image_grid(torch.zeros(4, 1, 4, 4), path),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_folders_are_made_and_only_the_picture_is_left(writer, tmp_path):
    path = tmp_path / "new" / "folder" / "picture.png"
    WRITERS[writer](path)
    WRITERS[writer](path)
    assert list(path.parent.iterdir()) == [path]
    assert read(path).size > 0


@pytest.mark.parametrize("writer", WRITERS)
def test_a_failure_leaves_the_old_picture_and_nothing_else(writer, tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    WRITERS[writer](path)
    old = path.read_bytes()

    def half_written(image, file, *args, **kwargs):
        target = Path(file) if isinstance(file, str | Path) else Path(file.name)
        assert target.parent == tmp_path
        assert target != path
        target.write_bytes(b"half a picture")
        raise OSError("no space left on device")

    monkeypatch.setattr(Image.Image, "save", half_written)
    with pytest.raises(OSError, match="no space left"):
        WRITERS[writer](path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]
