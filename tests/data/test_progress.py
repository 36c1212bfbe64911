import io

from rich.console import Console

from tlkit.data.progress import progress


def test_a_terminal_shows_images_and_their_speed_from_the_first_moment_on() -> None:
    screen = io.StringIO()
    with progress(Console(file=screen, force_terminal=True, width=100), "images decoded", 40) as advance:
        advance(0)
        advance(10)
        advance(30)
    assert "images decoded" in screen.getvalue()
    assert "images/s" in screen.getvalue()
