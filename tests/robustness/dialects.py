"""One solid, written by rule in every dialect of the mesh formats: a reader gives this solid, or refuses the file.

The solid is a U-shaped bracket of 16 vertices and 10 faces. Two faces have 8 corners and are not convex. A lost face,
a fan over a notch, a shifted index or a lost digit shows in its box or in its area.
"""

import base64
import json
import struct
from typing import NamedTuple

import numpy as np

PROFILE = [(0, 0), (10, 0), (10, 10), (8, 10), (8, 2), (2, 2), (2, 10), (0, 10)]  # cm
VERTICES = np.array([(x, y, z) for z in (1, 4) for x, y in PROFILE]) / 100 + (0.015, -0.025, 0)  # (16, 3) m
PIECES = [(0, 1, 4, 5), (1, 2, 3, 4), (0, 5, 6, 7)]  # the profile, cut into convex ones
SIDES = [(i, (i + 1) % 8, (i + 1) % 8 + 8, i + 8) for i in range(8)]
POLYGONS = [tuple(range(7, -1, -1)), tuple(range(8, 16)), *SIDES]  # 10 faces
QUADS = [piece[::-1] for piece in PIECES] + [tuple(i + 8 for i in piece) for piece in PIECES] + SIDES  # 14 faces
TRIANGLES = [(q[0], q[i], q[i + 1]) for q in QUADS for i in (1, 2)]  # 28 faces
MIXED = [*POLYGONS[:2], *QUADS[6:10], *TRIANGLES[20:]]  # 8, 4 and 3 corners
SHIFT = np.array([0.2, 0, 0])  # m, between two brackets


class Dialect(NamedTuple):
    """A file, and what must come of it."""

    name: str
    content: bytes
    cause: str | None = None  # part of the message where the file is refused
    brackets: int = 1  # how many there are, SHIFT apart


def dialects():
    """(file type, Dialect) of all."""
    for suffix, made in (
        (".obj", obj_dialects),
        (".off", off_dialects),
        (".stl", stl_dialects),
        (".ply", ply_dialects),
    ):
        for name, content, *cause in made():
            yield suffix, Dialect(name, content.encode() if isinstance(content, str) else content, *cause)
    for name, content, *rest in glb_dialects():
        yield ".glb", Dialect(name, content, *rest)


def spelt(value):
    """A coordinate as text."""
    return f"{value:.3f}"


NUMBERS = {
    "exponents": "{:.4e}".format,
    "capital exponents": "{:.4E}".format,
    "signs": "{:+.4f}".format,
    "no zero before the point": lambda value: f"{value:.3f}".replace("0.", ".", 1),
    "17 digits": "{:.17g}".format,
}
WORDS = {  # encoding -> a word to stumble over: its bytes hold a backslash, or what other encodings take for a line end
    "latin-1": "Bügel", "shift_jis": "表", "utf-8": "Åf 1 2 3 à", "gbk": "支架", "koi8-r": "скоба",
    "cp437": "àf 1 2 3",
}  # fmt: skip


# ---------------------------------------------------------------- OBJ


def obj(faces=TRIANGLES, corner="{}", base=1, vertex=spelt, head="", gap=" ", before="", after="", end="\n"):
    """OBJ lines; corner: how a face spells a vertex counted from `base`; gap, before, after, end: of every line."""
    rows = [["v", *map(vertex, v)] for v in VERTICES]
    rows += [["f", *(corner.format(i + base) for i in face)] for face in faces]
    return head + "".join(before + gap.join(row) + after + end for row in rows)


