# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_labelfx.transforms.patch_table import class_names, read_patch_table, write_patch_table

HEADER = "x,y,width,height,class_0,class_1"


@pytest.fixture
def table(tmp_path):
    """Writes a table and returns its path."""

    def write(text: str, encoding: str = "utf-8"):
        path = tmp_path / "ticks.csv"
        path.write_bytes(text.encode(encoding))
        return path

    return write


def test_all_words_for_ticks(table):
    yes, no, open_ = ("1", "YES", " true ", "Present", "1.0"), ("0", "no", "False", "absent", "0.0"), ("", "?", "-1")
    rows = [f"0,0,4,4,{a},{b}" for a, b in zip((*yes, *no), (*no, *yes), strict=True)]
    rows += [f"0,0,4,4,1,{word}" for word in (*open_, "unknown")]
    labels = read_patch_table(table("\n".join([HEADER, *rows])), 2)["patch_labels"]
    assert labels.dtype == torch.int8
    assert labels.tolist() == [[1, 0]] * 5 + [[0, 1]] * 5 + [[1, -1]] * 4


def test_a_spreadsheet_with_byte_order_mark_semicolons_blanks_and_empty_lines(table):
    text = (
        "\ufeffNote; X ;y;Z;width;height;depth;Background;Gland, large\r\nhi;1;2;3;4;5.0;6;yes;no\r\n;;;;;;;;\r\n\r\n"
    )
    text += '"a;b";7;8;9;10;11;12;;1\r\n'
    found = read_patch_table(table(text), ["background", "gland, large"])
    assert found["patches"].tolist() == [[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]]
    assert found["patches"].dtype == torch.int64 and found["lines"] == [2, 5]
    assert found["patch_labels"].tolist() == [[1, 0], [-1, 1]] and "sub_labels" not in found


def test_names_may_be_numbers_of_classes(table):
    path = table(f"{HEADER}\n0,0,1,1,1,0")
    assert read_patch_table(path, ["stroma", "gland"])["patch_labels"].tolist() == [[1, 0]]


def test_clusters(table):
    path = table(f"{HEADER},class_1_cluster\n0,0,1,1,1,1,3\n0,0,1,1,1,0,\n0,0,1,1,1,0,?")
    found = read_patch_table(path, 2)["sub_labels"]
    assert found.tolist() == [[-1, 3], [-1, -1], [-1, -1]] and found.dtype == torch.int64


def test_rows_of_an_image_are_found_by_the_end_of_its_path(table):
    text = f"image,{HEADER}\nset/1.png,0,0,1,1,1,0\n1.png,0,0,2,2,1,0\n11.png,0,0,3,3,1,0\nb\\1.png,0,0,4,4,1,0\n"
    path = table(text)

    def sizes(image):
        return read_patch_table(path, 2, image=image)["patches"][:, 2].tolist()

    assert sizes("/data/set/1.png") == [1, 2] and sizes("/data/other/1.png") == [2] and sizes("11.png") == [3]
    assert sizes(r"C:\a\b\1.png") == [2, 4]
    with pytest.raises(ValueError, match=r"no row for image '/data/2.png'; it names 'set/1.png', '1.png', '11.png', "):
        sizes("/data/2.png")
    with pytest.raises(ValueError, match="has rows of 4 images, and the image at hand has no file name"):
        sizes(None)


