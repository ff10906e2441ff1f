import io
import os
import resource
import shlex
import shutil
import subprocess
import sys
import zipfile
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from d4lens import cli, simulate
from d4lens.cli import main


def test_simulate_same_seed_same_bytes_in_equal_classes(tmp_path):
    for name in ("a.zip", "b.zip"):
        assert main(["simulate", "--n", "6", "--seed", "4", "-o", str(tmp_path / name)]) == 0
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".npy")]
        truth = pd.read_csv(archive.open("dataset/truth.csv"))
    assert sorted(names) == [f"dataset/train/{c}/{i}.npy" for c in ("no", "sphere", "vort") for i in (1, 2)]
    assert len(truth) == 6


def test_shards_made_apart_join_into_the_whole(tmp_path, capsys):
    given = ["simulate", "--n", "7", "--n-val", "3", "--seed", "2"]
    assert main([*given, "-o", str(tmp_path / "whole.zip")]) == 0
    for part in (1, 2, 3):
        assert main([*given, "--shard", f"{part}/3", "-o", str(tmp_path / f"{part}.zip")]) == 0
    shards = [str(tmp_path / f"{part}.zip") for part in (3, 1, 2)]
    assert main(["join", *shards, "-o", str(tmp_path / "joined.zip")]) == 0
    assert (tmp_path / "joined.zip").read_bytes() == (tmp_path / "whole.zip").read_bytes()
    capsys.readouterr()
    assert main(["join", *shards[:2], "-o", str(tmp_path / "part.zip")]) == 1
    assert main([*given, "--shard", "4/3", "-o", str(tmp_path / "part.zip")]) == 1
    assert "--shard takes I/K" in capsys.readouterr().err
    assert not (tmp_path / "part.zip").exists()


