"""MLflow's UI in a real browser: the printed links answer the question."""

import json
import re
import shutil
import sys
import time
from pathlib import Path
from urllib.parse import quote

import pytest
from mlflow import MlflowClient

from runner import sweep
from runner.files.place import load_place

from .conftest import HERE, TINY, free_port, served

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture
def browser(tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium drives the browser: pip install selenium")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no Chromium here (apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "headless", "no-sandbox", "disable-gpu", "disable-background-networking", "no-first-run",
        "window-size=1600,4000", f"user-data-dir={tmp_path / 'chromium'}",
    ):  # fmt: skip
        options.add_argument(f"--{argument}")
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def ui(project, capsys):
    """A tiny sweep in MLflow's own UI; the links that it printed."""
    text = TINY.replace("confirm: {top: 0, types: false}", "confirm: {top: 2, types: false, seeds: 3}")
    Path("sweeps/tiny.yaml").write_text(text)
    port = free_port()
    Path("mlflow.yaml").write_text(f"ui: {{port: {port}}}\n")
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
    links = dict(re.findall(r"^  (\w+): (http\S+)$", capsys.readouterr().out, flags=re.M))
    with served([sys.executable, "-m", "runner.ui"], port, Path("ui.log")):
        yield links


def see(browser, link: str, *words: str, seconds: float = 60) -> str:
    """Open a page, wait until all words stand on it, and keep a picture of it; its text."""
    browser.get("about:blank")
    browser.get(link)
    until = time.monotonic() + seconds
    while True:
        text = browser.find_element("tag name", "body").text
        if all(word in text for word in words):
            browser.save_screenshot(f"page-{len(list(Path().glob('page-*.png')))}.png")
            return text
        if time.monotonic() > until:
            browser.save_screenshot("failed.png")
            raise AssertionError(f"{[w for w in words if w not in text]} are not on the page:\n{text}")
        time.sleep(0.3)


@pytest.mark.slow
def test_the_printed_links_show_curves_types_report_and_a_trial_and_trials_compare(ui, browser):
    assert list(ui) == ["curves", "types", "report"]
    text = see(browser, ui["curves"], "t0000 cosine", "t0001 wsd", "t0002 step", "val/accuracy", "train/loss", "lr")
    assert "3 matching runs" in text  # the trials: no parent, and no replicate among them
    see(browser, ui["types"], "Group: cosine", "Group: wsd", "Group: step")
    see(browser, ui["report"], "Does it run?", "Show more", "study/confirmed")
    next(b for b in browser.find_elements("tag name", "button") if b.text == "Show more").click()
    until = time.monotonic() + 30
    script = (
        "return [...document.querySelectorAll('img')].filter(i => i.src.includes('figures')).map(i => i.naturalWidth)"
    )
    while not (widths := browser.execute_script(script)) or not all(widths):
        assert time.monotonic() < until, widths
        time.sleep(0.3)
    assert len(widths) == 3
    assert "Reproduce, continue, or add trials" in browser.find_element("tag name", "body").text
    base, experiment = ui["curves"].partition("#")[0], re.search(r"experiments/(\d+)", ui["curves"])[1]
    client = MlflowClient(tracking_uri=load_place().tracking_uri)
    trials = client.search_runs([experiment], "tags.`sweep.role` = 'trial'")
    first = f"{base}#/experiments/{experiment}/runs/{trials[0].info.run_id}"
    see(browser, f"{first}?workflowType=machine_learning", "schedule.type", "objective", "Parent run")
    see(browser, f"{first}/model-metrics?workflowType=machine_learning", "lr", "val/accuracy")
    ids = quote(json.dumps([t.info.run_id for t in trials]))
    see(
        browser,
        f"{base}#/compare-runs?runs={ids}&experiments={quote(json.dumps([experiment]))}",
        "Parallel Coordinates",
        "schedule.init_lr",
        "schedule/final_over_peak",
    )
