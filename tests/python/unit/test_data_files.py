import gzip
import json

import pyarrow
import pytest
from data_cases import ByteTokenizer, documents, loader, packed, write_jsonl
from pyarrow import parquet

from torchtitan_cpp.data import BadRecordsError, open_text_files
from torchtitan_cpp.data.file_formats import TEXT_PIECE_BYTES
from torchtitan_cpp.data.records import MAX_RECORD_BYTES

TEXTS = ["first", "second \u00e9", "third\nline"]


def texts_of(path, **options):
    records = list(open_text_files(path, **options).read([]))
    assert not [record for record in records if record.problem]
    return [record.text for record in records]


def problems_of(path, **options):
    return [r.problem for r in open_text_files(path, **options).read([]) if r.problem]


def write_all_formats(folder):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (folder / "a.jsonl").write_text(lines)
    (folder / "b.json").write_text(lines)
    (folder / "c.json").write_text(json.dumps([{"text": t} for t in TEXTS], indent=1))
    (folder / "d.json.gz").write_bytes(gzip.compress(lines.encode()))
    parquet.write_table(
        pyarrow.table({"id": [1, 2, 3], "text": TEXTS}),
        folder / "e.parquet",
        row_group_size=2,
    )
    for number, text in enumerate(TEXTS):
        (folder / f"f{number}.txt").write_bytes(text.encode())


@pytest.mark.parametrize("name", ["a.jsonl", "b.json", "c.json", "d.json.gz"])
def test_json_is_lines_or_an_array(tmp_path, name):
    write_all_formats(tmp_path)
    assert texts_of(tmp_path / name) == TEXTS


def test_parquet_rows_are_documents(tmp_path):
    write_all_formats(tmp_path)
    assert texts_of(tmp_path / "e.parquet") == TEXTS


def test_a_folder_is_read_in_sorted_order_with_all_below_it(tmp_path, caplog):
    (tmp_path / "data" / "z").mkdir(parents=True)
    write_all_formats(tmp_path / "data")
    (tmp_path / "data" / "z" / "deep.txt").write_text("deep")
    (tmp_path / "data" / ".hidden.txt").write_text("hidden")
    (tmp_path / "data" / "image.png").write_bytes(b"\x89PNG")
    assert texts_of(tmp_path / "data") == TEXTS * 6 + ["deep"]
    assert "left out 1 files with other suffixes, e.g. image.png" in caplog.text


def test_a_glob_names_files(tmp_path):
    write_all_formats(tmp_path)
    assert texts_of(tmp_path / "f*.txt") == TEXTS
    (tmp_path / "x" / "y").mkdir(parents=True)
    (tmp_path / "x" / "y" / "g.txt").write_text("below")
    assert texts_of(f"{tmp_path}/**/g.txt") == ["below"]


def test_reading_from_any_cursor_gives_the_rest(tmp_path):
    write_all_formats(tmp_path)
    source = open_text_files(tmp_path)
    records = list(source.read([]))
    for number, record in enumerate(records):
        cursor = json.loads(json.dumps(record.cursor))
        assert list(source.read(cursor)) == records[number + 1 :]


def test_another_key_can_be_the_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"content": "body"}\n')
    assert texts_of(tmp_path / "a.jsonl", text_key="content") == ["body"]


def test_a_long_text_file_is_cut_at_line_ends(tmp_path):
    text = "".join(f"line {i} \u00e9\n" for i in range(150_000))
    (tmp_path / "long.txt").write_text(text)
    pieces = texts_of(tmp_path / "long.txt")
    assert "".join(pieces) == text
    assert len(pieces) == len(text.encode()) // TEXT_PIECE_BYTES + 1
    assert all(piece.endswith("\n") for piece in pieces)


def test_a_text_file_without_line_ends_is_cut_between_characters(tmp_path):
    text = "x" + "\u20ac" * 1_000_000
    (tmp_path / "long.txt").write_text(text)
    pieces = texts_of(tmp_path / "long.txt")
    assert "".join(pieces) == text
    assert len(pieces) == 2


def test_missing_paths_give_the_flags_that_need_no_file(tmp_path):
    for path in (tmp_path / "absent", tmp_path / "*.json"):
        with pytest.raises(FileNotFoundError) as caught:
            open_text_files(path)
        assert str(path) in str(caught.value)
        assert "--training.dataset python_stdlib" in str(caught.value)
        assert "--model.hf_assets_path" in str(caught.value)


def test_a_path_without_readable_files_is_an_error(tmp_path):
    (tmp_path / "a.bin").write_text("")
    for path in (tmp_path, tmp_path / "a.bin"):
        with pytest.raises(ValueError, match=r"expected .json, .*, found a.bin"):
            open_text_files(path)


BAD_LINES = {
    b'{"text": "cut': "broken JSON",
    b"{'text': 'x'}": "broken JSON",
    b'{"text": "\xff"}': "invalid UTF-8 at byte 10",
    b'{"text": "a\\u0000b"}': "NUL character",
    b'{"text": "\\ud800"}': "lone surrogate",
    b'{"text": ""}': "empty text",
    b'{"text": 7}': "expected a text, got int",
    b'{"text": null}': "expected a text, got NoneType",
    b'{"text": ["a"]}': "expected a text, got list",
    b'{"body": "a"}': "no key 'text' (keys: body)",
    b'"text"': "expected an object, got str",
    b"7": "expected an object, got int",
    b"[" * 100_000: "broken JSON",
    b"\0": "broken JSON",
    b'{"text": "' + b"x" * 50_000_000 + b'"}': "line of more than",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=lambda line: repr(line[:20]))
