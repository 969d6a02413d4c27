"""Mesh files in all their dialects: one function per format from the bytes of a file to its polygons.

Each gives vertices (V, 3) float64 as they are stored, every part where the file puts it; how many corners each polygon
has, sizes (F,); and the vertices at all corners, one polygon after the other, counted from 0. What cannot be read so,
or is cut short, is a `UserError` that says why. Numbers of vertices and faces in messages count from 0.
"""

import codecs
import io
import itertools
import json
import re
import struct
from typing import NamedTuple

import numpy as np

from cli.errors import UserError, refuse

# ---------------------------------------------------------------- text
# Encodings in use differ in comments and names only, which nobody reads: text is bytes here.
PADDING = b"\0\x1a \t"  # what DOS and others put after the end of a text


# Microsoft's C spelt what is no number 1.#IND
COMMENT = re.compile(rb"#(?!(?<=1\.#)(?i:ind|inf|[qs]nan))[^\n]*")


def rows(text):
    """The fields of each line that has any, for every kind of line end and without comments (from # on)."""
    text = text.rstrip(PADDING).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return filter(None, map(bytes.split, COMMENT.sub(b"", text).split(b"\n")))


def numbers(fields):
    """Fields of a text file as float64, nan for what is no number."""

    def number(field):
        try:
            return float(field)
        except ValueError:
            return np.nan

    try:
        return np.array([*map(float, fields)], dtype=np.float64)
    except ValueError:
        return np.array([*map(number, fields)])


def whole_numbers(fields):
    """Fields of a text file as whole numbers in float64."""
    try:
        return np.array([*map(int, fields)], dtype=np.float64)
    except (ValueError, OverflowError):
        wrong = next((field for field in fields if not field.lstrip(b"+-").isdigit()), fields[0])
        raise UserError(f"'{quoted(wrong)}' stands where a whole number must stand; export it again") from None


def quoted(field):
    """A field of a text file as a message quotes it."""
    return field[:20].decode("ascii", errors="replace")


def coordinates(fields):
    """Vertices (V, 3) from x, y and z of each as a file spells them, one after the other; nan for no number."""
    return numbers(fields).reshape(-1, 3)


def is_over(content, end):
    """Whether a binary file holds nothing from byte `end` on: padding at most, or a stray byte or three."""
    more = content[end:]
    shifted = more and content.count(b"\r\n") == len(more)  # a copy as text has put a CR before every LF
    return len(content) >= end and not shifted and (len(more) < 4 or not more.strip(PADDING + b"\r\n"))


def check_end(text, num_vertices, sizes, corners):
    """Refuse a last line without line end where something may be missing.

    That is where vertices have no face, and where its last number could have more digits or other faces more corners.
    """
    last = re.split(rb"[\r\n]", text.rstrip(PADDING)[-1000:])[-1]
    if not last or b"#" in last or not len(sizes) or sizes[-1] < 3:
        return
    end = last.split()[-1].lstrip(b"-")
    longer = 10 * int(end) <= num_vertices if end.isdigit() else b"/" not in end
    if longer or sizes[-1] < sizes.max() or len(np.unique(corners)) < num_vertices:
        raise UserError("may be cut short in its last line; export it again, or end that line if it is whole")


