"""``--mode test``: exact likelihoods of the test set, of whole images or a region."""

import logging
from typing import Any

from torch import Tensor

from lmconv.file_names import printable
from lmconv.modes.regions import box_pixels, scored_box
from lmconv.modes.results import ResultFiles
from lmconv.modes.run import Run
from lmconv.pixel_values import ImageShape
from lmconv.scoring import score_sizes

__all__ = ["check", "report", "run"]

log = logging.getLogger(__name__)


def check(run: Run) -> None:
    """Raise UserError if the region is not inside an image, or if there are no test images."""
    for shape in run.image_shapes:
        scored_box(run.args, shape)
    run.check_images()


def run(run: Run) -> None:
    """Score the test set with a checkpoint, and print and write the results.

    If the model knows classes and the images have labels, they are scored without and with them.
    Writes ``test.json``, or ``test_{minh}-{maxh}_{minw}-{maxw}.json`` for a region: one object, or
    a list with one for each image size if there are several, and in the case of buckets with one
    for all images. The names for another ``--part`` end with it. If a file of this name has results
    of other settings, the name gets a number.
    """
    data, indices = run.open_labelled(), run.order_indices("test_masks")
    results: list[dict[str, Any]] = []

    def pixels(shape: ImageShape) -> Tensor:
        return box_pixels(scored_box(run.args, shape), shape)

    for scores in score_sizes(run.model, data, run.image_shapes, indices, pixels, run.processes):
        result = {"dataset": run.args.dataset, "part": run.part}
        result["image_shape"] = shape = scores.pop("image_shape")
        if shape is not None:
            box = scored_box(run.args, shape)
            result |= {"region": list(box), "num_pixels": int(box_pixels(box, shape).sum())}
        result |= scores
        report(result)
        results.append(result)
    name = "test"
    if run.args.test_region == "custom":
        name = "test_{}-{}_{}-{}".format(*scored_box(run.args, run.image_shapes[0]))
    if run.part != "test":
        name += f"_{run.part}"
    log.info("results in %s", printable(ResultFiles(run, name).write(results)))


def report(result: dict[str, Any]) -> None:
    """Print a result of ``score_sizes`` as lines for people to read."""
    if result["image_shape"] is None:
        log.info("test of all %d images", result["num_images"])
    else:
        channels, height, width = result["image_shape"]
        first_row, end_row, first_col, end_col = result.get("region", (0, height, 0, width))
        log.info(
            "test of %d images %dx%dx%d, region %d:%d_%d:%d",
            *(result["num_images"], channels, height, width),
            *(first_row, end_row, first_col, end_col),
        )
    _report_orders(result)
    if "with_label" in result:
        log.info("  given the class of each image:")
        _report_orders(result["with_label"])


def _report_orders(result: dict[str, Any]) -> None:
    lines = [(f"order {order['index']}", order) for order in result["orders"]]
    if len(lines) > 1:
        lines.append((f"ensemble of {len(lines)} orders", result["ensemble"]))
    for name, values in lines:
        stderr = values["nats_stderr"]
        log.info(
            "  %-22s %.4f bpd = %.3f nats%s",
            f"{name}:",
            values["bpd"],
            values["nats"],
            "" if stderr is None else f" (standard error {stderr:.3f})",
        )
