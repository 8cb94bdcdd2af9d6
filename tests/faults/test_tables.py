"""Tables as people write them: a row that is none costs one row, and is named with the reason why."""

import json
import os

import pytest
from places_kit import fill, total

from gentok.data.manifest import Manifest

GOOD = [(f"{i:03d}.png", ("cat", "dog")[i % 2], f"a {('cat', 'dog')[i % 2]} number {i}") for i in range(20)]


def table(folder, changed=(), kind="csv", header="path,label,caption"):
    """A table of 20 rows, some of which are other lines."""
    fill(folder, 20)
    comma = {"csv": ",", "tsv": "\t"}[kind]
    lines = [comma.join(row) for row in GOOD]
    for i, line in dict(changed).items():
        lines[i] = line
    path = folder / f"t.{kind}"
    path.write_text("\n".join([header.replace(",", comma), *lines]) + "\n")
    return path


def captions(data):
    """{file name: (class, caption)} of all items."""
    spec, out = dict(data.condition_spec.parts), {}
    for part in (data.train, data.held_out):
        condition = part.__getitems__(range(len(part))).condition.parts
        for i, name in enumerate(part.names):
            ids = condition["text"].ids[i].tolist()
            label = spec["class"].names[condition["class"].ids[i]]
            out[os.path.basename(name)] = label, "".join(spec["text"].alphabet[c] for c in ids if c >= 0)
    return out


@pytest.mark.parametrize(
    "changed, reason",
    [
        ({4: '004.png,cat,"a cat that is not closed'}, "its quotes do not pair"),
        ({19: '019.png,dog,"a dog at the end'}, "its quotes do not pair"),
        ({4: '004.png,cat,"a" cat'}, "its quotes do not pair"),
        ({4: "004.png,cat,a cat, on a mat"}, "it has 4 fields, the first line 3: a text with commas must stand in quotes"),
        ({4: "004.png, on a mat"}, "it has 2 fields, the first line 3"),
        ({4: "004.png"}, "it has 1 fields, the first line 3"),
        ({4: ",cat,a cat"}, "it has no 'path'"),
        ({4: "gone.png,cat,a cat"}, "there is no such file"),
        ({4: "004\0.png,cat,a cat"}, "its 'path' has a character of value 0"),
        ({4: "004.png,,a cat"}, "it has no label"),
    ],
)
def test_one_bad_row_is_one_row(tmp_path, changed, reason, caplog):
    data = Manifest(table(tmp_path, changed), held_out=0.2, captions="ids", max_broken=0.06)
    (bad,) = changed
    assert captions(data) == {name: (label, text) for i, (name, label, text) in enumerate(GOOD) if i != bad}
    assert data.train.skipped["count"] == 1 and data.train.skipped["of"] + len(data.held_out) == 20
    (name,) = data.train.skipped["files"]
    assert data.train.skipped["reasons"][name].startswith(reason) and reason in caplog.text and "\n" not in reason
    assert f"line {bad + 2} of" in name or changed[bad].split(",")[0] in name


def test_several_bad_quotes_cost_the_rows_that_they_stand_in(tmp_path):
    changed = {3: '003.png,dog,"one', 7: '007.png,dog,"', 12: '012.png,cat,"two', 15: '015.png,dog,""three"'}
    data = Manifest(table(tmp_path, changed), held_out=0.2, captions="ids", max_broken=0.5)
    kept = captions(data)
    assert kept == {name: (label, text) for i, (name, label, text) in enumerate(GOOD) if i not in changed}
    assert len(data.train.skipped["files"]) == 4


def test_good_quotes_commas_and_lines_inside_of_them_are_text(tmp_path):
    changed = {4: '004.png,cat,"a cat, on a ""mat"""', 5: '005.png,dog,"two\nlines, of text"', 6: '006.png, cat, "with blanks"'}
    kept = captions(Manifest(table(tmp_path, changed), held_out=0.2, captions="ids"))
    assert kept["004.png"] == ("cat", 'a cat, on a "mat"') and kept["006.png"] == ("cat", "with blanks") and len(kept) == 20
    assert kept["005.png"] == ("dog", "two\nlines, of text")


def test_rows_of_nothing_are_no_rows(tmp_path):
    path = table(tmp_path)
    path.write_text(path.read_text() + "\n\n,,\n , ,\n")
    data = Manifest(path, held_out=0.2)
    assert total(data) == 20 and data.train.skipped["count"] == 0


def test_empty_columns_at_the_end_are_none(tmp_path):
    path = table(tmp_path)
    path.write_text("".join(f"{line},,\n" for line in path.read_text().splitlines()))
    data = Manifest(path, held_out=0.2, captions="ids")
    assert total(data) == 20 and captions(data) == {name: (label, text) for name, label, text in GOOD}


def test_files_that_are_all_missing_are_said_to_be_missing(tmp_path):
    path = table(tmp_path)
    for file in tmp_path.glob("*.png"):
        file.unlink()
    with pytest.raises(ValueError, match=r"none of the 20 images can be read: .*000\.png \(there is no such file\)") as error:
        Manifest(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_a_tab_or_a_comma_too_many_is_never_a_class(tmp_path, kind):
    comma = {"csv": ",", "tsv": "\t"}[kind]
    path = table(tmp_path, {4: f"004.png{comma} on a mat{comma}cat{comma}a cat"}, kind)
    data = Manifest(path, held_out=0.2, max_broken=0.1)
    assert dict(data.condition_spec.parts)["class"].names == ("cat", "dog") and total(data) == 19


@pytest.mark.parametrize(
    "line, reason",
    [
        ('{"path": "004.png", "label": "cat"', "it is no JSON"),
        ('["004.png", "cat"]', "it is no JSON object"),
        ("[" * 100_000, "it is no JSON"),
        ('{"path": ["004.png"], "label": "cat"}', "its 'path' is a list"),
        ('{"path": "004.png", "label": {"name": "cat"}}', "its 'label' is a dict"),
        ('{"path": null, "label": "cat"}', "it has no 'path'"),
        ('{"path": "\\ud800.png", "label": "cat"}', "there is no such file"),
        ('{"path": "004.png", "label": NaN}', "it has no label"),
    ],
)
def test_lines_of_json_that_are_no_rows(tmp_path, line, reason, caplog):
    fill(tmp_path, 20)
    lines = [json.dumps({"path": name, "label": label}) for name, label, _ in GOOD]
    lines[4] = line
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    data = Manifest(tmp_path / "t.jsonl", held_out=0.2, max_broken=0.1)
    assert total(data) == 19 and data.train.skipped["count"] == 1 and reason in caplog.text
    caplog.text.encode()


def test_a_column_that_is_named_twice_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="names a column twice: path, label, path"):
        Manifest(table(tmp_path, header="path,label,path"))
    with pytest.raises(ValueError, match="the first line of .* cannot be read as names of columns"):
        Manifest(table(tmp_path, header='path,"label,caption'))
