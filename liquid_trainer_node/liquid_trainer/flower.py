"""What is used of Flower, which is not in the default environment."""

try:
    from flwr.app import (
        Array,
        ArrayRecord,
        ConfigRecord,
        Context,
        Error,
        Message,
        MetricRecord,
        RecordDict,
    )
    from flwr.clientapp import ClientApp
    from flwr.clientapp.mod import fixedclipping_mod
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp import strategy as strategies
except ImportError as error:
    raise ImportError(f'fleet: expected Flower, came: {error}; pip install -r '
                      'docker/requirements-fleet.txt') from error

__all__ = ['Array', 'ArrayRecord', 'ClientApp', 'ConfigRecord', 'Context', 'Error', 'Grid',
           'Message', 'MetricRecord', 'RecordDict', 'ServerApp', 'fixedclipping_mod',
           'strategies']
