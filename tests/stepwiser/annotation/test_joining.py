"""Who takes what: hand-computed cases of the choices that clusters make."""

from __future__ import annotations

import json

from stepwiser.annotation.joining import (
    OwnerReport,
    Speed,
    ahead,
    middle_of_longest_run,
    to_repeat,
)


def test_what_is_taken_ahead_follows_the_speed() -> None:
    assert [ahead(per_s) for per_s in (0.0, 0.01, 0.2, 1.0, 3.1)] == [1, 1, 1, 5, 16]


def test_speed_is_that_of_the_last_minutes() -> None:
    speed = Speed(0.0)
    assert speed.per_s(10.0) == 0.0 and speed.unit_s is None
    for end in range(10, 110, 10):
        speed.finished(float(end), 5.0 if end <= 50 else 7.0)
    assert speed.per_s(100.0) == 10 / 100
    assert speed.unit_s == 6.0 and speed.done == 10
    assert speed.per_s(655.0) == 5 / 600, "those up to 50 s are older than ten minutes"
    assert speed.per_s(10_000.0) == 0.0


def test_where_others_are_not() -> None:
    assert middle_of_longest_run(b"\1\1\1\1") == 2
    assert middle_of_longest_run(bytearray(b"\1\0\1\1\1\0\1\1")) == 3
    assert middle_of_longest_run(b"\0\0\1") == 2
    assert middle_of_longest_run(b"\0\0") is None and middle_of_longest_run(b"") is None


def report(unit_s: float | None = 10.0, per_s: float = 0.5, **begun: float) -> OwnerReport:
    return OwnerReport(5, per_s, unit_s, begun, ("w1", "w2"))


def test_a_report_survives_its_file() -> None:
    said = json.loads(json.dumps({**vars(report(a=1.5)), "beat": 3, "time": 1.0, "process": {}}))
    again = OwnerReport.parse(said)
    assert again.held == {"a", "w1", "w2"}
    assert again.left_s("a", 2.0, 99.0) == 10.0 - 1.5 - 2.0
    assert OwnerReport.parse({"beat": 1}) == OwnerReport()


def test_what_an_owner_needs_for_a_unit() -> None:
    owner = report(young=1.0, late=25.0)
    assert owner.left_s("young", 0.0, 99.0) == 9.0
    assert owner.left_s("late", 0.0, 99.0) == 15.0, "overdue by 15 s"
    assert owner.left_s("w1", 1.0, 99.0) == 10.0 + 2.0 - 1.0
    assert owner.left_s("w2", 0.0, 99.0) == 10.0 + 4.0
    new = report(unit_s=None, per_s=0.0, first=4.0)
    assert new.left_s("first", 0.0, 10.0) == 6.0, "as fast as who asks"
    assert new.left_s("w1", 0.0, 10.0) == 20.0


def test_only_what_pays_is_repeated() -> None:
    left = {"young", "late", "w1", "w2"}
    slow = (report(young=1.0, late=35.0), 0.0)
    fast, even, slower = (OwnerReport(unit_s=unit_s) for unit_s in (8.0, 13.0, 26.0))
    assert to_repeat([slow], fast, left) == "late"
    assert to_repeat([slow], fast, left - {"late"}) == "w2"
    assert to_repeat([slow], fast, {"young"}) == "young"
    assert to_repeat([slow], even, left - {"late"}) == "w2"
    assert to_repeat([slow], even, {"young", "w1"}) is None
    assert to_repeat([slow], slower, left) is None
    # Who has finished none takes others for its measure; where nobody has, what began last is left
    # longest.
    assert to_repeat([slow], OwnerReport(), {"late"}) == "late"
    unknown = (report(unit_s=None, per_s=0.0, late=99.0, young=3.0), 0.0)
    assert to_repeat([unknown], OwnerReport(), {"late", "young"}) == "young"
    # Many at a time take longer each: alone a unit takes a fifth of that.
    busy = OwnerReport(unit_s=40.0, per_s=1 / 8)
    assert busy.least_s == 8.0 and to_repeat([slow], busy, {"young"}) == "young"
    mine = OwnerReport(unit_s=8.0, begun={"late": 1.0}, waiting=("w2",))
    assert to_repeat([slow], mine, left) == "w1"
