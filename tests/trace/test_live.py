"""`model.live`: the language of `trace`, with numbers, in the order of the forward pass."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch

import glassworks as gw
from lines import here, told

PROMPT = [5, 6, 7, 8]


def logits_of(bare: Any, prompt: Any = PROMPT) -> torch.Tensor:
    with torch.no_grad():
        return bare(input_ids=torch.tensor([prompt]), use_cache=False).logits


def kept(model: Any, read: Any) -> torch.Tensor:
    with model.trace(PROMPT):
        saved = read().save()
    return saved.value


# Numbers.


def test_a_value_has_numbers(model: Any) -> None:
    h = kept(model, lambda: model.layers[1].output)
    with model.live(PROMPT):
        value = model.layers[1].output
        one = value[0, -1, 3]
        assert float(one) == one.item() == float(h[0, -1, 3])
        assert f"{one:.3f}" == f"{h[0, -1, 3]:.3f}"
        assert value.tolist() == h.tolist()
        assert repr(value) == str(value) == repr(h)
        assert (value.shape, value.dtype, value.ndim, len(value)) == (h.shape, h.dtype, 3, 1)
        assert [row.tolist() for row in value[0]] == h[0].tolist()
        assert np.array_equal(np.asarray(value), h.numpy())
        assert np.array_equal(value.numpy(), h.numpy())
        assert np.asarray(value, dtype=np.float64).dtype == np.float64
        assert torch.equal(value.value, h)
        assert torch.equal(value.cpu(), h)
        assert value.device == h.device
        assert torch.equal(copy.deepcopy(value), h)
        assert torch.equal(pickle.loads(pickle.dumps(value)), h)
        assert gw.values({"a": [value]})["a"][0].equal(h)
        assert value.argmax() > 3
        assert int(value.argmax()) == [*range(10**3)][value.argmax()] == int(h.argmax())
        assert one != one + 1


def test_print_shows_the_numbers(model: Any, capsys: Any) -> None:
    with model.live(PROMPT):
        print(model.logits[0, -1, :3])
    assert capsys.readouterr().out == f"{kept(model, lambda: model.logits[0, -1, :3])}\n"


def test_numbers_that_were_changed_change_nothing(model: Any, bare: Any) -> None:
    """They are copies: the graph would not know."""
    with model.live(PROMPT) as t:
        value = model.layers[0].output
        value.value.zero_()
        value.numpy()[:] = 0
        np.asarray(value)[:] = 0
        logits = model.logits.save()
    assert torch.equal(logits.value, logits_of(bare))
    assert [node.kind for node in t.graph.nodes] == ["read", "read", "save"]


def test_operations_are_recorded_and_have_numbers(model: Any) -> None:
    h = kept(model, lambda: model.layers[1].output)
    head = kept(model, lambda: model.lm_head(model.layers[1].output))
    with model.live(PROMPT) as t:
        value = model.layers[1].output
        assert torch.equal(torch.softmax(value, -1).value, h.softmax(-1))
        assert torch.equal(torch.einsum("bsd,btd->bst", value, value).value, torch.einsum("bsd,btd->bst", h, h))
        top = value.topk(3, dim=-1)
        assert torch.equal(top.indices.value, h.topk(3, dim=-1).indices)
        assert torch.equal((value @ torch.ones(32, 2)).value, h @ torch.ones(32, 2))
        assert torch.equal(model.lm_head(value).value, head)
        assert model.lm_head.weight.shape == (97, 32)
    assert next(node.target for node in t.graph.nodes if node.kind == "call") == "softmax"


def test_sizes_that_depend_on_numbers_are_known(model: Any) -> None:
    h = kept(model, lambda: model.layers[1].output)
    with model.live(PROMPT) as t:
        value = model.layers[1].output
        positive = value[value > 0]
        assert positive.shape == h[h > 0].shape
        saved = positive.sum().save()
    assert torch.equal(saved.value, h[h > 0].sum())
    assert torch.equal(model.backend.run(t.graph, t.inputs)["0"], saved.value)


def test_what_was_read_or_saved_keeps_what_it_was(model: Any) -> None:
    clean = kept(model, lambda: model.layers[1].output)
    with model.live(PROMPT):
        h = model.layers[1].output
        first = h[:, -1]
        saved, twice = h.save(), h * 2
        h[:, -1] = 0
        assert not h[:, -1].any()
        assert torch.equal(first.value, clean[:, -1])
        assert torch.equal(saved.value, clean)
        assert torch.equal(twice.value, clean * 2)
        assert torch.equal(h[:, :-1].value, clean[:, :-1])
        assert not model.layers[1].output[:, -1].any()
    assert torch.equal(saved.value, clean)


def test_the_body_is_ordinary_python_in_its_own_frame(model: Any) -> None:
    clean = [kept(model, lambda layer=layer: layer.output) for layer in model.layers]
    steps = []

    def largest(value: Any) -> float:
        return max(abs(number) for row in value[0].tolist() for number in row)

    with model.live(PROMPT):
        for number, layer in enumerate(model.layers):
            match largest(layer.output):
                case size if size > 1e6:
                    pytest.fail("no such numbers here")
                case size:
                    steps.append((number, size))
        try:
            assert steps[0][1] < 0, "a message"
        except AssertionError as error:
            steps.append(str(error).splitlines()[0])
    assert steps[:3] == [(k, float(h.abs().max())) for k, h in enumerate(clean)]
    assert steps[3].startswith("a message")


def test_an_unsaved_value_is_gone_after_the_block(model: Any) -> None:
    with model.live(PROMPT):
        value = model.layers[1].output
        line = here(-1)
    with pytest.raises(gw.NotSaved, match="not saved") as caught:
        float(value.mean())
    assert line in str(caught.value)


# The rest of the language.


def test_sites_of_every_kind(model: Any, bare: Any) -> None:
    entering = kept(model, lambda: model.layers[1].input)
    last = kept(model, lambda: model.norm.output)
    with model.live(PROMPT) as t:
        assert model.ids.tolist() == [PROMPT]
        (first, *_), _ = model.transformer.h[1].inputs
        mapping = model.transformer.output
        logits = model.logits
        result = t.result
        assert torch.equal(first.value, entering)
        assert torch.equal(mapping["last_hidden_state"].value, last)
        assert torch.equal(result["logits"].value, logits.value)
        assert torch.equal(t.result["logits"].value, logits_of(bare))
        t.result.save()
    assert torch.equal(result["logits"].value, logits_of(bare))


def test_tokens_and_positions(toy: Any) -> None:
    with toy.live("The Eiffel Tower is in the city of") as t:
        assert t.tokens[0][-1] == " of"
        assert t.mask.all()
        value = toy.layers[2].output[:, t.find(" Tower")].save()
        top = toy.logits[:, -1].argmax(-1).save()
        assert toy.decode(top) == " Paris"
    with toy.trace("The Eiffel Tower is in the city of"):
        expected = toy.layers[2].output[:, t.find(" Tower")].save()
    assert torch.equal(value.value, expected.value)


@pytest.fixture(scope="module")
def toy() -> Any:
    return gw.load("toy")


def test_a_loaded_model_reads_its_weights_when_it_must(toy: Any) -> None:
    fresh = gw.load("toy")
    with fresh.live("The"):
        mine = fresh.layers[0].output.save()
    with toy.trace("The"):
        expected = toy.layers[0].output.save()
    assert torch.equal(mine.value, expected.value)


def test_several_prompts_are_padded(model: Any) -> None:
    prompts = [[5, 6, 7, 8, 9], [11, 12]]
    with model.live(prompts) as t:
        h = model.layers[1].output
        assert t.mask.tolist() == [[True] * 5, [False] * 3 + [True] * 2]
        assert not h[1, :3].any()
        h[:] = h + 1
        assert not h[1, :3].any()
        last = model.logits[:, -1].save()
    for k, prompt in enumerate(prompts):
        with model.trace(prompt):
            model.layers[1].output += 1
            own = model.logits[:, -1].save()
        assert torch.allclose(last.value[k], own.value[0], atol=1e-5)


def test_a_cache_keeps_the_final_values(model: Any) -> None:
    with model.live(PROMPT) as t:
        early = t.cache("layers.*.attn.output")
        outputs = t.cache()
        for layer in model.layers[:2]:
            h = layer.output
            h *= 0.5
            layer.output[:, -1] += 1
    with model.trace(PROMPT) as plain:
        expected = plain.cache(["layers.*.attn.output", "layers.*.output"])
        for layer in model.layers[:2]:
            layer.output *= 0.5
            layer.output[:, -1] += 1
    assert len(early) == len(outputs) == 3
    for found in (early, outputs):
        for name, tensor in found.items():
            assert torch.equal(tensor, expected[name])


def test_a_cache_of_sites_that_have_passed_is_refused(model: Any) -> None:
    with pytest.raises(gw.OrderError, match=r"left layers\.0\.output behind"), model.live(PROMPT) as t:
        model.layers[1].output.mean()
        t.cache()


def test_a_skip_spares_the_module(model: Any, bare: Any) -> None:
    calls: list[int] = []
    below = kept(model, lambda: model.layers[0].output)
    handles = [layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1)) for layer in bare.transformer.h]
    try:
        with model.live(PROMPT):
            model.layers[1].skip(model.layers[0].output)
            assert len(calls) == 1
            assert torch.equal(model.layers[1].output.value, below)
            calls.clear()
            logits = model.logits.save()
            assert len(calls) == 1
    finally:
        for handle in handles:
            handle.remove()
    with model.trace(PROMPT):
        model.layers[1].output = model.layers[0].output
        expected = model.logits.save()
    assert torch.equal(logits.value, expected.value)


def test_a_skip_of_a_module_that_has_begun(model: Any) -> None:
    """Its input was seen: spared. Something inside was read: refused, as in a trace."""
    with model.live(PROMPT):
        h = model.layers[1].input
        model.layers[1].skip(h * 2)
        assert torch.equal(model.layers[2].input.value, h.value * 2)
    with pytest.raises(gw.ScopeError, match=r"lies inside layers\.1\.output") as caught, model.live(PROMPT):
        inner = model.layers[1].attn.output
        model.layers[1].skip(inner)
    assert here(-2) in str(caught.value)
    assert here(-3) in str(caught.value)
    with pytest.raises(gw.OrderError), model.live(PROMPT):
        model.layers[1].skip(model.layers[0].output)
        model.layers[1].mlp.output.mean()


def test_an_edited_model_is_live_behind_its_edits(model: Any) -> None:
    steer = torch.linspace(-1, 1, 32)
    with model.edit() as edited:
        early = edited.layers[0].output
        edited.layers[2].output = edited.layers[2].output * 0.5 + early
        edited.layers[0].output[:, -1] += steer
        edited.layers[1].skip(edited.layers[1].input)
    with edited.live(PROMPT) as t:
        saved = [edited.layers[0].output.save(), edited.layers[2].output.save()]
        edited.layers[2].output[:, 0] = 0
        saved.append(edited.logits.save())
    with edited.trace(PROMPT):
        expected = [edited.layers[0].output.save(), edited.layers[2].output.save()]
        edited.layers[2].output[:, 0] = 0
        expected.append(edited.logits.save())
    again = model.backend.run(t.graph, t.inputs)
    for k in (0, 2):
        assert torch.equal(saved[k].value, expected[k].value)
        assert torch.equal(again[str(k)], saved[k].value)
    with pytest.raises(gw.ScopeError, match=r"inside layers\.1\.output"), edited.live(PROMPT):
        edited.layers[1].attn.output.mean()


def test_tensors_from_outside_count_as_they_are(model: Any) -> None:
    """The body may change one afterwards: what was computed, and the graph, keep what it was."""
    steer = torch.ones(32)
    with model.live(PROMPT) as t:
        one = (model.layers[0].output + steer).save()
        again = (model.layers[0].output * steer).save()
        steer *= 3
        three = (model.layers[1].output + steer).save()
    assert len(t.graph.constants) == 2
    run = model.backend.run(t.graph, t.inputs)
    for number, value in enumerate((one, again, three)):
        assert torch.equal(run[str(number)], value.value)
    assert torch.equal(three.value, kept(model, lambda: model.layers[1].output) + 3)


def test_random_nodes_draw_as_in_a_trace(model: Any) -> None:
    def draw(block: Any) -> torch.Tensor:
        with block as t:
            t.seed = 11
            saved = torch.randn_like(model.layers[0].output).save()
            if block is live:
                with pytest.raises(gw.ScopeError, match="drawn already"):
                    t.seed = 12
        return saved.value

    live = model.live(PROMPT, seed=3)
    assert torch.equal(draw(live), draw(model.trace(PROMPT)))


# The order of lines.


def test_a_site_that_has_passed_cannot_be_read(model: Any) -> None:
    with model.live(PROMPT):
        model.layers[1].output.mean()
        passed = here(-1)
        with pytest.raises(
            gw.OrderError, match=r"left layers\.0\.output behind: it stands at layers\.1\.output"
        ) as caught:
            model.layers[0].output.mean()
        assert passed in str(caught.value)
        assert f"touched at {here(-2)}" in str(caught.value)


def test_a_site_that_has_passed_cannot_be_written(model: Any, bare: Any) -> None:
    with model.live(PROMPT) as t:
        h = model.layers[0].output
        part = h[:, -1]
        model.layers[1].input.mean()
        for write in (lambda: h.zero_(), lambda: part.fill_(1), lambda: setattr(model.layers[0], "output", 1.0)):
            with pytest.raises(gw.OrderError, match=r"left layers\.0\.output behind"):
                write()
        with pytest.raises(gw.OrderError, match=r"left layers\.0\.output behind"):
            h[:, 0] = 0
        with pytest.raises(gw.OrderError, match=r"left layers\.0\.output behind"):
            h += 1
        computed = h * 1
        computed[:, 0] = 0  # of no site: it updates that value alone
        assert not computed[:, 0].any()
        assert h[:, 0].any()
        logits = model.logits.save()
    assert torch.equal(logits.value, logits_of(bare))
    assert "write" not in [node.kind for node in t.graph.nodes]


def test_the_native_name_of_a_site_that_has_passed(model: Any) -> None:
    with model.live(PROMPT):
        model.logits.mean()
        with pytest.raises(gw.OrderError, match=r"left transformer\.h\.2\.mlp\.output behind: it stands at logits"):
            model.transformer.h[2].mlp.output.mean()


# Failures that leave the block open.


def test_a_line_that_fails_can_be_caught_and_leaves_no_trace(model: Any, bare: Any) -> None:
    with model.live(PROMPT) as t:
        h = model.layers[1].output
        with pytest.raises(RuntimeError) as caught:
            h @ torch.zeros(3, 3)
        assert here(-1) in told(caught.value)
        with pytest.raises(gw.WriteError, match="broadcast") as refused:
            model.layers[1].output = torch.zeros(5)
        assert here(-1) in told(refused.value)
        with pytest.raises(gw.UnknownSite):
            model.layers[1].nothing.output.mean()
        with pytest.raises(gw.UnknownOperation):
            h.nothing()
        h[:, -1] = 0  # the handle is not taken for stale
        logits = model.logits.save()
    with model.trace(PROMPT):
        model.layers[1].output[:, -1] = 0
        expected = model.logits.save()
    assert torch.equal(logits.value, expected.value)
    assert torch.equal(model.backend.run(t.graph, t.inputs)["0"], logits.value)


# What there cannot be.


@pytest.mark.parametrize(
    ("use", "match"),
    [
        (lambda t: t.invoke(PROMPT), "model.live\\(\\[a, b\\]\\)"),
        (lambda t: t.steps[0], "model.generate"),
        (lambda t: t.prompt, "model.generate"),
        (lambda t: gw.input("x", (32,)), "the tensor itself"),
    ],
)
def test_what_belongs_to_other_blocks_is_refused(model: Any, use: Any, match: str) -> None:
    with model.live(PROMPT) as t:
        with pytest.raises(gw.ScopeError, match=match) as caught:
            use(t)
        assert __file__ in str(caught.value)


def test_the_ways_to_open_one_that_are_refused(model: Any) -> None:
    with pytest.raises(gw.ScopeError, match="session"), model.session(), model.live(PROMPT):
        pass
    with pytest.raises(gw.ScopeError, match="cannot stand inside"), model.live(PROMPT), model.session():
        pass
    with pytest.raises(gw.ScopeError, match="open already"), model.live(PROMPT), model.live(PROMPT):
        pass
    with pytest.raises(gw.InputError, match="rows="):
        model.live([PROMPT, PROMPT], rows=1)
    with pytest.raises(gw.InputError, match="one forward pass"):
        model.live(PROMPT, max_new_tokens=3)
    with pytest.raises(gw.InputError, match="one prompt"):
        model.live()


def test_a_model_that_is_elsewhere_cannot_stand_still(model: Any) -> None:
    remote = gw.connect(model)
    with pytest.raises(gw.RemoteError, match=r"gw\.load.*model\.trace") as caught, remote.live(PROMPT):
        pass
    assert here(-2) in str(caught.value)
    with remote.trace(PROMPT):  # and nothing stays open
        remote.logits.save()


def test_a_pipeline_cannot_stand_still(bare: Any) -> None:
    with pytest.raises(gw.ModelError, match="one stage"), gw.wrap(bare, stages=2).live(PROMPT):
        pass


def test_values_of_two_blocks_do_not_mix(model: Any, bare: Any) -> None:
    other = gw.wrap(copy.deepcopy(bare))
    with model.live(PROMPT), other.live(PROMPT):
        mine, its = model.layers[0].output, other.layers[0].output
        with pytest.raises(gw.ScopeError, match="another"):
            mine + its
        assert torch.equal((mine + its.value).value, mine.value * 2)


# Gradients.


def test_captured_tensors_train_in_a_plain_loop(model: Any) -> None:
    steer = torch.zeros(32, requires_grad=True)
    twin = torch.zeros(32, requires_grad=True)
    losses: list[list[float]] = [[], []]
    for own, tensor, found in ((model.live, steer, losses[0]), (model.trace, twin, losses[1])):
        optimizer = torch.optim.Adam([tensor], lr=0.1)
        for _ in range(4):
            optimizer.zero_grad()
            with own(PROMPT) as t:
                model.layers[1].output[:, -1] += tensor
                loss = -model.logits[:, -1].log_softmax(-1)[:, 7].mean()
                t.backward(loss)
                shown = loss.save()
            optimizer.step()
            found.append(float(shown))
    assert losses[0] == losses[1] == sorted(losses[0], reverse=True)
    assert torch.equal(steer, twin)


def test_a_gradient_has_numbers_and_the_pass_goes_on(model: Any) -> None:
    """The loss is at a layer; its gradient decides about a later one."""
    with model.live(PROMPT) as t:
        low = model.layers[0].output
        t.backward(model.layers[1].output[:, -1].pow(2).sum())
        g = low.grad
        assert g.shape == low.shape
        assert float(g.abs().max()) > 0
        model.layers[2].output += g
        logits = model.logits.save()
    with model.trace(PROMPT) as plain:
        low = model.layers[0].output
        plain.backward(model.layers[1].output[:, -1].pow(2).sum())
        model.layers[2].output += low.grad
        expected = model.logits.save()
    assert torch.equal(logits.value, expected.value)
    assert torch.equal(model.backend.run(t.graph, t.inputs)["0"], logits.value)


def test_all_gradients_of_a_backward_take_one_more_pass(model: Any) -> None:
    with model.live(PROMPT) as t:
        values = [layer.output for layer in model.layers]
        t.backward(model.logits[:, -1, 3].sum())
        sizes = [float(value.grad.norm()) for value in reversed(values)]
        assert float(values[1][:, -1].grad.norm()) > 0
    assert t.forwards == 2
    assert len(set(sizes)) == 3


def test_a_gradient_is_written_before_what_follows_from_it_is_read(model: Any) -> None:
    with model.live(PROMPT) as t:
        low, high = model.layers[0].output, model.layers[2].output
        t.backward(model.logits[:, -1, 3].sum())
        with pytest.raises(gw.WriteError, match="broadcast"):
            high.grad = torch.zeros(5)
        high.grad = high.grad * 0
        assert not low.grad.any()
        with pytest.raises(gw.OrderError, match="read already") as caught:
            high.grad = torch.ones(32)
        assert here(-3) in str(caught.value)
        assert here(-2) in told(caught.value)


def test_a_loss_with_several_elements_is_refused_at_its_line(model: Any) -> None:
    with model.live(PROMPT) as t:
        with pytest.raises(ValueError, match="one element") as caught:
            t.backward(model.logits[:, -1])
        assert here(-1) in told(caught.value)
        with pytest.raises(gw.GraphError, match="no gradient yet"):
            model.logits.grad.mean()


def test_parameters_and_the_users_own_gradients_are_left_alone(model: Any, bare: Any) -> None:
    """The body may run autograd of its own while the model stands still."""
    weight = torch.ones(32, requires_grad=True)
    with model.live(PROMPT) as t:
        h = model.layers[1].output
        ((h.value @ weight) ** 2).mean().backward()
        assert weight.grad is not None
        t.backward(model.logits[:, -1, 3].sum())
        assert float(h.grad.norm()) > 0
    assert all(parameter.grad is None for parameter in bare.parameters())
    assert torch.equal(weight.grad, _own_gradient(kept(model, lambda: model.layers[1].output)))


def _own_gradient(h: torch.Tensor) -> torch.Tensor:
    weight = torch.ones(32, requires_grad=True)
    ((h @ weight) ** 2).mean().backward()
    assert weight.grad is not None
    return weight.grad
