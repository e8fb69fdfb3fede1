"""The learner learns and forgets little; the session promotes, watches and goes back."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip('torch')

import torch

from liquid_policy.checkpoint import encoder_identity, load_checkpoint
from liquid_policy.cores import OdeCore
from liquid_trainer.online.batch import answer_rows
from liquid_trainer.online.consolidation import Consolidation
from liquid_trainer.online.files import read_lines
from liquid_trainer.online.gate import GateSettings
from liquid_trainer.online.learner import OnlineLearner, resting_policy, with_filter
from liquid_trainer.online.promotion import SETTLED, WATCHING
from liquid_trainer.online.scores import combined_error, score
from liquid_trainer.online.session import OnlineSession, SessionSettings, standing_of
from liquid_trainer.online.settings import LearnerSettings
from liquid_trainer.online.skills import main as online_skills
from liquid_trainer.online.split import TimeSplit
from liquid_trainer.online.time_constants import clamp_time_constants
from liquid_trainer.online.trial import make_candidate, try_out
from liquid_trainer.online.watch import WatchSettings
from liquid_trainer.online.window import Window

TICK = 10_000_000  # ns


@pytest.fixture(scope='module')
def checkpoint():
    """An untrained policy."""
    from untrained_policy import untrained_checkpoint
    return untrained_checkpoint()


def make_window(seed=0, begin=0, gain=0.1, ticks=60, **more):
    """A window in which action and target depend on the joints by `gain`."""
    generator = np.random.default_rng(seed)
    vectors = generator.normal(0.0, 1.0, (ticks, 12)).astype(np.float32)
    actions = gain * np.tile(vectors[:, 6:7], (1, 9))
    return Window((begin + np.arange(ticks)) * TICK,
                  generator.normal(0.0, 1.0, (ticks, 128)).astype(np.float32), vectors,
                  actions, 3.0 * actions[:, :4], **more)


def learn(learner, steps):
    for _ in range(steps):
        for _ in learner.step():
            pass


def test_steps_lower_the_loss_and_leave_encoder_and_checkpoint_alone(checkpoint):
    """In one pass or in several whose gradients add up."""
    before = {name: value.copy() for name, value in checkpoint.weights.items()}
    start = score(resting_policy(checkpoint), [make_window()]).loss[0]
    for passes in (1, 2):
        learner = OnlineLearner(checkpoint, LearnerSettings(
            rate=3e-3, micro_batches=passes, windows=2 // passes, reservoir=8))
        learner.add(make_window())
        learn(learner, 25)
        assert learner.steps == 25
        assert score(learner.policy, [make_window()]).loss[0] < start - 0.1
        assert learner.rate == pytest.approx(3e-3) and learner.policy.encoder is None
    for name, value in before.items():
        np.testing.assert_array_equal(value, checkpoint.weights[name])


def test_a_fit_of_the_estimates_head_lowers_the_error_and_touches_nothing_else(checkpoint):
    """It begins anew each time: what a fit to other windows had learned has no say."""
    learner = OnlineLearner(checkpoint, LearnerSettings(windows=1, stride=1, consolidation=0.0))
    learner.add(make_window())
    learn(learner, 4)
    before = {name: value.clone() for name, value in learner.average.items()}
    learner.attend(0)
    assert not list(learner.refine())       # without rows there is nothing to do
    learn(learner, 4)
    before = {name: value.clone() for name, value in learner.average.items()}
    error = score(learner.policy, [make_window()]).target[0].mean()
    list(learner.refine())
    assert score(learner.policy, [make_window()]).target[0].mean() < 0.8 * error
    for name, value in before.items():
        assert torch.equal(value, learner.average[name]) is not name.startswith('estimate')
    first = learner.average['estimate.layers.0.weight']
    with torch.no_grad():
        learner.policy.estimate.layers[0].weight += 10.0
    list(learner.refine())
    assert (learner.average['estimate.layers.0.weight'] - first).abs().max() < 1.0


def test_a_fit_is_held_to_old_answers_on_old_windows(checkpoint):
    """Old and new windows ask for different heads; held, the old answers stay."""
    old, new = make_window(1), make_window(2, begin=100_000, gain=3.0)
    moved = []
    for hold in (0.0, 30.0):
        learner = OnlineLearner(checkpoint, LearnerSettings(
            rate=1e-6, windows=4, stride=1, hold=hold, recent=1.0, consolidation=0.0))
        before, error = answers(learner, old), score(learner.policy, [new]).target.mean()
        learner.add(old)
        learner.add(new)
        learner.attend(100_000 * TICK, learner.policy)
        learn(learner, 4)
        list(learner.refine())
        assert score(learner.policy, [new]).target.mean() < 0.9 * error
        moved.append(np.abs(answers(learner, old) - before).mean())
    assert moved[1] < 0.5 * moved[0]


def answers(learner, window):
    ticks = np.arange(len(window.ticks))[None]
    return answer_rows(learner.policy, [window], ticks).mean.detach().numpy()


def test_only_windows_since_the_change_count_as_recent(checkpoint):
    learner = OnlineLearner(checkpoint, LearnerSettings(replay=0.0))
    for number in range(8):
        learner.add(make_window(number, begin=60 * number))
    for since, least in ((None, 0), (5 * 60 * TICK, 5), (99 * 60 * TICK, 7)):
        learner.attend(since)
        drawn = {window.ticks[0] // (60 * TICK) for window in learner._draw(200)}
        assert min(drawn) == least and max(drawn) == 7


def test_numbers_that_are_not_finite_change_no_weight(checkpoint):
    """The step is left out and the rate halved."""
    learner = OnlineLearner(checkpoint, LearnerSettings(trim=0.0, windows=1))
    window = make_window()
    window.actions[:] = 1e38
    learner.add(window)
    before = [p.detach().clone() for p in learner.policy.parameters()]
    learn(learner, 1)
    assert learner.refused == 1 and learner.steps == 0 and learner.throttle == 0.5
    assert all((a == b).all() for a, b in zip(before, learner.policy.parameters(), strict=True))


def test_the_ticks_with_the_largest_losses_are_left_out(checkpoint):
    """Three ticks of sixty are wrong by far: with trimming they have no say."""
    gradients = []
    for trim, wrong in ((0.0, False), (0.1, True), (0.0, True)):
        learner = OnlineLearner(checkpoint, LearnerSettings(
            trim=trim, windows=1, stride=1, hindsight=False, burn_in=0.0, consolidation=0.0))
        window = make_window()
        if wrong:
            window.actions[:3] = 30.0
        learner.add(window)
        learn(learner, 1)
        gradients.append(learner.gradient)
    assert abs(gradients[1] - gradients[0]) < 0.5 * abs(gradients[2] - gradients[0])


def test_corrections_come_up_more_often(checkpoint):
    learner = OnlineLearner(checkpoint, LearnerSettings(correction=4.0, burn_in=0.0))
    window = make_window()
    proposed = window.actions.copy()
    proposed[:30] += 5.0
    drawn = np.concatenate([learner._ticks(replace(window, proposed=proposed))
                            for _ in range(50)])
    assert np.mean(drawn < 30) == pytest.approx(0.8, abs=0.05)


def test_consolidation_pulls_back_what_old_skills_depend_on():
    """Known answer: loss a^2 / 2 depends on a only, so its Fisher and pull are a's alone."""
    weight = torch.nn.Parameter(torch.tensor([3.0, 3.0]))
    held = Consolidation([weight], strength=0.5)
    for _ in held.measure([lambda: weight[0].square() / 2 for _ in range(3)]):
        pass
    np.testing.assert_allclose(held.fisher[0], [2.0, 0.0])     # scaled to a mean of 1
    with torch.no_grad():
        weight += 1.0
    weight.grad = torch.zeros(2)
    held.add_gradient()
    np.testing.assert_allclose(weight.grad, [0.5 * 2.0 * 1.0, 0.0])
    assert held.penalty() == pytest.approx(0.5)


