"""Meshes in every dialect: the solid that was written by rule is read, or the file is refused for a cause that is told.

The solid is a U-shaped bracket of 16 vertices. Front and back are cut into convex pieces; as one polygon each, of 8
corners, they are refused. A lost face, a fan over a notch, a shifted index or a lost digit shows in its box or area.
"""

import contextlib
import itertools
import json
import re
import struct

import numpy as np
import pytest
from rules import ADVICE

from benchmark.clouds import folder_clouds
from cli.errors import UserError
from files.polygons import triangulate
from files.reading import parse_mesh, read_bytes

PROFILE = [(0, 0), (10, 0), (10, 10), (8, 10), (8, 2), (2, 2), (2, 10), (0, 10)]  # cm
VERTICES = np.array([(x, y, z) for z in (1, 4) for x, y in PROFILE]) / 100 + (0.015, -0.025, 0)  # (16, 3) m
PIECES = [(0, 1, 4, 5), (1, 2, 3, 4), (0, 5, 6, 7)]  # the profile, cut into convex ones
SIDES = [(i, (i + 1) % 8, (i + 1) % 8 + 8, i + 8) for i in range(8)]
QUADS = [piece[::-1] for piece in PIECES] + [tuple(i + 8 for i in piece) for piece in PIECES] + SIDES  # 14 faces
TRIANGLES = [(q[0], q[i], q[i + 1]) for q in QUADS for i in (1, 2)]  # 28 faces
MIXED = [(5, 4, 1, 0, 7, 6), QUADS[1], *QUADS[3:10], *TRIANGLES[20:]]  # 6 (an L from its inner corner on), 4 and 3
OCTAGONS = [tuple(range(7, -1, -1)), tuple(range(8, 16)), *SIDES]  # 10 faces
FACES = {"triangles": TRIANGLES, "quads": QUADS, "mixed polygons": MIXED, "octagons": OCTAGONS}
SHIFT = np.array([0.2, 0, 0])  # m, between two brackets


# ---------------------------------------------------------------- writers


def obj(faces=TRIANGLES, corner="{}", base=1, number="{:.3f}", head=""):
    """OBJ lines; corner: how a face spells a vertex counted from `base`."""
    rows = [["v", *map(number.format, v)] for v in VERTICES]
    rows += [["f", *(corner.format(i + base) for i in face)] for face in faces]
    return head + "".join(" ".join(row) + "\n" for row in rows)


def off(faces=TRIANGLES, head="OFF\n{} {} 0\n", number="{:.3f}", more="", colour=""):
    """OFF lines; more: behind every vertex, colour: behind every face."""
    rows = [[*map(number.format, v), more] for v in VERTICES] + [[len(f), *f, colour] for f in faces]
    return head.format(len(VERTICES), len(faces)) + "".join(" ".join(map(str, row)).rstrip() + "\n" for row in rows)


def stl(faces=TRIANGLES, name=" bracket", number="{:.3f}", normal="0 0 1"):
    """ASCII STL lines of one solid."""
    text = f"solid{name}\n"
    for face in faces:
        corners = "".join("   vertex " + " ".join(map(number.format, VERTICES[i])) + "\n" for i in face)
        text += f" facet normal {normal}\n  outer loop\n{corners}  endloop\n endfacet\n"
    return text + f"endsolid{name}\n"


def binary_stl(head=b"", attribute=0):
    facets = (struct.pack("<12fH", 0, 0, 1, *VERTICES[list(face)].ravel(), attribute) for face in TRIANGLES)
    return head.ljust(80) + struct.pack("<I", len(TRIANGLES)) + b"".join(facets)


PLY_TYPES = {"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4",
             "double": "f8", "uint8": "u1", "int32": "i4", "float32": "f4"}  # fmt: skip
ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}


def points(kind="float", before=(), after=(), value=0.0):
    """The element of the vertices of a PLY, with more properties of `value` before and after x, y and z."""
    rows = [[value] * len(before) + list(v) + [value] * len(after) for v in VERTICES.round(3).tolist()]
    return "vertex", [*before, *(f"{kind} {axis}" for axis in "xyz"), *after], rows


def polygons(faces=TRIANGLES, kinds="uchar int", name="vertex_indices", before=(), after=()):
    """The element of the faces of a PLY, with more properties of 1 before and after the list."""
    rows = [[1] * len(before) + [list(face)] + [1] * len(after) for face in faces]
    return "face", [*before, f"list {kinds} {name}", *after], rows