def obj_dialects():
    """(name, text or bytes, the cause where it must be refused)."""
    lines = obj().splitlines(keepends=True)
    points, faces = "".join(lines[:16]), "".join(lines[16:])
    yield "triangles", obj()
    yield "four corners", obj(QUADS)
    yield "eight corners, not convex", obj(POLYGONS)
    yield "mixed polygons", obj(MIXED)
    for name, gap in (("a tab", "\t"), ("two spaces", "  "), ("tabs and spaces", " \t "), ("a form feed", "\f")):
        yield f"between fields {name}", obj(gap=gap)
    yield "tabs in some lines", obj().replace("v 0.015", "v\t0.015").replace("f 1 ", "f\t1 ")
    for name, before in (("a space", " "), ("a tab", "\t"), ("spaces", "    ")):
        yield f"lines begin with {name}", obj(before=before)
    yield "lines end with a space", obj(after=" ")
    yield "vertices indented, faces not", obj().replace("v ", "  v ")
    yield "faces indented, vertices not", obj().replace("f ", "\tf ")
    for name, end in (("CR LF", "\r\n"), ("CR", "\r"), ("an empty line", "\n\n"), ("CR CR LF", "\r\r\n")):
        yield f"lines end with {name}", obj(end=end)
    yield "line ends mixed", obj().replace("\nf", "\r\nf")
    yield "no end of the last line", obj()[:-1]
    yield "a DOS mark at the end", obj(end="\r\n") + "\x1a"
    yield "zeros at the end", obj() + "\0" * 20
    for name, comment in (("words", "# a bracket\n"), ("a vertex", "# v 9 9 9\n"), ("a face", "#f 1 2 3\n")):
        yield f"a comment of {name} first", comment + obj()
        yield f"a comment of {name} after every line", obj(end="\n" + comment)
        yield f"a comment of {name} on every line", obj(after=" " + comment[:-1])
    yield "an indented comment after every line", obj(end="\n   # f 1 2 3\n")
    yield "a comment that ends in a backslash", obj(end="\n# C:\\meshes\\\n")
    yield "a byte-order mark", obj().encode("utf-8-sig")
    yield "UTF-16, little endian", b"\xff\xfe" + obj(head="# Ü\n").encode("utf-16-le")
    yield "UTF-16, big endian", b"\xfe\xff" + obj(head="# Ü\n").encode("utf-16-be")
    yield "UTF-16 without a mark", obj().encode("utf-16-le"), "no faces"
    for encoding, word in WORDS.items():
        yield f"{encoding} in a comment", obj(head=f"# {word}\n").encode(encoding)
        yield f"{encoding} in a name", (points + f"o {word}\n" + faces).encode(encoding)
        yield f"{encoding} in the name of a material", (f"usemtl {word}\n" + points + faces).encode(encoding)
    yield "counted from 0", obj(base=0), "counts from 1"
    yield "counted back from the last vertex", obj(base=-16)
    yield (
        "counted back and forth",
        points + "".join(obj(base=-16 if i % 2 else 1).splitlines(True)[16 + i] for i in range(28)),
    )
    for name, polygons in (("triangles", TRIANGLES), ("four corners", QUADS), ("eight corners", POLYGONS)):
        yield f"each face behind its own vertices, counted back: {name}", soup(polygons)
    yield "faces first", faces + points
    yield "two parts, counted on", two_parts(lambda i: i + 16)
    yield "two parts, counted back", two_parts(lambda i: i - 17)
    extra = "vt 0 0\nvn 0 0 1\n" * 16
    for corner in ("{0}/{0}", "{0}//{0}", "{0}/{0}/{0}", "{0}//", "{0}//1", "{0}/1/1", "{0}/-1/-1"):
        yield f"corners spelt {corner}", obj(corner=corner, head=extra)
        yield f"polygons with corners spelt {corner}", obj(MIXED, corner=corner, head=extra)
    yield "corners spelt in two ways", obj(head=extra).replace("f 8 ", "f 8/1 ")
    yield "texture coordinates that are not there", obj(corner="{0}/{0}")
    for word in ("g half", "o half", "usemtl red", "s 1", "usemtl", "g", "mtllib none.mtl"):
        yield f"'{word}' among the faces", "".join([*lines[:30], word + "\n", *lines[30:]])
    turns = "".join(f"usemtl {'ab'[i // 3 % 2]}\n" * (i % 3 == 0) + face for i, face in enumerate(lines[16:]))
    yield "two materials by turns", points + turns
    yield "a group before any vertex", obj(head="mtllib a.mtl\nusemtl a\ng a\n")
    yield "lines and points beside faces", obj() + "l 1 2\np 3\n"
    yield "parameters and unknown words", obj(head="vp 0.5\nlod 2\nhello world\n")
    yield "a free-form surface", obj() + "cstype bspline\nsurf 0 1 0 1 1 2 3\n", "'surf'"
    yield "a face that goes on in the next line", obj().replace("f 8 ", "f 8 \\\n")
    yield "a vertex that goes on in the next line", obj().replace("v 0.115 ", "v 0.115 \\\n")
    yield "a face that goes on, CR LF", obj(end="\r\n").replace("f 8 ", "f 8 \\\r\n")
    yield "a backslash at the end", obj() + "f 1 2 \\", "cut short"
    yield "colours", points.replace("\n", " 0.5 0.5 0.5\n") + faces
    yield "colours of some vertices", points.replace("\n", " 0.5 0.5 0.5\n", 5) + faces
    yield "weights of vertices", points.replace("\n", " 1.0\n") + faces
    for name, vertex in NUMBERS.items():
        yield f"numbers with {name}", obj(vertex=vertex)
    yield "decimal commas", obj().replace(".", ","), "three finite numbers"
    yield "commas between numbers", obj(gap=", ").replace("v,", "v").replace("f,", "f"), ""
    yield "capital letters", obj().replace("v", "V").replace("f", "F")
    yield "a vertex that no face uses", points + "v 90 90 90\n" + faces
    yield "a face like a point and a line, far away", points + "v 90 90 90\nf 17 17 17\nf 1 17 1\n" + faces
    yield "a face like a line, far away", points + "v 90 -0.025 0.01\nf 1 2 17\n" + faces
    yield "a face with two corners", obj() + "f 1 2\n", "2 corners"
    yield "a face without corners", obj() + "f\n", "0 corners"
    yield "a vertex of two numbers", points + "v 1 2\n" + faces, "three finite numbers"
    yield "a vertex too high", obj() + "f 1 2 17\n", "refers to a vertex"
    yield "a vertex too high, in a polygon", obj(QUADS) + "f 1 2 3 17\n", "vertex 16 of 16"
    yield "a vertex too far back", obj() + "f 1 2 -17\n", "vertex -1 of 16"
    yield "words for vertices", obj() + "f a b c\n", "whole number"
    yield "a face that crosses itself", obj(QUADS) + "f 1 3 2 4\n", "crosses itself"


