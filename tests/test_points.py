"""Runs side by side: their cores, their order, what a failure and a signal do, and what is done."""

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from latentwire import config_file, points
from latentwire.config import Config, DecoderConfig, StageConfig
from latentwire.distributed.topology import plan as lay_out
from latentwire.points import Point, Runner, is_finished
from latentwire.training.preflight import Plan
from latentwire.training.status import FILES, write_status

LIBRARY = """
import json, os, signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
folder.mkdir(exist_ok=True)
def end(state, code=0):
    (folder / "status.json").write_text(json.dumps({"state": state}))
    sys.exit(code)
def wait_for(condition):
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    end("failed", 1)
"""
"""What the runs of these tests have in common; each then does something small."""
FINISH = "end('finished')"
TELL_CORES = """
threads = os.environ.get("OMP_NUM_THREADS")
(folder / "here").touch()
# Side by side with the other, and once it was put on its cores.
wait_for(lambda: len(list(folder.parent.glob("*/here"))) == int(sys.argv[2]))
wait_for(lambda: threads is None or len(os.sched_getaffinity(0)) == int(threads))
(folder / "cores").write_text(json.dumps([sorted(os.sched_getaffinity(0)), threads]))
end("finished")
"""
WAIT_FOR_SIGNALS = """
def heard(number, frame):
    with open(folder / "signals", "a") as file:
        file.write(f"{number}\\n")
signal.signal(signal.SIGTERM, heard)
signal.signal(signal.SIGINT, heard)
(folder / "ready").touch()
wait_for((folder.parent / "release").exists)
end("preempted")
"""


def point(tmp_path: Path, name: str, config: Config | None = None) -> Point:
    topology = lay_out({"a": DecoderConfig()}, placement="auto", world_size=1)
    plan = Plan(
        config=config or Config(),
        topology=topology,
        run_folder=tmp_path / name,
        checkpoint_folder=tmp_path / "checkpoints" / name,
    )
    return Point(name=name, overrides=(), plan=plan)


class Watched:
    """A runner of the small commands above, and what it told."""

    def __init__(
        self,
        commands: dict[str, str],
        *more: str,
        workers: int,
        started: Callable[[], None] = lambda: None,
    ) -> None:
        self.events: list[tuple[str, str]] = []
        self._commands, self._more, self._also = commands, more, started
        self.runner = Runner(
            self._command, workers=workers, started=self._started, ended=self._ended
        )

    def run(self, tmp_path: Path) -> None:
        self.runner.run([point(tmp_path, name) for name in self._commands])

    @property
    def started(self) -> list[str]:
        return [name for name, what in self.events if what == "started"]

    @property
    def ended(self) -> dict[str, str]:
        return {name: what for name, what in self.events if what != "started"}

    def most_at_once(self) -> int:
        running, most = 0, 0
        for _, what in self.events:
            running += 1 if what == "started" else -1
            most = max(most, running)
        return most

    def _command(self, one: Point) -> list[str]:
        source = LIBRARY + self._commands[one.name]
        return [sys.executable, "-c", source, str(one.plan.run_folder), *self._more]

    def _started(self, one: Point) -> None:
        self.events.append((one.name, "started"))
        self._also()

    def _ended(self, one: Point, finished: bool) -> None:
        self.events.append((one.name, "finished" if finished else "not finished"))


# --- cores


def cores_of(tmp_path: Path, *, workers: int) -> list[tuple[set[int], str | None]]:
    """Cores and threads that runs side by side have."""
    watched = Watched({f"p{i}": TELL_CORES for i in range(workers)}, str(workers), workers=workers)
    watched.run(tmp_path)
    assert set(watched.ended.values()) == {"finished"}
    files = [tmp_path / f"p{i}" / "cores" for i in range(workers)]
    found = [yaml.safe_load(file.read_text()) for file in files]
    return [(set(cores), threads) for cores, threads in found]


