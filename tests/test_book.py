"The book builds without a warning, asks no other host for anything, and every link, picture and formula in it is whole."
import re
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import book

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.loads, self.math, self.formulas, self.inside = set(), [], [], 0, [], 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        a = dict(attributes)
        if "id" in a: self.ids.add(a["id"])
        if tag == "a" and "href" in a: self.links.append(a["href"])
        if tag in ("img", "script") and "src" in a: self.loads.append(a["src"])
        if tag == "link" and a.get("rel") in ("stylesheet", "icon", "preload") and "href" in a: self.loads.append(a["href"])
        if self.inside: self.inside += 1
        elif "math" in (a.get("class") or "").split():
            self.math, self.inside = self.math + 1, 1
            self.formulas.append("")

    def handle_endtag(self, tag): self.inside = max(self.inside - 1, 0)

    def handle_data(self, data):
        if self.inside: self.formulas[-1] += data


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    start = time.monotonic()
    out = book.build(tmp_path_factory.mktemp("book")/"book").parent
    assert time.monotonic() - start < 120                       # the goal is 60 s on a quiet machine
    return out, {p: Page(p) for p in sorted(out.rglob("*.html"))}


def test_it_is_small(built): assert sum(p.stat().st_size for p in built[0].rglob("*") if p.is_file()) < 10 * 2**20


def test_nothing_is_loaded_from_another_host(built):
    loads = [(p.name, u) for p, page in built[1].items() for u in page.loads if urlsplit(u).scheme not in ("", "data")]
    css = [p.name for p in built[0].rglob("*.css") if re.search(r"url\(['\"]?https?:|@import ['\"]?https?:", p.read_text(encoding="utf-8"))]
    assert loads == [] and css == []


def test_every_link_and_picture_is_there(built):
    out, pages = built
    broken = []
    for path, page in pages.items():
        for url in [*page.links, *page.loads]:
            parts = urlsplit(url)
            if parts.scheme or url.startswith("//"): continue
            target = (path.parent/unquote(parts.path)).resolve() if parts.path else path
            if not target.exists(): broken.append((path.name, url))
            elif parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in pages[target].ids: broken.append((path.name, url))
    assert broken == []


MACROS = set("""mathbb mathrm mathcal hat times top bigl bigr Bigl Bigr left right begin end vdots ddots cdots dots ldots sum prod frac tfrac dfrac sqrt log exp cos sin min max arg argmin
    operatorname overline bar tilde partial nabla lambda sigma tau kappa varepsilon epsilon omega alpha beta gamma delta theta phi pi mu rho Delta Sigma le ge ne leq geq neq approx equiv sim in notin
    to mapsto lfloor rfloor lceil rceil langle rangle otimes cdot quad qquad text bmod mod ell infty lVert rVert Vert mid mathbf boldsymbol odot circ propto subset cup cap forall exists
    limits nolimits underbrace overbrace lvert rvert binom mathop star ast pm dagger prime setminus big Big softmax mathit mathsf widehat rightarrow leftarrow Rightarrow ll gg bigoplus oplus not
    ln Phi det pmod psi displaystyle nonumber label tag hspace vspace phantom stackrel underset overset hline space min max qquad""".split())


def faults_of(formula):
    "What is wrong with a formula before any browser has seen it."
    found = re.sub(r"\\[{}$%&#_]", "", formula.replace("\\\\", " "))
    if found.count("{") != found.count("}"): yield "braces"
    if found.count("\\left") - found.count("\\leftarrow") != found.count("\\right") - found.count("\\rightarrow"): yield "left and right"
    if found.count("\\begin") != found.count("\\end"): yield "begin and end"
    yield from (m for m in re.findall(r"\\([A-Za-z]+)", found) if m not in MACROS)


def test_every_formula_is_whole(built):
    assert [(p.name, f, why) for p, page in built[1].items() for f in page.formulas for why in faults_of(f)] == []
    assert sum(page.math for page in built[1].values()) > 300
    assert list(faults_of(r"\frac{1}{2")) == ["braces"] and list(faults_of(r"\frob x")) == ["frob"]


def test_every_public_name_has_an_entry_that_links_to_its_cell(built):
    out, pages = built
    api = pages[out/"api.html"]
    for notebook in sorted((book.ROOT/"nbs").glob("[0-9]*.ipynb")):
        module = notebook.stem.split("_", 1)[1]
        for name, *_ in book.page_of(notebook, module)[1]:
            assert f"api-{module}-{book.label(name)}".lower().replace("_", "-") in {i.lower().replace("_", "-") for i in api.ids}, (module, name)


def seen(page, width):
    "(pixels of sideways overflow, formulas that failed, formulas drawn) as a browser has it."
    probe = page.with_name(f"probe-{page.name}")
    script = ("<script>addEventListener('load', () => setTimeout(() => { const d = document.documentElement;"
              " d.setAttribute('data-seen', [d.scrollWidth - innerWidth, document.querySelectorAll('mjx-merror, [data-mjx-error]').length,"
              " document.querySelectorAll('mjx-container').length].join(' ')); }, 4000));</script></body>")
    probe.write_text(page.read_text(encoding="utf-8").replace("</body>", script), encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update --disable-sync --hide-scrollbars".split()
    dom = subprocess.run([CHROMIUM, *flags, f"--window-size={width},1200", f"--user-data-dir={page.parent/'.browser'}", "--virtual-time-budget=15000", "--dump-dom", probe.as_uri()],
                         capture_output=True, text=True, timeout=180).stdout
    probe.unlink()
    return tuple(map(int, re.search(r'data-seen="(-?\d+) (\d+) (\d+)"', dom).groups()))


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: pages are not looked at in a browser")
@pytest.mark.parametrize("width", (1400, 500))                  # 500 is the narrowest window that headless Chromium makes
@pytest.mark.parametrize("stem", ("index", "10_tproduct", "40_adapter"))
def test_a_browser_shows_it_whole(built, stem, width):
    out, pages = built
    overflow, failed, drawn = seen(out/f"{stem}.html", width)
    assert overflow <= 0 and failed == 0 and drawn >= min(1, pages[out/f"{stem}.html"].math)
