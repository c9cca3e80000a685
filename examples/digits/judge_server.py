"""A stand-in for a model that sees images, with OpenAI's protocol: a classifier of digits looks at what it is sent.

    python examples/digits/judge_server.py --port 8000

So `tgo-trl judge` and `--rewards vlm` can be tried without a GPU, a key or a download. Of two images, that one wins
which more probably shows the digit that the prompt asks for; one image gets 1 to 10. The name of the model says which
classifier looks: `unseen` (a convolutional net that training never saw), `neighbours` or `training`.
"""

import argparse
import base64
import io
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from digits import neighbours_scorer, training_scorer, unseen_scorer
from PIL import Image

SCORERS = {"unseen": unseen_scorer, "neighbours": neighbours_scorer, "training": training_scorer}
AS_GOOD = 0.1
"""Difference of two probabilities below which neither image is better."""


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """What the classifier says to a request, as JSON that was asked for."""
    parts = request["messages"][-1]["content"]
    text = "\n".join(part["text"] for part in parts if part["type"] == "text")
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    images = [Image.open(io.BytesIO(base64.b64decode(url.partition("base64,")[2]))) for url in urls]
    prompt = re.search(r'^Prompt: (".*")$', text, re.MULTILINE)
    if prompt is None:
        return {"answer": "digits"}  # whether a server is there, and sees images
    scores = SCORERS[request["model"]]()([json.loads(prompt[1])] * len(images), images)
    reason = " and ".join(f"{score:.2f}" for score in scores)
    if len(scores) == 1:
        return {"reason": reason, "score": round(1 + 9 * scores[0], 2)}
    first, second = scores
    winner = "tie" if abs(first - second) < AS_GOOD else "first" if first > second else "second"
    return {"reason": reason, "winner": winner}


class Handler(BaseHTTPRequestHandler):
    """Answers chat completions."""

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        is_known = request.get("model") in SCORERS
        body = completion(request) if is_known else {"error": {"message": f"The models are {', '.join(SCORERS)}."}}
        data = json.dumps(body).encode()
        self.send_response(200 if is_known else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal."""


def completion(request: dict[str, Any]) -> dict[str, Any]:
    """The answer as the protocol has it. Tokens are words, as far as a classifier has any."""
    text = json.dumps(answer(request))
    counts = {"prompt_tokens": len(json.dumps(request["messages"][0]).split()), "completion_tokens": len(text.split())}
    message = {"role": "assistant", "content": text}
    return {
        "id": "digits", "object": "chat.completion", "created": 0, "model": request["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {**counts, "total_tokens": sum(counts.values())},
    }  # fmt: skip


def main(port: int) -> None:
    """Serves until it is interrupted."""
    torch.set_num_threads(1)
    for scorer in SCORERS.values():
        scorer()  # fitted before the first question, of which several come at once
    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        print(f"http://127.0.0.1:{server.server_address[1]}/v1", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8000, help="0 for any that is free.")
    main(parser.parse_args().port)