def soup(polygons):
    """OBJ lines in which every face stands behind vertices of its own, counted back from the last one."""
    text = ""
    for polygon in polygons:
        text += "".join("v " + " ".join(map(spelt, VERTICES[i])) + "\n" for i in polygon)
        text += "f " + " ".join(str(i - len(polygon)) for i in range(len(polygon))) + "\n"
    return text


def two_parts(second):
    """OBJ lines of two halves, each with all vertices; second: how the other half spells vertex i, counted from 1."""
    points = "".join(obj().splitlines(keepends=True)[:16])
    halves = [
        "".join("f %d %d %d\n" % tuple(spell(i + 1) for i in face) for face in faces)
        for spell, faces in ((int, TRIANGLES[:14]), (second, TRIANGLES[14:]))
    ]
    return f"o a\n{points}{halves[0]}o b\n{points}{halves[1]}"


# ---------------------------------------------------------------- OFF


def off(faces=TRIANGLES, head="OFF\n{} {} 0\n", vertex=spelt, more="", colour="", gap=" ", before="", end="\n"):
    """OFF lines; more: behind every vertex, colour: behind every face; gap, before, end: of every line."""
    rows = [[*map(vertex, v), *more.split()] for v in VERTICES] + [[len(f), *f, *colour.split()] for f in faces]
    head = head.format(len(VERTICES), len(faces)).replace("\n", end)
    return head + "".join(before + gap.join(map(str, row)) + end for row in rows)


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
    """(name, text or bytes, the cause where it must be refused)."""
    yield "triangles", off()
    yield "four corners", off(QUADS)
    yield "eight corners, not convex", off(POLYGONS)
    yield "mixed polygons", off(MIXED)
    for head in OFF_HEADS:
        yield f"begins {head!r}", off(head=head)
    for name, comment in (("words", "# a bracket\n"), ("numbers", "#3 0 1 2\n"), ("indented", "  # 1 2 3\n")):
        yield f"comments after every line: {name}", off(end="\n" + comment)
    yield "a comment on every line", off(end=" # 9 9 9\n")
    yield "a comment between vertices and faces", off().replace("\n3 ", "\n# faces\n3 ", 1)
    for name, end in (("CR LF", "\r\n"), ("CR", "\r"), ("an empty line", "\n\n"), ("a space", " \n")):
        yield f"lines end with {name}", off(end=end)
    for name, gap in (("a tab", "\t"), ("two spaces", "  ")):
        yield f"between fields {name}", off(gap=gap)
    yield "indented", off(before="   ")
    yield "no end of the last line", off()[:-1]
    yield "a DOS mark at the end", off(end="\r\n") + "\x1a"
    for head, more in OFF_KINDS:
        yield f"{head} with {more} behind vertices", off(head=head + "\n{} {} 0\n", more=more)
    for colour in ("255 0 0", "255 0 0 255", "0.5 0.5 0.5", "7", "1.0 0 0 0.5"):
        yield f"faces coloured {colour}", off(colour=colour)
        yield f"polygons coloured {colour}", off(MIXED, colour=colour)
    for name, vertex in NUMBERS.items():
        yield f"numbers with {name}", off(vertex=vertex)
    yield "a byte-order mark", off().encode("utf-8-sig")
    yield "UTF-16", off().encode("utf-16")
    for encoding, word in WORDS.items():
        yield f"{encoding} in a comment", off(head=f"OFF\n# {word}\n{{}} {{}} 0\n").encode(encoding)
    yield "a face like a line, far away", off([*TRIANGLES, (0, 1, 16)]).replace("16 29", "17 29").replace(
        "\n3 ", "\n90 -0.025 0.01\n3 ", 1)  # fmt: skip
    yield "four dimensions", off(head="4OFF\n{} {} 0\n", more="1"), "does not begin"
    yield "binary", b"OFF BINARY\n" + bytes(400), "does not begin"
    yield "no counts", "OFF\n", "missing"
    yield "counted from 1", off([tuple(i + 1 for i in face) for face in TRIANGLES]), "vertex 16 of 16"
    yield "a vertex before the first", off([*TRIANGLES, (0, 1, -1)]), "vertex -1 of 16"
    yield "one face fewer than promised", off().replace("16 28", "16 29"), "promises"
    yield "one face more than promised", off().replace("16 28", "16 27"), "promises"
    yield "one vertex fewer than promised", off().replace("16 28", "17 28"), "promises"
    yield "one vertex more than promised", off().replace("16 28", "15 29"), ""
    yield "a face of two corners", off([*TRIANGLES, (0, 1)]), "2 corners"
    yield "decimal commas", off().replace(".", ","), "three finite numbers"


# ---------------------------------------------------------------- STL


def stl(faces=TRIANGLES, name=" bracket", vertex=spelt, normal="0 0 1", gap=" ", indent="  ", end="\n"):
    """ASCII STL lines of one solid."""
    rows = [(0, f"solid{name}")]
    for face in faces:
        rows += [(1, f"facet normal {normal}"), (2, "outer loop")]
        rows += [(3, " ".join(["vertex", *map(vertex, VERTICES[i])])) for i in face]
        rows += [(2, "endloop"), (1, "endfacet")]
    rows.append((0, f"endsolid{name}"))
    return "".join(indent * depth + row.replace(" ", gap) + end for depth, row in rows)


