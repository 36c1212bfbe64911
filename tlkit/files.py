"""Files and folders that are whole or not there, their sha256, and their sizes in words."""


def format_bytes(number: float) -> str:
    """`44.8 MB`: three digits, in the unit that people would use; a kB is 1,000 bytes."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= 0.9995 * size:  # 999.9 MB would be written as 1e+03 MB
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f} bytes"