def ply(*elements, order="ascii", head="", end="\n"):
    """A PLY file of elements (name, properties, rows); a list in a row is a list property."""
    header, body = f"ply\nformat {order} 1.0\n{head}", b""
    for name, fields, rows in elements or (points(), polygons()):
        header += f"element {name} {len(rows)}\n" + "".join(f"property {field}\n" for field in fields)
        for row in rows:
            numbers = []  # (type, number)
            for field, value in zip(fields, row):
                *kinds, _ = field.removeprefix("list ").split()
                several = [(kinds[0], len(value)), *((kinds[1], x) for x in value)] if len(kinds) > 1 else None
                numbers += several or [(kinds[0], value)]
            if order == "ascii":
                body += (" ".join(f"{x:g}" for _, x in numbers) + end).encode()
            else:
                body += b"".join(np.array(x).astype(ORDERS[order] + PLY_TYPES[kind]).tobytes() for kind, x in numbers)
    content = (header + "end_header\n").replace("\n", end).encode() + body
    return content.decode() if order == "ascii" else content


class Glb:
    """A .glb being put together."""

    def __init__(self):
        self.gltf, self.binary = {"asset": {"version": "2.0"}, "accessors": [], "bufferViews": [], "meshes": []}, b""

    def accessor(self, array, kind="f4", stride=0, start=0, **more):
        """The number of a new accessor of an array (n,) or (n, 3); stride: bytes per row, start: of the first."""
        rows = np.asarray(array).astype("<" + kind)
        content = b"\xaa" * start + b"".join(row.tobytes().ljust(stride, b"\xaa") for row in rows)
        view = {"buffer": 0, "byteOffset": len(self.binary), "byteLength": len(content)}
        self.gltf["bufferViews"].append(view | ({"byteStride": stride} if stride else {}))
        self.binary += content + bytes(-len(content) % 4)
        code = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "u4": 5125, "f4": 5126}[kind]
        shape = {"count": len(rows), "type": "VEC3" if rows.ndim > 1 else "SCALAR", "componentType": code}
        view = {"bufferView": len(self.gltf["bufferViews"]) - 1, "byteOffset": start}
        self.gltf["accessors"].append(view | shape | more)
        return len(self.gltf["accessors"]) - 1

    def primitive(self, vertices=VERTICES, faces=TRIANGLES, kind="u4", **more):
        """A primitive; vertices: an array, or the number of its accessor; faces: None for no indices."""
        number = vertices if isinstance(vertices, int) else self.accessor(vertices)
        indices = {} if faces is None else {"indices": self.accessor(np.ravel(faces), kind)}
        return {"attributes": {"POSITION": number}} | indices | more

    def mesh(self, *primitives, **more):
        """The number of a new mesh, of the bracket where no primitive is given."""
        self.gltf["meshes"].append({"primitives": list(primitives) or [self.primitive()]} | more)
        return len(self.gltf["meshes"]) - 1

    def content(self, *nodes, roots=(0,), uri=None, **more):
        """The file, with these nodes, of which the `roots` are shown."""
        gltf = self.gltf | {"nodes": list(nodes), "scene": 0, "scenes": [{"nodes": list(roots)}]} | more
        gltf["buffers"] = [{"byteLength": len(self.binary)} | ({"uri": uri(self.binary)} if uri else {})]
        text = json.dumps(gltf).encode()
        text += b" " * (-len(text) % 4)
        binary = b"" if uri else struct.pack("<I4s", len(self.binary), b"BIN\0") + self.binary
        return struct.pack("<4sIII4s", b"glTF", 2, 20 + len(text) + len(binary), len(text), b"JSON") + text + binary


def glb(*primitives, node=None, **more):
    """A .glb of one mesh; primitives: functions of the Glb; node: more keys of the only node."""
    made = Glb()
    return made.content({"mesh": made.mesh(*(make(made) for make in primitives))} | (node or {}), **more)


# ---------------------------------------------------------------- dialects: (format: name, content, cause of a refusal)

TEXTS = {".obj": obj, ".off": off, ".stl": stl, ".ply": ply}
ENDS = {  # what any text may be written in
    "CR LF": lambda text: text.replace("\n", "\r\n"), "CR": lambda text: text.replace("\n", "\r"),
    "no end of the last line": lambda text: text[:-1], "zeros at the end": lambda text: text + "\0" * 20,
    "a DOS mark at the end": lambda text: text.replace("\n", "\r\n") + "\x1a",
    "a byte-order mark": lambda text: text.encode("utf-8-sig"),
}  # fmt: skip
SPACES = {  # in what follows a header
    "tabs": lambda text: text.replace(" ", "\t"), "two spaces": lambda text: text.replace(" ", "  "),
    "tabs and spaces": lambda text: text.replace(" ", " \t "), "a form feed": lambda text: text.replace(" ", "\f"),
    "some tabs": lambda text: text.replace(" 0.0", "\t0.0"), "indented": lambda text: text.replace("\n", "\n   "),
    "indented by tabs": lambda text: text.replace("\n", "\n\t"),
    "spaces at ends": lambda text: text.replace("\n", " \n"), "empty lines": lambda text: text.replace("\n", "\n\n"),
}  # fmt: skip
COMMENTS = {  # in all text but PLY
    f"comments {where} {what!r}": lambda text, what=what, glue=glue: text.replace("\n", glue + what + "\n")
    for what in ("# a bracket", "# v 9 9 9", "#f 1 2 3", "#3 0 1 2", "# C:\\meshes\\")
    for where, glue in (("on lines", " "), ("between lines", "\n"), ("indented", "\n   "))
}
NUMBERS = {"exponents": "{:.4e}", "capital exponents": "{:.4E}", "signs": "{:+.4f}", "17 digits": "{:.17g}"}
# what to stumble over: a backslash as a part of a letter, what other encodings take for a line end
WORD = "表".encode("shift_jis") + "Åf 1 2 3 à".encode() + "àf 1 2 3".encode("cp437") + "ü".encode("latin-1")
NAMED = {  # where it may stand
    "a comment.obj": obj(head="# WORD\n"), "a name.obj": obj(head="o WORD\n"),
    "a material.obj": obj(head="usemtl WORD\n"), "a name.stl": stl(name=" WORD"),
    "a comment.off": off(head="OFF\n# WORD\n{} {} 0\n"), "a comment.ply": ply(head="comment WORD\n"),
}  # fmt: skip


