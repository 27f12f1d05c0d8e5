"The kit: stubs fail and the rest of a lesson runs, grading passes right answers and says in words what is wrong with others."
import json
import re
import subprocess
import sys
import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import course
from stubs import mark_of, stub_of
from test_house import exercises_of
from test_project import as_a_student_runs_it

LESSON = next(p for p in course.lessons() if p.stem.startswith("10"))


@pytest.fixture(scope="module")
def kit(tmp_path_factory): return course.make(tmp_path_factory.mktemp("kit")/"course")


TINY = [
    ("code", "import numpy as np\nfrom fuse_nb.exercises import judge\n\nx = np.arange(6.0).reshape(2, 3)"),
    ("code", "#| exercise 99.1\nanswer_1 = 6  # entries of x"), ("code", "#| check 99.1\njudge('99.1', answer_1, x.size)"),
    ("code", "#| exercise 99.2\ndef doubled(x, by):\n    \"x times by.\"\n    return x * by"), ("code", "#| check 99.2\njudge('99.2', doubled(x, 2), x + x)"),
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    "A kit of one lesson that imports nothing heavy, to see what the grader says."
    folder = tmp_path_factory.mktemp("tiny")
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for _, source in TINY])
    nbformat.write(nb, folder/"99_tiny.ipynb")
    return course.make(folder/"course", [folder/"99_tiny.ipynb"])


RIGHT = ["answer_1 = 6", "def doubled(x, by): return by * x"]


def grade(kit, folder, answers, lesson="99"):
    (folder/f"lesson_{lesson}.py").write_text("\n".join(answers), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", f"lesson_{lesson}", f"--students={folder}", "--seconds=2" if lesson == "99" else "--seconds=60"]
    return subprocess.run(command, cwd=kit/"grade", capture_output=True, text=True, timeout=300).stdout


def test_right_answers_pass(tiny, tmp_path): assert "2 passed" in grade(tiny, tmp_path, RIGHT)


def test_a_real_lesson_passes_with_its_own_solutions(kit, tmp_path):
    answers = ["import torch", *(re.sub(r"^#\|.*\n", "", e["exercise"]) for e in exercises_of(LESSON).values())]
    assert "4 passed" in grade(kit, tmp_path, answers, "10")


def test_a_real_lesson_fails_with_stubs(kit, tmp_path):
    said = grade(kit, tmp_path, ["import torch", *(stub_of(e["exercise"]) for e in exercises_of(LESSON).values())], "10")
    assert "4 failed" in said and said.count("not answered yet") >= 3


FAULTY = {
    "lacks a function": ("", r"lesson_99.py has no doubled"),
    "another signature": ("def doubled(x): return x", r"doubled takes \(x\), expected \(x, by\)"),
    "no function": ("doubled = 3", r"doubled in lesson_99.py is no function"),
    "loops for ever": ("def doubled(x, by):\n    while True: pass", r"did not finish within 2 s"),
    "wrong shape": ("def doubled(x, by): return x[:1]", r"the shape is \(1, 3\), expected \(2, 3\)"),
    "wrong number": ("def doubled(x, by): return x", r"5 of 6 numbers differ, by at most 5"),
    "wrong dtype": ("def doubled(x, by): return x * by + 0j", r"the dtype is complex128, complex numbers not asked for"),
    "wrong type": ("def doubled(x, by): return 'a'", r"got str, expected numbers"),
    "a stub": ("def doubled(x, by): raise NotImplementedError", r"exercise 99.2 is not answered yet"),
    "an error of its own": ("def doubled(x, by): return x[99]", r"exercise 99.2: IndexError.*\(line 2 of lesson_99.py\)"),
}


@pytest.mark.parametrize("what", FAULTY)
def test_what_is_wrong_is_said_in_words(tiny, tmp_path, what):
    code, words = FAULTY[what]
    said = grade(tiny, tmp_path, [RIGHT[0], code])
    assert re.search(words, said) and "1 failed, 1 passed" in said and "During handling" not in said


def test_a_file_that_was_not_handed_in_is_named(tiny, tmp_path):
    (tmp_path/"other").mkdir()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "lesson_99", f"--students={tmp_path/'other'}"]
    said = subprocess.run(command, cwd=tiny/"grade", capture_output=True, text=True, timeout=300).stdout
    assert "lesson_99.py is not in" in said and "2 failed" in said and "During handling" not in said


def test_a_file_that_cannot_be_read_is_named(tiny, tmp_path):
    assert "lesson_99.py cannot be read: SyntaxError" in grade(tiny, tmp_path, ["def ("])


def test_the_stub_version_runs_to_its_end(kit):
    nb = nbformat.read(kit/"exercises"/LESSON.name, as_version=4)
    NotebookClient(nb, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(kit/"exercises")}}).execute()
    checks = [c for c in nb.cells if c.cell_type == "code" and (mark_of(c.source) or ("",))[0] == "check"]
    assert len(checks) == 4 and all(any(o.output_type == "error" for o in c.outputs) for c in checks)


