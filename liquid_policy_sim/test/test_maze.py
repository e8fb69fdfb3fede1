"""Mazes and the scripted hand: known ways, and laws that every way keeps."""

import numpy as np
import pytest

from liquid_sim.tasks.maze import Maze
from liquid_sim.tasks.maze_expert import Manner, MazeExpert

U = Maze.of([[1, 1, 1, 1, 1],
             [1, 0, 0, 0, 1],
             [1, 1, 1, 0, 1],
             [1, 0, 0, 0, 1],
             [1, 1, 1, 1, 1]])
RING = Maze.of([[1, 1, 1, 1, 1],
                [1, 0, 0, 0, 1],
                [1, 0, 1, 0, 1],
                [1, 'r', 0, 'g', 1],
                [1, 1, 1, 1, 1]])


def test_cells_and_their_middles():
    np.testing.assert_allclose(U.centre((1, 1)), (-1.0, 1.0))
    for cell in ((1, 1), (3, 3), (2, 3)):
        assert U.cell(U.centre(cell)) == cell
        assert U.cell(U.centre(cell) + (0.49, -0.49)) == cell


def test_a_u_has_one_way_from_end_to_end():
    assert U.routes((1, 1), (3, 1), detour=10) == [
        [(1, 1), (1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1)]]
    assert U.way_to_go(U.centre((1, 1)), U.centre((3, 1))) == pytest.approx(6.0)


def test_a_ring_has_two_ways_and_a_limit_on_detours():
    ways = RING.routes((3, 1), (3, 3), detour=4)
    assert [len(way) for way in ways] == [3, 7]
    assert [len(way) for way in RING.routes((3, 1), (3, 3), detour=3)] == [3]
    for way in ways:
        assert len(set(way)) == len(way)
        assert all(after in RING.neighbours(before)
                   for before, after in zip(way, way[1:], strict=False))


def test_within_one_cell_the_way_is_straight():
    a, b = np.array([-1.2, 0.9]), np.array([-0.8, 1.1])
    assert U.routes(U.cell(a), U.cell(b)) == [[(1, 1)]]
    assert U.way_to_go(a, b) == pytest.approx(np.linalg.norm(a - b))


def test_what_is_no_maze_or_leads_nowhere_is_refused():
    with pytest.raises(ValueError, match='free cell'):
        Maze(np.ones((3, 3)))
    with pytest.raises(ValueError, match='can be reached'):
        U.routes((2, 1), (1, 1))


def _drive(maze, seed, start, goal, steps=400):
    """Follow the hand with a ball of the real one's mass and force, without walls."""
    rng = np.random.default_rng(seed)
    expert = MazeExpert(maze, rng)
    cells = expert.start(start, goal)
    position, velocity, visited = start.copy(), np.zeros(2), []
    for _ in range(steps):
        push = expert.push(position, velocity)
        assert np.abs(push).max() <= 1.0
        velocity = velocity + 0.24 * push
        position = position + 0.01 * velocity
        visited.append(position)
        if np.linalg.norm(position - goal) < 0.2:
            break
    return cells, np.array(visited), expert


@pytest.mark.parametrize('seed', range(4))
def test_the_hand_reaches_the_goal_and_keeps_out_of_walls(seed):
    goal = U.centre((3, 1)) + 0.1
    _, visited, _ = _drive(U, seed, U.centre((1, 1)), goal)
    assert np.linalg.norm(visited[-1] - goal) < 0.2
    assert not any(U.walls[U.cell(point)] for point in visited)


def test_the_hand_takes_every_way_and_is_never_the_same_twice():
    found = [_drive(RING, seed, RING.centre((3, 1)), RING.centre((3, 3))) for seed in range(24)]
    lengths = [len(cells) for cells, _, _ in found]
    assert set(lengths) == {3, 7} and lengths.count(3) > lengths.count(7)
    assert len({expert.manner for _, _, expert in found}) == 24
    again = _drive(RING, 5, RING.centre((3, 1)), RING.centre((3, 3)))
    np.testing.assert_array_equal(again[1], found[5][1])


def test_manners_differ_as_they_say():
    manners = [Manner.drawn(np.random.default_rng(seed)) for seed in range(200)]
    for name in ('speed', 'ahead', 'aside', 'firmness', 'tremor'):
        assert np.std([getattr(manner, name) for manner in manners]) > 0.02
