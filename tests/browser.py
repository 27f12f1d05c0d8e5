"One headless Chromium for many pages: their width, formulas and complaints, and pictures of them. It is asked through its debugging port."
import base64
import json
import shutil
import subprocess
import time
from pathlib import Path
from urllib.request import urlopen

from websocket import create_connection         # comes with JupyterLab

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = """--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update --disable-sync
    --hide-scrollbars --remote-debugging-port=0 --remote-allow-origins=* --allow-file-access-from-files""".split()

# waits for MathJax, then tells what a reader would notice
SEEN = """new Promise(done => {
  const tell = () => {
    const d = document.documentElement, wide = [];
    for (const e of document.querySelectorAll('main *, article *'))
      if (e.getBoundingClientRect().right > WIDTH + 1 && wide.length < 3 && !e.closest('pre, table, mjx-container, .highlight')) wide.push(e.tagName + '.' + e.className);
    done(JSON.stringify({overflow: d.scrollWidth - WIDTH, wide, failed: document.querySelectorAll('mjx-merror, [data-mjx-error]').length,
      drawn: document.querySelectorAll('mjx-container').length, height: d.scrollHeight,
      broken: [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src)}));
  };
  const ready = () => (window.MathJax && MathJax.startup && MathJax.startup.promise) ? MathJax.startup.promise.then(tell) : tell();
  document.readyState === 'complete' ? setTimeout(ready, 50) : addEventListener('load', () => setTimeout(ready, 50));
})"""


class Browser:
    def __init__(self, profile):
        (Path(profile)/"DevToolsActivePort").unlink(missing_ok=True)       # an earlier browser's
        self.process = subprocess.Popen([CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port = Path(profile)/"DevToolsActivePort"
        until = time.monotonic() + 60
        while not (port.exists() and port.read_text()):
            if time.monotonic() > until: raise TimeoutError("Chromium did not start within 60 s")
            time.sleep(0.1)
        pages = json.load(urlopen(f"http://127.0.0.1:{port.read_text().splitlines()[0]}/json"))
        self.socket = create_connection(next(p for p in pages if p["type"] == "page")["webSocketDebuggerUrl"], timeout=120)
        self.count, self.complaints = 0, []
        for domain in ("Page", "Runtime", "Log"): self.ask(f"{domain}.enable")

    def ask(self, method, **params):
        self.count += 1
        self.socket.send(json.dumps(dict(id=self.count, method=method, params=params)))
        while (got := json.loads(self.socket.recv())).get("id") != self.count:
            if got["method"] == "Runtime.exceptionThrown": self.complaints.append(str(got["params"]["exceptionDetails"].get("exception", got["params"]["exceptionDetails"])))
            if got["method"] == "Log.entryAdded" and got["params"]["entry"]["level"] == "error": self.complaints.append(got["params"]["entry"]["text"])
        if "error" in got: raise RuntimeError(f"{method}: {got['error']}")
        return got["result"]

    def run(self, script):
        "The value of a script, promises awaited."
        return self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)["result"].get("value")

    def look(self, page, width, dark=False, height=900):
        "Open a page at a width, and say what is seen: overflow (px), wide elements, formulas drawn and failed, broken images, complaints."
        self.complaints = []
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.ask("Emulation.setEmulatedMedia", features=[dict(name="prefers-color-scheme", value="dark" if dark else "light")])
        self.ask("Page.navigate", url=Path(page).resolve().as_uri())
        return json.loads(self.run(SEEN.replace("WIDTH", str(width)))) | dict(complaints=list(self.complaints))

    def picture(self, path, top=0, height=None):
        "The open page, or a part of it, as a PNG."
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = dict(x=0, y=top, width=size["width"], height=min(height or size["height"], size["height"] - top), scale=1)
        Path(path).write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)["data"]))

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait(30)