@pytest.mark.parametrize("path", course.lessons(), ids=lambda p: p.stem)
def test_a_stub_keeps_signature_and_docstring_and_no_answer(path):
    for number, e in exercises_of(path).items():
        stub = stub_of(e["exercise"])
        compile(stub, number, "exec")
        for line in re.findall(r"^(?:def|class) .*", e["exercise"], re.M): assert line.split("(")[0] in stub
        assert not re.search(r"^ +return (?!None)", stub, re.M)


@pytest.mark.parametrize("path", course.lessons(), ids=lambda p: p.stem)
def test_only_the_checks_of_a_stub_version_may_raise(path):
    "That every lesson runs to its end without its answers is seen in test_project.py, in the run that each notebook has there anyway."
    for cell in course.stubs(path)["cells"]:
        mark = mark_of(course.text(cell)) if cell["cell_type"] == "code" else None
        assert ("raises-exception" in cell["metadata"].get("tags", [])) == (mark is not None and mark[0] == "check")


@pytest.mark.parametrize("planted, named", (("assert answer_1 == 6", "answer_1"), ("doubled(x, 3)", "doubled"), ("assert x.size == 7", "AssertionError")))
def test_a_lesson_that_needs_an_answer_is_seen(tmp_path, planted, named):
    "A cell that needs an exercise's answer, before or after its check, or that is wrong, stops the run that test_project.py makes."
    path = tmp_path/"99_tiny.ipynb"
    for cells in (TINY, [*TINY, ("code", planted)]):
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for _, source in cells])
        client = NotebookClient(as_a_student_runs_it(nb, path), timeout=60, kernel_name="python3")
        if cells is TINY: client.execute()
        else:
            with pytest.raises(CellExecutionError, match=named): client.execute()


def test_no_slide_is_a_heading_alone(kit):
    for path in course.lessons():
        page = (kit/"slides"/f"{path.stem}.html").read_text(encoding="utf-8")
        assert re.findall(r"<section>\s*<h[12]>[^<]*</h[12]>\s*</section>", page) == [], path.stem


def test_a_slide_shows_a_figure_or_else_code(kit):
    "And neither imports nor the cells that draw."
    sections = {path.stem: (kit/"slides"/f"{path.stem}.html").read_text(encoding="utf-8").split("<section>")[1:] for path in course.lessons()}
    assert all("new_figure(" not in s and not ("<img " in s and "<pre style" in s) for parts in sections.values() for s in parts)
    naive = next(s for s in sections["40_adapter"] if "The naive code" in s)
    assert "naive_fit" in re.sub("<[^>]*>", "", naive)
    bare = sum("<img " not in s and "<pre" not in s for parts in sections.values() for s in parts)
    assert bare < 0.45 * sum(map(len, sections.values()))


def test_slides_hold_every_figure_and_ask_no_other_host(kit):
    for path in course.lessons():
        page = (kit/"slides"/f"{path.stem}.html").read_text(encoding="utf-8")
        figures = sum("image/png" in o.get("data", {}) for c in json.loads(path.read_text(encoding="utf-8"))["cells"] for o in c.get("outputs", []))
        assert page.count("<img ") == figures and not re.search(r"(?:src|href)=['\"]https?:", page)


def markdown_of(stem): return "\n".join("".join(c["source"]) for c in json.loads((course.ROOT/"nbs"/f"{stem}.ipynb").read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "markdown")


def test_six_lectures_of_ninety_minutes_the_same_in_both_maps():
    rows = re.findall(r"^\| (\d) [^|]*\| ([^|]*) \|", markdown_of("00_overview").split("## Six lectures")[1], re.M)
    short = {int(n): [(what.strip(), int(minutes)) for what, minutes in re.findall(r"(\w+) \((\d+)\)", lessons)] for n, lessons in rows[:6]}
    assert list(short) == [1, 2, 3, 4, 5, 6] and all(sum(m for _, m in parts) == 90 for parts in short.values())
    full, lecture = {}, 0
    for number, what, minutes in re.findall(r"^\| (?:\*\*(\d)\*\*)? ?\| ([^|]*) \| (\d+) \|", markdown_of("teaching").split("## Projects")[0], re.M):
        lecture = int(number or lecture)
        full.setdefault(lecture, []).append((re.search(r"\d\d|exercises", what)[0] if what.startswith("[") else what.split()[0], int(minutes)))
    assert full == short
    assert {what for parts in short.values() for what, _ in parts} - {"exercises"} == set(course.LESSONS)


def test_a_project_a_lecture_and_a_rubric():
    projects = markdown_of("teaching").split("## Projects")[1]
    assert re.findall(r"^(\d)\. \*\*", projects, re.M) == list("123456") and projects.count("\n| **") == 5
