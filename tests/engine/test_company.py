"""What requests, engines and models may do to each other: nothing."""

import os
import threading
import time
from typing import Any

import pytest
import torch

import glassworks as gw
from engine.test_schedules import check_nothing_left, model_of
from families import FAMILIES, LLAMA, of_type

PROMPT, OTHER = [5, 6, 7, 8], [9, 9, 9]


@pytest.fixture(scope="module")
def bare() -> Any:
    return FAMILIES["llama"]().double()


@pytest.fixture(scope="module")
def model(bare: Any) -> Any:
    return gw.wrap(bare)


def test_two_engines_in_two_threads_leave_the_model_as_it_was(model: Any, bare: Any) -> None:
    before, found = bare(torch.tensor([PROMPT])).logits, []

    def work(seed: int) -> None:
        engine = gw.Engine(model, share=False)
        found.append(engine.run([gw.Request([3 + k + seed, 9, 4], max_new_tokens=4) for k in range(12)]))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [reply.error for replies in found for reply in replies] == [None] * 24
    assert bare.config._attn_implementation == "sdpa"
    assert torch.equal(bare(torch.tensor([PROMPT])).logits, before)


def test_a_graphs_function_may_run_the_model(model: Any, bare: Any) -> None:
    def function(value: torch.Tensor) -> torch.Tensor:
        bare(torch.tensor([[3, 4]]))
        return value * 1.0

    with model.generate(PROMPT, max_new_tokens=4) as t, t.steps[:]:
        read = gw.apply(function, model.layers[0].output).save("read")
        model.layers[2].output.save("after")
    engine = gw.Engine(model)
    own, other = engine.run([gw.Request(PROMPT, 4, t.graph), gw.Request(OTHER, 4)])
    assert own.tokens == t.result[0].tolist()
    assert other.tokens == model.complete(OTHER, max_new_tokens=4).tokens
    for ours, theirs in zip(own.saves["read"], read, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("which", ["own", "other"])
def test_a_graphs_function_may_call_requests_off(model: Any, which: str) -> None:
    replies: dict[str, gw.Reply] = {}

    def function(value: torch.Tensor) -> torch.Tensor:
        replies[which].cancel()
        return value

    with model.record() as t, t.steps[1:]:
        gw.apply(function, model.layers[0].output).save("read")
    engine = gw.Engine(model)
    replies["innocent"] = engine.submit(gw.Request([4, 4], 4))
    replies["other"] = engine.submit(gw.Request(OTHER, 4))
    replies["own"] = engine.submit(gw.Request(PROMPT, 4, t.graph))
    engine.drain()
    assert isinstance(replies[which].error, gw.Cancelled)
    assert replies["innocent"].wait().tokens == model.complete([4, 4], max_new_tokens=4).tokens
    check_nothing_left(engine)


def test_what_runs_by_itself_has_a_clock_of_its_own(model: Any) -> None:
    """Who looks on from outside ends what takes too long: not what came late because others were before it."""
    seen: list[float] = []

    def function(value: torch.Tensor) -> torch.Tensor:
        time.sleep(0.1)
        since_s = engine.now().since_s
        assert since_s is not None
        seen.append(time.perf_counter() - since_s)
        return value

    with model.record() as t:
        gw.apply(function, model.layers[0].output).save("read")
    engine = gw.Engine(model)
    for _ in range(5):
        engine.submit(gw.Request(PROMPT, 1, t.graph), alone=True)
    engine.drain()
    assert len(seen) == 5
    assert engine.stats.iterations < 5
    assert max(seen) < 0.35


def test_a_graphs_function_cannot_wait_for_the_engine_that_runs_it(model: Any) -> None:
    engine = gw.Engine(model)
    other = engine.submit(gw.Request(OTHER, 4))

    def function(value: torch.Tensor) -> torch.Tensor:
        other.wait()
        return value

    with model.record() as t, t.steps[:]:
        gw.apply(function, model.layers[0].output).save("read")
    own = engine.submit(gw.Request(PROMPT, 4, t.graph))
    engine.drain()
    assert isinstance(own.error, gw.GlassworksError)
    assert "inside an iteration" in str(own.error)
    assert other.wait().tokens == model.complete(OTHER, max_new_tokens=4).tokens


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("phimoe", {"num_local_experts": 2}),
        ("qwen2_moe", {"use_sliding_window": True, "max_window_layers": 1, "moe_intermediate_size": 16,
                       "num_experts": 4, "num_experts_per_tok": 2, "shared_expert_intermediate_size": 16}),
        ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
        ("mistral", {}),
        ("gemma3_text", {"head_dim": 8}),
        ("gpt_oss", {"head_dim": 8, "num_local_experts": 4}),
        ("gemma2", {"head_dim": 8}),
    ],
)  # fmt: skip
def test_windows_hold_or_the_family_is_not_packed(family: str, settings: dict[str, Any]) -> None:
    """Some mask with a window that they do not tell the attention function: a short check would not see it."""
    bare = of_type(family, **{**LLAMA, **settings, "sliding_window": 16})().double()
    if "experts" in str(settings):
        bare.set_experts_implementation("batched_mm")
    engine = gw.Engine(gw.wrap(bare), block_tokens=4)
    assert (engine.why_not_packed is not None) == (family in ("phimoe", "qwen2_moe", "olmoe"))
    prompts = [[3 + 7 * k % 90 for k in range(count)] for count in (9, 17, 40)]
    replies = engine.run([gw.Request(prompt, max_new_tokens=6) for prompt in prompts])
    for prompt, reply in zip(prompts, replies, strict=True):
        alone = bare.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False, pad_token_id=0)
        assert reply.tokens == alone[0, len(prompt) :].tolist()


