"Write README.md, and the figure it shows, from nbs/index.ipynb: `python tests/readme.py [FILE]`. Hidden cells and hidden inputs are left out."
import sys
from base64 import b64decode
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

root = Path(__file__).parent.parent
nb = nbformat.read(root/"nbs"/"index.ipynb", as_version=4)
nb.cells = [c for c in nb.cells if not (c.source.startswith("#| hide\n") or c.source == "#| hide")]
figure = "![Rank correlation of each ranker with the exact loss](data/ranking.png)"
for c in nb.cells:
    if c.source.startswith("#| hide_input"):
        png = next(o.data["image/png"] for o in c.outputs if "image/png" in o.get("data", {}))
        if len(sys.argv) < 2: (root/"data"/"ranking.png").write_bytes(b64decode(png))
        c.update(nbformat.v4.new_markdown_cell(figure))
        for key in ("outputs", "execution_count"): c.pop(key, None)
text, _ = MarkdownExporter().from_notebook_node(nb)
Path(sys.argv[1] if len(sys.argv) > 1 else root/"README.md").write_text("<!-- Written from nbs/index.ipynb by `make readme`. -->\n" + text.strip() + "\n", encoding="utf-8")
