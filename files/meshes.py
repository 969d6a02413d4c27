"""Mesh files in all their dialects, brought into a plain form that trimesh reads right.

One function per format takes the bytes of a file and gives a `Plain`: what trimesh is to read, and how many
vertices and triangles it must find there. Text (OBJ, OFF, ASCII PLY, ASCII STL) becomes the plainest OBJ, so that
white space, comments, encodings, polygons and ways to number corners are dealt with here; binary files stay as
they are where their headers fit their contents. What fits no plain form is a `UserError` that says why.

Numbers of vertices, faces and triangles in messages count from 0, as everywhere in this project.
"""

import codecs
import io
import itertools
import json
import math
import re
import struct
from typing import NamedTuple

import numpy as np

from cli.errors import UserError


class Plain(NamedTuple):
    """A mesh file that trimesh reads right."""

    content: bytes
    kind: str  # trimesh's name of the format
    vertices: int  # how many of them trimesh must find
    triangles: int


# ---------------------------------------------------------------- text

PADDING = b"\0\x1a \t"  # what DOS and others put after the end of a text


def decoded(content):
    """Text as bytes that hold plain ASCII digits and keywords: no byte-order mark, UTF-16 made UTF-8.

    All other encodings in use differ in comments and names only, which nobody reads.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        content = content.decode("utf-16", errors="replace").encode()
    return content.removeprefix(codecs.BOM_UTF8)


def rows(text):
    """The fields of each line that has any, for every kind of line end and without comments (from # on)."""
    text = text.rstrip(PADDING).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    for line in text.split(b"\n"):
        if fields := line.partition(b"#")[0].split():
            yield fields


def whole(field):
    """A field of a text file as an int."""
    try:
        return int(field)
    except ValueError:
        raise UserError(f"'{quoted(field)}' stands where a whole number must stand; export it again") from None


def quoted(field):
    """A field of a text file as a message quotes it."""
    return field[:20].decode("ascii", errors="replace")


def plain_text(corners, polygons, text=b"\n"):
    """The `Plain` of corners, each x, y and z as the file spells them, and polygons, lists of corners from 0 on.

    text: what they were read from, where its end matters.
    """
    for number, corner in enumerate(corners):
        try:
            good = len(corner) == 3 and math.isfinite(sum(map(float, corner)))
        except ValueError:
            good = False
        if not good:
            found = " ".join(map(quoted, corner))
            raise UserError(f"vertex {number} is '{found}', it must be three finite numbers; export it again")
    for number, polygon in enumerate(polygons):
        if len(polygon) < 3:
            raise UserError(f"face {number} has only {len(polygon)} corners; is the file cut short? Export it again")
        if not 0 <= min(polygon) <= max(polygon) < len(corners):
            wrong = next(corner for corner in polygon if not 0 <= corner < len(corners))
            raise UserError(f"face {number} refers to vertex {wrong} of {len(corners)}; export it again")
    check_end(text, len(corners), polygons)
    triangles = triangulate(corners, polygons)
    lines = [b"v %b %b %b\n" % tuple(corner) for corner in corners]
    lines += [b"f %d %d %d\n" % (a + 1, b + 1, c + 1) for a, b, c in triangles]
    return Plain(b"".join(lines), "obj", len(corners), len(triangles))


def check_end(text, num_corners, polygons):
    """Refuse a last line without line end where something may be missing.

    That is where its number could have more digits, where other faces have more corners, where vertices have no face.
    """
    last = re.split(rb"[\r\n]", text.rstrip(PADDING)[-1000:])[-1]
    if not last or b"#" in last or not polygons:
        return
    number = last.split()[-1].lstrip(b"-")
    longer = 10 * int(number) <= num_corners if number.isdigit() else b"/" not in number
    larger = len(polygons[-1]) < max(map(len, polygons))
    if longer or larger or len({*itertools.chain(*polygons)}) < num_corners:
        raise UserError("may be cut short in its last line; export it again, or end that line if it is whole")


# ---------------------------------------------------------------- polygons


def triangulate(corners, polygons):
    """The triangles (a, b, c) of polygons, in their order: n - 2 for each of n corners, whether convex or not."""
    sizes = {*map(len, polygons)}
    if sizes <= {3}:
        return polygons
    points = np.array(corners, dtype=np.float64)
    points /= np.abs(points).max() or 1  # so that no product of them is too large
    cut = {}  # number of a polygon -> its triangles, where these are no fan
    for size in sizes - {3}:
        numbers = np.array([number for number, polygon in enumerate(polygons) if len(polygon) == size])
        for number in numbers[~is_fan(points[[polygons[number] for number in numbers]])]:
            try:
                cut[number] = cut_ears(points[polygons[number]])
            except UserError as error:
                raise UserError(f"face {number} {error}") from None
    triangles = []
    for number, polygon in enumerate(polygons):
        fan = [(0, i, i + 1) for i in range(1, len(polygon) - 1)]
        triangles += [(polygon[a], polygon[b], polygon[c]) for a, b, c in cut.get(number, fan)]
    return triangles


def is_fan(points):
    """Which of polygons (m, n, 3) the triangles around their first corner cover: all turn the same way round; (m,)."""
    points = points - points[:, :1]
    slices = np.cross(points[:, 1:-1], points[:, 2:])  # (m, n - 2, 3) along the normals, twice the areas long
    normal = slices.sum(axis=1)  # (m, 3)
    nothing = 1e-9 * np.abs(points).max(axis=(1, 2)) ** 2  # (m,)
    length = np.linalg.norm(normal, axis=1)
    forward = (slices * normal[:, None]).sum(axis=2) >= -(nothing * length)[:, None]
    empty = np.linalg.norm(slices, axis=2).max(axis=1) <= nothing
    return forward.all(axis=1) & (length > nothing) | empty


def cut_ears(points):
    """The triangles of a polygon (n, 3), one ear after the other, as triples of its corners.

    An ear is a corner that turns the polygon's way round and whose triangle holds no other corner. `UserError` where
    there is none, as in a bow tie.
    """
    points = points - points[0]
    normal = np.cross(points, np.roll(points, -1, axis=0)).sum(axis=0)
    nothing = 1e-9 * np.abs(points).max() ** 2
    normal /= max(np.linalg.norm(normal), nothing)

    def turn(a, b, c):
        """Twice the area of a triangle, or of many of them; negative where it turns the wrong way round."""
        return np.cross(points[b] - points[a], points[c] - points[a]) @ normal

    def is_ear(a, b, c):
        if turn(a, b, c) <= nothing:
            return turn(a, b, c) >= -nothing  # on a straight line: nothing is cut off
        inside = (turn(a, b, left) > nothing) & (turn(b, c, left) > nothing) & (turn(c, a, left) >= -nothing)
        return not inside.any()  # also none on the side from c to a, where the cut is

    left, ears = list(range(len(points))), []
    while len(left) > 2:
        around = zip([left[-1], *left], left, [*left[1:], left[0]])
        ear = next((corners for corners in around if is_ear(*corners)), None)
        if ear is None or not normal.any():
            raise UserError("crosses itself; export the mesh with triangles")
        ears.append(ear)
        left.remove(ear[1])
    return ears


# ---------------------------------------------------------------- OBJ

PLAIN_OBJ = re.compile(rb"(?:v(?: -?\d+\.?\d*(?:e-?\d+)?){3}\n|f(?: [1-9]\d*){3}\n)+")


def plain_obj(content):
    """OBJ: faces may count from 1, or back from the last vertex so far (-1); parts may come in any order.

    An OBJ says nowhere how much it holds: one that is cut between two lines cannot be told from a whole one.
    """
    if PLAIN_OBJ.fullmatch(content):
        return Plain(content, "obj", content.count(b"v"), content.count(b"f"))  # as it is: three times as fast
    text, corners, polygons, begun = decoded(content), [], [], []
    for row in rows(text):
        row = begun + row
        begun = []
        key = row[0].lower()
        if key in (b"v", b"f", b"fo") and row[-1].endswith(b"\\"):  # the next line goes on with this one
            begun = [*row[:-1], *row[-1].removesuffix(b"\\").split()]
        elif key == b"v":
            corners.append(row[1:4])
        elif key in (b"f", b"fo"):  # corners are "v", "v/t", "v//n" or "v/t/n"
            polygon = [whole(field.partition(b"/")[0]) for field in row[1:]]
            if 0 in polygon:
                raise UserError(f"face {len(polygons)} refers to vertex 0, but OBJ counts from 1; add 1 to all numbers")
            polygons.append([corner - 1 if corner > 0 else len(corners) + corner for corner in polygon])
        elif key in (b"surf", b"call", b"csh"):
            raise UserError(f"'{key.decode()}' lines are not read here; export it with triangles")
    if begun:
        raise UserError("its last line is cut short; export it again")
    return plain_text(corners, polygons, text)


# ---------------------------------------------------------------- OFF


def plain_off(content):
    """OFF: a line per vertex and per face, whatever colours, normals or textures follow on it; a header or none."""
    text = decoded(content)
    lines = list(rows(text))
    start = re.fullmatch(rb"(?:(?:ST)?C?N?OFF)?(\d*)", lines[0][0], re.IGNORECASE) if lines else None
    if not start or lines[0][1:2] == [b"BINARY"]:
        raise UserError("does not begin as a text OFF file of points in space does; export it again")
    # the counts may follow on the header's line, or even without a space in between
    lines[0] = [count for count in (start[1], *lines[0][1:]) if count]
    counts, *lines = lines if lines[0] else lines[1:] or [[]]
    if len(counts) < 2:
        raise UserError("its numbers of vertices and faces are missing; export it again")
    num_corners, num_faces = whole(counts[0]), whole(counts[1])
    if not 0 <= num_corners <= num_corners + num_faces == len(lines):
        raise UserError(
            f"promises {num_corners} vertices and {num_faces} faces, but {len(lines)} lines follow; export it again"
        )
    polygons = []
    for number, (size, *fields) in enumerate(lines[num_corners:]):
        polygons.append([whole(field) for field in fields[: max(0, whole(size))]])
        if len(polygons[-1]) != whole(size):
            raise UserError(f"face {number} is cut short; export it again")
    return plain_text([line[:3] for line in lines[:num_corners]], polygons, text)


# ---------------------------------------------------------------- STL

FACET = b"facet normal x y z outer loop vertex x y z vertex x y z vertex x y z endloop endfacet".split()
WORDS = [i for i, word in enumerate(FACET) if len(word) > 1]


def plain_stl(content):
    """STL: binary where the length is what the header's count says, else text of one or more solids."""
    count = int.from_bytes(content[80:84], "little")
    if len(content) == 84 + 50 * count:
        return Plain(content, "stl", 3 * count, count)
    text = decoded(content).lower()
    if not text.lstrip().startswith(b"solid"):
        raise UserError(f"its header says {count} triangles, its {len(content)} bytes do not; export it again")
    ends, fields = [], []
    for row in rows(text):
        if row[0] in (b"solid", b"endsolid"):
            ends.append(row[0])  # the rest is a name
        else:
            fields += row
    if ends != [b"solid", b"endsolid"] * (len(ends) // 2):
        raise UserError("the last solid has no end; the file is cut short, export it again")
    corners = []
    for start in range(0, len(fields), len(FACET)):
        facet = fields[start : start + len(FACET)]
        if len(facet) < len(FACET) or any(facet[i] != FACET[i] for i in WORDS):
            number = start // len(FACET)
            raise UserError(f"face {number} is not a 'facet normal' of three vertices; export it again")
        corners += [facet[8:11], facet[12:15], facet[16:19]]
    return plain_text(corners, [[i, i + 1, i + 2] for i in range(0, len(corners), 3)])


# ---------------------------------------------------------------- PLY

PLY_TYPES = {
    "char": "i1", "short": "i2", "int": "i4", "int8": "i1", "int16": "i2", "int32": "i4", "int64": "i8",
    "uchar": "u1", "ushort": "u2", "uint": "u4", "uint8": "u1", "uint16": "u2", "uint32": "u4", "uint64": "u8",
    "float": "f4", "double": "f8", "float32": "f4", "float64": "f8",
}  # fmt: skip
BYTE_ORDERS = {"ascii": None, "binary_little_endian": "<", "binary_big_endian": ">"}
NEEDED = {"vertex": {"x", "y", "z"}, "face": {"vertex_indices"}, "tristrips": {"vertex_indices"}}


class Element(NamedTuple):
    """What a PLY header says of one kind of rows."""

    name: str
    count: int
    properties: dict  # name -> (type of its numbers, type of the length of a list or None)


def plain_ply(content):
    """PLY: text or binary, elements in any order, polygons of any size, triangle strips."""
    elements, order, header, body = ply_header(decoded(content))
    if order and only_triangles(elements, order, body):
        return Plain(header + body, "ply", elements[0].count, elements[1].count)
    corners, polygons = [], []
    for element, row in ply_rows(elements, ply_numbers(order, body)):
        if element == "vertex":
            corners.append(row["x"] + row["y"] + row["z"])
        elif element == "face":
            polygons.append([whole(field) for field in row["vertex_indices"]])
        elif element == "tristrips":
            polygons += strip_triangles([whole(field) for field in row["vertex_indices"]])
    return plain_text(corners, polygons, b"\n" if order else body)


def ply_header(content):
    """The elements of a PLY file, its byte order (None: text), its header without comments and its data."""
    start = re.match(rb"ply[ \t]*(\r\n|\n|\r)", content)
    end = start and re.search(start[1] + rb"end_header[ \t]*" + start[1], content)
    if not end:
        raise UserError("has no whole PLY header; export it again")
    elements, order, kept = [], "", []
    for line in content[: end.start()].split(start[1]):
        match line.decode("latin-1").split():
            case [] | ["comment" | "obj_info", *_]:
                continue
            case ["ply"]:
                pass
            case ["format", encoding, _] if encoding in BYTE_ORDERS:
                order = BYTE_ORDERS[encoding]
            case ["element", name, count] if count.isdecimal():
                elements.append(Element(name, int(count), {}))
            case ["property", kind, name] if elements and kind in PLY_TYPES:
                elements[-1].properties[name] = PLY_TYPES[kind], None
            case ["property", "list", length, kind, name] if elements and {length, kind} <= PLY_TYPES.keys():
                name = "vertex_indices" if name == "vertex_index" else name  # both are in use
                elements[-1].properties[name] = PLY_TYPES[kind], PLY_TYPES[length]
            case _:
                raise UserError(f"its header says '{quoted(line)}', which is not PLY; export it again")
        kept.append(line)
    for name, count, properties in elements:
        if count and not NEEDED.get(name, {*properties}) <= {*properties} or count and not properties:
            raise UserError(f"its header lacks {' '.join(NEEDED[name])} in '{name}'; export it again")
    if order == "":
        raise UserError("its header names no format; export it again")
    return elements, order, b"\n".join([*kept, b"end_header\n"]), content[end.end() :]


def only_triangles(elements, order, body):
    """Whether a binary body is vertices and then faces of three corners each, which trimesh reads right as it is."""
    if [element.name for element in elements] != ["vertex", "face"]:
        return False
    vertex, face = (row_type(element, order) for element in elements)
    start = elements[0].count * vertex.itemsize
    lengths = [name for name in (*vertex.names, *face.names) if name.startswith("length of ")]
    if lengths != ["length of vertex_indices"] or len(body) != start + elements[1].count * face.itemsize:
        return False
    return bool((np.frombuffer(body, face, offset=start)["length of vertex_indices"] == 3).all())


def row_type(element, order):
    """The numpy type of a binary row in which every list holds three numbers."""
    fields = []
    for name, (kind, length) in element.properties.items():
        fields += [("length of " + name, order + length), (name, order + kind, 3)] if length else [(name, order + kind)]
    return np.dtype(fields)


def ply_numbers(order, body):
    """take(kind, count): the next `count` numbers of a PLY body or what is left of them, spelled out as in text."""
    if order is None:
        fields = iter(body.rstrip(b"\0\x1a").split())
        return lambda kind, count: list(itertools.islice(fields, count))
    data = io.BytesIO(body)

    def take(kind, count):
        content = data.read(count * int(kind[1]))
        return [b"%a" % number for number in np.frombuffer(content, order + kind).tolist()]

    return take


def ply_rows(elements, take):
    """(element, {property: its numbers}) for each row of a PLY body, which must hold just what the header promises."""
    for element, count, properties in elements:
        for number in range(count):
            row = {}
            for name, (kind, length) in properties.items():
                try:
                    size = int(take(length, 1)[0]) if length else 1
                    row[name] = take(kind, size)
                    complete = len(row[name]) == size
                except (ValueError, IndexError):
                    complete = False
                if not complete:
                    raise UserError(f"ends or is broken in '{element}' {number} of {count}; export it again")
            yield element, row
    if take("u1", 1):
        raise UserError("goes on after all that its header promises; export it again")


def strip_triangles(strip):
    """The triangles of corners of which -1 begins a new strip; every second one is turned to face as its neighbours."""
    triangles = []
    for between, corners in itertools.groupby(strip, lambda corner: corner == -1):
        corners = list(corners)
        for i in range(0 if between else len(corners) - 2):
            a, b, c = corners[i : i + 3]
            triangles.append([a, c, b] if i % 2 else [a, b, c])
    return triangles


# ---------------------------------------------------------------- GLB

HARMLESS = ("KHR_materials_", "KHR_texture_", "EXT_texture_", "KHR_lights_", "KHR_mesh_quantization")  # beginnings
TRIANGLES, STRIP, FAN = 4, 5, 6  # modes of a primitive; smaller ones are points and lines, which have no surface
PLACE = ("matrix", "translation", "rotation", "scale", "children", "mesh")  # what a node says of its meshes' place


def plain_glb(content):
    """GLB: the surfaces of the scene that the file shows, each where its nodes put it, and nothing else of it."""
    magic, version, length, size, chunk = struct.unpack("<4sIII4s", content[:20].ljust(20, b"\0"))
    if (magic, version, chunk) != (b"glTF", 2, b"JSON"):
        raise UserError("does not begin as a GLB file of version 2 does; export it again")
    if not 20 + size <= length <= len(content):
        raise UserError(f"promises {length} bytes and holds {len(content)}; it is cut short, export it again")
    gltf = json.loads(content[20 : 20 + size])
    for extension in gltf.get("extensionsRequired", []):
        if not extension.startswith(HARMLESS):
            raise UserError(f"requires {extension}, which is not read here; export it without")
    roots, nodes = shown_nodes(gltf)
    surfaces, corners, triangles = {}, 0, 0
    for node in nodes:
        if "mesh" not in node:
            continue
        mesh = gltf["meshes"][node["mesh"]]
        check_still(node, mesh)
        found = [surface for primitive in mesh["primitives"] if (surface := plain_surface(gltf, primitive))]
        surfaces[node["mesh"]] = [surface for surface, _, _ in found]
        corners += sum(count for _, count, _ in found)
        triangles += sum(count for _, _, count in found)
    for node in gltf.get("nodes", []):
        unused = [key for key in node if key not in PLACE or key == "mesh" and not surfaces.get(node[key])]
        for key in unused:  # trimesh loses the children of cameras and of meshes without triangles
            del node[key]
    kept = {key: gltf[key] for key in ("nodes", "accessors", "bufferViews", "buffers") if key in gltf}
    meshes = [{"primitives": surfaces.get(i, [])} for i in range(len(gltf.get("meshes", [])))]
    kept |= {"asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": roots}], "meshes": meshes}
    text = json.dumps(kept).encode()
    text += b" " * (-len(text) % 4)
    rest = content[20 + size : length]
    head = struct.pack("<4sIII4s", magic, version, 20 + len(text) + len(rest), len(text), chunk)
    return Plain(head + text + rest, "glb", corners, triangles)


