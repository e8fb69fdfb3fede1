"""Interface files: what they say, what they refuse, how two of them are compared."""

import pickle
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from liquid_policy.interface import (
    Interface,
    InterfaceError,
    differences,
    load_interface,
    main,
    parse_interface,
)

CONFIG = Path(__file__).parents[1] / 'config'
MANIPULATOR = CONFIG / 'manipulator.interface.yaml'
LOADER = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)
DUMPER = getattr(yaml, 'CSafeDumper', yaml.SafeDumper)
SHIPPED = sorted(CONFIG.glob('*.interface.yaml'))


@pytest.fixture
def manipulator() -> Interface:
    return load_interface(MANIPULATOR)


def _data() -> dict:
    return yaml.load(MANIPULATOR.read_text(), LOADER)  # noqa: S506 (a safe one)


def _parsed(data: dict) -> Interface:
    return parse_interface(yaml.dump(data, Dumper=DUMPER, sort_keys=False), 'file.yaml')


def _refusal(data: dict) -> str:
    with pytest.raises(InterfaceError) as caught:
        _parsed(data)
    text = str(caught.value)
    assert text.startswith('file.yaml: ')
    assert 'expected' in text and 'came' in text
    return text


def test_manipulator_is_what_the_design_says(manipulator):
    assert manipulator.action_size == 9
    assert manipulator.vector_size == 12
    assert manipulator.features.size + manipulator.vector_size == 140
    assert manipulator.action_names[6:] == ('suction', 'base_v', 'base_w')
    assert manipulator.action_units == ('rad/s',) * 6 + ('1', 'm/s', 'rad/s')
    assert manipulator.target_names == ('part_x', 'part_y', 'part_z', 'part_speed')
    assert manipulator.slice_of('gripper') == slice(6, 7)
    assert manipulator.slice_of('joint_positions') == slice(6, 12)
    assert manipulator.features.images == ('color', 'depth')
    assert manipulator.clock_source.topic == 'joint_states'


def test_every_topic_is_listed_once_with_its_type(manipulator):
    topics = manipulator.topics()
    assert topics['camera/depth/image_raw'] == 'sensor_msgs/msg/Image'
    assert topics['demonstration/base'] == 'geometry_msgs/msg/TwistStamped'
    assert len(topics) == 11
    assert 'features' not in topics
    without = manipulator.topics(demonstrations=False, targets=False)
    assert set(topics) - set(without) == {
        'demonstration/arm_velocity', 'demonstration/gripper', 'demonstration/base',
        'ground_truth/part'}


@pytest.mark.parametrize('path', SHIPPED, ids=lambda path: path.name)
def test_shipped_files_survive_a_round_trip(path):
    interface = load_interface(path)
    again = parse_interface(interface.to_yaml())
    assert again == interface
    assert differences(interface, again) == []
    assert again.to_yaml() == interface.to_yaml()
    assert pickle.loads(pickle.dumps(interface)) == interface


def test_a_humanoid_with_three_cameras_can_be_said():
    joints = [f'joint_{number}' for number in range(26)]
    data = _data()
    image = {key: value for key, value in data['images']['color'].items()}
    data['images'] = {name: {**image, 'topic': f'{name}/image_raw'}
                      for name in ('head', 'left_wrist', 'right_wrist')}
    data['features']['images'] = ['head', 'right_wrist']
    data['observations']['joint_positions'].update(
        fields=[f'position.{joint}' for joint in joints])
    data['actions'] = {'body': {**data['actions']['arm'], 'names': joints, 'unit': 'rad',
                                'fields': [f'data.{number}' for number in range(26)]}}
    data['limits'] = {joint: {'range': [-1, 1], 'velocity': 2, 'acceleration': 8}
                      for joint in joints}
    interface = _parsed(data)
    assert interface.action_size == 26 and interface.vector_size == 32
    assert interface.features.images == ('head', 'right_wrist')
    assert parse_interface(interface.to_yaml()) == interface


