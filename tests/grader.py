"Runs a lesson's own cells, puts a student's answers into it, and lets the lesson's checks speak. Copied to out/course/grade as conftest.py."
import ast
import inspect
import json
import os
import re
import signal
import threading
import traceback
from pathlib import Path

import pytest

from adapters import module_of

HERE = Path(__file__).parent
SOLUTIONS = HERE.parent/"solutions"
MARK = re.compile(r"#\| (exercise|check) (\d\d\.\d+)")


def pytest_addoption(parser):
    parser.addoption("--students", default=".", help="the folder with lesson_10.py, lesson_11.py, ...")
    parser.addoption("--seconds", type=int, default=60, help="how long an answer may take")


def pytest_configure(config):
    for notebook in SOLUTIONS.glob("[0-9]*.ipynb"): config.addinivalue_line("markers", f"lesson_{notebook.stem[:2]}: exercises of {notebook.stem}")


def source_of(cell): return "".join(cell["source"])


def run(source, names):
    "A cell without its magics."
    exec(compile(re.sub(r"^\s*%.*$", "", source, flags=re.M), "<lesson>", "exec"), names)


@pytest.fixture(scope="session")
def lesson():
    "The names that a lesson's own cells leave, each lesson run once."
    os.environ["MPLBACKEND"] = "Agg"
    done = {}

    def names_of(notebook):
        if notebook not in done:
            cells = json.loads((SOLUTIONS/notebook).read_text(encoding="utf-8"))["cells"]
            names, exercises, here = {"__name__": "lesson"}, {}, os.getcwd()
            os.chdir(SOLUTIONS)
            try:
                for cell in cells:
                    if cell["cell_type"] != "code" or source_of(cell).startswith("#| default_exp"): continue
                    if m := MARK.match(source_of(cell)): exercises.setdefault(m[2], {})[m[1]] = source_of(cell)
                    else: run(source_of(cell), names)
            finally: os.chdir(here)
            done[notebook] = names, exercises
        return done[notebook]
    return names_of


class Late(BaseException): pass


def within(seconds, call):
    "Raises `Late` when `call` takes longer."
    def ring(*_): raise Late
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread(): return call()
    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try: return call()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def told(seconds, call, what, before, file=""):
    "(what a call returns, what is wrong in words or nothing). Its words are one line, with the line of the student's file where an error arose."
    try: return within(seconds, call), ""
    except Late: return None, f"{what} did not finish within {seconds} s"
    except NotImplementedError: return None, f"{what} is not answered yet"
    except AssertionError as e: return None, str(e) or f"{what}: not right"
    except FileNotFoundError as e: return None, f"{before}: {e}"
    except Exception as e:
        lines = [f.lineno for f in traceback.extract_tb(e.__traceback__) if file and Path(f.filename).name == file]
        return None, f"{before}: {type(e).__name__}: {e}" + (f" (line {lines[-1]} of {file})" if lines else "")


def parameters(node): return [a.arg for a in node.args.posonlyargs + node.args.args]


def taken(solution, module, file):
    "What the exercise asks for, from the student's module. Fails in words when it is missing or takes something else."
    found = {}
    for node in ast.parse(solution).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)): names = [node.name]
        elif isinstance(node, ast.Assign): names = [n.id for t in node.targets for n in ast.walk(t) if isinstance(n, ast.Name)]
        else: continue
        for name in names:
            if not hasattr(module, name): pytest.fail(f"{file} has no {name}", pytrace=False)
            found[name] = getattr(module, name)
        if isinstance(node, ast.FunctionDef):
            given = found[node.name]
            if not callable(given): pytest.fail(f"{node.name} in {file} is no function", pytrace=False)
            if (got := list(inspect.signature(given).parameters)) != parameters(node):
                pytest.fail(f"{node.name} takes ({', '.join(got)}), expected ({', '.join(parameters(node))})", pytrace=False)
    return found


@pytest.fixture
def grade(lesson, request):
    def one(notebook, number):
        names, exercises = lesson(notebook)
        seconds = request.config.getoption("--seconds")
        file = f"lesson_{number[:2]}.py"
        module, said = told(seconds, lambda: module_of(request.config.getoption("--students"), number[:2]), "the file itself", f"{file} cannot be read")
        if said: pytest.fail(said, pytrace=False)
        answers = taken(exercises[number]["exercise"], module, file)
        for given in answers.values():          # a student's function may use what the lesson has defined above it
            for name, value in names.items():
                if inspect.isfunction(given): given.__globals__.setdefault(name, value)
        _, said = told(seconds, lambda: run(exercises[number]["check"], {**names, **answers}), f"exercise {number}", f"exercise {number}", file)
        if said: pytest.fail(said, pytrace=False)
    return one
