"The house's own rules, which no linter knows: sizes, floors, names, claims, exercises, and numbers that say what made them."
import ast
import json
import re
import statistics
from pathlib import Path

import pytest

from machine import state_of

ROOT = Path(__file__).parent.parent
ROOMS = sorted((ROOT/"nbs").glob("[0-9]*.ipynb"))
LESSONS = {"00", "10", "11", "20", "21", "40", "42", "50", "51", "52", "61", "62", "70", "71", "80"}
FLOOR = {p.stem.split("_", 1)[1]: int(p.stem[:2]) for p in ROOMS}


def cells(path): return [c | {"source": "".join(c["source"])} for c in json.loads(path.read_text(encoding="utf-8"))["cells"]]
def code(path): return [c for c in cells(path) if c["cell_type"] == "code" and not c["source"].startswith("#| default_exp")]
def lines(cell): return len([l for l in cell["source"].strip().split("\n") if not l.startswith("#|")])
def module(path): return ROOT/"fuse_nb"/f"{path.stem.split('_', 1)[1]}.py"
def is_lesson(path): return path.stem[:2] in LESSONS
by_room = pytest.mark.parametrize("path", ROOMS, ids=lambda p: p.stem)
by_lesson = pytest.mark.parametrize("path", [p for p in ROOMS if is_lesson(p)], ids=lambda p: p.stem)


@by_room
def test_a_module_is_small_enough_to_read(path):
    if module(path).exists(): assert len(module(path).read_text(encoding="utf-8").splitlines()) <= 350


@by_room
def test_a_cell_is_small_enough_to_read(path):
    sizes = [(lines(c), c["id"]) for c in code(path)]
    most = 20 if is_lesson(path) else 40
    assert [s for s in sizes if s[0] > most] == []
    if is_lesson(path): assert len(sizes) <= 40 and statistics.median(s for s, _ in sizes) <= 8


def test_no_two_rooms_have_one_number():
    numbers = [p.stem[:2] for p in ROOMS]
    assert len(set(numbers)) == len(numbers)


def test_modules_import_only_from_smaller_numbers():
    wrong = []
    for name, n in FLOOR.items():
        if not (file := ROOT/"fuse_nb"/f"{name}.py").exists(): continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom): continue
            other = (node.module or "").removeprefix("fuse_nb.").split(".")[0] if node.level or (node.module or "").startswith("fuse_nb.") else None
            if other in FLOOR and FLOOR[other] >= n: wrong.append((name, other))
    assert wrong == []


def public_names(file):
    "Those of `__all__` that the module defines; what it only passes on has its meaning elsewhere."
    tree, listed = ast.parse(file.read_text(encoding="utf-8")), []
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__": listed = ast.literal_eval(node.value)
    passed_on = {a.asname or a.name for node in tree.body if isinstance(node, ast.ImportFrom) for a in node.names}
    return [name for name in listed if name not in passed_on]


def test_a_public_name_has_one_meaning():
    seen = {}
    for path in ROOMS:
        for name in public_names(module(path)) if module(path).exists() else []: seen.setdefault(name, []).append(path.stem)
    assert {n: r for n, r in seen.items() if len(r) > 1} == {}


@by_room
def test_public_functions_say_what_they_take(path):
    "A docstring, and an annotation for every parameter."
    if not module(path).exists(): return
    bare = []
    for node in ast.parse(module(path).read_text(encoding="utf-8")).body:
        members = [node, *(node.body if isinstance(node, ast.ClassDef) else [])]
        overrides = isinstance(node, ast.ClassDef) and bool(node.bases)       # what a method means is said where it is first defined
        for f in members:
            if not isinstance(f, ast.FunctionDef) or f.name.startswith("_") or isinstance(node, ast.ClassDef) and node.name.startswith("_"): continue
            if not ast.get_docstring(f) and not (overrides and f is not node): bare.append((f.name, "no docstring"))
            bare += [(f.name, a.arg) for a in f.args.args + f.args.kwonlyargs if a.annotation is None and a.arg not in ("self", "cls")]
    assert bare == []


@by_room
def test_a_figure_claims_what_a_cell_asserts(path):
    "A cell that gives a figure its title is, or stands beside, a cell with an assertion."
    all_code = code(path)
    bare = [c["id"] for i, c in enumerate(all_code) if re.search(r"(?<!def )\bclaim\(", c["source"]) and "#| export" not in c["source"]
            and not any("assert" in d["source"] for d in all_code[max(i - 1, 0):i + 2])]
    assert bare == []


def exercises_of(path):
    "number -> (solution cell, check cell)"
    found = {}
    for c in code(path):
        if m := re.match(r"#\| (exercise|check) (\d\d\.\d+)", c["source"]): found.setdefault(m[2], {})[m[1]] = c["source"]
    return found


def wrong_answers(path):
    file = ROOT/"tests"/"wrong"/f"lesson_{path.stem[:2]}.py"
    if not file.exists(): return {}
    names = {}
    exec(compile(file.read_text(encoding="utf-8"), str(file), "exec"), names)
    return names["WRONG"]


@by_lesson
def test_a_lesson_has_exercises_with_checks_and_wrong_answers(path):
    found, wrong = exercises_of(path), wrong_answers(path)
    assert len(found) >= 3 and all(set(e) == {"exercise", "check"} for e in found.values())
    assert set(wrong) == set(found) and all(len(w) >= 2 for w in wrong.values())
    assert any(re.search(r"^(def|class) ", e["exercise"], re.M) for e in found.values())


@pytest.mark.parametrize("path", sorted((ROOT/"data").glob("*.json")), ids=lambda p: p.stem)
def test_numbers_are_current_or_called_old(path):
    "Stale: run the command again that the file names, or `python tests/machine.py --mark WHY`."
    assert state_of(path) in ("current", "old")
