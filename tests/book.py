"""The book: a static site from the notebooks as they are committed, nothing executed, nothing fetched when it is read.

    python tests/book.py [OUT]      # default out/book; open OUT/index.html
"""
import ast
import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import files
from pathlib import Path

ROOT = Path(__file__).parent.parent
HINT = re.compile(r"<details><summary>(.*?)</summary>\s*(.*?)\s*</details>", re.S)
LINK = re.compile(r"\]\((?:\.\./|experiments/)(\w+\.ipynb)")                     # all pages of the book lie in one folder
PLAIN = re.compile(r'<span class="(?:w|n|p)">([^<]*)</span>')      # spaces, names and brackets need no colour of their own: a third of a page
PARTS = {"0": "Tools", "1": "Algebra", "2": "Words", "3": "Models", "4": "The adapter", "5": "Losses and rankers",
         "6": "Search", "7": "Applications", "8": "Measuring", "9": "The command"}

CONF = """
project, author, copyright, release = "fuse_nb", "The fuse_nb authors", "2026, The fuse_nb authors", {version!r}
extensions = ["myst_nb", "sphinx_copybutton", "sphinx.ext.mathjax"]
html_theme, html_title = "furo", "FUSE, a literate reproduction"
html_static_path, html_css_files = ["_static"], ["book.css"]
mathjax_path = "tex-svg.js"
mathjax3_config = dict(svg=dict(fontCache="global"))
nb_execution_mode, nb_merge_streams, nb_render_markdown_format = "off", True, "gfm"
html_use_index = False
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3
html_show_sphinx = html_copy_source = html_show_sourcelink = False
copybutton_selector = "div.cell_input pre"
"""

CSS = """
body { --font-stack: "Source Serif 4", Charter, Georgia, serif; }
.tag_library div.cell_input { border-left: 3px solid #0072B2; }
div.cell_input pre, div.cell_output pre { font-size: 0.78rem; }
@media (min-width: 82em) { .content { width: 50em; } }    /* a line of 100 characters is seen whole */
div.cell_output pre, div.cell_input pre { overflow-x: auto; }
table { display: block; overflow-x: auto; max-width: 100%; }
details.hint { margin: 1em 0; padding: 0.5em 1em; border-left: 3px solid #CC79A7; background: var(--color-background-secondary); }
details.hint summary { cursor: pointer; font-weight: bold; }
.library { font-size: 0.8rem; color: var(--color-foreground-muted); }
img { max-width: 100%; height: auto; background: white; }
body[data-theme="dark"] img { filter: brightness(0.85); border-radius: 4px; }
@media (prefers-color-scheme: dark) { body:not([data-theme="light"]) img { filter: brightness(0.85); border-radius: 4px; } }
mjx-container { max-width: 100%; overflow-x: auto; overflow-y: hidden; }
mjx-container[display="true"] { padding-bottom: 0.3em; }
@media (max-width: 600px) {
  div.cell_input pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 0.75rem; }
  code.literal { overflow-wrap: anywhere; white-space: normal; }
  td code.literal { overflow-wrap: normal; }
  td:nth-child(n+4):last-child { min-width: 14em; }
}
@media (min-width: 601px) { td:first-child:not(:has(a, code)) { min-width: 5em; } }
"""


def names_in(source):
    "Public functions and classes that an exported cell defines."
    return [n.name for n in ast.parse(source).body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith("_")]


def label(name):
    "Sphinx reads labels without their case, so a class and a function of one spelling need two."
    return f"{name}-class" if name[0].isupper() else name


def is_patch(source, name):
    node = next(n for n in ast.parse(source).body if getattr(n, "name", "") == name)
    return any("patch" in ast.unparse(d) for d in node.decorator_list)


def dropdown(text):
    "Hints that are closed until asked for. Blank lines let formulas be read inside."
    return HINT.sub(lambda m: f'\n<details class="hint"><summary>{m[1]}</summary>\n\n{m[2]}\n\n</details>\n', text)


def markdown(source): return dict(cell_type="markdown", metadata={}, source=source)


def page_of(notebook, module):
    "The cells of a page, and its public names: (name, signature, docstring)."
    cells, names = [], []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if re.match(r"#\| ?(hide$|hide\n|default_exp)", source): continue
        if cell["cell_type"] == "markdown":
            cells.append(markdown(dropdown(LINK.sub(r"](\1", source))))
            continue
        exported = re.search(r"^#\| ?exports?$", source, re.M)
        answer = re.match(r"#\| exercise", source)
        body = re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip("\n")
        tags = ["library"] if exported else ["hide-cell"] if answer else []
        if exported:
            new = [n for n in names_in(body) if n not in [x for x, *_ in names]]
            own = [n for n in new if not is_patch(body, n)]
            names += [(n, *told(body, n)) for n in own]
            if own: cells.append(markdown("\n".join(f"(lib-{module}-{label(n)})=" for n in own) + "\n<span class=\"library\">in the library: </span>"
                                          + ", ".join(f"[`{n}`](#api-{module}-{label(n)})" for n in own)))
        if body: cells.append(dict(cell_type="code", metadata=dict(tags=tags), execution_count=None, outputs=cell["outputs"], source=body))
    return cells, names


