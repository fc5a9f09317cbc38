"""`glassworks generate`: where prompts come from, what comes out, and a file that was cut short at any byte."""

import io
import json
import sys

import pytest

import glassworks as gw
from glassworks.cli import generate as command
from glassworks.cli import main as cli

EIFFEL, COLOSSEUM, LOUVRE = (f"The {name} is in the city of" for name in ("Eiffel Tower", "Colosseum", "Louvre"))
PROMPTS = [EIFFEL, COLOSSEUM, LOUVRE, "Rome is a city in", "The keys near the cabinet"]
NEW = ("--max-new-tokens", "5")


@pytest.fixture(scope="module")
def model():
    return gw.load("toy")


@pytest.fixture
def run(monkeypatch, capsys, model):
    """Runs a command line as the script does: (exit code, objects on standard output, standard error)."""
    monkeypatch.setattr(gw, "load", lambda name: model)

    def run(*words, stdin=""):
        monkeypatch.setattr(sys, "argv", ["glassworks", "generate", "toy", *map(str, words)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        found = capsys.readouterr()
        return ended.value.code or 0, found.out, found.err

    return run


def objects(text):
    return sorted((json.loads(line) for line in text.splitlines()), key=lambda own: own["index"])


def plain(text):
    """Without what differs from run to run."""
    return [{name: value for name, value in own.items() if name != "seconds"} for own in objects(text)]


def test_an_object_says_what_complete_says(run, model):
    code, out, err = run(EIFFEL, COLOSSEUM, *NEW)
    assert code == 0
    for own, prompt in zip(objects(out), (EIFFEL, COLOSSEUM), strict=True):
        alone = model.complete(prompt, max_new_tokens=5)
        assert list(own) == ["index", "prompt", "text", "tokens", "finish", "seconds"]
        assert (own["prompt"], own["text"], own["tokens"]) == (prompt, str(alone), alone.tokens)
        assert own["finish"] == "eos"
        assert own["seconds"] > 0
    assert err.startswith("2 of 2 prompts; ")


def test_why_each_ended(run):
    lines = [{"prompt": EIFFEL, "max_new_tokens": 1}, {"prompt": EIFFEL}, {"prompt": EIFFEL, "stop": "."}]
    found = objects(run(stdin="\n".join(map(json.dumps, lines)))[1])
    assert [own["finish"] for own in found] == ["length", "eos", "stop"]
    assert [own["text"] for own in found] == [" Paris", " Paris.", " Paris"]


def test_prompts_of_a_file_standard_input_and_objects_are_the_same(run, tmp_path):
    (tmp_path / "p.txt").write_text("\n\n".join(PROMPTS))
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": own}) + "\n" for own in PROMPTS))
    expected = plain(run(*PROMPTS, *NEW)[1])
    assert plain(run("--file", tmp_path / "p.txt", *NEW)[1]) == expected
    assert plain(run("--file", tmp_path / "p.jsonl", *NEW)[1]) == expected
    assert plain(run(*NEW, stdin="\n".join(PROMPTS))[1]) == expected
    assert plain(run(*NEW, stdin=(tmp_path / "p.jsonl").read_text())[1]) == expected


def test_an_object_has_settings_and_a_name_of_its_own(run, model):
    ids = list(model.encode(LOUVRE))
    lines = [
        {"prompt": ids, "id": {"row": 7}, "max_new_tokens": 2},
        {"prompt": LOUVRE, "seed": 3, "options": {"do_sample": True, "temperature": 2.0}},
    ]
    first, second = objects(run(*NEW, stdin="\n".join(map(json.dumps, lines)))[1])
    assert (first["id"], first["prompt"], len(first["tokens"])) == ({"row": 7}, ids, 2)
    drawn = model.complete(LOUVRE, max_new_tokens=5, seed=3, do_sample=True, temperature=2.0)
    assert second["tokens"] == drawn.tokens


def test_equal_prompts_draw_by_their_own_seeds_whatever_the_company(run, model):
    words = ("--temperature", "2.5", "--seed", "40", *NEW)
    found = objects(run(*[LOUVRE] * 4, *words)[1])
    for index, own in enumerate(found):
        drawn = model.complete(LOUVRE, max_new_tokens=5, seed=40 + index, do_sample=True, temperature=2.5)
        assert own["tokens"] == drawn.tokens
    assert len({tuple(own["tokens"]) for own in found}) > 1
    others = objects(run(*[LOUVRE] * 4, *words, "--rows", "1", "--policy", "fcfs")[1])
    assert [own["tokens"] for own in others] == [own["tokens"] for own in found]


def test_a_prompt_that_fails_leaves_the_others_alone(run):
    lines = [{"prompt": [99_999]}, {"prompt": EIFFEL, "max_new_tokens": -1}, {"prompt": EIFFEL}]
    lines += [{"prompt": EIFFEL, "options": {"warmth": 2}}, {"prompt": [3] * 250, "max_new_tokens": 50}]
    code, out, err = run(*NEW, stdin="\n".join(map(json.dumps, lines)))
    found = objects(out)
    assert code == 1
    assert found[2]["text"] == " Paris."
    errors = [own.get("error", "") for own in found]
    for index, words in ((0, "ids of this model"), (1, "at least 0"), (3, "is not known here")):
        assert errors[index].startswith("InputError: ")
        assert words in errors[index]
    assert err.startswith(f"{sum(not own for own in errors)} of 5 prompts")


def test_too_little_memory_is_an_error_of_the_prompt_that_needs_more(run):
    lines = [{"prompt": EIFFEL}, {"prompt": [3] * 200, "max_new_tokens": 50}]
    code, out, _ = run("--device-memory", "384KiB", *NEW, stdin="\n".join(map(json.dumps, lines)))
    assert code == 1
    short, long = objects(out)
    assert short["text"] == " Paris."
    assert "BudgetExceeded: " in long["error"]
    assert "KVBudget(device=...)" in long["error"]


# Files that go on.


def test_a_file_cut_at_any_byte_goes_on_to_the_same_objects(run, tmp_path):
    out = tmp_path / "found.jsonl"
    words = (*PROMPTS, *NEW, "--out", out)
    code, printed, err = run(*words)
    assert (code, printed) == (0, "")
    assert err.startswith(f"5 of 5 prompts in {out}; ")
    whole, expected = out.read_bytes(), plain(out.read_text())
    ends = [at for at, byte in enumerate(whole) if byte == ord("\n")]
    for cut in {0, 1, ends[0] - 1, ends[0], ends[0] + 1, ends[2] - 7, ends[3] + 1, len(whole) - 1}:
        out.write_bytes(whole[:cut])
        kept = [line for line in whole[:cut].decode().split("\n") if line.endswith("}")]
        assert run(*words)[0] == 0
        assert plain(out.read_text()) == expected, cut
        assert out.read_text().splitlines()[: len(kept)] == kept


def test_a_run_that_is_called_off_keeps_what_has_ended(run, tmp_path, monkeypatch):
    out, original = tmp_path / "found.jsonl", command.Outcomes.write
    words = (*PROMPTS, *NEW, "--out", out)

    def interrupted(self, found):
        original(self, found)
        if len(out.read_text().splitlines()) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(command.Outcomes, "write", interrupted)
    code, _, err = run(*words)
    assert code == 130
    assert "the same command goes on" in err
    first = out.read_text()
    assert len(objects(first)) == 2
    monkeypatch.setattr(command.Outcomes, "write", original)
    assert run(*words, "--rows", "2", "--policy", "fcfs")[0] == 0
    assert out.read_text().startswith(first)
    assert [own["index"] for own in objects(out.read_text())] == list(range(5))


def test_a_whole_file_runs_nothing_and_stays(run, tmp_path, monkeypatch):
    out = tmp_path / "found.jsonl"
    run(*PROMPTS, *NEW, "--out", out)
    before = out.read_bytes()
    monkeypatch.setattr(command, "_engine", None)
    assert run(*PROMPTS, *NEW, "--out", out) == (0, "", f"5 of 5 prompts are in {out}\n")
    assert out.read_bytes() == before


def test_prompts_that_failed_are_tried_again(run, tmp_path):
    out, lines = tmp_path / "found.jsonl", [{"prompt": EIFFEL}, {"prompt": [3] * 200, "max_new_tokens": 50}]
    text = "\n".join(map(json.dumps, lines))
    assert run("--out", out, "--device-memory", "384KiB", *NEW, stdin=text)[0] == 1
    first = [line for line in out.read_text().splitlines() if "error" not in json.loads(line)]
    assert len(first) == 1
    assert run("--out", out, *NEW, stdin=text)[0] == 0
    assert [own["index"] for own in objects(out.read_text())] == [0, 1]
    assert out.read_text().splitlines()[0] == first[0]


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        ((*PROMPTS[:4], *NEW), "digest_of_prompts"),
        ((*PROMPTS, "--max-new-tokens", "6"), "max_new_tokens was 5 and is 6"),
        ((*PROMPTS, *NEW, "--temperature", "1"), "temperature was None and is 1.0"),
        ((*PROMPTS, *NEW, "--seed", "1"), "seed was 0 and is 1"),
        ((*PROMPTS, *NEW, "--stop", "x"), "stop was [] and is ['x']"),
    ],
)
def test_a_file_of_another_run_is_refused_and_left_alone(run, tmp_path, words, changed):
    out = tmp_path / "found.jsonl"
    run(*PROMPTS, *NEW, "--out", out)
    before = out.read_bytes()
    code, _, err = run(*words, "--out", out)
    assert code == 2
    assert changed in err
    assert out.read_bytes() == before