def text_dialects():
    for suffix, write in TEXTS.items():
        for name, faces in FACES.items() if suffix != ".stl" else ():
            content = write(*([points(), polygons(faces)] if suffix == ".ply" else [faces]))
            yield f"{suffix}: {name}", content, "face 0 is not convex" if faces is OCTAGONS else None
        head, mark, body = write().rpartition("end_header\n")
        for name, change in ENDS.items():
            yield f"{suffix}: {name}", change(head + mark + body)
        for name, change in (SPACES | ({} if mark else COMMENTS)).items():
            yield f"{suffix}: {name}", head + mark + change(body)
        for name, number in {} if mark else NUMBERS.items():
            yield f"{suffix}: numbers with {name}", write(number=number)
        yield f"{suffix}: no zero before the point", head + mark + body.replace(" 0.", " .")
        yield f"{suffix}: decimal commas", head + mark + body.replace(".", ","), "three finite numbers"
    for place, text in NAMED.items():
        yield f"{place[-4:]}: no ASCII in {place[:-4]}", text.encode().replace(b"WORD", WORD)


def obj_dialects():
    lines = obj().splitlines(keepends=True)
    vertices, faces = "".join(lines[:16]), "".join(lines[16:])
    yield "UTF-16 without a mark", obj().encode("utf-16-le"), "no faces"
    yield "counted from 0", obj(base=0), "counts from 1"
    yield "counted back from the last vertex", obj(base=-16)
    back_and_forth = (obj(base=(1, -16)[i % 2]).splitlines(True)[16 + i] for i in range(28))
    yield "counted back and forth", vertices + "".join(back_and_forth)
    parts = ("".join(lines[i] for i in face) + f"f {' '.join(map(str, range(-len(face), 0)))}\n" for face in MIXED)
    yield "each face behind its own vertices, counted back", "".join(parts)
    yield "faces first", faces + vertices
    extra = "vt 0 0\nvn 0 0 1\n" * 16
    for corner in ("{0}/{0}", "{0}//{0}", "{0}/{0}/{0}", "{0}//", "{0}/-1/-1"):
        yield f"corners spelt {corner}", obj(MIXED, corner=corner, head=extra)
    yield "corners spelt in two ways", obj(head=extra).replace("f 8 ", "f 8/1 ")
    for word in ("g half", "usemtl red", "s 1", "g", "mtllib none.mtl"):
        yield f"'{word}' among the faces", "".join([*lines[:30], word + "\n", *lines[30:]])
    yield "lines, points, parameters and unknown words", obj(head="vp 0.5\nlod 2\nhello world\n") + "l 1 2\np 3\n"
    for start in ("f 8 ", "f 8", "f 8/1", "v 0.115 "):
        whole = obj().replace("f 8 ", "f 8/1 ") if "/" in start else obj()
        yield f"'{start}' goes on", whole.replace(start, start + "\\\n"), "line goes on behind a backslash"
    for more, count in ((" 0.5 0.5 0.5", 5), (" 1.0", 16)):
        yield f"colours or weights{more} of {count} vertices", vertices.replace("\n", more + "\n", count) + faces
    yield "a corner at what is no number", vertices.replace(" 0.010", " 1.#IND", 1) + faces, "three finite numbers"
    yield "points alone", vertices, "has no faces; export it with triangles, or save its points as an .npy cloud"
    yield "commas between numbers", obj().replace(" ", ", ").replace("v,", "v").replace("f,", "f"), ""
    yield "capital letters", obj().upper()
    yield "a vertex that no face uses", vertices + "v 90 90 90\n" + faces
    yield "a vertex of two numbers", vertices + "v 1 2\n" + faces, "three finite numbers"
    for line, cause in (("f 1 2", "2 corners"), ("f", "0 corners"), ("f 1 2 17", "vertex 16 of 16"),
                        ("f 1 2 -17", "vertex -1 of 16"), ("f a b c", "whole number"), ("f 1 3 2 4", "face 28 is not"),
                        ("f 1 2 99999999999999999999", "of 16")):  # fmt: skip
        yield f"'{line}' at the end", obj() + line + "\n", cause


