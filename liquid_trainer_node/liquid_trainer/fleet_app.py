"""
A fleet that learns together through Flower: `flwr run` starts what is here.

`client` is what a robot runs, `server` what brings the robots together: Flower's own strategies,
also the ones that withstand a broken or malicious robot, its secure aggregation (the server sees
sums only) and its differential privacy (updates are clipped on the robot, noise is added).
docs/fleet.md says how to start it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from liquid_trainer.fleet import (
    FleetError,
    FleetMember,
    FleetSettings,
    check_weights,
    travelling_weights,
)
from liquid_trainer.fleet_robot import load_member, load_start, write_checkpoint
from liquid_trainer.fleet_strategy import WEIGHT, FiniteOnly, make_strategy
from liquid_trainer.flower import (
    Array,
    ArrayRecord,
    ClientApp,
    ConfigRecord,
    Context,
    Grid,
    Message,
    MetricRecord,
    RecordDict,
    ServerApp,
    fixedclipping_mod,
)

ROUND = 'server-round'
# What messages of Flower's secure aggregation and of its differential privacy carry.
SECURE, CLIPPING = 'secaggplus_configs', 'clipping_norm'


def make_client(member_of: Callable[[Context], FleetMember]) -> ClientApp:
    """
    Return what a robot runs.

    :param member_of: gives the robot's `FleetMember` for Flower's context.
    """
    app = ClientApp(mods=[_secure_if_asked, _private_if_asked])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        member = member_of(context)
        if 'arrays' not in message.content:
            return Message(_learn_for_sums(member, message.content, context), reply_to=message)
        config = message.content['config']
        _check_model(config.get('model'), member)
        weights, loss = member.learn(_weights(message.content['arrays']), int(config[ROUND]))
        return Message(RecordDict({
            'arrays': _record(weights),
            'metrics': MetricRecord({'loss': loss, WEIGHT: member.seconds})}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        member = member_of(context)
        scores = member.score(_weights(message.content['arrays']))
        return Message(RecordDict({'metrics': MetricRecord(
            {**scores, WEIGHT: member.seconds})}), reply_to=message)

    return app


def _secure_if_asked(message: Message, context: Context, following: Any) -> Message:
    if SECURE not in message.content.config_records:
        return following(message, context)
    from flwr.client.mod import secaggplus_mod
    return secaggplus_mod(message, context, following)


def _private_if_asked(message: Message, context: Context, following: Any) -> Message:
    asked = any(CLIPPING in record for record in message.content.config_records.values())
    return fixedclipping_mod(message, context, following) if asked else following(
        message, context)


def _learn_for_sums(member: FleetMember, content: RecordDict, context: Context) -> RecordDict:
    """Learn for secure aggregation, whose messages name no weights: they come in order."""
    from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
    from flwr.compat.common import recorddict_compat as plain
    asked = plain.recorddict_to_fitins(content, keep_input=True)
    names = list(travelling_weights(member.policy))
    weights, loss = member.learn(
        dict(zip(names, parameters_to_ndarrays(asked.parameters), strict=True)),
        int(asked.config[ROUND]))
    # All robots count alike: sums are of whole numbers, and what counts little loses digits.
    return plain.fitres_to_recorddict(FitRes(
        Status(Code.OK, ''), ndarrays_to_parameters(list(weights.values())), 1,
        {'loss': loss}), keep_input=False)


def run_secure(grid: Grid, context: Context, weights: Mapping[str, np.ndarray], rounds: int,
               robots: int) -> dict[str, np.ndarray]:
    """
    Run all rounds with Flower's secure aggregation and return the weights.

    The server learns the mean of the robots' weights and nothing of a single robot's, so it
    cannot tell a broken one either. Weights are rounded to 4e-6 and clipped to +-8.

    :param weights: to start from.
    """
    from flwr.common import ndarrays_to_parameters
    from flwr.server import LegacyContext, ServerConfig
    from flwr.server.strategy import FedAvg
    from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
    from flwr.server.workflow.constant import MAIN_PARAMS_RECORD
    inner = FedAvg(fraction_evaluate=0.0, min_fit_clients=robots, min_available_clients=robots,
                   on_fit_config_fn=lambda number: {ROUND: number},
                   initial_parameters=ndarrays_to_parameters(list(weights.values())))
    legacy = LegacyContext(context, ServerConfig(num_rounds=rounds), inner)
    # Shares of 2/3 of the robots open a sum, so a third of them may drop out of a round.
    DefaultWorkflow(SecAggPlusWorkflow(1.0, 2 / 3, max_weight=1.0))(grid, legacy)
    summed = legacy.state.array_records[MAIN_PARAMS_RECORD].to_numpy_ndarrays()
    found = dict(zip(weights, summed, strict=True))
    check_weights(found, {name: value.shape for name, value in weights.items()})
    return found


def run_rounds(grid: Grid, strategy: FiniteOnly, weights: Mapping[str, np.ndarray], rounds: int,
               model: str = '') -> tuple[dict[str, np.ndarray], Any]:
    """
    Run all rounds with a strategy; return the weights and Flower's record of the run.

    :param weights: to start from.
    :param model: digest that a robot's own must equal; see `model_digest`.
    """
    result = strategy.start(grid, _record(weights), num_rounds=rounds,
                            train_config=ConfigRecord({'model': model}))
    found = _weights(result.arrays) if result.arrays else dict(weights)
    return found, result


def model_digest(member_or_policy: Any) -> str:
    """Return a digest of what must be equal on all robots: settings, encoder and scales."""
    policy = getattr(member_or_policy, 'policy', member_or_policy)
    digest = hashlib.blake2b(str(policy.settings).encode(), digest_size=8)
    travelling = travelling_weights(policy)
    for name, value in policy.state_dict().items():
        if name not in travelling:
            digest.update(value.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def _check_model(wanted: Any, member: FleetMember) -> None:
    if wanted and wanted != model_digest(member):
        raise FleetError(f'model: expected {wanted}, came {model_digest(member)}; give this robot '
                         'the checkpoint that the fleet starts from')


def _record(weights: Mapping[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.ascontiguousarray(value))
                        for name, value in weights.items()})


def _weights(record: ArrayRecord) -> dict[str, np.ndarray]:
    return {name: array.numpy() for name, array in record.items()}


_MEMBERS: dict[tuple, FleetMember] = {}


def _member_of(context: Context) -> FleetMember:
    """Return the robot that a SuperNode's `--node-config` describes; made once per process."""
    values = {**context.run_config, **context.node_config}
    settings = FleetSettings.of(values)
    key = (values.get('bags'), values.get('checkpoint'), settings)
    if key not in _MEMBERS:
        _MEMBERS[key] = load_member(values, settings)
    return _MEMBERS[key]


client = make_client(_member_of)
server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Run the fleet's rounds as `run_config` says, and write the checkpoint."""
    values = context.run_config
    policy, loaded = load_start(values)
    weights = travelling_weights(policy)
    settings, robots = FleetSettings.of(values), int(values['robots'])
    if values.get('secure'):
        found = run_secure(grid, context, weights, settings.rounds, robots)
    else:
        strategy = make_strategy(str(values['strategy']), robots, int(values['malicious']),
                                 float(values['noise']), float(values['clip']))
        found, result = run_rounds(grid, strategy, weights, settings.rounds,
                                   model_digest(policy))
        for number, robot, why in strategy.refused:
            print(f'round {number}: robot {robot} refused: {why}')
        if not result.arrays:
            raise FleetError('expected weights of at least one robot that can be used, came none '
                             'in any round; nothing is written')
    path = write_checkpoint(policy, loaded, found, Path(str(values['output'])), dict(values))
    print(f'checkpoint: {path}')
