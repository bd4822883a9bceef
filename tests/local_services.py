"""Services for pictures on this machine: a real HTTP server with the protocols of real ones, and faults on demand.

Its "model" draws stripes into the hole, and moves the colours of the whole picture, as real ones do.
"""

import base64
import email
import io
import json
import threading
import time
import zlib
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image

GAIN, OFFSET = 0.9, 0.04  # what the model does to the colours of the whole picture


@dataclass
class Seen:
    """A request as it arrived."""

    path: str
    headers: dict
    fields: dict
    image: np.ndarray  # (h, w, 3) uint8
    hole: np.ndarray | None  # (h, w) bool; None where no mask was sent
    time: float = field(default_factory=time.monotonic)


class LocalServices:
    """A context manager: ``with LocalServices() as service: service.url``.

    ``faults`` are used up one a request; ``fault_for(seen)`` may choose one by what arrived.
    """

    key = None  # asked for where it is set

    def __init__(self):
        self.faults, self.seen, self.results, self.jobs = [], [], {}, {}
        self.fault_for = lambda seen: None
        self.busy, self.busiest, self.delay = 0, 0, 0.0
        self.refused_paths = []
        self.output_size = None
        self.drifts, self.moves = True, (0, 0)  # down and to the right, pixels of what was sent
        self.lock = threading.Lock()

    def __enter__(self):
        services = self

        class Handler(_Handler):
            service = services

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def draw(self, seen):
        """The picture with stripes in its hole, all colours moved, as a PNG file."""
        picture = seen.image.astype(float) / 255
        seed = zlib.crc32(f"{seen.fields.get('seed')} {seen.fields.get('prompt')}".encode())
        hole = np.ones(picture.shape[:2], bool) if seen.hole is None else seen.hole
        stripes = stripes_like(picture.shape, seed)
        if seen.hole is None:  # knows no hole: a changed picture, in which the kept part is still to be recognised
            picture = picture + 0.1 * (stripes - 0.5)
        else:
            picture[hole] = stripes[hole]
        if self.drifts:
            picture = GAIN * picture + OFFSET
        picture = np.roll(picture, self.moves, (0, 1))
        drawn = Image.fromarray((picture.clip(0, 1) * 255).round().astype(np.uint8))
        if self.output_size:
            drawn = drawn.resize(self.output_size)
        file = io.BytesIO()
        drawn.save(file, "PNG")
        return file.getvalue()


def stripes_like(shape, seed):
    """Stripes in three colours, in 0..1."""
    height, width, _ = shape
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(2 * np.pi * (a * x + b * y)) for a, b in random.uniform(1, 4, size=(3, 2))]
    return 0.5 + 0.2 * np.stack(waves, axis=-1)


