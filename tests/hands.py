"""URDFs of hands, written from published dimensions: 16 joints as the Allegro hand has them, and as the LEAP hand."""

TURN = "    <axis xyz='{}'/> <limit lower='{}' upper='{}' effort='1' velocity='1'/>\n"


def joint(name, parent, child, xyz, rpy="0 0 0", axis=None, limits=None, collision=""):
    """A joint and its child link; without an axis it is fixed."""
    kind, turn = ("revolute", TURN.format(axis, *limits)) if axis else ("fixed", "")
    return (
        f"  <link name='{child}'>{collision}</link>\n  <joint name='{name}' type='{kind}'>\n"
        f"    <parent link='{parent}'/> <child link='{child}'/> <origin xyz='{xyz}' rpy='{rpy}'/>\n{turn}  </joint>\n"
    )


def solid(shape, xyz="0 0 0", rpy="0 0 0"):
    return f"<collision><origin xyz='{xyz}' rpy='{rpy}'/><geometry><{shape}/></geometry></collision>"


def box(x, y, z, xyz):
    return solid(f"box size='{x} {y} {z}'", xyz)


def allegro():
    """Fingers along z of the palm, which looks along x: abduction, then three flexions; boxes, spheres at the tips."""
    text = f"<robot name='allegro'>\n  <link name='palm'>{box(0.0408, 0.113, 0.095, '-0.0093 0 -0.0475')}</link>\n"
    fingers = {
        "index": (0.0435, -0.001542, -0.08726646),
        "middle": (0, 0.0007, 0),
        "ring": (-0.0435, -0.001542, 0.08726646),
    }
    limits = (-0.47, 0.47), (-0.196, 1.61), (-0.174, 1.709), (-0.227, 1.618)
    thumb = (0.263, 1.396), (-0.105, 1.163), (-0.189, 1.644), (-0.162, 1.719)
    for k, (finger, (y, z, tilt)) in enumerate(fingers.items()):
        parent, at = "palm", f"0 {y} {z}"
        for i, length in enumerate((0.0164, 0.054, 0.0384, 0.0267)):
            name = f"joint_{4 * k + i}"
            body = box(0.0196, 0.0275, length, f"0 0 {length / 2}")
            rpy = f"{tilt} 0 0" if i == 0 else "0 0 0"
            text += joint(name, parent, f"{finger}_{i}", at, rpy, "0 1 0" if i else "0 0 1", limits[i], body)
            parent, at = f"{finger}_{i}", f"0 0 {length}"
        text += joint(f"{finger}_end", parent, f"{finger}_tip", at, collision=solid("sphere radius='0.012'"))
    ends = "-0.0182 0.019333 -0.045987", "-0.027 0.005 0.0399", "0 0 0.0177", "0 0 0.0514", "0 0 0.0423"
    axes, parent = ("-1 0 0", "0 0 1", "0 1 0", "0 1 0"), "palm"
    sizes = (0.0358, 0.034, 0.0455, "-0.0179 0.009 0.0145"), (0.0177, 0.00885), (0.0514, 0.0257), (0.0423, 0.02115)
    for i, (at, axis) in enumerate(zip(ends, axes)):
        body = box(*sizes[i]) if i == 0 else box(0.0196, 0.0275, sizes[i][0], f"0 0 {sizes[i][1]}")
        rpy = "0 -1.65806279 -1.57079633" if i == 0 else "0 0 0"
        text += joint(f"joint_{12 + i}", parent, f"thumb_{i}", at, rpy, axis, thumb[i], body)
        parent = f"thumb_{i}"
    return (
        text + joint("thumb_end", parent, "thumb_tip", ends[4], collision=solid("sphere radius='0.012'")) + "</robot>\n"
    )


