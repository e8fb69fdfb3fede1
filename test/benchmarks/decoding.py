"""
How fast do bags become windows, next to the disk and the codec, and how much memory does it take?

Every rate is measured on the same bags in the same run, per second of this process's processor
time, or of wall time where the disk or several processes are at work: reading their bytes from the
disk (its cache emptied for these files) and from memory, taking messages out of chunks (where a
bag is compressed, with its codec), decoding messages, cutting and aligning episodes in one process
and in several, of many bags and of one as large as all of them, decoding JPEG beside its codec
alone, reading cached images, drawing windows, and learning from them. Memory is the
largest of what a process had for itself (pages of mapped files can be given back at any time and
do not count): while decoding, and while learning from the cache, with 1, 10 and 100 bags.

`python test/benchmarks/decoding.py runs/demonstrations --append
test/benchmarks/results/decoding.jsonl`: about four minutes for 100 bags of 47 MB on two quiet
cores, and 3 GB of disk for a while.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from liquid_policy.conversion import image_from_message
from liquid_policy.interface import COMPRESSED_IMAGE_TYPE, Interface, load_interface
from liquid_sim.evaluate import append_rows, commit
from liquid_trainer import mcap_file
from liquid_trainer.bag_file import Bag, find_bags
from liquid_trainer.cache import cached_episodes
from liquid_trainer.windows import Demonstrations

BLOCK = 1 << 22


def files_of(bags: list[Path]) -> list[Path]:
    """Return the storage files of bags."""
    return [file for bag in bags for file in Bag(bag).files]


def rate(amount: float, work: Callable[[], object],
         clock: Callable[[], float] = time.process_time) -> float:
    """
    Return the amount per second.

    :param clock: this process's processor time, which others on the machine change little; for
        the disk, and where other processes work too, `time.perf_counter`.
    """
    began = clock()
    work()
    return amount / (clock() - began)


def read_all(files: list[Path]) -> None:
    """Read files from beginning to end."""
    for file in files:
        with open(file, 'rb') as opened:
            while opened.read(BLOCK):
                pass


def forget(files: list[Path]) -> None:
    """Take files out of the operating system's memory, so that the disk must be read."""
    for file in files:
        with open(file, 'rb') as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def take_out(files: list[Path]) -> None:
    """Take messages out of chunks; mcap only."""
    for file in files:
        for _ in mcap_file.read(file):
            pass


def decode(bags: list[Path]) -> None:
    """Decode all messages."""
    for bag in bags:
        for _ in Bag(bag).messages():
            pass


def rewritten(files: list[Path], path: Path, compression: str = '') -> Path:
    """Return a new mcap file with the messages of others, of one robot, one after the other."""
    writer, pending = mcap_file.McapWriter(path, compression), []
    for file in files:
        for channel, stamp, data in mcap_file.read(file):
            if channel.id not in writer.content.channels:
                writer.add_channel(channel)
            pending.append(bytes(data))         # must live until the chunk ends
            writer.add_message(channel.id, stamp, pending[-1])
            if writer.pending > BLOCK:
                writer.end_chunk()
                pending.clear()
    writer.close()
    return path


def jpegs(bag: Path, robot: Interface) -> tuple[list[np.ndarray], int]:
    """Return the colour images of a bag as a camera driver compresses them, and their pixels."""
    import cv2
    spec = next(spec for spec in robot.images.values() if not spec.is_depth)
    found, size = [], 0
    for record in Bag(bag).messages({f'/{spec.topic}'}):
        image = image_from_message(spec, record.message)
        found.append(cv2.imencode('.jpg', image[..., ::-1])[1].reshape(-1))
        size += image.nbytes
    return found, size


def jpeg_rates(bag: Path, robot: Interface) -> dict[str, float]:
    """Return the rate of pixels out of JPEG [B/s]: of the codec alone, and as bags are read."""
    import cv2
    data, size = jpegs(bag, robot)
    spec = replace(next(spec for spec in robot.images.values() if not spec.is_depth),
                   type=COMPRESSED_IMAGE_TYPE)
    messages = [SimpleNamespace(format='rgb8; jpeg compressed bgr8', data=one) for one in data]
    return {'jpeg alone': rate(size, lambda: [cv2.imdecode(one, -1) for one in data]),
            'images, jpeg': rate(size, lambda: [image_from_message(spec, one)
                                                for one in messages])}


def decompress(blocks: list[bytes]) -> None:
    """Decompress, and do no more: what the codec itself can do."""
    for block in blocks:
        mcap_file.zstd.decompress(block)


