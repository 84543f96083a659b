import json
import subprocess
import sys

import pytest
from data_cases import ByteTokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from torchtitan_cpp.data import (
    PACKAGED_TOKENIZER,
    HuggingFaceTokenizer,
    build_hf_tokenizer,
    check_vocabulary,
)
from torchtitan_cpp.data.tokenizer import encode_documents, tokenizer_fingerprint

WORDS = {"[UNK]": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4}


def word_tokenizer(template: str | None = None) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(vocab=WORDS, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if template:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    return tokenizer


def folder_with(tmp_path, config=None, template=None):
    word_tokenizer(template).save(str(tmp_path / "tokenizer.json"))
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return HuggingFaceTokenizer(str(tmp_path))


BOTH = {"bos_token": "<s>", "eos_token": "</s>"}


def test_bos_and_eos_are_added_only_when_asked(tmp_path):
    tokenizer = folder_with(tmp_path, BOTH)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    assert tokenizer.encode("a b") == [3, 4]
    assert tokenizer.encode("a b", add_bos=True) == [1, 3, 4]
    assert tokenizer.encode("a b", add_eos=True) == [3, 4, 2]
    assert tokenizer.encode("", add_bos=True, add_eos=True) == [1, 2]
    assert tokenizer.encode_documents(["a", "b b"]) == [[1, 3, 2], [1, 4, 4, 2]]


def test_the_folder_decides_what_is_added_by_default(tmp_path):
    tokenizer = folder_with(
        tmp_path, {**BOTH, "add_bos_token": True, "add_eos_token": False}
    )
    assert tokenizer.encode("a") == [1, 3]
    assert tokenizer.encode("a", add_bos=False, add_eos=True) == [3, 2]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("<s> $A", [1, 3, 2]),
        ("$A </s>", [1, 3, 2]),
        ("<s> $A </s>", [1, 3, 2]),
        (None, [1, 3, 2]),
    ],
)
def test_what_the_post_processor_adds_is_not_added_again(tmp_path, template, expected):
    tokenizer = folder_with(tmp_path, BOTH, template)
    assert tokenizer.hf_adds_bos == bool(template and "<s>" in template.split())
    assert tokenizer.hf_adds_eos == bool(template and "</s>" in template)
    assert tokenizer.encode("a", add_bos=True, add_eos=True) == expected
    assert tokenizer.encode_documents(["a"]) == [expected]


@pytest.mark.parametrize("template", [None, "<s> $A", "$A <s>"])
def test_one_token_may_be_bos_and_eos(tmp_path, template):
    config = {"bos_token": "<s>", "eos_token": "<s>"}
    tokenizer = folder_with(tmp_path, config, template)
    assert tokenizer.bos_id == tokenizer.eos_id == 1
    assert tokenizer.encode("a", add_bos=True, add_eos=True) == [1, 3, 1]


def test_special_tokens_may_be_objects_and_new(tmp_path):
    config = {
        "bos_token": {"__type": "AddedToken", "content": "<begin>", "lstrip": False},
        "eos_token": "<end>",
        "added_tokens_decoder": {
            "6": {"content": "<end>", "special": True},
            "5": {"content": "<begin>", "special": True},
            "7": {"content": "<turn>", "special": True},
        },
    }
    tokenizer = folder_with(tmp_path, config)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (5, 6)
    assert tokenizer.token_to_id("<turn>") == 7
    assert tokenizer.id_to_token(7) == "<turn>"
    assert tokenizer.token_to_id("no such") is None
    assert tokenizer.get_vocab_size() == tokenizer.vocab_size == 8
    assert tokenizer.encode("a<turn>b") == [3, 7, 4]
    assert tokenizer.decode([5, 3, 4]) == "a b"
    assert tokenizer.decode([5, 3], skip_special_tokens=False) == "<begin> a"
    assert tokenizer.get_vocab()["<begin>"] == 5


def test_without_a_config_nothing_is_added(tmp_path):
    tokenizer = folder_with(tmp_path)
    assert tokenizer.bos_id is None and tokenizer.eos_id is None
    assert tokenizer.encode("a", add_bos=True, add_eos=True) == [3]


@pytest.mark.parametrize("name", ["vocab.json", "vocab.txt"])
def test_a_vocabulary_alone_is_a_word_level_tokenizer(tmp_path, name):
    words = list(WORDS)
    text = json.dumps(WORDS) if name.endswith("json") else "\n".join(words) + "\n"
    (tmp_path / name).write_text(text)
    tokenizer = HuggingFaceTokenizer(tmp_path)
    assert tokenizer.encode("b") == [4]
    assert tokenizer.encode("zzz") == [0]


