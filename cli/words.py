"""Words for a terminal."""


def plural(count, noun):
    """1 object, 2 objects."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