class _Handler(BaseHTTPRequestHandler):
    service: LocalServices
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        return

    def do_GET(self):
        service = self.service
        if self.path.startswith("/poll/"):
            if not self._allowed():
                return
            states = service.jobs[self.path.removeprefix("/poll/")]
            state = states.pop(0) if len(states) > 1 else states[0]
            if isinstance(state, int):
                self._json(state, {"detail": "a moment"})
            else:
                self._json(200, state)
        elif self.path.startswith("/result/"):
            with service.lock:
                service.results["headers"] = dict(self.headers)
            self._send(200, service.results[self.path], "image/png")
        else:
            self._json(404, {"error": "no such address"})

    def do_POST(self):
        service = self.service
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.cut = lambda data: data
        if not self._allowed():
            return
        answer = ROUTES.get(self.path)
        if answer is None:
            self._json(404, {"error": {"message": "The model `none` does not exist", "code": "model_not_found"}})
            return
        read, write = answer
        seen = read(self, body)
        with service.lock:
            service.seen.append(seen)
            service.busy += 1
            service.busiest = max(service.busiest, service.busy)
            fault = service.faults.pop(0) if service.faults else service.fault_for(seen)
        try:
            time.sleep(service.delay)
            if fault is None:
                write(self, seen)
            else:
                self._fail(fault, seen, write)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client went away, which is what some tests are about
        finally:
            with service.lock:
                service.busy -= 1

    def _allowed(self):
        """Whether the key is right; a careless service sends the wrong one back."""
        key = self.service.key
        given = self.headers.get("Authorization", "").removeprefix("Bearer ") or self.headers.get("x-key")
        if key is None or given == key:
            return True
        self._json(401, {"error": {"message": f"Incorrect API key provided: {given}", "code": "invalid_api_key"}})
        return False

    def _fail(self, fault, seen, write):
        """Answer with a fault: a status, or (status, headers), or the name of something worse."""
        status, headers = fault if isinstance(fault, tuple) else (fault, {})
        if status == "refused":
            message = "Your request was rejected by the safety system."
            self._json(400, {"error": {"message": message, "code": "moderation_blocked", "type": "image_generation"}})
        elif status == "moderated":
            self._json(403, {"name": "content_moderation", "errors": ["Your request was flagged by our filter."]})
        elif status == "quota":
            self._json(429, {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}})
        elif status == "slow":
            time.sleep(3)
            write(self, seen)
        elif status == "drop":
            self.close_connection = True
            self.connection.close()
        elif status == "truncated":
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b'{"data": [{"b64_json": "iVBORw0KGgo')
            self.close_connection = True
        elif status == "half":
            self.cut = lambda data: data[: len(data) // 2]
            write(self, seen)
        elif status == "text":
            self.cut = lambda data: b"<html>out of order</html>"
            write(self, seen)
        elif status == "redirect":
            self._json(302, {}, {"Location": "http://127.0.0.1:9/elsewhere"})
        else:
            self._json(status, {"error": {"message": f"fault {status}"}}, headers)

    def picture(self, seen):
        return self.cut(self.service.draw(seen))

    def _json(self, status, value, headers=None):
        self._send(status, json.dumps(value).encode(), "application/json", headers)

    def _send(self, status, data, kind, headers=None):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


# --- protocols ---


def _opened(data):
    """The pixels of a PNG file, with its mode."""
    picture = Image.open(io.BytesIO(data))
    assert picture.format == "PNG"
    return picture.mode, np.array(picture)


def _seen(handler, fields, image, hole=None):
    mode, pixels = _opened(image)
    assert mode == "RGB"
    if hole is not None:
        assert hole.shape == pixels.shape[:2]
    return Seen(handler.path, dict(handler.headers), fields, pixels, hole)


def _multipart(handler, body):
    """Fields as text, and files as bytes, by name."""
    head = f"Content-Type: {handler.headers['Content-Type']}\r\n\r\n".encode()
    fields, files = {}, {}
    for part in email.message_from_bytes(head + body).get_payload():
        name = part.get_param("name", header="content-disposition")
        data = part.get_payload(decode=True)
        if part.get_filename():
            files[name] = data
        else:
            fields[name] = data.decode()
    return fields, files


def _white(data):
    mode, pixels = _opened(data)
    assert mode == "L"
    assert set(np.unique(pixels)) <= {0, 255}
    return pixels == 255


def read_openai(handler, body):
    fields, files = _multipart(handler, body)
    mode, mask = _opened(files["mask"])
    assert mode == "RGBA"
    assert len(files["mask"]) < 4 * 2**20
    assert set(np.unique(mask[..., 3])) <= {0, 255}
    width, height = (int(side) for side in fields["size"].split("x"))
    assert width % 16 == height % 16 == 0
    assert mask.shape[:2] == (height, width)
    assert fields["n"] == "1"
    return _seen(handler, fields, files["image"], mask[..., 3] == 0)


def write_openai(handler, seen):
    details = {"text_tokens": 100, "image_tokens": 1000}
    usage = {"input_tokens": 1100, "input_tokens_details": details, "output_tokens": 300, "total_tokens": 1400}
    picture = base64.b64encode(handler.picture(seen)).decode()
    handler._json(200, {"created": 1, "data": [{"b64_json": picture}], "usage": usage})


def read_huggingface(handler, body):
    data = json.loads(body)
    parameters = data["parameters"]
    hole = _white(base64.b64decode(parameters["mask_image"])) if "mask_image" in parameters else None
    return _seen(handler, parameters, base64.b64decode(data["inputs"]), hole)


def write_picture(handler, seen):
    handler._send(200, handler.picture(seen), "image/png")


def read_automatic(handler, body):
    data = json.loads(body)
    seen = _seen(handler, data, base64.b64decode(data["init_images"][0]), _white(base64.b64decode(data["mask"])))
    assert (data["height"], data["width"]) == seen.image.shape[:2]
    assert isinstance(data["seed"], int)
    return seen


def write_automatic(handler, seen):
    handler._json(200, {"images": [base64.b64encode(handler.picture(seen)).decode()], "info": "{}"})


def read_stability(handler, body):
    fields, files = _multipart(handler, body)
    assert handler.headers["accept"] == "image/*"
    return _seen(handler, fields, files["image"], _white(files["mask"]))


def read_flux(handler, body):
    data = json.loads(body)
    return _seen(handler, data, base64.b64decode(data["image"]), _white(base64.b64decode(data["mask"])))


def write_flux(handler, seen):
    service = handler.service
    with service.lock:
        name = str(len(service.jobs))
        service.results[f"/result/{name}.png"] = handler.picture(seen)
        ready = {"status": "Ready", "result": {"sample": f"{service.url}/result/{name}.png"}}
        states = {"moderate": [{"status": "Request Moderated"}], "break": [{"status": "Error"}]}
        service.jobs[name] = states.get(seen.fields["prompt"], [{"status": "Pending"}, 503, ready])
    polling = {"abroad": "https://elsewhere.example/poll/1"}.get(seen.fields["prompt"], f"{service.url}/poll/{name}")
    handler._json(200, {"id": name, "polling_url": polling})


def read_alpha(handler, body):
    mode, pixels = _opened(base64.b64decode(json.loads(body)["picture"]))
    assert mode == "RGBA"
    return Seen(handler.path, dict(handler.headers), json.loads(body), pixels[..., :3], pixels[..., 3] == 0)


ROUTES = {
    "/v1/images/edits": (read_openai, write_openai),
    "/hf": (read_huggingface, write_picture),
    "/sdapi/v1/img2img": (read_automatic, write_automatic),
    "/v2beta/stable-image/edit/inpaint": (read_stability, write_picture),
    "/v1/flux-pro-1.0-fill": (read_flux, write_flux),
    "/alpha": (read_alpha, write_picture),
}
