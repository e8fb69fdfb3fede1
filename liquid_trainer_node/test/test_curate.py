"""What is worth learning from: repetitions go, standing about goes, sense and variety stay."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('torch')

from recorded_run import record
from synthetic import follow_episode

from liquid_policy.interface import load_interface
from liquid_trainer.cache import StoredEpisodes
from liquid_trainer.curate import CurationSettings, curate, main, track_of
from liquid_trainer.demonstration_quality import (
    Track,
    Windows,
    idle,
    information,
    kept_stretches,
    make_windows,
    resolution,
    spread,
    take_in_order,
)
from liquid_trainer.selection import (
    Choice,
    SelectedEpisodes,
    chosen_episodes,
    cut,
    read_choices,
    write_choices,
)
from liquid_trainer.train import main as train
from liquid_trainer.windows import Demonstrations

INTERFACE = Path(__file__).parents[2] / 'config' / 'manipulator.interface.yaml'


def _motion(seed, seconds=6.0, noise=0.0, gain=2.0):
    """A hand that goes from one random goal to the next; the state holds goal and place."""
    rng = np.random.default_rng(seed)
    times = np.arange(round(seconds * 50)) / 50
    goals = rng.uniform(-1, 1, (len(times) // 50 + 1, 2)).repeat(50, 0)[:len(times)]
    place, places, actions = np.zeros(2), [], []
    for goal in goals:
        action = gain * (goal - place) + noise * rng.standard_normal(2)
        places.append(place)
        actions.append(action)
        place = place + action / 50
    states = np.concatenate((places, goals), 1)
    return Track(f'{seed}', times, states, np.array(actions), np.zeros((len(times), 0)))


def _shaken(track, seed, share=1e-3):
    rng = np.random.default_rng(seed)
    return dataclasses.replace(
        track, name=f'{track.name} again',
        states=track.states + share * rng.standard_normal(track.states.shape),
        actions=track.actions + share * rng.standard_normal(track.actions.shape))


def test_information_is_that_of_two_correlated_gaussians():
    """Known answer: -log(1 - r^2) / 2 for one number each, within the estimate's spread."""
    rng = np.random.default_rng(0)
    for correlation in (0.0, 0.8):
        first, other = rng.standard_normal((2, 5 * 2048, 1))
        second = correlation * first + np.sqrt(1 - correlation**2) * other
        found = information(Windows(np.zeros(5 * 2048, int), first, second), passes=2)
        assert found[0] == pytest.approx(-0.5 * np.log(1 - correlation**2), abs=0.07)


def test_demonstrations_at_random_add_least_information():
    sound = [_motion(seed) for seed in range(8)]
    # States of the ninth, actions of the tenth: nothing follows from anything.
    mixed = dataclasses.replace(_motion(8), actions=_motion(9).actions)
    scores = information(make_windows([*sound, mixed]))
    assert scores.argmin() == 8


def test_repetitions_are_found_and_the_others_are_not():
    tracks = [_motion(seed) for seed in range(6)]
    tracks += [_shaken(tracks[0], 1), _shaken(tracks[0], 2), _shaken(tracks[3], 3)]
    windows = make_windows(tracks)
    order = take_in_order(windows, np.zeros(len(tracks)), 0.25 * resolution(windows))
    families = [{0, 6, 7}, {3, 8}]
    for family in families:
        assert len(family & set(order.chosen)) == 1
        assert all(order.repeated[index] in family for index in family - set(order.chosen))
    assert set(order.chosen) | set(order.repeated) == set(range(9))
    assert {1, 2, 4, 5} <= set(order.chosen)


def test_greedy_order_is_that_of_trying_every_episode_each_time():
    """The shortcut by old gains changes nothing."""
    tracks = [_motion(seed, seconds=3.0) for seed in range(7)]
    windows = make_windows(tracks)
    scores = np.random.default_rng(0).standard_normal(7)
    found = take_in_order(windows, scores, 0.0).chosen
    both = windows.both[::5]
    reach = np.stack([np.linalg.norm(
        both[:, None] - windows.both[windows.episode == index], axis=-1).min(1)
        for index in range(7)], 1)
    weight = 0.5 + np.argsort(np.argsort(scores)) / 6
    nearest, expected = np.full(len(both), reach.max()), []
    for _ in range(7):
        gains = weight * np.maximum(nearest[:, None] - reach, 0).sum(0)
        gains[expected] = -1
        expected.append(int(gains.argmax()))
        nearest = np.minimum(nearest, reach[:, expected[-1]])
    # Once nothing is gained any more, all that are left are alike.
    assert found[:5] == expected[:5]


