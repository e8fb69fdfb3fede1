"""Data sets to bags and back: every number, image and time, and the interface made for them."""

from dataclasses import replace

import numpy as np
import pytest
from small_dataset import LAYOUT, LENGTHS, RATE, dataset, episode, same

from liquid_policy.interface import load_interface, parse_interface
from liquid_trainer.bags import read_episodes
from liquid_trainer.formats.bag_episodes import Plan, bag_layout, read_bags, write_bag
from liquid_trainer.formats.dataset import (
    Dataset,
    Feature,
    FormatError,
    Layout,
    with_velocities,
)
from liquid_trainer.formats.interfaces import (
    Extent,
    derive_interface,
    extent_of,
    interface_text,
    number_name,
    plain_name,
    with_units,
)
from liquid_trainer.import_dataset import Import, training_size


def imported(folder, made=None, **options):
    """Import a data set and return the interface that was written beside it."""
    made = made or dataset()
    options = {'sizes': {}, 'report': lambda text: None, **options}
    assert Import(made, folder, **options).run(progress=False) == len(made)
    return load_interface(folder / 'interface.yaml')


def with_both_cameras(interface):
    """Return the interface with both images in the stack that perception sees."""
    return replace(interface, features=replace(interface.features, images=('front', 'distance')))


def test_bags_hold_exactly_what_was_imported(tmp_path):
    interface = with_both_cameras(imported(tmp_path / 'bags'))
    back = list(read_bags([tmp_path / 'bags'], interface))
    assert [e.name for e in back] == ['try_0', 'try_1', 'try_2']
    for number, found in enumerate(back):
        same(found, episode(number))


def test_training_reads_the_same(tmp_path):
    interface = imported(tmp_path / 'bags')
    found = list(read_episodes(tmp_path / 'bags', interface))
    assert [len(e) for e in found] == list(LENGTHS)
    for number, e in enumerate(found):
        wanted = episode(number)
        np.testing.assert_array_equal(e.vectors, np.concatenate(
            (wanted.vectors['state'], wanted.vectors['force']), 1))
        np.testing.assert_array_equal(e.actions, wanted.actions)
        # The image of a step is the one seen at that step.
        np.testing.assert_array_equal(e.image_index, np.arange(len(e)))
        np.testing.assert_array_equal(e.colors, np.stack(list(wanted.frames['front']())))


def test_derived_interface_says_what_it_can_and_what_is_to_be_edited(tmp_path):
    imported(tmp_path / 'bags')
    text = (tmp_path / 'bags' / 'interface.yaml').read_text()
    interface = parse_interface(text)
    assert 'correct what a data set does not tell' in text
    assert interface.rate == RATE and interface.robot == 'tester'
    assert interface.vector_names == ('shoulder', 'elbow', 'wrist.turn', 'push', 'pull')
    assert interface.vector_units == ('rad', 'rad', '1', 'N', 'N')
    actions = np.concatenate([episode(n).actions for n in range(3)])
    low, high = interface.limits['grip'].range
    assert low < actions[:, 3].min() and actions[:, 3].max() < high
    speed = max(np.abs(np.diff(episode(n).actions[:, 0])).max() for n in range(3)) * RATE
    assert speed < interface.limits['shoulder'].velocity < 1.1 * speed


def test_an_own_interface_picks_and_orders_numbers_by_name(tmp_path):
    derived = imported(tmp_path / 'first')
    text = derived.to_yaml()
    source = derived.observations['state']
    turned = replace(source, fields=source.fields[::-1], names=source.names[::-1],
                     units=source.units[::-1])
    own = replace(parse_interface(text), observations={'state': turned}, images={}, features=None)
    Import(dataset(), tmp_path / 'second', own).run(progress=False)
    assert not (tmp_path / 'second' / 'interface.yaml').exists()
    (first, *_) = read_bags([tmp_path / 'second'], own)
    np.testing.assert_array_equal(first.vectors['state'], episode(0).vectors['state'][:, ::-1])


