"""The page to drop an image on: one file, with nothing from elsewhere."""

import re
from base64 import b64encode
from hashlib import sha256

from tlkit.report.templates import template


def page(name: str, classes: tuple[str, ...], *, asks_token: bool) -> tuple[str, str]:
    """Render the page, and return the Content-Security-Policy that allows only its own script and style."""
    html = template("page.html", "deploy/serve").render(name=name, classes=classes, asks_token=asks_token)
    policy = (
        f"default-src 'none'; script-src {_hash(html, 'script')}; style-src {_hash(html, 'style')}; img-src blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html, policy


def _hash(html: str, tag: str) -> str:
    """Hash a script or style by Content Security Policy Level 3, 2.3.1, https://www.w3.org/TR/CSP3/"""
    (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