def test_a_robot_without_camera_can_be_said():
    data = _data()
    del data['images'], data['features'], data['targets']
    interface = _parsed(data)
    assert interface.features is None and interface.target_size == 0
    assert parse_interface(interface.to_yaml()) == interface


def _change(*path, to):
    def change(data):
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = to
    return change


def _remove(*path):
    def change(data):
        for key in path[:-1]:
            data = data[key]
        del data[path[-1]]
    return change


WRONG = {
    'unknown field': (_change('images', 'color', 'colour', to=1), 'images.color.colour'),
    'unknown section': (_change('sensors', to={}), 'sensors'),
    'missing field': (_remove('observations', 'imu', 'topic'), 'observations.imu.topic'),
    'missing section': (_remove('actions'), 'actions'),
    'missing limit': (_remove('limits', 'elbow_joint'), 'limits.elbow_joint'),
    'missing acceleration': (_remove('limits', 'base_w', 'acceleration'),
                             'limits.base_w.acceleration'),
    'missing range': (_change('limits', 'suction', to={'velocity': 1.0}), 'limits.suction.range'),
    'limit of nothing': (_change('limits', 'tail', to={'velocity': 1.0}), 'limits.tail'),
    'negative limit': (_change('limits', 'base_v', 'velocity', to=-0.5), 'limits.base_v.velocity'),
    'range upside down': (_change('limits', 'suction', 'range', to=[1.0, 0.0]), 'limits.suction'),
    'rate of zero': (_change('rate', to=0), 'rate'),
    'rate as text': (_change('images', 'depth', 'rate', to='30 Hz'), 'images.depth.rate'),
    'rate true': (_change('rate', to=True), 'rate'),
    'rate not a number': (_change('rate', to=float('nan')), 'rate'),
    'another format': (_change('format', to=7), 'format'),
    'height as a float': (_change('images', 'color', 'height', to=96.0), 'images.color.height'),
    'camera smaller than the picture': (
        _change('images', 'color', 'camera', to=[480, 80]), 'images.color.camera'),
    'camera of one number': (
        _change('images', 'color', 'camera', to=[480]), 'images.color.camera'),
    'camera as a number': (_change('images', 'color', 'camera', to=480), 'images.color.camera'),
    'strange encoding': (_change('images', 'color', 'encoding', to='yuv'), 'encoding'),
    'depth without unit': (_remove('images', 'depth', 'unit'), 'images.depth.unit'),
    'depth without range': (_remove('images', 'depth', 'range'), 'images.depth.range'),
    'colour with range': (_change('images', 'color', 'range', to=[0, 1]), 'images.color.range'),
    'same field twice': (_change('actions', 'base', 'fields', to=['data.0', 'data.0']),
                         'actions.base.fields'),
    'same name twice': (_change('actions', 'gripper', 'names', to=['elbow_joint']),
                        'actions.gripper.names'),
    'same topic twice': (_change('images', 'depth', 'topic', to='camera/color/image_raw'),
                         'images.depth.topic'),
    'too few names': (_change('actions', 'base', 'names', to=['base_v']), 'actions.base.names'),
    'too few units': (_change('actions', 'base', 'units', to=['m/s']), 'actions.base.units'),
    'unknown unit': (_change('actions', 'base', 'units', to=['m/s', 'deg/s']),
                     'actions.base.units'),
    'no unit': (_remove('observations', 'joint_positions', 'unit'),
                'observations.joint_positions.unit'),
    'joint state field': (_change('observations', 'joint_positions', 'fields', to=['elbow_joint']),
                          'observations.joint_positions.fields'),
    'clock that is none': (_change('clock', to='camera'), 'clock'),
    'clock with latency': (_change('observations', 'joint_positions', 'latency', to=0.01),
                           'observations.joint_positions'),
    'slow clock': (_change('observations', 'joint_positions', 'rate', to=50.0),
                   'observations.joint_positions.rate'),
    'always stale': (_change('observations', 'imu', 'max_age', to=0.015),
                     'observations.imu.max_age'),
    'strange alignment': (_change('observations', 'imu', 'align', to='nearest'),
                          'observations.imu.align'),
    'bad type': (_change('observations', 'imu', 'type', to='sensor_msgs/Imu'),
                 'observations.imu.type'),
    'bad topic': (_change('observations', 'imu', 'topic', to='imu data'),
                  'observations.imu.topic'),
    'demonstrated on the command topic': (
        _change('actions', 'gripper', 'demonstration', to='gripper_controller/commands'),
        'actions.gripper.demonstration'),
    'two types on one topic': (
        _change('observations', 'imu', 'topic', to='joint_states'), 'joint_states'),
    'feature of no image': (_change('features', 'images', to=['thermal']), 'features.images'),
    'images as a number': (_change('features', 'images', to=1), 'features.images'),
    'mapping in a list': (_change('features', 'images', to=[{'a': 1}]), 'features.images'),
    'fields that are none': (_change('actions', 'arm', 'fields', to=None), 'actions.arm.fields'),
    'ambiguous pairing': (_change('features', 'pairing', to=0.02), 'features.pairing'),
    'no features': (_remove('features'), 'features'),
    'section as a list': (_change('observations', to=[1, 2]), 'observations'),
    'spec as text': (_change('observations', 'imu', to='imu/data'), 'observations.imu'),
    'obstacle of a mapping': (_change('safety', 'obstacles', 'mast', 'shape', to={}),
                              'safety.obstacles.mast.shape'),
    'points that are none': (_change('safety', 'obstacles', 'mast', 'points', to=None),
                             'safety.obstacles.mast.points'),
    'limits as text': (_change('limits', 'base_v', to=0.5), 'limits.base_v'),
}


