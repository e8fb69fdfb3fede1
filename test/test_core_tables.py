"""The tables of docs/cores.md are those of the code and of the committed figures."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip('liquid_policy')
PAGE = Path(__file__).resolve().parent.parent / 'docs' / 'cores.md'


def tables():
    """Return the script beside the page as a module."""
    spec = importlib.util.spec_from_file_location('core_tables', PAGE.with_name('core_tables.py'))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_up_to_date():
    text = PAGE.read_text(encoding='utf-8')
    assert tables().fill(text) == text, 'run docs/core_tables.py'


def test_page_without_a_place_for_a_table_is_refused():
    text = PAGE.read_text(encoding='utf-8').replace('<!-- speed -->', '')
    with pytest.raises(ValueError, match='no place <!-- speed -->'):
        tables().fill(text)


def test_page_that_leaves_out_a_core_is_refused():
    text = PAGE.read_text(encoding='utf-8').replace('`scan`', 'it')
    with pytest.raises(ValueError, match='core `scan` is not mentioned'):
        tables().fill(text)