def test_who_waits_for_a_promise_holds_up_nobody_else(model: Any) -> None:
    engine = gw.Engine(model, block_tokens=4, kv=gw.KVBudget(device="400KiB", host="48KiB"), share=False)
    with model.record() as t, t.steps[:]:
        model.layers[1].output[:, -1] *= 1.1
    long = [engine.submit(gw.Request([7] * 12, 24, t.graph, options={"eos_token_id": []})) for _ in range(3)]
    short = engine.submit(gw.Request(OTHER, 1))
    for _ in range(3):
        engine.step()
    assert short.done
    assert not all(reply.done for reply in long)
    engine.drain()
    assert {tuple(reply.wait().tokens) for reply in long} == {tuple(long[0].tokens)}


def test_shared_beginnings_can_be_forgotten() -> None:
    bare = FAMILIES["llama"]().double()
    model = gw.wrap(bare)
    engine = gw.Engine(model, block_tokens=4)
    prompt = list(range(3, 23))
    engine.submit(gw.Request(prompt, 4)).wait()
    with torch.no_grad():
        bare.model.layers[1].mlp.down_proj.weight.mul_(-3)
    engine.forget()
    reply = engine.submit(gw.Request(prompt, 4)).wait()
    assert reply.timing.shared_tokens == 0
    assert reply.tokens == model.complete(prompt, max_new_tokens=4).tokens
    check_nothing_left(engine)


def test_a_key_that_is_pressed_in_a_step_loses_nothing_but_what_a_graph_has_begun(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = gw.Engine(model, block_tokens=4)
    with model.record() as t, t.steps[:]:
        model.layers[0].output.save("read")
    plain, looked = engine.submit(gw.Request(PROMPT, 6)), engine.submit(gw.Request(OTHER, 6, t.graph))
    engine.step()
    forward = type(engine._shared_steps)._forward

    def interrupted(*given: Any) -> Any:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(type(engine._shared_steps), "_forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    assert type(engine._shared_steps)._forward is forward
    engine.drain()
    assert plain.wait().tokens == model.complete(PROMPT, max_new_tokens=6).tokens
    assert "broken off" in str(looked.error)
    check_nothing_left(engine)


def test_an_engine_made_without_gradients_works_with_them(model: Any) -> None:
    with torch.inference_mode():
        engine = gw.Engine(model)
    assert engine.submit(gw.Request(PROMPT, 3)).wait().tokens == model.complete(PROMPT, max_new_tokens=3).tokens


def test_the_disk_leaves_no_file_open(model: Any) -> None:
    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))

    gw.Engine(model, kv=gw.KVBudget(disk="1MiB"))
    before = opened()
    for _ in range(4):
        gw.Engine(model, kv=gw.KVBudget(disk="1MiB"))
    assert opened() <= before + 1


@pytest.mark.parametrize(
    "options",
    [{"policy": 5}, {"policy": None}, {"kv": "64MiB"}, {"clock": 5}, {"cost": 5}, {"starvation_s": "x"}, {"rows": 0}],
)
def test_bad_options_of_an_engine(model: Any, options: dict[str, Any]) -> None:
    with pytest.raises(gw.InputError, match=next(iter(options))):
        gw.Engine(model, **options)


@pytest.mark.parametrize(
    "fields",
    [{"options": None}, {"stop": None}, {"expected_tokens": "x"}, {"expected_tokens": float("nan")}, {"inputs": None}],
)
def test_bad_fields_of_a_request(fields: dict[str, Any]) -> None:
    with pytest.raises(gw.InputError, match=next(iter(fields))):
        gw.Request(PROMPT, **fields)