def test_simulate_takes_overrides(tmp_path):
    out = tmp_path / "a.zip"
    code = main(["simulate", "--n", "3", "--set", "theta_E=1.5", "--set", "source_q=0.8,0.9", "-o", str(out)])
    assert code == 0
    with zipfile.ZipFile(out) as archive:
        truth = pd.read_csv(archive.open("dataset/truth.csv"))
    assert (truth["theta_E"] == 1.5).all()
    assert truth["source_q"].between(0.8, 0.9).all()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["simulate", "--n", "3", "--preset", "nope", "-o", "x.zip"], "no preset is called 'nope'"),
        (["simulate", "--n", "0", "-o", "x.zip"], "--n must be at least 1"),
        (["simulate", "--n", "3", "-o", "x.tar"], "must end in .zip"),
        (["simulate", "--n", "3", "--set", "sersic_m=2", "-o", "x.zip"], "has no sersic_m"),
        (["simulate", "--n", "3", "--set", "sersic_n", "-o", "x.zip"], "--set takes NAME=VALUE"),
        (["simulate", "--n", "3", "--set", "theta_E=-1", "-o", "x.zip"], "theta_E"),
        (["predict", "nowhere"], "no file or folder nowhere"),
        (
            ["predict", "nowhere", "-o", "table.xlsx"],
            "table.xlsx names no table format; end it in .csv, .parquet or .json",
        ),
        (["predict", "nowhere", "--psf", "psf.fits"], "psf.fits is neither a number of arcsec nor a file"),
        (["fit", "nowhere", "--pixel-scale", "0"], "the pixel scale must be above 0"),
        (["explain", "nowhere", "--gain", "-1"], "the gain must be above 0"),
        (["fit", "*.fits"], "*.fits holds no image"),
        (["fit", "nowhere"], "no file or folder nowhere"),
        (["predict", ".", "--weights", "none.safetensors"], "none.safetensors"),
    ],
)
def test_a_mistake_gets_one_sentence_and_writes_nothing(arguments, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    error = capsys.readouterr().err.strip()
    assert sentence in error
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_bad_image_among_good_ones_fails_the_command_and_keeps_the_rows(tmp_path, capsys):
    main(["simulate", "--n", "1", "-o", str(tmp_path / "one.zip")])
    np.save(tmp_path / "bad.npy", np.full((150, 150), np.nan))
    out = tmp_path / "fit.csv"
    assert main(["fit", str(tmp_path / "one.zip"), str(tmp_path / "bad.npy"), "-o", str(out)]) == 1
    assert "bad.npy" in capsys.readouterr().err
    assert list(pd.read_csv(out)["converged"]) == [True, False]


def test_the_suffix_names_the_table_s_format_and_all_say_the_same(tmp_path, capsys):
    main(["simulate", "--n", "1", "-o", str(tmp_path / "one.zip")])
    tables = []
    for suffix, read in ((".csv", pd.read_csv), (".parquet", pd.read_parquet), (".json", pd.read_json)):
        out = tmp_path / f"fit{suffix}"
        assert main(["fit", str(tmp_path / "one.zip"), "--pixel-scale", "0.05", "--free", "n", "-o", str(out)]) == 0
        tables.append(read(out))
    for table in tables[1:]:
        assert list(table.columns) == list(tables[0].columns)
        assert table.loc[0, "theta_E"] == pytest.approx(tables[0].loc[0, "theta_E"], abs=1e-4)
    assert "pixel scale 0.05 arcsec as given" in tables[0].loc[0, "processing"]


def test_a_psf_that_is_not_round_is_said(tmp_path, capsys):
    x = np.arange(31) - 15.0
    np.save(tmp_path / "psf.npy", np.exp(-0.5 * ((x / 4) ** 2 + (x[:, None] / 2) ** 2)))
    np.save(tmp_path / "lens.npy", np.full((150, 150), np.nan))
    assert main(["fit", str(tmp_path / "lens.npy"), "--psf", str(tmp_path / "psf.npy")]) == 1
    assert "psf.npy is not round" in capsys.readouterr().err


def test_a_mask_is_told_by_its_file(tmp_path, capsys):
    image = simulate("deeplense", n=1, seed=12).images[0]
    gone = np.zeros(image.shape, bool)
    gone[100:103, 100:103] = True
    np.save(tmp_path / "lens.npy", np.where(gone, 300 + np.arange(150), image))
    np.save(tmp_path / "gone.npy", gone)
    assert main(["predict", str(tmp_path / "lens.npy"), "--mask", str(tmp_path / "gone.npy")]) == 0
    row = pd.read_csv(io.StringIO(capsys.readouterr().out), keep_default_na=False).loc[0]
    assert (row["label"], row["flag"]) == ("no", "")
    assert "9 pixels masked" in row["processing"]
    np.save(tmp_path / "small.npy", gone[:9])
    assert main(["predict", str(tmp_path / "lens.npy"), "--mask", str(tmp_path / "small.npy")]) == 1
    assert "its mask 150 x 9" in capsys.readouterr().err


@pytest.fixture(scope="module")
def lens(tmp_path_factory):
    """A folder with one simulated image, called in letters that are not ASCII."""
    folder = tmp_path_factory.mktemp("lens")
    np.save(folder / "línse.npy", simulate("deeplense", n=1, seed=1).images[0])
    return folder


def shell(line, folder, **environment):
    """Run a line in which D is d4lens, as bash does; its status is the first command's."""
    line = line.replace("D ", f"{shlex.quote(sys.executable)} -m d4lens ")
    line = f"{line}; exit ${{PIPESTATUS[0]}}"
    inherited = {**os.environ, **environment}
    return subprocess.run(["bash", "-c", line], cwd=folder, env=inherited, capture_output=True)


def sentences(done):
    """What a command said but for how far it came."""
    return [line for line in done.stderr.decode().splitlines() if not line.startswith("images: ")]


def test_when_every_image_fails_the_rows_are_written(tmp_path, capsys):
    for name in ("a.npy", "b.npy"):
        (tmp_path / name).write_bytes(b"none")
    for command in ("fit", "predict"):
        assert main([command, str(tmp_path), "-o", str(tmp_path / "table.csv")]) == 1
        assert "2 of 2 images failed" in capsys.readouterr().err
        assert main([command, str(tmp_path)]) == 1
        printed = capsys.readouterr().out
        assert (tmp_path / "table.csv").read_text() == printed
        assert pd.read_csv(io.StringIO(printed))["flag"].str.startswith("failed: ").tolist() == [True, True]


def test_names_in_any_letters_are_told_in_any_locale(lens, tmp_path):
    folder = tmp_path / "n"
    shutil.copytree(lens, folder)
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.npy")).write_bytes(b"none")
    done = shell("D fit . | tee tablé.csv", folder, LC_ALL="C", PYTHONUTF8="0")
    assert done.returncode == 1
    assert "\\xff.npy" in sentences(done)[0]
    table = pd.read_csv(folder / "tablé.csv").set_index("path")
    assert table["flag"].fillna("").str.startswith("failed: ").to_dict() == {"\\xff.npy": True, "línse.npy": False}


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("D fit . >&-", "d4lens fit: standard output is closed"),
        ("D --version >&-", "d4lens: standard output is closed"),
        ("D fit --help >/dev/full", "d4lens: standard output cannot be written: no space left on device"),
    ],
)
def test_an_answer_that_arrives_nowhere_is_a_sentence_and_a_status(lens, line, sentence):
    done = shell(line, lens)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines()[-1].startswith(sentence)
    assert b"Traceback" not in done.stderr


