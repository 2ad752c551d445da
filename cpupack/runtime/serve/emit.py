"""``--emit``: a systemd unit, a Containerfile or a compose file that starts the server with the options given."""

from __future__ import annotations

import argparse
import shlex
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
ExecStart=/opt/$name/bin/$name serve $options
ExecReload=/bin/kill -HUP $$MAINPID
Restart=on-failure
TimeoutStopSec=$stop_s
LimitNOFILE=65536
DynamicUser=yes
StateDirectory=$name
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
# podman build --format docker -t $name . && podman run --rm -p $port:$port $name
# The folder of this file holds the wheel.
FROM docker.io/library/python:3.12-slim
COPY *.whl /wheels/
RUN python -m pip install --no-cache-dir "$$(ls /wheels/*.whl)[serve]" && rm -r /wheels \\
 && useradd --uid 10001 --create-home serve
USER 10001
EXPOSE $ports
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=2s --start-period=30s CMD ["python", "-c", \\
  "import urllib.request as u; u.urlopen('http://127.0.0.1:$port/v2/health/ready', timeout=2)"]
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
        - import urllib.request as u; u.urlopen('http://127.0.0.1:$port/v2/health/ready', timeout=2)
      interval: 5s
      timeout: 2s
      start_period: 30s
""")

_OPTIONS = (
    "max_latency_ms", "shed_status", "max_queue", "max_queue_mb", "host", "port", "grpc_port", "tls_cert", "tls_key",
    "token_file", "threads", "instances", "batch_size", "max_body_mb", "max_connections", "client_timeout",
    "idle_timeout", "access_log", "grace", "drain",
)  # fmt: skip
_STOP_MARGIN_S = 10


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
    else:
        # A unit starts in another directory.
        values |= {name: value.absolute() for name, value in values.items() if isinstance(value, Path)}
        if values["access_log"] not in (None, "-"):
            values["access_log"] = Path(values["access_log"]).absolute()
    words = [word for name in _OPTIONS for word in _words(name, values[name])]
    ports = [port for port in (values["port"], values["grpc_port"]) if port is not None]
    template = {"systemd": _SYSTEMD, "containerfile": _CONTAINERFILE, "compose": _COMPOSE}[kind]
    return template.substitute(
        name=manifest.name,
        version=manifest.version,
        # systemd takes % for itself, and quotes as a shell does for what names and paths can hold.
        options=" ".join(shlex.quote(word).replace("%", "%%") for word in words),
        arguments=", ".join('"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"' for word in words),
        port=values["port"],
        ports=" ".join(map(str, ports)),
        published="\n".join(f'      - "127.0.0.1:{port}:{port}"' for port in ports),
        stop_s=round(values["grace"] + values["drain"]) + _STOP_MARGIN_S,
    )


def _words(name: str, value: object) -> list[str]:
    if value is None:
        return []
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return ["--" + name.replace("_", "-"), text]
