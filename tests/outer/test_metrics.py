"""What is shown while a learner runs."""

from __future__ import annotations

import sys
import types

import pytest
import rich.console
import rich.progress

import odeopt
from odeopt.outer.metrics import Step, progress, tensorboard


class Bar:
    """Notes what a progress bar is told."""

    def __init__(self, *columns, console, disable):
        self.disabled, self.told = disable, []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.told.append("ended")

    def add_task(self, name, **keywords):
        self.told.append(keywords)
        return 7

    def update(self, task, **keywords):
        self.told.append((task, keywords))


@pytest.mark.parametrize(("terminal", "shown", "disabled"), [
    (True, True, False), (True, False, True), (False, True, True),
])  # fmt: skip
def test_the_bar_goes_on_by_one_update_and_says_how_fast(monkeypatch, terminal, shown, disabled):
    bars = []
    monkeypatch.setattr(
        rich.progress, "Progress", lambda *a, **kw: bars.append(Bar(*a, **kw)) or bars[0]
    )
    monkeypatch.setattr(rich.console.Console, "is_terminal", terminal)
    with progress(total=10, done=3, shown=shown) as show:
        show(Step(3, value=0.25, grad_norm=1.0, change=0.1, seconds=0.5))
    [bar] = bars
    begin, update, end = bar.told
    assert (begin["total"], begin["completed"], begin["rate"]) == (10, 3, 0.0)
    assert update == (7, {"advance": 1, "loss": 0.25, "rate": 2.0})
    assert end == "ended"
    assert bar.disabled == disabled


def test_the_bar_is_on_standard_error(monkeypatch, capsys):
    monkeypatch.setattr(rich.console.Console, "is_terminal", True)
    with progress(total=2, done=0, shown=True) as show:
        show(Step(0, value=0.25, grad_norm=1.0, change=0.1, seconds=0.5))
    out, err = capsys.readouterr()
    assert out == ""
    assert "outer updates" in err


def test_what_a_step_has_is_written_for_tensorboard(monkeypatch, tmp_path):
    written = []

    class SummaryWriter:
        def __init__(self, folder):
            written.append(folder)

        def add_scalar(self, name, value, update):
            written.append((name, value, update))

        def flush(self):
            written.append("flushed")

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    tensorboard(tmp_path)(Step(3, value=0.25, grad_norm=1.0, change=0.1, seconds=0.5))
    scalars = [("value", 0.25, 3), ("grad_norm", 1.0, 3), ("change", 0.1, 3), ("seconds", 0.5, 3)]
    assert written == [str(tmp_path), *scalars, "flushed"]


@pytest.mark.parametrize("shown", [False, True])
@pytest.mark.parametrize("terminal", [False, True])
def test_without_rich_a_bar_is_refused_where_one_would_be_seen(monkeypatch, shown, terminal):
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    step = Step(0, value=0.25, grad_norm=1.0, change=0.1, seconds=0.5)
    if shown and terminal:
        with (
            pytest.raises(odeopt.CompatibilityError, match=r"odeopt\[progress\]"),
            progress(total=2, done=0, shown=shown),
        ):
            pass
        return
    with progress(total=2, done=0, shown=shown) as show:
        show(step)
