"""
What does each choice of how the nodes run buy, from image to command, beside the trainer?

The graph of graph_latency.py as shipped, and with one thing done otherwise at a time: executor,
priorities, when images are answered, threads of the encoder, who collects garbage, and whether the
nodes are kept on cores. All take turns, several times. Transport and quality of service have a
benchmark of their own, transport_loss.py. Run it as

    docker/in_environment.sh python3 test/benchmarks/run_time_choices.py
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
from graph_latency import NODES, Choice, graph_arguments, run
from measuring import about, keep, latency_rows, value_row

# Read by Python before a node begins: the node's own collector is kept from switching it off.
LEAVE_GARBAGE = 'import gc\ngc.disable = gc.freeze = lambda: None\n'


def choices(folder: Path) -> list[Choice]:
    """
    Return what is compared; the first is as shipped.

    :param folder: of a file that Python reads at its start.
    """
    (folder / 'sitecustomize.py').write_text(LEAVE_GARBAGE, encoding='utf-8')
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get('PYTHONPATH', ''))))
    return [
        Choice('as shipped'),
        Choice("executor `single`, rclpy's own", {'executor': 'single'}),
        Choice('no real time, niceness only', {'priority': 0}),
        Choice('neither real time nor niceness', {'priority': 0, 'niceness': 0}),
        Choice('images answered at ticks only', {'answer_images': False}),
        Choice('encoder on two threads', {'threads': 2}),
        Choice('garbage collected by Python itself', environment={'PYTHONPATH': path}),
        Choice('safety kept on one core, the others on the next',
               cores={name: int(name != 'safety') for name in NODES}),
    ]


def main() -> None:
    """Print a table; with --write keep it."""
    parser = graph_arguments(__doc__)
    parser.add_argument('--rounds', type=int, default=2, help='turns of each choice')
    parser.set_defaults(trainer='on', seconds=15.0, settle=6.0)
    options = parser.parse_args()
    os.environ['ROS_DOMAIN_ID'] = str(20 + os.getpid() % 80)
    found: dict[str, dict[str, list]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            for choice in choices(Path(folder)):
                try:
                    rows, one = run(options, options.trainer == 'on', choice)
                except SystemExit as stopped:       # on a busy machine not all can work
                    print(f'{choice.name}: {str(stopped).splitlines()[0]}', flush=True)
                    continue
                own = found.setdefault(choice.name, {'images': [], 'missed': [], 'share': []})
                own['images'].append(one['images'])
                own['missed'] += [(row['value'] * row['n'], row['n']) for row in rows if (
                    row['figure'], row['policy']) == ('missed_deadlines', 'shipped')]
                own['share'].append(sum(row['value'] for row in rows if row['figure'] ==
                                        'cpu_share' and row['policy'] in NODES))
    rows, shared = [], about('separate_processes')
    for name, own in found.items():
        images, missed = np.concatenate(own['images']), np.array(own['missed']).sum(0)
        share = float(np.mean(own['share']))
        rows += latency_rows('stamp_to_command', name, 'shipped', images, shared)
        rows += [value_row('missed_deadlines', name, 'shipped', missed[0] / missed[1], '1',
                           int(missed[1]), shared),
                 value_row('cpu_share', name, 'three_nodes', share, '1', options.rounds, shared)]
        p50, p99 = 1e3 * np.percentile(images, (50, 99))
        print(f'{name}: image stamp to command {p50:.1f} / {p99:.1f} / {1e3 * images.max():.1f} '
              f'ms (p50/p99/max), {missed[0]:.0f} of {missed[1]:.0f} deadlines missed, '
              f'{share:.0%} of a core', flush=True)
    keep(rows, 'run_time_choices', options)


if __name__ == '__main__':
    main()
