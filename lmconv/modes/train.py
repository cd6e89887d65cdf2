"""``--mode train``: train a model, with tests, samples and checkpoints on the way."""

import logging
import math
from pathlib import Path
from typing import Any

from lmconv.checkpoints import find_checkpoints, has_checkpoints
from lmconv.data.datasets import check_files, load_test, load_train
from lmconv.image_model import ImageModel
from lmconv.modes import UsageError
from lmconv.modes.options import changed_settings
from lmconv.modes.regions import hidden_region
from lmconv.modes.results import name_of_images
from lmconv.modes.run import Run
from lmconv.modes.run_directory import Checkpoint
from lmconv.modes.sample import Sampler
from lmconv.modes.settings import shown
from lmconv.modes.test import report
from lmconv.scoring import score_sizes
from lmconv.training.optimization import OptimizationConfig
from lmconv.training.signals import StopRequest
from lmconv.training.tracking import Tracker
from lmconv.training.trainer import Trainer, TrainingConfig
from utils import ProgressBar, write_json

__all__ = ["check", "run"]

log = logging.getLogger(__name__)

# Settings of what is learnt: going on with other ones has to be asked for.
_OF_THE_DATA = (
    "dataset",
    "data_dir",
    "split_seed",
    "max_train_images",
    "max_test_images",
    "max_celeba_train_batches",
    "max_celeba_test_batches",
    "celeba_size",
    "image_size",
    "crop",
    "max_reduction",
    "random_crop",
    "flip",
    "permute_channels",
    "channels",
    "resize_sizes",
    "resize_probs",
    "order_file",
    "order",
    "order_seed",
    "order_variants",
    "randomize_order",
    "base_order_transpose",
    "base_order_reflect_rows",
    "base_order_reflect_cols",
    "train_masks",
    "train_holes",
    "batch_size",
    "accum_freq",
    "seed",
)
# Settings of how it is learnt: they may change, and the checkpoint from before is kept.
_OF_THE_STEPS = (
    "optimizer",
    "lr",
    "lr_decay",
    "lr_schedule",
    "warmup_steps",
    "weight_decay",
    "clip",
    "ema",
    "minimize_bpd",
    "dropout_prob",
)


def check(run: Run) -> None:
    """Raise UserError if images are missing, or if what the directory has would be lost or mixed.

    A run goes on in its own directory, from its newest checkpoint, and with its own data, unless
    ``--change_settings`` asks for others.
    """
    for shape in run.image_shapes:
        hidden_region(run.args, shape)
    if run.checkpoint is not None:
        _check_optimizer(run, run.checkpoint)
    if run.checkpoint is not None and _is_own(run, run.checkpoint):
        _check_newest(run, run.checkpoint)
        _check_settings(run, run.checkpoint)
    elif has_checkpoints(run.run_dir):
        raise UsageError(
            f"{run.run_dir} already has checkpoints: use --load_last_params to go on from them, or "
            "--run_dir or --exp_name to start another run"
        )
    for part in ("train", "test"):
        check_files(run.labelled_data, part)


