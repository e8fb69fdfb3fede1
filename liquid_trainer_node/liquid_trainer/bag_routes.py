"""Which topic of a bag feeds which part of an interface."""

from __future__ import annotations

from liquid_policy.interface import ActionSpec, ImageSpec, Interface, SourceSpec

from .bag_file import Bag, BagError

Spec = ImageSpec | SourceSpec | ActionSpec


def find_namespace(bag: Bag, interface: Interface, namespace: str | None = None) -> str:
    """
    Say what stands before the interface's relative topics in a bag, such as `/left`.

    :param namespace: taken if given; otherwise found by the topic of the control clock.
    :raises BagError: if the bag holds several robots.
    """
    if namespace is not None:
        name = namespace.strip('/')
        return f'/{name}' if name else ''
    clock = interface.clock_source.topic
    if clock.startswith('/'):
        return ''
    found = [topic[:-len(clock) - 1] for topic in bag.topics if topic.endswith(f'/{clock}')]
    if '' in found or not found:
        return ''
    if len(found) > 1:
        raise BagError(f'{bag.path}: expected one robot, came topics of {found}; say which one '
                       'by namespace')
    return found[0]


def find_routes(bag: Bag, interface: Interface, namespace: str = '', images: bool = True,
                actions: str = 'auto') -> dict[str, list[Spec]]:
    """
    Say which topic feeds what.

    :param namespace: see `find_namespace`.
    :param images: whether images are wanted.
    :param actions: `demonstration` or `command` topics, `auto` or `none`; see `ReadSettings`.
    :return: specs by absolute topic name.
    :raises BagError: if the bag lacks a topic, or has it with another type.
    """
    topics = bag.topics
    routes: dict[str, list[Spec]] = {}
    missing: list[str] = []
    hint = ''

    def absolute(topic: str) -> str:
        return topic if topic.startswith('/') else f'{namespace}/{topic}'

    def route(topic: str, spec: Spec, needed: bool = True) -> None:
        name = absolute(topic)
        if name not in topics:
            if needed:
                missing.append(f'{name} [{spec.type}]')
            return
        if topics[name] != spec.type:
            raise BagError(f'{bag.path}: expected {spec.type} on {name}, came {topics[name]}; '
                           'correct the interface file or record again')
        routes.setdefault(name, []).append(spec)

    if interface.features is not None and images:
        for name in interface.features.images:
            spec = interface.images[name]
            route(spec.topic, spec)
            for transport in ('compressed', 'compressedDepth'):
                other = f'{absolute(spec.topic)}/{transport}'
                if absolute(spec.topic) not in topics and other in topics:
                    hint += (f'; {other} [{topics[other]}] is there: it is read if '
                             f'images.{name}.topic and images.{name}.type say so')
    for source in interface.observations.values():
        route(source.topic, source)
    for source in interface.targets.values():
        route(source.topic, source, needed=False)
    shown = [absolute(action.demonstration) for action in interface.actions.values()]
    if actions == 'auto':
        actions = 'demonstration' if any(topic in topics for topic in shown) else 'command'
    for action in interface.actions.values():
        if actions != 'none':
            route(action.demonstration if actions == 'demonstration' else action.topic, action)
    if missing:
        raise BagError(f'{bag.path}: expected the topics {", ".join(missing)}, came a bag with '
                       f'{", ".join(sorted(topics))}; record them too, or check the namespace '
                       f'and topic names in the interface file{hint}')
    return routes
