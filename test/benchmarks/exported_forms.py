"""
Does the policy pick as many parts with the int8 encoder as with the float32 one?

Makes the int8 checkpoint as `export` does, calibrated with images of recorded bags, and lets both
pick the same parts in simulation. Run it as

    docker/in_environment.sh python3 test/benchmarks/exported_forms.py --bags runs/demonstrations
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from measuring import REPOSITORY, about, arguments, keep

from liquid_policy.checkpoint import load_checkpoint
from liquid_policy.export import ENCODER
from liquid_sim.evaluate import jobs_of, policy_name, rows_of, run_all, table
from liquid_trainer.bags import read_episodes
from liquid_trainer.export_forms import images_of, to_int8

SHIPPED = REPOSITORY / 'liquid_policy_node' / 'checkpoints' / 'manipulator.safetensors'
INTERFACE = REPOSITORY / 'config' / 'manipulator.interface.yaml'


def main() -> None:
    """Print a table for each; with --write keep it."""
    parser = arguments(__doc__)
    parser.add_argument('--checkpoint', type=Path, default=SHIPPED)
    parser.add_argument('--bags', type=Path, nargs='+', required=True)
    parser.add_argument('--images', type=int, default=100, help='to calibrate with')
    parser.add_argument('--parts', type=int, default=60, help='per seed')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1])
    parser.add_argument('--processes', type=int, default=2)
    options = parser.parse_args()
    checkpoint = load_checkpoint(options.checkpoint)
    episodes = list(read_episodes(options.bags, checkpoint.interface))
    graph = to_int8(checkpoint.exports[ENCODER], images_of(episodes, options.images))
    small = replace(checkpoint, version=f'{checkpoint.version}-int8',
                    exports={**checkpoint.exports, ENCODER: graph})
    rows, shared = [], about('two_processes')
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'int8.safetensors'
        small.save(path)
        for form, policy in (('fp32', options.checkpoint), ('int8', path)):
            jobs = jobs_of(policy, 'unseen', options.parts, options.seeds, INTERFACE)
            outcomes = run_all(jobs, options.processes, form)
            print(f'{form}\n{table(outcomes, options.seeds, options.parts)}', flush=True)
            rows += [{**row, 'version': checkpoint.version, 'load': shared['load']}
                     for row in rows_of(outcomes, f'{policy_name(str(policy))} {form}', 'unseen',
                                        options.seeds)]
    keep(rows, 'exported', options)


if __name__ == '__main__':
    main()
