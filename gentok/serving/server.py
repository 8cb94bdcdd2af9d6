"""`gentok serve ckpt=PATH`."""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
from typing import Any

from gentok.errors import ConfigError

__all__ = ["main", "run"]


def run(config: dict[str, Any]) -> None:
    """Serves a model until the process is stopped; what is being drawn then is still answered.

    Args:
        config: conf/serve.yaml.

    Raises:
        ValueError, OSError: the model cannot be loaded, or something does not fit it.
        ConfigError: the packages of the extra "serve" are missing.
    """
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise ConfigError(f"serving needs {error.name}: pip install 'gentok[serve]'") from None
    listening = _listening(config["host"], config["port"])
    from gentok.bundle import load
    from gentok.devices import chosen_device
    from gentok.sampling import key_mark, lower_precision, pick_sampler
    from gentok.serving.app import Served, make_app

    trust = tuple(config["trust"])
    bundle = load(config["ckpt"], trust=trust, ema=config["ema"]).to(chosen_device(config["device"]))
    sampler = mark = None
    if bundle.generator is not None:
        lower_precision(bundle.generator, config["dtype"])
        sampler = pick_sampler(config["sampler"], type(bundle.generator), trust)
    if config["watermark"]:
        mark = key_mark(config["watermark"], config["key"], bundle, trust)
        if sampler is not None:
            sampler.check_marks()
    served = Served(
        bundle, sampler, config["guidance"], mark, config["text_encoder"], config["batch_size"], config["max_items"], config["max_waiting"],
        int(config["max_megabytes"] * (1 << 20)), config["max_seconds"],
    )  # fmt: skip
    place = f"http://{config['host']}:{config['port']}"
    print(f"gentok: {bundle}\ngentok: {place} is a page to try it, {place}/docs lists the addresses; Ctrl-C stops", flush=True)
    server = uvicorn.Server(uvicorn.Config(make_app(served), log_level="warning", timeout_graceful_shutdown=60))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with contextlib.suppress(KeyboardInterrupt):  # it raises the signal again when it has stopped
        server.run([listening])


def _listening(host: str, port: int) -> socket.socket:
    """A socket at that address. Raises ConfigError where there can be none."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        said = getattr(error, "strerror", None) or "ports are numbers up to 65535"
        raise ConfigError(f"cannot listen at {host}:{port} ({said}): set another host= or port=") from None


def main() -> None:
    """The command."""
    from gentok.cli import run as run_config

    run_config("serve", run)