def test_one_image_needs_no_name(table):
    assert len(read_patch_table(table(f"image,{HEADER}\na.png,0,0,1,1,1,0\na.png,0,0,1,1,1,0"), 2)["lines"]) == 2
    for text in (f"image,{HEADER}\n,0,0,1,1,1,0", f"{HEADER}\n0,0,1,1,1,0"):
        assert len(read_patch_table(table(text), 2, image="a.png")["lines"]) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no header in its first line"),
        ("\n1,2", "has no header in its first line"),
        (HEADER, "has no row below its header"),
        ("x,y,width,class_0,class_1\n1,1,1,1,1", r"has no column 'height', only x, y, width, class_0, class_1\."),
        ("x,y,width,height,class_0\n1,1,1,1,1", r"has no column 'class_1', only x, y,"),
        ("x,y,z,width,height,class_0,class_1\n", "has no column 'depth'"),
        ("x,y,width,height,class_0,class_1,X\n", "has the column 'x' twice"),
        (
            f"{HEADER}\n0,0,1,1,1,1\n0,left,1,1,1,1",
            "line 3, column 'y': must be a whole number of 0 or more, got 'left'",
        ),
        (f"{HEADER}\n0,1.5,1,1,1,1", "line 2, column 'y': must be a whole number of 0 or more, got '1.5'"),
        (f"{HEADER}\n0,,1,1,1,1", "line 2, column 'y': must be a whole number of 0 or more, got ''"),
        (f"{HEADER}\n0,nan,1,1,1,1", "got 'nan'"),
        (f"{HEADER}\n0,1e30,1,1,1,1", "got '1e30'"),
        (f"{HEADER}\n0,-1,1,1,1,1", "line 2, column 'y': must be a whole number of 0 or more, got '-1'"),
        (f"{HEADER}\n0,0,0,1,1,1", "line 2, column 'width': must be a whole number of 1 or more, got '0'"),
        (f"{HEADER}\n0,0,1,1,1,maybe", "line 2, column 'class_1': must be 1, yes, true or present; .* got 'maybe'"),
        (f"{HEADER}\n0,0,1,1,1,2", "got '2'"),
        (f"{HEADER}\n0,0,1,1,1,1,1", "line 2: there are 7 cells, but the header has 6"),
        (f"{HEADER}\n0,0,1,1,,?", r"has no known label: nothing but empty cells or \? under \['class_0', 'class_1'\]"),
        (
            f"{HEADER},class_0_cluster\n0,0,1,1,1,1,x",
            "line 2, column 'class_0_cluster': must be .* of -1 or more, got 'x'",
        ),
        (f'{HEADER}\n"0,0,1,1,1,1', "cannot be read as a CSV table in UTF-8"),
    ],
)
def test_everything_wrong_is_one_sentence_with_its_place(table, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_patch_table(table(text), 2)
    assert "ticks.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_are_none(table, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no table of patch labels '.*nothing.csv'"):
        read_patch_table(tmp_path / "nothing.csv", 2)
    with pytest.raises(ValueError, match="cannot be read as a CSV table in UTF-8"):
        read_patch_table(table(f"{HEADER}\n0,0,1,1,1,\xe9", "latin-1"), 2)
    with pytest.raises(ValueError, match=r"has no known label for image 'a.png'"):
        read_patch_table(table(f"image,{HEADER}\na.png,0,0,1,1,,\nb.png,0,0,1,1,1,1"), 2, image="a.png")


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), ndim=st.integers(2, 3), clusters=st.booleans(), named=st.booleans())
def test_what_is_written_is_read_back(tmp_path_factory, seed, ndim, clusters, named):
    rng = np.random.default_rng(seed)
    items = []
    for number in range(3 if named else 1):
        patches = rng.integers(1, 50, (4, 2 * ndim))
        labels = rng.integers(-1, 2, (4, 3))
        labels[0, 0] = 1
        item = {"patches": patches, "patch_labels": torch.from_numpy(labels)}
        item |= {"image": f"set {number}, new/1.png"} if named else {}
        item |= {"sub_labels": rng.integers(-1, 9, (4, 3))} if clusters else {}
        items.append(item)
    names = ["background", "gland; old", 'a "b"']
    path = write_patch_table(tmp_path_factory.mktemp("t") / "new" / "t.csv", items, names)
    for item in items:
        found = read_patch_table(path, names, image=item.get("image"))
        assert all(np.array_equal(found[key], item[key]) for key in item if key != "image")
        assert ("sub_labels" in found) is clusters


def test_items_that_cannot_be_written_together(tmp_path):
    item = {"patches": [[0, 0, 1, 1]], "patch_labels": [[1, 0]]}
    for other in ({**item, "image": "a"}, {**item, "sub_labels": [[1, 1]]}, {**item, "patches": [[0] * 6]}):
        with pytest.raises(ValueError, match="must have equally many axes, and all an image and sub_labels or none"):
            write_patch_table(tmp_path / "t.csv", [item, other], 2)
    with pytest.raises(
        ValueError, match=r"patch_labels of an item .* must be \(N, 3\) with N patches, got shape \(1, 2\)"
    ):
        write_patch_table(tmp_path / "t.csv", [item], 3)
    with pytest.raises(ValueError, match=r"patches of an item .* got shape \(\)"):
        write_patch_table(tmp_path / "t.csv", [{"patch_labels": [[1, 0]]}], 2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("classes", [1, "gland", ["a"], ["a", "A "], 0])
def test_classes_that_are_none(classes):
    with pytest.raises(ValueError, match="classes must be a number of 2 or above, or as many different names"):
        class_names(classes)


def test_a_class_cannot_have_the_name_of_another_column():
    with pytest.raises(ValueError, match="a class of a patch table cannot be called 'Width'"):
        class_names(["a", "Width"])
