"""A stand-in for a Kubernetes cluster of one node: API and kubelet, as far as chart and Dagster use them.

Pods are containers (:mod:`tests.e2e.containers`). The API uses TLS, knows each pod's service account by its
token, and permits what the chart's roles permit. As in Kubernetes, a job that is deleted leaves its pods, and
a pod that is deleted gets SIGTERM and, after its grace period, SIGKILL. Each pod is started once. There is no
scheduler, image, DNS, network policy, seccomp profile or cron job.
"""

import json
import os
import re
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.e2e.containers import Container, Host, Mount

Resource = dict[str, Any]
"""As the API's JSON."""
_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
_PATH = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/v1/namespaces/[^/]+/(?P<kind>[a-z]+)(?:/(?P<name>[^/]+))?(?:/(?P<part>[a-z]+))?"
)
_SERVES = """\
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

stub = health_pb2_grpc.HealthStub(grpc.insecure_channel("127.0.0.1:{port}"))
request = health_pb2.HealthCheckRequest(service="{service}")
assert stub.Check(request, timeout=5).status == health_pb2.HealthCheckResponse.SERVING
"""
"""A kubelet's gRPC probe."""
_UNITS = {"Mi": 2**20, "Gi": 2**30}


@dataclass
class Pod:
    """A pod that was started, and whether it was deleted."""

    metadata: Resource
    spec: Resource
    container: Container
    kill: threading.Timer | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return str(self.metadata["name"])

    @property
    def phase(self) -> str:
        code = self.container.exit_code
        return "Running" if code is None else "Succeeded" if code == 0 else "Failed"

    @property
    def resource(self) -> Resource:
        """What the API says of it."""
        code = self.container.exit_code
        state = {"running": {}} if code is None else {"terminated": {"exitCode": code}}
        status = {"name": self.spec["containers"][0]["name"], "ready": code is None, "state": state}
        status |= {"restartCount": 0, "image": "", "imageID": ""}
        return {
            "metadata": self.metadata,
            "spec": self.spec,
            "status": {"phase": self.phase, "containerStatuses": [status]},
        }


