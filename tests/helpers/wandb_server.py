"""The part of a W&B server that `wandb sync` talks to, which keeps what a run's history becomes."""

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """A server on this machine.

    Attributes:
        asked: number of requests.
        history: rows of each run, by its id.
        config: of each run, by its id.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.history, self.config = 0, {}, {}
        self.environment = {
            "WANDB_BASE_URL": f"http://127.0.0.1:{self.server_port}",
            "WANDB_API_KEY": "0123456789" * 4,
            # Whatever else asks for the network asks here.
            "HTTPS_PROXY": f"http://127.0.0.1:{self.server_port}",
            "NO_PROXY": "127.0.0.1",
        }

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def answer(self, asked):
        """Return the answer to a GraphQL request."""
        query, values = asked["query"], asked.get("variables") or {}
        project = {"id": "p", "name": "p", "entity": {"id": "e", "name": "me"}}
        if "viewer" in query:
            return {"viewer": {"id": "v", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        if "upsertBucket" in query:
            run = values["name"]
            self.config[run] = json.loads(values["config"] or "{}")
            rows = len(self.history.setdefault(run, []))
            bucket = {"id": "b", "name": run, "displayName": "n", "config": "{}", "historyLineCount": rows}
            return {"upsertBucket": {"bucket": bucket | {"project": project}, "inserted": rows == 0}}
        if "RunResumeStatus" in query:
            rows = self.history.get(values["name"], [])
            if not rows:
                return {"model": {**project, "bucket": None}}
            last = json.dumps({"_step": rows[-1]["_step"]})
            bucket = {"id": "b", "name": values["name"], "displayName": "n", "summaryMetrics": last, "config": "{}"}
            bucket |= {"logLineCount": 0, "historyLineCount": len(rows), "eventsLineCount": 0, "tags": []}
            bucket |= {"historyTail": json.dumps([last]), "eventsTail": "[]", "wandbConfig": '{"t": 1}'}
            return {"model": {**project, "bucket": bucket}}
        if "createRunFiles" in query:
            files = [
                {"name": name, "uploadUrl": f"{self.environment['WANDB_BASE_URL']}/up"} for name in values["files"]
            ]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        return {}


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Print nothing."""

    def do_POST(self):
        """Answer a query, or take what is uploaded."""
        self.server.asked += 1
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        answer = {}
        if self.path.endswith("/graphql"):
            answer = {"data": self.server.answer(json.loads(body))}
        elif self.path.endswith("/file_stream"):
            part = json.loads(body).get("files", {}).get("wandb-history.jsonl")
            if part:
                rows = self.server.history[self.path.split("/")[-2]]
                rows[part["offset"] :] = [json.loads(row) for row in part["content"]]
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_PUT = do_CONNECT = do_POST
