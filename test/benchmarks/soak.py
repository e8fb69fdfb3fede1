"""
Do the nodes keep their memory and their pace for as long as they run?

The graph of graph_latency.py at full rate for many minutes: memory of the three nodes every ten
seconds, latencies and missed deadlines of the whole time. Memory is flat when a line through the
second half of the run grows by less than one megabyte an hour for each node, or by less than
two between its two halves on average; the program ends with 1 otherwise. Run it as

    docker/in_environment.sh python3 test/benchmarks/soak.py --minutes 20
"""

from __future__ import annotations

import os
import sys

import numpy as np
from graph_latency import graph_arguments, report, run
from measuring import about, keep, value_row

MEGABYTE = 1e6


def growth(memory: np.ndarray, seconds: float) -> tuple[float, float]:
    """
    Return how memory grows in the second half of a run.

    :param memory: of all nodes, in equal steps of time [bytes], `(N,)`.
    :param seconds: of the whole run.
    :return: slope [bytes/h], and the mean of the last quarter less that of the one before [bytes].
    """
    half = memory[len(memory) // 2:]
    hours = np.linspace(0.0, seconds / 2 / 3600, len(half))
    slope = float(np.polyfit(hours, half, 1)[0]) if len(half) > 1 else 0.0
    middle = len(half) // 2
    return slope, float(half[middle:].mean() - half[:middle].mean()) if middle else 0.0


def main() -> int:
    """Print memory and latencies; 1 if memory is not flat."""
    parser = graph_arguments(__doc__)
    parser.add_argument('--minutes', type=float, default=20.0)
    parser.set_defaults(trainer='off', settle=20.0)
    options = parser.parse_args()
    options.seconds = 60.0 * options.minutes
    os.environ['ROS_DOMAIN_ID'] = str(20 + os.getpid() % 80)
    rows, found = run(options, options.trainer == 'on')
    report(found)
    memory = np.array(found['memory'])
    slope, step = growth(memory, options.seconds)
    for index, value in enumerate(memory[::max(1, len(memory) // 10)]):
        share = index * max(1, len(memory) // 10) / max(len(memory) - 1, 1)
        print(f'  {share * options.minutes:5.1f} min {value / MEGABYTE:8.2f} MB proportional')
    flat = slope < 3 * MEGABYTE or step < 2 * MEGABYTE
    print(f'memory of three nodes: {slope / MEGABYTE:+.2f} MB/h, last quarter '
          f'{step / MEGABYTE:+.2f} MB: {"flat" if flat else "NOT FLAT"}')
    shared = about('separate_processes')
    rows += [value_row('memory_slope', found['task'], 'shipped', slope / 3600, 'B/s', len(memory),
                       shared),
             value_row('memory_step', found['task'], 'shipped', step, 'B', len(memory), shared)]
    keep(rows, 'soak', options)
    return 0 if flat else 1


if __name__ == '__main__':
    sys.exit(main())