class Watch(threading.Thread):
    """Notes the most memory that this process has for itself [B]."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0
        self._ended = threading.Event()

    def run(self) -> None:
        """Look every 5 ms."""
        while not self._ended.wait(0.005):
            self.look()

    def look(self) -> None:
        """Look once."""
        for line in Path('/proc/self/status').read_text().splitlines():
            if line.startswith('RssAnon'):
                self.most = max(self.most, 1024 * int(line.split()[1]))

    def end(self) -> int:
        """Return the most there was."""
        self._ended.set()
        self.look()
        return self.most


def in_a_process(function: Callable, *arguments: object) -> dict[str, float]:
    """Return what a function answers in a fresh process, which has a memory of its own."""
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        return pool.apply(function, arguments)


def decoding(bags: list[Path], interface: Path, cache: Path) -> dict[str, float]:
    """Decode bags into an empty cache in this process; return the most memory, beyond before."""
    watch = Watch()
    watch.look()
    before = watch.most
    watch.start()
    cached_episodes(bags, load_interface(interface), cache, workers=1)
    return {'memory': watch.end() - before}


def learning(bags: list[Path], interface: Path, cache: Path, steps: int) -> dict[str, float]:
    """Learn from cached bags; return the most memory, beyond torch's, and rates."""
    import torch

    from liquid_trainer.building import build_policy
    from liquid_trainer.learner import Learner, fit_scaling
    from liquid_trainer.settings import LearningSettings
    torch.set_num_threads(1)
    robot = load_interface(interface)
    settings = LearningSettings(steps=(1, 1, 1), threads=1, frame_batch=16)
    policy = build_policy(robot, 'cfc', 0.25)
    watch = Watch()
    watch.look()
    before = watch.most
    watch.start()
    episodes = cached_episodes(bags, robot, cache)
    data = Demonstrations(episodes, 1.0 / robot.rate, cache)
    fit_scaling(policy, data, robot.action_units, robot.target_units)
    learner = Learner(policy, data, settings)
    learner.step(0.0)
    learner.features = data.zeros((data.image_count, policy.settings.feature_size))
    rng = np.random.default_rng(0)
    for begin in range(0, data.image_count, 1 << 12):
        part = learner.features[begin:begin + (1 << 12)]
        part[:] = rng.normal(size=part.shape)
    learner.begin('core')
    learner.step(0.0)
    batch = settings.core_batch

    def draw() -> None:
        for _ in range(steps):
            ticks, _, _ = learner.streams.draw()
            _ = learner.features[data.images[ticks]], data.vectors[ticks], data.elapsed[ticks]

    def learn() -> None:
        for step in range(steps):
            learner.step(step / steps)

    found = {'windows_drawn': rate(batch * steps, draw),
             'windows_learned': rate(batch * steps, learn)}
    numbers = rng.integers(0, data.image_count, 1024)
    size = episodes[0].colors[0].nbytes + episodes[0].depths[0].nbytes
    found['images_read'] = rate(len(numbers) * size, lambda: data.read_images(numbers))
    return {**found, 'memory': watch.end() - before, 'ticks': float(data.ticks)}


def copies_of(bags: list[Path], count: int, folder: Path) -> list[Path]:
    """Return so many bags, those there are again under other names where there are too few."""
    found = list(bags[:count])
    for number in range(count - len(found)):
        source = bags[number % len(bags)]
        place = folder / f'again_{number:04d}_{source.name}'
        place.mkdir(parents=True)
        for file in Bag(source).files:
            # Another name is another bag: the cache goes by names and content.
            (place / f'again_{number:04d}_{file.name}').symlink_to(file.resolve())
        found.append(place)
    return found


