"""Machines with addresses of their own on a bridge, each with sshd, within this machine.

What calls this must be alone in its network, mount and process namespaces (`alone`): `ray stop` and
`ray down` end every Ray process that they see.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

SUBNET = "10.77.0"
HERE = Path(__file__).parent
WORLD = Path("/mnt")
"""Of the laptop; the machines' folders lie below it, in memory."""
ALONE = ("unshare", "--net", "--mount", "--pid", "--uts", "--fork", "--mount-proc", "--kill-child")

SSHD = """\
Port 22
HostKey /mnt/host_key
AuthorizedKeysFile /mnt/authorized_keys
PermitRootLogin yes
PasswordAuthentication no
StrictModes no
UsePAM no
PidFile none
LogLevel QUIET
SetEnv HOME=/mnt TMPDIR=/mnt RAY_TMPDIR=/mnt OMP_NUM_THREADS=1 RAY_worker_niceness=0 PATH={path}
"""


def why_not() -> str | None:
    """Why no machines can be made here; None where they can."""
    if os.geteuid():
        return "needs root: machines are network namespaces"
    missing = [name for name in ("unshare", "ip", "rsync", "ssh") if not shutil.which(name)]
    if not Path("/usr/sbin/sshd").exists():
        missing.append("sshd")
    if missing:
        return f"needs {', '.join(missing)} (Debian: iproute2 openssh-server rsync)"
    tried = subprocess.run(
        [*ALONE, "ip", "link", "add", "br0", "type", "bridge"], capture_output=True, text=True
    )
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else None


def run(*command: str) -> str:
    """What a command printed; its complaint is in the error where it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


@dataclass
class Network:
    """A bridge, this side of it (a laptop), and machines that come and go."""

    key: Path = WORLD / "laptop" / "key"
    machines: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        run("mount", "-t", "tmpfs", "tmpfs", str(WORLD))
        self.key.parent.mkdir()
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key))
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "br0", "type", "bridge")
        run("ip", "addr", "add", f"{SUBNET}.1/24", "dev", "br0")
        run("ip", "link", "set", "br0", "up")

    def start(self, address: str) -> None:
        """A machine of that address, with an empty disk; returns when it can be logged in to."""
        number = address.rpartition(".")[2]
        folder = WORLD / f"host-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        (folder / "sshd_config").write_text(SSHD.format(path=path))
        shutil.copy(self.key.with_suffix(".pub"), folder / "authorized_keys")
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "host_key"))
        command = [*ALONE, "bash", str(HERE / "host.sh"), str(folder), address]
        self.machines[address] = subprocess.Popen(command)
        inner = self._first_process(address)
        run("ip", "link", "add", f"veth{number}", "type", "veth", "peer", "name", "eth0",
            "netns", str(inner))  # fmt: skip
        run("ip", "link", "set", f"veth{number}", "master", "br0", "up")
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection((address, 22), timeout=1).close()
                return
            except OSError:
                assert time.monotonic() < deadline, f"{address} has no sshd"
                time.sleep(0.1)

    def lose(self, address: str) -> None:
        """Power off, without a word to anybody."""
        os.kill(self._first_process(address), signal.SIGKILL)
        self.machines.pop(address).wait()
        shutil.rmtree(WORLD / f"host-{address.rpartition('.')[2]}")

    def plug(self, address: str, connected: bool) -> None:
        """Pull the machine's cable, or put it back; what runs there goes on."""
        number = address.rpartition(".")[2]
        run("ip", "link", "set", f"veth{number}", "up" if connected else "down")

    def ssh(self, address: str, command: str) -> str:
        return run("ssh", "-q", "-i", str(self.key), "-o", "StrictHostKeyChecking=no",
                   "-o", "UserKnownHostsFile=/dev/null", f"root@{address}", command)  # fmt: skip

    def ray_processes(self, address: str) -> list[str]:
        """Ray's processes on a machine."""
        inner = self._first_process(address)
        lines = run("nsenter", "-t", str(inner), "-p", "-m", "ps", "-eo", "args").splitlines()
        marks = ("ray::", "raylet", "gcs_server", "ray/dashboard", "autoscaler")
        return [line for line in lines if any(mark in line for mark in marks)]

    def _first_process(self, address: str) -> int:
        """As seen from here: the child of `unshare`."""
        outer = self.machines[address].pid
        deadline = time.monotonic() + 30
        while True:
            children = Path(f"/proc/{outer}/task/{outer}/children").read_text().split()
            if children:
                return int(children[0])
            assert time.monotonic() < deadline, f"{address} did not start"
            time.sleep(0.05)