def test_numbers_and_images_the_data_set_lacks_are_refused(tmp_path):
    interface = imported(tmp_path / 'bags')
    lacking = Layout('tester', RATE, LAYOUT.observations[1:], LAYOUT.action, LAYOUT.pictures)
    with pytest.raises(FormatError, match=r"observations called \['shoulder', 'elbow', "
                                          r"'wrist.turn'\], as the interface says, came \['push'"):
        Plan(Dataset('x', lacking, (), episode), interface)
    lacking = replace(LAYOUT, pictures=LAYOUT.pictures[1:])
    with pytest.raises(FormatError, match=r"images called 'front'.*came \['distance'\]"):
        Plan(Dataset('x', lacking, (), episode), interface)


def test_an_interface_whose_messages_come_late_finds_them_at_the_same_step(tmp_path):
    derived = with_both_cameras(imported(tmp_path / 'first'))
    late = replace(derived, features=replace(derived.features, latency=0.06, max_age=0.2),
                   observations={**derived.observations, 'force': replace(
                       derived.observations['force'], latency=0.07, max_age=0.2)})
    Import(dataset(), tmp_path / 'second', late).run(progress=False)
    for number, found in enumerate(read_bags([tmp_path / 'second'], late)):
        same(found, episode(number))


def test_velocities_are_measured_with_the_positions(tmp_path):
    made = with_velocities(dataset(), ['state'])
    interface = imported(tmp_path / 'bags', made)
    speed = interface.observations['state_velocity']
    assert speed.topic == interface.observations['state'].topic == 'joint_states'
    assert speed.fields[2] == 'velocity.wrist.turn' and speed.units == ('rad/s', 'rad/s', '1')
    (first, *_) = read_bags([tmp_path / 'bags'], interface)
    whole = episode(0)
    wanted = np.diff(whole.vectors['state'].astype(float), axis=0) / np.diff(
        whole.stamps * 1e-9)[:, None]
    np.testing.assert_allclose(first.vectors['state_velocity'][1:], wanted, rtol=1e-5)
    assert (first.vectors['state_velocity'][0] == 0).all()
    with pytest.raises(FormatError, match=r"of \['state', 'force'\], came \['pose'\]"):
        with_velocities(dataset(), ['pose'])


def test_every_second_tick_is_taken(tmp_path):
    interface = imported(tmp_path / 'bags')
    assert bag_layout(interface, 2).rate == RATE / 2
    found = list(read_bags([tmp_path / 'bags'], interface, every=2))
    assert [len(e) for e in found] == [6, 4, 5]
    np.testing.assert_array_equal(found[0].actions, episode(0).actions[::2])
    assert len(list(found[0].frames['front']())) == 6


def test_a_gap_divides_an_episode(tmp_path):
    whole = episode(0)
    stamps = whole.stamps.copy()
    stamps[5:] += 200_000_000
    made = Dataset('gap', LAYOUT, ('try_0',), lambda number: replace(whole, stamps=stamps))
    interface = imported(tmp_path / 'bags', made)
    found = list(read_bags([tmp_path / 'bags'], interface))
    assert [(e.name, len(e)) for e in found] == [('try_0', 5), ('try_0_1', 7)]


def test_images_are_shrunk_to_the_interface(tmp_path):
    interface = imported(tmp_path / 'bags', sizes={'front': (16, 24), 'distance': (16, 24)})
    (first, *_) = read_bags([tmp_path / 'bags'], with_both_cameras(interface))
    frames = np.stack(list(first.frames['front']()))
    wanted = np.stack(list(episode(0).frames['front']())).astype(float)
    wanted = wanted.reshape(12, 16, 2, 24, 2, 3).mean((2, 4))
    assert np.abs(frames - wanted).max() <= 0.75      # rounding
    depths = np.stack(list(first.frames['distance']()))
    assert np.isin(depths, np.stack(list(episode(0).frames['distance']()))).all()