def test_a_file_that_nobody_knows_is_refused_and_left_alone(run, tmp_path):
    out = tmp_path / "notes.txt"
    out.write_text("mine\n")
    code, _, err = run(EIFFEL, "--out", out)
    assert code == 2
    assert "it is left alone" in err
    assert out.read_text() == "mine\n"
    (tmp_path / "notes.txt.run.json").write_text("{")
    assert run(EIFFEL, "--out", out)[0] == 2
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["notes.txt", "notes.txt.run.json"]


def test_a_dry_run_says_what_would_run_and_writes_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setattr("glassworks.engine.engine.Engine.step", None)
    text = "\n".join(map(json.dumps, [{"prompt": EIFFEL}, {"prompt": [99_999]}]))
    code, out, _ = run("--out", tmp_path / "found.jsonl", "--dry-run", *NEW, stdin=text)
    assert code == 0
    assert "2 of 2 prompts would run, for at most 5 new tokens\n" in out
    assert "1 would be refused\nprompt 1: token ids of this model are 0 to 990; got 99999\n" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "stdin", "message"),
    [
        ((), "\n", "no prompts"),
        (("x", "--file", __file__), "", "one or the other"),
        ((), '{"prompt": 1', "line 1 is not JSON"),
        ((), '{"prompt": "x"}\ny', "line 2 is not JSON"),
        ((), '{"text": "x"}', 'with "prompt"'),
        ((), '{"prompt": "x", "warmth": 2}', "unknown warmth"),
        ((), '{"prompt": "x", "stop": 3}', "stop is a text"),
        (("x", "--device-memory", "much"), "", "a size is"),
        (("x", "--policy", "lifo"), "", "expected a policy"),
    ],
)
def test_generate_refuses(run, words, stdin, message):
    code, out, err = run(*words, stdin=stdin)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


