"""A page in headless Chromium, where there is one: a script runs in it, and what it returns is read from the DOM."""

import html
import re
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--no-first-run", "--window-size=500,900", "--virtual-time-budget=5000", "--dump-dom"),
)


def browser() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def dom_after(page: Path, script: str) -> str:
    """Return as JSON what the body of an async function returns in the page, and the errors of the page under `errors`."""
    early = "<script>window.errors = []; addEventListener('error', event => errors.push(String(event.message)));</script>"
    late = f"""<script>(async () => {{{script}}})().catch(error => ({{failed: String(error)}})).then(found => {{
      const place = document.createElement("pre"); place.id = "found"; place.textContent = JSON.stringify({{...found, errors}});
      document.body.append(place); }});</script>"""
    copy = page.with_name(f"{page.stem}_scripted.html")
    copy.write_text(page.read_text(encoding="utf-8").replace("<head>", f"<head>{early}").replace("</body>", f"{late}</body>"))
    with TemporaryDirectory() as profile:
        command = [str(browser()), *FLAGS, f"--user-data-dir={profile}", copy.as_uri()]
        dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None, dom[-500:]
    return html.unescape(found[1])
