"""`edgevlm serve`: an OpenAI-compatible server on this device, and its page."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import click

from edgevlm.errors import NotSupported, UsageError

if TYPE_CHECKING:
    from edgevlm.serve.app import Options

EPILOG = """\b
Examples:
  edgevlm serve                                 edgevlm-tiny or the default model, on port 8642
  edgevlm serve --model smolvlm2-500m --port 9000
  edgevlm serve --allow-media-host upload.wikimedia.org
  edgevlm serve --host 0.0.0.0 --allow-host my-mac.local     for this network; see the README
  curl -H "Authorization: Bearer TOKEN" http://127.0.0.1:8642/v1/models

\b
Exit codes: 0 stopped by Ctrl-C or SIGTERM, 2 wrong usage, 3 model not to be had,
4 not supported or does not fit here.
"""


@click.command(epilog=EPILOG)
@click.option("-m", "--model", metavar="M", help="Model name, hub id or folder.")
@click.option("--runtime", metavar="R", help="Runtime; by default chosen for this device.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8642, show_default=True, help="0: any free."
)
@click.option(
    "--parallel",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    metavar="N",
    help="Answers that take turns; others wait.",
)
@click.option(
    "--contexts",
    type=click.IntRange(1, 256),
    default=8,
    show_default=True,
    metavar="N",
    help="Conversations kept in memory, for their follow-ups.",
)
@click.option(
    "--queue",
    type=click.IntRange(0, 10_000),
    default=64,
    show_default=True,
    metavar="N",
    help="Requests that may wait; one more is told to come later.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0.1, 86_400),
    default=300.0,
    show_default=True,
    metavar="S",
    help="Seconds an answer may take, waiting included.",
)
@click.option(
    "--allow-media-host",
    "media_hosts",
    multiple=True,
    metavar="HOST",
    help="Fetch pictures by https from there.  [default: nowhere]",
)
@click.option(
    "--allow-host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="Another name that this server goes by.",
)
@click.option(
    "--allow-origin",
    "origins",
    multiple=True,
    metavar="URL",
    help="Let pages of that origin ask, with the token.",
)
@click.option("--log-prompts", is_flag=True, help="Write questions and answers into the log.")
@click.option("--log-json", is_flag=True, help="A JSON object a line.")
@click.option("--no-log", is_flag=True, help="No line for each request.")
def serve(
    model: str | None,
    runtime: str | None,
    host: str,
    port: int,
    parallel: int,
    contexts: int,
    queue: int,
    timeout: float,
    media_hosts: tuple[str, ...],
    hosts: tuple[str, ...],
    origins: tuple[str, ...],
    log_prompts: bool,
    log_json: bool,
    no_log: bool,
) -> None:
    """Serve a model to any OpenAI client, and a page to talk to it.

    Requests need the token that the first start makes and shows.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise NotSupported(
            "The server needs starlette and uvicorn.", hint="Run: pip install 'edgevlm[serve]'"
        ) from error
    from edgevlm.serve.app import Options

    options = Options(
        parallel=parallel,
        contexts=contexts,
        queue_size=queue,
        seconds=timeout,
        hosts=(*hosts, *_own_names(host)),
        origins=origins,
        media_hosts=media_hosts,
        log_prompts=log_prompts,
    )
    _serve(model, runtime, host, port, options, as_json=log_json, quiet=no_log)


def _serve(
    model: str | None,
    runtime: str | None,
    host: str,
    port: int,
    options: Options,
    *,
    as_json: bool,
    quiet: bool,
) -> None:
    from edgevlm.cli.progress import progress
    from edgevlm.media.addresses import is_loopback
    from edgevlm.model import load_model
    from edgevlm.remote.access import access_token
    from edgevlm.serve.app import Server
    from edgevlm.serve.run import listen, log_to_stderr
    from edgevlm.serve.run import serve as serve_on
    from edgevlm.settings import load_settings

    settings = load_settings()
    token = access_token(settings.home)
    with listen(host, port) as sock:  # a port that is taken costs no download
        address = _address(host, sock.getsockname()[1])
        with progress() as shown:
            loaded = load_model(
                model,
                runtime=runtime,
                settings=settings,
                progress=shown,
                notice=lambda line: click.echo(line, err=True),
            )
        if not quiet:
            log_to_stderr(as_json=as_json)

        def started() -> None:
            click.echo(f"Serving {loaded.name} on {address}", err=True)
            if token.new:
                click.echo(f"Open {address}/#token={token.value}", err=True)
                click.echo("Its token is shown this once.", err=True)
            if token.file is not None:
                click.echo(f"The token is kept in {token.file}", err=True)
            if not is_loopback(host):
                click.echo("Others on this network can reach it, and read what passes.", err=True)

        with loaded:
            serve_on(Server(loaded, token, settings, options), sock, started)


def _own_names(host: str) -> tuple[str, ...]:
    """The address itself, where it is one that a client can write."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError as error:
        raise UsageError(
            f"{host} is not an IP address.", hint="Use 127.0.0.1, ::1, 0.0.0.0 or an own one."
        ) from error
    return () if address.is_unspecified else (str(address),)


def _address(host: str, port: int) -> str:
    address = ipaddress.ip_address(host)
    shown = "127.0.0.1" if address.is_unspecified else host
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
