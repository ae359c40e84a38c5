"""What a server costs beside `Session`, and what it does for many clients at once.

    python tests/bench/serve.py                         all of it, edgevlm-tiny
    python tests/bench/serve.py --runtime onnx+llamacpp --parts one many --rounds 9 --json

one       one client by HTTP against `Session`, in one process and in turns: the time to the first
          token about a new picture, and tokens a second
many      eight clients, each with a question and two follow-ups about one of four pictures, against
          one client that asks the same, one after the other; every answer is compared
peer      the same without pictures, on ours and on `llama_cpp.server`, which runs the same file of
          the decoder without our adapter for pictures (pip install 'llama-cpp-python[server]');
          serve_process.py tells how it is run
adapters  two adapters that take turns, request by request, against one alone
gone      a client that leaves amid the reading of a long prompt: how long until the engine is free

Servers of `many`, `peer` and `adapters` have processes of their own. Runs take turns; a figure is
the median over rounds, a ratio the median of each round's.
"""

from __future__ import annotations

import argparse
import json
import os

from serve_many import adapters, many, peer
from serve_session import gone, one

PARTS = {"one": one, "many": many, "peer": peer, "adapters": adapters, "gone": gone}
RUNTIMES = ["onnx", "onnx+llamacpp"]


def main() -> None:
    options = _arguments()
    rows = [
        {"part": part, "runtime": runtime} | row
        for part in options.parts
        for runtime in options.runtime
        for row in PARTS[part](options, runtime)
    ]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(f"{row.pop('part')}, {row.pop('runtime')}")
        for name, value in row.items():
            told = f"{value:,.2f}" if isinstance(value, float) else value
            print(f"  {name:46}{told:>12}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="edgevlm-tiny")
    parser.add_argument("--runtime", nargs="+", default=RUNTIMES)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32, help="at most, of an answer")
    parser.add_argument("--words", type=int, default=1200, help="of the long prompt")
    parser.add_argument("--after", type=int, default=200, help="ms into it, the client leaves")
    parser.add_argument("--adapters", nargs=2, default=["shapes", "detailed"])
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    # Before onnxruntime or numpy bring an OpenMP of theirs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    main()
