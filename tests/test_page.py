"""pictures/page.py: the page holds what it says, and turns and changes in a real browser without a network."""

import json
import re

import numpy as np
import pytest
import trimesh
from browser import offline_browser

import evaluate
import predict
from hand.described import BENCHMARK, hand_for
from pictures.page import Shown, write_page

POSE = np.r_[0.02, -0.03, 0.3, 1, 0, 0, 0]  # 30 cm over the origin, looking down


def shown(count=2, **changes):
    """Objects with three hypotheses each, the second the most probable and the recorded one."""
    rng = np.random.default_rng(0)
    for i in range(count):
        box = trimesh.creation.box((0.05, 0.1, 0.05 + 0.05 * i))
        joints = rng.uniform(0, 0.5, (3, 12))
        entry = Shown(f"box {i} </script>", box.vertices, box.faces, POSE, joints, np.array([0.2, 0.7, 0.1]), joints[1])
        yield entry._replace(**changes)


def content(path):
    """The data that the page's script reads."""
    return json.loads(re.search(r"^const page = (.*);$", path.read_text(encoding="utf-8"), re.M)[1])


def test_page_holds_what_it_shows(tmp_path):
    write_page("runs/a", list(shown()), BENCHMARK.joint_names, tmp_path / "page.html", BENCHMARK)
    page = content(tmp_path / "page.html")
    first = page["objects"][0]
    assert page["joints"] == list(BENCHMARK.joint_names) and first["title"] == "box 0 </script>"
    assert [hand["chance"] for hand in first["hypotheses"]] == [0.7, 0.2, 0.1]
    assert first["hypotheses"][0]["error"] == 0 < first["hypotheses"][1]["error"]
    assert first["hypotheses"][0]["joints"] == first["recorded"]["joints"] and first["recorded"]["holds"] is False
    origin, end = np.array(first["axes"][2])  # the wrist's z looks down
    assert np.allclose(origin, POSE[:3]) and np.allclose((end - origin)[:2], 0) and end[2] < origin[2]
    assert len(first["recorded"]["balls"]) == 59
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert text.count("</script>") == 2 and not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", text)


def test_other_hands_and_clouds(tmp_path):
    """Without a model of the hand nothing of it is drawn, nor said of holding; a cloud has no inside to touch."""
    write_page("runs/b", list(shown(recorded=None)), [f"joint {i}" for i in range(12)], tmp_path / "b.html", None)
    for entry in content(tmp_path / "b.html")["objects"]:
        assert entry["recorded"] is None and all(set(hand) == {"joints", "chance"} for hand in entry["hypotheses"])
    write_page("runs/c", list(shown(faces=None)), BENCHMARK.joint_names, tmp_path / "c.html", BENCHMARK)
    hand = content(tmp_path / "c.html")["objects"][0]["hypotheses"][0]
    assert "holds" not in hand and len(hand["balls"]) == 59


def test_commands_write_pages(tiny_run, tmp_path, capsys):
    """evaluate.py shows objects of its suite as recorded and predicted, predict.py one object, a cloud too."""
    evaluate.main([str(tiny_run / "run"), "--page", str(tmp_path / "run.html")])
    objects = content(tmp_path / "run.html")["objects"]
    assert len(objects) > 1 and all(len(entry["recorded"]["joints"]) == 12 for entry in objects)
    assert all("error" in hand for entry in objects for hand in entry["hypotheses"])
    np.save(tmp_path / "cloud.npy", np.random.default_rng(0).uniform(-0.05, 0.05, (100, 3)) + (0, 0, 0.05))
    for mesh in (tiny_run / "box.obj", tmp_path / "cloud.npy"):
        pose = ["--pose", *map(str, [0, 0, 0.2, 1, 0, 0, 0])]
        page = tmp_path / f"{mesh.name}.html"
        predict.main([str(tiny_run / "run"), str(mesh), *pose, "--page", str(page)])
        (entry,) = content(page)["objects"]
        assert entry["title"] == f"{mesh.name}, pose 1" and entry["recorded"] is None and entry["hypotheses"]
        assert f"saved {page}" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("names", [BENCHMARK.joint_names, [f"joint {i}" for i in range(12)]])
def test_in_a_browser(names, tmp_path):
    """Two objects and two hypotheses are clicked through; each choice shows, in words and in the picture."""
    write_page("runs/a", list(shown()), names, tmp_path / "page.html", hand_for(names))
    with offline_browser(tmp_path / "profile") as browser:
        browser.ask("/url", url=(tmp_path / "page.html").as_uri())
        browser.wait("document.body.dataset.ready === 'yes'")
        pictures = [browser.screenshot()]
        words = {"#objects": ["box 0 </script>"], "#hypotheses": ["70 % · 0.0° off"]}
        for place, nth in (("#hypotheses", 2), ("#objects", 2), ("#hypotheses", 3)):
            browser.click(f"{place} button:nth-child({nth})")
            pictures.append(browser.screenshot())
            words[place].append(browser.run(f"return document.querySelector('{place} .on').textContent"))
        assert words["#objects"] == ["box 0 </script>", "box 1 </script>"]
        assert [text[:4] for text in words["#hypotheses"]] == ["70 %", "20 %", "10 %"]
        assert all(("hold" in text) == (names == BENCHMARK.joint_names) for text in words["#hypotheses"][1:])
        assert len(set(pictures)) == 4
        errors = [line["message"] for line in browser.ask("/se/log", type="browser") if line["level"] == "SEVERE"]
        assert not errors and not browser.run("return performance.getEntriesByType('resource').length")
