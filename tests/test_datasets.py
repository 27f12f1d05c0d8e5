"Room 81: files that are not what they should be are refused with the file, the place and what was expected."
import bz2
import gzip
import json
import lzma
import zipfile

import pytest

import fuse_nb.datasets as room

IMAGES = '{"images": [{"filename": "a.jpg", "sentences": %s}]}'


@pytest.mark.parametrize("text, match", [
    (IMAGES % "[5]", r"image 0, sentence 0 must be an object with raw or tokens, got 5"),
    (IMAGES % "5", r"image 0, sentences must be a list, got 5"),
    (IMAGES % '[{"raw": 7}]', r"image 0, sentence 0, raw must be a text, got 7"),
    (IMAGES % '[{"tokens": "a dog"}]', r"image 0, sentence 0, tokens must be a list of texts"),
    (IMAGES % '[{"tokens": [1]}]', r"image 0, sentence 0, tokens\[0\] must be a text"),
    (IMAGES % '[{}]', r"image 0, sentence 0 must be an object with raw or tokens"),
    ('{"images": [5]}', "image 0 must be an object"),
    ('{"images": [{"id": 1}, {"id": 2, "sentences": [{"raw": "a"}]}, 5]}', "image 2 must be an object"),
    ('{"images": 5, "annotations": []}', "images must be a list, got 5"),
    ('{"annotations": 5}', "annotations must be a list, got 5"),
    ('{"annotations": {"a": 1}}', "annotations must be a list, got dict"),
    ('{"annotations": [5]}', "annotation 0 must be an object with image_id and caption"),
    ('{"annotations": [{"image_id": [1], "caption": "a"}]}', "annotation 0, image_id must be a whole number or a text"),
    ('[{"id": {"a": 1}, "caption": "a"}]', "record 0, id must be a whole number or a text, got dict"),
    ('[{"id": true, "caption": "a"}]', "record 0, id must be a whole number or a text, got True"),
    ('[{"id": 1.5, "caption": "a"}]', "record 0, id must be a whole number or a text, got 1.5"),
    ('[{"id": 1, "file": [2], "caption": "a"}]', "record 0, file must be a text"),
    ('[{"id": 1, "split": 5, "caption": "a"}]', "record 0, split must be a text"),
    ('{"sentences": [5]}', "'sentences' must be a text or a list of texts, got a list with 5"),
    ('{"a": "a dog", "a": "a cat"}', r"line 1: the key 'a' stands twice in one object"),
    ('{\n"x": "ok",\n"b": ["a dog"],\n"b": ["a cat"]\n}', r"line 4: the key 'b' stands twice"),
    ('[{"id": 1, "caption": "a"},\n {"id": 2, "caption": "a",\n "caption": "b"}]', r"line 3: the key 'caption' stands twice"),
    ('{"id": 1, "caption": "a"}\n{"id": 2, "caption": "a", "id": 3}\n', r"line 2: the key 'id' stands twice"),
    ('{"a": "half a \\ud83d"}', r"line 1.*half a character"),
    ('{"id": 1, "caption": "a"}\n{"id": 2, "caption": "\\udc00"}\n', r"line 2.*half a character"),
    ('{"id": 1, "caption": "a"}\n{"id": "\\udc00", "caption": "b"}\n', r"line 2.*half a character"),
    ('{"id": 1, "caption": "a"}\n5\n', r"line 2 must be an object"),
    ('{"id": 1, "caption": "a"}\n{"id": 2, "caption": 3}\n', r"line 2, caption must be a text"),
    ("[" * 100_000, "nested"),
    ('{"a": NaN}', "'a' must be a text or a list of texts, got nan"),
])
@pytest.mark.parametrize("read", ["read_references", "read_predictions"])
def test_refused_with_file_and_place(tmp_path, text, match, read):
    path = tmp_path / "odd.json"
    path.write_text(text)
    with pytest.raises((ValueError, TypeError), match=match) as told: getattr(room, read)(path)
    assert "odd.json" in str(told.value) and "\n" not in str(told.value)


def test_a_line_without_a_caption(tmp_path):
    path = tmp_path / "captions.jsonl"
    path.write_text('{"id": "p0", "caption": "a dog"}\n{"id": "p1"}\n')
    with pytest.raises(ValueError, match="captions.jsonl.*no caption for ids: p1.*line 2.*caption"): room.read_predictions(path)


@pytest.mark.parametrize("pack, name", [(gzip.compress, "gzip"), (bz2.compress, "bzip2"), (lzma.compress, "xz")])
@pytest.mark.parametrize("ending", [".json", ".json.gz"])
def test_packed_files_say_so(tmp_path, pack, name, ending):
    path = tmp_path / f"r{ending}"
    path.write_bytes(pack(b'{"1": ["a dog"]}'))
    with pytest.raises(ValueError, match=f"is packed \\({name}\\).*unpack it"): room.read_references(path)


def test_more_that_is_no_text(tmp_path):
    with zipfile.ZipFile(tmp_path / "r.json", "w") as z: z.writestr("a", "b")
    with pytest.raises(ValueError, match=r"is packed \(zip\)"): room.read_references(tmp_path / "r.json")
    (tmp_path / "u.json").write_bytes('{"1": ["a"]}'.encode("utf-16"))
    with pytest.raises(ValueError, match="not UTF-8"): room.read_references(tmp_path / "u.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(FileNotFoundError, match="folder"): room.read_references(tmp_path / "folder.json")


def test_the_same_key_in_two_objects_is_no_fault(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('[{"id": 1, "caption": "a"}, {"id": 2, "caption": "b"}]')
    assert room.read_predictions(path) == {1: "a", 2: "b"}


# --------------------------------------------------------- a list written as text

@pytest.mark.parametrize("text", [
    "['a dog', 'a cat']", '["a dog", "a cat"]', "('a dog', 'a cat')", "('a dog',)", "{'a dog', 'a cat'}", "['a dog' 'a cat']", " ['a dog',\n 'a cat'] ",
    '[{"caption": "a dog"}]', "{'caption': 'a dog'}", "[\"a dog's\", 'a cat']", "[]",
])
@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: [t], lambda t: [{"caption": t}], lambda t: ["a dog", t]])
def test_a_list_written_as_text_is_refused(text, wrap):
    with pytest.raises(ValueError, match="^the references of 1.*a list written as a text"): room.caption_texts("the references of 1", wrap(text))


@pytest.mark.parametrize("text", ["a dog [left] and a cat", "[a dog]", "(a dog)", "'a dog'", "[sign] says 'stop'", "a 'dog'", "(\"stop\" sign) on a pole", "[unclear", "{x}"])
def test_brackets_in_a_caption_are_left_alone(text): assert room.caption_texts("x", text) == [text]
