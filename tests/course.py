"""The kit to teach from, made of the lessons as they are: nothing in it is written twice, nothing of it is committed.

    python tests/course.py [OUT]     # default out/course

OUT/exercises    the lessons with stubs in the place of solutions; they run to their end, the checks of stubs apart
OUT/solutions    the lessons as they are
OUT/slides       one page a lesson: its claims and figures, readable without a network
OUT/grade        `pytest -m lesson_40` grades a student's own lesson_40.py; see OUT/grade/README.md
"""
import html
import json
import re
import shutil
import sys
from importlib.metadata import files
from pathlib import Path

from stubs import mark_of, stub_of

ROOT = Path(__file__).parent.parent
LESSONS = ["00", "10", "11", "20", "21", "40", "42", "50", "51", "52", "61", "62", "70", "71", "80"]


def lessons(): return [p for p in sorted((ROOT/"nbs").glob("[0-9]*.ipynb")) if p.stem[:2] in LESSONS]
def text(cell): return "".join(cell["source"])


def stubs(notebook):
    "The lesson as a student gets it; what a stub breaks is marked, so that the notebook still runs to its end."
    nb = json.loads(notebook.read_text(encoding="utf-8"))
    cells = []
    for cell in nb["cells"]:
        mark = mark_of(text(cell)) if cell["cell_type"] == "code" else None
        if mark: cell = cell | dict(outputs=[], metadata={"tags": ["raises-exception"]} if mark[0] == "check" else {})
        if mark and mark[0] == "exercise": cell = cell | dict(source=stub_of(text(cell)).splitlines(True))
        cells.append(cell)
        if mark and mark[0] == "check": cells.append(go_on(mark[1], nb["cells"]))
    return nb | dict(cells=cells)


def go_on(number, cells):
    "What the rest of the lesson needs of an exercise: nothing, or the library's own version."
    return dict(cell_type="markdown", id=f"go-on-{number.replace(chr(46), chr(45))}", metadata={}, source=[f"*Go on from here: nothing below needs your answer to {number}.*"])


def slides(notebook):
    "A page that scrolls from claim to claim: title, each section's first thought, its figures or else its first lines of code, the summary."
    from markdown_it import MarkdownIt
    render, parts = MarkdownIt("commonmark", dict(html=False)).enable("table"), []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if text(cell).startswith("#| hide"): continue
        if cell["cell_type"] == "markdown":
            for section in re.split(r"(?=^#{1,2} )", text(cell), flags=re.M):
                if re.match(r"## Exercises", section): return page(notebook, parts)
                if re.match(r"#{1,2} ", section): parts.append(dict(says=shown(render, section), figures="", code=""))
            continue
        for output in cell["outputs"]:
            if png := output.get("data", {}).get("image/png"): parts[-1]["figures"] += f'<img src="data:image/png;base64,{"".join(png).strip()}" alt="">'
        if len(parts) > 1: parts[-1]["code"] = parts[-1]["code"] or code(cell)                             # the title has none
    return page(notebook, parts)


def code(cell, most=20):
    "A cell short enough for a slide, and what it printed; nothing for imports, figures and long ones."
    lines = [line for line in text(cell).splitlines() if not line.startswith(("#|", "%"))]
    if len(lines) > most or not any(lines) or any("claim(" in line or "new_figure(" in line for line in lines): return ""
    if all(line.startswith(("import ", "from ", "    ", ")")) or not line for line in lines): return ""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer
    said = "".join("".join(o.get("text", o.get("data", {}).get("text/plain", ""))) for o in cell["outputs"])
    said = "".join(line + "\n" for line in said.splitlines()[:8])
    return highlight("\n".join(lines), PythonLexer(), HtmlFormatter(noclasses=True, nobackground=True)) + (f"<pre class=said>{html.escape(said)}</pre>" if said else "")


def shown(render, section):
    "The heading and the first few paragraphs; formulas are kept from the Markdown reader."
    blocks = re.split(r"\n\s*\n", section.strip())
    kept, words = [], 0
    for block in blocks:
        words += len(block.split())
        if len(kept) > 1 and words > 90 and not kept[-1].endswith(":") and block[0] != "|": break     # what a colon promises is shown; a table, whole
        kept.append(block)
    maths = []
    def keep(m): maths.append(m[0]); return f"\x02{len(maths) - 1}\x03"
    body = re.sub(r"\$\$.*?\$\$|\$[^$\n]+\$", keep, "\n\n".join(kept), flags=re.S)
    return re.sub("\x02(\\d+)\x03", lambda m: html.escape(maths[int(m[1])]), render.render(body))


