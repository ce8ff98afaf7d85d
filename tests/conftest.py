"""What all tests share."""

import pytest

from edgekd.measure.together import Bench

# their tests time something, or count on all cores: `make test` runs them after the others, in one process
ALONE = ("test_measure", "test_threads", "test_many_operators", "test_memory_oracle")


def pytest_addoption(parser):
    parser.addoption("--update-snapshots", action="store_true", help="write tests/snapshots/ anew")


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem in ALONE:
            item.add_marker(pytest.mark.alone)


@pytest.fixture(autouse=True)
def never_slower(monkeypatch):
    """`quantize` finds int8 as fast as float, so that no test's file depends on a time; `monkeypatch.undo()` times."""
    monkeypatch.setattr(Bench, "ratios", lambda self, files, *_: [(1.0, 0.9, 1.1)] * (len(files) - 1))
