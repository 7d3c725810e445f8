"""An OCI image layout: one layer, its configuration, and the index that names them.

Source: the OCI image format specification 1.1 (image-layout, manifest, config).
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

from guestctl.errors import ArchiveError
from guestctl.system.rootfs import RootFs
from guestctl.targets import TARGETS
from guestctl.translate import collect

__all__ = ["write_oci"]

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_CHUNK = 1 << 20


def write_oci(rootfs: RootFs, out: Path, *, epoch: int, arch: str) -> None:
    """Writes the folder `out`, which must not exist, with one image named `latest`.

    `arch` is guestctl's name of the architecture; its row says what OCI calls it.
    """
    if out.exists():
        raise ArchiveError(f"{out} exists already", hint="an OCI layout is a new folder")
    blobs = out / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    layer, diff = _layer(rootfs, blobs)
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(epoch))
    row = TARGETS[arch]
    platform = {"architecture": row.oci, "os": "linux"}
    platform |= {"variant": row.oci_variant} if row.oci_variant else {}
    config = {
        **platform,
        "created": when,
        "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff}"]},
        "history": [{"created": when, "created_by": "guestctl system pack"}],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": _json(config, _CONFIG, blobs),
        "layers": [layer],
    }
    entry = {
        **_json(manifest, _MANIFEST, blobs),
        "platform": platform,
        "annotations": {"org.opencontainers.image.ref.name": "latest"},
    }
    index = {"schemaVersion": 2, "manifests": [entry]}
    (out / "index.json").write_text(json.dumps(index))
    (out / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))


def _json(facts: dict[str, Any], kind: str, blobs: Path) -> dict[str, Any]:
    """Writes a blob of JSON; returns its descriptor."""
    data = json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}


def _layer(rootfs: RootFs, blobs: Path) -> tuple[dict[str, Any], str]:
    """Writes the layer; returns its descriptor, and the SHA-256 of the tar in it."""
    packed, plain = hashlib.sha256(), hashlib.sha256()
    engine = zlib.compressobj(6, zlib.DEFLATED, 31)
    aside = blobs / ".layer"
    with tempfile.TemporaryFile(dir=blobs) as tar, open(aside, "xb") as out:
        collect(rootfs.tree, tar)
        tar.seek(0)
        while block := tar.read(_CHUNK):
            plain.update(block)
            data = engine.compress(block)
            packed.update(data)
            out.write(data)
        data = engine.flush()
        packed.update(data)
        out.write(data)
    digest = packed.hexdigest()
    size = aside.stat().st_size
    os.rename(aside, blobs / digest)
    return {"mediaType": _LAYER, "digest": f"sha256:{digest}", "size": size}, plain.hexdigest()
