"""Downloads the Delta jars with Spark's own Ivy and copies them to the folder that is given as argument.

``tools/setup.py`` runs this script with the project's Python. The repositories are those that Spark is configured with.
"""

from __future__ import annotations

import hashlib
import shutil
import ssl
import struct
import subprocess
import sys
from pathlib import Path

import pyspark

from deltatap.spark.session import delta_coordinates, jar_name, java_home


def main(folder: Path) -> None:
    coordinates = delta_coordinates()
    program = folder / "nothing.py"
    program.touch()
    command = [str(Path(pyspark.__file__).parent / "bin/spark-submit"), "--packages", ",".join(coordinates)]
    command += ["--conf", f"spark.jars.ivy={folder / 'ivy'}", "--conf", f"spark.pyspark.python={sys.executable}"]
    if certificates := trusted():
        # Java has its own list of certificates, which does not include those of a proxy or mirror in this network.
        store = folder / "trusted.jks"
        store.write_bytes(key_store(certificates))
        command += ["--driver-java-options", f"-Djavax.net.ssl.trustStore={store}"]
    with java_home():
        done = subprocess.run(
            [*command, str(program)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
    if done.returncode:
        lines = done.stdout.splitlines()
        sys.exit("\n".join([line.strip() for line in lines if "error at url" in line] or lines[-15:]))
    for each in coordinates:
        group = each.split(":")[0]
        shutil.copyfile(folder / "ivy/jars" / f"{group}_{jar_name(each)}", folder / jar_name(each))


def trusted() -> list[bytes]:
    """Return the certificates (DER) that Python trusts on this machine."""
    context = ssl.create_default_context()
    if folder := ssl.get_default_verify_paths().capath:
        # OpenSSL loads a certificate of this folder only when it needs it.
        for certificate in Path(folder).glob("*.0"):
            context.load_verify_locations(certificate)
    return context.get_ca_certs(binary_form=True)


def key_store(certificates: list[bytes]) -> bytes:
    """Return certificates (DER) as a Java key store, in the JKS format of sun.security.provider.JavaKeyStore."""
    entries = b"".join(
        struct.pack(">I", 2)
        + text(str(number))
        + struct.pack(">Q", 0)
        + text("X.509")
        + struct.pack(">I", len(der))
        + der
        for number, der in enumerate(certificates)
    )
    content = struct.pack(">III", 0xFEEDFEED, 2, len(certificates)) + entries
    password = "changeit".encode("utf-16-be")
    return content + hashlib.sha1(password + b"Mighty Aphrodite" + content, usedforsecurity=False).digest()


def text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack(">H", len(encoded)) + encoded


if __name__ == "__main__":
    main(Path(sys.argv[1]))
