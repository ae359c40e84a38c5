"""Several processes, and processes that die: the store holds the old model or the new one."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from dying import python
from hub_server import DECODER, REPO, HubServer, model_files

from edgevlm.models.store import Store

FETCHED = ("config.json", "tokenizer.json", "onnx/vision_encoder_fp16.onnx", DECODER)

# Publishes version 2 over version 1 in a forked child that is killed at the n-th change of
# the disk, for every n until a child gets through; and has the parent look each time.
KILL_EVERYWHERE = '''
import os, shutil, sys
from pathlib import Path
from dying import die_at
from edgevlm.models.catalog import parse_catalog
from edgevlm.models.store import Store
from edgevlm.settings import Settings

origin, home = Path(sys.argv[1]), Path(sys.argv[2])

def store(version):
    source = (origin / version).as_uri()
    rows = ", ".join(
        f'{{ path = "{name}", size = 9000, role = "{name}", source = "{source}/{name}" }}'
        for name in ("a", "b")
    )
    text = f"""
[cam]
title = "Cam"
family = "f"
base = "b"
parameters = 1
context_length = 1
licence = "MIT"
verified = false
[cam.onnx]
files = [{rows}]
"""
    return Store(Settings(home=home), parse_catalog(text))

def held(version):
    files = store(version).resolve("cam", runtime="onnx", download=False)
    found = {path.read_bytes()[:3] for path in files.roles.values()}
    assert len(found) == 1, found
    return found.pop().decode()

outcomes = []
while True:
    shutil.rmtree(home, ignore_errors=True)
    store("old").pull("cam", runtime="onnx")
    child = os.fork()
    if child == 0:
        sys.addaudithook(die_at(len(outcomes) + 1))
        store("new").pull("cam", runtime="onnx")
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    outcomes.append(held("old"))
    assert not store("old").verify("cam")[0].altered
    if len(outcomes) % 5 == 0:
        store("new").pull("cam", runtime="onnx")
        assert held("new") == "new"
        assert sum(path.is_dir() for path in (home / "models" / "cam" / "onnx").iterdir()) == 1
    if status == 0:
        break
print(" ".join(outcomes))
'''


# The command line, telling on stdout when it has taken in so many bytes.
TELLING = """
import sys
from edgevlm.cli import main, progress

taken = 0

def advance(shown, n):
    global taken
    taken += n
    if taken - n < 100_000 <= taken:
        print("taken", flush=True)

progress.Shown.advance = advance
main(sys.argv[1:])
"""


def edgevlm(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", TELLING, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_killed_at_every_change_of_the_disk_it_holds_the_old_or_the_new(tmp_path: Path) -> None:
    for version in ("old", "new"):
        (tmp_path / version).mkdir()
        for name in ("a", "b"):
            (tmp_path / version / name).write_bytes(version.encode() * 3000)
    outcomes = python(KILL_EVERYWHERE, str(tmp_path), str(tmp_path / "home")).split()
    assert len(outcomes) > 15
    assert outcomes == sorted(outcomes, reverse=True)  # old ... old new ... new
    assert set(outcomes) == {"old", "new"}


@pytest.mark.parametrize(
    ("stop", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)]
)
def test_a_stopped_pull_goes_on_where_it_was(
    hub: HubServer, store: Store, stop: signal.Signals, code: int
) -> None:
    hub.faults.gates[DECODER] = gate = threading.Event()
    with edgevlm("model", "pull", REPO, "--runtime", "onnx") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "taken\n"
        process.send_signal(stop)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == code
    assert "Traceback" not in said
    assert store.list() == ()
    gate.set()
    files = store.resolve(REPO, runtime="onnx")
    assert files.roles["decoder"].read_bytes() == model_files()[DECODER]
    again = hub.gets(DECODER)[-1]
    assert again.range is not None
    assert again.sent < len(model_files()[DECODER]) - 90_000
    assert len(hub.gets("config.json")) == 1


def test_of_two_processes_one_fetches_and_the_other_waits(hub: HubServer, store: Store) -> None:
    hub.faults.gates[DECODER] = gate = threading.Event()
    arguments = ("model", "pull", REPO, "--runtime", "onnx", "--json")
    with edgevlm(*arguments) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "taken\n"
        with edgevlm(*arguments) as second:
            assert second.stderr is not None
            assert "Waiting for another process" in second.stderr.readline()
            gate.set()
            outputs = [p.communicate(timeout=60)[0] for p in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0)
    assert outputs[0] == outputs[1]
    assert [len(hub.gets(path)) for path in FETCHED] == [1, 1, 1, 1]
    assert len(store.list()) == 1
