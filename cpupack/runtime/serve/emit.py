"""``--emit``: a systemd unit, a Containerfile or a compose file that starts the server with the options given."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from string import Template

from ..errors import InputError
from ..manifest import Manifest

_SYSTEMD = Template("""\
# $name.service: sudo cp to /etc/systemd/system/, then sudo systemctl enable --now $name
[Unit]
Description=$name $version
After=network-online.target
Wants=network-online.target

[Service]
# The environment that the wheel is installed in: python3 -m venv /opt/$name; /opt/$name/bin/pip install '$name[serve]'
${credentials}ExecStart=/opt/$name/bin/$name serve $options
ExecReload=/bin/kill -HUP $$MAINPID
Restart=on-failure
TimeoutStopSec=$stop_s
LimitNOFILE=$files
DynamicUser=yes
${capabilities}StateDirectory=$name
LogsDirectory=$name
Environment=XDG_CACHE_HOME=/var/lib/$name
NoNewPrivileges=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectSystem=strict
ProtectHome=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
MemoryDenyWriteExecute=no

[Install]
WantedBy=multi-user.target
""")

_CONTAINERFILE = Template("""\
# podman build --format docker -t $image . && podman run --rm -p $port:$port $image
# The folder of this file holds the wheel.
FROM docker.io/library/python:3.12-slim
COPY *.whl /wheels/
RUN python -m pip install --no-cache-dir "$$(ls /wheels/*.whl)[serve]" && rm -r /wheels \\
 && useradd --uid 10001 --create-home serve
USER 10001
EXPOSE $ports
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=2s --start-period=30s CMD ["python", "-c", \\
  "$healthcheck"]
ENTRYPOINT ["$name", "serve"]
CMD [$arguments]
""")

_COMPOSE = Template("""\
# docker compose up --build: builds the Containerfile of this folder ($name serve --emit containerfile > Containerfile)
services:
  $name:
    build:
      context: .
      dockerfile: Containerfile
    command: [$arguments]
    ports:
$published
    stop_grace_period: ${stop_s}s
    restart: unless-stopped
    read_only: true
    tmpfs: [/tmp]
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]
    healthcheck:
      test:
        - CMD
        - python
        - -c
        - $healthcheck
      interval: 5s
      timeout: 2s
      start_period: 30s
""")

# Without a proxy: where Docker is set up with one, it gives the variable http_proxy to every container.
_HEALTHCHECK = Template(
    "import urllib.request as u; "
    "u.build_opener(u.ProxyHandler(dict())).open('http://127.0.0.1:$port/v2/health/ready', timeout=2)"
)

_OPTIONS = (
    "max_latency_ms", "shed_status", "max_queue", "max_queue_mb", "host", "port", "grpc_port", "tls_cert", "tls_key",
    "token_file", "threads", "instances", "batch_size", "max_body_mb", "max_connections", "client_timeout",
    "idle_timeout", "access_log", "grace", "drain",
)  # fmt: skip
_STOP_MARGIN_S = 10
_FILES, _OTHER_FILES = 65536, 4096
"""Open files of the unit, and how many of them are no connections: far more than it takes."""
_PRIVILEGED_BELOW = 1024
"""Ports that a user without a capability may not listen on."""
_SECRETS = ("tls_cert", "tls_key", "token_file")
_PLAIN_WORD = re.compile(r"[A-Za-z0-9_./:@=+-]+")


def emit(kind: str, manifest: Manifest, args: argparse.Namespace) -> str:
    """Return the text of a file of ``kind``. Raises InputError for options that cannot work inside a container."""
    values = {name: getattr(args, name) for name in _OPTIONS}
    if kind != "systemd":
        if values["tls_cert"] is not None or values["token_file"] is not None:
            raise InputError(
                f"--emit {kind}: certificates and tokens are files of this host; leave them out, and mount them "
                "where you start the container"
            )
        if values["port"] == 0 or values["grpc_port"] == 0:
            raise InputError(f"--emit {kind}: a published port cannot be 0; name one")
        values["host"] = "0.0.0.0"  # noqa: S104 - the container's own network; what is published decides
    elif values["access_log"] not in (None, "-"):
        values["access_log"] = _log_of_unit(values["access_log"], manifest.name)
    secrets = {name: values[name].absolute() for name in _SECRETS if kind == "systemd" and values[name] is not None}
    words = [word for name in _OPTIONS for word in _words(name, values[name]) if name not in secrets]
    # The unit's user may read no file of another user: systemd reads them, and hands them to the service.
    given = "".join(f" --{name.replace('_', '-')} ${{CREDENTIALS_DIRECTORY}}/{name}" for name in secrets)
    ports = [port for port in (values["port"], values["grpc_port"]) if port is not None]
    template = {"systemd": _SYSTEMD, "containerfile": _CONTAINERFILE, "compose": _COMPOSE}[kind]
    return template.substitute(
        name=manifest.name,
        image=manifest.name.lower(),
        version=manifest.version,
        options=" ".join(map(_for_systemd, words)) + given,
        credentials="".join(
            f"LoadCredential={name}:{str(path).replace('%', '%%')}\n" for name, path in secrets.items()
        ),
        files=max(_FILES, values["max_connections"] + _OTHER_FILES),
        capabilities="AmbientCapabilities=CAP_NET_BIND_SERVICE\n" * any(0 < port < _PRIVILEGED_BELOW for port in ports),
        arguments=", ".join(json.dumps(word.replace("$", "$$") if kind == "compose" else word) for word in words),
        port=values["port"],
        healthcheck=_HEALTHCHECK.substitute(port=values["port"]),
        ports=" ".join(map(str, ports)),
        published="\n".join(f'      - "127.0.0.1:{port}:{port}"' for port in ports),
        stop_s=round(values["grace"] + values["drain"]) + _STOP_MARGIN_S,
    )


def _words(name: str, value: object) -> list[str]:
    if value is None:
        return []
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return ["--" + name.replace("_", "-"), text]


def _for_systemd(word: str) -> str:
    """Return a word of a command line as systemd reads it: it takes ``%``, ``$``, quotes and backslashes for itself."""
    if _PLAIN_WORD.fullmatch(word):
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return '"' + escaped.replace("%", "%%").replace("$", "$$") + '"'


def _log_of_unit(path: str, name: str) -> Path:
    """Return the path of the access log. Raises InputError where the unit's user cannot write it."""
    log = Path(path).absolute()
    if Path("/var/log", name) not in log.parents or ".." in log.parts:
        raise InputError(
            f"--emit systemd: --access-log {path} cannot be written there, because the service has a user of its own; "
            f"name /var/log/{name}/access.log, or - for the journal"
        )
    return log
