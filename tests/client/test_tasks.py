"""Blocks in tasks of an event loop, which goes on while they run: on a service, in this process, on a model at hand."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import torch

import glassworks as gw
from client.conftest import PROMPT
from client.fake_service import FakeService, Job, not_there
from glassworks.graph.jobs import Event

PROMPTS = [PROMPT + " a" * k for k in range(8)]


@pytest.fixture(params=["local", "in process", "served"])
def anywhere(request: pytest.FixtureRequest, local: Any) -> Any:
    if request.param == "local":
        return local
    if request.param == "in process":
        return gw.connect(local)
    return request.getfixturevalue("model")


def top(model: Any, prompt: str) -> torch.Tensor:
    with model.trace(prompt):
        found = model.logits[:, -1].argmax(-1).save()
    return found.value


async def top_async(model: Any, prompt: str) -> torch.Tensor:
    async with model.trace(prompt) as t:
        found = model.logits[:, -1].argmax(-1).save()
    assert "ended" in repr(t)
    return found.value


@asynccontextmanager
async def ticking(at_least: int) -> AsyncIterator[None]:
    """The event loop goes round so often meanwhile."""
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.005)
            ticks += 1

    task = asyncio.create_task(tick())
    yield
    task.cancel()
    assert ticks >= at_least


def finishes(service: FakeService, count: int, after_s: float = 0.0) -> None:
    """Nothing ends before there are so many jobs."""

    def finish() -> None:
        time.sleep(after_s)
        for job in list(service.jobs.values()):
            service.finish(job)

    def on_submit(job: Job) -> None:
        if len(service.jobs) == count:
            threading.Thread(target=finish).start()

    service.at_once, service.on_submit = False, on_submit


def test_many_blocks_are_awaited_at_once(anywhere: Any, local: Any) -> None:
    async def main() -> list[torch.Tensor]:
        return await asyncio.gather(*(top_async(anywhere, prompt) for prompt in PROMPTS))

    for found, prompt in zip(asyncio.run(main()), PROMPTS, strict=True):
        assert torch.equal(found, top(local, prompt))


def test_blocks_wait_beside_each_other_and_hold_nobody_up(model: Any, local: Any, service: FakeService) -> None:
    """No job ends before all eight are there; each takes longer than one request waits."""
    finishes(service, 8, after_s=0.5)

    async def main() -> list[torch.Tensor]:
        async with ticking(15):
            return await asyncio.gather(*(top_async(model, prompt) for prompt in PROMPTS))

    for found, prompt in zip(asyncio.run(main()), PROMPTS, strict=True):
        assert torch.equal(found, top(local, prompt))
    assert service.count("results") >= 8


def test_a_body_may_await_while_others_write(anywhere: Any, local: Any) -> None:
    """Each task has a block of its own open, in one thread."""

    async def one(prompt: str) -> torch.Tensor:
        async with anywhere.trace(prompt):
            value = anywhere.logits[:, -1]
            await asyncio.sleep(0.02)
            value = (anywhere.layers[0].output[:, -1].sum() * 0 + value).argmax(-1).save()
        return value.value

    async def main() -> list[torch.Tensor]:
        return await asyncio.gather(*map(one, PROMPTS))

    for found, prompt in zip(asyncio.run(main()), PROMPTS, strict=True):
        assert torch.equal(found, top(local, prompt))


def test_a_task_has_one_open_block_of_a_model(anywhere: Any) -> None:
    async def main() -> None:
        async with anywhere.trace(PROMPT):
            with pytest.raises(gw.ScopeError, match="one at a time in a thread, or in a task"):
                await anywhere.trace(PROMPT).__aenter__()
            with pytest.raises(gw.ScopeError, match="one at a time in a thread, or in a task"):
                anywhere.trace(PROMPT).__enter__()

    asyncio.run(main())
    assert not anywhere._core.blocks


def test_a_value_of_another_tasks_block_is_refused(local: Any) -> None:
    async def main() -> None:
        values: list[Any] = []
        written = asyncio.Event()

        async def first() -> None:
            async with local.trace(PROMPT):
                values.append(local.layers[0].output)
                written.set()
                await asyncio.sleep(0.02)

        async def second() -> None:
            await written.wait()
            async with local.trace(PROMPT):
                with pytest.raises(gw.ScopeError, match="used in another"):
                    _ = local.layers[1].output + values[0]

        await asyncio.gather(first(), second())

    asyncio.run(main())


def test_a_generation_has_its_tokens_without_another_run(
    anywhere: Any, local: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with local.generate(PROMPT, max_new_tokens=4) as here:
        pass
    expected = here.result

    async def main() -> torch.Tensor:
        async with anywhere.generate(PROMPT, max_new_tokens=4) as t:
            pass
        monkeypatch.delattr(type(anywhere.backend), "run")
        return t.result

    assert torch.equal(asyncio.run(main()), expected)


def test_a_session_is_one_job(anywhere: Any, local: Any) -> None:
    async def main() -> list[torch.Tensor]:
        async with anywhere.session():
            with anywhere.trace(PROMPT):
                first = anywhere.layers[0].output[:, -1].save()
            async with anywhere.trace("A man walked into the"):
                anywhere.layers[0].output[:, -1] = first
                second = anywhere.logits[:, -1].save()
        return [first.value, second.value]

    with local.session():
        with local.trace(PROMPT):
            first = local.layers[0].output[:, -1].save()
        with local.trace("A man walked into the"):
            local.layers[0].output[:, -1] = first
            second = local.logits[:, -1].save()
    for found, expected in zip(asyncio.run(main()), (first, second), strict=True):
        assert torch.equal(found, expected.value)


def test_a_session_without_waiting_is_awaited(anywhere: Any) -> None:
    async def main() -> Any:
        async with anywhere.session(wait=False) as session:
            for prompt in PROMPTS[:2]:
                async with anywhere.trace(prompt):
                    anywhere.logits[:, -1].save("last")
        return await session.job

    assert [set(found) for found in asyncio.run(main())] == [{"last"}, {"last"}]


def test_a_run_over_prompts(anywhere: Any, local: Any) -> None:
    with local.record() as t:
        local.layers[1].output.save("h")
    expected = local.run(t.graph, PROMPTS, rows=2)

    async def main() -> list[Any]:
        handed_over = anywhere.run(t.graph, PROMPTS, rows=2, wait=False)
        return [await anywhere.run_async(t.graph, PROMPTS, rows=2), await handed_over]

    for found in asyncio.run(main()):
        for own, other in zip(found["h"], expected["h"], strict=True):
            assert torch.equal(own, other)


def test_a_plain_module_asks_for_its_sites_outside_the_loop() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
    there = gw.connect(gw.wrap(net))
    x = torch.ones(2, 4)

    async def main() -> torch.Tensor:
        async with there.trace(x):
            found = there["1"].output.save()
        return found.value

    assert torch.equal(asyncio.run(main()), net(x))


def test_errors_are_raised_where_the_block_ends(anywhere: Any) -> None:
    async def main() -> Any:
        async with anywhere.trace(PROMPT):
            return anywhere.logits[:, 10_000].save()

    with pytest.raises(IndexError) as caught:
        asyncio.run(main())
    assert any(f"  at {__file__}:" in note for note in caught.value.__notes__)


def test_an_error_of_the_body_runs_nothing(model: Any, service: FakeService) -> None:
    async def main() -> None:
        async with model.trace(PROMPT):
            model.logits.save()
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        asyncio.run(main())
    assert not service.jobs
    assert not model._core.blocks


def test_a_live_block_says_that_it_would_hold_up_the_loop(local: Any) -> None:
    async def main() -> None:
        async with local.live(PROMPT):
            pass

    with pytest.raises(gw.ScopeError, match="an event loop would stand still"):
        asyncio.run(main())


# Jobs.


def submitted(model: Any, service: FakeService, use: Callable[[Any, Job], Awaitable[Any]]) -> Any:
    """Submit a block in a task, and use its job there."""
    service.at_once = False

    async def main() -> Any:
        async with model.trace(PROMPT, wait=False) as t:
            model.logits[:, -1].argmax(-1).save("top")
        return await use(t, service.only())

    return asyncio.run(main())


def test_a_job_is_awaited(model: Any, local: Any, service: FakeService) -> None:
    async def use(t: Any, job: Job) -> Any:
        assert repr(t.job) == "<job job-0 queued, 2 before it, in about 12 s>"
        assert await t.job.status_async() == "queued"
        with pytest.raises(TimeoutError, match="it is queued"):
            await t.job.wait_async(timeout_s=0.1)
        threading.Timer(0.5, service.finish, (job,)).start()
        async with ticking(15):
            first, second = await asyncio.gather(t.job.settle_async(), t.job)
            await t.job.wait_async()
        assert first is None
        return second

    assert torch.equal(submitted(model, service, use)["top"], top(local, PROMPT))
    assert service.count("POST /v1/models/toy/jobs$") == 1


def test_printing_a_job_asks_nobody_where_a_loop_would_wait(model: Any, service: FakeService) -> None:
    async def use(t: Any, job: Job) -> Any:
        asked = len(service.asked)
        assert repr(t.job).startswith("<job job-0 queued")
        return len(service.asked) - asked

    assert submitted(model, service, use) == 0


def test_a_job_is_called_off(model: Any, service: FakeService) -> None:
    async def use(t: Any, job: Job) -> Any:
        await t.job.cancel_async()
        assert job.status == "cancelled"
        with pytest.raises(gw.Cancelled):
            await t.job

    submitted(model, service, use)


def test_events_of_a_job(model: Any, service: FakeService) -> None:
    async def use(t: Any, job: Job) -> Any:
        service.start(job)
        service.cuts.extend([0, 1])
        service.trouble("/events", not_there())
        threading.Timer(0.2, service.finish, (job,)).start()
        async with ticking(15):
            return [event async for event in t.job.events_async()]

    assert submitted(model, service, use) == [Event(1, "queued", {}), Event(2, "started"), Event(3, "done", {})]


def test_events_of_a_job_at_hand(local: Any) -> None:
    async def main() -> list[Event]:
        async with local.trace(PROMPT, wait=False) as t:
            local.logits.save()
        assert await t.job.status_async() == "done"
        return [event async for event in t.job.events_async()]

    assert asyncio.run(main()) == [Event(1, "done")]


def test_logs_are_heard_while_the_loop_goes_on(
    model: Any, local: Any, service: FakeService, capsys: pytest.CaptureFixture[str]
) -> None:
    async def write(own: Any) -> Any:
        async with own.trace(PROMPT) as t:
            gw.log("norm", own.layers[0].output.norm())
        return t

    t = asyncio.run(write(local))
    said = capsys.readouterr().out
    node = next(n for n, node in enumerate(t.graph.nodes) if node.kind == "log")

    def run(job: Job) -> None:
        service.start(job)
        service.log(job, t.logs[0].text, node=node)
        while not service.count("/events"):
            time.sleep(0.01)
        service.finish(job)

    service.at_once, service.on_submit = False, lambda job: threading.Thread(target=run, args=(job,)).start()
    asyncio.run(write(model))
    assert capsys.readouterr().out == said
    assert said.count("\n") == 1


# What is tried again, and what is called off.


@pytest.mark.parametrize("trouble", [not_there(), "hang up", "lost answer"])
def test_a_service_that_is_not_there_is_asked_again(model: Any, service: FakeService, trouble: Any) -> None:
    service.trouble("POST", trouble, not_there(after="0.3"))

    async def main() -> torch.Tensor:
        async with ticking(10):
            return await top_async(model, PROMPT)

    assert asyncio.run(main()).shape == (1,)
    assert len(service.jobs) == 1


@pytest.mark.parametrize("has_id", [True, False])
def test_a_task_that_is_cancelled_calls_its_job_off(model: Any, service: FakeService, has_id: bool) -> None:
    service.at_once = False

    async def main() -> None:
        task = asyncio.create_task(top_async(model, PROMPT))
        while not service.count("results" if has_id else "POST"):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert service.only().status == "cancelled"


def test_in_one_process_too_a_cancelled_task_ends_its_run(local: Any) -> None:
    there = gw.connect(local)
    ran: list[Any] = []
    handle = there.backend.transport.handle

    async def main() -> None:
        async def run() -> None:
            async with there.generate(PROMPT, max_new_tokens=900, eos_token_id=None):
                pass

        task = asyncio.create_task(run())
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        ran.append(time.monotonic())

    asyncio.run(main())  # waits for the thread of the run
    assert time.monotonic() - ran[0] < 5
    assert handle.__self__._begun == {}


def test_loops_come_and_go_and_leave_no_connections(model: Any) -> None:
    transport = model.backend.transport.asynchronous()
    clients = []

    async def main() -> None:
        await top_async(model, PROMPT)
        clients.extend(client for client, _ in transport._clients.values() if client not in clients)

    for _ in range(3):
        asyncio.run(main())
    assert len(clients) == 3
    assert all(client.is_closed for client in clients)
    assert not transport._clients