OFF_HEADS = (
    "off\n{} {} 0\n", "Off\n{} {} 0\n", "OFF {} {} 0\n", "OFF{} {} 0\n", "{} {} 0\n", "OFF\n{} {}\n",
    "OFF\n\n{} {} 66\n\n", "  OFF  \n\t{}\t{}\t0  \n", "OFF # a bracket\n{} {} 0\n",
    "OFF\n# a bracket\n{} {} 0\n", "OFF\n{} {} 0 # counts\n", "# a bracket\nOFF\n{} {} 0\n#\n",
)  # fmt: skip
OFF_KINDS = (
    ("COFF", "255 0 0 255"), ("COFF", "0.5 0.5 0.5 1"), ("NOFF", "0 0 1"), ("CNOFF", "0 0 1 1 0 0 1"),
    ("STOFF", "0.5 0.5"), ("STCNOFF", "0 0 1 1 0 0 1 0 0"), ("coff", "1 0 0 1"), ("OFF", "255 0 0"),
)  # fmt: skip


def off_dialects():
    for head in OFF_HEADS:
        yield f"begins {head!r}", off(head=head)
    for head, more in OFF_KINDS:
        yield f"{head} with {more} behind vertices", off(head=head + "\n{} {} 0\n", more=more)
    for colour in ("255 0 0", "255 0 0 255", "0.5 0.5 0.5", "7", "1.0 0 0 0.5"):
        yield f"faces coloured {colour}", off(MIXED, colour=colour)
    yield "four dimensions", off(head="4OFF\n{} {} 0\n", more="1"), "does not begin"
    yield "binary", b"OFF BINARY\n" + bytes(400), "vertices and faces are missing"
    yield "no counts", "OFF\n", "missing"
    yield "counted from 1", off([tuple(i + 1 for i in face) for face in TRIANGLES]), "vertex 16 of 16"
    yield "a face of two corners", off([*TRIANGLES, (0, 1)]), "2 corners"
    for counts, cause in (("16 29", "promises"), ("16 27", "promises"), ("17 28", "promises"), ("15 29", "")):
        yield f"promises {counts}", off().replace("16 28", counts), cause


MORE = (  # bytes after the last facet or face, and why they are refused
    *((more, None) for more in (b"\n", b"\r\n", b"\0\0", b"\x1a", b"\0" * 200, b" \n" * 50, b"end")),
    (b"more of it" * 10, ""),
)
NO_NUMBERS = [" ".join([word] * 3) for word in ("-nan(ind)", "-1.#IND", "1.#QNAN", "1.#INF", "-1.#IND00", "1.#SNAN")]


def stl_dialects():
    yield "capital letters", stl().upper()
    for name in ("", " solid vertex 1 2 3", " facet normal", " endsolid", " a # b", " outer loop endloop", " C:\\"):
        yield f"called '{name}'", stl(name=name)
    yield "a line per field", stl().replace(" 0.", "\n0.")
    yield "empty lines first", "\n\n" + stl()
    yield "two solids", stl(TRIANGLES[:14], " a") + stl(TRIANGLES[14:], " b")
    yield "an empty solid first", stl([]) + stl()
    for normal in ("nan nan nan", *NO_NUMBERS, "1e-1 0.0 -1E+00"):
        yield f"normals {normal}", stl(normal=normal)
    for head, attribute in ((b"", 0), (b"solid bracket", 0), (b"COLOR=\x01\x02\x03\xff", 0x7FFF)):
        yield f"binary, begins {head}", binary_stl(head, attribute)
    yield "binary, cut short", binary_stl()[:-1], "header says"
    for more, cause in MORE:
        yield f"binary, {more[:9]} and {len(more)} bytes in all after it", binary_stl() + more, cause
    yield "binary, copied as text", binary_stl(attribute=10).replace(b"\n", b"\r\n"), "header says"
    yield "binary of more facets than it says", binary_stl().replace(b"\x1c\0\0\0", b"\x1b\0\0\0", 1), "header says"
    yield "a facet without a normal", stl().replace("facet normal 0 0 1", "facet", 1), "face 0"
    yield "a facet of four vertices", stl().replace("endloop", "vertex 0 0 0\nendloop", 1), "face 0"
    yield "a facet of two vertices", stl().replace("   vertex 0.015 -0.025 0.010\n", "", 1), ""
    yield "a last facet without an end", stl().replace("  endloop\n endfacet\nendsolid", "endsolid"), "face 27"
    yield "a solid without an end", stl(TRIANGLES[:14]) + stl(TRIANGLES[14:]).rsplit("endsolid", 1)[0], "no end"


