"""Recorded demonstrations hold what happened, and the bag reader finds it."""

import numpy as np
import pytest

from liquid_policy.interface import load_interface
from liquid_sim import drivers, generate, scene
from liquid_trainer.bags import read_episodes

INTERFACE = scene.find_interface()


@pytest.fixture(scope='module')
def recorded(tmp_path_factory):
    """Record one short bag and keep what was really said and done beside it."""
    output = tmp_path_factory.mktemp('demonstrations')
    told: dict = {'demonstration': [], 'part': [], 'stamp': []}
    sink_call = generate.BagSink.__call__

    def listen(self, sim, proposal, demonstration, command):
        part = sim.part()
        told['part'].append(np.full(3, np.nan) if part is None else part.position)
        told['demonstration'].append(demonstration)
        told['stamp'].append(drivers.stamp_of(sim.time))
        sink_call(self, sim, proposal, demonstration, command)

    patch = pytest.MonkeyPatch()
    patch.setattr(generate.BagSink, '__call__', listen)
    job = generate.Job(output / 'episode_00007', 7, 1, INTERFACE, 'seen', 0.2, 0.5)
    figures = generate.record(job)
    patch.undo()
    return output, figures, {key: np.array(value) for key, value in told.items()}


def test_bag_has_its_name_only_when_complete(recorded):
    output, figures, _ = recorded
    assert (output / 'episode_00007').is_dir()
    assert not list((output / '.unfinished').iterdir())
    assert figures['seen'] == 1


def test_reader_finds_every_tick_action_and_target(recorded):
    output, _, told = recorded
    episodes = list(read_episodes([output / 'episode_00007'], load_interface(INTERFACE)))
    assert len(episodes) == 1
    episode = episodes[0]
    # the first image counts 20 ms after its stamp, so the first ticks have nothing to see
    rows = np.searchsorted(told['stamp'], episode.stamps)
    np.testing.assert_array_equal(told['stamp'][rows], episode.stamps)
    assert len(rows) > 0.95 * len(told['stamp'])
    np.testing.assert_allclose(episode.actions, told['demonstration'][rows], atol=1e-6)
    known = np.isfinite(told['part'][rows, 0])
    np.testing.assert_allclose(
        episode.targets[known, :3], told['part'][rows][known], atol=1e-6)
    # a target that falls silent is held for its max_age, 50 ms
    held = np.isfinite(episode.targets[:, 0]) & ~known
    assert held.sum() <= 5 * np.count_nonzero(np.diff(known.astype(int)) < 0)
    # 30 images a second, each used 20 to 60 ms after it was taken
    assert len(episode.images['color']) == pytest.approx(0.3 * len(told['stamp']), rel=0.05)


def test_existing_bags_are_kept(recorded, capsys):
    output, _, _ = recorded
    code = generate.main(['--output', str(output), '--episodes', '1', '--seed', '7',
                          '--interface', str(INTERFACE), '--processes', '1'])
    assert code == 0
    assert '1 bags exist already' in capsys.readouterr().out