def binary_stl(head=b"", attribute=0):
    """Binary STL."""
    facets = (struct.pack("<12fH", 0, 0, 1, *VERTICES[list(face)].ravel(), attribute) for face in TRIANGLES)
    return head.ljust(80, b" ") + struct.pack("<I", len(TRIANGLES)) + b"".join(facets)


def stl_dialects():
    """(name, text or bytes, the cause where it must be refused)."""
    yield "text", stl()
    yield "capital letters", stl().upper()
    yield "no name", stl(name="")
    for name in (" solid vertex 1 2 3", " facet normal", " endsolid", " a # b", " outer loop endloop", " C:\\"):
        yield f"called '{name[1:]}'", stl(name=name)
    for name, indent in (("nothing", ""), ("a tab", "\t")):
        yield f"lines begin with {name}", stl(indent=indent)
    for name, gap in (("a tab", "\t"), ("two spaces", "  ")):
        yield f"between fields {name}", stl(gap=gap)
    for name, end in (("CR LF", "\r\n"), ("CR", "\r"), ("an empty line", "\n\n"), ("a space", " \n")):
        yield f"lines end with {name}", stl(end=end)
    yield "a line per field", stl().replace(" 0.", "\n0.")
    yield "several fields' lines joined", stl().replace("\n   ", "  ")
    yield "no end of the last line", stl()[:-1]
    yield "empty lines first", "\n\n" + stl()
    yield "two solids", stl(TRIANGLES[:14], " a") + stl(TRIANGLES[14:], " b")
    yield "two solids of one name", stl(TRIANGLES[:14]) + stl(TRIANGLES[14:])
    yield "an empty solid first", stl([]) + stl()
    for normal in ("nan nan nan", "-nan(ind) -nan(ind) -nan(ind)", "1e-1 0.0 -1E+00"):
        yield f"normals {normal}", stl(normal=normal)
    yield "a comment after every line", stl(end="\n# vertex 9 9 9\n")
    for name, vertex in NUMBERS.items():
        yield f"numbers with {name}", stl(vertex=vertex)
    yield "a byte-order mark", stl().encode("utf-8-sig")
    yield "UTF-16", stl().encode("utf-16")
    for encoding, word in WORDS.items():
        yield f"{encoding} in the name", stl(name=f" {word}").encode(encoding)
    yield "binary", binary_stl()
    yield "binary that begins like text", binary_stl(b"solid bracket")
    yield "binary with colours", binary_stl(b"COLOR=\x01\x02\x03\xff", 0x7FFF)
    yield "binary, cut short", binary_stl()[:-1], "header says"
    yield "binary that goes on", binary_stl() + b"\n", "header says"
    yield "a facet without a normal", stl().replace("facet normal 0 0 1", "facet", 1), "face 0"
    yield "a facet of four vertices", stl().replace("endloop", "vertex 0 0 0\nendloop", 1), "face 0"
    yield "a facet of two vertices", stl().replace("   vertex 0.015 -0.025 0.010\n", "", 1), ""
    yield "a solid without an end", stl(TRIANGLES[:14]) + stl(TRIANGLES[14:]).rsplit("endsolid", 1)[0], "no end"
    yield "decimal commas", stl().replace(".", ","), "three finite numbers"


# ---------------------------------------------------------------- PLY

CODES = {"char": "b", "uchar": "B", "short": "h", "ushort": "H", "int": "i", "uint": "I", "float": "f", "double": "d"}
CODES |= {"int8": "b", "uint8": "B", "int16": "h", "uint16": "H", "int32": "i", "uint32": "I"}
CODES |= {"float32": "f", "float64": "d"}


def vertices(kind="float", before="", after="", value="0"):
    """The element of the vertices, with properties "type name, type name" of `value` before and after x, y and z."""
    fields = [
        *filter(None, before.split(", ")),
        f"{kind} x",
        f"{kind} y",
        f"{kind} z",
        *filter(None, after.split(", ")),
    ]
    first, last = before.count(",") + bool(before), after.count(",") + bool(after)
    return (
        "vertex",
        fields,
        [[float(value)] * first + [round(x, 3) for x in v] + [float(value)] * last for v in VERTICES],
    )


def polygons(faces=TRIANGLES, kinds="uchar int", name="vertex_indices", before="", after=""):
    """The element of the faces, with properties "type name" of 1 before and after the list."""
    fields = [*filter(None, [before]), f"list {kinds} {name}", *filter(None, [after])]
    return "face", fields, [[1] * bool(before) + [list(face)] + [1] * bool(after) for face in faces]


def ply(*elements, order="ascii", end="\n", gap=" ", head="", before_end=""):
    """A PLY file of elements (name, properties, rows); a list in a row is a list property."""
    text = f"ply\nformat {order} 1.0\n{head}"
    for name, fields, rows in elements:
        text += f"element {name} {len(rows)}\n" + "".join(f"property {field}\n" for field in fields)
    text = (text + before_end + "end_header\n").replace("\n", end)
    if order == "ascii":
        for _, _, rows in elements:
            for row in rows:
                numbers = [
                    number for field in row for number in ([len(field), *field] if type(field) is list else [field])
                ]
                text += gap.join(f"{number:g}" for number in numbers) + end
        return text
    body, mark = b"", "<" if "little" in order else ">"
    for _, fields, rows in elements:
        for row in rows:
            for field, value in zip(fields, row):
                kinds = [CODES[word] for word in field.split()[:-1] if word != "list"]
                if type(value) is list:
                    body += struct.pack(f"{mark}{kinds[0]}{len(value)}{kinds[1]}", len(value), *value)
                else:
                    body += struct.pack(mark + kinds[0], value if kinds[0] in "fd" else int(value))
    return text.encode("latin-1") + body


