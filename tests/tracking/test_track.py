import contextlib
import logging
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest

from d4lens import tracking
from d4lens.tracking import store as places


@pytest.fixture(scope="module")
def created(tmp_path_factory):
    """A store as the first training leaves it: created once, since that takes seconds."""
    folder = tmp_path_factory.mktemp("store")
    with tracker(folder) as first:
        first.log_metrics({"train/loss": 1.5, "select/auc_macro": 0.5}, step=0)
    return folder


@pytest.fixture
def store(created, tmp_path):
    """A private copy of the database; its experiment's artefacts are under `created`."""
    (tmp_path / tracking.DATABASE).write_bytes((created / tracking.DATABASE).read_bytes())
    return tmp_path


def tracker(
    folder, fingerprint="f0", name="resnet18-0", params=None, tags=None, enabled=True, watch=False, seconds=None
):
    return tracking.Tracker(
        enabled,
        folder,
        "d4lens-smoke",
        name,
        fingerprint,
        params or {"train": {"epochs": 2, "losses": [1, 2]}, "arm": "resnet18"},
        tags or {"profile": "smoke", "seed": 0},
        watch,
        seconds,
    )


def client(folder):
    return places.client(folder)


@pytest.fixture
def waits(monkeypatch):
    """Seconds given to each wait for the store: what a training may lose, on however loaded a machine."""
    given, probe = [], places.check_store

    def recorded(store, seconds):
        given.append(seconds)
        probe(store, seconds)

    monkeypatch.setattr(places, "check_store", recorded)
    return given


def runs(folder):
    experiment = client(folder).get_experiment_by_name("d4lens-smoke")
    return client(folder).search_runs([experiment.experiment_id])


def test_a_run_holds_params_tags_metrics_and_artefacts_in_the_project(created, store, tmp_path):
    with tracker(store, "f1") as run:
        run.log_metrics({"train/loss": 1.0}, step=0)
        # live: another connection sees the epoch while the training goes on
        assert client(store).get_run(run.run_id).data.metrics == {"train/loss": 1.0}
        assert client(store).get_run(run.run_id).info.status == "RUNNING"
        run.log_metrics({"train/loss": 0.5}, step=1)
        (tmp_path / "plots").mkdir()
        (tmp_path / "plots" / "roc.svg").write_text("<svg/>")
        run.log_artifact(tmp_path / "plots", "plots")
        run.log_artifact(tmp_path / "plots" / "roc.svg")
    found = client(store).get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params == {"train.epochs": "2", "train.losses": "[1, 2]", "arm": "resnet18"}
    assert found.data.tags.items() >= {"profile": "smoke", "seed": "0", "fingerprint": "f1"}.items()
    history = client(store).get_metric_history(run.run_id, "train/loss")
    assert [(row.step, row.value) for row in history] == [(0, 1.0), (1, 0.5)]
    assert found.info.artifact_uri.startswith((created / tracking.ARTIFACTS).as_uri())
    assert sorted(item.path for item in client(store).list_artifacts(run.run_id)) == ["plots", "roc.svg"]
    assert [item.path for item in client(store).list_artifacts(run.run_id, "plots")] == ["plots/roc.svg"]


def test_the_same_fingerprint_continues_its_run_and_repeats_nothing(store, caplog):
    before = runs(store)
    assert len(before) == 1
    # later, with a parameter changed under the same fingerprint and one more: MLflow alone would refuse the first
    with tracker(
        store, "f0", params={"arm": "other", "evaluate": {"bootstrap": 1000}}, tags={"profile": "other", "host": "b"}
    ) as again:
        again.log_metrics({"train/loss": 1.5, "select/auc_macro": 0.5}, step=0)
        again.log_metrics({"train/loss": 1.25}, step=1)
        again.log_metrics({"test/auc_macro": 0.75})
    assert [run.info.run_id for run in runs(store)] == [again.run_id] == [before[0].info.run_id]
    history = client(store).get_metric_history(again.run_id, "train/loss")
    assert [(row.step, row.value) for row in history] == [(0, 1.5), (1, 1.25)]
    data = runs(store)[0].data
    assert data.metrics["test/auc_macro"] == 0.75
    assert data.params["arm"] == "resnet18"
    assert data.params["evaluate.bootstrap"] == "1000"
    assert data.tags["profile"] == "smoke"
    assert data.tags["host"] == "b"
    assert not caplog.records


