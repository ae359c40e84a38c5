"""`edgevlm device`: what this machine is, other devices, and where a model would run."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgevlm.cli.nouns import command, json_option, make_table, print_json, print_table
from edgevlm.errors import DoesNotFit, EdgeVLMError, ModelCorrupt, NotSupported, UsageError

if TYPE_CHECKING:
    from edgevlm.devices.outlook import OtherDevice, Sizes, ThisMachine
    from edgevlm.devices.plan import Candidate, DevicePlan
    from edgevlm.devices.shape import ModelShape, Workload
    from edgevlm.engine.placement import Placement
    from edgevlm.models.store import Store
    from edgevlm.settings import Settings

EPILOG = """\b
Examples:
  edgevlm device show                          this machine, and what can run on it
  edgevlm device list                          devices that a plan can be made for
  edgevlm device plan                          where the default model would run here
  edgevlm device plan --model smolvlm2-2.2b --profile raspberry-pi-5-8gb

\b
Exit codes: 0 done, 2 wrong usage, 3 no such model, 4 nothing can run or fits there.
"""
_TEXT_TOKENS = 40  # a question and the layout around it
_MARKUP_TOKENS = 3  # around each tile


@click.group(epilog=EPILOG)
def device() -> None:
    """Show this machine, and plan where a model runs."""


@command(device, "show", "", "--json", short="Show this machine and its runtimes.")
@json_option
def show(as_json: bool) -> None:
    """Show this machine: processor, memory and its limits, graphics, runtimes."""
    from edgevlm.devices.machine import this_machine
    from edgevlm.devices.measure import measured
    from edgevlm.devices.target import memory_left
    from edgevlm.devices.threads import compute_threads
    from edgevlm.settings import load_settings

    settings = load_settings()
    machine = this_machine(graphics=True)
    threads = settings.threads or compute_threads()
    speed = measured(settings.home, machine.fingerprint, threads)
    runtimes = _runtimes()
    if as_json:
        document = {
            **machine.to_dict(),
            "memory_for_a_model": memory_left(machine),
            "compute_threads": threads,
            "measured": {"gflops": speed.gflops, "bandwidth": speed.bandwidth},
            "runtimes": {name: {"unavailable": why} for name, why in runtimes.items()},
        }
        print_json(document)
        return
    cores = f"{machine.performance_cores} cores"
    if machine.efficiency_cores:
        cores += f" and {machine.efficiency_cores} efficiency cores"
    click.echo(machine.board or machine.chip)
    click.echo(f"  processor  {machine.chip} ({machine.arch}), {cores}")
    click.echo(f"  features   {', '.join(machine.features) or 'none known'}")
    click.echo(
        f"  speed      {speed.gflops:.0f} GFLOPS in float32, {speed.bandwidth:.0f} GB/s,"
        f" measured on {threads} threads"
    )
    limited = machine.limit < machine.total
    limit = f", of which this process may have {_gb(machine.limit)}" if limited else ""
    click.echo(f"  memory     {_gb(machine.total)}{limit}")
    click.echo(f"             {_gb(memory_left(machine))} left for a model now")
    if machine.gpu_limit:
        click.echo(f"             {_gb(machine.gpu_limit)} of it at most on graphics")
    for gpu in machine.gpus:
        cores = f", {gpu.cores} cores" if gpu.cores else ""
        memory = f", {_gb(gpu.memory)}" if gpu.memory else ""
        click.echo(f"  graphics   {gpu.name}{cores}{memory}" + (f" ({gpu.api})" if gpu.api else ""))
    if not machine.gpus:
        click.echo("  graphics   none found")
    if machine.neural_engine:
        click.echo("  neural     Apple Neural Engine")
    for name, why in runtimes.items():
        click.echo(f"  runtime    {name}: {why or 'can run'}")


@command(device, "list", "", "--json", short="List the devices that are known.")
@json_option
def list_devices(as_json: bool) -> None:
    """List the devices whose published figures a plan can be made with."""
    from edgevlm.devices.profiles import load_profiles

    profiles = load_profiles()
    if as_json:
        rows = [
            {
                "name": p.name,
                "title": p.title,
                "kind": p.kind,
                "chip": p.chip,
                "runtimes": list(p.runtimes),
                "figures": {
                    key: {"value": figure.value, "source": p.sources[figure.source]}
                    for key, figure in p.figures.items()
                },
            }
            for p in profiles.values()
        ]
        print_json(rows)
        return
    table = make_table("name", "device", "for a model", "GB/s")
    for profile in profiles.values():
        memory = _gb(profile.for_one_app)
        table.add_row(profile.name, profile.title, memory, f"{profile.bandwidth:.0f}")
    print_table(table)


@command(
    device,
    *("plan", "--model smolvlm2-2.2b", "--profile apple-m4 --model smolvlm2-500m"),
    *("--context 2048 --image-size 1920x1080 --images 3", "--runtime llamacpp --json"),
    short="Say where a model runs, if it fits, and how fast.",
)
@click.option("--model", "name", metavar="M", help="Name, hub id or folder; else the default's.")
@click.option("--profile", metavar="NAME", help="Another device than this one: `device list`.")
@click.option("--runtime", metavar="R", help="Only placements of this runtime.")
@click.option(
    "--context", type=click.IntRange(min=1), metavar="N", help="Tokens; else the model's."
)
@click.option("--image-size", default="1024x768", show_default=True, metavar="WxH")
@click.option("--images", type=click.IntRange(min=0), default=1, show_default=True, metavar="N")
@json_option
def plan(
    name: str | None,
    profile: str | None,
    runtime: str | None,
    context: int | None,
    image_size: str,
    images: int,
    as_json: bool,
) -> None:
    """Say where a model would run, whether it fits, how fast it answers, and why not elsewhere.

    Nothing is downloaded. Predicted are the peak memory of the process when the context is
    full, the first token of a question about the pictures, and tokens a second after it.
    """
    from edgevlm.devices.plan import make_plan, shorter_context
    from edgevlm.model import DEFAULT
    from edgevlm.models.shapes import sizes_of
    from edgevlm.models.store import Store
    from edgevlm.settings import load_settings

    settings = load_settings()
    store = Store(settings)
    name = name or (DEFAULT if settings.model == "auto" else settings.model)
    sizes = sizes_of(name, store)
    if sizes.shape is None:
        raise _unsized(name, store)
    offers = store.placements(name)
    outlook = _outlook(sizes, profile, settings)
    width, height = _size(image_size)
    asked = context or settings.context_length
    work = _work(sizes.shape, images, width, height, asked)
    wanted, missing = runtime or settings.runtime, _unpublished(outlook, offers)
    here = () if profile else store.here(name)
    made = make_plan(outlook, offers, work, wanted, missing, here)
    # A session shortens a context that wasn't asked for, rather than fetch or refuse.
    for among in (here, offers) if asked is None else ():
        if made.chosen is not None and (not among or made.chosen.placement in among):
            continue
        shorter = shorter_context(outlook, among)
        if work.prompt < shorter < work.context:
            again = replace(work, context=shorter)
            trial = make_plan(outlook, offers, again, wanted, missing, here)
            made = trial if trial.chosen and trial.chosen.placement in among else made
    largest = None if made.chosen else _largest(outlook, store, work.context)
    if as_json:
        print_json({**made.to_dict(), "largest_that_fits": largest})
    else:
        _describe(made)
    if made.chosen is None:
        raise _nothing(made, largest)


def _outlook(sizes: Sizes, profile: str | None, settings: Settings) -> ThisMachine | OtherDevice:
    from edgevlm.devices.outlook import OtherDevice, ThisMachine
    from edgevlm.devices.profiles import find_profile

    if profile:
        return OtherDevice(sizes, find_profile(profile))
    return ThisMachine(sizes, settings.home, settings.threads)


def _work(shape: ModelShape, images: int, width: int, height: int, context: int | None) -> Workload:
    from edgevlm.devices.shape import Workload
    from edgevlm.models.shapes import picture_tiles

    vision = shape.vision
    tiles = images * picture_tiles(vision, width, height) if vision else 0
    tokens = tiles * (vision.tokens + _MARKUP_TOKENS) if vision else 0
    longest = min(context or shape.context_length, shape.context_length)
    if tokens + _TEXT_TOKENS >= longest:
        raise UsageError(
            f"The question is {tokens + _TEXT_TOKENS} tokens long ({tokens} of them pictures),"
            f" and the context holds {longest}.",
            hint="Plan with fewer or smaller pictures, or a longer --context.",
        )
    return Workload(prompt=tokens + _TEXT_TOKENS, tiles=tiles, new=60, context=longest)


def _unpublished(
    outlook: ThisMachine | OtherDevice, offers: tuple[Placement, ...]
) -> list[Placement]:
    """Runtimes of the device for which the model has no files."""
    from edgevlm.engine.placement import Placement
    from edgevlm.runtimes import installed_runtimes

    names = dict.fromkeys(["mlx", "coreml", "llamacpp", "onnx", *installed_runtimes()])
    whole = [Placement(name, name) for name in names]
    language = {offer.language for offer in offers}
    return [p for p in whole if p.language not in language and outlook.refusal(p) is None]


def _largest(outlook: ThisMachine | OtherDevice, store: Store, context: int) -> str | None:
    from edgevlm.devices.plan import largest_that_fits
    from edgevlm.models.shapes import wanted_by_catalog

    wanted = wanted_by_catalog(store.catalog, lambda p: outlook.refusal(p) is None, context)
    return largest_that_fits(wanted, outlook.target.memory)


def _unsized(name: str, store: Store) -> EdgeVLMError:
    from edgevlm.models.plan import find_target

    if isinstance(find_target(name, store.catalog), Path):
        store.placements(name)  # says which files are missing
        return ModelCorrupt(
            f"The files in {name} do not say how large the model is.", hint="Fetch it again."
        )
    return NotSupported(
        f"The sizes of {name} are not known before it is here.",
        hint=f"`edgevlm model pull {name}` fetches it; then a plan can be made.",
    )


def _nothing(made: DevicePlan, largest: str | None) -> EdgeVLMError:
    if made.too_large:
        hint = f"{largest} is the largest model that would fit." if largest else None
        return DoesNotFit(f"{made.model} does not fit on {made.device}.", hint=hint)
    first = next((each.refused for each in made.rejected), "no runtime there takes its files")
    return NotSupported(
        f"{made.model} can't run on {made.device}: {first}.",
        hint="`edgevlm model convert` makes files for other runtimes.",
    )


def _describe(made: DevicePlan) -> None:
    work = made.work
    click.echo(f"{made.model} on {made.device}")
    click.echo(
        f"  a question of {work.prompt} tokens ({_tiles(work.tiles)}), context {work.context}"
    )
    if made.chosen is not None:
        _describe_chosen(made.chosen, made.memory)
    if made.rejected:
        click.echo("  not chosen")
    for each in made.rejected:
        speed = ""
        if each.timing is not None and each.memory is not None:
            speed = f" [{_gb(each.memory.total)}, {each.timing.tokens_per_second:.0f} tok/s]"
        line = f"{each.placement}: {each.refused}{speed}"
        click.echo(click.wrap_text(line, 80, initial_indent="    ", subsequent_indent="      "))


def _tiles(count: int) -> str:
    if count == 0:
        return "no pictures"
    return "pictures of 1 tile" if count == 1 else f"pictures of {count} tiles"


def _describe_chosen(chosen: Candidate, room: int) -> None:
    click.echo(f"  runs on    {chosen.placement}")
    if chosen.memory is not None:
        parts = chosen.memory
        click.echo(f"  memory     {_gb(parts.total)} of {_gb(room)} that are left for it")
        click.echo(f"             {_gb(parts.weights)} weights, {_gb(parts.cache)} KV cache,")
        click.echo(
            f"             {_gb(parts.activations)} activations, {_gb(parts.runtime)} runtime"
        )
    if chosen.timing is not None:
        timing = chosen.timing
        click.echo(
            f"  first      token after {timing.first_token:.2f} s"
            f" ({timing.vision:.2f} s pictures, {timing.prefill:.2f} s prompt)"
        )
        click.echo(f"  then       {timing.tokens_per_second:.1f} tokens a second")
        if timing.estimated:
            click.echo("             (estimated: this runtime was not measured on such a device)")


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d{0,4})[xX]([1-9]\d{0,4})", text.strip())
    if match is None:
        raise UsageError(f"{text!r} is no size of a picture.", hint="Write it as 1024x768.")
    return int(match[1]), int(match[2])


def _runtimes() -> dict[str, str | None]:
    """Why each runtime can't run, None where it can."""
    from edgevlm.devices.placement import unavailable
    from edgevlm.runtimes import installed_runtimes

    return {name: unavailable(name) for name in installed_runtimes()}


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
