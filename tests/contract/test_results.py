"""Results: saved Values as tensors, jobs that are waited for, blocks and threads."""

import copy
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import glassworks as gw
from contract.places import OTHER, PROMPT, Place, close, names
from lines import here, told

SEQ = len(PROMPT)
PROMPTS = [PROMPT, OTHER, PROMPT[1:], OTHER + PROMPT]


@pytest.mark.sentence("runs.13")
def test_saved_values_act_as_tensors(case: Place) -> None:
    """After the block a saved Value acts as its tensor (attributes, operators, torch functions, numpy, iteration,
    pickle);"""
    expected = case.oracle.forward(PROMPT)["layers.1.output"]
    with case.block(PROMPT):
        value = case.model.layers[1].output.save()
    assert value.shape == expected.shape
    assert value.dtype == torch.float32
    assert value.is_contiguous()
    close(value + 1, expected + 1)
    close(1 - value[:, -1] * value[:, -1], 1 - expected[:, -1] ** 2)
    close(value.mean(), expected.mean())
    close(torch.softmax(value, -1), expected.softmax(-1))
    close(torch.cat([value, expected]), torch.cat([expected, expected]))
    close(value @ torch.ones(32), expected.sum(-1), tolerance=1e-4)
    np.testing.assert_allclose(np.asarray(value), expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(value.numpy(), expected.numpy(), atol=1e-5)
    assert len(value) == len(list(value)) == 1
    assert abs(float(value[0, 0, 0]) - float(expected[0, 0, 0])) < 1e-5
    assert bool((value == value).all())
    for same in (pickle.loads(pickle.dumps(value)), copy.deepcopy(value)):
        close(torch.as_tensor(gw.values(same)), expected)
    close(torch.nn.functional.linear(value, torch.ones(3, 32)), expected @ torch.ones(32, 3), tolerance=1e-4)


@pytest.mark.sentence("runs.14")
def test_the_tensors_of_saved_values(case: Place) -> None:
    """`.value` is the tensor; `gw.values(tree)` gives tensors for any nesting."""
    expected = case.oracle.forward(PROMPT)
    with case.block(PROMPT):
        tree = {
            "each": [layer.output.save() for layer in case.model.layers],
            "pair": (case.model.norm.output.save(), {"logits": case.model.logits.save()}, 3, None),
        }
    plain = gw.values(tree)
    assert type(tree["each"][0].value) is torch.Tensor
    assert type(plain["each"]) is list
    assert type(plain["pair"]) is tuple
    assert plain["pair"][2:] == (3, None)
    for n in range(3):
        assert type(plain["each"][n]) is torch.Tensor
        close(plain["each"][n], expected[f"layers.{n}.output"])
    assert type(plain["pair"][1]["logits"]) is torch.Tensor
    close(plain["pair"][1]["logits"], expected.logits)


@pytest.mark.sentence("runs.15")
@pytest.mark.parametrize("use", [lambda value: value.value, lambda value: value + 1, torch.sum, float, list])
def test_values_that_were_not_saved(place: Place, use: Any) -> None:
    """An unsaved one raises `NotSaved` with the line of the read."""
    with place.model.trace(PROMPT):
        line = here(+1)
        value = place.model.layers[1].output
        place.model.logits.save()
    with pytest.raises(gw.NotSaved) as caught:
        use(value)
    assert names(caught, line)
    assert "save" in str(caught.value)


@pytest.mark.sentence("runs.16")
def test_jobs(apart: Place) -> None:
    """With `wait=False` a saved Value waits; `t.job` has `.id`, `.status`, `.position`, `.progress`, `.wait()`,
    `.cancel()`, `.results(to=None)`;"""
    with apart.model.trace(PROMPT, wait=False) as t:
        logits = apart.model.logits.save()
        apart.model.layers[1].output.save("h")
    close(logits + 0, apart.oracle.forward(PROMPT).logits)
    job = t.job
    assert isinstance(job.id, str)
    assert job.id
    job.wait()
    assert isinstance(job.status, str)
    assert job.status not in ("queued", "running")
    assert job.position in (None, 0)
    assert job.progress is not None
    results = job.results()
    assert "h" in results
    close(torch.as_tensor(results["h"]), apart.oracle.forward(PROMPT)["layers.1.output"])
    close(logits.value, apart.oracle.forward(PROMPT).logits)


@pytest.mark.sentence("runs.16")
def test_results_of_a_job_in_a_folder(apart: Place, tmp_path: Path) -> None:
    """`.results(to=None)`;"""
    with apart.model.trace(PROMPT, wait=False) as t:
        apart.model.layers[1].output.save("h")
    t.job.results(to=tmp_path / "job")
    [*found] = (tmp_path / "job").rglob("*.safetensors") if (tmp_path / "job").is_dir() else [tmp_path / "job"]
    tensors = {name: tensor for path in found for name, tensor in load_file(path).items()}
    close(tensors["h"].reshape(1, SEQ, 32), apart.oracle.forward(PROMPT)["layers.1.output"])


@pytest.mark.sentence("runs.16")
def test_a_job_that_is_cancelled(apart: Place) -> None:
    """`.cancel()`,"""
    jobs, values = [], []
    for _ in range(4):
        with apart.model.generate(PROMPT, max_new_tokens=200, eos_token_id=None, wait=False) as t, t.steps[:]:
            values.append(apart.model.logits[:, -1].save())
        jobs.append(t.job)
    jobs[-1].cancel()
    if apart.kind == "remote":  # in one process there is no queue, and a job that has ended is not changed
        assert {job.status for job in jobs} == {"done"}
        return
    for job in jobs[:-1]:
        job.wait()
    assert len(values[0]) == 200
    with pytest.raises(gw.GlassworksError, match="cancel"):
        _ = values[-1][0]
    assert "cancel" in jobs[-1].status


@pytest.mark.slow
@pytest.mark.sentence("runs.17")
def test_a_job_from_another_process(services: Any) -> None:
    """`lab.job(id)` finds it from another process."""
    running, lab = services.lab("llama")
    model = services.model("llama")
    with model.trace(PROMPT, wait=False) as t:
        logits = model.logits.save("logits")
    code = (
        "import sys, glassworks as gw\n"
        "job = gw.connect(sys.argv[1], api_key=sys.argv[2]).job(sys.argv[3])\n"
        "job.wait()\n"
        "print(float(gw.values(job.results()['logits'])[0, -1, 5]))\n"
    )
    arguments = [sys.executable, "-c", code, running.url, running.key, t.job.id]
    said = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=True).stdout
    assert abs(float(said) - float(logits[0, -1, 5])) < 1e-5
    assert lab.job(t.job.id).id == t.job.id
    with pytest.raises(gw.GlassworksError):
        lab.job("nothing").wait()