def test_values_that_are_no_numbers_are_not_repeated_either(store, caplog):
    """mlflow/mlflow#26108, #22826: its store gives infinity back as the largest float, and NaN equals no NaN."""
    for _ in range(2):
        with tracker(store, "f-nan") as run:
            run.log_metrics({"auc": float("nan"), "ratio": float("inf")}, step=1)
            run.log_metrics({"auc": float("nan"), "ratio": float("-inf")}, step=2)
    for name in ("auc", "ratio"):
        assert [row.step for row in client(store).get_metric_history(run.run_id, name)] == [1, 2]
    assert not caplog.records


def test_a_parameter_that_mlflow_refuses_does_not_cost_the_run(store, caplog):
    """mlflow/mlflow#10512: one bad parameter, and nothing at all was tracked."""
    with tracker(store, "f-bad", params={"arm (tried)": 1}) as run:
        run.log_metrics({"train/loss": 1.0}, step=0)
    held = client(store).get_run(run.run_id)
    assert held.info.status == "FINISHED"
    assert held.data.metrics == {"train/loss": 1.0}
    assert held.data.tags["profile"] == "smoke"
    assert ["lacks something" in record.message for record in caplog.records] == [True]


def test_another_fingerprint_is_another_run(store):
    with tracker(store, "f2"):
        pass
    assert len(runs(store)) == 2


