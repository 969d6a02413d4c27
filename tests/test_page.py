"""pictures/page.py: the page holds what it says, and turns and changes in a real browser without a network."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import trimesh

import evaluate
import predict
from hand.described import BENCHMARK, hand_for
from pictures.draw import Shown
from pictures.page import write_page

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


DRIVER = """<script>
const waiting = setInterval(() => {
  if (document.body.dataset.ready !== "yes") return;
  clearInterval(waiting);
  const words = [], pictures = new Set();
  for (const [place, nth] of [["objects", 0], ["hypotheses", 1], ["objects", 1], ["hypotheses", 2]]) {
    at(place).children[nth].click();
    words.push(document.querySelector(`#${place} .on`).textContent);
    pictures.add(renderer.domElement.toDataURL());  // drawn just now
  }
  const loaded = performance.getEntriesByType("resource").length;
  document.body.dataset.told = JSON.stringify({ words, pictures: pictures.size, loaded });
}, 30);
</script>
"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium here")
@pytest.mark.parametrize("names", [BENCHMARK.joint_names, [f"joint {i}" for i in range(12)]])
def test_in_a_browser(names, tmp_path):
    """Two objects and two hypotheses are clicked through; each choice shows, in words and in the picture."""
    page = tmp_path / "page.html"
    write_page("runs/a", list(shown()), names, page, hand_for(names))
    page.write_text(page.read_text(encoding="utf-8") + DRIVER, encoding="utf-8")
    flags = "--headless --no-sandbox --enable-unsafe-swiftshader --virtual-time-budget=60000 --dump-dom".split()
    alone = ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}"]  # without a network
    done = subprocess.run(["chromium", *flags, *alone, page.as_uri()], capture_output=True, text=True, timeout=300)
    told = json.loads(html.unescape(re.search(r'data-told="(.*?)"', done.stdout)[1]))
    assert [words[:5] for words in told["words"]] == ["box 0", "20 % ", "box 1", "10 % "]
    known = names == BENCHMARK.joint_names
    assert all(("hold" in words) == known for words in told["words"][1::2])
    assert (told["pictures"], told["loaded"]) == (4 if known else 2, 0)  # of another hand no hypothesis is drawn
