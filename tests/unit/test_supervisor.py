"""The supervisor with tiny real processes: order, logs, a death, a stop, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from services.cli.supervisor import LAST_LINES, Process, ProcessFailed, Supervisor
from services.common.tether import TETHER

SERVE = """
import pathlib, signal, sys, time
name, folder = sys.argv[1], pathlib.Path(sys.argv[2])
def stop(*_):
    with open(folder / "stopped", "a") as file:
        file.write(name + "\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("hello from", name, flush=True)
(folder / name).touch()
while True:
    time.sleep(0.05)
"""

STUBBORN = SERVE.replace("signal.signal(signal.SIGTERM, stop)", "signal.signal(signal.SIGTERM, signal.SIG_IGN)")

WITH_CHILD = """
import pathlib, subprocess, sys, time
name, folder = sys.argv[1], pathlib.Path(sys.argv[2])
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
(folder / "child").write_text(str(child.pid))
(folder / name).touch()
time.sleep(600)
"""


def script(code: str, name: str, folder: Path, **options) -> Process:
    command = [sys.executable, "-c", code, name, str(folder)]
    return Process(name, command, ready=(folder / name).exists, **options)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def eventually(condition) -> bool:
    """Poll for up to a minute: the test's own time limit, not a speed that is asserted."""
    return any(condition() or time.sleep(0.05) for _ in range(1200))


def test_starts_in_order_and_stops_in_reverse(tmp_path):
    lines: list[str] = []
    with Supervisor([script(SERVE, name, tmp_path) for name in ("one", "second")], lines.append) as supervisor:
        assert supervisor.complete
        assert eventually(lambda: "second | hello from second" in lines)
    told = [line for line in lines if "ready" in line or "starting" in line or "stopping" in line]
    assert [line.split(" after")[0] for line in told] == [
        "one    | starting",
        "one    | ready",
        "second | starting",
        "second | ready",
        "second | stopping",
        "one    | stopping",
    ]
    assert (tmp_path / "stopped").read_text().split() == ["second", "one"]
    assert "one    | hello from one" in lines


def test_a_death_ends_all_with_its_name_and_last_lines(tmp_path):
    dies = (
        "import pathlib, sys, time\n"
        "[print('line', n) for n in range(50)]\n"
        "pathlib.Path(sys.argv[2], sys.argv[1]).touch()\n"
        "time.sleep(0.3); sys.exit('the reason')"
    )
    lines: list[str] = []
    processes = [script(SERVE, "one", tmp_path), script(dies, "two", tmp_path)]
    with pytest.raises(ProcessFailed) as caught, Supervisor(processes, lines.append) as supervisor:
        supervisor.wait()
    told = caught.value.message.splitlines()
    assert told[0] == "two ended by itself with exit code 1; its last lines:"
    assert told[-1] == "  the reason"
    assert told[-2] == "  line 49"
    assert len(told) == 1 + LAST_LINES
    assert (tmp_path / "stopped").read_text().split() == ["one"]


def test_a_death_before_ready_stops_the_start(tmp_path):
    processes = [
        script(SERVE, "one", tmp_path),
        script("import os; os.kill(os.getpid(), 9)", "two", tmp_path),
        script(SERVE, "three", tmp_path),
    ]
    with pytest.raises(ProcessFailed, match="two ended by itself with signal SIGKILL; its last lines: none"):
        Supervisor(processes, lambda line: None).__enter__()
    assert (tmp_path / "stopped").read_text().split() == ["one"]
    assert not (tmp_path / "three").exists()


def test_not_ready_in_time(tmp_path):
    slow = Process("slow", [sys.executable, "-c", SERVE, "slow", str(tmp_path)], lambda: False, ready_timeout_s=0.2)
    with pytest.raises(ProcessFailed, match="slow is not ready after 0 s"):
        Supervisor([slow], lambda line: None).__enter__()


def test_a_process_that_does_not_stop_is_killed(tmp_path):
    lines: list[str] = []
    with Supervisor([script(STUBBORN, "one", tmp_path, stop_timeout_s=0.2)], lines.append):
        pass
    assert lines[-1] == "one | killed: it did not stop in 0 s"


def test_children_end_with_their_process(tmp_path):
    with Supervisor([script(WITH_CHILD, "one", tmp_path)], lambda line: None):
        child = int((tmp_path / "child").read_text())
        assert alive(child)
    assert eventually(lambda: not alive(child))


def test_wait_returns_when_a_stop_is_requested(tmp_path):
    with Supervisor([script(SERVE, "one", tmp_path)], lambda line: None) as supervisor:
        supervisor.request_stop()
        supervisor.wait()
    assert (tmp_path / "stopped").read_text().split() == ["one"]


def test_a_stop_requested_early_starts_nothing_more(tmp_path):
    processes = [script(SERVE, "one", tmp_path), script(SERVE, "two", tmp_path)]
    supervisor = Supervisor(processes, lambda line: None)
    supervisor.request_stop()
    with supervisor:
        assert not supervisor.complete
    assert not (tmp_path / "two").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_a_killed_supervisor_leaves_no_orphan(tmp_path):
    program = (
        "import sys, pathlib\n"
        "from services.cli.supervisor import Process, Supervisor\n"
        "folder = pathlib.Path(sys.argv[2])\n"
        "process = Process('one', [sys.executable, '-c', sys.argv[1], 'one', str(folder)], (folder / 'one').exists)\n"
        "with Supervisor([process], print) as supervisor:\n"
        "    (folder / 'pid').write_text(str(supervisor._running[0]._popen.pid))\n"
        "    supervisor.wait()\n"
    )
    supervising = subprocess.Popen([sys.executable, "-c", program, SERVE, str(tmp_path)], stdout=subprocess.DEVNULL)
    try:
        assert eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        pid = int((tmp_path / "pid").read_text())
        assert alive(pid)
    finally:
        supervising.send_signal(signal.SIGKILL)
        supervising.wait()
    assert eventually(lambda: not alive(pid))
    assert (tmp_path / "stopped").read_text().split() == ["one"]


def test_a_tether_whose_parent_is_gone_starts_nothing(tmp_path):
    marker = tmp_path / "started"
    code = f"import pathlib; pathlib.Path({str(marker)!r}).touch()"
    command = [sys.executable, TETHER, str(os.getppid()), sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the parent is gone" in done.stderr
    assert not marker.exists()
