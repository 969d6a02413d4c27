"""The libraries that everything here stands on: which of them are missing or too old."""

import re
from importlib.metadata import PackageNotFoundError, version

# as in requirements.txt, without those that only tests and figures need
NEEDED = {"torch": (2, 6), "numpy": (1, 26), "scipy": (1, 11), "trimesh": (4, 6, 1), "tqdm": (4, 64)}


def lacking():
    """What is wrong with the libraries, as a sentence; "" where nothing is."""
    wrong = []
    for name, least in NEEDED.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            wrong.append(f"{name} is not installed")
            continue
        if tuple(map(int, re.findall(r"\d+", found)[:3])) < least:
            wrong.append(f"{name} {found} is older than {'.'.join(map(str, least))}")
    return f"{', '.join(wrong)}; pip install -r requirements.txt" if wrong else ""
