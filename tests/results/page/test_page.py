import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import recipes
import yaml

from d4lens.classes import CLASSES, VIEWS
from d4lens.data import arrays
from d4lens.data.preprocess import build_arrays
from d4lens.errors import D4LensError
from d4lens.files import write_json
from d4lens.inference.pipeline import default_weights
from d4lens.macrofit import fit_split, preset_model
from d4lens.models import scores
from d4lens.observation import Observation
from d4lens.results import charts, outcome, page, predictions, tables
from d4lens.results.page import gallery
from d4lens.simulator import DataSet, preset, write_archive

ROOT = Path(__file__).resolve().parents[3]
ARMS = [("resnet18", 0), ("d4lenspinn", 0)]
STUDIES = {"sensitivity": True, "patching": True, "probing": False}
N_TEST = 9


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project in which profile `small` has run: two arms, nine test images, two studies."""
    root = tmp_path_factory.mktemp("project")
    data = root / "data" / "small"
    write_archive(data / "lenses.zip", DataSet(preset("deeplense"), 1, 12, N_TEST))
    build_arrays(data / "lenses.zip", data / "arrays", preset("deeplense").observation, 2, 0.25, 1)
    facts, split = arrays.load_facts(data / "arrays"), arrays.load_split(data / "arrays", "test")
    lens = preset_model("deeplense", Observation.from_dict(facts["native"]), facts["bin"])
    fit_split(split.counts, split.paths, lens, data / "macrofit", "test", source="", max_starts=1)

    rng = np.random.default_rng(0)
    rows, timing = [], {}
    for arm, seed in ARMS:
        name, runs = f"{arm}-{seed}", root / "runs" / "small"
        logits = np.eye(len(CLASSES))[split.labels] + rng.normal(size=(N_TEST, len(CLASSES)))
        table = predictions.tabulate(split.paths, split.labels, {view: logits for view in VIEWS})
        predictions.write_predictions(runs / "predicted" / f"{name}.parquet", table)
        measured = {metric: {"value": 0.9, "low": 0.8, "high": 0.95} for metric in scores.METRICS}
        sizes = {"n_train": 9, "n_test": N_TEST, "params": 10, "n_pixels": 75, "epochs": 2}
        evaluation = {"profile": "small", "arm": arm, "seed": seed, **sizes, "plain": measured, "tta": measured}
        rows += tables.rows(evaluation, 1.0)
        timing[name] = {"train_minutes": 1.0, "images_per_second": {"plain": 90.0, "tta": 12.5}}
        (runs / name).mkdir()
        history = {"epoch": [1, 2], "loss": [1.1, 0.9], "select_auc_macro": [0.6, 0.8]}
        pd.DataFrame(history).to_csv(runs / name / "history.csv", index=False)
    shutil.copy(default_weights(), root / "runs" / "small" / "d4lenspinn-0" / "model.safetensors")
    folder = root / "metrics" / "small"
    pairs = [{"a": ARMS[0][0], "b": ARMS[1][0], "difference": 0.1, "low": 0.0, "high": 0.2, "p_holm": 0.04}]
    tables.write_profile(folder, tables.table(rows), "Small.", pairs)
    write_json(folder / "timing.json", timing)
    growing = pd.DataFrame(rows).assign(arm=["a_300", "a_300", "a_1000", "a_1000"], n_train=[300, 300, 1000, 1000])
    tables.write_csv(root / "metrics" / "archive" / "learning_curve" / tables.RESULTS, growing)
    drawn = charts.template(charts.intervals("quantity", "layer", "arm", "share <of all>"))
    write_json(root / "plots" / "map.json", drawn)
    records = {"arm": ["resnet18", "other"], "layer": ["a", "b"], "quantity": "q", "value": [1e-9, 0.5]}
    tables.write_csv(root / "plots" / "map.csv", pd.DataFrame(records).assign(ci_low=[None, 0.4], ci_high=[None, 0.6]))
    for name in ("sensitivity", "patching"):
        figure = outcome.DrawingRecord("plots/map.csv", f"Map of {name}", "Teal <everywhere>.", "python stages/x.py")
        record = outcome.record(0.5, 0.4, 0.6, 10, quantity="auc")
        undefined = outcome.record(float("nan"), 0, 0, 0, quantity="control", layer=3)
        study = outcome.Outcome(
            "Is it?",
            ["It is <0.5> by `d4lens <fit>`."],
            ["Why."],
            [record, undefined],
            [figure],
            {"control": "0"},
            f"All of {name}",
        )
        outcome.write_outcome(folder / "studies" / f"{name}.json", study)
    return root


@pytest.fixture(scope="module")
def written(project):
    path = project / "reports" / "report.html"
    page.write_page(path, project, "small", ARMS, STUDIES, 4)
    return path


def test_it_holds_every_part_and_fetches_nothing(written):
    text = written.read_text()
    for word in (
        "resnet18",
        "Calibration",
        "Is it?",
        "It is &lt;0.5&gt; by <code>d4lens &lt;fit&gt;</code>.",
        "What this cannot tell",
        "control",
    ):
        assert word in text
    assert text.index('id="results"') < text.index('id="wrong"') < text.index('id="limits"') < text.index('id="table"')
    for word in ("python stages/x.py", "make reproduce PROFILE=small", "archive, SHA-256", "processor", "torch"):
        assert word in text
    assert "Profile small does not ask for: probing." in text
    ours = re.sub(r"<script>\s*!function.*?</script>", "", text, flags=re.S)  # without the library
    assert len(text) - len(ours) > 800_000
    assert not re.findall(
        r"""(?:src|href)=["'](?!data:|#)|url\(|@import|https?://(?!www\.w3\.org|vega\.github\.io/schema)""", ours
    )


