import json

import pytest

from d4lens.errors import D4LensError
from d4lens.results import documents, tables

PAGE = "before\n<!-- results:quick:begin -->\nold\n<!-- results:quick:end -->\nbetween\n<!-- results:full:begin --><!-- results:full:end -->\nafter\n"


def results(folder, profile="quick", caption="Enough.", **aucs):
    """A profile's results, with the macro AUC (TTA) of each arm, which is d4lenspinn alone where none is named."""
    metrics = {key: {"value": 0.5, "low": 0.4, "high": 0.6} for key in tables.METRICS}
    rows = []
    for arm, auc in (aucs or {"d4lenspinn": 0.9}).items():
        for seed, value in enumerate(auc if isinstance(auc, list) else [auc]):
            facts = {"profile": profile, "arm": arm, "seed": seed, "n_train": 5400, "n_test": 1500, "params": 7}
            scored = metrics | {"auc_macro": {"value": value, "low": value - 0.01, "high": value + 0.01}}
            rows += tables.rows(facts | {"n_pixels": 75, "epochs": 6, "plain": metrics, "tta": scored}, 1)
    tables.write_profile(folder / profile, tables.table(rows), caption, [])


def test_a_document_holds_what_the_metrics_say_and_nothing_else_changes(tmp_path):
    page, metrics = tmp_path / "README.md", tmp_path / "metrics"
    page.write_text(PAGE)
    results(metrics)
    results(metrics, "smoke")  # no markers: not this document's business
    assert documents.stale(tmp_path) == [page] == documents.update(tmp_path)
    text = page.read_text()
    assert text.startswith("before\n<!-- results:quick:begin -->\n**Profile quick**: 5,400")
    assert text.endswith(
        "|\n<!-- results:quick:end -->\nbetween\n<!-- results:full:begin --><!-- results:full:end -->\nafter\n"
    )
    assert "old" not in text
    assert documents.stale(tmp_path) == [] == documents.update(tmp_path)
    # one digit of the metrics, or one of the document, and it is stale
    results(metrics, d4lenspinn=0.801)
    assert documents.update(tmp_path) == [page]
    page.write_text(page.read_text().replace("0.801", "0.901"))
    assert documents.stale(tmp_path) == [page]


@pytest.mark.parametrize(
    "text",
    [
        "<!-- results:quick:begin -->\n",
        "<!-- results:quick:end --><!-- results:quick:begin -->",
        "<!-- results:quick:begin --><!-- results:quick:end -->" * 2,
        "<!-- result:quick:begin --><!-- result:quick:end -->",
    ],
)
def test_torn_and_unknown_markers_are_refused_and_nothing_is_written(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    results(tmp_path / "metrics")
    with pytest.raises(D4LensError, match=r"one begin and one end marker results?:quick, of results, headline"):
        documents.update(tmp_path)
    assert (tmp_path / "README.md").read_text() == text


def test_results_that_wait_for_their_rerun_say_which_version_made_them_until_it_comes(tmp_path):
    results(tmp_path / "archive", caption="Old.")
    path = tmp_path / "archive" / "quick" / tables.REPORT
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": "0.0.9"}))
    text = documents.refreshed(PAGE, tmp_path)
    assert "Old." in text
    assert "*Measured with version 0.0.9 of the code; its rerun is pending.*" in text
    assert documents.refreshed(text, tmp_path) == text
    assert tables.profiles(tmp_path) == []  # and the joined table is without them
    results(tmp_path, caption="New.")
    text = documents.refreshed(text, tmp_path)
    assert "New." in text
    assert "0.0.9" not in text


def test_the_headline_has_an_interval_over_images_and_seeds(tmp_path):
    results(tmp_path, d4lenspinn_published=0.6, d4cnn=0.7, d4cnn_residual=0.9, d4lenspinn=[0.97, 0.98])
    text = documents.refreshed("<!-- headline:quick:begin -->\n<!-- headline:quick:end -->", tmp_path)
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]
    assert [row[0] for row in rows] == ["| `d4lenspinn_published`", "| `d4cnn_residual`", "| `d4lenspinn`"]
    assert [row[2] for row in rows] == [
        "0.6000 [0.5900, 0.6100] |",
        "0.9000 [0.8900, 0.9100] |",
        "0.9750 [0.9600, 0.9900] |",
    ]


def test_a_number_in_a_sentence_is_that_of_the_metrics(tmp_path):
    results(tmp_path, resnet18=0.6, d4lenspinn=[0.97, 0.98])
    records = [{"by": "ideal", "class": "vort", "value": 0.915}, {"by": "map", "class": "vort", "value": 0.387}]
    (tmp_path / "quick" / "studies").mkdir()
    (tmp_path / "quick" / "studies" / "limit.json").write_text(json.dumps({"records": records}))

    def said(expression):
        return documents.refreshed(f"It is <!--n {expression}-->0.1<!--/n--> here.", tmp_path)

    assert said("quick arm=d4lenspinn auc_macro .3f") == (
        "It is <!--n quick arm=d4lenspinn auc_macro .3f-->0.975<!--/n--> here."
    )
    assert ">39%<" in said("quick/studies/limit by=map class=vort value .0%")
    for wrong, sentence in (
        ("quick/studies/limit class=vort value .2f", "finds 2 records"),
        ("quick/studies/limit by=nobody value .2f", "finds 0 records"),
        ("quick/studies/limit arm=map value .2f", "picks by arm"),
        ("quick/studies/nothing value .2f", "there is no"),
        ("quick arm=d4lenspinn auc .2f", "must find one"),
    ):
        with pytest.raises(D4LensError, match=sentence):
            said(wrong)


def test_the_documents_of_a_project_are_those_at_its_root_and_in_docs(tmp_path):
    for name in ("README.md", "docs/results.md", "src/other.md", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert documents.find_documents(tmp_path) == [tmp_path / "README.md", tmp_path / "docs/results.md"]
