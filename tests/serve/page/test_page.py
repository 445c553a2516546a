"""The page in a real browser, over the real service: what a person sees and does there."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.ports import reserved_ports
from tests.serve.page.browser import chromium
from tests.serve.test_http import PROBLEM, STEPS, TOKEN, _options, _with_policy
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow

AXE = Path(__file__).with_name("axe.min.js")
"""axe-core 4.14.1 as released (MPL 2.0)."""
SIZES = {"phone": (360, 740), "desktop": (1280, 900)}
EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def url(
    browser: Any, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Of a service that judges, solves and shows a run. The browser first: without one nothing
    is started."""
    request.getfixturevalue("ray_local")
    from ray import serve

    from serve.app import run

    shown = tmp_path_factory.mktemp("runs")
    with tarfile.open(ROOT / "tests" / "fixtures" / "runs-0.1.tar.xz") as archive:
        archive.extractall(shown, filter="data")
    with reserved_ports(1) as (port,):
        # A second judge at another address: the same one under another name of this machine.
        settings = [
            f"serve.run={shown / 'quickstart'}",
            f"serve.allowed_origins=['http://127.0.0.1:{port}']",
        ]
        try:
            yield run(_with_policy(_options(port, settings, api_token=TOKEN)), blocking=False)
        finally:
            serve.shutdown()


