import datasets
import pytest
import torch
from data_cases import ByteTokenizer, documents, job, loader, packed, write_jsonl

from torchtitan_cpp.data import (
    DATASETS,
    PACKAGED_TOKENIZER,
    DatasetConfig,
    build_dataloader,
    build_tokenizer,
    check_vocabulary,
    open_text_files,
    register_dataset,
)
from torchtitan_cpp.data.registry import open_dataset
from torchtitan_cpp.errors import needs_traceback

TEXTS = documents(20)


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    # Other tests of the process may have registered theirs.
    packaged = {
        name: dataset
        for name, dataset in DATASETS.items()
        if getattr(dataset.loader, "func", dataset.loader).__module__.startswith(
            "torchtitan_cpp."
        )
    }
    monkeypatch.setattr("torchtitan_cpp.data.registry.DATASETS", packaged)


def first_tokens(folder, dataset, **options):
    one = loader(folder, dataset=dataset, local=1, seq_len=64, **options)
    return next(one)[0]["input"][0].tolist()


@pytest.mark.parametrize(
    "load",
    [
        lambda path: [{"text": text} for text in TEXTS],
        lambda path: datasets.Dataset.from_dict({"text": TEXTS}),
        lambda path: iter([{"text": text} for text in TEXTS]),
    ],
    ids=["list", "map-style", "iterator"],
)
def test_own_datasets_are_registered_by_their_loader(tmp_path, load):
    register_dataset("Mine", path="anywhere", loader=load)
    assert first_tokens(tmp_path, "mINE") == packed(TEXTS)[:64]


def test_a_sample_processor_makes_the_text(tmp_path):
    config = DatasetConfig(
        path="anywhere",
        loader=lambda path: [{"title": text} for text in TEXTS],
        sample_processor=lambda sample: sample["title"].upper(),
    )
    register_dataset("titles", config)
    upper = [text.upper() for text in TEXTS]
    assert first_tokens(tmp_path, "titles") == packed(upper)[:64]


def test_files_with_another_key_can_be_registered(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "' + "x" * 100 + '"}\n')
    register_dataset(
        "bodies", loader=lambda where: open_text_files(where, text_key="body")
    )
    assert first_tokens(tmp_path, "bodies", path=path) == packed(["x" * 100])[:64]


def test_a_changed_sequence_does_not_use_old_tokens(tmp_path):
    texts = list(TEXTS)
    register_dataset("mine", path="p", loader=lambda path: [{"text": t} for t in texts])
    first_tokens(tmp_path, "mine")
    texts[0] = "changed" * 20
    assert first_tokens(tmp_path, "mine") == packed(texts)[:64]


def test_names_are_unique_and_need_a_loader():
    with pytest.raises(ValueError, match="'C4' is already registered"):
        register_dataset("C4", loader=lambda path: [])
    with pytest.raises(ValueError, match="needs a loader"):
        register_dataset("mine")


def test_an_unknown_name_lists_all_and_the_nearest(tmp_path):
    with pytest.raises(ValueError) as caught:
        loader(tmp_path, dataset="python_stdlb")
    assert "known are c4, c4_test, c4_validation, local, python_stdlib" in str(
        caught.value
    )
    assert "did you mean 'python_stdlib'?" in str(caught.value)
    with pytest.raises(ValueError, match="unknown dataset 'zzz'") as caught:
        loader(tmp_path, dataset="zzz")
    assert "did you mean" not in str(caught.value)


def test_a_loader_that_returns_something_else_is_an_error(tmp_path):
    register_dataset("mine", path="p", loader=lambda path: 7)
    with pytest.raises(ValueError, match="its loader returned int, expected a Docum"):
        loader(tmp_path, dataset="mine")


def test_a_dataset_without_a_place_asks_for_the_flag(tmp_path):
    with pytest.raises(
        ValueError, match="--training.dataset_path FILE, FOLDER or GLOB"
    ):
        loader(tmp_path, dataset="local")


def test_c4_test_is_read_from_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        loader(tmp_path, dataset="c4_test")
    assert "tests/assets/c4_test" in str(caught.value)
    assert "--training.dataset python_stdlib" in str(caught.value)
    folder = tmp_path / "tests" / "assets" / "c4_test"
    folder.mkdir(parents=True)
    write_jsonl(folder / "data.json", TEXTS)
    assert first_tokens(tmp_path, "c4_test") == packed(TEXTS)[:64]
    other = write_jsonl(tmp_path / "other.jsonl", TEXTS[3:])
    assert first_tokens(tmp_path, "c4_test", path=other) == packed(TEXTS[3:])[:64]


@pytest.mark.parametrize(
    ("name", "split"), [("c4", "train"), ("c4_validation", "validation")]
)
def test_c4_is_streamed_from_the_hub(tmp_path, monkeypatch, name, split):
    calls = []

    def load_dataset(path, **options):
        calls.append((path, options))
        return datasets.Dataset.from_dict({"text": TEXTS}).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert first_tokens(tmp_path, name) == packed(TEXTS)[:64]
    expected = ("allenai/c4", {"name": "en", "split": split, "streaming": True})
    assert set(map(repr, calls)) == {repr(expected)}


def test_data_that_cannot_be_reached_need_no_traceback(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'allenai/c4' on the Hub")

    monkeypatch.setattr("datasets.load_dataset", offline)
    with pytest.raises(ValueError, match="dataset c4: Couldn't reach") as caught:
        open_dataset("c4")
    assert not needs_traceback(caught.value)
    with pytest.raises(ValueError, match="no Python sources") as caught:
        open_dataset("python_stdlib", str(tmp_path))
    assert not needs_traceback(caught.value)


def test_the_default_data_come_with_python_and_the_package(tmp_path):
    config = job(tmp_path, dataset="python_stdlib", seq_len=256)
    config.model = type("Model", (), {"hf_assets_path": str(PACKAGED_TOKENIZER)})
    tokenizer = build_tokenizer(config)
    assert tokenizer.get_vocab_size() == 2048
    check_vocabulary(tokenizer, 2048)
    one = build_dataloader(1, 0, tokenizer, config)
    one.check_ids_below(2048)
    batch, labels = next(one)
    assert batch["input"][0, 0] == tokenizer.bos_id
    text = tokenizer.decode(batch["input"].flatten().tolist())
    assert text.count("\n") > 20 and "=" in text  # lines of source code
    assert torch.equal(batch["input"][:, 1:], labels[:, :-1])
    assert labels.max() < 2048


def test_the_byte_tokenizer_of_these_tests_decodes_what_it_encodes():
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode("a\u00e9", add_bos=True)) == "a\u00e9"
