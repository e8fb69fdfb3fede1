"""What is compared with what: the trials of each question, and how much is done for a preset."""

from __future__ import annotations

from dataclasses import dataclass, replace

# The trunk and the learning are the same for all; so are the samplers' networks.
BACKBONE = ('head.hidden=256', 'head.layers=3', 'head.dropout=0.1', 'learning.noise=0.005')
HEADS: dict[str, tuple[str, ...]] = {
    'mixture': ('head.components=8',),
    'deterministic': (),
    'imle': ('head.samples=8',),
    'flow': ('head.steps=1', 'head.samples=8'),
    'diffusion': ('head.network=mlp', 'head.schedule=ddim', 'head.steps=10', 'head.samples=1'),
}
CORES = ('ltc', 'ode', 'scan', 'lstm', 'gru', 'cfc-mixed')
SHARES = (0.01, 0.0215, 0.0464, 0.1, 0.2154, 0.4642)
REPLANS = (1, 2, 4)
LOST = 0.3


@dataclass(frozen=True)
class Way:
    """
    How a policy is followed when it is counted.

    :param replan: steps followed of one plan.
    :param lost: share of the observations that never arrive.
    :param elapsed_known: whether the policy is told how long ago the last one came; otherwise it
        is told one period, as if none were missing.
    """

    replan: int = 8
    lost: float = 0.0
    elapsed_known: bool = True


@dataclass(frozen=True)
class Trial:
    """
    One policy to be learned, and the ways of following it that are counted.

    :param question: what it helps to answer; a heading of the report.
    :param label: what tables call it; unique among a task's trials.
    :param core: of the policy.
    :param head: of the policy.
    :param settings: `part.name=value`, on top of the backbone's.
    :param share: of the episodes to learn from.
    :param longer: times the preset's steps of learning.
    :param ways: the first counts, the others are named after what they change.
    """

    question: str
    label: str
    core: str = 'cfc'
    head: str = 'mixture'
    settings: tuple[str, ...] = ()
    share: float = 1.0
    longer: int = 1
    ways: tuple[Way, ...] = (Way(),)

    @property
    def all_settings(self) -> tuple[str, ...]:
        """The backbone's settings, the head's and the trial's own; later ones win."""
        return (*BACKBONE, *HEADS[self.head], *self.settings)


@dataclass(frozen=True)
class Preset:
    """
    How much is done.

    :param steps: of learning.
    :param seeds: of learning; each is a policy of its own.
    :param episodes: fresh ones, for each seed and way.
    :param questions: those that are asked.
    """

    steps: int
    seeds: tuple[int, ...]
    episodes: int
    questions: tuple[str, ...]

    def scaled(self, share: float) -> Preset:
        """
        Return a preset that does a share of this one's work.

        :raises ValueError: if the share is not above 0.
        """
        if not share > 0.0:
            raise ValueError(f'--scale: expected above 0, came {share}')
        return replace(self, steps=max(2, round(share * self.steps)),
                       episodes=max(2, round(share * self.episodes)))


def heads() -> list[Trial]:
    """
    Which head: one backbone, five answers.

    Diffusion is still improving when the others have begun to overfit, so it is given five times
    as long as well; and its usual network.
    """
    return [*(Trial('heads', f'cfc+{head}', head=head,
                    ways=(Way(), *(Way(replan=n) for n in REPLANS)) if head == 'mixture'
                    else (Way(),)) for head in HEADS),
            Trial('heads', 'cfc+diffusion, 5 times as long', head='diffusion', longer=5),
            Trial('heads', 'cfc+diffusion U-Net', head='diffusion',
                  settings=('head.network=unet',))]


def cores() -> list[Trial]:
    """Which core, under the mixture head."""
    return [Trial('cores', f'{core}+mixture', core) for core in CORES]


def solvers() -> list[Trial]:
    """Which solver, for the core that integrates."""
    return [Trial('solvers', f'ode {solver}', 'ode', settings=(f'core.solver={solver}',))
            for solver in ('euler', 'dopri5')]


def sizes() -> list[Trial]:
    """How many hidden units; 64 is the backbone's."""
    return [Trial('sizes', f'{units} units', settings=(f'core.units={units}',))
            for units in (19, 32, 128)]


def components() -> list[Trial]:
    """How many components of the mixture; 8 is the backbone's."""
    return [Trial('components', f'{number} component{"s" * (number > 1)}',
                  settings=(f'head.components={number}',)) for number in (1, 4, 16)]


def fractions() -> list[Trial]:
    """How much data, for the mixture and for diffusion."""
    return [Trial('fractions', f'{head} {share:.2%}', head=head, share=share)
            for share in SHARES for head in ('mixture', 'diffusion')]


def elapsed() -> list[Trial]:
    """Does it help to know the time between observations when a share of them is lost?"""
    lost = ('learning.context=8', f'learning.lost={LOST}')
    return [Trial('elapsed', f'{core}, time {word}', core,
                  settings=(*lost, f'learning.elapsed_known={str(known).lower()}'),
                  ways=(Way(lost=LOST, elapsed_known=known),))
            for core in ('cfc', 'lstm') for word, known in (('known', True), ('ignored', False))]


QUESTIONS = {'heads': heads, 'fractions': fractions, 'cores': cores, 'elapsed': elapsed,
             'sizes': sizes, 'solvers': solvers, 'components': components}
PRESETS = {'quick': Preset(1000, (0,), 40, ('heads',)),
           'full': Preset(6000, (0, 1, 2), 500, tuple(QUESTIONS))}


def trials(questions: tuple[str, ...]) -> list[Trial]:
    """
    Return the trials of questions, in their order.

    :raises ValueError: if one is unknown.
    """
    unknown = [name for name in questions if name not in QUESTIONS]
    if unknown:
        raise ValueError(f'question: expected one of {", ".join(QUESTIONS)}, came {unknown[0]!r}')
    return [trial for name in questions for trial in QUESTIONS[name]()]