def ply_dialects():
    looks = [f"float {name}" for name in ("nx", "ny", "nz")], ["uchar red", "uchar green", "uchar blue"]
    edges = [[0, 1], [1, 2]]
    camera = "camera", ["float view_px", "int w"], [[0.5, 3]]
    two_lists = ["list uchar int vertex_indices", "list uchar float texcoord"]
    whole = {name: faces for name, faces in FACES.items() if faces is not OCTAGONS}
    elements = {name: [points(), polygons(faces)] for name, faces in whole.items()} | {
        "triangles, then quads": [points(), polygons(TRIANGLES[:20] + QUADS[10:])],
        "faces first": [polygons(), points()], "polygons first": [polygons(MIXED), points()],
        "doubles": [points("double"), polygons()],
        "other names of types": [points("float32"), polygons(kinds="uint8 int32")],
        "vertex_index": [points(), polygons(name="vertex_index")],
        "normals and colours": [points(after=sum(looks, [])), polygons()],
        "normals that are none": [points(after=looks[0], value=np.nan), polygons()],
        "properties first": [points(before=["uchar flag", "double quality"]), polygons()],
        "properties of faces": [points(), polygons(before=["uchar flag"], after=["float area"])],
        "a list beside the corners": [points(), ("face", two_lists, [[list(f), [0.0] * 6] for f in TRIANGLES])],
        "an empty list beside": [points(), ("face", two_lists[::-1], [[[], list(f)] for f in TRIANGLES])],
        "edges": [points(), polygons(), ("edge", ["int vertex1", "int vertex2"], edges)],
        "no edges": [points(), polygons(), ("edge", ["int vertex1", "int vertex2"], [])],
        "a camera between": [points(), camera, polygons()],
    }  # fmt: skip
    for kinds in ("uchar uint", "int int", "ushort short", "uchar uchar", "char ushort"):
        elements |= {f"{name} of {kinds}": [points(), polygons(faces, kinds)] for name, faces in whole.items()}
    heads = ("comment by hand\nobj_info x\n", "comment end_header\ncomment ply\n", "comment element face 3\n", "\n\n")
    refused = (
        ("face 28", "face 27", "goes on"), ("face 28\n", "face 29\n", "'face' 28 of 29"),
        ("vertex 16", "vertex 17", ""), ("float x", "half x", "not PLY"), ("float z", "float w", "lacks"),
    )  # fmt: skip
    for order in ORDERS:
        for name, given in elements.items():
            yield f"{order}: {name}", ply(*given, order=order)
        for head in heads:
            yield f"{order}: {head!r} in the header", ply(order=order, head=head)
        for end in ("\r\n", "\r"):
            yield f"{order}: lines end with {end!r}", ply(order=order, end=end)
        whole = ply(order=order)
        whole = whole.encode() if order == "ascii" else whole
        for old, new, cause in refused:
            yield f"{order}: {new!r} for {old!r}", whole.replace(old.encode(), new.encode(), 1), cause
        for corner in (16, -1):
            high = ply(points(), polygons([*TRIANGLES, (0, 1, corner)]), order=order)
            yield f"{order}: corner {corner}", high, f"vertex {corner} of 16"
        for name, more in (("no faces", ()), ("an empty list of faces", [polygons([])])):
            alone = ply(points(), *more, order=order)
            yield f"{order}: {name}", alone, "has no faces; export it with triangles, or save its points as an .npy"
        for more, cause in MORE if order != "ascii" else ():
            yield f"{order}: {more[:9]} and {len(more)} bytes in all after it", whole + more, cause
    head, mark, body = ply(points(), polygons(MIXED)).partition("end_header\n")
    yield "all in one line", head + mark + body.replace("\n", " ") + "\n"
    yield "four and a half corners", head + mark + body.replace("\n4 ", "\n4.5 ", 1), "is broken in 'face'"
    yield "a line per number", head + mark + body.replace(" ", "\n")
    yield "a comment among the numbers", head + mark + body.replace("\n3 ", "\n# faces\n3 ", 1), ""
    for normal in NO_NUMBERS:
        head, mark, body = ply(points(after=looks[0]), polygons()).partition("end_header\n")
        yield f"normals {normal}", head + mark + body.replace(" 0 0 0\n", f" {normal}\n", 16)


