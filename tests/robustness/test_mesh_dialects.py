"""Meshes in every dialect: the solid that was written is read, or the file is refused for a cause that is told."""

import re

import numpy as np
import pytest
from dialects import (
    MIXED,
    POLYGONS,
    QUADS,
    SHIFT,
    TRIANGLES,
    VERTICES,
    binary_stl,
    bracket,
    dialects,
    obj,
    off,
    ply,
    polygons,
    spelt,
    stl,
    vertices,
)  # fmt: skip
from rules import ADVICE

from benchmark.clouds import folder_clouds
from cli.errors import UserError
from files.meshes import PLAIN, triangulate
from files.reading import files_under, load_plain, parse_mesh, read_bytes, unit_hint

DIALECTS = list(dialects())
A_PYTHON_ERROR = re.compile(r"[a-z](Error|Exception)\b|No module named|has no attribute|invalid literal|None")


def area(corners):
    """Area of triangles (F, 3, 3)."""
    a, b, c = np.asarray(corners).transpose(1, 0, 2)
    return np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2


AREA = area(VERTICES[np.array(TRIANGLES)])


def read(suffix, content):
    """The triangles (F, 3, 3) of a file, or the text of its refusal: one line that names it, with an advice."""
    try:
        points, faces = parse_mesh(content.encode() if isinstance(content, str) else content, f"a/mesh{suffix}")
    except UserError as error:
        assert re.match(r"a/mesh\.\w+: \S[^\n]*$", str(error)) and ADVICE.search(str(error)), error
        assert not A_PYTHON_ERROR.search(str(error)), error
        return str(error)
    return points[faces]


def is_bracket(corners, brackets=1):
    """Whether triangles are the bracket, or several side by side, by their box and their area."""
    low, high = VERTICES.min(0), VERTICES.max(0) + SHIFT * (brackets - 1)
    box = np.abs([corners.min((0, 1)) - low, corners.max((0, 1)) - high]).max()
    return box < 1e-6 and abs(area(corners) / (brackets * AREA) - 1) < 1e-5


@pytest.mark.parametrize(
    "suffix, dialect", DIALECTS, ids=[f"{suffix[1:]}: {dialect.name}" for suffix, dialect in DIALECTS]
)
def test_every_dialect(suffix, dialect, capfd):
    found = read(suffix, dialect.content)
    if dialect.cause is None:
        assert not isinstance(found, str), found
        assert is_bracket(found, dialect.brackets)
    else:
        assert isinstance(found, str) and dialect.cause in found
    assert capfd.readouterr() == ("", "")


def test_at_most_a_quarter_is_refused():
    refused = sum(isinstance(read(suffix, dialect.content), str) for suffix, dialect in DIALECTS)
    assert len(DIALECTS) > 400 and refused <= len(DIALECTS) / 4


def test_what_trimesh_finds_is_compared_with_the_file():
    plain = PLAIN[".obj"](obj().encode())
    assert is_bracket(np.take(*load_plain(plain), axis=0))
    for change in ({"vertices": 17}, {"triangles": 29}):
        with pytest.raises(UserError, match="28 triangles of 16 vertices are found"):
            load_plain(plain._replace(**change))


# ---------------------------------------------------------------- cut files

