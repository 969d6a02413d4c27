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


def finger(name, palm, joints, places, axes, limits, rpy="0 0 0", solids=("",) * 6):
    """Joints one behind the other, links name_0, name_1, …; places and solids: one more, of the fixed fingertip."""
    links = [f"{name}_{i}" for i in range(len(joints))]
    turns = [rpy, *["0 0 0"] * (len(joints) - 1)]
    moving = zip(joints, [palm, *links], links, places, turns, axes, limits, solids)
    tip = joint(f"{name}_end", links[-1], f"{name}_tip", places[-1], collision=solids[-1])
    return "".join(joint(*one) for one in moving) + tip


def allegro():
    """Fingers along z of the palm, which looks along x: abduction, then three flexions; boxes, spheres at the tips."""
    text = f"<robot name='allegro'>\n  <link name='palm'>{box(0.0408, 0.113, 0.095, '-0.0093 0 -0.0475')}</link>\n"
    places = (0.0435, -0.001542, -0.08726646), (0, 0.0007, 0), (-0.0435, -0.001542, 0.08726646)
    limits = (-0.47, 0.47), (-0.196, 1.61), (-0.174, 1.709), (-0.227, 1.618)
    lengths, tip = (0.0164, 0.054, 0.0384, 0.0267), solid("sphere radius='0.012'")
    solids = [*(box(0.0196, 0.0275, length, f"0 0 {length / 2}") for length in lengths), tip]
    for k, (name, (y, z, tilt)) in enumerate(zip(("index", "middle", "ring"), places)):
        joints, ends = [f"joint_{4 * k + i}" for i in range(4)], (f"0 0 {length}" for length in lengths)
        axes = "0 0 1", *["0 1 0"] * 3
        text += finger(name, "palm", joints, [f"0 {y} {z}", *ends], axes, limits, f"{tilt} 0 0", solids)
    ends = "-0.0182 0.019333 -0.045987", "-0.027 0.005 0.0399", "0 0 0.0177", "0 0 0.0514", "0 0 0.0423"
    limits = (0.263, 1.396), (-0.105, 1.163), (-0.189, 1.644), (-0.162, 1.719)
    solids = [box(0.0358, 0.034, 0.0455, "-0.0179 0.009 0.0145")]
    solids += [box(0.0196, 0.0275, length, f"0 0 {length / 2}") for length in (0.0177, 0.0514, 0.0423)]
    axes, joints = ("-1 0 0", "0 0 1", "0 1 0", "0 1 0"), [f"joint_{i}" for i in range(12, 16)]
    thumb = finger("thumb", "palm", joints, ends, axes, limits, "0 -1.65806279 -1.57079633", [*solids, tip])
    return text + thumb + "</robot>\n"


def leap():
    """Fingers along y of the palm, which looks along -z: flexion, abduction, two flexions; no solids."""
    text = "<robot name='leap'>\n  <link name='base'/>\n" + joint("mount", "base", "palm_lower", "0 0 0.1", "0 0 1.5")
    limits, ends = ((-0.314, 2.23), (-1.047, 1.047), (-0.506, 1.885), (-0.366, 2.042)), (0.0145, 0.0381, 0.0361, 0.048)
    for k, x in enumerate((-0.0454, 0, 0.0454)):
        joints, places = [str(4 * k + i) for i in (1, 0, 2, 3)], [f"{x} 0.0 0", *(f"0 {end} 0" for end in ends)]
        text += finger(f"finger{k}", "palm_lower", joints, places, ("-1 0 0", "0 0 1", *["-1 0 0"] * 2), limits)
    limits = (-0.349, 2.094), (-0.47, 2.443), (-1.2, 1.9), (-1.34, 1.88)
    ends = "-0.055 -0.055 -0.012", "-0.0145 0 0", "-0.0466 0 0", "-0.0466 0 0", "-0.048 0 0"
    axes, joints = ("0 -1 0", "-1 0 0", "0 -1 0", "0 -1 0"), map(str, range(12, 16))
    return text + finger("thumb", "palm_lower", [*joints], ends, axes, limits) + "</robot>\n"


def shadow():
    """Two joints of the wrist, five fingers along z of the palm, which looks along -y; their last joints follow."""
    text = "<robot name='shadow'>\n  <link name='forearm'/>\n"
    text += joint("WRJ2", "forearm", "wrist", "0 0 0.21", axis="0 1 0", limits=(-0.52, 0.17))
    text += joint("WRJ1", "wrist", "palm", "0 0 0.034", axis="1 0 0", limits=(-0.7, 0.49))
    limits, axes = ((-0.349, 0.349), (-0.262, 1.571), (0, 1.571), (0, 1.571)), ("0 1 0", *["1 0 0"] * 3)
    for name, x, z in (("FF", 0.033, 0.095), ("MF", 0.011, 0.099), ("RF", -0.011, 0.095), ("LF", 0, 0.066)):
        palm, joints = "lfmetacarpal" if name == "LF" else "palm", [f"{name}J{number}" for number in (4, 3, 2, 1)]
        places = [f"{x} 0 {z}", "0 0 0", "0 0 0.045", "0 0 0.025", "0 0 0.026"]
        before, last, after = finger(name.lower(), palm, joints, places, axes, limits).rpartition("<axis")
        text += f"{before}<mimic joint='{name}J2'/> {last}{after}"
    text += joint("LFJ5", "palm", "lfmetacarpal", "-0.033 0 0.0207", axis="0.574 0 0.819", limits=(0, 0.785))
    axes = "0 0 -1", "1 0 0", "1 0 0", "0 -1 0", "0 -1 0"
    limits = (-1.047, 1.047), (0, 1.222), (-0.209, 0.209), (-0.698, 0.698), (-0.262, 1.571)
    places = "0.034 -0.0085 0.029", "0 0 0", "0 0 0.038", "0 0 0", "0 0 0.032", "0 0 0.0275"
    joints = [f"THJ{number}" for number in (5, 4, 3, 2, 1)]
    return text + finger("th", "palm", joints, places, axes, limits, "0 0.785 0") + "</robot>\n"
