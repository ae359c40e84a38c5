"""Servers in processes of their own, as a bench needs them: ours, and `llama_cpp.server`.

`llama_cpp.server` gets our threads, no interruption of one answer by the next request, and
OpenMP workers that rest, as ours do. Where llama.cpp was built with kernels for Intel's AMX, which
end the process (see `has_amx`), its weights stay as they are in the file, as ours do: without this
it could not run there at all.
"""

from __future__ import annotations

import argparse
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parent.parent))

RESTING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
PATIENCE_S = 120


@contextmanager
def ours(
    model: str, runtime: str, adapters: tuple[str, ...] = (), *, endless: bool = False
) -> Iterator[str]:
    """The URL of a server of `model`, with these adapters installed. `endless` answers go on to
    `max_tokens`."""
    arguments = ["ours", model, runtime, *adapters, *(["--endless"] if endless else [])]
    with _process(arguments, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url:
            raise SystemExit("our server did not start")
        yield url


@contextmanager
def llamacpp_server(gguf: Path, threads: int, context: int = 4096) -> Iterator[str]:
    port = _free_port()
    settings = {
        "model": gguf,
        "model_alias": "peer",
        "port": port,
        "n_ctx": context,
        "n_threads": threads,
        "n_threads_batch": threads,
        "flash_attn": True,
        "interrupt_requests": False,
        "verbose": False,
    }
    arguments = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    with _process(["llamacpp", *arguments], stdout=subprocess.DEVNULL) as process:
        url = f"http://127.0.0.1:{port}"
        give_up = time.monotonic() + PATIENCE_S
        while True:
            try:
                httpx.get(f"{url}/v1/models", timeout=5)
                break
            except httpx.TransportError:
                if process.poll() is not None or time.monotonic() > give_up:
                    raise SystemExit("llama_cpp.server did not start") from None
                time.sleep(0.1)
        yield url


@contextmanager
def _process(arguments: list[str], stdout: int) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, __file__, *arguments],
        env=RESTING | dict(os.environ),
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=None if os.environ.get("EDGEVLM_DEBUG") else subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


def _serve_ours(arguments: list[str]) -> None:
    from serving import running

    from edgevlm import load_model, load_settings
    from edgevlm.adapters.store import AdapterStore

    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("runtime")
    parser.add_argument("adapters", nargs="*")
    parser.add_argument("--endless", action="store_true")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as home:
        store = AdapterStore(load_settings({"EDGEVLM_HOME": home}))
        for adapter in options.adapters:
            store.install(adapter)
        with load_model(options.model, runtime=options.runtime) as model:
            if options.endless:
                model.family.stop_ids = frozenset()
            with running(model, Path(home)) as server:
                print(server.url, flush=True)
                sys.stdin.read()


def _serve_llamacpp(arguments: list[str]) -> None:
    from llama_cpp import llama_cpp as api

    if b"AMX_INT8 = 1" in api.llama_print_system_info():
        defaults = api.llama_model_default_params

        def without_amx() -> object:
            params = defaults()
            params.use_extra_bufts = False
            return params

        api.llama_model_default_params = without_amx
    sys.argv[1:] = arguments
    runpy.run_module("llama_cpp.server", run_name="__main__")


if __name__ == "__main__":
    {"ours": _serve_ours, "llamacpp": _serve_llamacpp}[sys.argv[1]](sys.argv[2:])
