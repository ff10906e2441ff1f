"""What the documents tell a reader to type works, and what they point to is there."""

import contextlib
import io
import re
import shlex
import subprocess
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml
from dvc.cli import parse_args
from dvc.cli.parser import DvcParserError

from d4lens.cli import _parser, main
from d4lens.params import DownloadParams, check_group
from d4lens.simulator import draw, preset, render

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
RUN_HERE = ("README.md", "DATA.md", "docs/results.md")
"""Documents whose d4lens commands and Python are run by this file; those of the others are only read."""
SHELL = ("git", "cd", "cp", "mkdir", "pip", "python3", "apt-get", "source", "export", "docker", "echo")


def fenced(path: Path, *languages: str) -> list[str]:
    return [text for kind, text in re.findall(r"```(\w+)\n(.*?)```", path.read_text(), re.S) if kind in languages]


def commands(path: Path) -> list[list[str]]:
    lines = "\n".join(fenced(path, "sh", "bash", "console")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    return [one for one in words if one]


def names(paths: list[Path]) -> list[str]:
    return [path.relative_to(ROOT).as_posix() for path in paths]


@pytest.mark.parametrize("path", DOCUMENTS, ids=names(DOCUMENTS))
def test_every_link_leads_to_a_file_or_heading(path):
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://|mailto:", target):
            continue
        file, _, heading = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), target
        if heading:
            heads = re.findall(r"^#+ (.*)$", linked.read_text(), re.M)
            anchors = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
            assert heading in anchors, target


def check_python(words: list[str]) -> None:
    """A script that exists, whose options its source, or that of the stages, names."""
    script = ROOT / words[1]
    assert script.is_file(), words
    sources = script.read_text() + (ROOT / "stages" / "common.py").read_text()
    for option in (word.split("=")[0] for word in words[2:] if word.startswith("--")):
        assert f'"{option}"' in sources or f'"{option[2:]}"' in sources, (words, option)


@cache
def made(*words: str) -> str:
    """What make says against doing this; empty if it would."""
    done = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True)
    return done.stderr if done.returncode else ""


def check_command(words: list[str]) -> None:
    words = words[1:] if "=" in words[0] else words
    tool, *rest = words
    if tool == "make":
        assert made(*rest) == "", words
    elif tool == "d4lens":
        if rest and rest != ["--help"]:
            _parser().parse_args(rest)
    elif tool == "dvc":
        for given in (rest, [*rest, "--help"]):  # the name of a command alone is one too
            with contextlib.suppress(DvcParserError), contextlib.redirect_stdout(io.StringIO()):
                with contextlib.suppress(SystemExit):
                    parse_args(given)
                return
        pytest.fail(f"{words}: not understood by DVC")
    elif tool == "srun":
        check_command(words[words.index("python") :])
    elif tool == "python":
        launched = words[1:3] == ["-m", "torch.distributed.run"]
        script = next((i for i, word in enumerate(words) if word.endswith(".py")), None)
        assert script == 1 or launched, words
        if script is not None:
            check_python(["python", *words[script:]])
    elif tool == "bash":
        assert (ROOT / rest[0]).is_file(), words
    else:
        assert tool in SHELL, f"{words}: nobody checks {tool}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=names(DOCUMENTS))
def test_every_command_is_understood(path):
    for words in commands(path):
        check_command(words)


@pytest.mark.parametrize("path", DOCUMENTS, ids=names(DOCUMENTS))
def test_every_command_in_a_sentence_is_understood(path):
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.S)
    for span in re.findall(r"`((?:make|dvc|python|bash) [^`]+)`", text):
        if "…" not in span and "..." not in span:
            check_command(shlex.split(span))


def test_a_command_that_is_wrong_is_told():
    for words in (
        ["make", "reproduse"],
        ["dvc", "reproo"],
        ["python", "stages/tabel.py"],
        ["python", "stages/table.py", "--verbose"],
        ["bash", "nowhere"],
        ["python", "-m", "torch.distributed.run", "stages/trian.py"],
        ["srun", "--nodes", "2", "python", "-m", "torch.distributed.run", "stages/train.py", "--profiel", "full"],
        ["sudo", "make"],
    ):
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            check_command(words)
    with pytest.raises(SystemExit):
        check_command(["d4lens", "predikt", "x"])


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with a user's images under the names that the documents give them."""
    lenses = preset("deeplense")
    images = render(draw(lenses, 3, range(3)), lenses).numpy()
    (tmp_path / "my_images").mkdir()
    for row, image in enumerate(images):
        np.save(tmp_path / "my_images" / f"{row}.npy", image)
    np.save(tmp_path / "lens.npy", images[2])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", RUN_HERE)
def test_the_commands_for_a_user_s_own_images_do_what_they_say(desk, name):
    ran = 0
    for words in commands(ROOT / name):
        if words[0] != "d4lens":
            continue
        # the same at a size that takes no minutes
        small = [str(min(int(word), 12)) if before == "--n" else word for before, word in pairwise(words)]
        assert main(small) == 0, words
        ran += 1
        if "-o" in small:
            assert (desk / small[small.index("-o") + 1]).stat().st_size > 0
    assert ran >= 2


@pytest.mark.parametrize("name", RUN_HERE)
def test_the_snippets_of_python_run(desk, name):
    for text in fenced(ROOT / name, "python"):
        exec(compile(text, name, "exec"), {})


def test_the_parameters_that_the_documents_show_are_accepted(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "stages")
    from common import merged

    group = yaml.safe_load((ROOT / "params.yaml").read_text())
    shown = [yaml.safe_load(line) for text in fenced(ROOT / "DATA.md", "yaml") for line in text.splitlines()]
    assert shown
    for values in shown:
        own = merged(group["profile"]["download"], values["download"])
        check_group(DownloadParams, merged(group["download"], own), "DATA.md")


def test_the_citation_names_the_version_and_licence_of_the_package():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{cited["version"]}"' in project
    assert f'license = "{cited["license"]}"' in project
    assert (ROOT / "CHANGELOG.md").read_text().count(f"## {cited['version']}\n") == 1
