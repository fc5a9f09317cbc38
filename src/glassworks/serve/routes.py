"""The paths of a service for a client in its own process: what a web server does for others."""

from urllib.parse import parse_qs, unquote, urlsplit

from glassworks.client.content import Body
from glassworks.errors import RemoteError
from glassworks.serve.answers import Answer, refusal
from glassworks.serve.service import Service

_MODELS, _JOBS, _TENSORS = "/v1/models/", "/v1/jobs/", "/v1/tensors/"


def handle(service: Service, method: str, target: str, body: Body | None = None) -> Answer:
    """Any request by its path."""
    parts = urlsplit(target)
    path, own = parts.path, body or b""
    if path.startswith(_MODELS):
        name, _, what = unquote(path.removeprefix(_MODELS)).rpartition("/")
        match method, what:
            case "GET", "sites":
                return service.sites(name)
            case "POST", "sites":
                return service.sites_for(name, own)
            case "GET", "tokenizer":
                return service.tokenizer(name)
            case "POST", "run":
                return service.run(name, own)
            case "POST", "jobs":
                return service.submit(name, own)
    if path.startswith(_JOBS):
        id, _, what = unquote(path.removeprefix(_JOBS)).partition("/")
        match method, what:
            case "GET", "":
                return service.job(id, wait_s=float(parse_qs(parts.query).get("wait_s", ["0"])[0]))
            case "GET", "results":
                return service.job_results(id)
            case "POST", "cancel":
                return service.cancel(id)
    match method, path:
        case "GET", "/healthz":
            return service.health()
        case "GET", "/v1/models":
            return service.models()
        case "GET", str(found) if found.startswith(_TENSORS):
            return service.tensor(found.removeprefix(_TENSORS))
        case "PUT", str(found) if found.startswith(_TENSORS):
            return service.put_tensor(found.removeprefix(_TENSORS), own)
    return refusal(404, RemoteError(f"no such request: {method} {path}"))