def strips():
    """Triangle strips of the bracket's triangles, two and two, -1 between them."""
    strip = []
    for a, b, c, d in QUADS:
        strip += [b, c, a, d, -1]
    return "tristrips", ["list int int vertex_indices"], [[strip[:-1]]]


def ply_dialects():
    """(name, text or bytes, the cause where it must be refused)."""
    for order in ("ascii", "binary_little_endian", "binary_big_endian"):

        def made(*elements, order=order, **options):
            return ply(*elements or (vertices(), polygons()), order=order, **options)

        yield f"{order}: triangles", made()
        yield f"{order}: four corners", made(vertices(), polygons(QUADS))
        yield f"{order}: eight corners, not convex", made(vertices(), polygons(POLYGONS[:2] + POLYGONS[2:]))
        yield f"{order}: mixed polygons", made(vertices(), polygons(MIXED))
        yield f"{order}: triangles, then four corners", made(vertices(), polygons(TRIANGLES[:20] + QUADS[10:]))
        yield f"{order}: triangle strips", made(vertices(), strips())
        yield f"{order}: faces first", made(polygons(), vertices())
        yield f"{order}: polygons first", made(polygons(MIXED), vertices())
        yield f"{order}: doubles", made(vertices("double"), polygons())
        yield f"{order}: other names of types", made(vertices("float32"), polygons(kinds="uint8 int32"))
        for kinds in ("uchar uint", "int int", "ushort short", "uchar uchar", "char ushort"):
            yield f"{order}: faces of {kinds}", made(vertices(), polygons(kinds=kinds))
            yield f"{order}: polygons of {kinds}", made(vertices(), polygons(MIXED, kinds=kinds))
        yield f"{order}: vertex_index", made(vertices(), polygons(name="vertex_index"))
        yield f"{order}: normals and colours", made(
            vertices(after="float nx, float ny, float nz, uchar red, uchar green, uchar blue"), polygons())  # fmt: skip
        yield f"{order}: normals that are none", made(
            vertices(after="float nx, float ny, float nz", value="nan"), polygons())  # fmt: skip
        yield f"{order}: texture coordinates", made(vertices(after="float s, float t"), polygons())
        yield f"{order}: properties first", made(vertices(before="uchar flag, double quality"), polygons())
        yield f"{order}: properties of faces", made(vertices(), polygons(before="uchar flag", after="float area"))
        yield f"{order}: a list beside the corners", made(vertices(), ("face", [
            "list uchar int vertex_indices", "list uchar float texcoord"],
            [[list(face), [0.0] * 6] for face in TRIANGLES]))  # fmt: skip
        yield f"{order}: an empty list beside the corners", made(vertices(), ("face", [
            "list uchar float texcoord", "list uchar int vertex_indices"],
            [[[], list(face)] for face in TRIANGLES]))  # fmt: skip
        yield (
            f"{order}: edges",
            made(vertices(), polygons(), ("edge", ["int vertex1", "int vertex2"], [[0, 1], [1, 2]])),
        )
        yield f"{order}: no edges", made(vertices(), polygons(), ("edge", ["int vertex1", "int vertex2"], []))
        yield (
            f"{order}: a camera between",
            made(vertices(), ("camera", ["float view_px", "int w"], [[0.5, 3]]), polygons()),
        )
        yield f"{order}: comments", made(head="comment made by hand\nobj_info x\n", before_end="comment v 1 2 3\n")
        yield f"{order}: a comment that says end_header", made(head="comment end_header\ncomment ply\n")
        yield f"{order}: a comment that says element", made(head="comment element face 3\n")
        yield f"{order}: empty lines in the header", made(head="\n\n")
        for name, end in (("CR LF", "\r\n"), ("CR", "\r")):
            yield f"{order}: lines end with {name}", made(end=end)
        yield f"{order}: Latin-1 in a comment", latin(made(head="comment B\xfcgel\n"))
        yield f"{order}: one face more than promised", latin(made()).replace(b"face 28", b"face 27"), "goes on"
        yield f"{order}: one face fewer than promised", latin(made()).replace(b"face 28", b"face 29"), "'face' 28 of 29"
        yield f"{order}: one vertex fewer than promised", latin(made()).replace(b"vertex 16", b"vertex 17"), ""
        yield f"{order}: a corner too high", made(vertices(), polygons([*TRIANGLES, (0, 1, 16)])), "vertex 16 of 16"
        yield f"{order}: a corner too low", made(vertices(), polygons([*TRIANGLES, (0, 1, -1)])), "vertex -1 of 16"
        yield f"{order}: no faces", made(vertices()), "no faces"
        yield f"{order}: an unknown type", latin(made()).replace(b"float x", b"half x"), "not PLY"
        yield f"{order}: no z", latin(made()).replace(b"float z", b"float w"), "lacks"
    for name, gap in (("a tab", "\t"), ("two spaces", "  "), ("a line end", "\n")):
        yield f"between fields {name}", ply(vertices(), polygons(), gap=gap)
    head, body = ply(vertices(), polygons(MIXED)).split("end_header\n")
    yield "all in one line", head + "end_header\n" + body.replace("\n", " ") + "\n"
    yield "indented", head + "end_header\n" + body.replace("\n", "\n   ")
    yield "empty lines", head + "end_header\n" + body.replace("\n", "\n\n")
    yield "no end of the last line", ply(vertices(), polygons())[:-1]
    yield "a byte-order mark", ply(vertices(), polygons()).encode("utf-8-sig")
    yield "UTF-16", ply(vertices(), polygons()).encode("utf-16")
    yield "a comment among the numbers", head + "end_header\n" + body.replace("\n3 ", "\n# faces\n3 ", 1), ""
    yield "decimal commas", head + "end_header\n" + body.replace(".", ","), "three finite numbers"
    yield "an unknown format", ply(vertices(), polygons()).replace("ascii", "binary"), "not PLY"


