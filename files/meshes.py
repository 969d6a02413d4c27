"""Mesh files in all their dialects: one function per format from the bytes of a file to its surface.

Each gives vertices (V, 3) float64 and triangles (F, 3) int64 as they are stored, polygons cut into triangles, every
part where the file puts it. What cannot be read so, or is cut short, is a `UserError` that says why. (trimesh alone is
silently wrong on 43 of the 520 dialects of the tests.) Numbers of vertices and faces in messages count from 0.
"""

import base64
import codecs
import io
import itertools
import json
import math
import re
import struct
from typing import NamedTuple

import numpy as np

from cli.errors import UserError, refuse
from files.polygons import triangulate

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


def surface(corners, polygons, text=b"\n"):
    """Vertices and triangles of corners, each x, y and z as a file spells them, and polygons, lists of corners.

    text: what they were read from, where its end matters.
    """
    vertices = []
    for number, corner in enumerate(corners):
        try:
            x, y, z = map(float, corner)
            if not math.isfinite(x + y + z):
                raise ValueError
        except ValueError:
            found = " ".join(map(quoted, corner))
            raise UserError(f"vertex {number} is '{found}', it must be three finite numbers; export it again") from None
        vertices.append((x, y, z))
    for number, polygon in enumerate(polygons):
        if len(polygon) < 3:
            raise UserError(f"face {number} has only {len(polygon)} corners; is the file cut short? Export it again")
        if not 0 <= min(polygon) <= max(polygon) < len(vertices):
            wrong = next(corner for corner in polygon if not 0 <= corner < len(vertices))
            raise UserError(f"face {number} refers to vertex {wrong} of {len(vertices)}; export it again")
    check_end(text, len(vertices), polygons)
    vertices = np.array(vertices, dtype=np.float64)
    return vertices, np.array(triangulate(vertices, polygons), dtype=np.int64)


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


# ---------------------------------------------------------------- OBJ
SIMPLE_OBJ = re.compile(rb"(?:v(?: -?\d+\.?\d*(?:e-?\d+)?){3}\n|f(?: [1-9]\d{0,17}){3}\n)+")


def read_obj(content):
    """OBJ: faces may count from 1, or back from the last vertex so far (-1); parts may come in any order.

    An OBJ says nowhere how much it holds: one that is cut between two lines cannot be told from a whole one.
    """
    if SIMPLE_OBJ.fullmatch(content):  # three times as fast
        table = np.array(content.split()).reshape(-1, 4)
        is_face = table[:, 0] == b"f"
        return table[~is_face, 1:].astype(np.float64), table[is_face, 1:].astype(np.int64) - 1
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
    refuse(begun, "its last line is cut short; export it again")
    return surface(corners, polygons, text)


# ---------------------------------------------------------------- OFF
def read_off(content):
    """OFF: a line per vertex and per face, whatever colours, normals or textures follow on it; a header or none."""
    text = decoded(content)
    lines = list(rows(text))
    start = re.fullmatch(rb"(?:(?:ST)?C?N?OFF)?(\d*)", lines[0][0], re.IGNORECASE) if lines else None
    binary = lines[:1] and lines[0][1:2] == [b"BINARY"]
    refuse(not start or binary, "does not begin as a text OFF file of points in space does; export it again")
    # the counts may follow on the header's line, or even without a space in between
    lines[0] = [count for count in (start[1], *lines[0][1:]) if count]
    counts, *lines = lines if lines[0] else lines[1:] or [[]]
    refuse(len(counts) < 2, "its numbers of vertices and faces are missing; export it again")
    num_corners, num_faces = whole(counts[0]), whole(counts[1])
    kept = 0 <= num_corners <= num_corners + num_faces == len(lines)
    promise = f"promises {num_corners} vertices and {num_faces} faces"
    refuse(not kept, f"{promise}, but {len(lines)} lines follow; export it again")
    polygons = []
    for number, (size, *fields) in enumerate(lines[num_corners:]):
        polygons.append([whole(field) for field in fields[: max(0, whole(size))]])
        refuse(len(polygons[-1]) != whole(size), f"face {number} is cut short; export it again")
    return surface([line[:3] for line in lines[:num_corners]], polygons, text)


