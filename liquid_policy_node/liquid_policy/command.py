"""How a command of the library ends when it cannot go on: one line, and an exit code."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable

Main = Callable[[list[str] | None], int]


def command(name: str, stopped: str = 'stopped') -> Callable[[Main], Callable[..., int]]:
    """
    Make the `main` of a command end in one line on standard error instead of a traceback.

    Our functions raise ValueError and OSError for input that they cannot use, ImportError for an
    optional package that is missing: exit code 1.
    Ctrl-C gives 130; whoever closes our output (`| head`) has heard enough.

    :param name: of the command.
    :param stopped: said after Ctrl-C: what is kept and how to go on.
    """
    def decorate(main: Main) -> Callable[..., int]:
        @functools.wraps(main)
        def guarded(argv: list[str] | None = None) -> int:
            try:
                return main(argv)
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return 1
            except (ValueError, OSError, ImportError) as error:
                print(f'{name}: {error}', file=sys.stderr)
                return 1
            except KeyboardInterrupt:
                print(f'{name}: {stopped}', file=sys.stderr)
                return 130
        return guarded
    return decorate