@pytest.mark.parametrize('replay', [0.0, 0.5])
def test_replay_keeps_what_recent_windows_contradict(checkpoint, replay):
    """Old windows stay in the reservoir; without replay they are not drawn."""
    learner = OnlineLearner(checkpoint, LearnerSettings(
        replay=replay, recent=1.0, windows=4, reservoir=16))
    old = make_window(1)
    learner.add(old)
    learner.add(make_window(2, begin=100_000))
    assert len(learner.recent) == 1 and len(learner.reservoir) == 1
    drawn = [w.ticks[0] for _ in range(20) for w in learner._draw(4)]
    assert (0 in drawn) is (replay > 0)


def test_time_constants_return_to_their_range():
    core = OdeCore(3, 4)
    with torch.no_grad():
        core.log_tau[:] = torch.tensor([-9.0, -2.0, -1.0, 5.0])
    clamp_time_constants(core)
    np.testing.assert_allclose(core.log_tau.detach().exp(), [0.01, np.exp(-2), np.exp(-1), 1.0],
                               rtol=1e-5)


def test_reduced_precision_gives_nearly_the_same_loss(checkpoint):
    """bfloat16 keeps 8 bits of a number: 1 % is what it can promise."""
    losses = []
    for precision in ('float32', 'bfloat16'):
        learner = OnlineLearner(checkpoint, LearnerSettings(precision=precision, windows=1))
        losses.append(float(learner._loss([make_window()]).detach()))
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_a_candidate_runs_as_it_was_trained_and_shares_the_encoder(checkpoint, tmp_path):
    policy = resting_policy(checkpoint)
    with torch.no_grad():
        policy.head.output.bias += 0.1
    made = make_candidate(checkpoint, policy, 3, {'from': 'x'})
    digest = made.save(tmp_path / 'made.safetensors')
    read = load_checkpoint(tmp_path / 'made.safetensors', digest)
    assert encoder_identity(read) == encoder_identity(checkpoint)
    assert read.version.startswith(f'{checkpoint.version}+online.3-')
    try_out(read, policy, make_window())
    with torch.no_grad():
        policy.head.output.bias += 0.1
    with pytest.raises(ValueError, match='not promoted'):
        try_out(read, policy, make_window())