def test_quaternions_are_not_interpolated():
    """Between q and -q, the same turn, lies none."""
    data = _data()
    source = data['observations']['imu']
    source['fields'] = [f'orientation.{axis}' for axis in 'xyzw']
    source['units'] = ['1'] * 4
    parse_interface(yaml.safe_dump(data))
    source['align'] = 'interpolate'
    assert "imu.align: expected 'hold' for quaternions" in _refusal(data)


@pytest.mark.parametrize('case', WRONG)
def test_what_cannot_be_meant_is_refused_by_name(case):
    change, where = WRONG[case]
    data = _data()
    change(data)
    assert where in _refusal(data)


def _places(data, path=()):
    yield path
    items = data.items() if isinstance(data, dict) else enumerate(data) \
        if isinstance(data, list) else ()
    for key, value in items:
        yield from _places(value, (*path, key))


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 200), st.floats(), st.text(max_size=8),
    st.sampled_from(['hold', 'rad', 'data.0', 'imu', 'joint_states', 'sensor_msgs/msg/Imu']),
    st.lists(st.one_of(st.text(max_size=3), st.integers(), st.floats(), st.none()), max_size=3),
    st.dictionaries(st.one_of(st.text(max_size=5), st.integers(), st.none()), st.integers(),
                    max_size=2))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_file_does_anything_but_be_read_or_refused(data):
    content = _data()
    for _ in range(data.draw(st.integers(1, 3))):
        *path, last = data.draw(st.sampled_from([place for place in _places(content) if place]))
        owner = content
        for key in path:
            owner = owner[key]
        action = data.draw(st.sampled_from(['replace', 'remove', 'add']))
        if action == 'remove':
            del owner[last]
        elif action == 'add' and isinstance(owner, dict):
            owner[data.draw(st.one_of(st.text(max_size=5), st.integers()))] = data.draw(JUNK)
        else:
            owner[last] = data.draw(JUNK)
    try:
        interface = _parsed(content)
    except InterfaceError as error:
        assert str(error).startswith('file.yaml: ')
    else:
        assert parse_interface(interface.to_yaml()) == interface