WHOLE = {
    "triangles.off": off(), "polygons.off": off(MIXED), "coloured.off": off(colour="255 0 0"), "text.stl": stl(),
    "text.ply": ply(vertices(), polygons()), "polygons.ply": ply(vertices(), polygons(MIXED)),
    "faces first.ply": ply(polygons(MIXED), vertices()),
    "binary.stl": binary_stl(), "solid.stl": binary_stl(b"solid"), "scene.glb": bracket(),
    "binary.ply": ply(vertices(), polygons(), order="binary_little_endian"),
    "binary polygons.ply": ply(vertices(), polygons(MIXED), order="binary_big_endian"),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_cut_anywhere(name):
    """Formats that say how much they hold: cut after any byte, a file is refused, or only its last line end is gone."""
    content, suffix = WHOLE[name], name[name.index(".") :]
    content = content.encode() if isinstance(content, str) else content
    for length in range(len(content)):
        found = read(suffix, content[:length])
        assert isinstance(found, str) or is_bracket(found) and len(content) - length < 12, (
            length,
            content[:length][-30:],
        )


def test_the_second_solid_cut_anywhere():
    """Between its two solids an STL may be cut without a trace; within the second one it is refused."""
    first, second = stl(TRIANGLES[:14]), stl(TRIANGLES[14:])
    for length in range(len("solid"), len(second) - len("d bracket\n")):
        assert isinstance(read(".stl", first + second[:length]), str), second[:length][-30:]


@pytest.mark.parametrize("faces", [TRIANGLES, QUADS, POLYGONS, MIXED], ids=["triangles", "quads", "polygons", "mixed"])
@pytest.mark.parametrize("base", [1, -16], ids=["counted on", "counted back"])
def test_an_obj_cut_anywhere(faces, base):
    """An OBJ does not say how much it holds: what is left of it is all there, or it is refused."""
    content = obj(faces, base=base)
    for length in range(len(content)):
        left = content[:length]
        lines = left if left.endswith("\n") else content[: content.index("\n", length - 1) + 1]
        found, expected = read(".obj", left), read(".obj", lines)
        assert isinstance(found, str) or np.array_equal(found, expected), (length, left[-30:])
    assert is_bracket(read(".obj", content))


# ---------------------------------------------------------------- polygons


def star(count, inner=0.4):
    """A star of `count` points, (2 count, 3), and its area."""
    angle = np.arange(2 * count) * np.pi / count
    radius = np.where(np.arange(2 * count) % 2, inner, 1)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle), 0 * angle], 1)
    return points, count * inner * np.sin(np.pi / count)


def comb(count):
    """A comb of `count` teeth (4 count, 3), and its area; no fan covers it."""
    x = np.repeat(np.arange(2.0 * count), 2)
    y = np.tile([0, 3, 3, 0], count) + 1.0
    y[[0, -1]] = 0
    return np.stack([x, y, 0 * x], 1), (2 * count - 1) + 3 * count


def ring():
    """A square with a square hole, as one outline that goes in and out over the same edge, and its area."""
    outside, inside = [(0, 0), (4, 0), (4, 4), (0, 4), (0, 0)], [(1, 1), (1, 3), (3, 3), (3, 1), (1, 1)]
    return np.array([(x, y, 0.0) for x, y in outside + inside]), 12.0


def with_straight_corners():
    """An L with a corner in the middle of every side, and its area."""
    corners = np.array([(0, 0), (4, 0), (4, 2), (2, 2), (2, 4), (0, 4)], dtype=float)
    points = np.stack([corners, (corners + np.roll(corners, -1, axis=0)) / 2], axis=1).reshape(-1, 2)
    return np.c_[points, np.zeros(12)], 12.0


SHAPES = [star(5), star(24, 0.8), comb(2), comb(9), ring(), with_straight_corners()]


@pytest.mark.parametrize(
    "points, expected", SHAPES, ids=["star", "cog", "small comb", "comb", "ring", "straight corners"]
)
def test_polygons_of_any_shape(points, expected):
    """From any corner on, either way round, in any plane: triangles of the polygon's area that use all its corners."""
    rng = np.random.default_rng(0)
    for shift in range(len(points)):
        turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        turned = np.roll(points, shift, axis=0)[:: (-1) ** shift] @ turn * 0.01 + rng.normal(size=3)
        triangles = np.array(triangulate(turned, [list(range(len(points)))]))
        assert len(triangles) == len(points) - 2 and set(triangles.ravel()) == set(range(len(points)))
        assert area(turned[triangles]) == pytest.approx(expected * 1e-4, rel=1e-6)


def test_a_bent_quad_keeps_its_corners():
    points = np.array([(0, 0, 0), (1, 0, 0.2), (1, 1, 0), (0, 1, 0.2)])
    assert triangulate(points, [[0, 1, 2, 3]]) == [(0, 1, 2), (0, 2, 3)]