def glb_dialects():
    """How vertices and triangles are stored, and what is beside them."""
    for kind in ("u1", "u2", "u4"):
        yield f"indices of type {kind}", glb(lambda made, kind=kind: made.primitive(kind=kind))
    yield "no indices", glb(lambda made: made.primitive(VERTICES[np.ravel(TRIANGLES)], None))
    for stride, start in ((24, 0), (12, 8), (32, 12)):
        spread = {"stride": stride, "start": start}
        name = f"{stride} bytes from vertex to vertex, from {start} on"
        yield name, glb(lambda made, spread=spread: made.primitive(made.accessor(VERTICES, **spread)))
    halves = [lambda made, faces=faces: made.primitive(faces=faces) for faces in (TRIANGLES[:14], TRIANGLES[14:])]
    yield "two primitives", glb(*halves)
    lines = [lambda made, mode=mode: made.primitive(faces=[(0, 1)], mode=mode) for mode in range(4)]
    yield "points and lines beside triangles", glb(Glb.primitive, *lines)
    for mode, name in ((5, "a strip"), (6, "a fan")):
        yield name, glb(lambda made, mode=mode: made.primitive(faces=QUADS[0], mode=mode)), "triangle strips or fans"
    yield "an index too high", glb(lambda made: made.primitive(VERTICES[:8]), Glb.primitive), "refers to vertex"
    yield "sparse", glb(lambda made: made.primitive(made.accessor(VERTICES, sparse={"count": 16}))), "sparse"
    few = glb(lambda made: made.primitive(indices=made.accessor(np.ravel(TRIANGLES), "u4", sparse={"count": 4})))
    yield "sparse indices", few, "sparse"
    whole = {"extensionsRequired": ["KHR_mesh_quantization"]}
    for more, cause in (({}, None), ({"normalized": True}, "normalized")):

        def short(made, more=more):
            return made.primitive(made.accessor(np.round(VERTICES * 1000), "i2", 8, **more))

        yield f"whole numbers {more}, scaled", glb(short, node={"scale": [0.001] * 3}, **whole), cause
    yield "its numbers in another file", glb(uri=lambda _: "bracket.bin"), "another file"
    draco = {"extensions": {"KHR_draco_mesh_compression": {"bufferView": 0, "attributes": {"POSITION": 0}}}}
    beside = glb(lambda made: made.primitive(**draco), extensionsUsed=["KHR_draco_mesh_compression"])
    yield "Draco beside plain numbers", beside, "KHR_draco"
    lost = (b'"bufferView": 0, "byteOffset"', b'"bufferVxew": 0, "byteOffset"')
    yield "positions that are nowhere", glb().replace(*lost), "accessors or none"
    made = Glb()
    packed = {"mesh": made.mesh()}
    made.gltf["bufferViews"][1]["extensions"] = {"EXT_meshopt_compression": {"buffer": 0}}
    used = {"extensionsUsed": ["EXT_meshopt_compression"]}
    yield "meshopt", made.content(packed, **used), "EXT_meshopt_compression"
    yield "an unknown extension, required", glb(extensionsRequired=["EXT_unheard_of"]), "EXT_unheard_of"
    looks = ["KHR_materials_unlit", "KHR_texture_transform", "EXT_texture_webp", "KHR_lights_punctual"]
    yield "extensions of the looks, required", glb(extensionsRequired=looks)
    instances = {"EXT_mesh_gpu_instancing": {"attributes": {"TRANSLATION": 0}}}
    used = {"extensionsUsed": list(instances)}
    yield "instances", glb(node={"extensions": instances}, **used), "EXT_mesh_gpu_instancing"
    yield "a skeleton", glb(node={"skin": 0}, skins=[{"joints": [0]}]), "skeleton"
    for weight, cause in ((0, None), (0.5, "morph")):
        made = Glb()
        targets = made.primitive(targets=[{"POSITION": made.accessor(VERTICES)}])
        yield f"morph targets of weight {weight}", made.content({"mesh": made.mesh(targets, weights=[weight])}), cause
        yield f"morph targets of weight {weight} by the node", made.content({"mesh": 0, "weights": [weight]}), cause
    yield "version 1", glb().replace(b"glTF\2", b"glTF\1"), "version 2"
    yield "broken JSON", glb().replace(b'"scene"', b'"scene', 1), ""
    yield "nothing", Glb().content({}), "no faces"