def latin(content):
    """Text as bytes."""
    return content.encode("latin-1") if isinstance(content, str) else content


# ---------------------------------------------------------------- GLB

FLOAT, BYTE, UBYTE, SHORT, USHORT, UINT = 5126, 5120, 5121, 5122, 5123, 5125
STORED = {FLOAT: "<f4", BYTE: "<i1", UBYTE: "<u1", SHORT: "<i2", USHORT: "<u2", UINT: "<u4"}


class Glb:
    """A .glb being put together."""

    def __init__(self):
        self.gltf = {"asset": {"version": "2.0"}, "accessors": [], "bufferViews": [], "meshes": [], "nodes": []}
        self.binary = b""

    def view(self, content, **more):
        """The number of a new buffer view of these bytes."""
        self.gltf["bufferViews"].append(
            {"buffer": 0, "byteOffset": len(self.binary), "byteLength": len(content)} | more
        )
        self.binary += content + bytes(-len(content) % 4)
        return len(self.gltf["bufferViews"]) - 1

    def accessor(self, array, kind=FLOAT, stride=None, start=0, **more):
        """The number of a new accessor of an array (n,) or (n, 3); stride: bytes per row, start: of the first."""
        rows = np.asarray(array).astype(STORED[kind])
        content = [row.tobytes().ljust(stride or 0, b"\xaa") for row in rows]
        view = self.view(b"\xaa" * start + b"".join(content), **({"byteStride": stride} if stride else {}))
        shape = {"count": len(rows), "type": "VEC3" if rows.ndim > 1 else "SCALAR", "componentType": kind}
        self.gltf["accessors"].append({"bufferView": view, "byteOffset": start} | shape | more)
        return len(self.gltf["accessors"]) - 1

    def primitive(self, points=VERTICES, faces=TRIANGLES, kind=UINT, **more):
        """A primitive with corners and indices of its own."""
        indices = self.accessor(np.ravel(faces), kind)
        return {"attributes": {"POSITION": self.accessor(points)}, "indices": indices} | more

    def mesh(self, *primitives, **more):
        """The number of a new mesh."""
        self.gltf["meshes"].append({"primitives": list(primitives)} | more)
        return len(self.gltf["meshes"]) - 1

    def content(self, *nodes, roots=(0,), uri=None, **more):
        """The file, with these nodes."""
        gltf = self.gltf | {"nodes": list(nodes), "scene": 0, "scenes": [{"nodes": list(roots)}]} | more
        gltf["buffers"] = [{"byteLength": len(self.binary)} | ({"uri": uri(self.binary)} if uri else {})]
        text = json.dumps(gltf).encode()
        text += b" " * (-len(text) % 4)
        chunks = struct.pack("<I4s", len(text), b"JSON") + text
        if not uri:
            chunks += struct.pack("<I4s", len(self.binary), b"BIN\0") + self.binary
        return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def bracket(points=VERTICES, **node):
    """A .glb of the bracket whose only node has these keys."""
    glb = Glb()
    return glb.content({"mesh": glb.mesh(glb.primitive(points))} | node)


def glb_dialects():
    """(name, content, the cause where it must be refused, the number of brackets)."""
    yield from glb_shapes()
    yield from glb_places()
    yield from glb_extensions()
    yield "version 1", bracket().replace(b"glTF\2", b"glTF\1"), "version 2"
    yield "bytes after the end", bracket() + b"\r\n"
    yield "broken JSON", bracket().replace(b'"scene"', b'"scene', 1), ""
    yield "nothing", Glb().content({}), "no faces"


