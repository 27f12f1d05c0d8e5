"The project's own rules: notebooks run, the package is their export, they are clean and small, floors are kept."
import json, re, shutil, subprocess, sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from stubs import mark_of, stub_of
from test_house import wrong_answers

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(p for p in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
WITH_OUTPUTS = [p for p in NOTEBOOKS if p.stem[0].isdigit() or p.parent.name == "experiments"]
BIN = Path(sys.executable).parent


def right(answer, check):
    "A cell that answers an exercise among the lesson's own names, which stay as they are, and must see its check pass."
    return nbformat.v4.new_code_cell(f"names = dict(globals())\nexec({answer!r}, names)\nexec({check!r}, names)")


def wrong(number, answer, check):
    "The same with an answer that the check must refuse."
    return nbformat.v4.new_code_cell(f"""
names = dict(globals())
try:
    exec({answer!r}, names)
    exec({check!r}, names)
except (AssertionError, NotImplementedError, ValueError, TypeError, IndexError, KeyError, AttributeError, RuntimeError, ZeroDivisionError):
    pass
else:
    raise SystemExit("the check of exercise {number} accepts a wrong answer:\\n" + {answer!r})
""")


def as_a_student_runs_it(nb, path):
    """The lesson without its answers, so that no cell may need one; where an exercise stands, its solution must pass, and its stub and the
    known wrong answers must not."""
    answers, others, cells = {}, wrong_answers(path), []
    for c in nb.cells:
        kind, number = (mark_of(c.source) if c.cell_type == "code" else None) or (None, None)
        if kind == "exercise": answers[number] = c.source
        elif kind == "check":
            refused = [stub_of(answers[number]), *others.get(number, [])]
            cells += [right(answers[number], c.source), *[wrong(number, answer, c.source) for answer in refused]]
        else: cells.append(c)
    nb.cells = cells
    return nb


@pytest.mark.shares_nothing
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs_without_its_answers_and_its_exercises_refuse_wrong_ones(path):
    nb = as_a_student_runs_it(nbformat.read(path, as_version=4), path)
    NotebookClient(nb, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}).execute()


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "The working tree in another folder, exported and cleaned there: the tree under test stays as it is."
    to = tmp_path_factory.mktemp("copy")/"fuse_nb"
    shutil.copytree(ROOT, to, ignore=shutil.ignore_patterns(".venv", ".git", "out", "*.egg-info", "__pycache__", ".pytest_cache", ".hypothesis"))
    run = lambda *a: subprocess.run([BIN/a[0], *a[1:]], cwd=to, check=True, capture_output=True, text=True)
    run("nbdev_export")
    run("nbdev_clean", "--fname", "nbs")
    return to


def test_package_is_the_export_of_the_notebooks(copy):
    ours, theirs = ({p.name: p.read_text() for p in (d/"fuse_nb").glob("*.py")} for d in (ROOT, copy))
    assert sorted(ours) == sorted(theirs)
    assert [n for n in ours if ours[n] != theirs[n]] == []


def test_notebooks_are_clean(copy):
    assert [p.name for p in NOTEBOOKS if p.read_text() != (copy/p.relative_to(ROOT)).read_text()] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_small_and_free_of_machine_paths(path):
    assert path.stat().st_size < 300_000
    outputs = json.dumps([c.get("outputs", []) for c in json.loads(path.read_text())["cells"]])
    assert re.findall(r"/(?:work|root|home|Users)/\w+|site-packages|ipykernel_", outputs) == []


@pytest.mark.parametrize("path", WITH_OUTPUTS, ids=lambda p: p.stem)
def test_notebook_is_committed_with_its_outputs(path):
    code = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    assert all(c["execution_count"] is None for c in code) and any(c["outputs"] for c in code)


def test_the_linter_is_content():
    done = subprocess.run([BIN/"ruff", "check", "nbs"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


def test_readme_is_written_from_the_index(tmp_path):
    out = tmp_path/"README.md"
    subprocess.run([sys.executable, ROOT/"tests"/"readme.py", out], check=True)
    assert out.read_text() == (ROOT/"README.md").read_text()


def test_import_and_help_load_nothing_heavy():
    code = "import sys, fuse_nb, fuse_nb.cli; print([m for m in ('torch', 'transformers', 'matplotlib', 'nbdev', 'fastcore') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_public_names_resolve():
    import fuse_nb
    assert all(getattr(fuse_nb, name) is not None for name in fuse_nb.__all__)


@pytest.mark.parametrize("path", WITH_OUTPUTS, ids=lambda p: p.stem)
def test_a_cell_that_draws_shows_its_figure(path):
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    drawing = [c for c in cells if re.search(r"^fig, .*= new_figure\(", "".join(c["source"]), re.M) and "#| export" not in "".join(c["source"])]
    assert [c["id"] for c in drawing if "image/png" not in json.dumps(c["outputs"])] == []