def test_a_study_that_is_declared_must_be_there_with_its_figures(project, tmp_path):
    with pytest.raises(D4LensError, match=r"mismatch\.json is missing"):
        page.write_page(tmp_path / "a.html", project, "small", ARMS, {"mismatch": True}, 4)
    drawing = project / "plots" / "map.json"
    drawing.rename(drawing.with_suffix(".away"))
    try:
        with pytest.raises(D4LensError, match=r"plots/map\.csv, which is missing or damaged, or its \.json is"):
            page.write_page(tmp_path / "a.html", project, "small", ARMS, {"sensitivity": True}, 4)
    finally:
        drawing.with_suffix(".away").rename(drawing)
    assert list(tmp_path.iterdir()) == []


def test_the_study_that_contributing_adds_runs_through_dvc_and_appears_on_the_page(project, tmp_path):
    """The recipe performed: its diff on a copy of the project, and nothing else."""
    copy = tmp_path / "project"
    shutil.copytree(project, copy)
    for top in ("data", "runs", "metrics"):
        (copy / top / "small").rename(copy / top / "quick")
    for name in ("trained", "predicted"):
        (copy / "runs" / "quick" / name).mkdir(exist_ok=True)
    for name in ("src", "stages"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("params.yaml", "dvc.yaml", "trainings.yaml"):
        shutil.copy(ROOT / name, copy)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(copy / "src"),
        "DVC_NO_ANALYTICS": "1",
    }

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    files = ["src/d4lens/studies/brightness.py", "tests/studies/test_brightness.py", "params.yaml"]
    recipes.apply_recipe("studies/brightness.py", files, copy)
    run(sys.executable, "-m", "pytest", "-q", "tests/studies/test_brightness.py")
    values = yaml.safe_load((copy / "params.yaml").read_text())
    assert next(iter(values["studies"])) == "brightness"
    # the other studies would take minutes
    values["profile"]["arms"] = [arm for arm, _ in ARMS]
    values["studies"] = {"brightness": values["studies"]["brightness"]}
    (copy / "params.yaml").write_text(yaml.safe_dump(values))
    dvc = (sys.executable, "-m", "dvc")
    run(*dvc, "init", "--no-scm", "-q")
    assert "study@brightness" in run(*dvc, "stage", "list", "dvc.yaml")
    assert "Median photon counts of an image" in run(*dvc, "repro", "--single-item", "study@brightness")
    run(sys.executable, "stages/page.py", "--profile", "quick")
    text = (copy / "reports" / "report.html").read_text()
    for word in (
        "Brightness: photon counts by class",
        "Median photon counts of an image: no ",
        "Photon counts by class",
    ):
        assert word in text
    assert "python stages/study.py --profile quick --study brightness" in text