def glb_shapes():
    """How vertices and triangles are stored."""
    for name, kind in (("bytes", UBYTE), ("shorts", USHORT), ("ints", UINT)):
        glb = Glb()
        yield f"indices of {name}", glb.content({"mesh": glb.mesh(glb.primitive(kind=kind))})
    glb = Glb()
    corners = {"POSITION": glb.accessor(VERTICES[np.ravel(TRIANGLES)])}
    yield "no indices", glb.content({"mesh": glb.mesh({"attributes": corners})})
    for stride, start in ((24, 0), (12, 8), (32, 12)):
        glb = Glb()
        primitive = glb.primitive() | {"attributes": {"POSITION": glb.accessor(VERTICES, stride=stride, start=start)}}
        yield f"{stride} bytes from vertex to vertex, from {start} on", glb.content({"mesh": glb.mesh(primitive)})
    glb = Glb()
    rest = {name: glb.accessor(VERTICES) for name in ("NORMAL", "COLOR_0", "_OWN")}
    rest["TEXCOORD_0"] = glb.accessor(VERTICES[:3])
    primitive = glb.primitive()
    primitive["attributes"] |= rest
    yield "normals, colours and others, some too few", glb.content({"mesh": glb.mesh(primitive)})
    glb = Glb()
    two = glb.mesh(glb.primitive(faces=TRIANGLES[:14]), glb.primitive(faces=TRIANGLES[14:]))
    yield "two primitives", glb.content({"mesh": two})
    glb = Glb()
    points = glb.accessor(VERTICES)
    halves = [{"attributes": {"POSITION": points}, "indices": glb.accessor(np.ravel(faces), USHORT)}
              for faces in (TRIANGLES[:14], TRIANGLES[14:])]  # fmt: skip
    yield "two primitives of the same vertices", glb.content({"mesh": glb.mesh(*halves)})
    glb = Glb()
    others = [glb.primitive(faces=[(0, 1)], mode=mode) for mode in range(4)]
    yield "points and lines beside triangles", glb.content({"mesh": glb.mesh(glb.primitive(), *others)})
    for mode, name, order in ((5, "strips", [1, 2, 0, 3]), (6, "fans", [0, 1, 2, 3])):
        for indexed in (True, False):
            glb = Glb()
            faces = [[quad[i] for i in order] for quad in QUADS]
            if indexed:
                found = [glb.primitive(faces=face, mode=mode) for face in faces]
            else:
                found = [{"attributes": {"POSITION": glb.accessor(VERTICES[face])}, "mode": mode} for face in faces]
            cause = "triangle fan" if mode == 6 else None
            yield f"{name}, {'with' if indexed else 'without'} indices", glb.content({"mesh": glb.mesh(*found)}), cause
    glb = Glb()
    high = glb.mesh(glb.primitive(VERTICES[:8]), glb.primitive())
    yield "an index beyond its own vertices", glb.content({"mesh": high}), "refers to vertex"
    for name, more in (("dense below", {}), ("nothing below", {"bufferView": None})):
        glb = Glb()
        primitive = glb.primitive(VERTICES * (1, 1, 0))
        sparse = {"count": 16, "indices": {"bufferView": glb.view(np.arange(16, dtype="<u2").tobytes()),
                                           "componentType": USHORT},
                  "values": {"bufferView": glb.view(VERTICES.astype("<f4").tobytes())}}  # fmt: skip
        accessor = glb.gltf["accessors"][primitive["attributes"]["POSITION"]]
        accessor |= {"sparse": sparse} | more
        if more:
            del accessor["bufferView"]
        yield f"a sparse accessor, {name}", glb.content({"mesh": glb.mesh(primitive)}), "sparse"
    glb = Glb()
    millimetres = glb.accessor(np.round(VERTICES * 1000), SHORT, stride=8)
    primitive = glb.primitive() | {"attributes": {"POSITION": millimetres}}
    content = glb.content(
        {"mesh": glb.mesh(primitive), "scale": [0.001] * 3}, extensionsRequired=["KHR_mesh_quantization"]
    )
    yield "whole numbers, scaled", content
    glb = Glb()
    fractions = glb.accessor(np.round(VERTICES / 0.2 * 32767), SHORT, stride=8, normalized=True)
    primitive = glb.primitive() | {"attributes": {"POSITION": fractions}}
    content = glb.content(
        {"mesh": glb.mesh(primitive), "scale": [0.2] * 3}, extensionsRequired=["KHR_mesh_quantization"]
    )
    yield "fractions of whole numbers", content, "normalized"
    glb = Glb()
    mesh = glb.mesh(glb.primitive())
    in_text = glb.content(
        {"mesh": mesh}, uri=lambda b: "data:application/octet-stream;base64," + base64.b64encode(b).decode()
    )
    yield "its numbers in the JSON", in_text
    yield "its numbers in another file", glb.content({"mesh": mesh}, uri=lambda _: "bracket.bin"), "another file"


