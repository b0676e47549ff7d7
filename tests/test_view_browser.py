"""The page in a real browser: a live run is opened, clicked through, asked what if; nothing is loaded or executed.

CAPO_RAY_CHROMIUM names a browser; without it `chromium` or `google-chrome` on PATH. CAPO_RAY_SCREENSHOTS=DIR keeps
pictures of a run (CAPO_RAY_SCREENSHOT_RUN=RUN) for the documentation.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from capo_ray.cli import main
from capo_ray.config import TrainConfig
from capo_ray.credit import assign_credit
from capo_ray.metrics import JsonlTracker, TranscriptWriter
from tests.view_run import make_run, one_group

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = os.environ.get("CAPO_RAY_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium here: install one, or name it in CAPO_RAY_CHROMIUM"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that fails the test on any error of its script."""
    found = browser.new_page(viewport={"width": 1280, "height": 860})
    errors: list[str] = []
    found.on("pageerror", lambda error: errors.append(str(error)))
    found.on("dialog", lambda dialog: errors.append(dialog.message))
    # When the server has ended, the page says so; that is no error of its script.
    found.on(
        "console", lambda said: errors.append(said.text) if said.type == "error" and "net::" not in said.text else 0
    )
    yield found
    found.close()
    assert errors == []


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


@pytest.fixture
def address(run_dir: Path) -> Iterator[str]:
    words = [sys.executable, "-m", "capo_ray", "view", str(run_dir), "--print-url"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait(timeout=20)


def test_a_live_run_is_clicked_through(page: Any, address: str, run_dir: Path) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.get_by_text("Held-out accuracy").wait_for()
    assert page.locator("svg.chart polygon").count() == 0  # of two points only one has an interval
    page.locator("section", has_text="Reward of rollouts").locator("circle").nth(2).click()
    page.locator("tr.row").first.wait_for()
    assert "update=3" in page.url and page.locator("tr.row").count() == 1
    page.locator("tr.row").first.click()
    page.locator("article.sibling").first.wait_for()
    assert page.locator("article.sibling").count() == 4
    last = page.locator("article.sibling").last
    assert last.locator(".step.flagged").count() == 1 and last.locator(".dots").nth(1).text_content() == "○●●"
    last.locator(".dots").nth(1).hover()
    page.locator("#tip").get_by_text("2 of 3 votes flag step 2").wait_for()
    assert "vote 1" in page.locator("#tip").text_content()
    page.get_by_role("button", name="weights version").click()
    page.locator('button[aria-pressed="true"]', has_text="weights version").wait_for()
    page.keyboard.press("4")
    page.locator('button[aria-pressed="true"]', has_text="log ratio to the sampler").wait_for()
    titles = [span.get_attribute("title") for span in last.locator(".step").nth(1).locator("span[title]").all()]
    assert titles == ["tokens 2 to 3: -0.5"]
    assert last.locator(".step").nth(0).locator("span[title]").first.get_attribute("title") == "tokens 0 to 1: 0"
    page.get_by_role("button", name="entropy").click()
    page.locator('button[aria-pressed="true"]', has_text="entropy").wait_for()
    assert page.get_by_text("no entropy was kept").count() == 0
    last.locator(".step").nth(1).click()
    page.wait_for_url("**step=1**")
    kept = page.url  # a link opens the same step
    page.goto(address.split("?")[0] + "#" + kept.split("#")[1])
    page.locator(".step.chosen").wait_for()
    for key, title in (("c", "Critic"), ("f", "Flow"), ("g", "Groups"), ("o", "Overview")):
        page.keyboard.press(key)
        page.get_by_role("heading", name=title, exact=True).wait_for()
        if key == "f":
            page.locator('.tier[data-tier^="waiting to be trained"] .lane').wait_for()
    page.keyboard.press("c")
    page.locator('tr[data-kind="#+#=#"] a').click()  # the most flagged kind of steps, and where it was flagged last
    page.wait_for_url("**step=1**")
    page.locator(".step.chosen.flagged").wait_for()
    base = address.split("?")[0]
    assert all(url.startswith((base, "data:")) for url in asked)
    assert page.title() == "capo-ray"  # what the responses hold was not executed


def test_flow_shows_who_worked_for_which_group_and_who_waited_for_whom(page: Any, address: str) -> None:
    page.goto(address + "#/flow?run=0")
    lanes = page.locator(".actor")
    lanes.first.wait_for()
    names = ["rollout 0", "rollout 1", "verifier 0", "critic 0", "learner 0"]
    assert [lane.get_attribute("data-actor") for lane in lanes.all()] == names
    assert page.locator("h3").all_text_contents() == ["rollout", "verifier", "critic", "learner"]
    bar = page.locator('.actor[data-actor="critic 0"] i[data-group="5"]')
    bar.hover()
    assert page.locator("#tip").text_content() == "critic 0: group 5, problem p5, 0.3 s, from 1.6 to 1.9 s"
    wait = page.locator('.actor[data-actor="learner 0"] i.wait').nth(1)
    wait.hover()
    told = "learner 0 waited 0.8 s, from 1.2 to 2 s, for critic 0, group 5, problem p5"
    assert page.locator("#tip").text_content() == told
    most = [row.split("\n") for row in page.locator("#waits tbody tr").all_inner_texts()]
    assert ["learner 0", "critic 0", "2.4"] in [row[0].split("\t") for row in most]
    assert page.locator('i[data-errand="publish"]').count() == 4
    bar.click()
    page.wait_for_url("**group=5**")
    page.locator("#life").wait_for()
    assert page.locator("i.dim").count() > 0 and page.locator('i.dim[data-group="5"]').count() == 0
    assert page.locator("#life tbody tr").all_inner_texts() == [
        "rollout 1\t1\t0.5\t–", "verifier 0\t1.5\t0.1\t0", "critic 0\t1.6\t0.3\t0", "learner 0\t2\t0.2\t0.1",
    ]  # fmt: skip
    page.locator('.tier[data-tier="generating"] .lane i').first.wait_for()


def test_what_if_shows_the_numbers_of_capo_ray_credit(
    page: Any, address: str, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page.goto(address + "#/whatif?run=0&group=2")
    page.locator('section.credit[data-method="grpo"]').wait_for()
    page.locator("select.method").nth(1).select_option("dr_grpo")
    section = page.locator('section.credit[data-method="dr_grpo"]')
    section.wait_for()
    shown = float(section.locator('td[data-audit="credit/advantage_abs_mean"]').text_content())
    words = ["credit", "dr_grpo", "--input", str(run_dir / "transcripts.jsonl"), "--json", "--progress", str(2 / 6)]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[2])["audit"]["credit/advantage_abs_mean"]
    assert shown == pytest.approx(told, rel=0.005) and told > 0
    page.locator("#set").fill("credit.vote=intersection")
    page.locator("#set").press("Enter")
    refused = page.locator('section.credit[data-method="dr_grpo"] .refused')
    refused.wait_for()  # that method has no such key, and says so in its column
    assert "credit.vote" in refused.text_content()


def test_the_page_follows_a_run_that_goes_on(page: Any, address: str, run_dir: Path) -> None:
    page.goto(address)
    page.locator("#status", has_text="update 6").wait_for()
    config = TrainConfig().credit
    tracker = JsonlTracker(run_dir / "metrics.jsonl")
    tracker.log({"rollout/reward_mean": 0.9}, update=7)
    tracker.close()
    group = one_group(7)
    TranscriptWriter(run_dir / "transcripts.jsonl").write_group(7, group, assign_credit(group, config, 0.0))
    page.locator("#status", has_text="update 7").wait_for(timeout=15_000)


def test_a_report_is_read_without_a_server(page: Any, run_dir: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", updates=2)
    assert main(["report", str(run_dir), "--compare", str(other), "-o", str(tmp_path / "report.html")]) == 0
    page.goto((tmp_path / "report.html").as_uri())
    page.get_by_text("Held-out accuracy").wait_for()
    lines = page.locator("section", has_text="Reward of rollouts").locator("polyline")
    colours = [lines.nth(i).get_attribute("stroke") for i in range(lines.count())]
    assert len(colours) == len(set(colours)) == 2, "both runs lie over each other"
    waiting = page.locator("section", has_text="Idle share")
    assert "engines" in waiting.text_content() and waiting.locator("polyline").count() == 8
    was_dark = page.evaluate("document.documentElement.classList.contains('dark')")
    page.keyboard.press("t")
    assert page.evaluate("document.documentElement.classList.contains('dark')") != was_dark
    page.keyboard.press("?")
    page.locator("#help").get_by_text("the next, the previous group").wait_for()
    page.keyboard.press("Escape")
    page.keyboard.press("g")
    page.locator("tr.row").first.click()
    page.locator("article.sibling").first.wait_for()
    shown = page.url
    page.keyboard.press("j")
    page.wait_for_function("was => location.href !== was", arg=shown)
    page.keyboard.press("k")
    page.wait_for_url(shown)
    page.locator("article.sibling").first.wait_for()
    page.keyboard.press("w")
    page.locator('section.credit[data-method="grpo"] .step').first.wait_for()
    assert page.title() == "capo-ray"


@pytest.mark.skipif("CAPO_RAY_SCREENSHOTS" not in os.environ, reason="CAPO_RAY_SCREENSHOTS=DIR was not asked for")
def test_pictures_for_the_documentation(browser: Any, tmp_path: Path) -> None:
    run = os.environ["CAPO_RAY_SCREENSHOT_RUN"]
    report, out = tmp_path / "report.html", Path(os.environ["CAPO_RAY_SCREENSHOTS"])
    assert main(["report", run, "-o", str(report)]) == 0
    for name, width, dark, where in (
        ("overview", 1280, False, "#/overview"),
        ("group", 1280, False, "#/groups"),
        ("group-dark", 1280, True, "#/groups"),
        ("group-narrow", 420, False, "#/groups"),
        ("what-if", 1280, False, "#/groups"),
        ("flow", 1280, False, "#/flow"),
    ):
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme="dark" if dark else "light")
        page.goto(report.as_uri() + where)
        page.locator("main[data-drawn]").wait_for()
        if where == "#/groups":
            page.locator("tr.row").first.click()
            page.locator("article.sibling").first.wait_for()
        if name == "what-if":
            page.keyboard.press("w")
            page.locator("section.credit").first.wait_for()
        page.screenshot(path=out / f"view-{name}.png")
        page.close()
