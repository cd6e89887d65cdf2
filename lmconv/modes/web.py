"""``--mode web``: a page in the browser on which one can use models."""

import argparse
import ipaddress
import logging
import os
import sys
import webbrowser
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from lmconv.modes.run_directory import checkpoint_file
from lmconv.web.examples import Examples
from lmconv.web.models import ModelFile, Models, find_models
from lmconv.web.tasks import Tasks
from utils import UserError

__all__ = ["check", "run"]

log = logging.getLogger(__name__)


def check(given: argparse.Namespace) -> None:
    """Raise UserError if a package is missing, or if there is no model to show."""
    import_module("lmconv.web.server")
    if not _models(given):
        raise UserError(
            "there is no model in pretrained/ or runs/: give one with --load_params FILE"
        )


def run(given: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C, and open it in the browser if there is one."""
    from lmconv.web.server import WebConfig, serve

    config = WebConfig(
        given.host or WebConfig.host,
        WebConfig.port if given.port is None else given.port,
        given.threads or WebConfig.num_threads,
    )
    examples = Examples(Path(given.data_dir or "data"))
    with suppress(KeyboardInterrupt):  # which is how the page is meant to end
        serve(
            config,
            Tasks(Models(_models(given)), examples),
            lambda address: _announce(address, config.host, not given.no_browser),
        )


def _models(given: argparse.Namespace) -> list[ModelFile]:
    is_chosen = given.load_params or given.load_last_params or given.run_dir
    return find_models([checkpoint_file(given)] if is_chosen else [])


def _announce(address: str, host: str, opens: bool) -> None:
    log.info("the page is at %s (Ctrl-C ends it)", address)
    if not _is_loopback(host):
        log.warning("--host %s lets everyone use the models who can reach this machine", host)
    has_screen = sys.platform in ("darwin", "win32") or "DISPLAY" in os.environ
    if opens and (has_screen or "WAYLAND_DISPLAY" in os.environ):
        webbrowser.open(address)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
