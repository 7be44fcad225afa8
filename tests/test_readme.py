"""The README is short, shows the three jobs in five lines each, and states versions that passed."""

import re
import tomllib
from pathlib import Path

import records

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
QUESTIONS = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")


def test_versions_stated_are_those_that_passed():
    tried = [{**line["versions"], "failed": line["result"]["failed"]} for line in records.lines("versions")]
    stated = re.search(r"Versions: (.*?)\]\(", QUESTIONS, flags=re.S)[1]
    for package, words in (("torch", "torch"), ("peft", "peft from"), ("lightning", "Lightning from")):
        given = re.search(rf"{words} ([\d.]+\d)(?: and ([\d.]+\d))?", stated)
        for version in filter(None, given.groups()):
            assert any(e.get(package) == version and not e["failed"] for e in tried)
    oldest = re.search(r"transformers from ([\d.]+\d)", stated)[1]
    assert any(e["transformers"] == oldest and not e["failed"] for e in tried)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert oldest.startswith(extras["transformers"][0].removeprefix("transformers>="))


def test_it_is_short_and_its_blocks_have_at_most_five_lines():
    assert len(README.splitlines()) <= 130
    introduction = README.split("\n\n")[1].replace("\n", " ")
    assert len(re.findall(r"\.(?= [A-Z]|$)", introduction)) == 2  # two sentences
    found = re.findall(r"^```(?:sh|diff)\n(.*?)^```", README, flags=re.S | re.M)
    assert len(found) == 5  # install, two commands, the loop and its example
    assert all(len(block.splitlines()) <= 5 for block in found)


def test_lines_that_are_added_to_a_loop_are_those_of_the_tutorial():
    tutorial = (ROOT / "docs" / "tutorials" / "training-loop.md").read_text(encoding="utf-8")
    added = [re.split(" {2,}#", line[1:])[0].strip() for line in re.findall(r"^\+.*", README, flags=re.M)]
    assert len(added) == 3
    assert all(line in tutorial for line in added), added


def test_suspected_errors_that_are_wrong_are_those_of_the_tutorials():
    for name in ("images", "texts"):
        tutorial = (ROOT / "docs" / "tutorials" / f"{name}.md").read_text(encoding="utf-8")
        right, suspected = re.search(r"are wrong; (\d+) of (\d+) suspected errors", tutorial).groups()
        assert f"{right} of {suspected} suspected errors are wrong labels" in README


def test_demo_record_shows_a_gain_over_plain_fine_tuning():
    accuracy = {(r["name"], r["seed"]): r["test_accuracy"] for r in records.result("demo")["runs"]}
    mean = {name: sum(accuracy[name, s] for s in range(3)) / 3 for name, _ in accuracy}
    assert len(accuracy) == 12
    assert mean["robust"] - mean["plain"] >= 0.10
    assert mean["auto"] >= 0.92
    assert mean["auto"] == max(mean.values())


def test_recommendation_after_clean_is_that_of_the_record():
    found = {}
    for row in records.rows("after_clean"):
        found.setdefault((row["method"], row["labels"]), []).append(row["accuracy"])
    mean = {key: sum(values) / len(values) for key, values in found.items()}
    assert len({len(values) for values in found.values()}) == 1
    assert mean["auto", "given"] >= max(mean.values()) - 0.005
    for method in ("auto", "vanilla"):
        assert mean[method, "soft"] > max(mean[method, "corrected"], mean[method, "pruned"])
    assert mean["vanilla", "soft"] > mean["vanilla", "given"] + 0.01
