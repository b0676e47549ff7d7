"""A critic behind an API: a small OpenAI-like server that judges by looking for sums that do not hold, and its use.

The server stands in for vLLM, SGLang or a hosted model; `capo-ray critique` and a run speak to it in the same way.

    .venv/bin/python examples/endpoint_critic.py
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from capo_ray.cli import main as capo_ray

SOLUTION = {"question": "2+3*4?", "steps": ["3*4 = 12", "12+2 = 15"], "answer": "15", "wrong_steps": [1]}


class Critic(BaseHTTPRequestHandler):
    """Answers a chat request n times alike, in the form that critic.rubric=compact asks for."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        choice = {"message": {"content": judge(body["messages"][-1]["content"])}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 100, "completion_tokens": 10}
        self.reply({"choices": [choice] * body.get("n", 1), "usage": usage})

    def do_GET(self) -> None:
        self.reply({"data": [{"id": "adder"}]})

    def reply(self, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Quiet."""


def judge(prompt: str) -> str:
    """The critique of a prompt whose steps stand in <step_i> tags: which of their sums of two numbers do not hold."""
    wrong = []
    for index, step in re.findall(r"<step_(\d+)>(.*?)</step_\1>", prompt, re.DOTALL):
        if any(int(a) + int(b) != int(c) for a, b, c in re.findall(r"(\d+)\+(\d+) = (\d+)", step)):
            wrong.append(index)
    return f"<incorrect_steps>{','.join(wrong)}</incorrect_steps>"


def main() -> int:
    """The exit code of `capo-ray critique` against the server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Critic)
    Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        solutions = Path(folder) / "solutions.jsonl"
        solutions.write_text(json.dumps(SOLUTION) + "\n")
        url = f"critic.endpoint.base_url=http://127.0.0.1:{server.server_port}/v1"
        words = ["critic=endpoint", url, "critic.endpoint.model=adder", "critic.rubric=compact", "critic.num_votes=2"]
        code = capo_ray(["critique", "--input", str(solutions), "--gold", "--json", *words])
    server.shutdown()
    server.server_close()
    return code


if __name__ == "__main__":
    sys.exit(main())