def placed_dialects():
    """GLB: where nodes put their meshes."""
    turned = (VERTICES - (1, 2, 3))[:, [1, 2, 0]]
    matrix = [0, 0.01, 0, 0, 0, 0, 0.01, 0, 0.01, 0, 0, 0, 1, 2, 3, 1]  # columns: x to y, y to z, z to x
    for name, vertices, node in (
        ("turned", VERTICES[:, [1, 2, 0]], {"rotation": [0.5] * 4}),
        ("mirrored", VERTICES * (-1, 1, 1), {"scale": [-1, 1, 1]}),
        ("moved, turned and scaled", turned / 2, {"scale": [2] * 3, "rotation": [0.5] * 4, "translation": [1, 2, 3]}),
        ("by a matrix", turned * 100, {"matrix": matrix}),
    ):
        yield name, glb(lambda made, vertices=vertices: made.primitive(vertices), node=node)
    made = Glb()
    deep = {"translation": [100, 0, 0], "mesh": made.mesh(made.primitive(VERTICES * 1000 - (100, 0, 0)))}
    yield "moved in a scaled node", made.content({"scale": [0.001] * 3, "children": [1]}, {"children": [2]}, deep)
    made = Glb()
    below = {"mesh": made.mesh(made.primitive(VERTICES - (1, 0, 0)))}
    yield "below another node", made.content({"translation": [1, 0, 0], "children": [1]}, below)
    made = Glb()
    mesh = {"mesh": made.mesh()}
    moved = mesh | {"translation": SHIFT.tolist()}
    made.mesh(made.primitive(VERTICES[:3] + 9, [(0, 1, 2)]))  # not shown
    yield "twice", made.content(mesh, moved, roots=(0, 1)), None, 2
    yield "a node that belongs to nothing", made.content(mesh, moved)
    yield "the second scene", made.content(moved, mesh, scenes=[{"nodes": [0]}, {"nodes": [1]}], scene=1)
    yield "no scene", made.content(mesh, scenes=[]), ""
    yield "a node below itself", made.content(mesh | {"children": [0]}), "two parents"
    yield "a node below two", made.content(mesh, {"children": [0]}, {"children": [0]}, roots=(1, 2)), "two parents"


def dialects():
    """(format, name, content, cause where it is refused, number of brackets) of all."""
    makers = {"obj": obj_dialects, "off": off_dialects, "stl": stl_dialects, "ply": ply_dialects, "glb": glb_dialects}
    found = [(f".{kind}: {name}", *rest) for kind, make in makers.items() for name, *rest in make()]
    found += [(f".glb: {name}", *rest) for name, *rest in placed_dialects()]
    for name, content, *rest in [*text_dialects(), *found]:
        yield pytest.param(name[:4], content, *[*rest, *[None, 1][len(rest) :]], id=name)


DIALECTS = list(dialects())
A_PYTHON_ERROR = re.compile(r"[a-z](Error|Exception)\b|No module named|has no attribute|invalid literal|None")


def area(corners):
    """Area of triangles (F, 3, 3)."""
    a, b, c = np.asarray(corners).transpose(1, 0, 2)
    return np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2


def read(suffix, content):
    """The triangles (F, 3, 3) of a file, or the text of its refusal: one line that names it, with an advice."""
    try:
        vertices, faces = parse_mesh(content.encode() if isinstance(content, str) else content, f"a/mesh{suffix}")
    except UserError as error:
        assert re.match(r"a/mesh\.\w+: \S[^\n]*$", str(error)) and ADVICE.search(str(error)), error
        assert not A_PYTHON_ERROR.search(str(error)), error
        return str(error)
    return vertices[faces]


def is_bracket(corners, brackets=1):
    """Whether triangles are the bracket, or several side by side, by their box and their area."""
    low, high = VERTICES.min(0), VERTICES.max(0) + SHIFT * (brackets - 1)
    box = np.abs([corners.min((0, 1)) - low, corners.max((0, 1)) - high]).max()
    return box < 1e-6 and abs(area(corners) / (brackets * area(VERTICES[np.array(TRIANGLES)])) - 1) < 1e-5


@pytest.mark.parametrize("suffix, content, cause, brackets", DIALECTS)
def test_every_dialect(suffix, content, cause, brackets, capfd):
    found = read(suffix, content)
    if cause is None:
        assert not isinstance(found, str), found
        assert is_bracket(found, brackets)
    else:
        assert isinstance(found, str) and cause in found
    assert capfd.readouterr() == ("", "")


# ---------------------------------------------------------------- cut files

WHOLE = [
    (".off", off()), (".off", off(MIXED)), (".off", off(colour="255 0 0")), (".stl", stl()), (".stl", binary_stl()),
    (".stl", binary_stl(b"solid")), (".ply", ply()), (".ply", ply(points(), polygons(MIXED))),
    (".ply", ply(polygons(MIXED), points())), (".ply", ply(order="binary_little_endian")),
    (".ply", ply(points(), polygons(MIXED), order="binary_big_endian")), (".glb", glb()),
]  # fmt: skip


@pytest.mark.parametrize("suffix, content", WHOLE)
def test_cut_anywhere(suffix, content):
    """Formats that say how much they hold: cut after any byte, a file is refused, or only its last line end is gone."""
    for length in range(len(content)):
        found = read(suffix, content[:length])
        assert isinstance(found, str) or is_bracket(found) and len(content) - length < 12, content[:length][-30:]


