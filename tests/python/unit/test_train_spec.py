from dataclasses import replace

import pytest

import torchtitan_cpp
from torchtitan_cpp import get_train_spec, register_train_spec, train_spec


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(train_spec, "_registered", {})


def test_a_registered_spec_is_found_and_comes_before_the_package_s(registry):
    spec = get_train_spec("llama3")
    register_train_spec("mine", spec)
    assert get_train_spec("mine") is spec
    register_train_spec("llama3", spec)
    assert get_train_spec("llama3") is spec
    assert train_spec.registered_names() == ["llama3", "mine"]


def test_a_name_is_registered_once(registry):
    spec = get_train_spec("llama3")
    register_train_spec("mine", spec)
    with pytest.raises(ValueError, match="'mine' is already registered"):
        register_train_spec("mine", spec)


def test_an_unknown_name_gets_the_nearest_known_one(registry):
    with pytest.raises(ValueError, match="found 'lama3'; did you mean 'llama3'?"):
        get_train_spec("lama3")


def test_names_are_at_the_top_of_the_package():
    assert torchtitan_cpp.TrainSpec is train_spec.TrainSpec


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("parallelize_fn", r"None or tensor_parallel_plan\(.*\)"),
        ("pipelining_fn", "None"),
    ],
)
def test_a_function_that_applies_parallelism_is_refused(registry, field, expected):
    def my_fully_shard(model):
        return model

    spec = replace(get_train_spec("llama3"), **{field: my_fully_shard})
    message = rf"'mine': {field}: expected {expected}, found .*my_fully_shard; .*fully_"
    with pytest.raises(ValueError, match=message):
        register_train_spec("mine", spec)
    assert train_spec.registered_names() == []


def test_a_plan_of_tensor_parallelism_is_accepted(registry):
    plan = torchtitan_cpp.tensor_parallel.tensor_parallel_plan({})
    spec = replace(get_train_spec("llama3"), parallelize_fn=plan)
    register_train_spec("mine", spec)
    assert get_train_spec("mine").parallelize_fn is plan
