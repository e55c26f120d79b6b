"""`tunesmith serve`: models behind OpenAI's interface."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from tunesmith.cli.model import Weights
from tunesmith.cli.options import Products

if TYPE_CHECKING:
    from tunesmith.export.opening import Dtype
    from tunesmith.serve.settings import Settings

TOKEN = "TUNESMITH_SERVE_TOKEN"  # noqa: S105  the name of a variable, not a token


def register(app: typer.Typer) -> None:
    app.command("serve")(serve)


def serve(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]MODEL...",
            help="Runs, adapters, models, reward models, encoders; requests name them.",
            show_default=False,
        ),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but this machine's own needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help=f"File with the token; else ${TOKEN}.", show_default=False)
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option("--allow-host", help="Another name of this server; repeatable.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Answers decoded together.")] = 32,
    queue: Annotated[int, typer.Option(min=1, help="Requests that may wait; more are told to come back.")] = 256,
    cache_gib: Annotated[float, typer.Option("--cache-gib", min=0.01, help="Keys and values of each model.")] = 2.0,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Of an answer that names no limit.")] = 1024,
    max_wait: Annotated[float, typer.Option("--max-wait", min=0.1, help="Seconds that a request may wait.")] = 120.0,
    products: Products = "packed",
    dtype: Annotated[str, typer.Option("--dtype", help="Weights as auto (stored), float32 or bfloat16.")] = "auto",
    backend: Annotated[str, typer.Option(help="What decodes: tunesmith, or vllm where it is installed.")] = "tunesmith",
    weights: Weights = "auto",
) -> None:
    """Serve models to OpenAI's clients: chat, completions, embeddings, rewards."""
    check_packages()
    from tunesmith.cli.model import check_runs, check_words, choose_products, choose_weights, tell_sources
    from tunesmith.cli.output import console
    from tunesmith.serve.house import House, name_models
    from tunesmith.serve.server import Server, listen
    from tunesmith.serve.settings import Limits, Settings
    from tunesmith.serve.vllm import VllmHouse

    limits = Limits(
        batch_size=batch_size,
        queue=queue,
        new_tokens=max_tokens,
        cache_bytes=int(cache_gib * 2**30),
        wait_seconds=max_wait,
        held=choose_products(products),
        dtype=cast("Dtype", check_words([dtype], ("auto", "float32", "bfloat16"), "--dtype")[0]),
    )
    settings = Settings(host, port, read_token(token_file), tuple(allow_host or ()), limits)
    named, which = name_models(models), choose_weights(weights)
    check_runs(named, which)
    listening = listen(host, port)
    decoder = check_words([backend], ("tunesmith", "vllm"), "--backend")[0]
    with console().status(f"loading {', '.join(named)}"):
        house = House(named, limits, which) if decoder == "tunesmith" else VllmHouse(named, limits, which)
    tell_sources(house.sources, which)
    server = Server(house, settings)
    server.serve_on(listening, on_ready=lambda: announce(settings, listening.getsockname()[1], list(named)))


def announce(settings: Settings, port: int, names: list[str]) -> None:
    from tunesmith.cli.output import console

    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    kept = "" if settings.token is None else ", with a token"
    console().print(f"serving {', '.join(names)} at http://{host}:{port}/v1{kept}; Ctrl-C ends it", markup=False)


def check_packages() -> None:
    """MachineError E420 when the packages of the extra are not installed."""
    from tunesmith.errors import Fix, MachineError

    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        fix = Fix("install them", command="pip install 'tunesmith[serve]'")
        raise MachineError("E420", f"the server needs {' and '.join(missing)}", fixes=[fix])


def read_token(path: Path | None) -> str | None:
    """From the file, or the environment. UsageError E416 for a file that holds none."""
    from tunesmith.errors import UsageError, Where

    if path is None:
        return os.environ.get(TOKEN, "").strip() or None
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        fixes = [f"write one line into {path}", f"or set {TOKEN}, and leave --token-file out"]
        raise UsageError("E416", f"the token cannot be read: {error}", where=Where(str(path)), fixes=fixes) from error
    if not token:
        raise UsageError("E416", "the file holds no token", where=Where(str(path)), fixes=["write one line into it"])
    return token
