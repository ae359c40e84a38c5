"""Many clients of one server against one client, another server, and one adapter."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from serve_load import Load, Talk, client_of, picture_url, run
from serve_process import llamacpp_server, ours

from edgevlm import load_settings
from edgevlm.devices.threads import compute_threads
from edgevlm.models.store import Store

CLIENTS = 8
PICTURES = 4
ABOUT_A_PICTURE = ("What is in this picture?", "And what colour is it?", "Is it an animal?")
# A small model goes on with these for longer than it is let.
STORY = (
    "Tell me a long story about {} and the number {}.",
    "And what happened on the next day? Tell it at length.",
    "How did it end? Tell it at length.",
)
HEROES = ("a cat", "a ship", "a city", "a king", "a tree", "a bird", "a river", "a horse")


def many(options: argparse.Namespace, runtime: str) -> Iterator[dict[str, Any]]:
    pairs = []
    with ours(options.model, runtime) as alone, ours(options.model, runtime) as crowded:
        [name, *_] = names_of(alone)
        for number in range(options.rounds):
            pictures = [picture_url(PICTURES * number + n) for n in range(PICTURES)]
            talks = [
                Talk(name, ABOUT_A_PICTURE, pictures[n % PICTURES], options.tokens, tell_ids=True)
                for n in range(CLIENTS)
            ]
            pairs.append((run(alone, talks, 1), run(crowded, talks, CLIENTS)))
    twins = [twin for pair in pairs for twin in zip(*(_ids(load) for load in pair), strict=True)]
    yield {
        "requests answered": len(twins),
        "with the tokens of their sequential twins": sum(one == other for one, other in twins),
        **_side_by_side(pairs, ("one client", f"{CLIENTS} clients"), "aim: at least 0.9"),
    }


def peer(options: argparse.Namespace, runtime: str) -> Iterator[dict[str, Any]]:
    """Where our decoder is on llama.cpp."""
    if not runtime.endswith("llamacpp"):
        return
    settings = load_settings()
    decoder = Store(settings).resolve(options.model, runtime=runtime).roles["decoder"]
    threads = settings.threads or compute_threads()
    with (
        llamacpp_server(decoder, threads) as theirs,
        ours(options.model, runtime, endless=True) as our,
    ):
        [name, *_] = names_of(our)
        for clients in (1, CLIENTS):
            pairs = []
            for number in range(options.rounds):
                stories = [(STORY[0].format(hero, number), *STORY[1:]) for hero in HEROES]
                talks = [Talk(name, story, None, options.tokens) for story in stories]
                peers = [Talk("peer", story, None, options.tokens) for story in stories]
                pairs.append((run(theirs, peers, clients), run(our, talks, clients)))
            names = ("llama_cpp.server", "ours")
            yield {"clients": clients, **_side_by_side(pairs, names, "aim: at least 1")}


def adapters(options: argparse.Namespace, runtime: str) -> Iterator[dict[str, Any]]:
    """Each request is about a picture of its own, and its answer has all its tokens."""
    with ours(options.model, runtime, tuple(options.adapters), endless=True) as url:
        [_, one, other, *_] = names_of(url)
        for clients in (1, 4):
            turns, alone = [], []
            for number in range(options.rounds + 1):
                first = 100 * number + 10_000 * clients
                mixed, ones, others = (
                    run(url, _about_pictures(names, first + 10 * n, options.tokens), clients)
                    for n, names in enumerate(((one, other), (one, one), (other, other)))
                )
                if number:  # the first round loads the adapters
                    turns.append(mixed.requests_per_s)
                    alone.append(len(HEROES) * 2 / (ones.seconds + others.seconds))
            yield {
                "clients": clients,
                "requests/s, one adapter (either)": statistics.median(alone),
                "requests/s, two in turns": statistics.median(turns),
                "ratio (aim: at least 0.85)": _ratio(turns, alone),
            }


def names_of(url: str) -> list[str]:
    """The models of a server: the base first, then with each adapter."""
    with client_of(url) as client:
        return [model["id"] for model in client.get("/v1/models").json()["data"]]


def _about_pictures(names: tuple[str, str], first: int, tokens: int) -> list[Talk]:
    questions = ABOUT_A_PICTURE[:1]
    return [
        Talk(names[n % 2], questions, picture_url(first + n), tokens) for n in range(len(HEROES))
    ]


def _side_by_side(
    pairs: Sequence[tuple[Load, Load]], names: tuple[str, str], aim: str
) -> dict[str, float]:
    rows: dict[str, float] = {}
    for name, loads in zip(names, zip(*pairs, strict=True), strict=True):
        rows |= {
            f"{name}: tokens/s": statistics.median(load.tokens_per_s for load in loads),
            f"{name}: requests/s": statistics.median(load.requests_per_s for load in loads),
            f"{name}: first token p50, ms": statistics.median(load.first_ms(50) for load in loads),
            f"{name}: first token p95, ms": statistics.median(load.first_ms(95) for load in loads),
        }
    theirs, our = ([load.tokens_per_s for load in loads] for loads in zip(*pairs, strict=True))
    return rows | {f"tokens/s, ratio ({aim})": _ratio(our, theirs)}


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def _ids(load: Load) -> list[tuple[int, ...]]:
    return [said.ids for said in chain.from_iterable(load.answers)]
