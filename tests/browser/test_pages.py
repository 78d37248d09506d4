"""Pages in a real browser: safe, readable by everybody, usable by keyboard and on a phone."""

from __future__ import annotations

import pytest

from tests.browser.conftest import PAGES
from tests.e2e.federation import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_no_page_complains_or_asks_for_what_the_policy_refuses(watched, site):
    for name, address in site["pages"].items():
        answer = watched.page.goto(address)
        assert answer.status == 200, name
        assert watched.page.locator("h1").count() == 1, name
        assert watched.refused() == [], name
        assert watched.faults == [], name


def test_the_policy_is_on(browser, site):
    from tests.browser.watching import Watched

    found = Watched.open(browser)
    found.page.goto(site["address"])
    found.page.evaluate("document.body.setAttribute('style', 'color: red')")
    assert eventually(lambda: found.page.evaluate("window.refused.length === 1"))
    found.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser, site, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    from tests.browser.watching import Watched

    found = Watched.open(browser, color_scheme=scheme, bypass_csp=True)
    faults = {}
    for name, address in site["pages"].items():
        found.page.goto(address)
        for each in axe.run(found.page).response["violations"]:
            if each["impact"] in ("serious", "critical"):
                faults[name, each["id"]] = each["nodes"][0]["html"][:300]
    found.close()
    assert faults == {}


@pytest.mark.parametrize("name", sorted(PAGES))
def test_no_page_scrolls_sideways_on_a_phone(phone, site, name):
    phone.page.goto(site["pages"][name])
    wide = phone.page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 360


@pytest.fixture(scope="module")
def phone(browser):
    from tests.browser.watching import Watched

    found = Watched.open(browser, viewport={"width": 360, "height": 740})
    yield found
    found.close()


def test_dark_and_light_follow_the_system_until_one_is_chosen(browser, site):
    from tests.browser.watching import Watched

    def ground() -> str:
        return str(dark.page.evaluate("getComputedStyle(document.body).backgroundColor"))

    dark = Watched.open(browser, color_scheme="dark")
    dark.page.goto(site["address"])
    night = ground()
    dark.page.get_by_role("button", name="Dark theme").click()
    day = ground()
    assert night != day
    dark.page.goto(site["pages"]["compare"])
    assert ground() == day
    assert (
        dark.page.get_by_role("button", name="Dark theme").get_attribute("aria-pressed") == "false"
    )
    dark.check()
    dark.close()


def test_the_keyboard_leads_from_the_list_to_a_run_and_to_a_comparison(watched, site):
    page = watched.page
    page.goto(site["address"])
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    _tab_to(page, "link", "intents-er")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Enter")
    page.wait_for_url("**/runs/*")
    assert page.locator("h1").text_content() == "intents-er"
    page.go_back()
    for name in ("intents-derpp", "intents-er"):
        _tab_to(page, "checkbox", f"Compare {name}")
        page.keyboard.press("Space")
    assert page.get_by_role("button", name="Compare 2").is_enabled()
    page.keyboard.press("Enter")  # in the form: what its button does
    page.wait_for_url("**/compare?*")
    assert page.locator("h1").text_content() == "Comparison of 2 runs"


def _tab_to(page, role: str, name: str) -> None:
    wanted = page.get_by_role(role, name=name).first
    for _ in range(60):
        page.keyboard.press("Tab")
        if wanted.evaluate("element => element === document.activeElement"):
            return
    raise AssertionError(f"{role} {name!r} cannot be reached with the tabulator key")


def test_a_comparison_shows_curves_over_every_effort_and_what_differs(watched, site):
    watched.page.goto(site["pages"]["compare"])
    names = [each.get_attribute("aria-label") for each in watched.page.get_by_role("img").all()]
    efforts = ("training rounds", "MB, both ways", "seconds", "tasks learnt")
    assert all(any(effort in name for name in names) for effort in efforts)
    settings = watched.page.get_by_role("region", name="Settings that differ").first
    assert "finetune" in settings.text_content()


def test_the_list_filters_as_it_is_typed_in_and_without_scripts(browser, watched, site):
    watched.page.goto(site["address"])
    watched.page.evaluate("window.same = true")
    box = watched.page.get_by_role("searchbox")
    box.press_sequentially("derpp")
    assert eventually(lambda: watched.page.locator("#list tbody tr").count() == 1)
    assert watched.page.evaluate("window.same")
    assert "q=derpp" in watched.page.url
    plain = browser.new_page(java_script_enabled=False)
    plain.goto(site["address"])
    plain.get_by_role("searchbox").fill("derpp")
    plain.get_by_role("button", name="Show").click()
    assert plain.locator("#list tbody tr").count() == 1
    plain.close()


def test_an_error_says_what_which_and_where_next(browser, site):
    page = browser.new_page()
    assert page.goto(f"{site['address']}/runs/{site['ids']['er']}x").status == 404
    text = page.locator("main").text_content()
    assert f"{site['ids']['er']}x" in text
    assert page.get_by_role("link", name="All runs").is_visible()
    page.close()
