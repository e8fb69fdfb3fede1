"""What is queued is dropped when a job fails."""

import time

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
