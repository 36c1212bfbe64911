"""`tlkit tune` by workers that are killed, and by two at once on a PostgreSQL server of the test's own."""

import csv
import os
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests import warm
from tests.processes import when_written
from tests.shades import draw_shades

RECIPE = """
name: shades
data: {source: {folder: photos}, image_size: 32, resize: stretch, normalize: none, batch_size: 8, test: 0.25}
model: {backbone: test_resnet, weights: random}
phases: [{train: head, epochs: 1, lr: 1e-2}]
trainer: {accelerator: cpu, devices: 1}
search: {'phases[0].lr': {log: [1e-6, 1e-1]}}
"""
TUNE = ("tune", "recipe.yaml", "--sampler", "random", "--pruner", "none")


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    draw_shades(tmp_path / "photos")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def environment(workplace: Path) -> dict[str, str]:
    return {**os.environ, "TLKIT_CACHE": str(workplace / "cache")}


def trials(study: Path) -> list[dict[str, str]]:
    with (study / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def kill_in_the_second_trial() -> None:
    """Have this process killed while its second trial trains, when it writes its first epoch."""
    folders = set()

    def wanted(path: Path) -> bool:
        if path.parent.name.startswith("tlkit-trial-") and "metrics.csv" in path.name:
            folders.add(path.parent)
        return len(folders) == 2

    when_written(wanted, lambda: os.kill(os.getpid(), signal.SIGKILL))


def test_a_killed_worker_loses_no_trial_and_its_values_are_tried_again(workplace: Path) -> None:
    words, env = (*TUNE, "--out", "study", "--trials", "3"), environment(workplace)
    ended = warm.start(*words, cwd=workplace, env=env, out=workplace / "out", first=kill_in_the_second_trial).finished()
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    with closing(sqlite3.connect(workplace / "study/study.db")) as database, database:
        before = database.execute("SELECT number, state FROM trials ORDER BY number").fetchall()
        finished, unfinished = database.execute("SELECT param_value FROM trial_params ORDER BY trial_id").fetchall()
        database.execute("UPDATE trial_heartbeats SET heartbeat = '2000-01-01 00:00:00'")  # its last sign of life is long ago
    assert before == [(0, "COMPLETE"), (1, "RUNNING")]
    ended = warm.run(*words, cwd=workplace, env=env)
    assert ended.returncode == 0, ended.stderr
    rows = trials(workplace / "study")
    assert [row["state"] for row in rows] == ["complete", "fail", "complete", "complete"]
    tried = [float(row["phases[0].lr"]) for row in rows]
    assert tried[0] == pytest.approx(finished[0])
    assert tried[1] == pytest.approx(unfinished[0])
    assert tried[2] == tried[1]
    assert tried[3] not in tried[:3]


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """The URL of an empty database of a server that only this test reaches, through a socket in its folder."""
    found = shutil.which("initdb")
    programs = [*([Path(found).parent] if found else []), *sorted(Path("/usr/lib/postgresql").glob("*/bin"))]
    if not programs:
        pytest.skip("no PostgreSQL server is installed: apt install postgresql")
    # The server refuses root. Not in tmp_path, which is its user's alone.
    other: dict[str, object] = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
    with TemporaryDirectory(prefix="pg-", dir="/tmp") as place:  # a socket's path has at most 107 bytes
        if other:
            shutil.chown(place, "nobody", "nogroup")

        def call(program: str, *words: str) -> None:
            command = [str(programs[-1] / program), "--pgdata", f"{place}/data", *words]
            subprocess.run(command, check=True, cwd=place, stdout=subprocess.DEVNULL, **other)  # type: ignore[call-overload]

        call("initdb", "--username=tlkit", "--auth=trust", "--no-sync")
        call("pg_ctl", "--wait", "--log", f"{place}/log", "--options", f"-k {place} -c listen_addresses='' -c fsync=off", "start")
        try:
            yield f"postgresql+pg8000://tlkit@/postgres?unix_sock={place}/.s.PGSQL.5432"
        finally:
            call("pg_ctl", "--wait", "--mode=immediate", "stop")


def test_two_workers_share_a_study_in_postgresql(workplace: Path, postgresql: str) -> None:
    words, env = (*TUNE, "--storage", postgresql, "--trials", "6"), environment(workplace)
    started = [warm.start(*words, "--out", name, cwd=workplace, env=env, out=workplace / f"{name}.out") for name in ("one", "two")]
    ended = [process.finished() for process in started]
    assert [process.returncode for process in ended] == [0, 0], ended
    # The worker that ends first may have written a trial of the other one as still running.
    rows = max((trials(workplace / name) for name in ("one", "two")), key=lambda rows: sum(row["state"] == "complete" for row in rows))
    # A worker that is in a trial when the other one finishes the sixth ends it.
    assert len(rows) in (6, 7)
    assert [int(row["trial"]) for row in rows] == list(range(1, len(rows) + 1))
    assert {row["state"] for row in rows} == {"complete"}
    assert len({row["phases[0].lr"] for row in rows}) == len(rows)
    logged = [line for process in ended for line in process.stderr.splitlines() if line.startswith("trial ")]
    assert sorted(int(line.split()[1]) for line in logged) == [int(row["trial"]) for row in rows]
    # Whoever comes later has nothing left to do, and the same best values.
    ended.append(warm.run(*words, "--out", "three", cwd=workplace, env=env))
    assert trials(workplace / "three") == rows
    best = max(rows, key=lambda row: float(row["score"]))
    assert f"lr: {float(best['phases[0].lr']):.6g}"[:9] in (workplace / "three/best.yaml").read_text()
