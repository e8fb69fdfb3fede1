"""What is queued is dropped when a job fails."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from liquid_trainer.processes import worker_processes


def job(folder, number):
    """Leave a file, or fail if it is the first job."""
    if number == 0:
        raise OSError('no space left')
    time.sleep(0.05)
    (folder / str(number)).touch()
    return number


def test_results_come_from_all_processes(tmp_path):
    with worker_processes(2) as pool:
        assert [future.result() for future in [
            pool.submit(job, tmp_path, number) for number in (1, 2, 3)]] == [1, 2, 3]


def test_a_failure_drops_what_is_queued(tmp_path):
    with pytest.raises(OSError, match='no space left'), worker_processes(2) as pool:
        for future in [pool.submit(job, tmp_path, number) for number in range(100)]:
            future.result()
    assert len(list(tmp_path.iterdir())) < 50


def test_ctrl_c_ends_jobs_that_are_running(tmp_path, request):
    """Well before what they would take, and whatever SIGTERM means to the process."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    request.addfinalizer(lambda: signal.signal(signal.SIGTERM, before))
    with pytest.raises(KeyboardInterrupt), worker_processes(2) as pool:
        workers = [pool.submit(time.sleep, 600.0) for _ in range(10)]
        while not workers[1].running():
            time.sleep(0.01)
        processes = list(pool._processes.values())
        raise KeyboardInterrupt
    for process in processes:
        # The pool's own thread may just be noting the end; asked meanwhile it is not known yet.
        while process.exitcode is None:
            time.sleep(0.01)


_PARENT = """
import os, time
from liquid_trainer.processes import worker_processes
with worker_processes(1) as pool:
    print(pool.submit(os.getpid).result(), flush=True)
    time.sleep(600)
"""


def test_workers_end_when_their_parent_is_killed():
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(p for p in sys.path if p)}
    with subprocess.Popen([sys.executable, '-c', _PARENT], env=environment, text=True,
                          stdout=subprocess.PIPE) as parent:
        worker = int(parent.stdout.readline())
        os.kill(worker, 0)              # it is there
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline:
        try:
            state = Path(f'/proc/{worker}/stat').read_text().rpartition(')')[2].split()[0]
        except OSError:
            return
        if state == 'Z':                # ended, and nobody has asked how
            return
        time.sleep(0.05)
    os.kill(worker, signal.SIGKILL)
    pytest.fail('the worker goes on without its parent')