def test_standing_is_idle_and_moving_is_not():
    track = _motion(0)
    rng = np.random.default_rng(1)
    still = np.repeat(track.states[150][None], 100, 0)
    paused = Track('paused', np.arange(len(track.times) + 100) / 50,
                   np.concatenate((track.states[:150], still, track.states[150:]))
                   + 1e-4 * rng.standard_normal((len(track.times) + 100, 4)),
                   np.concatenate((track.actions[:150], np.zeros((100, 2)), track.actions[150:])),
                   np.zeros((len(track.times) + 100, 0)))
    quiet = idle(paused, (spread([paused.states]), spread([paused.actions]), np.ones(0)))
    assert quiet[165:235].all()
    assert quiet[:140].mean() < 0.35 and quiet[260:].mean() < 0.35
    parts = kept_stretches(paused.times, quiet, 1.0)
    assert any(end < 4.9 and begin <= 2.9 for begin, end in parts)
    assert sum(end - begin for begin, end in parts) < paused.times[-1] - 0.5


def test_long_pauses_are_cut_to_what_is_allowed():
    times = np.arange(1000) / 100
    quiet = np.zeros(1000, bool)
    assert kept_stretches(times, quiet, 1.0) == [(0.0, 9.99)]
    quiet[300:701] = True       # 3 to 7 s
    assert kept_stretches(times, quiet, 1.0) == [(0.0, 3.5), (6.5, 9.99)]
    quiet[300:701] = False
    quiet[300:390] = True       # short enough
    assert kept_stretches(times, quiet, 1.0) == [(0.0, 9.99)]
    quiet[:] = False
    quiet[:400] = quiet[800:] = True
    (begin, end), = kept_stretches(times, quiet, 1.0)
    assert (begin, end) == pytest.approx((2.99, 9.0))
    assert kept_stretches(times, np.ones(1000, bool), 1.0)[0][1] <= 1.01


def test_settings_and_choices_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match='worst'):
        CurationSettings(worst=1.0)
    with pytest.raises(ValueError, match='earlier to a later'):
        Choice('bag', 0, 'name', ((2.0, 1.0),))


def test_the_most_helpful_are_kept_and_reasons_are_given():
    tracks = [_motion(seed) for seed in range(6)]
    tracks += [_shaken(tracks[0], 1),
               dataclasses.replace(_motion(8), actions=_motion(9).actions, name='nonsense')]
    choices = curate(tracks, CurationSettings(worst=0.15))
    reasons = [choice.reason for choice in choices]
    assert reasons[7] == 'its actions follow least from what is seen'
    assert sorted(bool(reasons[index]) for index in (0, 6)) == [False, True]
    assert [choice.rank for choice in choices if choice.rank] and \
        sorted(choice.rank for choice in choices if choice.rank) == [1, 2, 3, 4, 5, 6]
    fewer = curate(tracks, CurationSettings(keep=3))
    assert sum(bool(choice.parts) for choice in fewer) == 3
    assert {choice.name for choice in fewer if choice.rank} == {
        choice.name for choice in curate(tracks) if 0 < choice.rank <= 3}


def test_a_part_of_an_episode_has_the_images_it_uses():
    episode = follow_episode(0)
    part = cut(episode, 50, 120)
    assert len(part.times) == 70 and part.times[0] == 0.0
    assert np.array_equal(part.actions, episode.actions[50:120])
    for tick in (0, 33, 69):
        assert np.array_equal(part.colors[part.image_index[tick]],
                              episode.colors[episode.image_index[50 + tick]])
    assert part.image_times[part.image_index[0]] == pytest.approx(
        episode.image_times[episode.image_index[50]] - episode.times[50])
    assert cut(episode, 0, len(episode.times)) is episode


