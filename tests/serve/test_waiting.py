"""`wait=False` as people write it: on a model of this process, through the codec, and on a real service."""

import copy
import pickle
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import glassworks as gw
from glassworks.serve.supervise import Running

PROMPT = "The Eiffel Tower is in the city of"


@pytest.fixture(scope="module")
def local() -> Any:
    return gw.load("toy")


@pytest.fixture(scope="module", params=["local", "in process", "served"])
def model(request: pytest.FixtureRequest, local: Any) -> Any:
    if request.param == "local":
        return local
    if request.param == "in process":
        return gw.connect(local)
    quiet_service = request.getfixturevalue("quiet_service")
    return gw.connect(quiet_service.url, api_key=quiet_service.key).model("toy")


@pytest.fixture
def logits(local: Any) -> torch.Tensor:
    with local.trace(PROMPT):
        found = local.logits.save()
    return found.value


USES = {
    "value": lambda value: value.value,
    "arithmetic": lambda value: value + 0,
    "a torch function": lambda value: torch.mul(value, 1),
    "a method": lambda value: value.clone(),
    "a shape": lambda value: value.reshape(value.shape),
    "an index": lambda value: value[:],
    "iteration": lambda value: torch.stack(list(value)),
    "numpy": lambda value: torch.as_tensor(value.numpy()),
    "a copy": lambda value: copy.deepcopy(value),
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "values": lambda value: gw.values({"x": value})["x"],
    "the saved handle": lambda value: value,
}


@pytest.mark.parametrize("use", USES)
def test_a_saved_value_waits_on_first_use(model: Any, logits: torch.Tensor, use: str) -> None:
    with model.trace(PROMPT, wait=False) as t:
        value = model.logits.save()
    assert re.fullmatch(f"<Value that waits for <job {t.job.id} [a-z]+.*>>", repr(value))
    found = USES[use](value)
    assert torch.equal(torch.as_tensor(getattr(found, "value", found)), logits)
    assert repr(value) == repr(logits)


def test_both_handles_of_a_save_wait(model: Any, logits: torch.Tensor) -> None:
    with model.trace(PROMPT, wait=False):
        read = model.logits
        kept = read.save()
    assert torch.equal(read.value, kept.value)
    assert torch.equal(read.value, logits)


def test_the_job_of_a_block(model: Any, logits: torch.Tensor) -> None:
    with model.trace(PROMPT, wait=False) as t:
        value = model.logits.save("logits")
        model.layers[0].output.save("h")
    job = t.job
    job.wait(timeout_s=60)
    assert (job.status, job.position, job.progress) == ("done", None, 1.0)
    results = job.results()
    assert set(results) == {"logits", "h"}
    assert torch.equal(results["logits"], logits)
    assert t.forwards == 1
    assert torch.equal(value.value, logits)
    job.cancel()
    assert job.status == "done"


def test_a_block_that_waits_has_no_job(model: Any) -> None:
    with model.trace(PROMPT) as t:
        model.logits.save()
    with pytest.raises(gw.ScopeError, match="wait=False"):
        _ = t.job


def test_nothing_saved_is_a_job_that_is_done(model: Any) -> None:
    with model.trace(PROMPT, wait=False) as t:
        _ = model.logits
    t.job.wait()
    assert t.job.status == "done"
    assert t.job.results() == []


def test_an_error_is_raised_at_each_use_with_the_authors_own_line(model: Any) -> None:
    with model.trace(PROMPT, wait=False) as t:
        ids = model.ids
        value = torch.repeat_interleave(ids, ids[0] - 10**6, dim=1).sum().save()
    line = f"{__file__}:{t.graph.lines[-3].number}"
    t.job.wait()
    assert t.job.status == "failed"
    for use in (lambda: value.value, lambda: value + 1, lambda: t.job.results()):
        with pytest.raises(RuntimeError) as caught:
            use()
        assert line in "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])


def test_a_generation_has_its_tokens_among_the_results(model: Any, local: Any) -> None:
    with local.generate(PROMPT, max_new_tokens=4) as here:
        pass
    with model.generate(PROMPT, max_new_tokens=4, wait=False) as t, t.steps[0:2]:
        saved = model.logits[:, -1].save()
    assert torch.equal(t.result, here.result)
    assert len(saved) == 2
    assert len(t.alive) == len(here.alive)
    with model.generate(PROMPT, max_new_tokens=4, wait=False) as t:
        pass
    assert torch.equal(t.result, here.result)


def test_logs_are_there_once_it_has_run(model: Any) -> None:
    with model.trace(PROMPT, wait=False) as t:
        gw.log("norm", model.layers[0].output.norm())
    assert [entry.text.split()[0] for entry in t.logs] == ["norm"]


def test_a_session_is_one_job(model: Any, local: Any) -> None:
    def write(session: Any, own: Any) -> list[Any]:
        with session:
            with own.trace(PROMPT):
                first = own.layers[0].output[:, -1].save()
            with own.trace("A man walked into the"):
                own.layers[0].output[:, -1] = first
                second = own.logits[:, -1].save("second")
        return [first, second]

    expected = write(local.session(), local)
    session = model.session(wait=False)
    found = write(session, model)
    results = session.job.results()
    assert len(results) == 2
    assert torch.equal(results[1]["second"], expected[1].value)
    for here, there in zip(expected, found, strict=True):
        assert torch.equal(here.value, there.value)


