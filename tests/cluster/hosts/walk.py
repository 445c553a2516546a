"""A person with three machines and cluster/on-premises/machines.yaml, from `ray up` to `ray down`.

    unshare --net --mount --pid --uts --fork --mount-proc --kill-child \\
        python -m tests.cluster.hosts.walk [PICTURE.svg]

The autoscaler starts with the head alone: demand brings the machines up. In the middle of the work
one is lost, and replaced by an empty one, and the other is cut off from the network until Ray has
given it up. Idleness takes them down. Prints what happens as it does, and at the end a line of
JSON: `problems`, `units`, `rows`, `expected_rows`, `most`, `at_end`, `left` (processes by machine),
`trace` (seconds, machines with Ray, engines up, units done).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import requests
import yaml

from stepwiser.report.ablation import standalone
from stepwiser.report.drawing.charts import Axis, Plot
from stepwiser.run.store import RunStore
from stepwiser.run.units import read_unit
from stepwiser.tasks import make_problems
from tests.chaos.given import make_run
from tests.cluster.hosts.network import SUBNET, WORLD, Network, run
from tests.support.paths import ROOT

HEAD = f"{SUBNET}.11"
WORKERS = (f"{SUBNET}.12", f"{SUBNET}.13")
SHARED = Path("/srv")
"""Stands for the file system that all machines mount."""
DASHBOARD = "http://127.0.0.1:8265"
BIN = Path(sys.executable).parent
PROBLEMS = int(os.environ.get("WALK_PROBLEMS", "600"))
SMALL = " --num-cpus=1 --object-store-memory=120000000"


def cluster_file(folder: Path, key: Path) -> Path:
    """The project's file with what a person edits, and no installation: the machines have it."""
    config = yaml.safe_load((ROOT / "cluster/on-premises/machines.yaml").read_text())
    config["provider"] |= {"head_ip": HEAD, "worker_ips": list(WORKERS)}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": str(key)}
    config |= {"min_workers": 0, "idle_timeout_minutes": 0.5}
    bashrc = [c for c in config["setup_commands"] if "env/bin" in c and "grep" in c]
    assert bashrc, "how the machines find the environment has moved"
    config["setup_commands"] = [f"ln -sfn {BIN.parent} ~/env", *bashrc]
    for kind in ("head", "worker"):
        commands = config[f"{kind}_start_ray_commands"]
        commands[-1] += SMALL
    file = folder / "machines.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    return file


class Trace:
    """How many machines and engines there are, once a second, as the dashboard tells it."""

    def __init__(self, token: Path, folder: Path) -> None:
        self.token = token
        self.folder = folder
        self.points: list[tuple[float, int, int, int]] = []
        self._began = time.monotonic()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def get(self, path: str) -> Any:
        """One answer of the dashboard; None where it gives none now."""
        try:
            headers = {"Authorization": f"Bearer {self.token.read_text().strip()}"}
            answer = requests.get(f"{DASHBOARD}{path}", headers=headers, timeout=20)
            return answer.json() if answer.ok else None
        except (OSError, ValueError):
            return None

    def alive(self) -> dict[str, str]:
        """Ids of the nodes that are up, by address."""
        found = self.get("/api/v0/nodes?limit=100") or {}
        rows = found.get("data", {}).get("result", {}).get("result", [])
        return {row["node_ip"]: row["node_id"] for row in rows if row["state"] == "ALIVE"}

    def engines(self) -> Counter[str]:
        """Engines that are up, by the id of their node."""
        found = self.get("/api/v0/actors?limit=1000") or {}
        rows = found.get("data", {}).get("result", {}).get("result", [])
        alive = [row for row in rows if row["state"] == "ALIVE"]
        return Counter(r["node_id"] for r in alive if r["class_name"] == "RolloutGenerator")

    def units(self) -> int:
        return len(list((self.folder / "units").glob("*.json")))

    def wait(self, what: str, condition: Callable[[], bool], timeout: float = 600) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"{what}: not within {timeout:.0f} s"
            time.sleep(1.0)
        print(f"{time.monotonic() - self._began:6.0f} s  {what}", flush=True)

    def _watch(self) -> None:
        while not self._end.wait(1.0):
            alive, engines = self.alive(), self.engines()
            now = round(time.monotonic() - self._began, 1)
            self.points.append((now, len(alive), sum(engines.values()), self.units()))

    def end(self) -> None:
        self._end.set()
        self._thread.join()


