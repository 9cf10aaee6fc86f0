"""The disk from which cloud-init learns who it is: its NoCloud data source, as an ISO 9660.

cloud-init looks for a file system labelled ``cidata`` (DataSourceNoCloud) with the files
``meta-data`` and ``user-data``. The only home of pycdlib.
"""

from __future__ import annotations

import io
import json

LABEL = "cidata"


def seed_disk(instance: str, host_name: str, user_data: bytes) -> bytes:
    """The image, some 50 KiB and the user data.

    *instance* tells cloud-init a new machine from a rebooted one: it is new with every
    deployment. *host_name* is what the guest calls itself.
    """
    # 60 ms to import, for few.
    from pycdlib import PyCdlib

    # JSON is YAML, with its quoting done right.
    about = json.dumps({"instance-id": instance, "local-hostname": host_name})
    disk = PyCdlib()
    disk.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=LABEL)
    for name, plain, content in (
        ("meta-data", "METADATA", about.encode()),
        ("user-data", "USERDATA", user_data),
    ):
        disk.add_fp(
            io.BytesIO(content),
            len(content),
            f"/{plain}.;1",
            rr_name=name,
            joliet_path=f"/{name}",
        )
    out = io.BytesIO()
    disk.write_fp(out)
    disk.close()
    return out.getvalue()