def glb_places():
    """Where nodes put their meshes."""
    yield "one node", bracket()
    yield "moved", bracket(VERTICES - (1, 2, 3), translation=[1, 2, 3])
    yield "scaled", bracket(VERTICES * 1000, scale=[0.001] * 3)
    yield "turned", bracket(VERTICES[:, [1, 2, 0]], rotation=[0.5, 0.5, 0.5, 0.5])
    yield "mirrored", bracket(VERTICES * (-1, 1, 1), scale=[-1, 1, 1])
    all_three = (VERTICES - (1, 2, 3))[:, [1, 2, 0]] / 2
    yield "moved, turned and scaled", bracket(all_three, scale=[2] * 3, rotation=[0.5] * 4, translation=[1, 2, 3])
    matrix = [0, 0.01, 0, 0, 0, 0, 0.01, 0, 0.01, 0, 0, 0, 1, 2, 3, 1]  # columns: x to y, y to z, z to x
    yield "by a matrix", bracket((VERTICES - (1, 2, 3))[:, [1, 2, 0]] * 100, matrix=matrix)
    glb = Glb()
    mesh = glb.mesh(glb.primitive(VERTICES * 1000 - (100, 0, 0)))
    deep = [{"scale": [0.001] * 3, "children": [1]}, {"children": [2]}, {"translation": [100, 0, 0], "mesh": mesh}]
    yield "moved in a scaled node", glb.content(*deep)
    for name, parent in (
        ("a camera", {"camera": 0}),
        ("a light", {"extensions": {"KHR_lights_punctual": {"light": 0}}}),
    ):
        glb = Glb()
        nodes = (
            parent | {"translation": [1, 0, 0], "children": [1]},
            {"mesh": glb.mesh(glb.primitive(VERTICES - (1, 0, 0)))},
        )
        camera = {"type": "perspective", "perspective": {"yfov": 1, "znear": 0.1}}
        yield f"below {name}", glb.content(*nodes, cameras=[camera])
    glb = Glb()
    lines = glb.mesh(glb.primitive(faces=[(0, 1)], mode=3))
    nodes = (
        {"mesh": lines, "translation": [1, 0, 0], "children": [1]},
        {"mesh": glb.mesh(glb.primitive(VERTICES - (1, 0, 0)))},
    )
    yield "below a mesh of lines", glb.content(*nodes)
    glb = Glb()
    mesh = glb.mesh(glb.primitive())
    moved = {"mesh": mesh, "translation": SHIFT.tolist()}
    yield "twice", glb.content({"mesh": mesh}, moved, roots=(0, 1)), None, 2
    yield (
        "twice, nodes of one name",
        glb.content({"mesh": mesh, "name": "1"}, moved | {"name": "1"}, roots=(0, 1)),
        None,
        2,
    )
    yield "a node that belongs to nothing", glb.content({"mesh": mesh}, moved)
    yield "two scenes", glb.content({"mesh": mesh}, moved, scenes=[{"nodes": [0]}, {"nodes": [1]}])
    yield (
        "the second of two scenes",
        glb.content(moved, {"mesh": mesh}, scenes=[{"nodes": [0]}, {"nodes": [1]}], scene=1),
    )
    yield "a node called world", glb.content({"name": "world", "children": [1]}, {"mesh": mesh, "name": "world"})
    yield "a broken mesh that is not shown", with_broken_mesh()
    yield "no scene", glb.content({"mesh": mesh}, scenes=[]), "no faces"
    yield "a node below itself", glb.content({"mesh": mesh, "children": [0]}), "two parents"
    skin = {"joints": [1], "inverseBindMatrices": 0}
    yield "a skeleton", glb.content({"mesh": mesh, "skin": 0}, {}, skins=[skin]), "skeleton"
    for name, weight, cause in (("at rest", 0, None), ("in use", 0.5, "morph")):
        glb = Glb()
        primitive = glb.primitive(targets=[{"POSITION": glb.accessor(VERTICES)}])
        yield f"morph targets {name}", glb.content({"mesh": glb.mesh(primitive, weights=[weight])}), cause
        yield f"morph targets {name}, by the node", glb.content({"mesh": 0, "weights": [weight]}), cause


def with_broken_mesh():
    """The bracket, and beside it a mesh that no node shows, with an index too high."""
    glb = Glb()
    mesh, _ = glb.mesh(glb.primitive()), glb.mesh(glb.primitive(VERTICES[:3]))
    return glb.content({"mesh": mesh})


def glb_extensions():
    """Extensions that a reader must know, may leave aside, or must refuse."""
    glb = Glb()
    packed = glb.primitive(extensions={"KHR_draco_mesh_compression": {"bufferView": 0, "attributes": {"POSITION": 0}}})
    node = {"mesh": glb.mesh(packed)}
    used = {"extensionsUsed": ["KHR_draco_mesh_compression"]}
    yield "Draco beside plain numbers", glb.content(node, **used)
    yield "Draco, required", glb.content(node, **used, extensionsRequired=["KHR_draco_mesh_compression"]), "KHR_draco"
    for number in (packed["indices"], packed["attributes"]["POSITION"]):
        del glb.gltf["accessors"][number]["bufferView"]
    yield "Draco alone", glb.content(node, **used), "KHR_draco"
    glb = Glb()
    node = {"mesh": glb.mesh(glb.primitive())}
    glb.gltf["bufferViews"][1]["extensions"] = {"EXT_meshopt_compression": {"buffer": 0, "byteLength": 9}}
    yield "meshopt", glb.content(node), "EXT_meshopt_compression"
    glb = Glb()
    node = {"mesh": glb.mesh(glb.primitive())}
    yield "an unknown extension, required", glb.content(node, extensionsRequired=["EXT_unheard_of"]), "EXT_unheard_of"
    yield (
        "an unknown extension",
        glb.content(node | {"extensions": {"EXT_unheard_of": {}}}, extensionsUsed=["EXT_unheard_of"]),
    )
    look = ["KHR_materials_unlit", "KHR_texture_transform", "EXT_texture_webp", "KHR_lights_punctual"]
    yield "extensions of the looks, required", glb.content(node, extensionsRequired=look)
    instances = {"EXT_mesh_gpu_instancing": {"attributes": {"TRANSLATION": 0}}}
    yield "instances", glb.content(node | {"extensions": instances}), "EXT_mesh_gpu_instancing"
