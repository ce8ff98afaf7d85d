"""compress with a target's board at hand: its figures are the board's, and what can't be is told before any
training."""

import contextlib

import pytest
import tiny
from board import board

import edgekd
from edgekd import results
from edgekd.cli import run as command
from edgekd.errors import EnvironmentUnfit, UsageError
from edgekd.records import Host


@pytest.fixture
def place(tmp_path, monkeypatch):
    tiny.settle(tmp_path, monkeypatch)
    (tmp_path / "r.toml").write_text(tiny.SHORT)
    return tmp_path


def test_a_targets_figures_are_its_boards(place, monkeypatch):
    with board(place / "board") as there:
        monkeypatch.setenv("EDGEKD_SSH_CONFIG", str(there.config))
        asked = []
        from edgekd.hosts import ssh

        genuine = ssh._Board.run
        monkeypatch.setattr(
            ssh._Board, "run", lambda self, folder, *rest: asked.append(folder) or genuine(self, folder, *rest)
        )
        outcome = edgekd.compress("r.toml", on={"host": there.address}, out="run")
        assert asked and there.left() in ([], ["home/.cache", "home/.cache/edgekd-jobs"]), "nothing is left there"
    chosen = next(c for c in outcome.result.candidates if c.id == outcome.result.targets["host"].chosen)
    assert {m.name for m in chosen.measurements if m.origin == "measured" and m.target == "host"} >= {
        "top1",
        "latency_p50_ms",
    }
    kept = results.load_predictions(place / "run/predictions" / results.executed(chosen.id, "host"))
    assert len(kept.ids) == 120
    assert command(["gate", "run"]) == outcome.exit_code
    again = len(asked)
    monkeypatch.setattr(ssh, "connect", lambda *_: pytest.fail("not asked for"))
    edgekd.compress("r.toml", out="run")
    assert len(asked) == again, "what was measured on a machine of this kind is kept"


def test_two_targets_on_one_board_share_its_connection(place, monkeypatch):
    """A connection holds its board: a second one would wait for it, and give up."""
    from edgekd import environment
    from edgekd.progress import Silent
    from edgekd.run import boards, resolve

    facts = environment.describe()
    for name in ("big", "little"):
        lines = [f'title = "{name}"', f'architecture = "{facts["architecture"]}"', f"features = {facts['features']}"]
        (place / f"{name}.toml").write_text("\n".join(lines))
    resolved, opened = resolve.resolved("r.toml", (), ["./big.toml", "./little.toml"]), []

    @contextlib.contextmanager
    def there(where, progress):
        opened.append(where)
        yield Host(where, None, facts)

    monkeypatch.setattr(boards, "host_of", there)
    with contextlib.ExitStack() as stack:
        connected = boards.connect({"big": "ssh://a", "little": "ssh://a"}, resolved, Silent(), stack)
    assert opened == ["ssh://a"] and connected.keys() == {"big", "little"}


def test_what_stands_for_the_host_is_of_its_kind(place, monkeypatch):
    from edgekd import environment
    from edgekd.run import boards, steps

    facts = {**environment.describe(), "architecture": "aarch64", "features": ["neon"], "clusters": {}}
    monkeypatch.setattr(boards, "host_of", lambda where, progress: contextlib.nullcontext(Host(where, None, facts)))
    monkeypatch.setattr(steps, "run_steps", lambda *_: pytest.fail("trained"))
    with pytest.raises(EnvironmentUnfit, match="ssh://pi lacks x86-64"):
        edgekd.compress("r.toml", on={"host": "ssh://pi"})


def test_what_cannot_be_is_told_before_any_training(place, monkeypatch):
    from edgekd.run import steps

    monkeypatch.setattr(steps, "run_steps", lambda *_: pytest.fail("trained"))
    with pytest.raises(UsageError) as told:
        edgekd.compress("r.toml", on={"pi": "ssh://board", "host": "ssh://-oProxyCommand=x"})
    assert "`pi` is not a target of the recipe" in str(told.value) and len(told.value.problems) == 2
    with pytest.raises(EnvironmentUnfit):
        edgekd.compress("r.toml", on={"host": "ssh://127.0.0.1:1"})
    assert command(["compress", "r.toml", "--on", "host"]) == 2
