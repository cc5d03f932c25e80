# SPDX-License-Identifier: Apache-2.0
"""Methods of several trainings: where their stages lie, what rivals share with them, what runs again."""

from __future__ import annotations

import json

import pytest
import yaml

from monai_labelfx.cli import main
from monai_labelfx.commands.bundle_folder import rivals, stage_overlays
from monai_labelfx.commands.method_plan import in_stages, method_steps

WARM = """
imports: [$import torch]
stages_dir: ""
stage_dirs: {01_first: "$@stages_dir + '/01_first'"}
first: "$torch.load(@stage_dirs#01_first + '/models/model.pt', weights_only=True)"
network: "$(@network_def.load_state_dict(@first), @network_def)[1]"
"""


@pytest.fixture
def staged(bundle):
    """The toy as a method of two stages, with a rival that shares the first and one that shares nothing."""
    stages = bundle / "configs" / "stages" / "toy"
    stages.mkdir()
    (stages / "01_first.yaml").write_text("max_epochs: 1\n")
    (stages / "02_second.yaml").write_text(WARM)
    (bundle / "configs" / "rivals" / "late.yaml").write_text("stage_from: 02_second\nweight: 10.0\n")
    (bundle / "configs" / "rivals" / "early.yaml").write_text("stage_from: 01_first\nweight: 5.0\n")
    return bundle


def _config(folder):
    return yaml.safe_load((folder / "config_train.yaml").read_text())


