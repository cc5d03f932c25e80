# SPDX-License-Identifier: Apache-2.0
"""Plans: order, skipping, placeholders, the table, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from monai_labelfx.commands.plan import load_plan, run_plan


def write_metrics(folder: str, value: float) -> str:
    """A step that a plan can call."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    (path / "metrics.json").write_text(json.dumps({"value": value}))
    with (path / "calls").open("a") as log:
        log.write("x")
    return str(path)


def _step(name: str, value: float = 1.0, **more) -> dict:
    call = {"_target_": f"{__name__}.write_metrics", "folder": f"{{out}}/{name}", "value": value}
    return {"name": name, "workflow": "call", "call": call, **more}


def _calls(out: Path, name: str) -> int:
    return len((out / name / "calls").read_text())


def test_complete_steps_are_skipped_and_changed_ones_run_with_those_after(bundle, tmp_path, capsys):
    plan = {"steps": [_step("a"), _step("b", 2.0)], "table": {"rows": {"b": "B", "a": "A"}}, "note": "honest\n  words"}
    out = tmp_path / "out"
    folders = run_plan(bundle, plan, out)
    assert folders == {"a": out / "a", "b": out / "b"}
    assert json.loads((out / "table.json").read_text())["rows"] == [
        {"run": "B", "value": 2.0},
        {"run": "A", "value": 1.0},
    ]
    assert capsys.readouterr().out.endswith("\n\nhonest words\n")
    run_plan(bundle, plan, out)
    assert (_calls(out, "a"), _calls(out, "b")) == (1, 1) and "skipped" in capsys.readouterr().out
    plan["steps"][1] = _step("b", 3.0)
    run_plan(bundle, plan, out)
    assert (_calls(out, "a"), _calls(out, "b")) == (1, 2)
    plan["steps"][0] = _step("a", 5.0)
    run_plan(bundle, plan, out)
    assert (_calls(out, "a"), _calls(out, "b")) == (2, 3), "b comes after a, so it may use what a wrote"


def test_an_interrupted_step_runs_again(bundle, tmp_path):
    out = tmp_path / "out"
    plan = {"steps": [_step("a", done=["metrics.json", "more.txt"])]}
    with pytest.raises(ValueError, match=r"step 'a' ended without writing .*more\.txt"):
        run_plan(bundle, plan, out)
    (out / "a" / "more.txt").touch()
    run_plan(bundle, plan, out)
    run_plan(bundle, plan, out)
    assert _calls(out, "a") == 2
    (out / "a" / "more.txt").unlink()
    with pytest.raises(ValueError, match="without writing"):
        run_plan(bundle, plan, out)


def test_demo_plan_runs_all_workflows(bundle, tmp_path):
    folders = run_plan(bundle, load_plan(bundle), tmp_path / "out", progress=False)
    assert list(folders) == ["toy", "toy_test", "predictions"]
    (row,) = json.loads((tmp_path / "out" / "table.json").read_text())["rows"]
    assert row["run"] == "Toy" and 0 <= row["accuracy"] <= 1
    assert list((tmp_path / "out" / "predictions").glob("*.nii.gz"))


def test_data_choices(bundle):
    assert load_plan(bundle)["data"]["size"] == 8
    assert load_plan(bundle, choice="larger")["data"]["size"] == 12
    with pytest.raises(ValueError, match=r"no data 'x' in demo.yaml: it has larger"):
        load_plan(bundle, choice="x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: []\nfoo: 1", "unknown key 'foo'"),
        ("steps: {a: 1}", "steps must be a list"),
        ("note: x", "steps must be a list"),
        ("- 1", "holds a list, expected a mapping"),
        ("steps: [{name: a, foo: 1}]", "step 'a' has the unknown key 'foo'"),
        ("steps: [{name: a, workflow: fly}]", "unknown workflow 'fly'"),
        ("steps: [{name: a}, {name: a}]", "two steps are called 'a'"),
    ],
)
def test_malformed_plans(bundle, text, message):
    (bundle / "configs" / "demo.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_plan(bundle)


def test_steps_that_cannot_run(bundle, tmp_path):
    with pytest.raises(ValueError, match="no call"):
        run_plan(bundle, {"steps": [{"name": "a", "workflow": "call"}]}, tmp_path / "out")
    with pytest.raises(ValueError, match=r"absent\.yaml, which does not exist"):
        run_plan(bundle, {"steps": [{"name": "a", "config": ["absent.yaml"]}]}, tmp_path / "out")
    with pytest.raises(ValueError, match="row for 'b', which is no step"):
        run_plan(bundle, {"steps": [_step("a")], "table": {"rows": ["b"]}}, tmp_path / "out")