def test_two_workers_have_cores_of_their_own_and_as_many_threads(tmp_path: Path) -> None:
    ours = os.sched_getaffinity(0)
    first, second = cores_of(tmp_path, workers=2)
    for cores, threads in (first, second):
        assert cores and cores <= ours
        assert threads == str(len(cores))
    if len(ours) > 1:
        assert not first[0] & second[0]
    assert os.sched_getaffinity(0) == ours, "this process keeps its own"


def test_more_workers_than_cores_share_them(tmp_path: Path) -> None:
    ours = os.sched_getaffinity(0)
    if len(ours) > 4:
        pytest.skip("too many runs for this machine; the shares are looked at below")
    found = cores_of(tmp_path, workers=len(ours) + 1)
    assert all(len(cores) == 1 and threads == "1" for cores, threads in found)
    assert set().union(*(cores for cores, _ in found)) == ours


def test_one_worker_leaves_cores_and_threads_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert cores_of(tmp_path, workers=1) == [(os.sched_getaffinity(0), None)]


@pytest.mark.parametrize(
    ("cores", "workers", "expected"),
    [
        ({0, 1, 2, 3}, 2, [(0, 1), (2, 3)]),
        ({7, 3, 5}, 2, [(3,), (5,)]),
        ({4, 9}, 3, [(4,), (9,), (4,)]),
        ({6}, 3, [(6,), (6,), (6,)]),
    ],
    ids=str,
)
def test_shares_of_the_cores(
    cores: set[int],
    workers: int,
    expected: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(points.os, "sched_getaffinity", lambda process: cores)
    assert [slot.cores for slot in points._slots(workers)] == expected


# --- order and failures


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_points_start_in_order_and_never_more_than_there_are_workers(
    workers: int, tmp_path: Path
) -> None:
    names = ["e", "d", "a", "c", "b"]
    watched = Watched(dict.fromkeys(names, FINISH), workers=workers)
    watched.run(tmp_path)
    assert watched.started == names
    assert watched.ended == dict.fromkeys(names, "finished")
    assert watched.most_at_once() == workers
    if workers == 1:
        assert [name for name, _ in watched.events] == [name for name in names for _ in range(2)]


FAILURES = {
    "of both": "end('failed', 1)",
    "of its code": "end('finished', 1)",
    "of its state": "end('preempted')",
    "of no status": "sys.exit(0)",
    "of a signal": "os.kill(os.getpid(), signal.SIGKILL)",
}


def test_a_point_that_fails_is_not_finished_and_the_next_starts(tmp_path: Path) -> None:
    commands = FAILURES | {"last": FINISH}
    watched = Watched(commands, workers=1)
    watched.run(tmp_path)
    assert watched.started == [*FAILURES, "last"]
    assert watched.ended == dict.fromkeys(FAILURES, "not finished") | {"last": "finished"}
    assert watched.runner.stopped_by is None


def test_nothing_to_run_is_no_error(tmp_path: Path) -> None:
    watched = Watched({}, workers=2)
    watched.run(tmp_path)
    assert watched.events == []


# --- signals

SIGNALS = (signal.SIGINT, signal.SIGTERM)
KILLER = """
import os, pathlib, sys, time
folder, numbers = pathlib.Path(sys.argv[1]), [int(text) for text in sys.argv[2:]]
def wait_for(pattern):
    for _ in range(1200):
        if len(list(folder.glob(pattern))) == 2:
            return
        time.sleep(0.05)
    sys.exit(f"no two {pattern}")
wait_for("*/ready")
os.kill(os.getppid(), numbers[0])
wait_for("*/signals")
os.kill(os.getppid(), numbers[1])
time.sleep(0.3)  # whatever that one would do
(folder / "release").touch()
"""
"""Sends its parent two signals while two of the parent's runs wait."""


@pytest.mark.parametrize("first", SIGNALS)
def test_a_signal_reaches_every_run_once_and_no_other_starts(
    first: signal.Signals, tmp_path: Path
) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    (second,) = {*SIGNALS} - {first}
    watched = Watched(dict.fromkeys("abcd", WAIT_FOR_SIGNALS), workers=2)
    arguments = [str(tmp_path), str(int(first)), str(int(second))]
    with subprocess.Popen([sys.executable, "-c", KILLER, *arguments]):
        watched.run(tmp_path)
    assert watched.runner.stopped_by == first, "the first counts"
    assert watched.started == ["a", "b"]
    assert watched.ended == {"a": "not finished", "b": "not finished"}
    for name in "ab":
        heard = (tmp_path / name / "signals").read_text().split()
        assert heard == [str(int(signal.SIGTERM))], "each run saves on SIGTERM, and is left to it"
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_signal_while_a_run_is_being_started_reaches_it(tmp_path: Path) -> None:
    watched = Watched(
        dict.fromkeys("ab", "wait_for(lambda: False)"),
        workers=1,
        started=lambda: os.kill(os.getpid(), signal.SIGTERM),
    )
    watched.run(tmp_path)
    assert watched.events == [("a", "started"), ("a", "not finished")]
    assert watched.runner.stopped_by == signal.SIGTERM


def test_a_runner_that_was_stopped_starts_nothing_more(tmp_path: Path) -> None:
    watched = Watched({"a": FINISH}, workers=1)
    watched.runner.stopped_by = signal.SIGTERM
    watched.run(tmp_path)
    assert watched.events == []


# --- what is finished


METRICS = '{"decoders": {"a": {"arms": {"latent": {}}}}}'


def finished(tmp_path: Path, config: Config) -> Plan:
    """A run that has ended, as its folder tells."""
    plan = point(tmp_path, "run", config).plan
    write_status(plan.run_folder, state="finished", code=0)
    (plan.run_folder / FILES["metrics"]).write_text(METRICS)
    tree = yaml.safe_dump(config_file.to_tree(config))
    (plan.run_folder / FILES["config"]).write_text(tree)
    return plan


@pytest.fixture
def config(recipe: str) -> Config:
    return config_file.load(recipe, ["train.stage_b.steps=5"])


def test_a_run_that_ended_with_its_metrics_is_finished(tmp_path: Path, config: Config) -> None:
    plan = finished(tmp_path, config)
    assert is_finished(plan)
    metrics = plan.run_folder / FILES["metrics"]
    for torn in ("", METRICS[:-4], "{}", "[]", '{"decoders": {}}'):
        metrics.write_text(torn)
        assert not is_finished(plan), "it is evaluated again"
    metrics.unlink()
    assert not is_finished(plan)
    metrics.mkdir()
    assert not is_finished(plan)


@pytest.mark.parametrize("state", ["running", "preempted", "stopped", "failed"])
def test_a_run_in_another_state_is_not_finished(state: str, tmp_path: Path, config: Config) -> None:
    plan = finished(tmp_path, config)
    write_status(plan.run_folder, state=state)
    assert not is_finished(plan)


def test_a_run_that_never_began_is_not_finished(tmp_path: Path, config: Config) -> None:
    assert not is_finished(point(tmp_path, "run", config).plan)
    plan = finished(tmp_path, config)
    (plan.run_folder / FILES["config"]).unlink()
    assert not is_finished(plan), "nobody knows what it trained"


def test_only_what_is_trained_must_be_the_same(tmp_path: Path, config: Config) -> None:
    plan = finished(tmp_path, config)
    train = dataclasses.replace(config.train, stage_b=StageConfig(steps=6))
    longer = dataclasses.replace(config, train=train)
    assert not is_finished(dataclasses.replace(plan, config=longer))
    other = dataclasses.replace(config, eval=dataclasses.replace(config.eval, batch_size=1))
    assert is_finished(dataclasses.replace(plan, config=other))