def _is_own(run: Run, checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint is in the run directory, so that its run goes on."""
    return checkpoint.path.resolve().parent == run.run_dir.resolve()


def _check_newest(run: Run, checkpoint: Checkpoint) -> None:
    """Raise UsageError if there are checkpoints that going on from an earlier one would replace."""
    own = checkpoint.path.resolve()
    found = find_checkpoints(run.run_dir, run.args.exp_id)
    found = [(epoch, path) for epoch, path in found if path.resolve() != own]
    position = checkpoint.epoch + (checkpoint.contents.get("batches_done", 0) > 0)
    if found and found[-1][0] > position:
        raise UsageError(
            f"going on from {checkpoint.path} would replace {found[-1][1]}, a later checkpoint: "
            "use --load_last_params, or give another --run_dir"
        )


def _check_optimizer(run: Run, checkpoint: Checkpoint) -> None:
    """Raise UsageError if the checkpoint has the state of another optimizer."""
    args, contents = run.args, checkpoint.contents
    stored = (contents.get("args") or {}).get("optimizer") or "adam"
    is_loaded = "optimizer_state_dict" in contents and not args.do_not_load_optimizer
    if is_loaded and args.optimizer != stored:
        raise UsageError(
            f"--optimizer {args.optimizer} differs from {checkpoint.path}, which has {stored}: "
            "leave it as it was, or add --do_not_load_optimizer to start with a fresh one"
        )


def _check_settings(run: Run, checkpoint: Checkpoint) -> None:
    """Raise UsageError if the data or the batches are not those of the checkpoint's run."""
    changes = _changes(run, checkpoint)
    asked = [name for name in _OF_THE_DATA if name in changes]
    if asked and not run.args.change_settings:
        old, new = (shown(asked[0], value) for value in changes[asked[0]])
        raise UsageError(
            f"--{asked[0]} {new} differs from {checkpoint.path}, which has {old}: leave it as it "
            "was, or add --change_settings to go on with it"
        )


def _changes(run: Run, checkpoint: Checkpoint) -> dict[str, tuple[Any, Any]]:
    """The settings that differ from those of a checkpoint: by flag, the old and the new value.

    The batch size is that of all processes together.
    """
    args, contents = run.args, checkpoint.contents
    stored = contents.get("args")
    stored = stored if isinstance(stored, dict) else {}
    changes = changed_settings(args, stored, str(checkpoint.path))
    if "data_dir" in changes and Path(changes["data_dir"][0]) == Path(args.data_dir):
        del changes["data_dir"]
    own = run.model.description.orders.own
    if checkpoint.description is not None and checkpoint.description.orders.own != own:
        changes["order_file"] = ("other orders", args.order_file)
    changes.pop("batch_size", None)
    number = run.processes.number
    before, now = contents.get("global_batch_size"), args.batch_size * number
    if before not in (None, now):
        processes = f" in {number} processes, which makes {now} images" if number > 1 else ""
        changes["batch_size"] = (f"{before} images", f"{args.batch_size}{processes}")
    return changes


def run(run: Run) -> None:
    """Train until ``--max_epochs``; see ``Trainer``.

    Raises:
        UserError: losses or gradients are no longer finite, or the checkpoint to go on from does
            not fit.
        Stopped: a signal has stopped the run, which is saved.
    """
    args = run.args
    with run.processes.together():  # if one cannot read its share of the files, all end
        tests, data = _Tests(run), load_train(run.labelled_data, run.processes)
    trainer = Trainer(
        run.model,
        data,
        _config(run),
        run.run_dir,
        processes=run.processes,
        settings=vars(args),
        test=tests.scores,
        draw=tests.samples,
    )
    if run.checkpoint is not None:
        _go_on(run, run.checkpoint, trainer)
    if run.processes.is_main:
        write_json(run.run_dir / "args.json", vars(args))
    with (
        Tracker(
            run.run_dir,
            vars(args),
            use_wandb=not args.disable_wandb,
            is_on=run.processes.is_main,
            step=trainer.optimization.global_step,
            kept_size=trainer.metrics_size,
        ) as tracker,
        StopRequest() as stop,
    ):
        for shape in run.image_shapes:
            path = run.orders_path(shape)
            tracker.image(trainer.optimization.global_step, path.stem, path)
        trainer.run(tracker, stop)


def _go_on(run: Run, checkpoint: Checkpoint, trainer: Trainer) -> None:
    """Let a trainer go on from a checkpoint, and keep what other settings might make worse."""
    args = run.args
    changes = _changes(run, checkpoint) if _is_own(run, checkpoint) else {}
    changes_data = any(name in changes for name in _OF_THE_DATA)
    changes_steps = any(name in changes for name in _OF_THE_STEPS) or args.do_not_load_optimizer
    trainer.resume(
        checkpoint.path,
        checkpoint.contents,
        with_optimizer=not args.do_not_load_optimizer,
        keeps_metrics=args.load_last_params,
        keeps_checkpoint=changes_data or changes_steps,
    )
    number, before = run.processes.number, len(checkpoint.contents.get("random_states", []))
    are_dealt = args.crop is not None or args.dataset == "parquet"
    if are_dealt and before not in (0, number) and trainer.progress.batches_done:
        log.warning(
            "the epoch was begun with %d processes, not %d, and each reads images of its own: some "
            "images of this epoch come twice, and others not at all",
            *(before, number),
        )
    if changes:
        texts = (
            f"--{name} {shown(name, new)} (was {shown(name, old)})"
            for name, (old, new) in changes.items()
        )
        log.warning("going on with other settings: %s", ", ".join(texts))
    best = run.run_dir / "best.pth"
    if changes_data and best.is_file():
        trainer.progress.best_bpd = math.inf  # results on other data do not compare
        kept = best.with_name(f"best_until_epoch{max(checkpoint.epoch, 0)}.pth")
        if run.processes.is_main:
            best.replace(kept)
            log.info("%s is now %s: the next test starts a new one", best, kept)


class _Tests:
    """What happens at the end of epochs: scores of the test set, and pictures of samples."""

    def __init__(self, run: Run) -> None:
        self._run, self._data = run, load_test(run.labelled_data, processes=run.processes)

    def scores(self, model: ImageModel) -> list[dict[str, Any]]:
        """Score the test set at each image size, and print the results."""
        run, results = self._run, []
        indices = run.order_indices("test_masks")
        for result in score_sizes(
            model, self._data, run.image_shapes, indices, processes=run.processes
        ):
            report(result)
            results.append(result)
        return results

    def samples(self, model: ImageModel, epoch: int) -> list[Path]:
        """Draw a grid at each image size, and return the paths of the pictures."""
        run, paths = self._run, []
        number = run.args.sample_batch_size
        for shape in run.image_shapes:
            sampler = Sampler(run, model, shape, epoch)
            path = run.run_dir / f"training_{name_of_images(run, epoch, shape)}.png"
            with ProgressBar("sampling", number, int(sampler.hidden.sum())) as bar:
                for originals, images in sampler.batches(number, bar):  # one; none without images
                    sampler.grid(originals, images, path, first=0)
                    paths.append(path)
            if path in paths:
                log.info("samples in %s", path)
        return paths


def _config(run: Run) -> TrainingConfig:
    args = run.args
    return TrainingConfig(
        max_epochs=args.max_epochs,
        optimization=OptimizationConfig(
            optimizer=args.optimizer,
            lr=args.lr,
            lr_decay=args.lr_decay,
            lr_schedule=args.lr_schedule,
            warmup_steps=args.warmup_steps,
            weight_decay=args.weight_decay,
            clip=args.clip,
            ema=args.ema,
            minimize_bpd=args.minimize_bpd,
            compile=args.compile,
        ),
        accum_freq=args.accum_freq,
        nonfinite=args.nonfinite,
        seed=args.seed,
        train_orders=tuple(run.order_indices("train_masks")),
        train_holes=args.train_holes,
        print_every=args.print_every,
        save_interval=args.save_interval,
        save_minutes=args.save_minutes,
        test_interval=args.test_interval,
        sample_interval=args.sample_interval,
        exp_id=args.exp_id,
    )
