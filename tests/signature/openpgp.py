"""Keys and signatures for tests, made by gpg in a home of its own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


class Signer:
    """One key, and what it signs."""

    def __init__(
        self, home: Path, name: str = "tests", expires: str = "never", options: tuple[str, ...] = ()
    ) -> None:
        self._home = home
        self._options = options
        home.mkdir(mode=0o700, exist_ok=True)
        self.gpg("--quick-gen-key", f"{name} <{name}@example.org>", "ed25519", "sign", expires)
        self.keyring = home / "keys.gpg"
        self.keyring.write_bytes(self.gpg("--export"))
        self.armored = home / "keys.asc"
        self.armored.write_bytes(b"A comment.\n" + self.gpg("--armor", "--export"))

    def gpg(self, *arguments: str, data: bytes = b"") -> bytes:
        """What gpg writes."""
        command = ["gpg", "--quiet", "--batch", "--passphrase", "", *self._options]
        environment = {"PATH": os.environ["PATH"], "GNUPGHOME": str(self._home)}
        done = subprocess.run(
            [*command, *arguments], input=data, env=environment, capture_output=True, check=True
        )
        return done.stdout

    def detached(self, document: bytes, *, armor: bool = False) -> bytes:
        """A detached signature."""
        return self.gpg(*(["--armor"] if armor else []), "--detach-sign", data=document)

    def clear(self, document: bytes) -> bytes:
        """A clear-signed document."""
        return self.gpg("--clear-sign", data=document)

    def close(self) -> None:
        """Ends the agent that gpg started."""
        subprocess.run(
            ["gpgconf", "--homedir", str(self._home), "--kill", "all"],
            check=False,
            capture_output=True,
        )