def test_a_table_printed_to_a_full_disk_or_a_reader_that_has_gone_is_told(lens, monkeypatch, capsys):
    reading, writing = os.pipe()
    os.close(reading)
    for target, status, reason in (("/dev/full", 1, "no space left on device"), (writing, 141, "broken pipe")):
        with open(target, "w") as stream, monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", stream)
            assert main(["fit", str(lens)]) == status
        printed = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("images: ")]
        assert len(printed) == 1
        assert f"standard output cannot be written: {reason}" in printed[0]


def test_a_full_disk_behind_standard_error_costs_no_answer(lens, monkeypatch, capsys):
    with open("/dev/full", "w", buffering=1) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        assert main(["fit", str(lens)]) == 0
        assert main(["fit", str(lens / "línse.npy"), "nowhere"]) == 1
        with suppress(OSError):
            stream.close()
    assert pd.read_csv(io.StringIO(capsys.readouterr().out))["converged"].tolist() == [True]


def test_a_file_is_written_though_all_streams_are_closed(lens, tmp_path):
    out = shlex.quote(str(tmp_path / "fit.csv"))
    assert shell(f"D fit . -o {out} <&- >&- 2>&-", lens).returncode == 0
    assert pd.read_csv(tmp_path / "fit.csv")["path"].tolist() == ["línse.npy"]


@pytest.mark.parametrize("suffix", ["csv", "parquet", "json"])
def test_a_table_for_a_full_disk_goes_to_standard_output(lens, tmp_path, suffix, monkeypatch, capsys):
    out = tmp_path / f"fit.{suffix}"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    write = cli.write_table

    def without_room(table, path):
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
        try:
            write(table, path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    monkeypatch.setattr(cli, "write_table", without_room)
    assert main(["fit", str(lens), "-o", str(out)]) == 1
    printed = capsys.readouterr()
    assert pd.read_csv(io.StringIO(printed.out))["converged"].tolist() == [True]
    assert f"{out} cannot be written: file too large" in printed.err
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for out, sentence in ((tmp_path, "is a folder"), (tmp_path / "file" / "out.csv", "cannot be written")):
        assert main(["fit", "nowhere.npy", "-o", str(out)]) == 1
        error = capsys.readouterr().err
        assert sentence in error
        assert "nowhere" not in error


def test_a_switch_of_a_preset_can_be_thrown(tmp_path):
    sizes = []
    for value in ("true", "false"):
        out = tmp_path / f"{value}.zip"
        given = ["--preset", "model-i", "--n", "3", "--set", f"corrected={value}", "-o", str(out)]
        assert main(["simulate", *given]) == 0
        sizes.append(out.read_bytes())
    assert sizes[0] != sizes[1]


@pytest.mark.parametrize("command", ["simulate", "join", "predict", "fit", "detect", "explain"])
def test_every_command_s_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"d4lens {command} " in capsys.readouterr().out.partition("example:")[2]


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out.strip() == f"d4lens {metadata.version('d4lens')}"


def test_the_package_runs_as_the_command_does(tmp_path):
    for arguments, status in ((["--version"], 0), (["fit", "absent.npy"], 1), ([], 2)):
        done = subprocess.run(
            [sys.executable, "-m", "d4lens", *arguments], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == status
        assert (done.stdout or done.stderr).splitlines()[-1].startswith("d4lens")


def test_help_is_quick_and_names_the_commands():
    done = subprocess.run([sys.executable, "-m", "d4lens", "--help"], capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in ("simulate", "predict", "fit"))
    code = "import d4lens.cli, sys; d4lens.cli._parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
