"""A trace leaves nothing behind, and a model that nobody holds is freed."""

import gc
import os
import weakref
from pathlib import Path

import torch

import glassworks as gw
from families import gpt2, t5


def tensors_alive() -> int:
    return sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects())


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def traces(model: gw.Model, count: int) -> None:
    steer = torch.ones(32)
    for k in range(count):
        with model.trace([5, 6, 7, 8 + k % 5]):
            h = model.layers[1].output
            h[:, -1] += steer
            h.mean().save()
            model.logits[:, -1].argmax(-1).save()


def test_traces_leave_nothing_behind() -> None:
    model = gw.wrap(gpt2())
    traces(model, 50)
    gc.collect()
    gc.disable()
    try:
        before, bytes_before = tensors_alive(), resident_bytes()
        traces(model, 300)
        after, bytes_after = tensors_alive(), resident_bytes()
    finally:
        gc.enable()
    assert after <= before * 1.01
    assert bytes_after <= bytes_before * 1.01


def test_gradients_leave_nothing_behind() -> None:
    model = gw.wrap(gpt2())

    def run(count: int) -> None:
        for _ in range(count):
            with model.trace([5, 6, 7]) as t:
                h = model.layers[1].output
                t.backward(model.logits[:, -1, 3].sum())
                h.grad.save()

    run(20)
    gc.collect()
    gc.disable()
    try:
        before = tensors_alive()
        run(100)
        after = tensors_alive()
    finally:
        gc.enable()
    assert after <= before * 1.01


def test_a_model_that_nobody_holds_is_freed() -> None:
    for build in (gpt2, t5):
        module = build()
        model = gw.wrap(module)
        with model.trace([5, 6, 7]):
            saved = model.logits.save()
        gone = weakref.ref(module)
        del module, model
        gc.collect()
        assert gone() is None
        assert saved.value.shape[-1] == 97


def test_an_error_in_a_block_pins_nothing() -> None:
    model = gw.wrap(gpt2())
    big = torch.zeros(1000)
    gone = weakref.ref(big)
    try:
        with model.trace([5, 6, 7]):
            (model.logits[:, -1, :1] + big).save()
            raise KeyError("mine")
    except KeyError:
        pass
    del big
    gc.collect()
    assert gone() is None