BAD = [
    {"prompt": EIFFEL, "options": {"do_sample": True, "temperature": 0}}, {"prompt": EIFFEL, "options": {"top_p": 7}},
    {"prompt": EIFFEL, "options": {"eos_token_id": "x"}}, {"prompt": {"input_ids": 5}}, {"prompt": "half \ud83d"},
    {"prompt": EIFFEL, "stop": [5]}, {"prompt": EIFFEL, "max_new_tokens": "many"}, {"prompt": EIFFEL, "seed": -1},
    {"prompt": EIFFEL, "options": {"bad_words_ids": [[10**6]]}},
]  # fmt: skip


def test_a_line_that_cannot_be_fails_alone(run, tmp_path):
    lines = [{"prompt": LOUVRE}, *[{**own, "options": {"do_sample": True, **own.get("options", {})}} for own in BAD]]
    source = tmp_path / "prompts.jsonl"
    source.write_text("".join(json.dumps(own) + "\n" for own in [*lines, {"prompt": COLOSSEUM}]))
    code, out, _ = run("--file", source, *NEW)
    assert code == 1
    found = objects(out)
    assert ["error" in own for own in found] == [False, *[True] * len(BAD), False]
    assert all(own["error"].startswith("InputError: ") for own in found[1:-1])


@pytest.mark.parametrize("command", ["generate", "measure"])
def test_an_out_that_cannot_be_written_is_found_out_before_anything_is_loaded(monkeypatch, capsys, tmp_path, command):
    monkeypatch.setattr(gw, "load", lambda name: pytest.fail("the model was loaded"))
    words = [EIFFEL] if command == "generate" else []
    out = tmp_path / "missing" / "file.json"
    monkeypatch.setattr(sys, "argv", ["glassworks", command, "toy", *words, "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code
    assert "there is no folder" in capsys.readouterr().err.replace("\n", " ")


def test_the_oracle_is_not_offered(run):
    code, _, err = run(EIFFEL, "--policy", "srpt")
    assert code
    assert "expected a policy, one of fcfs, srpt-predicted, mlfq, fair" in err.replace("\n", " ")
