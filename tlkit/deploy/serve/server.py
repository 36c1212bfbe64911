"""`tlkit serve ARTIFACT`: answers over HTTP, without torch."""

import ipaddress
import os
import signal
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tlkit.deploy.export.artifact import artifact_in, is_artifact, refuse_pickle
from tlkit.deploy.predict.predictor import open_predictor
from tlkit.deploy.serve.limits import Limits
from tlkit.errors import ArtifactError, MissingExtraError, TlkitError
from tlkit.terminal import print_text

TOKEN_VARIABLE = "TLKIT_TOKEN"  # noqa: S105  # its name
PACKAGES = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "python_multipart": "python-multipart",
    "prometheus_client": "prometheus-client",
}


@dataclass(frozen=True)
class ServeOptions:
    """Options of the server. threads: of the network; None takes all processors. max_wait_s: for a batch to fill, from its first image."""

    host: str = "127.0.0.1"
    port: int = 8000
    # On two cores tf_efficientnet_lite0 (128 px) took 5.0 to 5.4 ms of processor time a request by eights, 6.0 to 6.8 one by one,
    # and 5.9 to 6.4 by thirty-twos, whose activations no longer fit the cache.
    max_batch: int = 8
    max_wait_s: float = 0.005
    threads: int | None = None
    limits: Limits = field(default_factory=Limits)


def serve_command(artifact: Path, options: ServeOptions) -> int:
    """Serve until SIGTERM or Ctrl-C; then finish running requests. Raises ArtifactError or MissingExtraError before it listens."""
    _check_artifact(artifact)
    _check_packages()
    import uvicorn

    from tlkit.deploy.serve.app import LOG, Service, create_app, log_to_stderr
    from tlkit.deploy.serve.limits import impatient_protocol

    token = _token()
    predictor = open_predictor(artifact, threads=options.threads)
    size, channels = predictor.preprocessing.image_size, predictor.preprocessing.channels
    first = predictor.answer(np.zeros((1, size, size, channels), np.uint8))  # it takes longer than those that follow
    if not np.isfinite(first.probabilities).all():
        raise ArtifactError(f"{artifact} answers NaN for a black image, so it isn't served.\n  Export a working run instead.")
    listening = _listen(options)
    url = f"http://{f'[{options.host}]' if ':' in options.host else options.host}:{listening.getsockname()[1]}"
    log_to_stderr()
    app = create_app(Service(predictor, options.limits, options.max_batch, options.max_wait_s, token))
    config = uvicorn.Config(
        app,
        http=impatient_protocol(options.limits.read_s + 5),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=round(options.limits.read_s + options.limits.answer_s),
    )
    _ignore_repeated_signal()
    print(f"Serving {artifact} on {url}: a page to drop images on, and POST {url}/predict. Ctrl-C stops it.", flush=True)
    if token is None and not _is_loopback(options.host):
        print_text(f"Anybody who can reach {options.host} can send requests: set {TOKEN_VARIABLE} to require a token.", sys.stderr)
    LOG.info("listening", extra={"url": url})
    uvicorn.Server(config).run(sockets=[listening])
    LOG.info("stopped")
    return 0


def _check_artifact(artifact: Path) -> None:
    refuse_pickle(artifact)
    if not is_artifact(artifact):
        raise ArtifactError(
            f"{artifact} is no artifact: a folder with artifact.json, or a .zip of one.\n"
            f"  Make one from a run with: tlkit export RUN --format onnx.{artifact_in(artifact)}"
        )


def _check_packages() -> None:
    from importlib.util import find_spec

    for module, package in PACKAGES.items():
        if find_spec(module) is None:
            raise MissingExtraError(package, "serve", "tlkit serve")


def _token() -> str | None:
    """Read the token from the environment only: a command line can be read by every user of the machine."""
    token = os.environ.get(TOKEN_VARIABLE)
    if token is not None and not token.strip():
        raise TlkitError(f"The environment variable {TOKEN_VARIABLE} is empty.\n  Put a token into it, or unset it to ask for none.")
    token = token.strip() if token is not None else None
    if token and not (token.isascii() and token.isprintable()):
        raise TlkitError(
            f"The environment variable {TOKEN_VARIABLE} has a character that a header can't carry.\n"
            "  Use letters, digits and signs of ASCII, as `openssl rand -hex 32` makes them."
        )
    return token


def _listen(options: ServeOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        return socket.create_server((options.host, options.port), family=family, backlog=2048)
    except OSError as error:
        raise TlkitError(
            f"{options.host} port {options.port} can't be listened on: {error.strerror or error}.\n"
            "  Choose another with --port (0 takes any that is free) or --host."
        ) from error


def _ignore_repeated_signal() -> None:
    """Exit with 0: uvicorn sends itself the signal again when it has stopped, which would end the process with another code."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