@pytest.fixture
def make_session(checkpoint, tmp_path):
    """Sessions that go on with one another in one folder."""
    path = tmp_path / 'start.safetensors'
    digest = checkpoint.save(path)

    def make(**more):
        options = {'learner': LearnerSettings(rate=3e-3, windows=2, refinement=2,
                                              consolidation=0.0),
                   'settings': SessionSettings(period=0.1, least_windows=1, attempt=1.0),
                   'split': TimeSplit(period=3.0, held_out=0.9),
                   'gate': GateSettings(least_windows=1), **more}
        return OnlineSession(standing_of(checkpoint, path, digest), tmp_path / 'online', **options)
    return make


def told(session, event):
    """Whether the journal has such a line."""
    return event in [line['event'] for line in session.journal.recent]


def drive(session, windows, until, start=0, gain=0.1):
    """Feed windows of 0.6 s, working 0.1 s at a time, until something holds; return the next."""
    for number in range(start, start + windows):
        session.add(make_window(number, begin=60 * number, gain=gain), 0.6 * number)
        for piece in range(6):
            for _ in session.work(0.6 * number + 0.1 * piece):
                pass
            if until():
                return number + 1
    raise AssertionError([line['text'] for line in session.journal.recent])


def test_better_is_promoted_watched_and_settled_and_a_restart_goes_on(make_session, tmp_path):
    """The whole way; the journal tells it; the next session begins with the promoted one."""
    session = make_session(watch=WatchSettings(windows=4, least_windows=2))
    number = drive(session, 60, lambda: session.announcements)
    announced = session.announcements.popleft()
    assert announced.after < announced.before
    assert load_checkpoint(announced.standing.path, announced.standing.sha256)
    assert session.phase != SETTLED
    drive(session, 20, lambda: told(session, 'settled'), number)
    events = [line['event'] for line in read_lines(tmp_path / 'online' / 'journal.jsonl')]
    assert events.index('promoted') < events.index('settled')
    again = make_session()
    assert again.running == session.running
    assert again.announcements[0].standing == session.running


