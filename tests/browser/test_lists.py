"""Lists that are looked at while what they show goes on: rows stay in their place, and say how they stand."""

import json
import re
from typing import Final

import pytest
from playwright.async_api import Page, Route, expect

from tests.api_server import Api
from tests.browser.console import EVERYTHING, Console
from tests.eventually import eventually
from tests.jobs import JobMaker
from tests.tokens import token

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("browser")]

NEXT_MS: Final = 16_000
"""When a list has been read again."""
_CHANGE: Final = "UPDATE control_plane.jobs SET status = $2, completed_at = now() WHERE id = $1"
_GIVE_UP: Final = """
UPDATE redrive.retry_requests SET state = 'dead_lettered', outcome = 'poison', processed_at = now() WHERE job_id = $1
"""


async def open_at(console: Console, project: str, view: str) -> Page:
    """The view of a project, by a clock that is turned by hand."""
    await console.page.clock.install()
    await console.page.goto(f"{console.url}#token={token(project_id=project, scope=EVERYTHING)}")
    await expect(console.page.locator("main h1")).to_have_text("Overview")
    await console.go(view)
    return console.page


async def test_a_job_that_goes_back_stays_in_its_place_says_so_and_is_no_longer_chosen(
    console: Console, jobs: JobMaker
) -> None:
    first, *others = await jobs.make(4, status="failed", project_id="going")
    page = await open_at(console, "going", "#/jobs")
    rows = page.locator("table.jobs tbody tr")
    row = page.locator(f'tr[data-row="{first.id}"]')
    await page.get_by_label("Select all shown").check()
    await expect(page.get_by_role("button", name="Retry 4…")).to_be_visible()
    at = await rows.evaluate_all("rows => rows.map(row => row.dataset.row)")

    await jobs.pool.execute(_CHANGE, first.id, "running")
    newer = await jobs.failed(project_id="going")
    await page.clock.run_for(NEXT_MS)

    await expect(row.locator(".state")).to_have_text("moved on")
    await expect(row.get_by_role("checkbox")).to_be_disabled()
    await expect(page.get_by_role("button", name="Retry 3…")).to_be_visible()
    assert await rows.evaluate_all("rows => rows.map(row => row.dataset.row)") == at
    await page.get_by_role("button", name="1 newer, 1 moved on: renew the list").click()
    await expect(rows).to_have_count(4)
    shown = await rows.evaluate_all("rows => rows.map(row => row.dataset.row)")
    assert set(shown) == {newer.id, *(job.id for job in others)}


async def test_jobs_that_were_all_retried_are_not_taken_for_newer_ones(console: Console, jobs: JobMaker) -> None:
    older = await jobs.make(60, status="failed", project_id="all-gone")
    newest = await jobs.make(50, status="failed", project_id="all-gone")
    page = await open_at(console, "all-gone", "#/jobs")
    await expect(page.locator(f'tr[data-row="{newest[0].id}"]')).to_be_visible()

    await jobs.pool.execute(
        "UPDATE control_plane.jobs SET status = 'running' WHERE id = ANY($1)", [j.id for j in newest]
    )
    await page.clock.run_for(NEXT_MS)

    await expect(page.locator("table.jobs tbody tr .state")).to_have_text(["moved on"] * 50)
    await expect(page.get_by_role("button", name="Retry", exact=False)).to_have_count(0)
    await page.get_by_role("button", name="50 moved on: renew the list").click()
    await expect(page.locator("table.jobs tbody tr")).to_have_count(50)
    assert await page.locator("table.jobs tbody tr").first.get_attribute("data-row") in {job.id for job in older}


async def test_of_jobs_that_were_made_at_one_moment_those_that_went_back_are_known(
    console: Console, jobs: JobMaker
) -> None:
    made = sorted((job.id for job in await jobs.make(120, status="failed", project_id="ties")), reverse=True)
    page = await open_at(console, "ties", "#/jobs")
    rows = page.locator("table.jobs tbody tr")
    assert await rows.evaluate_all("rows => rows.map(row => row.dataset.row)") == made[:50]

    await jobs.pool.execute("UPDATE control_plane.jobs SET status = 'running' WHERE id = ANY($1)", made[:50])
    await page.clock.run_for(NEXT_MS)

    await expect(rows.locator(".state")).to_have_text(["moved on"] * 50)
    await page.get_by_role("button", name="50 moved on: renew the list").click()
    await expect(page.locator("main h1")).to_be_focused()
    assert await rows.evaluate_all("rows => rows.map(row => row.dataset.row)") == made[50:100]


