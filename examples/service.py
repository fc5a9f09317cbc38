"""A service of one's own: two people's keys, a block, many at once, a job that is listened to, and OpenAI's form.

`glassworks serve toy --state FOLDER` and `glassworks keys add NAME --state FOLDER` are what this starts and calls.
"""

import asyncio
import socket
import subprocess
import sys
import tempfile

import httpx

import glassworks as gw

PROMPTS = [f"The {name} is in the city of" for name in ("Eiffel Tower", "Colosseum", "Louvre", "Brandenburg Gate")]
GLASSWORKS = [sys.executable, "-c", "from glassworks.cli.main import main; main()"]  # the command `glassworks`


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def key_of(name: str, folder: str) -> str:
    made = subprocess.run(
        [*GLASSWORKS, "keys", "add", name, "--state", folder], check=True, capture_output=True, text=True
    )
    return made.stdout.strip()


async def ask_at_once(model: gw.Model) -> list[str]:
    """Blocks of several tasks: they wait at the same time, and share forward passes."""

    async def ask(prompt: str) -> str:
        async with model.trace(prompt):
            top = model.logits[:, -1].argmax(-1).save()
        return model.decode(top)

    return await asyncio.gather(*(ask(prompt) for prompt in PROMPTS))


def use(url: str, ann: str, bob: str) -> None:
    lab = gw.connect(url, api_key=ann)
    model = lab.model("toy")
    with model.trace(PROMPTS[0]):
        model.layers[1].mlp.output[:, -1] = 0
        top = model.logits[:, -1].argmax(-1).save()
    print(f"a block: {PROMPTS[0]}{model.decode(top)}")
    print(f"four at once:{''.join(asyncio.run(ask_at_once(model)))}")

    with model.generate(PROMPTS[1], max_new_tokens=2, wait=False) as t, t.steps[:]:
        gw.log("sure", model.logits[:, -1].softmax(-1).max())
    for event in t.job.events():
        print(f"  {event.number} {event.kind} {event.data.get('entry', [''])[0]}")
    print(f"a job:{model.decode(t.result[0])}   ({t.job.status})")
    try:
        gw.connect(url, api_key=bob).job(t.job.id)
    except gw.RemoteError:
        print("to the other key it is unknown")

    form = {"model": "toy", "prompt": PROMPTS[2], "max_tokens": 2, "temperature": 0}
    said = httpx.post(f"{url}/v1/completions", json=form, headers={"Authorization": f"Bearer {bob}"}, timeout=60).json()
    print(f"as OpenAI's:{said['choices'][0]['text']}   ({said['usage']['total_tokens']} tokens)")
    print(lab.status())


with tempfile.TemporaryDirectory() as folder:
    keys = key_of("ann", folder), key_of("bob", folder)
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [*GLASSWORKS, "serve", "toy", "--port", str(port), "--state", folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
        try:
            print(service.stdout.readline().strip().replace(str(port), "PORT"))
            use(url, *keys)
        finally:
            service.terminate()