def test_the_gallery_takes_the_surest_of_each_class_in_turn():
    labels = np.array([0, 0, 1, 1, 2, 2, 0])
    answers = np.array([0, 0, 1, 1, 2, 0, 1])
    sure = np.array([1.0, 3.0, 1.0, 2.0, 1.0, 4.0, 2.0])
    logits = np.eye(3)[answers] * sure[:, None]
    table = predictions.tabulate([str(i) for i in range(7)], labels, {view: logits for view in VIEWS})
    right, wrong = gallery.choose_examples(table, 4)
    assert right == [1, 3, 4, 0]
    assert wrong == [6, 5]


def test_reliability_s_mean_gap_is_the_calibration_error():
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1, 2], 40)
    logits = 2 * rng.normal(size=(120, 3)) + np.eye(3)[labels]
    table = predictions.tabulate([str(i) for i in range(120)], labels, {view: logits for view in VIEWS})
    bins = page.reliability(table)
    assert bins["images"].sum() == 120
    gap = ((bins["accuracy"] - bins["confidence"]).abs() * bins["images"]).sum() / 120
    assert gap == pytest.approx(scores.score(*predictions.of_view(table, "tta")[1:])["ece"])


def opened_page(browser, path, **options):
    """A page without a network, once its charts are drawn, and what its console said."""
    opened, faults = browser.new_context(offline=True, **options).new_page(), []
    opened.set_default_timeout(120_000)
    opened.on("console", lambda message: faults.append(message.text))
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.goto(path.as_uri())
    opened.locator("html[data-drawn=yes]").wait_for(state="attached")
    return opened, faults


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark")])
def test_in_a_browser_every_figure_shows_and_nothing_runs_off_the_side(browser, written, width, scheme):
    size = {"width": width, "height": 900}
    opened, faults = opened_page(browser, written, viewport=size, color_scheme=scheme)
    assert opened.evaluate("document.documentElement.scrollWidth") == width
    figures = opened.evaluate(
        """[...document.querySelectorAll("main img, main svg")].map(one => {
            const box = one.getBoundingClientRect();
            const drawn = one.tagName === "svg" || (one.complete && one.naturalWidth > 0);
            return drawn && box.width > 60 && box.height > 60;
        })"""
    )
    n_charts, n_studies = 4 + len(ARMS), 2
    assert len(opened.query_selector_all("main svg")) == n_charts + n_studies
    assert all(figures)
    assert len(figures) > n_charts + n_studies
    sizes = """[...document.querySelectorAll("main svg text")].map(one => parseFloat(getComputedStyle(one).fontSize))"""
    assert min(opened.evaluate(sizes)) >= 10  # readable
    # no label is cut: each lies within its chart, and none ends in dots
    cut = """[...document.querySelectorAll("main svg text")].filter(one => {
        const [text, all] = [one.getBoundingClientRect(), one.ownerSVGElement.getBoundingClientRect()];
        return text.left < all.left - 1 || text.right > all.right + 1 || one.textContent.endsWith("…");
    }).map(one => one.textContent)"""
    assert opened.evaluate(cut) == []
    # what is wider than its frame says so
    cues = """[...document.querySelectorAll(".scroll")].filter(one => one.offsetParent
        && (one.scrollWidth > one.clientWidth + 4) !== one.parentElement.classList.contains("more")).length"""
    assert opened.evaluate(cues) == 0
    if width == 1440:
        results = opened.locator("#table .scroll")
        assert results.evaluate("one => one.scrollWidth <= one.clientWidth")
    assert faults == []
    opened.context.close()


