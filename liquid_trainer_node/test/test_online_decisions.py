"""Gate, watch, budget and reservoir: what is decided from numbers alone."""

import json
import os

import numpy as np
import pytest

from liquid_trainer.online.activity import Activity
from liquid_trainer.online.alarm import Alarm
from liquid_trainer.online.budget import Budget
from liquid_trainer.online.files import append_line, read_lines
from liquid_trainer.online.gate import GateSettings, Scores, judge
from liquid_trainer.online.journal import Journal
from liquid_trainer.online.reservoir import Reservoir
from liquid_trainer.online.watch import WatchSettings, find_fault, is_settled
from liquid_trainer.online.window import Window


def scores(loss, error=0.1, action=None):
    loss = np.asarray(loss, float)
    return Scores(loss, np.full(len(loss), np.mean(error) if action is None else action),
                  np.full((len(loss), np.size(error)), error))


@pytest.mark.parametrize('candidate, promote, words', [
    ([0.8, 0.7, 0.9], True, 'better on 100%'),
    (scores([0.8, 0.7, 0.9], 0.1), False, 'target error'),        # more likely, no more precise
    (scores([0.8, 0.7, 0.9], 0.05, 0.2), False, 'action error'),
    # One number that gains much does not pay for the others.
    (scores([0.8, 0.7, 0.9], [0.11, 0.11, 0.11, 0.01], 0.1), False, 'target error'),
    (scores([0.8, 0.7, 0.9], [0.11, 0.08, 0.08, 0.08], 0.1), True, 'x 1.10 0.80 0.80 0.80'),
    (scores([0.8, 0.7, 0.9], [0.15, 0.01, 0.01, 0.01], 0.1), False, 'one target x 1.50'),
    (scores([0.8, 0.7, 0.9], np.nan, 0.1), True, 'better on 100%'),     # no target was measured
    ([1.0, 1.0, 1.0], False, 'no better'),
    ([0.2, 1.1, 1.1], False, 'no better'),          # one window must not decide
    ([0.9, 0.9, np.nan], False, 'not finite'),
])
def test_a_candidate_has_to_be_better_on_most_recent_windows(candidate, promote, words):
    if not isinstance(candidate, Scores):
        candidate = scores(candidate, 0.05)
    running = scores([1.0, 1.0, 1.0], [0.1] * candidate.target.shape[1])
    verdict = judge(running, candidate, None, None, GateSettings())
    assert verdict.promote is promote and words in verdict.reason


@pytest.mark.parametrize('kept, words', [
    (scores([1.2, 1.2]), 'loss grew'), (scores([1.0, 1.0], 0.2), 'error grew')])
def test_a_candidate_that_forgets_is_refused(kept, words):
    """However much better it is on what came lately."""
    verdict = judge(scores([1.0, 1.0], 0.3), scores([0.0, 0.0], 0.05), scores([1.0, 1.0]), kept,
                    GateSettings())
    assert not verdict.promote and verdict.forgetting and words in verdict.reason
    open_gate = GateSettings(enabled=False)
    assert judge(scores([1.0, 1.0]), scores([9.0, 9.0]), None, None, open_gate).promote


def test_the_alarm_hears_a_change_and_no_bad_moments():
    """One of two numbers three times the rare error; a few bad windows in a row say nothing."""
    random = np.random.default_rng(0)
    alarm = Alarm(random.uniform(0.0, 1.0, (200, 2)), 1.8)
    for number in range(200):
        bad = number % 12 < 4
        good = np.nan if number % 12 == 11 else 0.4
        assert not alarm.add(np.array([0.5, 9.0 if bad else good]), number)
    changes = [number for number in range(200, 240)
               if alarm.add(np.array([0.5, 3.0]), number)]
    assert alarm.raised and len(changes) == 1 and 200 <= changes[0] <= 208
    assert alarm.times == pytest.approx(3.0 / (1.8 * 0.95), rel=0.05)
    assert not any(alarm.add(np.array([0.5, 1.2]), number) for number in range(20))     # less
    assert [alarm.add(np.array([0.5, 0.5]), number) for number in range(20)].count(True) == 1
    assert not alarm.raised


def test_the_alarm_says_since_when():
    alarm = Alarm(np.ones((20, 1)), 2.0)
    raised = [(number, alarm.since) for number in range(30)
              if alarm.add(np.array([1.0 if number < 12 else 5.0]), number)]
    assert raised == [(16, 12)]
    with pytest.raises(ValueError, match='at least one window'):
        Alarm(np.zeros((0, 1)), 2.0)


def test_without_held_out_windows_nothing_is_promoted():
    verdict = judge(scores([1.0]), scores([0.0]), None, None, GateSettings(least_windows=2))
    assert not verdict.promote and '1 of 2' in verdict.reason


@pytest.mark.parametrize('before, live, shadow, fault', [
    ([0.1] * 5, [0.1] * 6, [0.1] * 6, ''),
    ([0.1] * 5, [0.3] * 6, [0.1] * 6, 'on the same 6 windows'),   # the one before was better
    ([0.1] * 5, [0.3] * 6, [0.28] * 6, 'rose from 0.100'),        # it rose, and is a bit worse
    ([0.1] * 5, [0.3] * 6, [0.3] * 6, ''),          # conditions changed, for the one before too
    ([0.1] * 5, [0.11] * 6, [0.103] * 6, ''),
    ([0.1] * 5, [0.3] * 6, [0.5] * 6, ''),          # conditions changed; it helps, so it stays
    ([0.1] * 5, [0.9] * 2, [0.1] * 2, ''),          # too few to say
    ([], [0.3] * 6, [0.3] * 6, ''),
])
def test_a_promoted_policy_goes_when_the_live_error_says_so(before, live, shadow, fault):
    found = find_fault(before, live, shadow, WatchSettings(windows=12, least_windows=6))
    assert (fault in found) if fault else not found