def test_a_vocabulary_with_merges_is_byte_level_bpe(tmp_path):
    vocabulary = {"a": 0, "b": 1, "ab": 2, "\u0120": 3, "#": 4, "##": 5}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n# #\n")
    tokenizer = HuggingFaceTokenizer(tmp_path)
    assert tokenizer.encode("ab ab") == [2, 3, 2]
    assert tokenizer.encode("##") == [5], "a merge may begin with a number sign"
    assert tokenizer.decode([2, 3, 2]) == "ab ab"


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="--model.hf_assets_path .*tokenizer"):
        HuggingFaceTokenizer("./tests/assets/no_tokenizer")
    (tmp_path / "README").write_text("")
    with pytest.raises(
        FileNotFoundError, match="expected tokenizer.json.*found README"
    ):
        HuggingFaceTokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="tokenizer.json: "):
        HuggingFaceTokenizer(tmp_path)
    for config, message in [
        ({"bos_token": {"text": "<s>"}}, "bos_token has no text 'content'"),
        ({"eos_token": 7}, "eos_token: expected a string or an object .* got 7"),
        ([], "expected an object, got list"),
    ]:
        with pytest.raises(ValueError, match=message):
            folder_with(tmp_path, config)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match="tokenizer_config.json: not valid JSON"):
        HuggingFaceTokenizer(tmp_path)


def test_a_vocabulary_larger_than_the_model_is_refused(tmp_path):
    tokenizer = folder_with(tmp_path, {"bos_token": "<new>"})
    check_vocabulary(tokenizer, 6)
    with pytest.raises(ValueError) as caught:
        check_vocabulary(tokenizer, 5)
    assert f"'{tmp_path}' has ids up to 5" in str(caught.value)
    assert "vocabulary has 5 entries (ids 0 to 4)" in str(caught.value)
    with pytest.raises(ValueError, match="ids up to 257"):
        check_vocabulary(ByteTokenizer(), 257)


def test_the_largest_id_counts_and_not_the_number_of_entries(tmp_path):
    sparse = {"[UNK]": 0, "a": 100}
    Tokenizer(models.WordLevel(vocab=sparse, unk_token="[UNK]")).save(
        str(tmp_path / "tokenizer.json")
    )
    with pytest.raises(ValueError, match="has ids up to 100"):
        check_vocabulary(HuggingFaceTokenizer(tmp_path), 100)


def test_the_fingerprint_changes_with_the_ids(tmp_path):
    first = tokenizer_fingerprint(folder_with(tmp_path, BOTH))
    assert tokenizer_fingerprint(folder_with(tmp_path, BOTH)) == first
    assert tokenizer_fingerprint(folder_with(tmp_path, {"bos_token": "<s>"})) != first
    assert tokenizer_fingerprint(folder_with(tmp_path, BOTH, "<s> $A")) != first


def test_a_tokenizer_without_fingerprint_is_known_by_what_it_does():
    class Shifted(ByteTokenizer):
        shift = 0

        def encode(self, text, **options):
            return [(i + self.shift) % 258 for i in super().encode(text, **options)]

    first, second, third = Shifted(), Shifted(), Shifted()
    for tokenizer in (first, second, third):
        del tokenizer.fingerprint
    third.shift = 1
    assert tokenizer_fingerprint(first) == tokenizer_fingerprint(second)
    assert tokenizer_fingerprint(first) != tokenizer_fingerprint(third)
    assert encode_documents(first, ["a"]) == [[0, ord("a") + 2, 1]]


def test_the_packaged_tokenizer_has_2048_entries_and_loses_no_byte():
    model = type("Model", (), {"hf_assets_path": str(PACKAGED_TOKENIZER)})
    tokenizer = build_hf_tokenizer(type("Job", (), {"model": model}))
    assert len(tokenizer.get_vocab()) == tokenizer.get_vocab_size() == 2048
    assert max(tokenizer.get_vocab().values()) == 2047
    assert (tokenizer.bos_token, tokenizer.bos_id) == ("<|begin_of_text|>", 0)
    assert (tokenizer.eos_token, tokenizer.eos_id) == ("<|end_of_text|>", 1)
    text = "def f(x):\n\treturn '\u00e9\u20ac\U0001f600'  # \x7f\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("    return self.name\n")) < 10


def test_importing_the_package_imports_no_data_library():
    code = (
        "import sys, torchtitan_cpp; assert not {'tokenizers', 'datasets', 'pyarrow'}"
        " & set(sys.modules); import torchtitan_cpp.data;"
        "assert not {'datasets', 'pyarrow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