@pytest.mark.sentence("runs.18")
def test_one_block_at_a_time(case: Place) -> None:
    """One open block a model a thread;"""
    with case.block(PROMPT):
        with pytest.raises(gw.ScopeError) as caught, case.block(OTHER):
            pass
        line = here(-2)
        assert names(caught, line)
        logits = case.model.logits.save()
    close(logits.value, case.oracle.forward(PROMPT).logits)


@pytest.mark.sentence("runs.18")
def test_blocks_of_threads(place: Place) -> None:
    """One open block a model a thread;"""
    barrier, found, wrong = threading.Barrier(2), {}, []

    def work(prompt: list[int]) -> None:
        try:
            for _ in range(5):
                with place.model.trace(prompt):
                    barrier.wait(20)
                    place.model.layers[1].output[:] *= 1
                    found[tuple(prompt)] = place.model.logits.save()
        except BaseException as error:  # noqa: BLE001 - told to the test's own thread
            wrong.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(prompt,)) for prompt in (PROMPT, OTHER)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong, told(wrong[0])
    for prompt in (PROMPT, OTHER):
        close(found[tuple(prompt)].value, place.oracle.forward(prompt).logits)


@pytest.mark.sentence("runs.19")
def test_a_value_of_another_block(place: Place) -> None:
    """a Value of one block in another is refused, unless a session holds both."""
    model = place.model
    with model.trace(OTHER):
        first = here(+1)
        value = model.layers[1].output
        model.logits.save()
    with pytest.raises(gw.GraphError) as caught, model.trace(PROMPT):
        second = here(+1)
        model.layers[1].output += value[:, -1:]
        model.logits.save()
    assert names(caught, first) or names(caught, second)
    with pytest.raises(gw.GraphError), model.trace(PROMPT):
        (model.layers[1].output @ value[0].T).save()


@pytest.mark.sentence("runs.19")
def test_a_saved_value_in_another_block(case: Place) -> None:
    """After the block a saved Value acts as its tensor ... unless a session holds both."""
    with case.block(OTHER):
        value = case.model.layers[1].output[:, -1:].save()
    expected = case.oracle.forward(PROMPT, {"layers.1.output": lambda h, _: h + value.value}).logits
    with case.block(PROMPT):
        case.model.layers[1].output += value
        logits = case.model.logits.save()
    close(logits.value, expected)