def test_a_run_over_prompts_is_one_job(model: Any, local: Any) -> None:
    with local.record() as t:
        local.layers[1].output.save("h")
        local.logits.save("mean", reduce="mean")
    prompts = [PROMPT, "A man walked into the", "Once"]
    here = local.run(t.graph, prompts, rows=2)
    there = model.run(t.graph, prompts, rows=2, wait=False)
    there.job.wait()
    assert there.job.status == "done"
    assert list(there) == list(here)
    for own, other in zip(here["h"], there["h"], strict=True):
        assert torch.equal(own, other)
    assert torch.equal(here["mean"], there["mean"])


def test_to_and_not_waiting_do_not_go_together(model: Any, tmp_path: Path) -> None:
    with model.record() as t:
        model.logits.save("x")
    with pytest.raises(gw.InputError, match="wait=False"):
        model.run(t.graph, [PROMPT], wait=False, to=tmp_path / "x")


def test_gradients_arrive_with_the_job(model: Any, local: Any) -> None:
    found = []
    for own, wait in ((local, True), (model, False)):
        probe = torch.zeros(128, requires_grad=True)
        with own.trace(PROMPT, wait=wait) as t:
            loss = ((own.layers[0].output[:, -1] @ probe) - 1).square().sum()
            t.backward(loss)
        if not wait:
            t.job.wait()
        found.append(probe.grad)
    assert torch.equal(*found)


@pytest.mark.parametrize("file", ["folder", "named.safetensors", "deep/er/named.safetensors"])
def test_results_are_written_as_one_file_that_reads_back(model: Any, tmp_path: Path, file: str) -> None:
    with model.generate(PROMPT, max_new_tokens=3, eos_token_id=None, wait=False) as t, t.steps[0:2]:
        steps = model.logits[:, -1].save("each")
    results = t.job.results(to=tmp_path / file)
    path = tmp_path / file
    [path] = path.glob("*.safetensors") if path.is_dir() else [path]
    read = load_file(path)
    assert torch.equal(read["each[0]"], steps[0])
    assert torch.equal(read["each[1]"], results["each"][1])
    assert torch.equal(read["result.0"], t.result)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_results_of_a_session_are_named_by_their_block(model: Any, tmp_path: Path) -> None:
    with model.session(wait=False) as session:
        for prompt in (PROMPT, "Once"):
            with model.trace(prompt):
                model.logits[:, -1].save("last")
    session.job.results(to=tmp_path)
    assert set(load_file(tmp_path / "results.safetensors")) == {"0.last", "1.last"}


def test_names_that_cannot_be_told_apart_are_refused(model: Any, tmp_path: Path) -> None:
    with model.generate(PROMPT, max_new_tokens=2, wait=False) as t:
        with t.steps[0:2]:
            model.logits[:, -1].save("x")
        with t.prompt:
            model.logits[:, -1].save("x[0]")
    with pytest.raises(gw.InputError, match=r"'x\[0\]' cannot be written"):
        t.job.results(to=tmp_path)


# Only where a run takes time that is not this thread's.


def test_a_run_under_way_tells_its_progress_and_is_called_off(quiet_service: Running) -> None:
    model = gw.connect(quiet_service.url, api_key=quiet_service.key).model("toy")
    with model.generate(PROMPT, max_new_tokens=900, eos_token_id=None, wait=False) as t, t.steps[:]:
        value = model.logits[:, -1].argmax(-1).save()
    seen = []
    while t.job.status == "queued" or not seen or seen[-1] < 0.02:
        seen.append(t.job.progress)
        assert t.job.status in ("queued", "running")
        time.sleep(0.02)
    assert 0 < seen[-1] < 1
    assert seen == sorted(seen)
    start = time.monotonic()
    t.job.cancel()
    t.job.wait()
    assert time.monotonic() - start < 5
    assert t.job.status == "cancelled"
    with pytest.raises(gw.Cancelled, match="cancelled"):
        _ = value[0]
    with model.trace(PROMPT):
        model.logits.save()


def test_a_job_is_found_again(quiet_service: Running, logits: torch.Tensor) -> None:
    lab = gw.connect(quiet_service.url, api_key=quiet_service.key)
    model = lab.model("toy")
    with model.trace(PROMPT, wait=False) as t:
        model.logits.save("logits")
    again = gw.connect(quiet_service.url, api_key=quiet_service.key).job(t.job.id)
    assert torch.equal(again.results()["logits"], logits)
    assert again.id == t.job.id
    with pytest.raises(gw.RemoteError, match="no job 'nothing'"):
        lab.job("nothing")


def test_errors_of_a_service_name_the_authors_file(quiet_service: Running) -> None:
    """Files travel without their folders; here they have them again, in messages and in notes."""
    model = gw.connect(quiet_service.url, api_key=quiet_service.key).model("toy")
    with pytest.raises(IndexError) as noted, model.trace(PROMPT):
        model.logits[:, 10_000].save()
    assert any(f"  at {__file__}:" in note for note in noted.value.__notes__)
    with pytest.raises(gw.LimitExceeded, match="node_bytes") as spoken, model.trace(PROMPT):
        model.logits.repeat(10**6, 1, 1).sum().save()
    assert f"  at {__file__}:" in str(spoken.value)