def shown_nodes(gltf):
    """Numbers of the root nodes of the scene that the file shows, and all nodes under them."""
    scenes = gltf.get("scenes", [])
    roots = scenes[gltf.get("scene", 0)].get("nodes", []) if scenes else []
    seen, todo = set(), list(roots)
    while todo:
        node = todo.pop()
        if node in seen:
            raise UserError(f"its node {node} has two parents; export it again")
        seen.add(node)
        todo += gltf["nodes"][node].get("children", [])
    return roots, [gltf["nodes"][node] for node in seen]


def check_still(node, mesh):
    """Refuse a mesh whose shape or number is not what its vertices and the node's transform say."""
    if "skin" in node:
        raise UserError("holds a mesh bent by a skeleton; apply the pose and export it again")
    if any(node.get("weights", mesh.get("weights", []))):
        raise UserError("holds a mesh bent by morph targets; apply them and export it again")
    if "EXT_mesh_gpu_instancing" in node.get("extensions", {}):
        raise UserError("uses EXT_mesh_gpu_instancing, which is not read here; export it without")


def plain_surface(gltf, primitive):
    """The shape of a primitive alone, its numbers of vertices and of triangles; None where it is points or lines."""
    mode = primitive.get("mode", TRIANGLES)
    if mode < TRIANGLES:
        return None
    if mode == FAN:
        raise UserError("holds a triangle fan, which is not read here; export it with plain triangles")
    numbers = [primitive["attributes"]["POSITION"], *([primitive["indices"]] if "indices" in primitive else [])]
    for number in numbers:
        check_accessor(gltf, gltf["accessors"][number], primitive)
    corners, used = gltf["accessors"][numbers[0]]["count"], gltf["accessors"][numbers[-1]]["count"]
    surface = {"attributes": {"POSITION": numbers[0]}, "mode": mode}
    surface |= {"indices": number for number in numbers[1:]}
    return surface, corners, max(0, used - 2) if mode == STRIP else used // 3


def check_accessor(gltf, accessor, primitive):
    """Refuse an accessor of a primitive whose numbers trimesh would not find, or not take as they are meant."""
    if "sparse" in accessor or accessor.get("normalized"):
        what = "sparse" if "sparse" in accessor else "normalized"
        raise UserError(f"holds a {what} accessor, which is not read here; export it without")
    view = gltf["bufferViews"][accessor["bufferView"]] if "bufferView" in accessor else primitive
    if view is primitive or view.get("extensions"):
        packed = " ".join(view.get("extensions", {})) or "no buffer"
        raise UserError(f"holds its numbers in {packed}, which is not read here; export it without compression")
    if not gltf["buffers"][view["buffer"]].get("uri", "data:").startswith("data:"):
        raise UserError("holds its numbers in another file, which is not opened; export it as one file")


PLAIN = {".obj": plain_obj, ".stl": plain_stl, ".ply": plain_ply, ".off": plain_off, ".glb": plain_glb}
