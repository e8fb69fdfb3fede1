"""The tables of README and the pages are those of the code and of the committed figures."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip('liquid_policy')
DOCS = Path(__file__).resolve().parent.parent / 'docs'


@pytest.fixture(scope='module')
def tables():
    """Return the script beside the pages as a module."""
    spec = importlib.util.spec_from_file_location('doc_tables', DOCS / 'tables.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_up_to_date(tables):
    for page, makers in tables.PAGES.items():
        if page == 'README.md':         # its parameters need ROS; test_readme.py looks at them
            continue
        text = tables.path_of(page).read_text(encoding='utf-8')
        assert tables.fill(page, text, makers) == text, f'{page}: run docs/tables.py'


def test_page_without_a_place_for_a_table_is_refused(tables):
    text = (DOCS / 'cores.md').read_text(encoding='utf-8').replace('<!-- speed -->', '')
    with pytest.raises(ValueError, match='cores.md: no place <!-- speed -->'):
        tables.fill('cores.md', text, tables.PAGES['cores.md'])


def test_no_core_is_left_out_of_its_page():
    from liquid_policy.core_settings import CORES
    text = (DOCS / 'cores.md').read_text(encoding='utf-8')
    assert [kind for kind in CORES if f'`{kind}`' not in text] == []