async def test_a_job_that_fails_late_is_told_of_though_others_are_newer(console: Console, jobs: JobMaker) -> None:
    (late,) = await jobs.make(1, status="running", project_id="late-one")
    newest = await jobs.failed(project_id="late-one")
    page = await open_at(console, "late-one", "#/jobs")
    rows = page.locator("table.jobs tbody tr")
    await expect(rows).to_have_count(1)

    await jobs.pool.execute(_CHANGE, late.id, "failed")
    await page.clock.run_for(NEXT_MS)
    await page.get_by_role("button", name="1 newer").click()

    await expect(rows).to_have_count(2)
    assert await rows.evaluate_all("rows => rows.map(row => row.dataset.row)") == [newest.id, late.id]


async def test_what_was_done_to_a_retry_is_seen_in_its_row(console: Console, api: Api, jobs: JobMaker) -> None:
    bearer = token(project_id="given-up", scope=EVERYTHING)
    dead = await jobs.failed(project_id="given-up")
    assert (await api.post(f"/api/jobs/{dead.id}/retry", token=bearer)).status == 202
    await jobs.pool.execute(_GIVE_UP, dead.id)
    page = await open_at(console, "given-up", "#/dead")
    row = page.locator("table.retries tbody tr")

    await row.get_by_role("button", name="Redrive").click()

    await expect(row.locator(".state")).to_contain_text("queued")
    await expect(row.get_by_role("link").first).to_be_focused()
    await expect(row.get_by_role("button")).to_have_count(0)
    await console.go("#/retries?state=queued")
    await row.get_by_role("button", name="Take back").click()
    await expect(row.locator(".state")).to_contain_text("cancelled")
    await expect(row).to_contain_text("taken back before it was applied, by alice; redriven by alice")
    await page.clock.run_for(NEXT_MS)
    await expect(row.locator(".state")).to_contain_text("cancelled")
    await expect(row.get_by_role("button")).to_have_count(0)


async def test_a_second_click_does_not_undo_the_first(console: Console, api: Api, jobs: JobMaker) -> None:
    bearer = token(project_id="twice", scope=EVERYTHING)
    dead = await jobs.failed(project_id="twice")
    await api.post(f"/api/jobs/{dead.id}/retry", token=bearer)
    await jobs.pool.execute(_GIVE_UP, dead.id)
    page = await open_at(console, "twice", "#/retries")
    row = page.locator("table.retries tbody tr")

    await row.get_by_role("button", name="Redrive").click()

    await expect(row.get_by_role("button", name="Take back")).to_be_disabled()
    await page.clock.run_for(2_000)
    await expect(row.get_by_role("button", name="Take back")).to_be_enabled()


async def test_a_new_batch_is_told_of_in_the_list_of_batches(console: Console, api: Api, jobs: JobMaker) -> None:
    bearer = token(project_id="batches", scope=EVERYTHING)
    ids = [job.id for job in await jobs.make(2, status="failed", project_id="batches")]
    await api.post("/api/jobs/retry", {"ids": ids[:1], "reason": "the first"}, token=bearer)
    page = await open_at(console, "batches", "#/batches")
    await expect(page.locator("table.batches tbody tr")).to_have_count(1)

    await api.post("/api/jobs/retry", {"ids": ids[1:], "reason": "the second"}, token=bearer)
    await page.clock.run_for(NEXT_MS)
    await page.get_by_role("button", name="1 newer").click()

    await expect(page.locator("table.batches tbody tr .main a")).to_have_text(["the second", "the first"])


@pytest.mark.parametrize("view", ["#/", "#/failures"])
async def test_no_group_moves_while_a_pointer_is_on_the_table(
    console: Console, api: Api, jobs: JobMaker, view: str
) -> None:
    project = f"groups{len(view)}"

    async def are_counted_anew() -> bool:
        answer = await api.get("/api/failures", token=token(project_id=project))
        return "new" in {group["type"] for group in answer.data}

    for kind, count in (("large", 3), ("small", 2), ("going", 1)):
        await jobs.make(count, status="failed", project_id=project, kind=kind)
    page = await open_at(console, project, view)
    kinds = page.locator("table.groups td.what a")
    await expect(kinds).to_have_text(["large", "small", "going"])
    await page.get_by_role("button", name="of small").hover()

    await jobs.make(5, status="failed", project_id=project, kind="new")
    await jobs.make(3, status="failed", project_id=project, kind="small")
    await jobs.pool.execute(
        "UPDATE control_plane.jobs SET status = 'running' WHERE project_id = $1 AND type = 'going'", project
    )
    await eventually(are_counted_anew)  # once in five seconds
    await page.clock.run_for(NEXT_MS)

    await expect(page.get_by_role("button", name="Retry 5 jobs of small")).to_be_visible()
    await expect(kinds).to_have_text(["large", "small", "going", "new"])
    await expect(page.locator("table.groups tr.left")).to_contain_text("moved on")
    await page.mouse.move(0, 0)
    await page.clock.run_for(NEXT_MS)
    await expect(kinds.nth(2)).to_have_text("large")
    await expect(kinds).to_have_count(3)