def test_parts_are_learned_from_as_episodes_are():
    episodes = StoredEpisodes.of([follow_episode(number) for number in range(3)])
    parts = SelectedEpisodes(episodes, [(0, 0, 60), (0, 100, 200), (2, 20, 90)])
    data = Demonstrations(parts.chosen([1, 2]))
    assert data.bounds.tolist() == [0, 100, 170]
    assert np.array_equal(data.actions[:100], episodes[0].actions[100:200])
    colors, _ = data.read_images(data.images[[0, 169]])
    assert np.array_equal(colors[0], episodes[0].colors[episodes[0].image_index[100]])
    assert np.array_equal(colors[1], episodes[2].colors[episodes[2].image_index[89]])


def test_list_is_written_and_read(tmp_path):
    choices = [Choice('a', 0, 'first', ((0.0, 1.5), (2.0, 3.0)), 1, 2.5),
               Choice('a', 1, 'second', (), reason='repeats first')]
    path = tmp_path / 'list.jsonl'
    write_choices(path, choices, {'settings': {}})
    assert read_choices(path) == choices and choices[0].seconds == pytest.approx(2.5)
    path.write_text('{"format": 7}\n')
    with pytest.raises(ValueError, match='curate'):
        read_choices(path)


@pytest.fixture(scope='module')
def bags(tmp_path_factory):
    """Five recordings, one of them twice."""
    folder, interface = tmp_path_factory.mktemp('bags'), load_interface(INTERFACE)
    for name, seed in (('a', 0), ('b', 1), ('c', 2), ('d', 3), ('e', 4), ('twin', 1)):
        record(folder / name, interface, seconds=1.2, seed=seed, faults=False)
    return folder


@pytest.mark.timeout(300)       # seconds where the machine is free, minutes where it is not
def test_training_learns_from_the_list(bags, tmp_path, capsys):
    listed, cache = tmp_path / 'curated.jsonl', tmp_path / 'cache'
    given = ['--bags', str(bags), '--interface', str(INTERFACE), '--cache', str(cache)]
    assert main([*given, '--output', str(listed), '--workers', '1']) == 0
    printed = capsys.readouterr().out
    assert 'repeats' in printed and '5 of 6' in printed
    choices = read_choices(listed)
    kept = {Path(choice.bag).name for choice in choices if choice.parts}
    assert len(kept) == 5 and len(kept & {'b', 'twin'}) == 1
    # Two of them are cut to half a second by hand: a list can be edited.
    rows = [json.loads(line) for line in listed.read_text().splitlines()]
    for row in rows[1:]:
        if row['parts']:
            row['parts'] = [[0.2, 0.8]]
    listed.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    output = tmp_path / 'run'
    assert train([*given, '--curated', str(listed), '--output', str(output), '--stage-steps',
                  '0,2,0', '--threads', '1', '--width', '0.1', '--held-out', '0.2',
                  '--quiet']) == 0
    card = json.loads((output / 'model_card.json').read_text())
    assert card['episodes'] == 4 and card['episodes_held_out'] == 1
    assert card['ticks'] == 4 * 61


def test_list_of_other_bags_is_refused(bags, tmp_path):
    interface = load_interface(INTERFACE)
    with pytest.raises(ValueError, match='missing, such as elsewhere episode 0'):
        chosen_episodes([Choice('elsewhere', 0, 'x', ((0.0, 1.0),))], [bags / 'a'], interface,
                        tmp_path)
    with pytest.raises(ValueError, match='chosen none'):
        chosen_episodes([Choice(str(bags / 'a'), 0, 'x', ())], [bags / 'a'], interface, tmp_path)


def test_pictures_tell_scenes_apart():
    """A part that moves in front of a still robot is no idle time."""
    episode = follow_episode(1)
    frozen = dataclasses.replace(
        episode, vectors=np.zeros_like(episode.vectors), actions=np.zeros_like(episode.actions))
    seen = track_of(frozen, 'seen')
    blind = dataclasses.replace(seen, scene=np.zeros((len(seen.times), 0)))
    scales = (np.ones(5), np.ones(3), spread([seen.scene]))
    assert seen.scene.shape == (len(episode.times), 36)
    assert idle(blind, (np.ones(5), np.ones(3), np.ones(0))).all()
    assert idle(seen, scales).mean() < 0.5