def picture(trace: Sequence[tuple[float, int, int, int]]) -> str:
    """Machines and engines over time, as docs/results/machines.svg shows them."""
    plot = Plot(Axis("seconds", 0.0, trace[-1][0]), Axis("machines, engines", 0.0, 3.5), 560, 200)
    for colour, column in enumerate((1, 2)):
        steps: list[tuple[float, float]] = []
        for row in trace:
            if steps:
                steps.append((row[0], steps[-1][1]))  # a stair, no slope
            steps.append((row[0], float(row[column])))
        plot.line(steps, colour)
    return standalone(plot.svg("Machines of the cluster, and engines at work, over time"))


def main() -> None:
    network = Network()
    run("mount", "-t", "tmpfs", "tmpfs", str(SHARED))
    laptop = WORLD / "laptop"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    os.environ.clear()
    os.environ.update(kept, HOME=str(laptop), TMPDIR=str(laptop), RAY_TMPDIR=str(laptop))
    os.environ["PATH"] = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    os.environ["RAY_AUTH_MODE"] = "token"
    # Ray's second autoscaler does not learn what a machine of one's own has: no demand fits it.
    os.environ["RAY_UP_enable_autoscaler_v2"] = "0"  # noqa: SIM112
    os.chdir(ROOT)
    for address in (HEAD, *WORKERS):
        network.start(address)
    run("ray", "get-auth-token", "--generate")
    file = cluster_file(laptop, network.key)
    problems = make_problems(PROBLEMS, seed=5)
    overrides = make_run(SHARED / "run", problems)
    print(run("ray", "up", "--yes", str(file))[-1500:], flush=True)
    tunnel = subprocess.Popen(
        ["ssh", "-q", "-i", str(network.key), "-o", "StrictHostKeyChecking=no", "-o",
         "UserKnownHostsFile=/dev/null", "-N", "-L", "8265:127.0.0.1:8265", f"root@{HEAD}"]
    )  # fmt: skip
    trace = Trace(laptop / ".ray" / "auth_token", SHARED / "run")
    trace.wait("the head is up, alone", lambda: list(trace.alive()) == [HEAD])
    job = subprocess.Popen(
        ["ray", "job", "submit", "--address", DASHBOARD, "--working-dir", ".", "--",
         "python", "-m", "pipelines.cli", "annotate", *overrides, "engine.count=1",
         "annotate.max_engines=3", "cluster.address=auto", "tracker=none"]
    )  # fmt: skip
    trace.wait("demand has brought both machines", lambda: len(trace.alive()) == 3)
    trace.wait("engines work on every machine", lambda: len(trace.engines()) == 3)
    trace.wait("the first units are done", lambda: trace.units() >= PROBLEMS // 10)
    gone = {trace.alive()[address] for address in WORKERS}
    network.lose(WORKERS[0])
    network.plug(WORKERS[1], connected=False)
    print("lost", WORKERS[0], "and the cable of", WORKERS[1], flush=True)
    trace.wait("both losses are seen", lambda: not gone & set(trace.alive().values()))
    network.start(WORKERS[0])
    network.plug(WORKERS[1], connected=True)
    trace.wait("an empty machine and the one that is back", lambda: len(trace.alive()) == 3)
    trace.wait("with engines of their own", lambda: len(trace.engines()) == 3)
    assert job.wait(timeout=1800) == 0, "the job failed"
    trace.wait("idleness has taken the machines down", lambda: list(trace.alive()) == [HEAD])
    at_end = len(trace.alive())
    trace.end()
    tunnel.kill()
    tunnel.wait()
    print(run("ray", "down", "--yes", str(file))[-1500:], flush=True)
    left = {a: found for a in network.machines if (found := network.ray_processes(a))}
    store = RunStore(SHARED / "run")
    units = [path.stem for path in (SHARED / "run" / "units").glob("*.json")]
    given = [json.loads(line) for line in (SHARED / "given.jsonl").read_text().splitlines()]
    read = [read_unit(store, unit) for unit in units]
    found = {
        "problems": PROBLEMS,
        "units": len(units),
        "rows": sum(len(t) + sum(map(len, values.values())) for t, values in read),
        "expected_rows": sum(1 + len(row["steps"]) for row in given),
        "most": max(point[1] for point in trace.points),
        "at_end": at_end,
        "left": left,
        "trace": trace.points,
    }
    shutil.rmtree(laptop / ".ray", ignore_errors=True)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(picture(trace.points))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
