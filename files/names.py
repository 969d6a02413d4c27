"""Which names tell several meshes of one object: visual and collision, reconstructions, levels of detail, pieces."""

import re

# what one mesh of an object is among others of it: its use and its file, how it was made, how fine it is
WORDS = (
    "visuals?|vis|collisions?|col|(?:non|un)?_?textured|obj|stl|ply|off|glb|mesh|meshes|models?|"
    "google|berkeley|poisson|tsdf|optimi[sz]ed|800_tex|tex|scan|cad|raw|orig|original|"
    "reconst(?:ructed)?|eval|reoriented|watertight|manifold|"
    "normali[sz]ed|coacd|v?hacd|convex|decomposed|decomposition|hulls?|pieces|parts|"
    "fine|coarse|simple|simplified|decimated|reduced|remeshed|(?:low|mid|high)_?(?:poly|res)|lod_?[0-9]*|"
    "[0-9]+k?_?(?:faces|triangles|tris|vertices|verts|points|pts)|[0-9]+k"
)
# words that number what belongs to a whole: cup_piece_3, cup_collision_0, cup_decimated_1000
PARTS = "pieces?|parts?|chunks?|components?|convex|hulls?|collisions?|col|coacd|v?hacd|decomp(?:osed)?|"
PARTS += "simplified|decimated|reduced|remeshed|level"
KIND = re.compile(rf"(?:^|[_.-])(?:{WORDS})(?=$|[_.-])", re.IGNORECASE)
PART = re.compile(rf"(?:^|[_.-])(?:{PARTS})(?:[_.-]?[0-9]+)+(?=$|[_.-])", re.IGNORECASE)


def without_kind(object_id, pattern=KIND):
    """An object's id without the kind of its mesh: cups/cup0 of cups/cup0_visual."""
    names = object_id.split("/")
    return "/".join(pattern.sub("", name).strip("_.-") if pattern.search(name) else name for name in names)


def duplicate_groups(objects, mesh_hashes):
    """Object -> smallest id of its group: objects of the same mesh or the same `without_kind`, and what these share.

    A numbered part belongs to its whole where that is there: chess_piece_1 and chess_piece_2 are two objects, unless
    there is a chess. objects, mesh_hashes: one entry per scene.
    """
    leader = {name: name for name in objects}
    wholes = set(map(without_kind, leader))

    def find(name):
        while leader[name] != name:
            name = leader[name]
        return name

    first = {}
    for name, digest in sorted(zip(objects, mesh_hashes)):
        whole = without_kind(without_kind(name, PART))
        for shared in (digest, without_kind(name), *({whole} & wholes)):
            a, b = find(first.setdefault(shared, name)), find(name)
            leader[max(a, b)] = min(a, b)
    return {name: find(name) for name in leader}
