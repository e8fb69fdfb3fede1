"""Pictures of the cell come out as files that open, and show what they should."""

import cv2
import numpy as np
import pytest
from PIL import Image

from liquid_sim import render, scene

INTERFACE = scene.find_interface()


def pictures(count=3):
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)
    return [np.dstack([np.tile(ramp, (48, 1))] * 3) // (i + 1) for i in range(count)]


@pytest.mark.parametrize('ending', ['.gif', '.webp', '.mp4'])
def test_animations_hold_every_picture(tmp_path, ending):
    path = tmp_path / f'run{ending}'
    assert render.save(pictures(3), path, 10.0) == 3
    if ending == '.mp4':
        capture = cv2.VideoCapture(str(path))
        assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    else:
        assert Image.open(path).n_frames == 3


def test_unknown_ending_is_refused(tmp_path):
    with pytest.raises(ValueError, match='expected one of .png'):
        render.save(pictures(), tmp_path / 'run.avi', 10.0)


def test_rendered_run_moves(tmp_path):
    path = tmp_path / 'run.png'
    assert render.main([str(path), '--seconds', '0.2', '--rate', '10', '--height', '120',
                        '--interface', str(INTERFACE)]) == 0
    picture = np.asarray(Image.open(path))
    assert picture.shape == (120, 220, 3) and picture.std() > 20
