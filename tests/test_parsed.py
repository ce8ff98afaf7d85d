"""What is kept of source files from run to run is of their content: no edit is missed, whatever time it bears."""

import os

import pytest

from edgekd.losses.kl import kl
from edgekd.store import fingerprint, parsed, syntax


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKD_STORE", str(tmp_path / "store"))
    _again()
    yield tmp_path / "store" / parsed.NAME
    _again()


def _again():
    """As another process would begin."""
    parsed._new.clear()
    parsed._kept.cache_clear()


def _parsing(monkeypatch):
    """The sources that are parsed from now on."""
    calls, parse = [], syntax.parse
    monkeypatch.setattr(syntax, "parse", lambda source: calls.append(source) or parse(source))
    return calls


def test_a_file_is_parsed_once_for_all_runs(store, tmp_path, monkeypatch):
    source = tmp_path / "mine.py"
    source.write_text("from a.b import c\nimport d\nx = 1\n")
    first, names = parsed.tree(source), parsed.definitions(source)
    parsed.keep()
    _again()
    calls = _parsing(monkeypatch)
    copy = tmp_path / "copy.py"
    copy.write_bytes(source.read_bytes())
    assert parsed.tree(source) == parsed.tree(copy) == first == syntax.parse(source.read_bytes())
    assert parsed.definitions(source) == names and set(names) == {"x"}
    assert len(calls) == 1, "only the one of this test"


def test_an_edit_of_the_same_size_and_time_is_seen(store, tmp_path):
    source = tmp_path / "mine.py"
    source.write_text("x = 1\n")
    before, status = parsed.tree(source), source.stat()
    parsed.keep()
    source.write_text("x = 2\n")
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert source.stat().st_mtime_ns == status.st_mtime_ns and source.stat().st_size == status.st_size
    assert parsed.tree(source) != before
    _again()
    assert parsed.tree(source) == syntax.parse(b"x = 2\n")


@pytest.mark.parametrize("change", ["cut", "entry", "rules"])
def test_what_is_not_whole_or_of_other_rules_is_parsed_again(store, tmp_path, monkeypatch, change):
    source = tmp_path / "mine.py"
    source.write_text("x = 1\n")
    right = parsed.tree(source)
    parsed.keep()
    text = store.read_text()
    if change == "cut":
        store.write_text(text[: len(text) // 2])
    elif change == "entry":
        store.write_text(text.replace(right[0], "0" * 64))
    else:
        monkeypatch.setattr(parsed, "_made_by", lambda: "others")
    _again()
    calls = _parsing(monkeypatch)
    assert parsed.tree(source) == right and len(calls) == 1


def test_keys_write_it_and_a_store_that_can_not_be_written_is_left(store, tmp_path, monkeypatch):
    fingerprint.code_and_libraries(kl)
    assert store.is_file() and not parsed._new
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEKD_STORE", str(tmp_path / "file"))
    monkeypatch.setattr(parsed, "_made_by", lambda: "others")
    _again()
    assert fingerprint.code_and_libraries(kl)


def test_it_begins_anew_where_it_has_grown_too_long(store, tmp_path, monkeypatch):
    monkeypatch.setattr(parsed, "MOST", 3)
    for number in range(5):
        (tmp_path / "mine.py").write_text(f"x = {number}\n")
        parsed.tree(tmp_path / "mine.py")
        parsed.keep()
    assert len(parsed._kept(store)) <= 3
