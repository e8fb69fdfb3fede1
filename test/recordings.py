"""Where recorded data lie that are too large for the repository."""

import os
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / 'shared' / 'data'


def recording(name: str) -> Path | None:
    """
    Folder of a recording, None where it is missing.

    Looked for in the folder that the environment variable LIQUID_DATA names, else in
    `shared/data` beside the checkout.

    :param name: of the folder, such as `schunk_6dof_torque`.
    """
    path = Path(os.environ.get('LIQUID_DATA') or FOLDER) / name
    return path if path.is_dir() else None