@pytest.mark.parametrize("corners", [[(0, 0), (1, 1), (1, 0), (0, 1)], [(0, 0), (3, 3), (3, 0), (0, 2), (-1, 1)]])
def test_polygons_that_cross_themselves_are_refused(corners):
    text = (
        "".join(f"v {x} {y} 0\n" for x, y in corners) + "f " + " ".join(str(i + 1) for i in range(len(corners))) + "\n"
    )
    assert "face 0 crosses itself" in read(".obj", text)


# ---------------------------------------------------------------- size and units


@pytest.mark.parametrize(
    "longest, unit",
    [
        (120, "millimetres"),
        (450, "millimetres"),
        (12, "centimetres"),
        (5, "centimetres"),
        (2.5, "inches"),
        (60, "millimetres"),
    ],
)
def test_a_size_out_of_range_names_the_factor_that_mends_it(longest, unit):
    text = obj(vertex=lambda value: f"{value * longest / 0.1:.6f}")
    found = read(".obj", text)
    assert f"is it in {unit}? Scale it by" in found
    factor = float(found.rsplit(" ", 1)[1])
    assert 0.03 <= longest * factor <= 0.5
    assert is_bracket(read(".obj", obj(vertex=lambda value: f"{value:.6f}")))


@pytest.mark.parametrize("length", [2.6e4, 1e-3, 1e30])
def test_a_factor_is_named_where_no_unit_is_likely(length):
    factor = float(unit_hint(length).rsplit(" ", 1)[1])
    assert 0.03 <= length * factor <= 0.5


def test_faces_without_extent_have_no_size():
    """A line that sticks out is left out, one within the solid stays, and a thin strip counts."""
    text = obj()
    assert is_bracket(read(".obj", text + "v 1 -0.025 0.01\nf 1 2 17\n"))
    assert len(read(".obj", text + "f 1 2 1\n")) == len(TRIANGLES) + 1
    assert read(".obj", text + "v 1 -0.025 0.0101\nf 1 2 17\n").max() == 1
    assert "no faces" not in read(".obj", "v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n")  # for sample_surface to refuse


def test_meshes_of_any_unit_where_that_is_asked_for():
    points, _ = parse_mesh(obj(vertex=lambda value: spelt(value * 1000)).encode(), "mesh.obj", 1e6)
    assert np.allclose(points, VERTICES * 1000)


# ---------------------------------------------------------------- what is no mesh

FOREIGN = {
    "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456\n",
    "web page": b"\n <!DOCTYPE html><html><body>Quota exceeded</body></html>",
    "web page or XML": b"\xef\xbb\xbf<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    "macOS": bytes.fromhex("00051607000200004d6163204f532058"),
}


@pytest.mark.parametrize("suffix", [".obj", ".off", ".stl", ".ply", ".glb"])
@pytest.mark.parametrize("what", FOREIGN)
def test_what_is_no_mesh_is_named(what, suffix, tmp_path):
    assert what in read(suffix, FOREIGN[what])
    (tmp_path / "file").write_bytes(FOREIGN[what])
    with pytest.raises(UserError, match=what):
        read_bytes(tmp_path / "file")


def test_companions_are_left_out(tmp_path):
    for name in (
        "b/cup.OBJ",
        "a.ply",
        "b/._cup.obj",
        "__MACOSX/b/cup.obj",
        ".git/x.obj",
        "b/.hidden.obj",
        "b/note.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert files_under(tmp_path, (".obj", ".ply")) == [tmp_path / "a.ply", tmp_path / "b/cup.OBJ"]


def test_a_folder_for_pretraining_with_bad_files(tmp_path, capsys):
    """Companions are left out, meshes of any unit used; a bad file is named, or with --skip-bad listed."""
    for name, scale in (("a.obj", 1), ("b.obj", 1000), ("c.obj", 1e-3)):
        (tmp_path / name).write_text(obj(vertex=lambda value, scale=scale: f"{value * scale:.6f}"))
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
    for name in "abc":
        (tmp_path / f"{name}.obj").unlink()
    with pytest.raises(UserError, match=r"every file is bad; the first: .*d\.ply"):
        folder_clouds(tmp_path, 64, skip_bad=True)
    for name in ("d.ply", "e.npy"):
        (tmp_path / name).unlink()
    with pytest.raises(UserError, match="no meshes and no .npy clouds"):
        folder_clouds(tmp_path, 64, skip_bad=True)
