"""Learning from bags of a robot without cameras, and from actions that are positions."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from liquid_policy.checkpoint import load_checkpoint
from liquid_policy.export import to_policy
from liquid_policy.interface import load_interface
from liquid_trainer.building import build_policy, positions_of_actions
from liquid_trainer.cache import cached_episodes
from liquid_trainer.formats.dataset import Dataset, Demonstration, Feature, Layout, even_stamps
from liquid_trainer.import_dataset import Import
from liquid_trainer.learner import Learner, fit_scaling
from liquid_trainer.scores import held_out_scores
from liquid_trainer.settings import LearningSettings
from liquid_trainer.train import main
from liquid_trainer.windows import Demonstrations

RATE = 20.0
JOINTS = ('shoulder', 'elbow')


def reaching(number):
    """Return an episode of two joints that are told to go a fifth of the way home each step."""
    rng = np.random.default_rng(number)
    place, told, seen = rng.uniform(-2, 2, 2), [], []
    for _ in range(30):
        seen.append(place)
        place = 0.8 * place
        told.append(place)
    return Demonstration(f'reach_{number}', even_stamps(30, RATE, number),
                         {'state': np.array(seen, np.float32)}, np.array(told, np.float32))


@pytest.fixture(scope='module')
def bags(tmp_path_factory):
    folder = tmp_path_factory.mktemp('reaching') / 'bags'
    layout = Layout('reacher', RATE, (Feature('state', JOINTS, ('rad', 'rad')),),
                    Feature('action', JOINTS, ('rad', 'rad')))
    Import(Dataset('reaching', layout, tuple(f'reach_{n}' for n in range(8)), reaching),
           folder).run(progress=False)
    return folder


def train(bags, output):
    """Take a few steps and return the model card."""
    code = main(['--bags', str(bags), '--interface', str(bags / 'interface.yaml'), '--output',
                 str(output), '--stage-steps', '1,2,1', '--threads', '1', '--quiet',
                 '--held-out', '0.25', '--cache', str(output / 'cache'), '--core-options',
                 'units=8', '--head-options', 'horizon=4', 'components=2', 'hidden=16'])
    assert code == 0
    return json.loads((output / 'model_card.json').read_text())


def test_the_command_trains_in_one_stage(bags, tmp_path):
    card = train(bags, tmp_path)
    assert (card['images'], card['episodes'], card['episodes_held_out']) == (0, 6, 2)
    rows = [json.loads(line) for line in (tmp_path / 'history.jsonl').read_text().splitlines()]
    assert {row['stage'] for row in rows} == {'core'}
    assert all(np.isfinite(row['loss']) for row in rows if row['kind'] == 'train')
    assert max(row['step'] for row in rows) == 4      # the other stages' steps are its own
    checkpoint = load_checkpoint(tmp_path / 'checkpoint.safetensors')
    assert to_policy(checkpoint).settings.encoder is None
    assert checkpoint.interface == load_interface(bags / 'interface.yaml')


def test_held_out_error_falls_and_relative_actions_start_at_holding_still(bags, tmp_path):
    interface = load_interface(bags / 'interface.yaml')
    torch.manual_seed(0)
    policy = build_policy(interface, 'cfc', core_options=['units=8'],
                          head_options=['horizon=4', 'components=2', 'hidden=16'])
    assert policy.settings.relative == (0, 1) and policy.settings.head.dt == 1 / RATE
    episodes = cached_episodes([bags], interface, tmp_path, workers=1)
    data = Demonstrations(episodes.chosen(range(6)), 1 / RATE)
    held = Demonstrations(episodes.chosen([6, 7]), 1 / RATE)
    fit_scaling(policy, data, interface.action_units, ())
    # Told as differences, which are a fifth of the positions at first and less later.
    assert (policy.action_scaling.scale < 0.5 * policy.input_scaling.scale).all()
    nothing = np.zeros((1, 0), np.float32)
    before = held_out_scores(policy.eval(), held, nothing, ())
    learner = Learner(policy, data, LearningSettings(core_batch=8, core_window=0.5))
    for step in range(60):
        learner.step(step / 60)
    learner.finish()
    after = held_out_scores(policy.eval(), held, nothing, ())
    assert after['nll'] < before['nll'] - 0.3
    assert after['action_error'] < before['action_error']


def test_actions_are_relative_only_where_each_has_a_present_value(bags):
    interface = load_interface(bags / 'interface.yaml')
    assert positions_of_actions(interface) == (0, 1)
    action = interface.actions['action']
    for change in ({'names': ('shoulder', 'wrist')}, {'units': ('rad', '1')}):
        other = dataclasses.replace(action, **change)
        limits = {name: dataclasses.replace(interface.limits['shoulder'], name=name)
                  for name in other.names}
        changed = dataclasses.replace(interface, actions={'action': other}, limits=limits)
        assert positions_of_actions(changed) == ()
        assert build_policy(changed, 'cfc').settings.relative == ()
    assert build_policy(interface, 'cfc', head_options=['dt=0.1']).settings.head.dt == 0.1
