"""The pages on the barrier layer and on torques say what the benchmarks' files say."""

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent / 'docs'


@pytest.mark.parametrize('page', ['barrier_layer.md', 'identify.md'])
def test_tables_are_up_to_date(page):
    spec = importlib.util.spec_from_file_location('barrier_tables', DOCS / 'barrier_tables.py')
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    text = (DOCS / page).read_text(encoding='utf-8')
    assert tables.fill(page, text) == text, 'run docs/barrier_tables.py'
