"""An address to a manifest, and the head of the image: the requests that registering needs."""

from ddfs.source.checks import judge_image
from ddfs.source.claims import claimed_by_name, read_tail, refused_by_name
from ddfs.source.head import Head, read_head
from ddfs.source.packing import Look, read_packed_head
from ddfs.source.ports import Documents, FetchedDocument, Inquiries, Inquiry
from ddfs.source.resolving import resolve

__all__ = [
    "Documents",
    "FetchedDocument",
    "Head",
    "Inquiries",
    "Inquiry",
    "Look",
    "claimed_by_name",
    "judge_image",
    "read_head",
    "read_packed_head",
    "read_tail",
    "refused_by_name",
    "resolve",
]