def told(source, name):
    "Signature and docstring of a definition in a cell."
    node = next(n for n in ast.parse(source).body if getattr(n, "name", "") == name)
    doc = ast.get_docstring(node) or ""
    if isinstance(node, ast.ClassDef):
        init = next((f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"), None)
        fields = [ast.unparse(f) for f in node.body if isinstance(f, ast.AnnAssign)]
        inside = ast.unparse(init.args).removeprefix("self, ").removeprefix("self") if init else ", ".join(fields)
        return f"class {name}({inside})", doc
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{name}({ast.unparse(node.args)}){returns}", doc


def signature(text, width=84):
    "Long signatures one parameter a line."
    if len(text) <= width: return text
    head, _, rest = text.partition("(")
    inside, _, tail = rest.rpartition(")")
    parts, depth, part = [], 0, ""
    for c in inside:
        depth += (c in "([{") - (c in ")]}")
        if c == "," and not depth: parts.append(part.strip()); part = ""
        else: part += c
    return f"{head}(\n" + "".join(f"    {p},\n" for p in [*parts, part.strip()] if p) + f"){tail}"


def api_page(found):
    out = ["# The library, name by name", "", "Every public name with what it takes and says; each links to the cell that derives it, and that cell links back here.", ""]
    for stem, module, names in found:
        if not names: continue
        out += [f"## fuse_nb.{module}", "", f"Written in [{stem.replace('_', ' · ', 1)}]({stem}.ipynb).", ""]
        for name, sign, doc in names:
            out += [f"(api-{module}-{label(name)})=", f"### {name}", "", "```python", signature(sign), "```", "", doc.replace("*", r"\*").replace("|", r"\|"), "", f"[derived here](#lib-{module}-{label(name)})", ""]
    return "\n".join(out)


def contents(stems):
    out = []
    for digit, part in PARTS.items():
        mine = [s for s in stems if s[0] == digit]
        if mine: out += ["```{toctree}", f":caption: {part}", ":hidden:", ":titlesonly:", "", *mine, "```", ""]
    extra = [s for s in stems if s.startswith("E")]
    if extra: out += ["```{toctree}", ":caption: Experiments", ":hidden:", ":titlesonly:", "", *extra, "```", ""]
    return "\n".join([*out, "```{toctree}", ":caption: Reference", ":hidden:", ":titlesonly:", "", "teaching", "api", "```"])


def write_sources(to):
    "The pages as Sphinx reads them."
    (to/"_static").mkdir(parents=True)
    mathjax = next(f for f in files("sphinx-mathjax-offline") if f.name == "tex-svg.js")
    shutil.copy(mathjax.locate(), to/"_static"/"tex-svg.js")
    (to/"_static"/"book.css").write_text(CSS, encoding="utf-8")
    version = re.search(r"^version = (.+)$", (ROOT/"settings.ini").read_text(encoding="utf-8"), re.M)[1]
    (to/"conf.py").write_text(CONF.format(version=version), encoding="utf-8")
    found, pages = [], sorted((ROOT/"nbs").glob("[0-9]*.ipynb")) + sorted((ROOT/"nbs"/"experiments").glob("E*.ipynb"))
    for notebook in pages:
        module = notebook.stem.split("_", 1)[1]
        cells, names = page_of(notebook, module)
        found.append((notebook.stem, module, names))
        write_notebook(to/notebook.name, cells)
    (to/"api.md").write_text(api_page(found), encoding="utf-8")
    write_notebook(to/"teaching.ipynb", page_of(ROOT/"nbs"/"teaching.ipynb", "teaching")[0])
    front, _ = page_of(ROOT/"nbs"/"index.ipynb", "index")
    write_notebook(to/"index.ipynb", [*front, markdown(contents([p.stem for p in pages]))])
    data = to/"data"
    data.mkdir()
    for png in (ROOT/"data").glob("*.png"): shutil.copy(png, data)


def write_notebook(path, cells):
    kernel = dict(kernelspec=dict(name="python3", display_name="Python 3", language="python"), language_info=dict(name="python"))
    path.write_text(json.dumps(dict(cells=cells, metadata=kernel, nbformat=4, nbformat_minor=4)), encoding="utf-8")


def lighter(png):
    "A figure has few colours: 256 of them are kept, if that makes the file smaller."
    from PIL import Image
    part = png.with_suffix(".part")
    Image.open(png).convert("RGB").quantize(256).save(part, format="PNG", optimize=True)
    if part.stat().st_size < png.stat().st_size: part.replace(png)
    else: part.unlink()


def build(out):
    "Write the book into `out`. Raises `CalledProcessError`, with Sphinx's warnings printed, when a link or a formula is wrong."
    out = Path(out)
    source = out.with_name(f".{out.name}.source")
    for folder in (out, source): shutil.rmtree(folder, ignore_errors=True)
    write_sources(source)
    subprocess.run([sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", str(source/".trees"), str(source), str(out)], check=True)
    shutil.rmtree(source)
    for page in out.glob("*.html"): page.write_text(PLAIN.sub(r"\1", page.read_text(encoding="utf-8")), encoding="utf-8")
    for png in (out/"_images").glob("*.png"): lighter(png)
    for name in (".buildinfo", "objects.inv"): (out/name).unlink(missing_ok=True)
    return out/"index.html"


if __name__ == "__main__": print(build(sys.argv[1] if len(sys.argv) > 1 else ROOT/"out"/"book"))