def test_a_promotion_that_does_better_is_settled_early():
    settings = WatchSettings(windows=12, least_windows=6)
    assert is_settled([0.1] * 6, [0.2] * 6, settings)
    assert not is_settled([0.1] * 5, [0.2] * 5, settings)
    assert not is_settled([0.2] * 6, [0.2] * 6, settings)
    assert is_settled([0.2] * 12, [0.2] * 12, settings)


def test_the_share_of_the_processor_is_kept():
    """However work comes, the time used stays below share times time plus one burst."""
    now, used = [0.0], [0.0]
    budget = Budget(0.25, burst=0.05, clock=lambda: now[0], used=lambda: used[0])
    random = np.random.default_rng(0)
    longest = 0.0
    for _ in range(400):
        rest = budget.rest()
        now[0] += rest
        piece = random.uniform(0.001, 0.08)
        now[0], used[0] = now[0] + piece, used[0] + piece
        longest = max(longest, used[0] - 0.25 * now[0])
    assert 0.2 < used[0] / now[0] <= 0.26 and longest < 0.05 + 0.08
    assert budget.measured() == pytest.approx(used[0] / now[0])
    budget.share = 0.0
    used[0] += 1.0
    assert budget.rest() == float('inf')
    with pytest.raises(ValueError, match='expected 0 to 64'):
        budget.share = -1.0


def test_a_resting_robot_is_idle():
    from test_online_windows import INTERFACE
    activity = Activity(INTERFACE)
    size = len(INTERFACE.action_names)
    assert activity.idle(0.0)
    activity.note(10.0, np.full(size, 0.5))
    activity.note(10.5, np.zeros(size))
    assert not activity.idle(10.9) and activity.idle(11.1)
    activity.note(12.0)
    assert not activity.idle(12.5)


def window(number, episode=''):
    return Window(np.arange(2) + number, np.full((2, 1), number, np.float32),
                  np.zeros((2, 1), np.float32), np.zeros((2, 1), np.float32),
                  np.zeros((2, 0), np.float32), episode=episode)


def test_the_reservoir_keeps_an_even_sample_and_goes_on_after_a_restart(tmp_path):
    kept = []
    for seed in range(40):
        reservoir = Reservoir(None, 10, seed)
        for number in range(100):
            reservoir.offer(window(number))
        kept += [int(found.features[0, 0]) for found in reservoir]
    # Each of 100 windows is kept with probability 0.1: 100 of 400 from each quarter.
    assert np.abs(np.histogram(kept, bins=4, range=(0, 100))[0] - 100).max() < 35
    first = Reservoir(tmp_path, 4)
    for number in range(9):
        first.offer(window(number))
    (tmp_path / '.window_00001.npz.99.part').write_bytes(b'half')
    again = Reservoir(tmp_path, 4)
    assert len(again) == 4 and again.seen >= 5 and not list(tmp_path.glob('.*.part'))
    assert [f.features[0, 0] for f in again] == [f.features[0, 0] for f in first]


def test_damaged_windows_are_forgotten_and_named(tmp_path):
    reservoir = Reservoir(tmp_path, 4)
    for number in range(4):
        reservoir.offer(window(number, 'spoiled' if number == 2 else ''))
    (tmp_path / 'window_00001.npz').write_bytes(b'noise')
    assert {int(w.features[0, 0]) for w in reservoir.draw(60)} == {0, 2, 3}
    assert 'window_00001' in reservoir.trouble and len(reservoir) == 3
    assert reservoir.forget('spoiled') == 1 and len(reservoir) == 2


def test_a_disk_that_cannot_be_written_leaves_everything_in_memory(tmp_path, monkeypatch):
    """Full or read-only: said in words, and made good when there is room again."""
    replaced = os.replace
    full = OSError(28, 'No space left on device')

    def fail(*arguments):
        raise full
    reservoir, journal = Reservoir(tmp_path / 'replay', 8), Journal(tmp_path / 'journal.jsonl')
    monkeypatch.setattr(os, 'replace', fail)
    monkeypatch.setattr('liquid_trainer.online.journal.append_line', fail)
    for number in range(3):
        assert reservoir.offer(window(number))
        journal.write('refused', f'number {number}')
    assert 'No space left' in reservoir.trouble and 'No space left' in journal.trouble
    assert len(reservoir.draw(5)) == 5 and journal.last == 'number 2'
    monkeypatch.setattr(os, 'replace', replaced)
    monkeypatch.setattr('liquid_trainer.online.journal.append_line', append_line)
    reservoir.offer(window(3))
    journal.write('refused', 'number 3')
    assert not reservoir.trouble and not journal.trouble
    texts = [line['text'] for line in read_lines(tmp_path / 'journal.jsonl')]
    assert texts == [f'number {number}' for number in range(4)]


def test_a_line_cut_short_costs_no_other(tmp_path):
    path = tmp_path / 'journal.jsonl'
    append_line(path, {'text': 'one'})
    with open(path, 'ab') as file:
        file.write(b'{"text": "ha')
    append_line(path, {'text': 'two'})
    assert [line['text'] for line in read_lines(path)] == ['one', 'two']
    assert json.loads(path.read_text().splitlines()[0]) == {'text': 'one'}