@pytest.mark.parametrize(("error", "status"), [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_training_that_fails_is_marked_and_its_error_kept(store, error, status):
    with pytest.raises(error), tracker(store, "f3") as run:
        raise error
    assert client(store).get_run(run.run_id).info.status == status


def test_a_locked_store_delays_a_training_little_and_misses_nothing_once_free(store, caplog, waits):
    holder = sqlite3.connect(store / tracking.DATABASE, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    run = tracker(store, "f4")
    for epoch in range(10):
        run.log_metrics({"train/loss": 1 / (epoch + 1)}, step=epoch)
    assert waits == [places.PATIENCE_SECONDS, *[places.BRIEFLY_SECONDS] * 10]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "locked" in caplog.text
    assert run.run_id is None
    holder.execute("ROLLBACK")
    holder.close()
    run.log_metrics({"train/loss": 0.0}, step=10)
    run.close()
    history = client(store).get_metric_history(run.run_id, "train/loss")
    assert [row.step for row in history] == list(range(11))
    assert len(caplog.records) == 1


def test_a_store_locked_to_the_end_of_a_running_training_costs_its_tail_only(store, caplog, waits):
    run = tracker(store, "f5")
    run.log_metrics({"train/loss": 1.0}, step=0)
    holder = sqlite3.connect(store / tracking.DATABASE, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    waits.clear()
    run.log_metrics({"train/loss": 0.5}, step=1)
    run.close()
    assert waits == [places.PATIENCE_SECONDS] * 2
    assert [("locked" in r.message, "incomplete" in r.message) for r in caplog.records] == [
        (True, False),
        (False, True),
    ]
    holder.execute("ROLLBACK")
    holder.close()
    assert client(store).get_run(run.run_id).data.metrics == {"train/loss": 1.0}


def garbage(folder):
    (folder / tracking.DATABASE).write_bytes(b"this is no database" * 200)


def directory(folder):
    (folder / tracking.DATABASE).mkdir()


def torn(folder):
    # a valid header, then rubbish: a disk that filled up
    path = folder / tracking.DATABASE
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (x)")
    connection.commit()
    connection.close()
    path.write_bytes(path.read_bytes()[:100] + b"\xff" * 5000)


def no_folder(folder):
    folder.rmdir()
    folder.write_text("a file where the project should be")


@pytest.mark.parametrize("fault", [garbage, directory, torn, no_folder])
def test_a_broken_store_warns_once_and_the_training_goes_on(tmp_path, caplog, fault, waits):
    folder = tmp_path / "project"
    folder.mkdir()
    fault(folder)
    with tracker(folder) as run:
        for epoch in range(3):
            run.log_metrics({"train/loss": 1.0}, step=epoch)
    assert sum(waits) < 2 * places.PATIENCE_SECONDS + 1
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "cannot be written" in caplog.records[0].message
    assert "incomplete" in caplog.records[1].message
    assert all("\n" not in record.message for record in caplog.records)


@contextlib.contextmanager
def read_only(folder):
    """A store that may be read and not written; root, whom no mode of a file stops, becomes nobody for the while."""
    root = os.geteuid() == 0
    (folder / tracking.DATABASE).chmod(0o444)
    folder.chmod(0o555)
    try:
        if root:
            os.seteuid(65534)
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)


def test_a_read_only_store_warns_and_the_training_goes_on(created, caplog, waits):
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders let nobody in
        folder = Path(name)
        before = (created / tracking.DATABASE).read_bytes()
        (folder / tracking.DATABASE).write_bytes(before)
        with read_only(folder), tracker(folder, "f8") as run:
            run.log_metrics({"train/loss": 1.0})
        assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
        assert "cannot be written" in caplog.records[0].message
        assert "incomplete" in caplog.records[1].message
        assert (folder / tracking.DATABASE).read_bytes() == before
    assert sum(waits) < 2 * places.PATIENCE_SECONDS + 1


@pytest.mark.parametrize("fault", ["removed", "garbage"])
def test_a_store_lost_in_mid_run_costs_warnings_only(store, caplog, waits, fault):
    with tracker(store, "f9") as run:
        run.log_metrics({"train/loss": 1.0}, step=0)
        assert not caplog.records
        (store / tracking.DATABASE).unlink()
        if fault == "garbage":
            garbage(store)
        for epoch in range(1, 4):
            run.log_metrics({"train/loss": 1.0}, step=epoch)
    assert caplog.records
    assert all(record.levelname == "WARNING" and "\n" not in record.message for record in caplog.records)
    assert sum(waits) < 10 * places.PATIENCE_SECONDS + 1
    with tracker(store, "f9", enabled=fault == "removed") as again:  # an empty store is filled anew
        again.log_metrics({"train/loss": 1.0}, step=0)


def test_work_that_is_wrong_itself_does_not_hold_up_the_rest(store, caplog, tmp_path):
    with tracker(store, "f6") as run:
        run.log_artifact(tmp_path / "absent.svg")
        run.log_metrics({"bad\nname": 1.0})
        run.log_metrics({"train/loss": 2.0})
    assert client(store).get_run(run.run_id).data.metrics == {"train/loss": 2.0}
    assert client(store).get_run(run.run_id).info.status == "FINISHED"
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2


def test_without_mlflow_there_is_one_warning(tmp_path, caplog, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with tracker(tmp_path) as run:
        run.log_metrics({"train/loss": 1.0})
    assert [record.message for record in caplog.records] == [
        "MLflow is not installed, so this run is not tracked; everything else goes on"
    ]


def test_a_tracker_switched_off_touches_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("D4LENS_TRACKING", "off")
    with tracker(tmp_path, enabled=tracking.enabled()) as run:
        run.log_metrics({"train/loss": 1.0})
        run.log_artifact(tmp_path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.delenv("D4LENS_TRACKING")
    assert tracking.enabled()


def test_two_trainings_that_create_the_store_at_once_share_it(tmp_path):
    code = (
        "import sys; from d4lens import tracking\n"
        "with tracking.Tracker(True, sys.argv[1], 'd4lens-smoke', sys.argv[2], sys.argv[2], watch=False) as run:\n"
        "    run.log_metrics({'train/loss': 1.0})\n"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name], stderr=subprocess.PIPE, text=True)
        for name in ("one", "two")
    ]
    errors = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert errors == ["", ""]
    found = runs(tmp_path)
    assert sorted(run.data.tags["fingerprint"] for run in found) == ["one", "two"]
    assert all(run.data.metrics == {"train/loss": 1.0} for run in found)


def test_the_machine_is_watched_beside_each_new_step_unless_switched_off(store, monkeypatch):
    with tracker(store, "f8", watch=True) as run:
        run.log_metrics({"train/loss": 1.0}, step=1)
        run.log_metrics({"train/loss": 1.0}, step=1)
    found = client(store).get_run(run.run_id).data.metrics
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} < set(found)
    assert found["system/process_memory_megabytes"] > 100
    assert len(client(store).get_metric_history(run.run_id, "system/process_memory_megabytes")) == 1
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    with tracker(store, "f9", watch=True) as run:
        run.log_metrics({"train/loss": 1.0}, step=1)
    assert set(client(store).get_run(run.run_id).data.metrics) == {"train/loss"}


def test_the_data_are_an_input_with_their_digest_and_a_run_can_be_put_below_another(store):
    tags = {"profile": "smoke", "data_hash": "0123456789" * 6}
    with tracker(store, "g0", tags=tags) as parent, tracker(store, "g1", tags=tags) as run:
        run.adopt(parent.run_id)
        assert not run.found
    with tracker(store, "g1", tags=tags) as again:
        assert again.found
    found = client(store).get_run(run.run_id)
    (data,) = found.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("smoke", "012345678901234567890123456789012345")
    assert found.data.tags["mlflow.parentRunId"] == parent.run_id
    # what is compared is trainings
    (url,) = tracking.compare_urls(store, "").values()
    assert run.run_id in url
    assert parent.run_id not in url


def test_tags_name_the_commit_and_whether_it_was_changed(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_EXP_NAME", "wet-pool")
    assert "git_commit" not in tracking.run_tags(tmp_path, "train", "smoke", "resnet18", 0, "abc")
    identity = {f"GIT_{role}_{key}": "x" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
    (tmp_path / "a").write_text("1")
    for command in (["init", "-q"], ["add", "a"], ["commit", "-q", "-m", "a"]):
        subprocess.run(["git", "-C", tmp_path, *command], check=True, env={**os.environ, **identity})
    head = subprocess.run(["git", "-C", tmp_path, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    tags = tracking.run_tags(tmp_path, "train", "smoke", "resnet18", 0, "abc")
    assert "seed 0, on the data of profile `smoke`" in tags.pop(tracking.NOTE)
    assert tags == {
        "profile": "smoke",
        "arm": "resnet18",
        "seed": "0",
        "dvc_stage": "train",
        "dvc_experiment": "wet-pool",
        "data_hash": "abc",
        "git_commit": head,
        "mlflow.source.git.commit": head,
    }
    (tmp_path / "a").write_text("2")
    assert tracking.run_tags(tmp_path, "train", "smoke", "resnet18", 0, "abc")["git_commit"] == f"{head}-dirty"


def test_comparison_links_name_every_run_of_an_experiment(store, tmp_path_factory):
    with tracker(store, "f7") as run:
        pass
    (url,) = tracking.compare_urls(store, "http://127.0.0.1:5000").values()
    assert url.startswith("http://127.0.0.1:5000/#/compare-runs?runs=%5B%22")
    assert run.run_id in url
    assert runs(store)[1].info.run_id in url
    empty = tmp_path_factory.mktemp("empty")
    assert tracking.compare_urls(empty, "") == {}
    assert list(empty.iterdir()) == []
    garbage(empty)
    with pytest.raises(tracking.StoreError, match="not a database"):
        tracking.compare_urls(empty, "")


@pytest.fixture
def server(store):
    """The address of a UI opened as `make ui` opens it, over a store of two runs."""
    for name, auc in (("smoke/resnet18-0", 0.625), ("smoke/d4lenspinn-0", 0.875)):
        with tracker(store, name, name=name) as run:
            run.log_metrics({"test_auc_macro": auc})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "d4lens.tracking", "--folder", str(store), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(1500):
            try:
                with urllib.request.urlopen(f"{address}/health", timeout=10):
                    break
            except OSError:
                assert process.poll() is None, process.stdout.read().decode()
                time.sleep(0.2)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # it has children of its own
        process.communicate()


def test_in_the_ui_two_runs_are_selected_compared_and_their_metrics_found(browser, server):
    opened = browser.new_page(viewport={"width": 1440, "height": 900})
    opened.set_default_timeout(90_000)
    opened.goto(f"{server}/#/experiments/1/runs")
    for name in ("smoke/resnet18-0", "smoke/d4lenspinn-0"):
        opened.get_by_role("row").filter(has_text=name).locator("input.ag-checkbox-input").check()
    opened.get_by_role("button", name="Compare", exact=True).click()
    opened.wait_for_url("**/compare-runs**")
    opened.get_by_text("test_auc_macro").first.wait_for()
    shown = opened.locator("body")
    for text in ("0.625", "0.875", "smoke/resnet18-0", "smoke/d4lenspinn-0"):
        shown.get_by_text(text).first.wait_for()
    opened.close()


def test_in_the_ui_the_list_of_runs_stands_in_the_order_of_their_test_auc(browser, store, server):
    opened = browser.new_page(viewport={"width": 1440, "height": 900})
    opened.set_default_timeout(90_000)
    opened.goto(tracking.list_urls(store, server)["d4lens-smoke"])
    names = opened.locator('[role="row"]').filter(has_text="smoke/")
    names.nth(1).wait_for()
    assert "smoke/d4lenspinn-0" in names.nth(0).text_content()
    assert "smoke/resnet18-0" in names.nth(1).text_content()
    opened.close()


def test_a_run_lasts_as_long_as_its_work_took_whenever_it_is_written(store):
    for seconds in (90.0, 100.0):
        with tracker(store, "f-took", seconds=seconds) as run:
            pass
        info = client(store).get_run(run.run_id).info
        assert info.end_time - info.start_time == 1000 * seconds
        assert info.end_time <= time.time() * 1000 + 10_001
