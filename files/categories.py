"""Names of the ShapeNet synsets that the benchmark's categories are called by."""

CATEGORY_NAMES = {
    "03797390": "mug",
    "02876657": "bottle",
    "02880940": "bowl",
    "02946921": "can",
    "03593526": "jar",
    "02992529": "cellphone",
    "04074963": "remote",
    "03624134": "knife",
    "02942699": "camera",
    "03636649": "lamp",
    "03759954": "microphone",
    "03481172": "hammer",
    "03948459": "pistol",
    "02954340": "cap",
}


def named(synset):
    """A category as tables and pictures show it: its name and its synset, or what its folder is called."""
    return f"{CATEGORY_NAMES[synset]} {synset}" if synset in CATEGORY_NAMES else synset
