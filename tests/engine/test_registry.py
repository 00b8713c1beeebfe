"""Registries and what happens when somebody else has a name."""

import pytest

from dassl_prompts.engine import (
    DATASET_REGISTRY,
    ENGINE_NAME,
    TRAINER_REGISTRY,
    build_trainer,
    get_cfg_default,
    register_all,
    register_dataset,
    register_trainer,
    registration,
)
from dassl_prompts.engine.builtin.registry import Registry, check_availability


def make(name, base=object):
    return type(name, (base,), {})


def test_registry_messages_are_dassls():
    registry = Registry("TRAINER")
    first = make("CoOp")
    assert registry.register()(first) is first and registry.register(make("MaPLe")) is None
    assert registry.registered_names() == ["CoOp", "MaPLe"] and registry.get("CoOp") is first
    with pytest.raises(KeyError, match='An object named "CoOp" was already registered in "TRAINER" registry'):
        registry.register(make("CoOp"))
    with pytest.raises(KeyError, match='Object name "CoOpp" does not exist in "TRAINER" registry'):
        registry.get("CoOpp")
    second = make("CoOp")
    registry.register(second, force=True)
    assert registry.get("CoOp") is second


def test_check_availability():
    check_availability("CoOp", ["CoOp", "MaPLe"])
    text = (
        r"The requested one is expected to belong to \['CoOp', 'MaPLe'\], but got \[MaPle\] \(do you mean \[MaPLe\]\?\)"
    )
    with pytest.raises(ValueError, match=text):
        check_availability("MaPle", ["CoOp", "MaPLe"])
    with pytest.raises(ValueError, match=r"do you mean \[CoOp\]"):
        check_availability("Coop", ["CoCoOp", "CoOp"])
    with pytest.raises(ValueError, match=r"do you mean \[None\]"):
        check_availability("X", [])


def test_unknown_trainer_lists_the_known():
    cfg = get_cfg_default()
    cfg.TRAINER.NAME = "CoOpp"
    with pytest.raises(ValueError, match=r"'CoOp'.*\[CoOpp\] \(do you mean \[CoOp\]"):
        build_trainer(cfg)


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """Names that another file registered before ours: a trainer and a dataset."""
    path = tmp_path / "lab.py"
    path.write_text("class ZConflict:\n    pass\n\n\nclass ZData:\n    pass\n")
    scope = {"__name__": "lab_trainers"}
    exec(compile(path.read_text(), str(path), "exec"), scope)
    monkeypatch.setattr(
        registration, "origin", lambda cls: str(path) if cls.__module__ == "lab_trainers" else "ours.py"
    )
    monkeypatch.setattr(registration, "_ours", {kind: {} for kind in registration.REGISTRIES})
    TRAINER_REGISTRY.register(scope["ZConflict"])
    DATASET_REGISTRY.register(scope["ZData"])
    yield scope, path
    TRAINER_REGISTRY._obj_map.pop("ZConflict")
    DATASET_REGISTRY._obj_map.pop("ZData")


def test_a_taken_name_is_kept_until_told_otherwise(foreign, capsys):
    scope, path = foreign
    trainer, dataset = register_trainer(make("ZConflict")), register_dataset(make("ZData"))
    assert TRAINER_REGISTRY.get("ZConflict") is scope["ZConflict"]

    conflicts = register_all()
    assert [(c.kind, c.name) for c in conflicts] == [("trainer", "ZConflict"), ("dataset", "ZData")]
    said = f"trainer ZConflict stays the one of {path}, not the one of ours.py; likewise dataset ZData"
    assert capsys.readouterr().out.splitlines() == [said]

    with pytest.raises(ValueError, match=f"trainer ZConflict: {path} .registered first. and ours.py") as error:
        register_all({"trainer": "error"})
    assert "ZData" not in str(error.value) and 'on_conflict="keep"' in str(error.value)
    assert TRAINER_REGISTRY.get("ZConflict") is scope["ZConflict"]

    register_all("replace")
    assert f"trainer ZConflict is now the one of ours.py, not the one of {path}" in capsys.readouterr().out
    assert TRAINER_REGISTRY.get("ZConflict") is trainer and DATASET_REGISTRY.get("ZData") is dataset
    assert register_all("error") == []


def test_the_same_file_twice_is_no_conflict(foreign, monkeypatch):
    register_trainer(make("ZConflict"))
    monkeypatch.setattr(registration, "origin", lambda cls: "same.py")
    assert register_all("error") == []


@pytest.mark.skipif(ENGINE_NAME == "dassl", reason="Dassl's own registry words it")
def test_a_name_of_ours_registered_again_is_told_with_its_file_and_the_remedy():
    from dassl_prompts.trainers import coop

    with pytest.raises(KeyError) as error:
        TRAINER_REGISTRY.register()(make("CoOp"))
    message = error.value.args[0]
    assert message.startswith('An object named "CoOp" was already registered in "TRAINER" registry, by ')
    assert coop.__file__ in message and "import dassl_prompts after it" in message
    with pytest.raises(KeyError) as error:  # somebody else's class: no advice about our package
        registry = Registry("TRAINER")
        registry.register(TestDouble)
        registry.register(TestDouble)
    assert __file__ in error.value.args[0] and "dassl_prompts after" not in error.value.args[0]


class TestDouble:
    __test__ = False


@pytest.mark.parametrize("policy", ["ignore", {"trainers": "keep"}])
def test_unknown_policies(policy):
    with pytest.raises(ValueError, match="on_conflict.*policies"):
        register_all(policy)


def test_origin_is_the_file_of_the_class():
    assert registration.origin(Registry).endswith("engine/builtin/registry.py")