# ---------------------------------------------------------------- STL
FACET = b"facet normal x y z outer loop vertex x y z vertex x y z vertex x y z endloop endfacet".split()
BINARY_FACET = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
WORDS = [i for i, word in enumerate(FACET) if len(word) > 1]


def read_stl(content):
    """STL: binary where the length is what the header's count says, else text of one or more solids."""
    count = int.from_bytes(content[80:84], "little")
    if len(content) == 84 + 50 * count:
        corners = np.frombuffer(content, BINARY_FACET, offset=84)["corners"]
        return corners.reshape(-1, 3).astype(np.float64), np.arange(3 * count).reshape(-1, 3)
    text = decoded(content).lower()
    if not text.lstrip().startswith(b"solid"):
        raise UserError(f"its header says {count} triangles, its {len(content)} bytes do not; export it again")
    ends, fields = [], []
    for row in rows(text):
        if row[0] in (b"solid", b"endsolid"):
            ends.append(row[0])  # the rest is a name
        else:
            fields += row
    paired = [b"solid", b"endsolid"] * (len(ends) // 2)
    refuse(ends != paired, "the last solid has no end; the file is cut short, export it again")
    corners = []
    for start in range(0, len(fields), len(FACET)):
        facet = fields[start : start + len(FACET)]
        whole_facet = len(facet) == len(FACET) and all(facet[i] == FACET[i] for i in WORDS)
        number = start // len(FACET)
        refuse(not whole_facet, f"face {number} is not a 'facet normal' of three vertices; export it again")
        corners += [facet[8:11], facet[12:15], facet[16:19]]
    return surface(corners, [[i, i + 1, i + 2] for i in range(0, len(corners), 3)])


# ---------------------------------------------------------------- PLY
PLY_TYPES = {
    "char": "i1", "short": "i2", "int": "i4", "int8": "i1", "int16": "i2", "int32": "i4", "int64": "i8",
    "uchar": "u1", "ushort": "u2", "uint": "u4", "uint8": "u1", "uint16": "u2", "uint32": "u4", "uint64": "u8",
    "float": "f4", "double": "f8", "float32": "f4", "float64": "f8",
}  # fmt: skip
BYTE_ORDERS = {"ascii": None, "binary_little_endian": "<", "binary_big_endian": ">"}
NEEDED = {"vertex": ["x", "y", "z"], "face": ["vertex_indices"], "tristrips": ["vertex_indices"]}


class Element(NamedTuple):
    """What a PLY header says of one kind of rows."""

    name: str
    count: int
    properties: dict  # name -> (type of its numbers, type of the length of a list or None)


def read_ply(content):
    """PLY: text or binary, elements in any order, polygons of any size, triangle strips."""
    elements, order, body = ply_header(decoded(content))
    if order and (found := binary_triangles(elements, order, body)):
        return found
    corners, polygons = [], []
    for element, row in ply_rows(elements, ply_numbers(order, body)):
        if element == "vertex":
            corners.append(row["x"] + row["y"] + row["z"])
        elif element == "face":
            polygons.append([whole(field) for field in row["vertex_indices"]])
        elif element == "tristrips":
            polygons += strip_triangles([whole(field) for field in row["vertex_indices"]])
    return surface(corners, polygons, b"\n" if order else body)


def ply_header(content):
    """The elements of a PLY file, its byte order (None: text) and its data."""
    start = re.match(rb"ply[ \t]*(\r\n|\n|\r)", content)
    end = start and re.search(start[1] + rb"end_header[ \t]*" + start[1], content)
    refuse(not end, "has no whole PLY header; export it again")
    elements, order = [], ""
    for line in content[: end.start()].split(start[1]):
        match line.decode("latin-1").split():
            case [] | ["ply"] | ["comment" | "obj_info", *_]:
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
    for name, count, properties in elements:
        needed = NEEDED.get(name, [])
        lacks = count and (not properties or not {*needed} <= {*properties})
        refuse(lacks, f"its header lacks {' '.join(needed)} in '{name}'; export it again")
    refuse(order == "", "its header names no format; export it again")
    return elements, order, content[end.end() :]


def binary_triangles(elements, order, body):
    """Vertices and triangles of a binary body that is vertices and then faces of three corners each; None of others."""
    if [element.name for element in elements] != ["vertex", "face"]:
        return None
    vertex, face = (row_type(element, order) for element in elements)
    lengths = [name for name in (*vertex.names, *face.names) if name.startswith("length of ")]
    start = elements[0].count * vertex.itemsize
    if lengths != ["length of vertex_indices"] or len(body) != start + elements[1].count * face.itemsize:
        return None
    faces = np.frombuffer(body, face, offset=start)
    if not (faces["length of vertex_indices"] == 3).all() or faces["vertex_indices"].dtype.kind == "f":
        return None
    vertices = np.frombuffer(body, vertex, count=elements[0].count)
    return np.stack([vertices[axis].astype(np.float64) for axis in "xyz"], 1), faces["vertex_indices"].astype(np.int64)


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
                refuse(not complete, f"ends or is broken in '{element}' {number} of {count}; export it again")
            yield element, row
    refuse(take("u1", 1), "goes on after all that its header promises; export it again")


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
NUMBERS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
TRIANGLES, STRIP = 4, 5  # modes of a primitive; smaller ones are points and lines, which have no surface; 6 is a fan


def read_glb(content):
    """GLB: the triangles of the scene that the file shows, each where its nodes put it, and nothing else of it."""
    magic, version, length, size, chunk = struct.unpack("<4sIII4s", content[:20].ljust(20, b"\0"))
    begins = (magic, version, chunk) == (b"glTF", 2, b"JSON")
    refuse(not begins, "does not begin as a GLB file of version 2 does; export it again")
    whole_file = 20 + size <= length <= len(content)
    refuse(not whole_file, f"promises {length} bytes and holds {len(content)}; it is cut short, export it again")
    gltf = json.loads(content[20 : 20 + size])
    for extension in gltf.get("extensionsRequired", []):
        needless = extension.startswith(HARMLESS)
        refuse(not needless, f"requires {extension}, which is not read here; export it without")
    vertices, triangles, total = [np.empty((0, 3))], [np.empty((0, 3), np.int64)], 0
    for node, place in shown_nodes(gltf):
        if "mesh" not in node:
            continue
        mesh = gltf["meshes"][node["mesh"]]
        check_still(node, mesh)
        for primitive in mesh["primitives"]:
            if primitive.get("mode", TRIANGLES) < TRIANGLES:
                continue
            points, faces = read_primitive(gltf, content[28 + size : length], primitive)
            if np.abs(place - np.eye(4)).max() >= 1e-8:
                points = (place @ np.column_stack([points, np.ones(len(points))]).T).T[:, :3]
                faces = faces[:, ::-1] if np.linalg.det(place[:3, :3]) < 0 else faces  # mirrored
            vertices.append(points)
            triangles.append(faces + total)
            total += len(points)
    return np.concatenate(vertices), np.concatenate(triangles)


def shown_nodes(gltf):
    """(node, its place (4, 4) in the scene) of all nodes of the scene that the file shows."""
    scenes = gltf.get("scenes", [])
    roots = scenes[gltf.get("scene", 0)].get("nodes", []) if scenes else []
    seen, todo = set(), [(number, np.eye(4)) for number in roots]
    while todo:
        number, place = todo.pop()
        refuse(number in seen, f"its node {number} has two parents; export it again")
        seen.add(number)
        node = gltf["nodes"][number]
        place = place @ own_place(node)
        todo += [(child, place) for child in node.get("children", [])]
        yield node, place


def own_place(node):
    """The place (4, 4) of a node in its parent: a matrix, or scaled, then turned, then moved."""
    from trimesh.transformations import quaternion_matrix  # here, since few files need it

    x, y, z, w = node.get("rotation", (0, 0, 0, 1))
    moved = np.eye(4)
    moved[:3, 3] = node.get("translation", (0, 0, 0))
    matrix = np.reshape(node.get("matrix", np.eye(4)), (4, 4)).T  # it is stored by columns
    return matrix @ moved @ quaternion_matrix((w, x, y, z)) @ np.diag([*node.get("scale", (1, 1, 1)), 1.0])


def check_still(node, mesh):
    """Refuse a mesh whose shape or number is not what its vertices and the node's transform say."""
    morphed = any(node.get("weights", mesh.get("weights", [])))
    several = "EXT_mesh_gpu_instancing" in node.get("extensions", {})
    refuse("skin" in node, "holds a mesh bent by a skeleton; apply the pose and export it again")
    refuse(morphed, "holds a mesh bent by morph targets; apply them and export it again")
    refuse(several, "uses EXT_mesh_gpu_instancing, which is not read here; export it without")


def read_primitive(gltf, binary, primitive):
    """Vertices and triangles of one part of a mesh."""
    vertices = read_accessor(gltf, binary, primitive["attributes"]["POSITION"], primitive).astype(np.float64)
    indices = np.arange(len(vertices))
    if "indices" in primitive:
        indices = read_accessor(gltf, binary, primitive["indices"], primitive).astype(np.int64).reshape(-1)
    last, mode = indices.max(initial=-1), primitive.get("mode", TRIANGLES)
    refuse(last >= len(vertices), f"a face refers to vertex {last} of {len(vertices)}; export the mesh again")
    refuse(mode > STRIP, "holds a triangle fan, which is not read here; export it with plain triangles")
    if mode == TRIANGLES:
        return vertices, indices.reshape(-1, 3)
    triangles = np.stack([indices[:-2], indices[1:-1], indices[2:]], axis=1)
    triangles[1::2] = triangles[1::2, ::-1]  # to face as their neighbours
    return vertices, triangles


def read_accessor(gltf, binary, number, primitive):
    """The numbers (n, 1 or 3) that an accessor of a primitive names."""
    accessor = gltf["accessors"][number]
    if "sparse" in accessor or accessor.get("normalized"):
        what = "sparse" if "sparse" in accessor else "normalized"
        raise UserError(f"holds a {what} accessor, which is not read here; export it without")
    view = gltf["bufferViews"][accessor["bufferView"]] if "bufferView" in accessor else primitive
    if view is primitive or view.get("extensions"):
        packed = " ".join(view.get("extensions", {})) or "no buffer"
        raise UserError(f"holds its numbers in {packed}, which is not read here; export it without compression")
    uri = gltf["buffers"][view["buffer"]].get("uri")
    if uri is not None:
        if not uri.startswith("data:"):
            raise UserError("holds its numbers in another file, which is not opened; export it as one file")
        binary = base64.b64decode(uri.partition(",")[2])
    kind, width = np.dtype(NUMBERS[accessor["componentType"]]), {"SCALAR": 1, "VEC3": 3}[accessor["type"]]
    content = binary[view.get("byteOffset", 0) :][: view["byteLength"]]
    strides = view.get("byteStride") or kind.itemsize * width, kind.itemsize
    return np.ndarray((accessor["count"], width), kind, content, accessor.get("byteOffset", 0), strides)


READERS = {".obj": read_obj, ".stl": read_stl, ".ply": read_ply, ".off": read_off, ".glb": read_glb}