def test_training_is_the_stages_and_the_result_lies_where_others_have_it(staged, data, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["run", str(staged), "--dataset_dir", str(data), "--out", str(out), "--no-progress"]
    assert main(arguments) == 0
    assert _config(out / "stages" / "01_first")["max_epochs"] == 1
    config = _config(out)
    assert config["stages_dir"] == str(out / "stages")
    assert config["stage_dirs"] == {"01_first": str(out / "stages" / "01_first")}
    assert main([*arguments[:2], "evaluate", *arguments[2:]]) == 0
    assert "accuracy" in json.loads((out / "metrics.json").read_text())
    capsys.readouterr()
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("complete, skipped") == 2


def test_a_rival_alone_has_all_stages_in_its_folder(staged, data, tmp_path):
    out = tmp_path / "out"
    assert main(["run", str(staged), "--dataset_dir", str(data), "--out", str(out), "--rival", "late"]) == 0
    assert [_config(folder)["weight"] for folder in (out / "stages" / "01_first", out)] == [1.0, 10.0]


def test_a_comparison_trains_shared_stages_once(staged, data, tmp_path, capsys):
    out = tmp_path / "out"
    common = ["--dataset_dir", str(data), "--out", str(out), "--max_epochs", "1", "--no-progress"]
    assert rivals(staged) == ["early", "heavy", "late", "twice"], "the method is no rival of itself"
    assert main(["compare", str(staged), *common, "--rivals", "late", "early", "toy", "heavy"]) == 0
    seed = out / "seed_0"
    assert _config(seed / "late")["stage_dirs"] == {"01_first": str(seed / "toy" / "stages" / "01_first")}
    assert _config(seed / "early")["stage_dirs"] == {"01_first": str(seed / "early" / "stages" / "01_first")}
    assert not (seed / "late" / "stages").exists()
    weights = [_config(seed / name)["weight"] for name in ("toy", "late", "early", "early/stages/01_first", "heavy")]
    assert weights == [1.0, 10.0, 5.0, 5.0, 10.0]
    rows = json.loads((out / "table.json").read_text())["rows"]
    assert [row["run"] for row in rows] == ["late", "early", "toy", "heavy"]
    assert capsys.readouterr().out.count("toy/stages/01_first] done") == 1
    again = ["compare", str(staged), *common, "--rivals", "late", "early", "toy", "heavy", "--for", "late", "weight=2"]
    assert main(again) == 0
    printed = capsys.readouterr().out
    assert printed.count("has changed") == 2 and printed.count("complete, skipped") == 8, "late and its evaluation"


def test_a_changed_stage_runs_those_that_read_it_again(staged, data, tmp_path, capsys):
    common = ["--dataset_dir", str(data), "--out", str(tmp_path / "out"), "--max_epochs", "1", "--no-progress"]
    assert main(["run", str(staged), *common, "--rivals", "toy", "late", "early"]) == 0
    (staged / "configs" / "stages" / "toy" / "01_first.yaml").write_text("max_epochs: 1\nweight: 1.5\n")
    capsys.readouterr()
    assert main(["run", str(staged), *common, "--rivals", "toy", "late", "heavy"]) == 0
    assert capsys.readouterr().out.count("has changed") == 3


def test_a_stage_may_lie_over_another(staged):
    stages = staged / "configs" / "stages"
    file = stages / "twice" / "03_again.yaml"
    file.write_text("stage_base: toy/01_first\nweight: 3.0\n")
    assert stage_overlays(file) == [stages / "toy" / "01_first.yaml", file]
    for base in ("toy/09_none", "twice/03_again"):
        file.write_text(f"stage_base: {base}\n")
        with pytest.raises(ValueError, match=f"stage_base '{base}' is no other stage"):
            stage_overlays(file)


def test_what_is_in_stages(staged, bundle):
    assert [in_stages(staged, name) for name in ("toy", "late", "heavy")] == [True, True, False]
    (staged / "configs" / "rivals" / "late.yaml").write_text("stage_from: 07_none\n")
    with pytest.raises(ValueError, match="rivals/late has stage_from '07_none', expected one of 01_first, 02_second"):
        method_steps(staged, "late", [], {})


def test_a_bundle_without_own_stages_is_one_training(bundle):
    assert not in_stages(bundle, "toy") and not in_stages(bundle, "heavy")


def test_an_option_reaches_the_stages_that_use_it(staged, data, tmp_path, capsys):
    """So that a change leaves the others as they are; what no stage has is refused with the nearest name."""
    second = staged / "configs" / "stages" / "toy" / "02_second.yaml"
    second.write_text(WARM + "factor: 1.0\nloss_function: '$lambda p, y: @factor * @loss(p, y[:, 0].long())'\n")
    arguments = ["run", str(staged), "--dataset_dir", str(data), "--out", str(tmp_path / "out"), "--max_epochs", "1"]
    assert main([*arguments, "--factor", "2"]) == 0
    capsys.readouterr()
    assert main([*arguments, "--factor", "3"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("complete, skipped") == 1 and printed.count("has changed") == 1
    assert _config(tmp_path / "out")["factor"] == 3 and "factor" not in _config(
        tmp_path / "out" / "stages" / "01_first"
    )
    assert main([*arguments, "--weight", "4"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("has changed") == 2, "the second starts from the first"
    assert "without effect" not in printed
    second.write_text(WARM + "factor: 1.0\n")
    assert main([*arguments, "--factor", "2"]) == 0
    assert capsys.readouterr().out.startswith("without effect, as no step uses it: --factor\n")
    assert main([*arguments, "--facto", "2"]) == 1
    assert "factor" in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_stage_without_its_result_runs_again(staged, data, tmp_path, capsys):
    (staged / "configs" / "stages" / "toy" / "01_first.yaml").write_text("max_epochs: 1\nstage_done: history.json\n")
    arguments = ["run", str(staged), "--dataset_dir", str(data), "--out", str(tmp_path / "out"), "--no-progress"]
    assert [step["done"] for step in method_steps(staged, "toy", [], {})] == ["history.json", "models/model.pt"]
    assert main(arguments) == 0
    first = tmp_path / "out" / "stages" / "01_first"
    (first / "history.json").unlink()
    capsys.readouterr()
    assert main(arguments) == 0
    assert (first / "history.json").is_file()
    assert capsys.readouterr().out.count("has changed") == 1, "the first gave the same again"


@pytest.mark.parametrize(("place", "stage"), [("stages/01_first/models", 0), ("models", 1), ("../elsewhere", 1)])
def test_a_checkpoint_resumes_the_stage_it_is_of(staged, data, tmp_path, place, stage):
    """And no other; how a stage came to its result does not make it run again."""
    out = tmp_path / "out"
    checkpoint = out / place / "last.pt"
    arguments = ["run", str(staged), "--dataset_dir", str(data), "--out", str(out), "--max_epochs", "1"]
    train = staged / "configs" / "train.yaml"
    train.write_text(train.read_text() + "resume_from: null\nresumed: '$print(@resume_from)'\n")
    train.write_text(train.read_text().replace('run: ["$@train', 'run: ["$@resumed", "$@train'))
    assert main([*arguments, "--resume_from", str(checkpoint)]) == 0
    found = [_config(folder)["resume_from"] for folder in (out / "stages" / "01_first", out)]
    assert found == [str(checkpoint) if number == stage else None for number in range(2)]
