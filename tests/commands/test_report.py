# SPDX-License-Identifier: Apache-2.0
"""labelfx report."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from monai_labelfx.cli import main
from monai_labelfx.commands.report import MOST_PICTURES, WIDEST, without_folders, write_report


class _Page(HTMLParser):
    """Tags that are open, attributes that could load something, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.sources, self.tags, self.words = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [v for k, v in attributes if k in ("src", "href", "action", "data")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps({"AP<50>": 0.51234, "PSNR": None}))
    (folder / "history.json").write_text(
        json.dumps({"train_loss": [[1, 2.0], [2, 1.0]], "AP": [[2, 0.5]], "lr": [[1, 0.1]]})
    )
    record = {"versions": {"torch": "2.x"}, "seed": 3, "seconds": 1.5, "command": ["labelfx", "/data/Mrs Jones"]}
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "config_train.yaml").write_text("dataset_dir: /data/Mrs Jones/knee\nalpha: 0.5\nx: <script>\n")
    Image.fromarray(np.zeros((4, WIDEST + 50, 3), np.uint8)).save(folder / "a<b.png")
    return folder


def test_one_escaped_self_contained_page(run, capsys):
    assert main(["report", str(run)]) == 0
    assert str(run / "report.html") in capsys.readouterr().out
    text = (run / "report.html").read_text()
    page = _Page(text)
    assert not page.open and "script" not in page.tags
    assert page.sources and all(source.startswith("data:image/png;base64,") for source in page.sources)
    words = " ".join(page.words)
    for expected in ("AP<50>", "0.5123", "a<b", "train_loss", "version of torch", "alpha: 0.5", ".../knee", "<script>"):
        assert expected in words, expected
    assert "Jones" not in text and page.tags.count("svg") == 3


def test_large_pictures_are_shrunk(run):
    import base64
    import io

    page = _Page(write_report(run).read_text())
    (source,) = page.sources
    assert Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).width == WIDEST


def test_several_runs_are_compared(run):
    (run / "metrics.json").unlink()
    for name in ("one", "two"):
        (run / name).mkdir()
        (run / name / "metrics.json").write_text('{"AP": 0.25}')
    text = write_report(run).read_text()
    assert "Comparison" in text and text.count("0.2500") == 4
    (run / "table.json").write_text(json.dumps({"note": "only & one", "rows": [{"run": "One", "AP": 0.75}]}))
    text = write_report(run).read_text()
    assert "only &amp; one" in text and "0.7500" in text
    tables = [
        {"title": "A < B", "rows": [{"run": "One", "AP": 0.125}]},
        {"title": "C", "rows": [{"run": "Two", "F": 0.5}]},
    ]
    (run / "table.json").write_text(json.dumps({"note": "both", "tables": tables}))
    text = write_report(run).read_text()
    assert "<h3>A &lt; B</h3><table>" in text and "<h3>C</h3><table>" in text and "<p>both</p>" in text
    assert "0.1250" in text and "<th>F</th>" in text


def test_repeated_and_many_pictures(run):
    content = (run / "a<b.png").read_bytes()
    (run / "test").mkdir()
    (run / "test" / "same.png").write_bytes(content)
    page = _Page(write_report(run).read_text())
    assert len(page.sources) == 1 and "test / same" in page.words
    for number in range(MOST_PICTURES + 3):
        Image.fromarray(np.full((2, 2), number, np.uint8)).save(run / f"{number:02}.png")
    page = _Page(write_report(run).read_text())
    assert len(page.sources) == MOST_PICTURES and "4 more pictures lie in the run folder" in " ".join(page.words)


def test_faults(run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["report", str(tmp_path / "empty")]) == 1
    assert "is no run folder" in capsys.readouterr().err
    (run / "bad.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"bad\.png is not a readable PNG"):
        write_report(run)


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("a: C:\\Users\\jones\\x.nii", "a: .../x.nii"),
        ("- '/data/jones/x'", "- '.../x'"),
        ("a: $@b + '/models'", "a: $@b + '/models'"),
        ("a: runs/denoiseg", "a: runs/denoiseg"),
        ("a: 1 / 2 / 3", "a: 1 / 2 / 3"),
    ],
)
def test_paths_are_shortened(text, short):
    assert without_folders(text) == short