def test_in_a_browser_an_arm_has_one_colour_in_every_chart_and_it_turns_with_the_theme(browser, written):
    opened, _ = opened_page(browser, written, color_scheme="light")
    strokes = """[...document.querySelectorAll("main svg path[stroke], main svg line[stroke]")]
        .map(one => one.getAttribute("stroke")).filter(one => one.startsWith("var(--c"))"""
    assert set(opened.evaluate(strokes)) == {"var(--c0)", "var(--c1)"}
    mark = opened.locator('#results svg [stroke="var(--c1)"]').first
    light = mark.evaluate("one => getComputedStyle(one).stroke")
    opened.locator("#theme").click()
    assert mark.evaluate("one => getComputedStyle(one).stroke") != light
    opened.context.close()


def test_in_a_browser_the_forest_plot_names_every_arm_and_a_wrong_image_leads_to_its_explanation(browser, written):
    opened, _ = opened_page(browser, written)
    forest = opened.locator("#results svg")
    for name, _ in ARMS:
        assert name in forest.text_content()
    assert forest.text_content().count("0.9000 [0.8000, 0.9500]") == len(ARMS)
    link = opened.locator("#wrong figure a").first
    target = link.get_attribute("href")
    link.click()
    explained = opened.locator(target)
    explained.scroll_into_view_if_needed()
    assert target == "#wrong-1"
    assert explained.locator("img").count() == 7
    assert link.locator("img").first.get_attribute("src") == explained.locator("img").first.get_attribute("src")
    assert "answered" in explained.text_content()
    opened.context.close()


def test_in_a_browser_the_search_leaves_what_holds_the_words(browser, written):
    opened, _ = opened_page(browser, written)
    search = opened.locator("#search")
    search.fill("d4lenspinn D4")
    rows = "[...document.querySelectorAll('#table tbody tr')].filter(row => !row.hidden).map(row => row.cells[0].textContent)"
    assert opened.evaluate(rows) == ["d4lenspinn"] * 2
    search.fill("archive, SHA-256")
    shown = "[...document.querySelectorAll('main section')].filter(one => !one.hidden).map(one => one.id)"
    assert opened.evaluate(shown) == ["origin"]
    search.fill("nowhere to be found")
    assert opened.evaluate(shown) == []
    assert opened.locator("nav output").text_content() == "nothing found"
    search.fill("")
    assert len(opened.evaluate(rows)) == 4
    opened.context.close()


def test_in_a_browser_a_heading_sorts_by_keyboard_and_the_theme_turns(browser, written):
    opened, _ = opened_page(browser, written, color_scheme="light")
    first = "[...document.querySelectorAll('#table tbody tr')].map(row => row.cells[{}].textContent)"
    assert opened.evaluate(first.format(0)) == ["resnet18"] * 2 + ["d4lenspinn"] * 2
    heading = opened.locator("#table thead button").first
    heading.focus()
    opened.keyboard.press("Enter")
    assert opened.evaluate(first.format(0)) == ["d4lenspinn"] * 2 + ["resnet18"] * 2
    assert opened.locator("#table th").first.get_attribute("aria-sort") == "ascending"
    opened.keyboard.press("Enter")
    assert opened.evaluate(first.format(0)) == ["resnet18"] * 2 + ["d4lenspinn"] * 2
    # numbers as numbers: 12.5 below 90
    opened.evaluate("document.querySelectorAll('#origin tbody td:nth-child(4)')[0].textContent = '1,000'")
    opened.locator("#origin thead button").nth(3).click()
    times = "[...document.querySelectorAll('#origin tbody td:nth-child(4)')].map(cell => cell.textContent)"
    assert opened.evaluate(times) == ["1,000", "12.5"]
    opened.locator("#origin thead button").nth(3).click()
    assert opened.evaluate(times) == ["12.5", "1,000"]
    ground = "getComputedStyle(document.body).backgroundColor"
    light = opened.evaluate(ground)
    opened.locator("#theme").click()
    dark = opened.evaluate(ground)
    assert light != dark
    assert opened.evaluate("document.documentElement.dataset.theme") == "dark"
    opened.context.close()
