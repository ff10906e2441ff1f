import subprocess
import sys
import zipfile
from importlib import metadata

import numpy as np
import pandas as pd
import pytest

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
    assert "pixel scale 0.05 arcsec as told" in tables[0].loc[0, "processing"]


def test_a_psf_that_is_no_gaussian_is_said(tmp_path, capsys):
    x = np.arange(31) - 15.0
    np.save(tmp_path / "psf.npy", (1 + (x**2 + x[:, None] ** 2) / 4) ** -1.5)
    np.save(tmp_path / "lens.npy", np.full((150, 150), np.nan))
    assert main(["fit", str(tmp_path / "lens.npy"), "--psf", str(tmp_path / "psf.npy")]) == 1
    assert "psf.npy is no Gaussian" in capsys.readouterr().err


def test_when_every_image_fails_nothing_is_written(tmp_path, capsys):
    np.save(tmp_path / "bad.npy", np.full((150, 150), np.nan))
    assert main(["fit", str(tmp_path / "bad.npy"), "-o", str(tmp_path / "fit.csv")]) == 1
    assert "NaN" in capsys.readouterr().err
    assert not (tmp_path / "fit.csv").exists()


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


@pytest.mark.parametrize("command", ["simulate", "join", "predict", "fit", "explain"])
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


def test_help_is_quick_and_names_the_commands():
    done = subprocess.run([sys.executable, "-m", "d4lens.cli", "--help"], capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in ("simulate", "predict", "fit"))
    code = "import d4lens.cli, sys; d4lens.cli._parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
