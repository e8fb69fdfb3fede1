"""The short way for messages and timers leaves nothing else behind."""

import threading

import pytest

pytest.importorskip('rclpy')

import rclpy
from bench_robot import until
from std_msgs.msg import Float64
from std_srvs.srv import Trigger

from liquid_policy_node import lean_executor, lifecycle, qos
from liquid_policy_node.lean_executor import MOST_AT_ONCE, LeanExecutor
from liquid_policy_node.models import in_thread


@pytest.fixture
def node():
    rclpy.init()
    node = rclpy.create_node('lean')
    yield node
    node.destroy_node()
    rclpy.shutdown()


@pytest.fixture
def executor(node):
    executor = LeanExecutor()
    executor.add_node(node)
    yield executor
    executor.shutdown()


def spin(executor, condition):
    """Spin until something holds."""
    def step():
        executor.spin_once(0.01)
        return condition()
    assert until(step)


def test_messages_timers_services_and_tasks_are_all_served(node, executor):
    heard, ticks, asked, tasks = [], [], [], []
    node.create_subscription(Float64, 'numbers', lambda m: heard.append(m.data), qos.STATUS)
    node.create_timer(0.01, lambda: ticks.append(1))
    node.create_service(Trigger, 'ask', lambda request, response: asked.append(1) or response)
    publisher = node.create_publisher(Float64, 'numbers', qos.STATUS)
    client = node.create_client(Trigger, 'ask')
    spin(executor, lambda: publisher.get_subscription_count() and client.service_is_ready())
    for number in range(5):
        publisher.publish(Float64(data=float(number)))
    future = client.call_async(Trigger.Request())
    executor.create_task(lambda: tasks.append(1))
    spin(executor, lambda: len(heard) == 5 and len(ticks) > 5 and future.done() and tasks)
    assert heard == [0.0, 1.0, 2.0, 3.0, 4.0] and asked == tasks == [1]


def test_what_is_created_later_is_served_and_what_is_destroyed_is_not(node, executor):
    first, second = [], []
    timer = node.create_timer(0.005, lambda: first.append(1))
    spin(executor, lambda: first)

    def replace():
        node.destroy_timer(timer)
        node.create_timer(0.005, lambda: second.append(1))
    executor.create_task(replace)
    spin(executor, lambda: second)
    count = len(first)
    spin(executor, lambda: len(second) > 5)
    assert len(first) == count


def test_a_service_that_waits_keeps_no_timer_waiting(node, executor):
    release, ticks = threading.Event(), []

    async def slow(request, response):
        response.message = await in_thread(lambda: str(release.wait(20.0)))
        return response
    node.create_service(Trigger, 'slow', slow)
    node.create_timer(0.005, lambda: ticks.append(1))
    client = node.create_client(Trigger, 'slow')
    spin(executor, client.service_is_ready)
    future = client.call_async(Trigger.Request())
    ticks.clear()
    spin(executor, lambda: len(ticks) > 3 * MOST_AT_ONCE)
    assert not future.done()
    release.set()
    spin(executor, future.done)
    assert future.result().message == 'True'


@pytest.mark.parametrize('kind', ['timer', 'task'])
def test_an_error_is_raised_and_the_next_callback_runs(node, executor, kind):
    ticks = []

    def wrong():
        if kind == 'timer':
            node.destroy_timer(timer)
        raise ValueError('expected nothing')
    if kind == 'timer':
        timer = node.create_timer(0.005, wrong)
    else:
        executor.create_task(wrong)
    with pytest.raises(ValueError, match='expected nothing'):
        spin(executor, lambda: False)
    node.create_timer(0.005, lambda: ticks.append(1))
    spin(executor, lambda: len(ticks) > 2)


def test_with_an_rclpy_that_is_built_otherwise_its_own_executor_runs(node, monkeypatch):
    said = []
    assert type(lifecycle._executor('lean', said.append)) is LeanExecutor and not said
    monkeypatch.setattr(lean_executor, 'BUILT_ON', ('_take_timer', '_take_everything'))
    assert type(lifecycle._executor('lean', said.append)) is rclpy.executors.SingleThreadedExecutor
    assert said == ["executor 'lean': this rclpy has no _take_everything; 'single' runs instead"]