def page(notebook, parts):
    style = ("body{margin:0;font:1.5rem/1.45 Georgia,serif;scroll-snap-type:y mandatory}section{min-height:100vh;box-sizing:border-box;padding:4vh 8vw;scroll-snap-align:start;border-bottom:1px solid #ddd}"
             "h1,h2{font-size:1.5em;color:#0072B2}img{display:block;max-width:100%;max-height:60vh;margin:1em auto}code{font-size:.85em}pre{font-size:.62em;line-height:1.35;overflow-x:auto;background:#f6f6f6;padding:.6em 1em}pre.said{background:none;margin-top:-.5em}mjx-container{max-width:100%;overflow-x:auto;overflow-y:hidden}table{border-collapse:collapse;font-size:.7em}td,th{border:1px solid #ccc;padding:.2em .5em}"
             "@media(max-width:600px){body{font-size:1rem}table{display:block;overflow-x:auto}}")
    mathjax = "<script>MathJax={tex:{inlineMath:[['$','$']]}}</script><script src='tex-svg.js'></script>"
    sections = "\n".join(f"<section>{p['says']}{p['figures'] or p['code']}</section>" for p in parts)
    return (f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'><title>{notebook.stem}</title>"
            f"<style>{style}</style>{mathjax}<body>{sections}</body></html>")


README = """# Grading

Students hand in one file a lesson, `lesson_40.py`, with the functions and answers that the exercises of lesson 40 ask for, under the names they have there.

    pytest -m lesson_40 --students=FOLDER      # FOLDER holds lesson_40.py, lesson_42.py, ...

Each exercise is one test. A test says in words what is wrong: a function that is missing or has other parameters, one that does not come back within the time (`--seconds`, 60 by default), a wrong shape, dtype or
number. It never says what would be right. `adapters.py` is the one place to change if your students' files are named otherwise. The library `fuse_nb` must be installed.
"""


def make(out, notebooks=None):
    out, notebooks = Path(out), notebooks or lessons()
    shutil.rmtree(out, ignore_errors=True)
    for folder in ("exercises", "solutions", "slides", "grade"): (out/folder).mkdir(parents=True)
    for notebook in notebooks:
        (out/"exercises"/notebook.name).write_text(json.dumps(stubs(notebook), indent=1, ensure_ascii=False), encoding="utf-8")
        shutil.copy(notebook, out/"solutions")
        (out/"slides"/f"{notebook.stem}.html").write_text(slides(notebook), encoding="utf-8")
    shutil.copytree(ROOT/"data", out/"data")
    shutil.copy(next(f for f in files("sphinx-mathjax-offline") if f.name == "tex-svg.js").locate(), out/"slides")
    here = Path(__file__).parent
    shutil.copy(here/"grader.py", out/"grade"/"conftest.py")
    (out/"grade"/"pytest.ini").write_text("[pytest]\nfilterwarnings = ignore\n", encoding="utf-8")
    (out/"grade"/"README.md").write_text(README, encoding="utf-8")
    (out/"grade"/"adapters.py").write_text(ADAPTERS, encoding="utf-8")
    for notebook in notebooks: (out/"grade"/f"test_lesson_{notebook.stem[:2]}.py").write_text(test_file(notebook), encoding="utf-8")
    return out


ADAPTERS = '''"Where a student's answers to a lesson lie."
import importlib.util
from pathlib import Path


def module_of(students, lesson):
    "The module with the answers to a lesson, such as '40'. Raises `FileNotFoundError` if it was not handed in."
    path = Path(students)/f"lesson_{lesson}.py"
    if not path.is_file(): raise FileNotFoundError(f"{path.name} is not in {students}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
'''


def test_file(notebook):
    nb = json.loads(notebook.read_text(encoding="utf-8"))
    marked = [mark_of(text(c))[1] for c in nb["cells"] if c["cell_type"] == "code" and (mark_of(text(c)) or "")[:1] == ("check",)]
    number = notebook.stem[:2]
    return (f'"Grades lesson_{number}.py."\nimport pytest\n\n\n@pytest.mark.lesson_{number}\n@pytest.mark.parametrize("number", {marked!r})\n'
            f'def test_exercise(grade, number): grade({notebook.name!r}, number)\n')


if __name__ == "__main__": print(make(sys.argv[1] if len(sys.argv) > 1 else ROOT/"out"/"course"))
