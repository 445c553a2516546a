"""`ray up`, autoscaling, a lost machine and `ray down` over machines of one's own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.cluster.hosts.network import ALONE, why_not
from tests.cluster.ssh_connections import ssh_connections
from tests.support.paths import ROOT

REFUSED = why_not()


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.skipif(REFUSED is not None, reason=str(REFUSED))
def test_machines_come_with_demand_are_replaced_and_go() -> None:
    walk = [*ALONE, sys.executable, "-m", "tests.cluster.hosts.walk"]
    # Where the walk ends so does the first process of its namespaces, and all others with it.
    user = f"walk-{os.getpid()}"
    # The laptop's, and those of the head to its machines.
    connections = [ssh_connections(user), ssh_connections("root")]
    new = [folder for folder in connections if not folder.exists()]
    try:
        done = subprocess.run(
            walk,
            cwd=ROOT,
            env={**os.environ, "LOGNAME": user},
            text=True,
            capture_output=True,
            timeout=2000,
        )
    finally:
        for folder in new:
            shutil.rmtree(folder, ignore_errors=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["units"] == found["problems"], "nothing is lost with a machine"
    assert found["rows"] == found["expected_rows"], "nor counted twice"
    assert (found["most"], found["at_end"]) == (3, 1)
    assert not found["left"], "`ray down` leaves nothing"
