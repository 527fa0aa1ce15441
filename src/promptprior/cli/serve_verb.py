"""promptprior serve: many prompts behind one model, over HTTP."""

import ipaddress
import json
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from promptprior.cli.verb import BACKBONE, DATA, DEVICE, DTYPE, Verb
from promptprior.compare.plan import COMPILE, QUANTIZE, load_backbone
from promptprior.config.mapping import check_bounds
from promptprior.config.training import setting
from promptprior.errors import ArtifactError, SpecError
from promptprior.interruptions import Interrupted
from promptprior.serve.limits import Limits

_LINE = threading.Lock()


@dataclass(frozen=True)
class ServePlan:
    """The settings of `promptprior serve`. The backbone is that of the first prompt unless given."""

    folder: Path | None = setting(None, "folder of prompt folders, or one prompt folder; it is watched")
    demo: bool = setting(False, "serve the prompts that come with the library, for a first look at the playground")
    host: str = setting("127.0.0.1", "address to listen on; other machines are let in only with --keys")
    port: int = setting(8000, "port to listen on", least=0, most=65535)
    keys: Path | None = setting(None, 'file of keys, lines of "NAME KEY"; without, whoever reaches the port is let in')
    data: Path | None = setting(None, DATA)
    backbone: str = setting("smollm2", BACKBONE)
    dtype: str = setting("auto", DTYPE)
    device: str | None = setting(None, DEVICE)
    quantize: str | None = setting(None, QUANTIZE)
    compile: bool = setting(False, COMPILE)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.demo == (self.folder is not None):
            raise SpecError("name a folder of prompt folders, or --demo for those that come with the library")

    @property
    def prompts(self) -> Path:
        """The folder that is served."""
        from promptprior.artifacts.artifact import READY

        return READY / "prompts" / "smollm2" if self.folder is None else self.folder

    def run(self, dry_run: bool) -> None:
        """Serve until a signal; then answer what was accepted, and end."""
        try:
            import uvicorn

            from promptprior.serve.app import Server
            from promptprior.serve.gate import read_keys
        except ImportError as error:
            raise SpecError(f"serve needs packages: pip install 'promptprior[serve]' ({error})") from error
        from promptprior.evaluate import prompt_objective
        from promptprior.serve.counters import Metrics
        from promptprior.serve.model_worker import ModelWorker
        from promptprior.serve.prompt_folder import PromptFolder

        is_local = self.host == "localhost"
        try:
            is_local |= ipaddress.ip_address(self.host).is_loopback
        except ValueError as error:
            if not is_local:
                raise SpecError(f"host {self.host!r} (--host): expected an IP address, or localhost") from error
        keys = {} if self.keys is None else read_keys(self.keys)
        if not keys and not is_local:
            raise SpecError(f"host {self.host} (--host) lets other machines in: name a file of keys (--keys FILE)")
        if not self.prompts.is_dir():
            raise ArtifactError(f"{self.prompts}: no such folder; name a folder of prompt folders")
        backbone = load_backbone(self)
        limits, metrics = self.limits, Metrics()
        worker = ModelWorker(backbone, limits, metrics, say_in_json)
        folder = PromptFolder(
            self.prompts,
            backbone.card,
            lambda prompt: worker.call(lambda: prompt_objective(prompt, backbone)),
            say_in_json,
            self.data,
        )
        folder.look()
        contents = folder.contents
        if dry_run:
            worker.close()
            names = ", ".join(sorted(contents.prompts)) or "no prompt yet"
            return print(f"serve {names} with {backbone.card.name} on http://{self.host}:{self.port}")
        # A page of a stranger that a browser shows could name this server by a host of its own (DNS rebinding)
        hosts = ("localhost", "127.0.0.1", "::1", "[::1]", self.host) if is_local else ("*",)
        app = Server(folder, worker, limits, metrics, say_in_json).app(keys, hosts)
        config = uvicorn.Config(
            app,
            self.host,
            self.port,
            log_config=None,
            access_log=False,
            server_header=False,
            # Far above what is accepted, so that refusals are ours; it bounds sockets and their buffers
            limit_concurrency=limits.queue + 1000,
            timeout_keep_alive=30,
        )
        shown = f"[{self.host}]" if ":" in self.host else self.host
        say_in_json("start", url=f"http://{shown}:{self.port}", prompts=len(contents.prompts), keys=len(keys))
        try:
            uvicorn.Server(config).run()
        except Interrupted:  # uvicorn hands the signal on when all is answered
            pass
        except SystemExit as error:  # it could not listen there
            raise SpecError(f"port {self.port} of {self.host} (--port, --host) cannot be listened on") from error
        finally:
            worker.close()
        return None


def say_in_json(event: str, level: str = "info", **values: object) -> None:
    """One line of the log, on stderr: an object with the time, the level, the event and its values."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = json.dumps({"time": stamp, "level": level, "event": event, **values}, default=str)
    with _LINE:
        print(line, file=sys.stderr, flush=True)


def settings_of_folder(given: Mapping[str, object]) -> dict[str, object]:
    """The settings with backbone and dtype of the first prompt of the folder that is named; what is given wins."""
    from promptprior.cli.common import header_at
    from promptprior.cli.verbs.evaluate_verb import with_backbone_of
    from promptprior.serve.prompt_folder import prompt_folders

    folder = Path(str(given.get("folder", "")))
    for path in prompt_folders(folder) if "folder" in given and folder.is_dir() else []:
        try:
            header = header_at({"folder": path}, "folder")
        except ArtifactError:  # the server says so when it reads it
            continue
        if header is not None:
            return with_backbone_of(header, given)
    return dict(given)


VERB = Verb(
    "serve",
    ServePlan,
    ServePlan.run,
    "promptprior serve runs/prompts --port 8000",
    positional=("folder",),
    defaults=settings_of_folder,
)