def test_sizes_for_training_are_multiples_of_32():
    picture = LAYOUT.pictures[0]
    assert training_size(replace(picture, height=480, width=640)) == (96, 128)
    assert training_size(replace(picture, height=84, width=84)) == (96, 96)
    assert training_size(replace(picture, height=96, width=96)) == (96, 96)


def test_too_few_images_are_refused_and_leave_no_bag(tmp_path):
    short = replace(episode(0), frames={**episode(0).frames,
                                        'front': lambda: iter(np.zeros((3, 32, 48, 3), 'u1'))})
    made = Dataset('short', LAYOUT, ('try_0',), lambda number: short)
    with pytest.raises(FormatError, match='front: expected 12 images, one per step, came 3'):
        Import(made, tmp_path / 'bags').run(progress=False)
    assert not list((tmp_path / 'bags').iterdir())


def test_an_existing_bag_is_never_overwritten(tmp_path):
    imported(tmp_path / 'bags')
    with pytest.raises(FormatError, match='expected a new bag, came one that exists'):
        imported(tmp_path / 'bags')


def test_units_are_given_by_pattern():
    layout = with_units(LAYOUT, {'*': '1', 'state/*': 'rad', 'action/grip': 'N'})
    assert layout.observations[0].units == ('rad', 'rad', 'rad')
    assert layout.action.units == ('1', '1', '1', 'N')
    with pytest.raises(FormatError, match=r"fit one of \['state/shoulder'.*came \['arm\*'\]"):
        with_units(LAYOUT, {'arm*': 'rad'})
    with pytest.raises(FormatError, match=r"came \['degrees'\]"):
        with_units(LAYOUT, {'state': 'degrees'})


def test_names_become_what_an_interface_may_have():
    assert plain_name('observation.images.cam_high') == 'cam_high'
    assert plain_name('observation.images') == 'images'
    assert plain_name('2nd camera') == 'n2nd_camera'
    assert number_name('left arm.pos') == 'left_arm.pos' and number_name('3') == '_3'
    twice = Feature('state', ('a b', 'a_b'))
    layout = Layout('r', 10.0, (twice,), Feature('action', ('x',)))
    with pytest.raises(FormatError, match='names that differ in letters or digits'):
        derive_interface(layout, Extent(10.0), {})


def test_interface_needs_a_rate_and_observed_numbers():
    extent = extent_of([episode(0)], RATE)
    with pytest.raises(FormatError, match='give --rate'):
        derive_interface(replace(LAYOUT, rate=None), extent, {})
    with pytest.raises(FormatError, match='expected observed numbers'):
        derive_interface(replace(LAYOUT, observations=()), extent, {})
    with pytest.raises(FormatError, match=r"camera of \['front', 'distance'\], came 'back'"):
        derive_interface(LAYOUT, extent, {}, camera='back')


def test_actions_that_never_change_still_get_limits():
    still = replace(episode(0), actions=np.full((12, 4), 2.0, np.float32))
    interface = derive_interface(LAYOUT, extent_of([still], RATE), {})
    assert interface.limits['grip'].range[0] < 2.0 < interface.limits['grip'].range[1]
    assert interface.limits['shoulder'].velocity > 0
    assert parse_interface(interface_text(interface, LAYOUT, 'still')) == interface


def test_bag_writer_refuses_what_cannot_be_written_as_asked(tmp_path):
    interface = imported(tmp_path / 'bags')
    mono = replace(interface, images={**interface.images, 'front': replace(
        interface.images['front'], encoding='mono8')})
    with pytest.raises(FormatError, match='images.front: expected rgb8, bgr8 or 32FC1'):
        Plan(dataset(), mono)
    blue = replace(interface, images={**interface.images, 'front': replace(
        interface.images['front'], encoding='bgr8')})
    write_bag(tmp_path / 'blue', episode(1), Plan(dataset(), blue))
    (first,) = read_bags([tmp_path / 'blue'], blue)
    np.testing.assert_array_equal(np.stack(list(first.frames['front']())),
                                  np.stack(list(episode(1).frames['front']())))