async def test_what_cannot_be_read_again_is_said_to_be_old_where_it_stands(console: Console, jobs: JobMaker) -> None:
    await jobs.failed(project_id="old")
    page = await open_at(console, "old", "#/")
    way_back = page.locator("section", has_text="The way back")
    await expect(way_back).to_contain_text("oldest queued")

    async def refuse(route: Route) -> None:
        problem = '{"code":"unavailable","status":503}'
        await route.fulfill(status=503, content_type="application/problem+json", body=problem)

    await page.route("**/api/retries/stats", refuse)
    await page.clock.run_for(NEXT_MS)

    await expect(way_back.get_by_role("status")).to_contain_text("The database behind the API is away or too slow.")
    await expect(way_back.get_by_role("status")).to_contain_text(re.compile(r"As of \d\d:\d\d:\d\d UTC\."))
    await expect(way_back).to_contain_text("oldest queued")
    await page.unroute_all()
    await page.clock.run_for(NEXT_MS)
    await expect(way_back.get_by_role("status")).to_have_count(0)


async def test_a_token_of_another_project_begins_anew(console: Console, jobs: JobMaker) -> None:
    await jobs.make(2, status="failed", project_id="mine", kind="of.mine")
    await jobs.make(1, status="failed", project_id="theirs", kind="of.theirs")
    page = await open_at(console, "mine", "#/failures")
    await page.get_by_role("button", name="Retry 2 jobs of of.mine").click()
    await expect(page.get_by_role("dialog")).to_contain_text("2 can go back")
    await page.clock.fast_forward(3_600_000)
    again = page.get_by_role("dialog", name="Sign in again")

    await again.get_by_label("token", exact=True).fill(token(project_id="theirs", scope=EVERYTHING, exp=4_000_000_000))
    await again.get_by_role("button", name="Use this token").click()

    await expect(page.get_by_role("dialog")).to_have_count(0)
    await expect(page.locator("table.groups td.what a")).to_have_text(["of.theirs"])


async def test_more_than_go_back_at_once_are_said_to_be_too_many_before_the_click(
    console: Console, jobs: JobMaker
) -> None:
    await jobs.make(51, status="failed", project_id="many")
    page, dialog = await open_at(console, "many", "#/jobs"), console.page.get_by_role("dialog")

    async def truncate(route: Route) -> None:
        answer = await route.fetch()
        data = (await answer.json())["data"] | {"matched": 10_000, "retryable": 9_000, "truncated": True}
        await route.fulfill(response=answer, json={"data": data})

    await page.route("**/api/jobs/retry?dry_run=true", truncate)
    await page.get_by_label("Select all shown").check()
    await page.get_by_role("button", name="Select all that match").click()
    await page.get_by_role("button", name="Retry all…").click()
    await dialog.get_by_label("reason").fill("all of them")

    await expect(dialog).to_contain_text("More than 10,000 match, and so many do not go back at once.")
    await expect(dialog.get_by_role("button", name="Retry 9,000 jobs")).to_be_disabled()
    await dialog.get_by_role("combobox", name="retry").select_option("5 first, to see how they fare")
    await expect(dialog.get_by_role("button", name="Retry the first 5 jobs")).to_be_enabled()
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("button", name="Retry all…")).to_be_focused()  # and all that match are chosen still


async def test_a_job_that_a_replica_shows_as_it_was_is_not_said_to_have_failed_again(
    console: Console, api: Api, jobs: JobMaker
) -> None:
    bearer = token(project_id="lagging", scope=EVERYTHING)
    job = await jobs.failed(project_id="lagging")
    before = (await api.get(f"/api/jobs?ids={job.id}", token=bearer)).body
    retry = (await api.post(f"/api/jobs/{job.id}/retry", token=bearer)).data
    applied = retry | {"state": "applied", "outcome": "applied", "attempts_before": 1, "done": True}
    shown = json.loads(before)["data"][0]
    applied |= {"started_at_before": shown["started_at"], "completed_at_before": shown["completed_at"]}
    page = await open_at(console, "lagging", "#/")
    answers = {"retries?limit": json.dumps({"data": [applied], "next_cursor": None}), "jobs?ids": before.decode()}

    async def answer(route: Route) -> None:
        (body,) = (body for part, body in answers.items() if part in route.request.url)
        await route.fulfill(status=200, content_type="application/json", body=body)

    for part in ("retries?limit", "jobs?ids"):
        await page.route(re.compile(re.escape(f"/api/{part}")), answer)
    await console.go("#/retries")
    row = page.locator("table.retries tbody tr")
    async with page.expect_response(re.compile(re.escape("/api/jobs?ids"))):
        await page.clock.run_for(NEXT_MS)
    await expect(row).to_contain_text("the job went back to pending")
    await expect(row).not_to_contain_text("failed again")

    answers["jobs?ids"] = answers["jobs?ids"].replace('"attempts":1', '"attempts":2')
    await page.clock.run_for(NEXT_MS)

    await expect(row).to_contain_text("now failed again")
