"""Watching a running model: wrappers stand only while a run needs them, and give back what was there."""

import copy
import threading

import pytest
import torch

import glassworks as gw


@pytest.fixture
def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))


def wrapped(module):
    return [path for path, child in module.named_modules() if "forward" in child.__dict__]


def test_only_the_modules_that_are_asked_for_and_only_while_they_run(net):
    seen = []
    model = gw.wrap(net)
    net[1].register_forward_hook(lambda *_: seen.append(wrapped(net)))
    with model.trace(torch.ones(1, 4)):
        model[2].output.save()
    assert seen[-1] == ["2"]
    assert wrapped(net) == []


def test_an_error_in_the_model_leaves_it_as_it_was(net):
    model = gw.wrap(net)
    with model.trace(torch.ones(1, 4)):
        model[0].output.save()
    with pytest.raises(RuntimeError), model.trace(torch.ones(1, 4)):
        (model[0].output @ torch.ones(3)).save()
    assert wrapped(net) == []


def test_a_forward_of_the_instance_stays(net):
    def own(x):
        return torch.zeros(1, 4)

    net[1].forward = own
    model = gw.wrap(net)
    with model.trace(torch.ones(1, 4)):
        relu = model[1].output.save()
    assert not bool(relu.value.any())
    assert net[1].forward is own


def test_a_copy_of_an_idle_model_is_its_own(net):
    model = gw.wrap(net)
    with model.trace(torch.ones(1, 4)):
        model[0].output.save()
    other = copy.deepcopy(net)
    with torch.no_grad():
        other[0].weight.zero_()
        other[0].bias.zero_()
    with gw.wrap(other).trace(torch.ones(1, 4)) as t:
        out = t.result.save()
    assert torch.equal(out.value, other(torch.ones(1, 4)))
    assert not torch.equal(other(torch.ones(1, 4)), net(torch.ones(1, 4)))


def test_threads_do_not_see_each_other(net):
    model, x = gw.wrap(net), torch.randn(3, 4)
    wrong = []

    def work(factor):
        for _ in range(50):
            with model.trace(x):
                model[0].output *= factor
                out = model[2].output.save()
            expected = net[2](net[1](net[0](x) * factor))
            if not torch.equal(out.value, expected.detach()) or not torch.equal(net(x), plain):
                wrong.append(factor)

    plain = net(x)
    threads = [threading.Thread(target=work, args=(float(k),)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert wrapped(net) == []