@pytest.fixture
def page(browser: Any, url: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page with its key typed in; fails on an error of a script or of the policy."""
    size, scheme = getattr(request, "param", ("desktop", "light"))
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
    )
    page = context.new_page()
    page.set_default_timeout(60_000)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))

    def heard(message: Any) -> None:
        # A refused request is an error to the console as well.
        if message.type == "error" and "status of 4" not in message.text:
            wrong.append(message.text)

    def asked(request: Any) -> None:
        if not request.url.startswith(("http://127.0.0.1:", "http://localhost:")):
            wrong.append(request.url)

    page.on("console", heard)
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    page.on("request", asked)
    page.goto(url)
    page.get_by_label("Key", exact=True).fill(TOKEN)
    yield page
    assert page.evaluate("localStorage.length + sessionStorage.length") == 0
    assert page.evaluate("document.cookie") == ""
    assert not wrong
    context.close()


def _judge(page: Any, problem: str, solution: str) -> None:
    page.locator("#problem").fill(problem)
    page.locator("#solution").fill(solution)
    page.get_by_role("button", name="Judge", exact=True).click()


def _finished(page: Any) -> None:
    page.locator("#judge-status small").first.wait_for()


def _serious(page: Any) -> list[str]:
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{rule['id']}: {node['target']} {node['failureSummary']}"
        for rule in found["violations"]
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


def test_steps_get_their_verdicts_by_keyboard_alone(page: Any) -> None:
    page.get_by_role("textbox", name="Problem").focus()
    page.keyboard.type(PROBLEM)
    page.keyboard.press("Tab")
    page.keyboard.insert_text("\n\n".join(step.strip() for step in STEPS))
    for _ in range(3):
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    _finished(page)
    cards = page.locator("#judge-steps > li")
    assert cards.count() == 2
    for text in page.locator("#judge-steps .chip").all_inner_texts():
        assert re.search(r"(\d\.\d\d|–)\s.*(Positive|Negative|no verdict)", text, re.DOTALL), text
    card = cards.first.locator("summary")
    card.focus()
    page.keyboard.press("Enter")
    opened = cards.first.inner_text()
    assert "2 votes: " in opened and "tokens" in opened  # the server's default
    assert "judged by base_model" in page.locator("#judge-status").inner_text()


def test_texts_are_never_html_and_mathematics_is_typeset(page: Any) -> None:
    _judge(page, "what is x?", f"first {EVIL}\n\nso $x^2 = 4$ for $5 and \\boxed{{4}}")
    page.locator("#judge-steps .katex").first.wait_for()
    texts = page.locator("#judge-steps .step-text")
    assert EVIL in texts.first.inner_text()
    assert page.locator("#judge-steps img, #judge-steps script").count() == 0
    assert texts.nth(1).locator(".katex").count() == 2
    assert "for $5 and" in texts.nth(1).inner_text()
    _finished(page)
    assert page.evaluate("document.fonts.check('16px KaTeX_Main')")


def test_two_judges_stand_side_by_side(page: Any, url: str) -> None:
    page.get_by_text("Compare with a second judge").click()
    page.get_by_label("Its address").fill(url.replace("127.0.0.1", "localhost"))
    page.get_by_label("Its key").fill(TOKEN)
    _judge(page, PROBLEM, "\n\n".join(STEPS))
    page.get_by_text("They agree on").wait_for()
    chips = page.locator("#judge-steps > li").first.locator(".chip").all_inner_texts()
    assert [chip.strip()[0] for chip in chips] == ["A", "B"]
    page.get_by_label("Its key").fill("wrong")
    page.get_by_role("button", name="Judge", exact=True).click()
    error = page.locator("#judge-errors")
    error.get_by_text("missing, wrong or revoked key").wait_for()
    assert "A: " in page.locator("#judge-status").inner_text()  # the other one has answered


def test_errors_are_said_and_work_can_be_cancelled(page: Any) -> None:
    _judge(page, PROBLEM, "<chunk>never closed")
    page.get_by_role("alert").get_by_text("missing closing tag").wait_for()
    page.get_by_label("Votes a step").fill("64")
    _judge(page, PROBLEM, "\n\n".join(f"buys {i}+1={i + 1}" for i in range(6)))
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("Cancelled").wait_for()
    assert page.get_by_role("button", name="Judge", exact=True).is_enabled()


def test_rejected_chunks_are_struck_through(page: Any) -> None:
    page.get_by_role("link", name="Solve").click()
    page.locator("#solve-problem").fill(PROBLEM)
    for _ in range(20):
        page.get_by_role("button", name="Solve", exact=True).click()
        page.locator("#solve-status small").wait_for()
        if page.locator("#solve-steps del").count():
            break
    rejected = page.locator("#solve-steps .rejected")
    assert rejected.count(), "of 20 first chunks the judge has refused none"
    decoration = rejected.first.locator("del").evaluate(
        "n => getComputedStyle(n).textDecorationLine"
    )
    assert decoration == "line-through"
    assert "rejected, try 1" in rejected.first.inner_text()
    assert re.search(r"\d+ rejected, \d+ of the judge", page.locator("#solve-status").inner_text())


def test_a_labelled_run_can_be_browsed(page: Any) -> None:
    page.get_by_role("link", name="Labelled run").click()
    page.get_by_text("1 to 10 of 32 solutions").wait_for()
    page.locator("#run-outcome").select_option("wrong")
    page.get_by_text("1 to 10 of 18 solutions").wait_for()
    page.get_by_role("button", name="Next").click()
    page.get_by_text("11 to 18 of 18 solutions").wait_for()
    assert page.get_by_role("button", name="Next").is_disabled()
    # Not every step has a label: one whose value before it is 0 has none.
    step = page.locator("#run-solutions .step", has_text="labelled").first
    step.locator("summary").click()
    assert re.search(r"\d+ of 8 rollouts from here end right", step.inner_text())
    assert "Q " in step.inner_text() and "labelled" in step.inner_text()


@pytest.mark.parametrize(
    "page",
    [(size, scheme) for size in SIZES for scheme in ("light", "dark")],
    indirect=True,
    ids=lambda value: "-".join(value),
)
def test_every_view_is_readable(page: Any) -> None:
    """axe finds nothing serious, and nothing is wider than the screen."""
    narrow = "document.documentElement.scrollWidth <= window.innerWidth"
    assert _serious(page) == []
    page.get_by_text("Compare with a second judge").click()
    _judge(page, PROBLEM, "\n\n".join(["\\[S = \\frac{1/2}{1-1/2}\\]", *STEPS]))
    # Not `wait_for_function`: the page's policy lets nobody evaluate a text.
    page.locator("#judge-status small, #judge-errors p").first.wait_for()
    page.locator("#judge-steps summary").first.click()
    assert _serious(page) == [] and page.evaluate(narrow)
    page.get_by_role("link", name="Solve").click()
    page.locator("#solve-problem").fill(PROBLEM)
    page.get_by_role("button", name="Solve", exact=True).click()
    page.locator("#solve-status small").wait_for()
    assert _serious(page) == [] and page.evaluate(narrow)
    page.get_by_role("link", name="Labelled run").click()
    page.locator("#run-solutions summary").first.click()
    assert _serious(page) == [] and page.evaluate(narrow)
