import io

from d4lens import progress
from d4lens.progress import Meter, with_progress


class _Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_lines_come_by_tenths_but_not_faster_than_one_a_second(monkeypatch):
    clock, stream = _Clock(), io.StringIO()
    monkeypatch.setattr(progress, "time", clock)
    with Meter(1000, "fit", stream=stream) as meter:
        for _ in range(1000):
            clock.now += 0.02
            meter.update()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0] == "fit: 100/1000, 2 s"
    assert lines[-1] == "fit: 1000/1000, 20 s"


def test_slow_work_shows_a_sign_of_life_and_unknown_totals_are_fine(monkeypatch):
    clock, stream = _Clock(), io.StringIO()
    monkeypatch.setattr(progress, "time", clock)
    with Meter(None, "download", "B", stream) as meter:
        for megabytes in range(1, 5):
            clock.now += 10
            meter.to(megabytes * 10**6, 10**9 if megabytes > 2 else None)
    assert stream.getvalue().splitlines() == ["download: 2 MB, 20 s", "download: 4/1000 MB, 40 s"]


def test_a_terminal_gets_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with Meter(3, "fit", stream=stream) as meter:
        meter.update(3)
    assert "fit: 100%" in stream.getvalue()
    assert "3/3" in stream.getvalue()


def test_progress_passes_everything_through(capsys, monkeypatch):
    monkeypatch.setattr(progress, "time", _Clock())
    assert list(with_progress(range(5), desc="work")) == [0, 1, 2, 3, 4]
    assert list(with_progress(iter("ab"), total=2, desc="more")) == ["a", "b"]
    assert capsys.readouterr().err.splitlines() == ["work: 5/5, 0 s", "more: 2/2, 0 s"]