def test_given_windows_judge_or_are_replayed_never_both(make_session):
    """Whole episodes; thinned out evenly; a restart does not replay them twice."""
    given = [make_window(number, begin=60 * number, episode=f'bag_{number // 4}')
             for number in range(24)]
    session = make_session(skills=given, settings=SessionSettings(skills=5))
    judges = {window.episode for window in session._skills}
    replayed = [window.episode for window in session.learner.reservoir]
    assert session.skills == 5 and judges == {'bag_0', 'bag_3'} and len(replayed) == 16
    assert not judges & set(replayed)
    assert len(list(make_session(skills=given).learner.reservoir)) == 16


def test_nothing_is_tried_until_conditions_are_unusual_and_then_it_is(make_session):
    """Where every error on old skills is known, windows like them raise no alarm."""
    given = [make_window(100 + number, begin=60 * number, episode=f'bag_{number}')
             for number in range(24)]
    session = make_session(skills=given)
    for number in range(30):
        session.add(make_window(number, begin=60 * number), 0.6 * number)
        for _ in session.work(0.6 * number):
            pass
    assert session.learner.steps > 20 and session._made_at is None
    assert session.counts.refusals == session.counts.promotions == 0
    drive(session, 60, lambda: session._made_at is not None, 30, gain=9.0)
    assert told(session, 'alarm') and session.learner._attended == 60 * 30 * TICK
    drive(session, 60, lambda: told(session, 'calm'), 90)
    assert session._made_at is None and session.learner._attended is None


def test_a_candidate_is_judged_by_what_it_has_not_learned_from(make_session):
    """Windows whose judged ticks all come after the newest it has learned from."""
    session = make_session(
        skills=[make_window(99)], gate=GateSettings(least_windows=1, alarm=0.0),
        settings=SessionSettings(period=0.1, least_windows=1, judged=50))
    for number in range(8):
        session.add(make_window(number, begin=30 * number), 0.3 * number)
        for _ in session.work(0.3 * number):
            pass
        if session._made_at is not None:
            assert all(window.ticks[15] > session._made_at for window in session._fresh)
    assert session._made_at is not None and session.held_out
    session.add(make_window(0), 3.0)            # time went back
    assert session._made_at is None and not session.held_out


def test_a_promotion_that_does_worse_live_is_rolled_back(make_session):
    """The graph publishes nonsense with the new version: back to the one before."""
    session = make_session(watch=WatchSettings(windows=8, least_windows=2))
    start = session.running
    number = drive(session, 60, lambda: session.announcements)
    bad = session.announcements.popleft().standing
    for extra in range(number, number + 4):
        window = make_window(extra, begin=60 * extra, version=bad.version)
        window.proposed[:], window.estimated[:] = 5.0, 5.0
        session.add(window, 0.6 * extra)
    assert session.running == start and session.counts.roll_backs == 1
    assert session.announcements[0].standing == start
    assert told(session, 'rolled back') and session.learner.throttle < 1.0