@pytest.mark.parametrize("faces, base", [(TRIANGLES, 1), (MIXED, 1), (MIXED, -16)])
def test_an_obj_cut_anywhere(faces, base):
    """An OBJ does not say how much it holds: what is left of it is all there, or it is refused."""
    content = obj(faces, base=base)
    for length in range(len(content)):
        left = content[:length]
        lines = left if left.endswith("\n") else content[: content.index("\n", length - 1) + 1]
        found = read(".obj", left)
        assert isinstance(found, str) or np.array_equal(found, read(".obj", lines)), left[-30:]


# ---------------------------------------------------------------- polygons


@pytest.mark.parametrize("unit", [1e-3, 1e12])
@pytest.mark.parametrize("depth, read", [(-0.3, 10), (0, 10), (1e-4, 10), (0.3, 6), (1.5, 0)])
def test_a_polygon_is_cut_right_or_refused(depth, read, unit):
    """A square with a notch in a side, of no depth or more: from any corner on, either way round, in any plane."""
    corners, areas = np.array([(0, 0, 0), (0.5, depth, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)]), []
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    for shift, way in itertools.product(range(5), (1, -1)):
        turned = (np.roll(corners, shift, axis=0)[::way] @ turn + 5) * unit
        with contextlib.suppress(UserError):
            areas.append(area(turned[triangulate(turned, np.array([5]), np.arange(5))]) / unit**2)
    assert areas == pytest.approx([1 - depth / 2] * read, rel=1e-3)


def test_a_bent_quad_keeps_its_corners():
    bent = np.array([(0, 0, 0), (1, 0, 0.2), (1, 1, 0), (0, 1, 0.2)])
    assert triangulate(bent, np.array([4]), np.arange(4)).tolist() == [[0, 1, 2], [0, 2, 3]]


# ---------------------------------------------------------------- sizes, units, and what is no mesh


def scaled(factor):
    """OBJ lines of the bracket, larger."""
    return "".join("v {:.9g} {:.9g} {:.9g}\n".format(*v) for v in VERTICES * factor) + obj()[obj().index("f") :]


@pytest.mark.parametrize(
    "longest, unit", [(120, "millimetres"), (12, "centimetres"), (2.5, "inches"), (2.6e4, None), (1e30, None)]
)
def test_a_size_out_of_range_names_the_factor_that_mends_it(longest, unit):
    text = scaled(longest / 0.1)
    found = read(".obj", text)
    assert f"is it in {unit}? Scale it by" in found if unit else "is it in" not in found
    assert 0.03 <= longest * float(found.rsplit(" ", 1)[1]) <= 0.5
    assert len(parse_mesh(text.encode(), "mesh.obj", 1e31)[1]) == len(TRIANGLES)  # where any unit will do


FOREIGN = {
    "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456\n",
    "web page": b"\n <!DOCTYPE html><html><body>Quota exceeded</body></html>",
    "web page or XML": b"\xef\xbb\xbf<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    "macOS": bytes.fromhex("00051607000200004d6163204f532058"),
    "is UTF-16": obj().encode("utf-16"),
    "UTF-16; save": b"\xfe\xff" + obj().encode("utf-16-be"),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_what_is_no_mesh_is_named(what, tmp_path):
    (tmp_path / "file").write_bytes(FOREIGN[what])
    with pytest.raises(UserError, match=what):
        read_bytes(tmp_path / "file")
    (tmp_path / "file").write_bytes(b" " * 80 + FOREIGN[what])  # a blank header of an STL, and any number
    assert len(read_bytes(tmp_path / "file")) == 80 + len(FOREIGN[what])


def test_a_folder_for_pretraining_with_bad_files(tmp_path, capsys):
    """Companions are left out, meshes of any unit used; a bad file is named, or with --skip-bad listed."""
    for name, scale in (("a.obj", 1), ("b.obj", 1000), ("c.obj", 1e-3)):
        (tmp_path / name).write_text(scaled(scale), encoding="utf-8")
    (tmp_path / "._a.obj").write_bytes(FOREIGN["macOS"])
    clouds = folder_clouds(tmp_path, 64)
    assert clouds.shape == (3, 64, 3) and not capsys.readouterr().err
    (tmp_path / "d.ply").write_bytes(FOREIGN["Git LFS pointer"])
    (tmp_path / "e.npy").write_bytes(FOREIGN["web page"])
    with pytest.raises(UserError, match=r"d\.ply: is a Git LFS pointer.*--skip-bad"):
        folder_clouds(tmp_path, 64)
    assert np.array_equal(folder_clouds(tmp_path, 64, skip_bad=True), clouds)
    first, second, count = capsys.readouterr().err.splitlines()
    assert "d.ply: is a Git LFS pointer" in first and "e.npy: is a web page" in second and "2 of 5" in count
    for path in tmp_path.glob("[abc].obj"):
        path.unlink()
    with pytest.raises(UserError, match=r"every file is bad; the first: .*d\.ply"):
        folder_clouds(tmp_path, 64, skip_bad=True)