def test_a_key_given_twice_is_refused_with_its_lines():
    text = MANIPULATOR.read_text()
    with pytest.raises(InterfaceError, match=r'rate.*line \d+ \(first on line \d+\)'):
        parse_interface(text + '\nrate: 50.0\n')
    twice = text.replace('  base_v: {', '  suction: {range: [0.0, 1.0]}\n  base_v: {')
    with pytest.raises(InterfaceError, match='suction.*each field once'):
        parse_interface(twice)


def test_files_that_are_no_interface_are_refused(tmp_path):
    with pytest.raises(InterfaceError, match='missing.yaml'):
        load_interface(tmp_path / 'missing.yaml')
    for text in ('', '- 1', 'a: [', '\x00', 'just text'):
        path = tmp_path / 'file.yaml'
        path.write_text(text)
        with pytest.raises(InterfaceError, match='file.yaml: '):
            load_interface(path)
    path.write_bytes(b'\xff\xfe\x00')
    with pytest.raises(InterfaceError, match='file.yaml: '):
        load_interface(path)


def test_python_objects_in_a_file_are_not_made():
    with pytest.raises(InterfaceError):
        parse_interface('!!python/object/apply:os.system ["true"]')


def test_differences_name_the_field(manipulator):
    data = _data()
    data['images']['color']['width'] = 128
    data['observations']['imu']['topic'] = 'imu'
    data['limits']['base_v']['velocity'] = 0.3
    found = differences(manipulator, _parsed(data))
    assert found == [
        'images.color.width: expected 96, came 128',
        "observations.imu.topic: expected 'imu/data', came 'imu'",
        'limits.base_v.velocity: expected 0.6, came 0.3']


def test_another_order_is_a_difference(manipulator):
    data = _data()
    data['observations'] = dict(reversed(data['observations'].items()))
    assert manipulator != _parsed(data)
    assert any('observations (order)' in line for line in differences(manipulator, _parsed(data)))


def test_missing_parts_are_differences(manipulator):
    data = _data()
    del data['targets']
    del data['actions']['gripper'], data['limits']['suction']
    lines = differences(manipulator, _parsed(data))
    assert any(line.startswith('actions.gripper.topic') and 'came nothing' in line
               for line in lines)
    assert any(line.startswith('targets.part') for line in lines)


def test_what_is_only_learned_from_does_not_matter_for_running(manipulator):
    data = _data()
    del data['targets']
    data['actions']['arm']['demonstration'] = 'spacemouse/twist'
    data['description'] = 'other.urdf'
    other = _parsed(data)
    assert differences(manipulator, other)
    assert differences(manipulator, other, running=True) == []


def test_the_command_checks_a_file(capsys, tmp_path):
    assert main([str(MANIPULATOR)]) == 0
    out = capsys.readouterr().out
    assert '12 observed numbers, 128 image features, 9 actions' in out
    assert 'base_w [rad/s]: velocity 1.2, acceleration 2.5' in out
    assert 'suction [1]: from 0 to 1' in out
    assert main([str(MANIPULATOR), '--topics']) == 0
    assert capsys.readouterr().out.split() == list(load_interface(MANIPULATOR).topics())
    (tmp_path / 'bad.yaml').write_text('format: 1')
    assert main([str(tmp_path / 'bad.yaml')]) == 2
    assert 'bad.yaml: robot: expected' in capsys.readouterr().err


def test_the_command_compares_two_files(capsys):
    assert main([str(MANIPULATOR), '--against', str(MANIPULATOR)]) == 0
    assert capsys.readouterr().out == 'no difference\n'
    assert main([str(CONFIG / 'six_axis_arm.interface.yaml'), '--against', str(MANIPULATOR)]) == 1
    assert "robot: expected 'manipulator', came 'six_axis_arm'" in capsys.readouterr().out
