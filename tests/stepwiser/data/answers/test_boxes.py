r"""What a response says in its boxes, and references that say nothing."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwiser.data.answers.boxes import boxed_answer, boxes, is_collection, says_nothing

SEVERAL = r"\boxed{3}, \boxed{5}, \boxed{7}"


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"so \fbox{42}", "42"),
        (r"\boxed{41}, no: \fbox{42}", "42"),
        (r"\boxed{42} and so \boxed{}", "42"),
        (r"\boxed{42} so \boxed{ }", "42"),
        (r"\boxed{42} so \boxed{\text{}}", "42"),
        (r"\boxed{42} so \boxed{$\,$}", "42"),
        (r"\boxed{}", None),
        (r"\boxed{\text{a}\}}", r"\text{a}\}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\{1, 2}", r"\{1, 2"),
        (r"\boxed{\left\{1, 2\right.}", r"\left\{1, 2\right."),
        (r"\boxed{a\\}", r"a\\"),
        (r"\boxed{1} and then \boxed{2\}", "1"),
        (r"} \boxed{4} {", "4"),
        (r"\boxed 42.", "42"),
        (r"\boxed{x=\boxed{5}}", "5"),
        (SEVERAL, SEVERAL),
        (r"$\boxed{3}$, $\boxed{5}$ and $\boxed{7}$", SEVERAL),
        (r"\boxed{3} \text{ or } \boxed{5}", r"\boxed{3}, \boxed{5}"),
        (r"first \boxed{3}. Then \boxed{5}", "5"),
        (r"\boxed{3} \boxed{5}", "5"),
        (r"\boxed{3}, \boxed{3}", "3"),
        (r"\boxedx{3}", None),
    ],
)
def test_the_answer_of_a_response(response: str, answer: str | None) -> None:
    assert boxed_answer(response) == answer


def test_a_long_response_of_open_boxes_costs_little() -> None:
    started = time.monotonic()
    assert boxed_answer(r"\boxed{" * 20_000) is None
    assert time.monotonic() - started < 2


@given(st.lists(st.sampled_from([r"\boxed{", r"\fbox{", "{", "}", r"\}", "\\", "a", ", "])))
@settings(deadline=None)
def test_boxes_are_whole_whatever_the_braces(parts: list[str]) -> None:
    response = "".join(parts)
    for box in boxes(response):
        assert response[box.start : box.end].endswith("}")
        assert box.content in response[box.start : box.end]
    boxed_answer(response)


@given(st.text(alphabet=st.characters(exclude_characters="\\{}"), min_size=1))
@settings(max_examples=50, deadline=None)
def test_a_text_in_a_box_comes_out_of_it(text: str) -> None:
    assert boxed_answer(rf"so \boxed{{{text}}}.") in (text.strip(), None)


@pytest.mark.parametrize(
    "reference",
    [
        *("?", "???", "N/A", "n/a", "n.a.", "NA", "", "  ", "-", "—", "...", "…", r"\ldots", "$$"),
        *("the answer is unknown", "The answer is unknown.", "Answer: unknown", "unknown", "None"),
        *("null", "nan", r"\text{N/A}", r"\text{?}", r"\boxed{}", r"\boxed{?}", "not given", "TBD"),
        *("not available", "no answer", "answers may vary", "notfound", "<unknown>", "[N/A]"),
    ],
)
def test_references_that_say_nothing(reference: str) -> None:
    assert says_nothing(reference)


@pytest.mark.parametrize(
    "reference",
    [
        *("0", "-5", "<", "+", "x", "π", "∅", "∞", "(C)", "no solution", r"\text{undefined}", "Na"),
        *(
            r"\emptyset",
            r"\{\}",
            "unknown variable x",
            "a",
            "N",
            "the answer is 5",
            "none of these",
        ),
    ],
)
def test_references_that_say_something(reference: str) -> None:
    assert not says_nothing(reference)


@pytest.mark.parametrize(
    ("answer", "several"),
    [
        *(("3, 5", True), (r"\{1, 2\}", True), ("(1,2)", True), (r"\pm 3", True), ("3 or 5", True)),
        *((SEVERAL, True), ("1,234", False), ("1{,}234", False), ("x+1", False), ("order", False)),
    ],
)
def test_collections(answer: str, several: bool) -> None:
    assert is_collection(answer) is several