def test_a_session_killed_while_watching_goes_on_watching(make_session):
    """The ledger says what is unsettled; the next session finishes it."""
    session = make_session()
    drive(session, 60, lambda: session.phase == WATCHING)
    bad = session.running
    again = make_session(watch=WatchSettings(windows=8, least_windows=2))
    assert again.phase == WATCHING and again.running == bad
    for extra in range(200, 204):
        window = make_window(extra, begin=60 * extra, version=bad.version)
        window.proposed[:], window.estimated[:] = 5.0, 5.0
        again.add(window, 0.6 * extra)
    assert again.running.version != bad.version and again.counts.roll_backs == 1


def test_a_policy_node_that_does_not_take_it_keeps_what_it_runs(make_session):
    """accept_updates is off: after the patience the promotion is withdrawn."""
    session = make_session(settings=SessionSettings(period=0.1, least_windows=1, attempt=1.0,
                                                    patience=1.0))
    start = session.running
    number = drive(session, 60, lambda: session.announcements)
    for extra in range(number, number + 4):
        window = make_window(extra, begin=60 * extra, version=start.version)
        window.proposed[:] = 0.0
        session.add(window, 0.6 * extra)
    assert session.running == start and session.phase == SETTLED
    assert told(session, 'not taken')
    for extra in range(number + 4, number + 9):
        window = make_window(extra, begin=60 * extra, version='something else')
        window.proposed[:] = 0.0
        session.add(window, 0.6 * extra)
    assert 'something else' in session.foreign


def test_wrong_demonstrations_do_not_pass_the_gate(make_session, checkpoint):
    """Every fifth window shows noise: whatever is promoted is better on the clean truth."""
    session = make_session(gate=GateSettings(least_windows=2))
    start = resting_policy(checkpoint)
    clean = [make_window(1000 + number) for number in range(4)]
    for number in range(24):
        window = make_window(number, begin=60 * number)
        if number % 5 == 4:
            window.actions[:] = np.random.default_rng(number).normal(0, 1, window.actions.shape)
        session.add(window, 0.6 * number)
        for piece in range(3):
            for _ in session.work(0.6 * number + 0.2 * piece):
                pass
    before = combined_error(score(start, clean)).mean()
    assert session.learner.steps > 30
    assert combined_error(score(session.running_policy, clean)).mean() <= before


def test_a_filter_on_the_inputs_goes_with_the_checkpoint(checkpoint, tmp_path):
    """Torch and the run-time form see the same filtered inputs; by default there is no filter."""
    from liquid_policy.stepping import Inputs, Model
    assert resting_policy(checkpoint).low_pass is None
    learner = OnlineLearner(checkpoint, LearnerSettings(low_pass=15.0))
    made = make_candidate(with_filter(checkpoint, learner.settings), learner.policy, 1, {})
    made.save(tmp_path / 'made.safetensors')
    window = make_window(ticks=30)
    model = Model(load_checkpoint(tmp_path / 'made.safetensors'))
    for tick, features, vector in zip(window.ticks, window.features, window.vectors, strict=True):
        step = model.step(Inputs(int(tick) + TICK, features, vector))
    rows = answer_rows(learner.policy, [window], np.array([[29]]))
    told = learner.policy.target_scaling.inverse(rows.mean)[0].detach().numpy()
    np.testing.assert_allclose(step.distribution.estimate_mean, told, atol=1e-4)
    raw = answer_rows(resting_policy(checkpoint), [window], np.array([[29]]))
    assert np.abs((rows.mean - raw.mean).detach().numpy()).max() > 1e-3


def test_the_skills_command_answers_a_missing_bag_with_one_line(checkpoint, tmp_path, capsys):
    checkpoint.save(tmp_path / 'start.safetensors')
    assert online_skills(['--bags', str(tmp_path / 'missing'), '--checkpoint',
                          str(tmp_path / 'start.safetensors'), '--output',
                          str(tmp_path / 'skills'), '--cache', str(tmp_path / 'cache')]) == 1
    said = capsys.readouterr().err
    assert 'missing: expected a bag' in said and said.count('\n') == 1
