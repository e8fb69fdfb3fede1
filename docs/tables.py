"""
Write the tables of README and the pages here: from the code, and from the committed figures.

Usage: docker/in_environment.sh python3 docs/tables.py [--check]

With `--check` nothing is written and the exit status is 1 if a table is out of date.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import bag_tables  # noqa: E402
import barrier_tables  # noqa: E402
import core_tables  # noqa: E402
import edge_tables  # noqa: E402
import format_tables  # noqa: E402
import online_tables  # noqa: E402
import policy_tables  # noqa: E402
import readme_tables  # noqa: E402
import safety_tables  # noqa: E402
import scale_tables  # noqa: E402
import task_tables  # noqa: E402
from placing import ROOT, fill  # noqa: E402

PAGES = {**bag_tables.PAGES, **readme_tables.PAGES, **core_tables.PAGES, **barrier_tables.PAGES,
         **policy_tables.PAGES, **task_tables.PAGES, **format_tables.PAGES,
         **safety_tables.PAGES, **scale_tables.PAGES, **edge_tables.PAGES,
         **online_tables.PAGES}


def path_of(page: str) -> Path:
    """
    Where a page is.

    :param page: its file name.
    """
    return ROOT / page if page == 'README.md' else ROOT / 'docs' / page


def main() -> int:
    """
    Write or check the tables.

    :return: exit status.
    """
    stale = 0
    for page, tables in PAGES.items():
        text = path_of(page).read_text(encoding='utf-8')
        filled = fill(page, text, tables)
        if '--check' not in sys.argv[1:]:
            path_of(page).write_text(filled, encoding='utf-8')
        elif filled != text:
            print(f'{page}: tables are out of date; run docs/tables.py', file=sys.stderr)
            stale = 1
    return stale


if __name__ == '__main__':
    sys.exit(main())
