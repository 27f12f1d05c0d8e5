"The book builds without a warning, asks no other host for anything, and every link, picture and formula in it is whole."
import re
import time
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest

import book
from browser import CHROMIUM, Browser


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
    ln Phi varphi det pmod psi displaystyle nonumber label tag hspace vspace phantom stackrel underset overset hline space min max qquad""".split())


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


def test_a_table_is_a_table(built):
    "A cell that shows Markdown shows it drawn, not its bars."
    bars = [p.name for p in built[1] if re.search(r"<p>\|.*\|$", p.read_text(encoding="utf-8"), re.M)]
    assert bars == []


def test_every_public_name_has_an_entry_that_links_to_its_cell(built):
    out, pages = built
    api = pages[out/"api.html"]
    for notebook in sorted((book.ROOT/"nbs").glob("[0-9]*.ipynb")):
        module = notebook.stem.split("_", 1)[1]
        for name, *_ in book.page_of(notebook, module)[1]:
            assert f"api-{module}-{book.label(name)}".lower().replace("_", "-") in {i.lower().replace("_", "-") for i in api.ids}, (module, name)


needs_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: pages are not looked at in a browser")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = Browser(tmp_path_factory.mktemp("browser"))
    yield opened
    opened.close()


def faults_seen(browser, page, *view):
    "What a reader of a page would notice."
    seen = browser.look(page, *view)
    faults = {k: seen[k] for k in ("failed", "broken", "complaints", "wide") if seen[k]}
    return faults | (dict(overflow=seen["overflow"]) if seen["overflow"] > 0 else {}), seen["drawn"]


@needs_a_browser
def test_a_phone_shows_every_page_whole(built, browser):
    found = {p.name: faults_seen(browser, p, 390, True) for p in built[1]}
    assert {name: faults for name, (faults, _) in found.items() if faults} == {}
    assert [p.name for p, page in built[1].items() if page.math and not found[p.name][1]] == []       # formulas are drawn


@needs_a_browser
@pytest.mark.parametrize("stem", ("index", "10_tproduct", "40_adapter", "api", "teaching"))
def test_a_desk_shows_it_whole(built, browser, stem): assert faults_seen(browser, built[0]/f"{stem}.html", 1400)[0] == {}


@needs_a_browser
@pytest.mark.parametrize("stem", ("03_offsets", "40_adapter", "53_combined"))
def test_a_desk_shows_lines_of_code_to_their_end(built, browser, stem):
    browser.look(built[0]/f"{stem}.html", 1400)
    assert browser.run("[...document.querySelectorAll('div.cell_input pre')].filter(p => p.scrollWidth > p.clientWidth + 1).map(p => p.textContent.slice(0, 60))") == []


@needs_a_browser
def test_hints_and_solutions_are_closed(built, browser):
    for stem in ("10_tproduct", "52_ranking"):
        browser.look(built[0]/f"{stem}.html", 390)
        exercises = len(re.findall(r"<strong>Exercise ", (built[0]/f"{stem}.html").read_text(encoding="utf-8")))
        closed = browser.run("[...document.querySelectorAll('details')].map(d => d.open ? 'open' : d.className || 'other')")
        assert exercises > 2 and "open" not in closed and closed.count("hint") == exercises and len(closed) >= 2*exercises
        assert browser.run("document.querySelector('details.hint').innerText.trim()") == "Hint"         # what it hides is not seen


@needs_a_browser
def test_the_browser_sees_what_is_wrong(browser, tmp_path):
    page = tmp_path/"bad.html"
    page.write_text("<meta name=viewport content='width=device-width'><body style='margin:0'><main><div style='width:700px'>wide</div><img src='none.png'><script>throw 'no'</script></main>", encoding="utf-8")
    faults, _ = faults_seen(browser, page, 390)
    assert faults["overflow"] == 310 and faults["wide"] and len(faults["broken"]) == 1 and faults["complaints"]


@needs_a_browser
def test_the_search_finds_a_page_without_a_server(built, browser):
    browser.look(built[0]/"index.html", 1400)
    browser.ask("Page.navigate", url=(built[0]/"search.html").resolve().as_uri() + "?q=pseudoinverse")
    found = browser.run("new Promise(done => { let n = 0; const t = setInterval(() => { const a = [...document.querySelectorAll('.search li a')].map(x => x.textContent);"
                        " if (a.length || ++n > 100) { clearInterval(t); done(a.join('|')); } }, 100); })")
    assert "The pseudoinverse" in found