# ---------------------------------------------------------------- OBJ
def read_obj(content):
    """OBJ: faces may count from 1, or back from the last vertex so far (-1); parts may come in any order.

    An OBJ says nowhere how much it holds: one that is cut between two lines cannot be told from a whole one.
    """
    text, places, corners, sizes, seen = content.removeprefix(codecs.BOM_UTF8), [], [], [], []
    for row in rows(text):
        key = row[0].lower()
        if row[-1].endswith(b"\\") and key in (b"v", b"f", b"fo"):
            raise UserError(f"a '{key.decode()}' line goes on behind a backslash; export it with whole lines")
        if key == b"v":
            places += row[1:4] if len(row) > 3 else [*row, b"", b"", b""][1:4]  # empty where one is missing
        elif key in (b"f", b"fo"):
            corners += row[1:]
            sizes.append(len(row) - 1)
            seen.append(len(places))
    if b"/" in text:  # corners are "v", "v/t", "v//n" or "v/t/n"
        corners = [field.partition(b"/")[0] for field in corners]
    vertices, sizes, corners = coordinates(places), np.array(sizes, dtype=np.int64), whole_numbers(corners)
    if not corners.all():
        face = np.repeat(np.arange(len(sizes)), sizes)[corners == 0][0]
        raise UserError(f"face {face} refers to vertex 0, but OBJ counts from 1; add 1 to all numbers")
    corners = np.where(corners > 0, corners - 1, np.repeat(seen, sizes) // 3 + corners)
    check_end(text, len(vertices), sizes, corners)
    return vertices, sizes, corners


# ---------------------------------------------------------------- OFF
def read_off(content):
    """OFF: a line per vertex and per face, whatever colours, normals or textures follow on it; a header or none."""
    text = content.removeprefix(codecs.BOM_UTF8)
    lines = list(rows(text))
    start = re.fullmatch(rb"(?:(?:ST)?C?N?OFF)?(\d*)", lines[0][0], re.IGNORECASE) if lines else None
    refuse(not start, "does not begin as a text OFF file of points in space does; export it again")
    # the counts may follow on the header's line, or even without a space in between
    lines[0] = [count for count in (start[1], *lines[0][1:]) if count]
    counts, *lines = lines if lines[0] else lines[1:] or [[]]
    refuse(len(counts) < 2, "its numbers of vertices and faces are missing; export it again")
    num_vertices, num_faces = map(int, whole_numbers(counts[:2]))
    kept = 0 <= num_vertices <= num_vertices + num_faces == len(lines)
    promise = f"promises {num_vertices} vertices and {num_faces} faces"
    refuse(not kept, f"{promise}, but {len(lines)} lines follow; export it again")
    vertices, faces = [field for line in lines[:num_vertices] for field in [*line, b"", b""][:3]], lines[num_vertices:]
    sizes = [*map(int, whole_numbers([face[0] for face in faces]))]
    polygons = [face[1 : max(0, size) + 1] for face, size in zip(faces, sizes)]
    cut = next((number for number, size in enumerate(sizes) if len(polygons[number]) != size), None)
    refuse(cut is not None, f"face {cut} is cut short; export it again")
    sizes, corners = np.array(sizes, dtype=np.int64), whole_numbers([*itertools.chain.from_iterable(polygons)])
    check_end(text, num_vertices, sizes, corners)
    return coordinates(vertices), sizes, corners


# ---------------------------------------------------------------- STL
FACET = b"facet normal x y z outer loop vertex x y z vertex x y z vertex x y z endloop endfacet".split()
BINARY_FACET = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
WORDS = [i for i, word in enumerate(FACET) if len(word) > 1]


def read_stl(content):
    """STL: binary where the length is what the header's count says, or a little more; else text of solids."""
    count = int.from_bytes(content[80:84], "little")
    if is_over(content, 84 + BINARY_FACET.itemsize * count):
        vertices = np.frombuffer(content, BINARY_FACET, count, 84)["corners"].reshape(-1, 3).astype(np.float64)
        return vertices, np.full(count, 3), np.arange(3 * count)
    text = content.removeprefix(codecs.BOM_UTF8).lower()
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
    starts = range(0, len(fields), len(FACET))
    if len(fields) % len(FACET) or any({*fields[i :: len(FACET)]} - {FACET[i]} for i in WORDS):
        wrong = (n for n, at in enumerate(starts) if any(fields[at + i : at + i + 1] != [FACET[i]] for i in WORDS))
        raise UserError(f"face {next(wrong)} is not a 'facet normal' of three vertices; export it again")
    vertices = coordinates([field for at in starts for i in (8, 12, 16) for field in fields[at + i : at + i + 3]])
    return vertices, np.full(len(starts), 3), np.arange(len(vertices))


# ---------------------------------------------------------------- PLY
PLY_TYPES = {
    "char": "i1", "short": "i2", "int": "i4", "int8": "i1", "int16": "i2", "int32": "i4", "int64": "i8",
    "uchar": "u1", "ushort": "u2", "uint": "u4", "uint8": "u1", "uint16": "u2", "uint32": "u4", "uint64": "u8",
    "float": "f4", "double": "f8", "float32": "f4", "float64": "f8",
}  # fmt: skip
BYTE_ORDERS = {"ascii": None, "binary_little_endian": "<", "binary_big_endian": ">"}
NEEDED = {"vertex": ["x", "y", "z"], "face": ["vertex_indices"]}


class Element(NamedTuple):
    """What a PLY header says of one kind of rows."""

    name: str
    count: int
    properties: dict  # name -> (type of its numbers, type of the length of a list or None)


def read_ply(content):
    """PLY: text or binary, elements in any order, polygons of any size."""
    elements, order, body = ply_header(content.removeprefix(codecs.BOM_UTF8))
    text = body if order is None else b"\n"
    if order is None:  # read as if it were binary with doubles alone
        body, order = numbers(text.rstrip(b"\0\x1a").split()).tobytes(), "="
        for element in elements:
            element.properties.update(
                {name: ("f8", length and "f8") for name, (_, length) in element.properties.items()}
            )
    vertices, polygons, at = np.empty((0, 3)), [], 0
    for element in elements:
        kind = np.dtype([(name, order + kind) for name, (kind, _) in element.properties.items()])
        if any(length for _, length in element.properties.values()):
            found, at = ply_polygons(element, order, body, at)
            polygons += found if element.name == "face" else []
        elif element.count:
            whole = (len(body) - at) // kind.itemsize
            refuse(whole < element.count, broken(element, whole))
            table = np.frombuffer(body, kind, element.count, at)
            at += table.nbytes
            if element.name == "vertex":
                vertices = np.stack([table[axis].astype(np.float64) for axis in "xyz"], axis=1)
    refuse(not is_over(body, at), "goes on after all that its header promises; export it again")
    sizes, corners = np.array([*map(len, polygons)], dtype=np.int64), np.concatenate([np.empty(0), *polygons])
    check_end(text, len(vertices), sizes, corners)
    return vertices, sizes, corners


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
        lists = name == "vertex" and any(length for _, length in properties.values())
        refuse(lists, "holds lists in its vertices, which are not read here; export it without")
        refuse(name == "tristrips", "holds triangle strips, which are not read here; export it with plain triangles")
    refuse(order == "" or not elements, "its header names no format or no data; export it again")
    return elements, order, content[end.end() :]


def ply_polygons(element, order, body, at):
    """The `vertex_indices` (size,) in each row of a PLY element whose rows begin at byte `at`, and the next byte."""
    found = []
    for row in range(element.count):
        try:
            for name, (kind, length) in element.properties.items():
                size = np.frombuffer(body, order + length, 1, at).item() if length else 1
                at += int(length[1]) if length else 0
                values = np.frombuffer(body, order + kind, int(size), at)
                at += values.nbytes
                if size != len(values):  # not a whole number, or under 0, which takes all that is left
                    raise ValueError
                if name == "vertex_indices":
                    found.append(values)
        except (ValueError, OverflowError):  # behind the end; not a number; infinite
            raise UserError(broken(element, row)) from None
    return found, at


def broken(element, row):
    """What is said of a PLY element whose data ends in a row."""
    return f"ends or is broken in '{element.name}' {row} of {element.count}; export it again"


# ---------------------------------------------------------------- GLB
HARMLESS = ("KHR_materials_", "KHR_texture_", "EXT_texture_", "KHR_lights_", "KHR_mesh_quantization")  # beginnings
ELSEWHERE = {"KHR_draco_mesh_compression", "EXT_meshopt_compression", "EXT_mesh_gpu_instancing"}  # numbers of meshes
TRIANGLES = 4  # a primitive's mode; smaller ones are points and lines, which have no surface; 5 strips, 6 fans


def read_glb(content):
    """GLB: the triangles of the scene that the file shows, each where its nodes put it, as trimesh reads them."""
    import trimesh  # here, since few files need it

    magic, version, length, size, chunk = struct.unpack("<4sIII4s", content[:20].ljust(20, b"\0"))
    begins = (magic, version, chunk) == (b"glTF", 2, b"JSON")
    refuse(not begins, "does not begin as a GLB file of version 2 does; export it again")
    whole_file = 20 + size <= length <= len(content)
    refuse(not whole_file, f"promises {length} bytes and holds {len(content)}; it is cut short, export it again")
    check_glb(json.loads(content[20 : 20 + size]))
    file = io.BytesIO(content[:length])
    scene = trimesh.load_scene(file, file_type="glb", process=False, skip_materials=True)
    for part in scene.geometry.values():
        corners, count = getattr(part, "faces", np.empty(0)), len(part.vertices)  # points and lines have no faces
        wrong = corners[(corners < 0) | (corners >= count)]
        refuse(len(wrong), f"a face refers to vertex {wrong.max(initial=-1)} of {count}; export the mesh again")
    mesh = scene.to_mesh()
    return np.array(mesh.vertices), np.full(len(mesh.faces), 3), np.array(mesh.faces).ravel()


def check_glb(gltf):
    """Refuse by its name what trimesh leaves out or takes for something else."""
    nodes, meshes = gltf.get("nodes", []), gltf.get("meshes", [])
    primitives = [primitive for mesh in meshes for primitive in mesh["primitives"]]
    needed = [number for p in primitives for number in (p["attributes"]["POSITION"], p.get("indices"))]
    accessors = [gltf["accessors"][number] for number in needed if number is not None]
    roots = {node for scene in gltf.get("scenes", []) for node in scene.get("nodes", [])}
    below = [*roots, *(child for node in nodes for child in node.get("children", []))]
    required = [name for name in gltf.get("extensionsRequired", []) if not name.startswith(HARMLESS)]
    extensions = " ".join({*required, *ELSEWHERE.intersection(gltf.get("extensionsUsed", []))})
    strips = any(p.get("mode", TRIANGLES) > TRIANGLES for p in primitives)
    reasons = {
        f"uses {extensions}, which is not read here; export it without": extensions,
        "has nodes with two parents; export it again": len(below) > len({*below}),
        "holds a mesh bent by a skeleton; apply the pose and export it again": any("skin" in node for node in nodes),
        "holds a mesh bent by morph targets; apply them and export it again":
            any(any(bent.get("weights", ())) for bent in (*nodes, *meshes)),
        "holds triangle strips or fans, which are not read here; export it with plain triangles": strips,
        "holds its numbers in another file, which is not opened; export it as one file":
            any("uri" in buffer for buffer in gltf.get("buffers", [])),
        "holds normalized or sparse accessors or none, which are not read here; export it without":
            any("sparse" in a or a.get("normalized") or "bufferView" not in a for a in accessors),
    }  # fmt: skip
    for reason, given in reasons.items():
        refuse(given, reason)


READERS = {".obj": read_obj, ".stl": read_stl, ".ply": read_ply, ".off": read_off, ".glb": read_glb}
