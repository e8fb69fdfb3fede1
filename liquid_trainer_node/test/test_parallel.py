"""Several processes learn what one does; the loss of one ends the others."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip('torch')
sys.path.insert(0, str(Path(__file__).parent))

from learn_together import task_losses, training  # noqa: E402

from liquid_policy.checkpoint import load_checkpoint  # noqa: E402
from liquid_trainer.parallel import Group, average_gradient  # noqa: E402

# Three processes that import torch: seconds on a free machine, minutes on a busy one.
pytestmark = pytest.mark.timeout(600)
SCRIPT = Path(__file__).parent / 'learn_together.py'
PACKAGES = ('liquid_policy_node', 'liquid_trainer_node')


def _environment(**more):
    root = Path(__file__).parents[2]
    path = os.pathsep.join([*(str(root / name) for name in PACKAGES),
                            os.environ.get('PYTHONPATH', '')])
    return {**os.environ, 'PYTHONPATH': path, 'GLOO_SOCKET_IFNAME': 'lo', 'OMP_NUM_THREADS': '1',
            **{name: str(value) for name, value in more.items()}}


@pytest.fixture(scope='module')
def together(tmp_path_factory):
    """Folder of a training in two processes that torchrun started."""
    folder = tmp_path_factory.mktemp('together')
    done = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2',
         str(SCRIPT), 'learn', str(folder)],
        env=_environment(), capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    """Folder of the same training in this process."""
    folder = tmp_path_factory.mktemp('alone')
    threads = torch.get_num_threads()
    torch.set_num_threads(1)        # as the two have; sums over more are rounded otherwise
    training(folder, Group()).run()
    torch.set_num_threads(threads)
    return folder


def _steps(folder):
    return [json.loads(line) for line in (folder / 'steps.jsonl').read_text().splitlines()]


def test_two_processes_have_the_losses_of_one(together, alone):
    came, known = _steps(together), _steps(alone)
    assert len(came) == len(known) == 7
    for ours, theirs in zip(came, known, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            # Two sums of two float32 numbers in another order: equal but for rounding.
            assert ours[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    ours, theirs = (load_checkpoint(folder / 'checkpoint.safetensors').weights
                    for folder in (together, alone))
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


def test_two_processes_learn_a_task_like_one(together):
    losses = json.loads((together / 'task.json').read_text())
    assert losses == pytest.approx(task_losses(Group()), rel=1e-5)


def test_only_the_leading_process_writes(together):
    rows = [json.loads(row) for row in (together / 'history.jsonl').read_text().splitlines()]
    assert {(row['stage'], row['kind']) for row in rows} == {
        (stage, kind) for stage in ('frames', 'core', 'joint') for kind in ('train', 'held_out')}
    # Two writers would have noted steps twice.
    steps = [(row['stage'], row['step']) for row in rows if row['kind'] == 'train']
    assert len(steps) == len(set(steps))
    assert len(list((together / 'tensorboard').iterdir())) == 1
    assert load_checkpoint(together / 'checkpoint.safetensors').card['processes'] == 2


def test_state_saved_by_two_processes_is_gone_on_from_by_one(together, alone, tmp_path):
    """What was carried by the other process is in the saved state, too."""
    theirs, ours = (training(folder, Group(), resume=True).learner
                    for folder in (alone, together))
    assert ours.stage == theirs.stage == 'joint'
    torch.testing.assert_close(ours.carried, theirs.carried, rtol=1e-3, atol=1e-5)
    assert (ours.carried[1] != 0).any()


def test_other_bags_in_one_process_are_refused_in_all(together):
    for rank in (0, 1):
        text = (together / f'refused_{rank}.txt').read_text()
        assert 'expected the same in all 2 processes, came something else in [1]' in text


def test_lost_process_ends_the_others_with_a_message(tmp_path):
    common = {'WORLD_SIZE': 2, 'LOCAL_WORLD_SIZE': 2}
    processes = [subprocess.Popen(
        [sys.executable, str(SCRIPT), 'die', f'file://{tmp_path}/meeting'],
        env=_environment(RANK=rank, LOCAL_RANK=rank, **common), stderr=subprocess.PIPE,
        text=True) for rank in (0, 1)]
    try:
        _, error = processes[0].communicate(timeout=500)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert processes[0].returncode == 1 and processes[1].returncode == -9
    assert 'process 0 of 2: expected all processes of the training to add' in error
    assert 'go on with --resume' in error


def test_gradient_is_that_of_the_mean_of_the_shards():
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    unused = torch.nn.Parameter(torch.tensor(1.0))
    mean = torch.tensor(10.0)
    samples = torch.tensor([[1.0, 2.0], [3.0, 5.0]])

    def loss_of(shard):
        mean.lerp_(samples[shard].mean(), 0.5)
        loss = (weight * samples[shard]).square().sum()
        return loss, {'odd': loss * 2} if shard else {}

    loss, parts = average_gradient(Group(), 2, [weight, unused], [mean], loss_of,
                                   ('odd', 'never'))
    # Squares: (1 + 16) and (9 + 100); the gradient of w^2 s^2 is 2 w s^2.
    assert loss == pytest.approx((17 + 109) / 2)
    assert parts == {'odd': pytest.approx(218.0)}
    assert weight.grad.tolist() == pytest.approx([1 + 9, 2 * 4 + 2 * 25])
    assert unused.grad is None
    # Each shard starts at 10 and goes half of the way to 1.5 and to 4.
    assert float(mean) == pytest.approx((5.75 + 7.0) / 2)


def test_shards_that_cannot_be_shared_out_are_refused():
    assert list(Group(rank=1, size=2).own(6)) == [3, 4, 5]
    with pytest.raises(ValueError, match='expected a multiple of the 2 processes, came 3'):
        Group(size=2).own(3)