def test_a_bad_line_is_one_bad_record_wherever_it_stands(tmp_path, line):
    good = b'{"text": "good"}'
    for position in range(3):
        lines = [good, good, good]
        lines[position:position] = [line]
        path = tmp_path / "data.jsonl"
        path.write_bytes(b"\n".join(lines))
        if position == 0 and line.startswith(b"["):
            continue  # that is an array file, and none of its records can be read
        records = list(open_text_files(path).read([]))
        assert [record.text for record in records if record.text] == ["good"] * 3
        assert [BAD_LINES[line] in r.problem for r in records if r.problem] == [True]
        assert records[position].place == f"{path}:{position + 1}"


def test_blank_lines_are_no_records_but_keep_their_numbers(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('\n{"text": "a"}\n  \n{"text": "b"}\n\n')
    places = [record.place for record in open_text_files(path).read([])]
    assert places == [f"{path}:2", f"{path}:4"]


def test_damaged_files_are_bad_records_and_the_next_file_is_read(tmp_path):
    whole = gzip.compress(b'{"text": "a"}\n' * 1000)
    (tmp_path / "a.json.gz").write_bytes(whole[:-12])
    (tmp_path / "b.txt.gz").write_bytes(b"no gzip")
    (tmp_path / "c.json").write_text('[{"text": "a"},')
    (tmp_path / "d.parquet").write_bytes(b"PAR1 no parquet")
    parquet.write_table(pyarrow.table({"body": ["a"]}), tmp_path / "e.parquet")
    (tmp_path / "f.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "g.txt").write_bytes(b"")
    (tmp_path / "h.txt").write_bytes(b"good")
    expected = [
        "damaged gzip file",
        "damaged gzip file",
        "broken JSON",
        "damaged parquet file",
        "no column 'text' (columns: body)",
        "invalid UTF-8",
        "empty file",
    ]
    found = problems_of(tmp_path)
    assert len(found) == len(expected)
    assert all(map(str.startswith, found, expected)), found
    assert list(open_text_files(tmp_path).read([]))[-1].text == "good"


def test_a_long_parquet_text_is_a_bad_record(tmp_path):
    table = pyarrow.table({"text": ["a", "x" * (MAX_RECORD_BYTES + 1), None]})
    parquet.write_table(table, tmp_path / "a.parquet")
    problems = problems_of(tmp_path / "a.parquet")
    assert "more than" in problems[0]
    assert problems[1] == "expected a text, got NoneType"


def test_bad_records_are_skipped_alike_on_every_rank_and_run(tmp_path, caplog):
    texts = documents(30)
    clean = write_jsonl(tmp_path / "clean.jsonl", texts)
    lines = clean.read_bytes().splitlines()
    lines[4:4], lines[20:20] = [b"{"], [b"{}", b"\xff"]
    dirty = tmp_path / "dirty.jsonl"
    dirty.write_bytes(b"\n".join(lines))
    for _ in range(2):  # the second run reads the cache
        for rank in range(2):
            options = {"ranks": 2, "rank": rank, "infinite": False}
            for first, second in zip(
                loader(tmp_path, path=clean, **options),
                loader(tmp_path, path=dirty, **options),
                strict=True,
            ):
                assert first[0]["input"].equal(second[0]["input"])
    assert caplog.text.count(": skipped: ") == 3
    assert f"{dirty}:21: skipped: no key 'text'" in caplog.text


def test_more_bad_records_than_allowed_stop_all_ranks_at_the_same_batch(tmp_path):
    lines = [json.dumps({"text": text}) for text in documents(3000)]
    lines[1500:1500] = ["{"] * 101
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(lines))
    stops = []
    for _ in range(2):
        for rank in range(2):
            one = loader(tmp_path, path=path, ranks=2, rank=rank, seq_len=64)
            count = 0
            with pytest.raises(BadRecordsError) as caught:
                for _ in one:
                    count += 1
            stops.append(count)
            message = str(caught.value)
            assert message.startswith(f"{path}:1601: broken JSON")
            assert "more than 100 bad records (training.max_bad_records)" in message
            with pytest.raises(BadRecordsError):
                next(one)
    assert len(set(stops)) == 1


def test_the_limit_of_bad_records_can_be_set(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{\n{\n{"text": "abcdefghijklmnopqrstuvw"}\n')
    options = {"path": path, "tokenizer": ByteTokenizer()}
    batch, _ = next(loader(tmp_path, max_bad_records=2, **options))
    assert batch["input"][0].tolist() == packed(["abcdefghijklmnopqrstuvw"])[:8]
    with pytest.raises(BadRecordsError, match="jsonl:2: broken JSON.*more than 1 bad"):
        next(loader(tmp_path, max_bad_records=1, **options))
    with pytest.raises(BadRecordsError, match="jsonl:1: broken JSON.*more than 0 bad"):
        next(loader(tmp_path, max_bad_records=0, **options))
