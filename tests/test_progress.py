"""A long job says how far it is."""

import pytest


@pytest.fixture
def clock(monkeypatch):
    from interp import progress

    now = [0.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_every_ten_seconds_with_the_time_left_and_one_at_the_end(clock, capsys):
    from interp.progress import Progress

    with Progress("ablating", 40) as bar:
        for _ in range(20):
            clock[0] += 2
            bar.advance(2)
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines == [
        "ablating: 12 of 40, 28 s left", "ablating: 24 of 40, 16 s left", "ablating: 36 of 40, 4 s left",
        "ablating: 40 of 40, 0 s left",
    ]  # fmt: skip


def test_what_was_done_before_does_not_count_in_the_rate(clock, capsys):
    from interp.progress import Progress

    with Progress("training", 1000, done=900) as bar:
        bar.note("steps  loss 1.5")
        clock[0] += 20
        bar.advance(50)
    assert capsys.readouterr().err == "training: 950 of 1,000  steps  loss 1.5, 20 s left\n"
    assert bar.rate == 2.5


def test_a_total_that_is_not_known_is_not_told(clock, capsys):
    from interp.progress import Progress

    with Progress("recording", None) as bar:
        clock[0] += 11
        bar.advance(5)
        clock[0] += 11
        bar.advance(5, total=20)
    assert capsys.readouterr().err.splitlines() == ["recording: 5", "recording: 10 of 20, 22 s left"]


def test_nothing_is_said_where_it_is_not_shown(clock, capsys):
    from interp.progress import Progress

    with Progress("ablating", 2, False) as bar:
        bar.advance(2)
    assert capsys.readouterr().err == ""