def leap():
    """Fingers along y of the palm, which looks along -z: flexion, abduction, two flexions; no solids."""
    text = "<robot name='leap'>\n  <link name='base'/>\n" + joint("mount", "base", "palm_lower", "0 0 0.1", "0 0 1.5")
    limits, names = ((-0.314, 2.23), (-1.047, 1.047), (-0.506, 1.885), (-0.366, 2.042)), "1 0 2 3".split()
    for k, x in enumerate((-0.0454, 0, 0.0454)):
        parent, at = "palm_lower", f"{x} 0.0 0"
        for i, length in enumerate((0.0145, 0.0381, 0.0361, 0.048)):
            name = str(4 * k + int(names[i]))
            text += joint(name, parent, f"finger{k}_{i}", at, axis="0 0 1" if i == 1 else "-1 0 0", limits=limits[i])
            parent, at = f"finger{k}_{i}", f"0 {length} 0"
        text += joint(f"finger{k}_end", parent, f"finger{k}_tip", at)
    thumb = (-0.349, 2.094), (-0.47, 2.443), (-1.2, 1.9), (-1.34, 1.88)
    ends = "-0.055 -0.055 -0.012", "-0.0145 0 0", "-0.0466 0 0", "-0.0466 0 0", "-0.048 0 0"
    axes, parent = ("0 -1 0", "-1 0 0", "0 -1 0", "0 -1 0"), "palm_lower"
    for i, at in enumerate(ends[:4]):
        text += joint(str(12 + i), parent, f"thumb_{i}", at, axis=axes[i], limits=thumb[i])
        parent = f"thumb_{i}"
    return text + joint("thumb_end", parent, "thumb_tip", ends[4]) + "</robot>\n"


def shadow():
    """Two joints of the wrist, five fingers along z of the palm, which looks along -y; their last joints follow."""
    text = "<robot name='shadow'>\n  <link name='forearm'/>\n" + joint(
        "WRJ2", "forearm", "wrist", "0 0 0.21", "0 0 0", "0 1 0", (-0.52, 0.17)
    )
    text += joint("WRJ1", "wrist", "palm", "0 0 0.034", axis="1 0 0", limits=(-0.7, 0.49))
    text += joint("LFJ5", "palm", "lfmetacarpal", "-0.033 0 0.0207", axis="0.574 0 0.819", limits=(0, 0.785))
    for finger, x, z in (("FF", 0.033, 0.095), ("MF", 0.011, 0.099), ("RF", -0.011, 0.095), ("LF", 0, 0.066)):
        parent, at = "lfmetacarpal" if finger == "LF" else "palm", f"{x} 0 {z}"
        parts = (("4", "0 1 0", 0, 0.349), ("3", "1 0 0", 0.045, 1.571), ("2", "1 0 0", 0.025, 1.571))
        for number, axis, length, high in (*parts, ("1", "1 0 0", 0.026, 1.571)):
            low = -0.349 if number == "4" else -0.262 if number == "3" else 0
            turn = joint(f"{finger}J{number}", parent, f"{finger.lower()}{number}", at, axis=axis, limits=(low, high))
            text += turn.replace("<axis", f"<mimic joint='{finger}J2'/> <axis") if number == "1" else turn
            parent, at = f"{finger.lower()}{number}", f"0 0 {length}"
        text += joint(f"{finger}tip", parent, f"{finger.lower()}tip", at)
    parent, at = "palm", "0.034 -0.0085 0.029"
    for number, axis, length, limits in (
        ("5", "0 0 -1", 0, (-1.047, 1.047)), ("4", "1 0 0", 0.038, (0, 1.222)), ("3", "1 0 0", 0, (-0.209, 0.209)),
        ("2", "0 -1 0", 0.032, (-0.698, 0.698)), ("1", "0 -1 0", 0.0275, (-0.262, 1.571)),
    ):  # fmt: skip
        text += joint(
            f"THJ{number}", parent, f"th{number}", at, "0 0.785 0" if number == "5" else "0 0 0", axis, limits
        )
        parent, at = f"th{number}", f"0 0 {length}"
    return text + joint("THtip", parent, "thtip", at) + "</robot>\n"
