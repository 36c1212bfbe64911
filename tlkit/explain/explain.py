"""`tlkit explain`: one page of images of what a network learned."""

import logging
from collections.abc import Sequence
from pathlib import Path

from tlkit.errors import RunError, TlkitError, expected_one_of
from tlkit.explain.sections import SECTIONS, Progress, Request, Section, Work, asked_objectives
from tlkit.explain.subject import Subject, open_subject
from tlkit.files import write_atomically

LOG = logging.getLogger("tlkit")

PAGE = "index.html"
GENERATOR = "tlkit explain"


def explain(
    place: Path,
    images: Sequence[Path],
    request: Request,
    *,
    out: Path,
    progress: Progress,
    device: str = "auto",
    overrides: Sequence[str] = (),
) -> Path:
    """Draw the images and write the page that shows them; return its file.

    place: a run or model folder. images: those to look at closely; none takes a few of the run's.
    Raises what `open_subject` raises; RunError if `out` holds other things; and for a section of `request.only` that can't be drawn,
    why; so it is where a unit or a class to maximise isn't the model's. Of sections that nobody named, the page says why.
    """
    check_sections(request.only)
    check_out(out)
    subject = open_subject(place, images, device=device, overrides=overrides)
    asked_objectives(subject, request)  # a wrong one ends the command before anything is drawn
    out.mkdir(parents=True, exist_ok=True)
    for file in (out / PAGE, *out.glob("*.png")):
        file.unlink(missing_ok=True)
    _write_page(out, subject, [])  # the folder is recognised as this command's from here on
    work = Work(subject, request, out, progress)
    sections = [_section(work, key) for key in request.only or SECTIONS]
    _write_page(out, subject, sections)
    return out / PAGE


def check_sections(names: tuple[str, ...]) -> None:
    for name in names:
        if name not in SECTIONS:
            raise TlkitError(f"--only {name} is not a section.\n  {expected_one_of(name, list(SECTIONS))}")


def check_out(out: Path) -> None:
    """Raise RunError if the folder holds anything that this command hasn't written."""
    if out.is_dir():
        page = out / PAGE
        own = page.is_file() and GENERATOR in page.read_text(encoding="utf-8", errors="replace")[:1000]
        others = [path.name for path in sorted(out.iterdir()) if not (own and path.suffix in (".png", ".html"))]
        if others:
            raise RunError(f"--out {out} holds other things, such as {others[0]}.\n  Choose a folder that is empty or doesn't exist yet.")
    elif out.exists():
        raise RunError(f"--out {out} is a file. Expected a folder that is empty or doesn't exist yet.")


def _section(work: Work, key: str) -> Section:
    title, meaning, add = SECTIONS[key]
    section = Section(key, title, meaning)
    try:
        add(work, section)
    except TlkitError as error:
        if key in work.request.only or (key == "maximise" and (work.request.units or work.request.classes)):
            raise
        why = " ".join(line.strip() for line in str(error).splitlines())
        section.notes.append(why)
        LOG.info("%s: left out. %s", title, why)
    return section


def _write_page(out: Path, subject: Subject, sections: list[Section]) -> None:
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(loader=PackageLoader("tlkit", "explain"), autoescape=select_autoescape(), undefined=StrictUndefined)
    card = subject.card
    about = f"{card.backbone}, {len(card.classes)} classes, weights from {card.weights.get('origin', 'elsewhere')}"
    name = str(card.recipe.get("name", subject.place.name))
    page = environment.get_template("page.html").render(name=name, about=about, sections=sections, generator=GENERATOR)
    write_atomically(out / PAGE, page.encode("utf-8", "replace"))  # a file name that isn't UTF-8 has no letters to show