def measure(bags: list[Path], interface: Path, counts: list[int], few: int, steps: int,
            folder: Path) -> list[dict]:
    """Return the figures; see the text at the top."""
    robot: Interface = load_interface(interface)
    some = bags[:few]
    files = files_of(some)
    size = sum(file.stat().st_size for file in files)
    rows: list[dict] = []

    def note(figure: str, policy: str, value: float, unit: str, n: int, **more: object) -> None:
        print(f'{policy:<22}{figure:<20}' + (
            f'{value / 1e6:10.1f} M{unit}' if value > 1e4 else f'{value:10.3f} {unit}')
            + f'  n {n}  ' + ' '.join(f'{key} {what}' for key, what in more.items()), flush=True)
        rows.append({'figure': figure, 'task': 'bags', 'policy': policy, 'value': value,
                     'unit': unit, 'n': n, **more})

    forget(files)
    wall = time.perf_counter
    rates = {'disk': rate(size, lambda: read_all(files), wall),
             'page cache': rate(size, lambda: read_all(files))}
    if all(file.suffix == '.mcap' for file in files):
        rates['chunks'] = rate(size, lambda: take_out(files))
        packed = [rewritten([file], folder / f'packed_{number}.mcap', 'zstd')
                  for number, file in enumerate(files[:2])]
        raw = [b''.join(bytes(data) for _, _, data in mcap_file.read(file)) for file in packed]
        plain = sum(len(data) for data in raw)
        blocks = [mcap_file.COMPRESS['zstd'](data[i:i + BLOCK]) for data in raw
                  for i in range(0, len(data), BLOCK)]
        del raw
        rates['zstd alone'] = rate(plain, lambda: decompress(blocks))
        rates['chunks, zstd'] = rate(plain, lambda: take_out(packed))
    decode(some[:1])            # message types are made once
    rates['messages'] = rate(size, lambda: decode(some))
    processes = os.cpu_count() or 1
    rates['episodes'] = rate(size, lambda: cached_episodes(some, robot, folder / 'cache', 1))
    for workers in sorted({1, processes}):
        # From the beginning, but for the digests, which the first time has computed.
        place = folder / f'cache_{workers}'
        place.mkdir()
        shutil.copy(folder / 'cache' / 'digests.jsonl', place)
        rates[f'episodes, processes: {workers}'] = rate(
            size, lambda place=place, workers=workers: cached_episodes(
                some, robot, place, workers), wall)
    if all(file.suffix == '.mcap' for file in files):
        one = rewritten(files, folder / 'one.mcap')
        cached_episodes([one], robot, folder / 'cache', 1)      # its digest
        for workers in sorted({1, processes}):
            place = folder / f'one_{workers}'
            place.mkdir()
            shutil.copy(folder / 'cache' / 'digests.jsonl', place)
            rates[f'one bag, processes: {workers}'] = rate(
                size, lambda place=place, workers=workers: cached_episodes(
                    [one], robot, place, workers), wall)
        found = in_a_process(decoding, [one], interface, folder / 'one_memory')
        note('memory', 'decoding, one bag as large', found['memory'], 'B', 1, bytes=size)
    rates.update(jpeg_rates(some[0], robot))
    for name, value in rates.items():
        note('rate', name, value, 'B/s', few)
    many = f'episodes, processes: {processes}'
    for name, against in (('messages', 'chunks'), ('chunks, zstd', 'zstd alone'),
                          ('episodes', 'messages'),
                          (many, 'episodes, processes: 1'), (many, 'disk'),
                          (f'one bag, processes: {processes}', 'one bag, processes: 1'),
                          (f'one bag, processes: {processes}', many),
                          ('images, jpeg', 'jpeg alone')):
        if name in rates and against in rates and name != against:
            note('share', name, rates[name] / rates[against], '1', few, against=against)
    forget(list((folder / 'cache').rglob('*.npy')))
    note('rate', 'cached episodes', rate(
        size, lambda: read_cache(some, robot, folder / 'cache'), wall), 'B/s', few)
    for count in counts:
        chosen, cache = copies_of(bags, count, folder / f'copies_{count}'), folder / f'of_{count}'
        found = in_a_process(decoding, chosen, interface, cache)
        note('memory', 'decoding', found['memory'], 'B', count)
        found = in_a_process(learning, chosen, interface, cache, steps)
        note('memory', 'learning', found['memory'], 'B', count, ticks=int(found['ticks']))
        note('rate', 'windows drawn', found['windows_drawn'], '1/s', count)
        note('rate', 'windows learned', found['windows_learned'], '1/s', count)
        note('rate', 'cached images', found['images_read'], 'B/s', count)
        shutil.rmtree(cache)
    return rows


def read_cache(bags: list[Path], robot: Interface, cache: Path) -> None:
    """Read everything that is cached of bags, as the first epoch does."""
    for episode in cached_episodes(bags, robot, cache):
        episode.colors.max(), episode.depths.max()


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('bags', nargs='+', type=Path)
    parser.add_argument('--interface', type=Path, default=Path(__file__).parents[2] / 'config'
                        / 'manipulator.interface.yaml')
    parser.add_argument('--counts', type=int, nargs='+', default=[1, 10, 100],
                        help='of bags, for memory')
    parser.add_argument('--few', type=int, default=10, help='bags for the rates')
    parser.add_argument('--steps', type=int, default=10, help='of learning')
    parser.add_argument('--append', type=Path, default=None)
    arguments = parser.parse_args(argv)
    bags = find_bags(arguments.bags)
    about = {'preset': 'full' if max(arguments.counts) >= 100 else 'quick', 'commit': commit(),
             'machine': f'{platform.machine()}, {os.cpu_count()} cores',
             'load': round(os.getloadavg()[0], 1), 'date': date.today().isoformat()}
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix='.decoding_') as folder:
        rows = measure(bags, arguments.interface, arguments.counts, arguments.few,
                       arguments.steps, Path(folder))
    rows = [{**row, **about} for row in rows]
    if arguments.append is not None:
        arguments.append.unlink(missing_ok=True)
        append_rows(arguments.append, rows)
    print(json.dumps(about))
    return 0


if __name__ == '__main__':
    sys.exit(main())