class Cluster:
    """The chart's resources, by kind and name, and the pods that run."""

    def __init__(
        self,
        host: Host,
        folder: Path,
        resources: Mapping[str, Resource],
        secrets: Mapping[str, Mapping[str, str]],
    ) -> None:
        self.pods: dict[str, Pod] = {}
        self.refused: list[str] = []
        """What pods asked for without the right to it."""
        self._host = host
        self._folder = folder
        self._resources = dict(resources)
        self._secrets = secrets
        self._jobs: dict[str, Resource] = {}
        self._port = 0
        self._lock = threading.Lock()
        for name in ("tokens", "config", "claims"):
            (folder / name).mkdir()

    # What the test does

    def start_deployments(self) -> None:
        """Starts the pod of each deployment, all at once."""
        for resource in self._resources.values():
            if resource["kind"] == "Deployment":
                template = resource["spec"]["template"]
                self._start({**template["metadata"], "name": resource["metadata"]["name"]}, template["spec"])

    def is_ready(self, name: str) -> bool:
        """Whether the startup probe of a pod succeeds."""
        pod = self.pods[name]
        assert pod.container.exit_code is None, f"{name} ended:\n{pod.container.log.read_text()[-4000:]}"
        probe = pod.spec["containers"][0]["startupProbe"]
        if "exec" in probe:
            return pod.container.run(*probe["exec"]["command"]).returncode == 0
        if "grpc" in probe:
            return pod.container.run("python", "-c", _SERVES.format(**probe["grpc"])).returncode == 0
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", probe["tcpSocket"]["port"])) == 0

    def pod_of(self, run_id: str) -> Pod:
        """The pod of a run's job."""
        [pod] = [pod for pod in self.pods.values() if pod.metadata["labels"].get("dagster/run-id") == run_id]
        return pod

    def delete(self, name: str) -> None:
        """Deletes a pod, as draining its node does."""
        pod = self.pods[name]
        if pod.kill is None and pod.container.exit_code is None:
            pod.container.signal(SIGTERM)
            pod.kill = threading.Timer(
                pod.spec["terminationGracePeriodSeconds"], pod.container.signal, [SIGKILL]
            )
            pod.kill.daemon = True
            pod.kill.start()

    def claim(self, name: str) -> Path:
        """The folder of a persistent volume claim."""
        return self._folder / "claims" / name

    # What a kubelet does

    def _start(self, metadata: Resource, spec: Resource) -> Pod:
        [container] = spec["containers"]
        security = {**spec["securityContext"], **container["securityContext"]}
        assert security["runAsNonRoot"]
        assert security["capabilities"] == {"drop": ["ALL"]}
        number, unit = re.fullmatch(r"(\d+)(\w+)", container["resources"]["limits"]["memory"]).groups()  # type: ignore[union-attr]
        running = self._host.start(
            metadata["name"],
            [*container.get("command", []), *container.get("args", [])],
            env=self._environment(container),
            mounts=list(self._mounts(spec, container)),
            user=security["runAsUser"],
            read_only=security["readOnlyRootFilesystem"],
            memory=int(number) * _UNITS[unit],
        )
        pod = Pod(metadata, spec, running)
        self.pods[pod.name] = pod
        return pod

    def _data(self, kind: str, name: str) -> Mapping[str, str]:
        data: Mapping[str, str] = (
            self._secrets[name] if kind == "Secret" else self._resources[f"{kind}/{name}"]["data"]
        )
        return data

    def _environment(self, container: Resource) -> dict[str, str]:
        found = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(self._port)}
        for source in container.get("envFrom", []):
            for reference, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
                if reference in source:
                    found |= self._data(kind, source[reference]["name"])
        return found | {entry["name"]: entry["value"] for entry in container.get("env", [])}

    def _mounts(self, spec: Resource, container: Resource) -> Iterator[Mount]:
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        for mount in container["volumeMounts"]:
            volume = volumes[mount["name"]]
            target = mount["mountPath"]
            if "configMap" in volume:
                folder = self._files("config", volume["configMap"]["name"])
                yield Mount(
                    target, folder / mount["subPath"] if "subPath" in mount else folder, read_only=True
                )
            elif "persistentVolumeClaim" in volume:
                folder = self.claim(volume["persistentVolumeClaim"]["claimName"])
                folder.mkdir(exist_ok=True)
                os.chown(folder, 0, spec["securityContext"]["fsGroup"])
                folder.chmod(0o2775)
                yield Mount(target, folder)
            else:
                assert volume["emptyDir"] is not None
                yield Mount(target)
        if spec.get("automountServiceAccountToken", True):
            yield Mount(_ACCOUNT, self._account(spec["serviceAccountName"]), read_only=True)

    def _files(self, folder: str, name: str) -> Path:
        """A configuration map as files."""
        path = self._folder / folder / name
        path.mkdir(exist_ok=True)
        for key, value in self._data("ConfigMap", name).items():
            (path / key).write_text(value, encoding="utf-8")
        return path

    def _account(self, name: str) -> Path:
        """What a pod gets of its service account, which must exist."""
        assert f"ServiceAccount/{name}" in self._resources
        path = self._folder / "tokens" / name
        path.mkdir(exist_ok=True)
        (path / "token").write_text(name, encoding="ascii")
        (path / "namespace").write_text("kyc", encoding="ascii")
        (path / "ca.crt").write_bytes((self._folder / "ca.crt").read_bytes())
        return path

    # What the API does

    def respond(self, method: str, url: str, token: str, body: Resource | None) -> tuple[int, Resource | str]:
        """Status and body of the response."""
        address = urlsplit(url)
        found = _PATH.fullmatch(address.path)
        if found is None:
            return 404, _status(404)
        kind = found["kind"] + (f"/{found['part']}" if found["part"] else "")
        verb = {"POST": "create", "DELETE": "delete", "GET": "get" if found["name"] else "list"}[method]
        if not self._permits(token, found["group"] or "", kind, verb):
            self.refused.append(f"{token}: {verb} {kind}")
            return 403, _status(403)
        selectors = [value for values in parse_qs(address.query).values() for value in values if "=" in value]
        wanted = dict(selector.split("=", 1) for selector in selectors)
        with self._lock:
            try:
                return self._do(verb, kind, found["name"], wanted, body)
            except KeyError:
                return 404, _status(404)

    def _permits(self, account: str, group: str, kind: str, verb: str) -> bool:
        for binding in self._resources.values():
            if binding["kind"] != "RoleBinding" or account not in [
                each["name"] for each in binding["subjects"]
            ]:
                continue
            for rule in self._resources[f"Role/{binding['roleRef']['name']}"]["rules"]:
                if group in rule["apiGroups"] and kind in rule["resources"] and verb in rule["verbs"]:
                    return True
        return False

    def _do(
        self, verb: str, kind: str, name: str | None, wanted: Mapping[str, str], body: Resource | None
    ) -> tuple[int, Resource | str]:
        match kind, verb:
            case "jobs", "create":
                assert body is not None
                return 201, self._create_job(body)
            case "jobs" | "jobs/status", "get":
                return 200, self._job(str(name))
            case "jobs", "list":
                return 200, _list(
                    [self._job(each) for each in self._jobs if each == wanted.get("metadata.name", each)]
                )
            case "jobs", "delete":
                del self._jobs[str(name)]
                return 200, {"kind": "Status", "apiVersion": "v1", "status": "Success"}
            case "pods", "list":
                return 200, _list([pod.resource for pod in self.pods.values() if _is_wanted(pod, wanted)])
            case "pods", "delete":
                self.delete(str(name))
                return 200, self.pods[str(name)].resource
            case "pods/log", "get":
                return 200, self.pods[str(name)].container.log.read_text(encoding="utf-8", errors="replace")
            case "events", "list":
                return 200, _list([])
        return 404, _status(404)

    def _create_job(self, job: Resource) -> Resource:
        name = job["metadata"]["name"]
        template = job["spec"]["template"]
        assert job["spec"]["backoffLimit"] == 0
        assert template["spec"]["restartPolicy"] == "Never"
        self._jobs[name] = job
        labels = {**template["metadata"]["labels"], "job-name": name}
        self._start({**template["metadata"], "labels": labels, "name": f"{name}-pod"}, template["spec"])
        return job

    def _job(self, name: str) -> Resource:
        key = {"Running": "active", "Succeeded": "succeeded", "Failed": "failed"}[
            self.pods[f"{name}-pod"].phase
        ]
        return {**self._jobs[name], "status": {key: 1}}

    @contextmanager
    def serving(self) -> Iterator[None]:
        """The API listens while the block runs."""
        certificate, key = self._folder / "ca.crt", self._folder / "ca.key"
        make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=k8s"
        files = ["-keyout", str(key), "-out", str(certificate), "-addext", "subjectAltName=IP:127.0.0.1"]
        subprocess.run([*make.split(), *files], check=True, capture_output=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        with ThreadingHTTPServer(("127.0.0.1", 0), _handler(self)) as server:
            server.socket = context.wrap_socket(server.socket, server_side=True)
            self._port = int(server.server_address[1])
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                yield
            finally:
                server.shutdown()
                thread.join()


def _handler(cluster: Cluster) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size)) if size else None
            token = (self.headers.get("Authorization") or "").partition(" ")[2]
            status, answer = cluster.respond(self.command, self.path, token, body)
            is_text = isinstance(answer, str)
            content = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if is_text else "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self) -> None:
            self.do_GET()

        def do_DELETE(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            """Keeps the test's output clean."""

    return Handler


def _status(code: int) -> Resource:
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code}


def _list(items: list[Resource]) -> Resource:
    return {"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items}


def _is_wanted(pod: Pod, wanted: Mapping[str, str]) -> bool:
    known = {**pod.metadata["labels"], "metadata.name": pod.name}
    return all(known.get(key) == value for key, value in wanted.items())
