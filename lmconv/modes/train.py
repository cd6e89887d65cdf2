"""``--mode train``: train a model, with tests, samples and checkpoints on the way."""

import logging
from pathlib import Path
from typing import Any

from lmconv.checkpoints import find_checkpoints
from lmconv.data.datasets import check_files, load_test, load_train
from lmconv.image_model import ImageModel
from lmconv.modes import UsageError
from lmconv.modes.regions import hidden_region
from lmconv.modes.results import name_of_images
from lmconv.modes.run import Run
from lmconv.modes.sample import Sampler
from lmconv.modes.test import report
from lmconv.scoring import score_data_set
from lmconv.training.optimization import OptimizationConfig
from lmconv.training.signals import StopRequest
from lmconv.training.tracking import Tracker
from lmconv.training.trainer import Trainer, TrainingConfig
from utils import ProgressBar, write_json

__all__ = ["check", "run"]

log = logging.getLogger(__name__)


def check(run: Run) -> None:
    """Raise UserError if images are missing, or if the directory contains another run."""
    for shape in run.image_shapes:
        hidden_region(run.args, shape)
    for part in ("train", "test"):
        check_files(run.data, part)
    if run.checkpoint is None and find_checkpoints(run.run_dir, run.args.exp_id):
        raise UsageError(
            f"{run.run_dir} already has checkpoints: use --load_last_params to go on from them, or "
            "--run_dir or --exp_name to start another run"
        )


def run(run: Run) -> None:
    """Train until ``--max_epochs``; see ``Trainer``.

    Raises:
        UserError: losses or gradients are no longer finite, or the checkpoint to go on from does
            not fit.
        Stopped: a signal has stopped the run, which is saved.
    """
    args = run.args
    tests = _Tests(run)
    trainer = Trainer(
        run.model,
        load_train(run.data, run.processes),
        _config(run),
        run.run_dir,
        processes=run.processes,
        settings=vars(args),
        test=tests.scores,
        draw=tests.samples,
    )
    if run.checkpoint is not None:
        trainer.resume(
            run.checkpoint.path,
            run.checkpoint.contents,
            with_optimizer=not args.do_not_load_optimizer,
            keeps_metrics=args.load_last_params,
        )
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


class _Tests:
    """What happens at the end of epochs: scores of the test set, and pictures of samples."""

    def __init__(self, run: Run) -> None:
        self._run, self._data = run, load_test(run.data)

    def scores(self, model: ImageModel) -> list[dict[str, Any]]:
        """Score the test set at each image size, and print the results."""
        run, results = self._run, []
        indices = run.order_indices("test_masks")
        for shape in run.image_shapes:
            result = score_data_set(model, self._data, shape, indices, processes=run.processes)
            report(result)
            results.append(result)
        return results

    def samples(self, model: ImageModel, epoch: int) -> list[Path]:
        """Draw a grid at each image size, and return the paths of the pictures."""
        run, paths = self._run, []
        number = run.args.sample_batch_size
        for shape in run.image_shapes:
            sampler = Sampler(run, model, shape, epoch)
            paths.append(run.run_dir / f"training_{name_of_images(run, epoch, shape)}.png")
            with ProgressBar("sampling", number, int(sampler.hidden.sum())) as bar:
                for originals, images in sampler.batches(number, bar):
                    sampler.grid(originals, images, paths[-1], first=0)
            log.info("samples in %s", paths[-1])
        return paths


def _config(run: Run) -> TrainingConfig:
    args = run.args
    return TrainingConfig(
        max_epochs=args.max_epochs,
        optimization=OptimizationConfig(
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
        print_every=args.print_every,
        save_interval=args.save_interval,
        save_minutes=args.save_minutes,
        test_interval=args.test_interval,
        sample_interval=args.sample_interval,
        exp_id=args.exp_id,
    )
