"""Several processes, and processes that die: an adapter is the old one or the new one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from dying import python
from hub_server import HubServer
from pack_factory import contents, make_pack

from edgevlm.adapters.store import AdapterStore

WEIGHTS = "adapter_model.safetensors"

# Twenty children begin together, when the parent lets go of a pipe.
TOGETHER = """
import json, os, sys
from pathlib import Path
from edgevlm.adapters.store import AdapterStore
from edgevlm.settings import Settings

store = AdapterStore(Settings(home=Path(sys.argv[1])))
gate, opener = os.pipe()
answers, answer = os.pipe()
children = []
for child in range(20):
    if (pid := os.fork()) == 0:
        os.close(opener)
        os.read(gate, 1)
        done = store.install(sys.argv[2 + child % 2])
        told = json.dumps([done.changed, done.before, done.adapter.manifest.version])
        store.load("mine")
        os.write(answer, told.encode() + b"\\n")
        os._exit(0)
    children.append(pid)
os.close(opener)
codes = [os.waitpid(pid, 0)[1] for pid in children]
os.close(answer)
with os.fdopen(answers) as file:
    told = [json.loads(line) for line in file]
print(json.dumps({"codes": codes, "told": told}))
"""

# Installs two versions in turn in forked children, looking after each: killed at the n-th change
# of the disk, for every n until a child gets through, or fifty times at a random moment.
KILLED = """
import os, random, select, signal, sys, time
from pathlib import Path
from dying import die_at
from edgevlm.adapters.peft import read_peft
from edgevlm.adapters.store import AdapterStore
from edgevlm.settings import Settings

how, home, origins = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
store = AdapterStore(Settings(home=home))
digests = {read_peft(Path(origin), name="x").digest: n for n, origin in enumerate(origins)}

def install(origin, limit, seconds):
    ended, end = os.pipe()
    child = os.fork()
    if child == 0:
        if limit is not None:
            sys.addaudithook(die_at(limit))
        store.install(origin)
        os._exit(0)
    os.close(end)
    if not select.select([ended], [], [], seconds)[0]:
        os.kill(child, signal.SIGKILL)
    os.close(ended)
    return os.waitpid(child, 0)[1] == 0

store.install(origins[0])
held = 0
chance = random.Random(0)
begun = time.perf_counter()
install(origins[1], None, None)
took = time.perf_counter() - begun
store.install(origins[0])
outcomes = []
while True:
    limit = len(outcomes) + 1 if how == "changes" else None
    seconds = chance.uniform(0, took) if how == "moments" else None
    through = install(origins[1 - held], limit, seconds)
    now = digests[store.load("mine").digest]
    (adapter,) = store.list()
    assert adapter.manifest.version == f"1.0.{now}", (adapter, now)
    assert all(not result.altered for result in store.verify())
    assert now == 1 - held or not through
    outcomes.append(now != held)
    if how == "changes":
        if through:
            break
        store.install(origins[held])
    else:
        held = now
        if len(outcomes) == 50:
            break
for origin in origins:
    store.install(origin)
    left = [p.name for p in (home / "adapters" / "mine").iterdir()]
    assert len(left) == 2, left
    assert list((home / "adapters" / ".staging").iterdir()) == []
print(*("new" if changed else "old" for changed in outcomes))
"""

# The command line, telling on stdout when the first bytes have come.
TELLING = """
import sys
from edgevlm.cli import main, progress

def advance(shown, n):
    print("taken", flush=True)

progress.Shown.advance = advance
main(sys.argv[1:])
"""


@pytest.fixture
def versions(tmp_path: Path) -> list[str]:
    """Two versions of one adapter."""
    return [
        str(make_pack(tmp_path / f"v{n}", name="mine", version=f"1.0.{n}", seed=n))
        for n in range(2)
    ]


def test_twenty_processes_install_one_adapter_at_once(
    tmp_path: Path, home: Path, adapters: AdapterStore, versions: list[str]
) -> None:
    answer = json.loads(python(TOGETHER, str(home), versions[0], versions[0]))
    assert answer["codes"] == [0] * 20
    assert sorted(answer["told"]) == [[False, "1.0.0", "1.0.0"]] * 19 + [[True, None, "1.0.0"]]
    (adapter,) = adapters.list()
    assert [path.name for path in adapter.folder.parent.iterdir() if path.is_dir()] == [
        adapter.folder.name
    ]
    assert adapters.verify()[0].altered == {}


def test_of_two_versions_at_once_the_last_one_stays_whole(
    tmp_path: Path, home: Path, adapters: AdapterStore, versions: list[str]
) -> None:
    answer = json.loads(python(TOGETHER, str(home), *versions))
    assert answer["codes"] == [0] * 20
    assert [told[2] for told in answer["told"]].count("1.0.1") == 10
    # Whoever changed something found the other version, or none.
    changes = [told for told in answer["told"] if told[0]]
    assert len(changes) >= 2
    assert all(before != now for _, before, now in changes)
    (adapter,) = adapters.list()
    assert adapters.verify()[0].altered == {}
    assert len(list(adapter.folder.parent.iterdir())) == 2


def test_killed_at_every_change_of_the_disk_it_holds_the_old_or_the_new(
    home: Path, versions: list[str]
) -> None:
    outcomes = python(KILLED, "changes", str(home), *versions).split()
    assert len(outcomes) > 15
    assert outcomes == sorted(outcomes, reverse=True)  # old ... old new ... new
    assert set(outcomes) == {"old", "new"}


def test_killed_at_fifty_moments_it_holds_the_old_or_the_new(
    home: Path, versions: list[str]
) -> None:
    outcomes = python(KILLED, "moments", str(home), *versions).split()
    assert len(outcomes) == 50
    assert "old" in outcomes


def edgevlm(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", TELLING, "adapter", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def waiting(hub: HubServer, tmp_path: Path) -> Iterator[threading.Event]:
    """A hub that stops half way through the weights until the event is set."""
    pack = make_pack(tmp_path / "terms", rank=32)
    hub.add("acme/terms", contents(pack))
    hub.faults.gates[WEIGHTS] = gate = threading.Event()
    yield gate
    gate.set()


@pytest.mark.parametrize(
    ("stop", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)]
)
def test_a_stopped_download_leaves_nothing_in_force(
    waiting: threading.Event, adapters: AdapterStore, stop: signal.Signals, code: int
) -> None:
    with edgevlm("install", "acme/terms") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "taken\n"
        process.send_signal(stop)
        said = process.communicate()[1]
    assert process.returncode == code
    assert "Traceback" not in said
    assert adapters.list() == ()
    waiting.set()
    assert adapters.install("acme/terms").changed
    assert adapters.verify()[0].altered == {}


def test_of_two_processes_one_fetches_and_the_other_waits(
    waiting: threading.Event, hub: HubServer, adapters: AdapterStore
) -> None:
    with edgevlm("install", "acme/terms") as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "taken\n"
        with edgevlm("install", "acme/terms") as second:
            assert second.stderr is not None
            assert "Waiting for another process" in second.stderr.readline()
            waiting.set()
            outputs = [process.communicate()[0] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0)
    assert "is installed:" in outputs[0]
    assert "is installed already" in outputs[1]
    assert len(hub.gets(WEIGHTS)) == 1
    assert len(adapters.list()) == 1