def test_what_is_no_request(model: Any) -> None:
    engine = gw.Engine(model)
    with pytest.raises(gw.InputError, match="takes requests"):
        engine.submit("hello")  # type: ignore[arg-type]
    with pytest.raises(gw.InputError, match="several"):
        engine.run(gw.Request(PROMPT))  # type: ignore[arg-type]
    with pytest.raises(gw.InputError, match="beams"):
        engine.submit(gw.Request(PROMPT, options={"num_beams": 2}))
    with pytest.raises(gw.InputError, match="inputs"):
        engine.submit(gw.Request(PROMPT, inputs={"x": torch.zeros(1)}))


# What a graph writes may make the model fail; a model that fails is nobody else's business.


def out_of_range(model: Any) -> gw.Graph:
    with model.record() as t, t.steps[1:]:
        model.model.embed_tokens.input[:] = 10**6
        model.layers[0].output.save("read")
    return t.graph


def test_ids_out_of_range_end_the_request_that_wrote_them(model: Any) -> None:
    engine = gw.Engine(model, block_tokens=4)
    bad, good = engine.run([gw.Request(PROMPT, 6, out_of_range(model)), gw.Request(OTHER, 6)])
    assert isinstance(bad.error, IndexError)
    assert not bad.in_company
    assert good.wait().tokens == model.complete(OTHER, max_new_tokens=6).tokens
    check_nothing_left(engine)


def test_experts_out_of_range_end_the_request_that_wrote_them() -> None:
    bare = FAMILIES["mixtral"]().double()
    bare.set_experts_implementation("batched_mm")
    model = gw.wrap(bare)
    with model.record() as t, t.steps[1:]:
        _, _, experts = model.model.layers[0].mlp.gate.output
        experts[:] = 77
        model.layers[2].output.save("read")
    engine = gw.Engine(model, block_tokens=4)
    bad, good = engine.run([gw.Request(PROMPT, 6, t.graph), gw.Request(OTHER, 6)])
    assert isinstance(bad.error, IndexError | RuntimeError)
    assert good.wait().tokens == model.complete(OTHER, max_new_tokens=6).tokens


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("family", ["bloom", "mamba", "llama"])
def test_a_function_that_calls_its_own_request_off_leaves_nothing_behind(family: str, start: int) -> None:
    model, _ = model_of(family)
    replies: list[gw.Reply] = []

    def function(value: torch.Tensor) -> torch.Tensor:
        replies[0].cancel()
        return value

    with model.record() as t, t.steps[start:]:
        gw.apply(function, model.layers[0].output).save("read")
    engine = gw.Engine(model, block_tokens=4)
    replies += [engine.submit(gw.Request(PROMPT, 4, t.graph)), engine.submit(gw.Request(OTHER, 4))]
    engine.drain()
    assert isinstance(replies[0].error, gw.Cancelled)
    assert replies[1].wait().tokens == model.complete(OTHER, max_new_tokens=4).tokens
    check_nothing_left(engine)


def test_forgetting_reaches_what_is_under_way() -> None:
    bare = FAMILIES["llama"]().double()
    model = gw.wrap(bare)
    engine = gw.Engine(model, block_tokens=4)
    prompt = list(range(3, 23))
    under_way = engine.submit(gw.Request(prompt, 6, options={"eos_token_id": []}))
    for _ in range(3):
        engine.step()
    with torch.no_grad():
        bare.model.layers[1].mlp.down_proj.weight.mul_(-3)
    engine.forget()
    under_way.wait()
    for shared in (0, 16):  # the first was computed anew, and its beginning may be shared again
        reply = engine.submit(gw.Request(prompt, 4)).wait()
        assert reply.timing.shared_tokens == shared
        assert reply.tokens == model.complete(prompt, max_new_tokens=4).tokens


def test_a_function_of_ours_that_was_looked_up_in_a_step_may_be_called_after_it(model: Any, bare: Any) -> None:
    """As another thread does that is in the middle of a forward pass when the step ends."""
    from transformers import AttentionInterface

    from glassworks.run import registered

    engine = gw.Engine(model)
    engine.submit(gw.Request(PROMPT, 2)).wait()
    attention = bare.model.layers[0].self_attn
    q, k, v = (torch.randn(1, heads, 3, 8, dtype=torch.float64) for heads in (4, 2, 2))
    ours = AttentionInterface()[registered.NAME](attention, q, k, v, None, scaling=0.3)[0]
    theirs = AttentionInterface()["sdpa"](attention, q, k, v, None, scaling=0.3)[0]
    assert torch.equal(ours, theirs)
    assert not any("glassworks" in name for name in vars(bare.config))
